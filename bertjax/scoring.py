"""What a fine-tuned model says of a split, and how well: every example once, on any mesh."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bertjax.data.answers import n_best_answers
from bertjax.data.bucketing import evaluation_batches
from bertjax.data.examples import ChoiceExample, QuestionExample, TaggedExample, TextExample
from bertjax.data.features import QuestionRows, Rows, TextRows
from bertjax.data.task_data import TaskData
from bertjax.metrics import METRICS
from bertjax.objectives import FinetuningObjective
from bertjax.sharding import batch_sharding, global_batch, host_rows
from bertjax.squad_metrics import AnswerPrediction
from bertjax.train import Batch

# Below any score, for columns that a row does not have.
_NOTHING = -1e9


class Scorer:
    """Runs a model over splits.

    Args:
      objective: the model.
      mesh: the mesh.
      shardings: of the parameters.
      batch_size: rows of a batch, over the whole mesh.
      longest: width of the widest batch.
    """

    def __init__(
        self,
        objective: FinetuningObjective,
        mesh: Mesh,
        shardings: Any,
        batch_size: int,
        longest: int,
    ) -> None:
        def step(params: Any, batch: Batch) -> tuple[jax.Array, ...]:
            output = objective.outputs(params, batch, None)
            if hasattr(output, "start_logits"):
                return output.start_logits, output.end_logits
            return (output.logits,)

        self._step: Callable[..., tuple[jax.Array, ...]] = jax.jit(
            step,
            in_shardings=(shardings, batch_sharding(mesh)),
            out_shardings=NamedSharding(mesh, P()),
        )
        self._mesh = mesh
        self._batch_size = batch_size
        self._longest = longest

    def logits(self, params: Any, rows: Rows) -> tuple[list[np.ndarray], ...]:
        """Return the model's scores of every row, in order; of tokens, as many as the row has."""
        start, stop = host_rows(self._mesh, self._batch_size)
        found: tuple[list[np.ndarray], ...] = ()
        for picked, batch in evaluation_batches(rows, self._batch_size, self._longest):
            mine = {name: array[start:stop] for name, array in batch.items()}
            with jax.set_mesh(self._mesh):
                outputs = self._step(params, global_batch(mine, self._mesh, self._batch_size))
            found = found or tuple([np.empty(0)] * len(rows) for _ in outputs)
            lengths = rows.lengths[picked]
            for store, scores in zip(found, jax.device_get(outputs), strict=True):
                of_tokens = len(outputs) == 2 or scores.ndim == 3
                for row, length, values in zip(picked, lengths, scores, strict=False):
                    store[row] = values[:length] if of_tokens else values
        return found


@dataclasses.dataclass(frozen=True)
class Scored:
    """Predictions of a split.

    Attributes:
      predictions: one for each example, in order: class ids, numbers, probabilities of the labels,
        tag ids of every word, or texts of answers.
      scores: the task's metrics, the selecting one first; empty where labels are unknown.
    """

    predictions: list[Any]
    scores: dict[str, float]


def score(data: TaskData, rows: TextRows | QuestionRows, logits: tuple[Any, ...]) -> Scored:
    """Turn logits into predictions, and compare them with the labels."""
    if isinstance(rows, QuestionRows):
        return _answers(data, rows, logits)
    predictions = _predictions(data, rows, logits[0])
    references = _references(data)
    scores: dict[str, float] = {}
    for name in data.task.metrics if references is not None else ():
        scores |= METRICS[name](predictions, references, data.labels)
    return Scored(predictions, scores)


def _predictions(data: TaskData, rows: TextRows, logits: Sequence[np.ndarray]) -> list[Any]:
    family = data.task.family
    if family == "regression":
        return [float(row[0]) for row in logits]
    if family == "multi_label":
        return [1 / (1 + np.exp(-row)) for row in logits]
    if family == "token_classification":
        assert rows.words is not None
        words = np.split(rows.words, rows.bounds[1:-1])
        examples = cast(Sequence[TaggedExample], data.examples)
        outside = data.labels.index("O") if "O" in data.labels else 0
        return [
            _tags(row, begun, len(example.words), outside)
            for row, begun, example in zip(logits, words, examples, strict=True)
        ]
    return [int(row.argmax()) for row in logits]


def _tags(scores: np.ndarray, begun: np.ndarray, words: int, outside: int) -> np.ndarray:
    """Return the tag of every word; a word that the row does not hold is in no entity."""
    tags = np.full(words, outside)
    first = begun >= 0
    tags[begun[first]] = scores[first].argmax(-1)
    return tags


def _references(data: TaskData) -> list[Any] | None:
    """Return the labels of all examples, None where any is unknown."""
    examples = cast(Sequence[TextExample | ChoiceExample | TaggedExample], data.examples)
    labels = [e.tags if isinstance(e, TaggedExample) else e.label for e in examples]
    return None if any(label is None for label in labels) else labels


def _answers(data: TaskData, rows: QuestionRows, logits: tuple[Any, ...]) -> Scored:
    width = int(rows.lengths.max())
    start, end = (np.full((len(rows), width), _NOTHING, np.float32) for _ in range(2))
    for padded, ragged in zip((start, end), logits, strict=True):
        for row, values in zip(padded, ragged, strict=True):
            row[: len(values)] = values
    unanswerable = data.task.unanswerable
    best = n_best_answers(rows.windows, start, end, null_answer=unanswerable)
    # The scores look for the best threshold themselves, among the best real answers.
    chosen = best.choose(math.inf if unanswerable else 0.0)
    answers = {
        name: AnswerPrediction(answer.text, best.null_odds.get(name, 0.0))
        for name, answer in chosen.items()
    }
    examples = cast(Sequence[QuestionExample], data.examples)
    scores: dict[str, float] = {}
    if rows.positions is not None:
        for name in data.task.metrics:
            scores |= METRICS[name](answers, examples, data.labels)
    final = best.choose(scores.get("best_f1_thresh", 0.0))
    return Scored([final[example.id].text for example in examples], scores)

"""What a fine-tuned model says of a split, and how well: every example once, on any mesh."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from bertjax import train
from bertjax.data.answers import Predictions, n_best_answers
from bertjax.data.bucketing import evaluation_batches
from bertjax.data.cutting import Batch, Cutter
from bertjax.data.examples import ChoiceExample, QuestionExample, TaggedExample, TextExample
from bertjax.data.features import QuestionRows, Rows, TextRows
from bertjax.data.packing import sharable
from bertjax.data.targets import TargetRows
from bertjax.data.task_data import TaskData
from bertjax.devices import batch_widths
from bertjax.encoder_decoder_config import AnyConfig
from bertjax.metrics import METRICS, perplexity
from bertjax.objectives import FinetuningObjective
from bertjax.overlap import Overlap
from bertjax.sharding import batch_sharding, batch_ways, global_batch, host_rows, is_one_cpu
from bertjax.squad_metrics import AnswerPrediction
from bertjax.unstacked import apart, together

# Below any score, for columns that a row does not have.
_NOTHING = -1e9
# A further key of a model's config.json.
_NULL_THRESHOLD = "null_threshold"


class Scorer:
    """Runs a model over splits.

    Texts share rows where that computes less, so that few programs are compiled for a split and
    hardly any column is padding; choices of an example and texts to write from have their own rows.
    On one CPU the layers are taken apart (`bertjax.unstacked`), and two batches computed at the
    same time.

    Args:
      objective: the model.
      mesh: the mesh.
      shardings: of the parameters.
      batch_size: rows of a batch, over the whole mesh.
    """

    def __init__(
        self,
        objective: FinetuningObjective,
        mesh: Mesh,
        shardings: Any,
        batch_size: int,
    ) -> None:
        def step(params: Any, batch: train.Batch) -> tuple[jax.Array, ...]:
            output = objective.outputs(params, batch, None)
            if hasattr(output, "start_logits"):
                return output.start_logits, output.end_logits
            return (output.logits,)

        self._model = objective.model
        self._mesh = mesh
        self._shardings = shardings
        self._batch_size = batch_size
        self._step = self._compiled(step)
        self._overlap = Overlap(on_one_cpu=is_one_cpu(mesh), ahead=mesh.size == 1)

    def logits(
        self, params: Any, rows: Rows, progress: bool = False
    ) -> tuple[list[np.ndarray], ...]:
        """Return the model's scores of every row, in order; of tokens, as many as the row has.

        Args:
          params: the parameters.
          rows: what the model reads.
          progress: whether to show a progress bar, on a terminal.
        """
        bar = tqdm(total=len(rows), unit="row", leave=False, disable=None if progress else True)
        of_tokens = isinstance(rows, QuestionRows) or getattr(rows, "words", None) is not None
        found: tuple[list[np.ndarray], ...] = ()
        if is_one_cpu(self._mesh):
            params = apart(params, self._model.dtype)

        def compute(batch: Batch) -> tuple[jax.Array, ...]:
            with jax.set_mesh(self._mesh):
                return self._outputs(params, self._placed(batch.inputs))

        batches = self._batches(rows)
        for batch, outputs in self._overlap(batches, compute, lambda batch: batch.shape):
            lengths = rows.lengths[batch.numbers]
            columns = int(lengths.max()) if of_tokens else None
            found = found or tuple([np.empty(0)] * len(rows) for _ in outputs)
            for store, scores in zip(found, outputs, strict=True):
                own = batch.own(scores, columns)
                for row, length, values in zip(batch.numbers, lengths, own, strict=True):
                    store[row] = values[:length] if of_tokens else values
            bar.update(len(batch.numbers))
        bar.close()
        return found

    def _compiled(
        self, step: Callable[[Any, train.Batch], Any]
    ) -> Callable[[Any, train.Batch], Any]:
        """Compile a function of parameters, in whichever form, and a batch over the mesh."""
        whole = NamedSharding(self._mesh, P())
        return jax.jit(
            lambda params, batch: step(together(params), batch),
            in_shardings=(
                whole if self._mesh.size == 1 else self._shardings,
                batch_sharding(self._mesh),
            ),
            out_shardings=whole,
        )

    def _batches(self, rows: Rows) -> Iterator[Batch]:
        if not sharable(rows):
            for numbers, inputs in evaluation_batches(rows, self._batch_size, batch_widths()):
                yield Batch(numbers, inputs)
            return
        cutter = Cutter(
            self._batch_size,
            longest=self._model.config.max_position_embeddings,
            ways=batch_ways(self._mesh),
            on_cpu=jax.default_backend() == "cpu",
            shares=True,
        )
        yield from cutter.cut(rows)

    def _placed(self, inputs: dict[str, np.ndarray]) -> train.Batch:
        """Split a batch over the mesh."""
        count = len(inputs["input_ids"])
        start, stop = host_rows(self._mesh, count)
        mine = {name: array[start:stop] for name, array in inputs.items()}
        return global_batch(mine, self._mesh, count)

    def _outputs(self, params: Any, batch: train.Batch) -> tuple[jax.Array, ...]:
        return self._step(params, batch)


@dataclasses.dataclass(frozen=True)
class Scored:
    """Predictions of a split.

    Attributes:
      predictions: one for each example, in order: class ids, numbers, probabilities of the labels,
        tag ids of every word, texts of answers, or texts that were written.
      scores: the task's metrics, the selecting one first; empty where labels are unknown.
      answers: of questions, all that was considered; else None.
    """

    predictions: list[Any]
    scores: dict[str, float]
    answers: Predictions | None = None


def score(
    data: TaskData,
    rows: TextRows | QuestionRows | TargetRows,
    logits: tuple[Any, ...],
    null_threshold: float = 0.0,
) -> Scored:
    """Turn logits into predictions, and compare them with the labels.

    Args:
      data: the examples.
      rows: what the model read of them.
      logits: what it said, from `Scorer.logits`.
      null_threshold: odds above which a question has no answer, in the scores of one threshold,
        and in predictions where there are no labels to find the best threshold by.
    """
    if isinstance(rows, QuestionRows):
        return _answers(data, rows, logits, null_threshold)
    if isinstance(rows, TargetRows):
        return _written(data, rows, logits)
    predictions = _predictions(data, rows, logits[0])
    references = _references(data)
    scores: dict[str, float] = {}
    for name in data.task.metrics if references is not None else ():
        scores |= METRICS[name](predictions, references, data.labels)
    return Scored(predictions, scores)


def with_null_threshold(config: AnyConfig, threshold: float) -> AnyConfig:
    """Return a model's config with the no-answer threshold that it was tuned to."""
    other = dict(config.other) | {_NULL_THRESHOLD: json.dumps(threshold)}
    return dataclasses.replace(config, other=tuple(sorted(other.items())))


def null_threshold(config: AnyConfig) -> float | None:
    """Return the no-answer threshold of a model's config, None if it has none."""
    text = dict(config.other).get(_NULL_THRESHOLD)
    return None if text is None else float(json.loads(text))


def probabilities(
    data: TaskData, rows: TextRows, logits: Sequence[np.ndarray]
) -> list[np.ndarray] | None:
    """Return the probabilities of the labels or choices, [L], or of every word's tags, [words, L].

    A word that the row does not hold has NaN. Numbers have no probabilities: None.
    """
    family = data.task.family
    if family == "regression":
        return None
    if family == "multi_label":
        return [1 / (1 + np.exp(-row)) for row in logits]
    if family == "token_classification":
        logits = _by_word(data, rows, logits)
    return [_softmax(row) for row in logits]


def _predictions(data: TaskData, rows: TextRows, logits: Sequence[np.ndarray]) -> list[Any]:
    family = data.task.family
    if family == "regression":
        return [float(row[0]) for row in logits]
    if family == "multi_label":
        return probabilities(data, rows, logits) or []
    if family == "token_classification":
        outside = data.labels.index("O") if "O" in data.labels else 0
        return [
            np.where(np.isnan(words).any(-1), outside, words.argmax(-1))
            for words in _by_word(data, rows, logits)
        ]
    return [int(row.argmax()) for row in logits]


def _by_word(data: TaskData, rows: TextRows, logits: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the scores of every word's first token, [words, L]; NaN where the row has none."""
    assert rows.words is not None
    examples = cast(Sequence[TaggedExample], data.examples)
    found = []
    begun = np.split(rows.words, rows.bounds[1:-1])
    for row, words, example in zip(logits, begun, examples, strict=True):
        scores = np.full((len(example.words), row.shape[-1]), np.nan, np.float32)
        scores[words[words >= 0]] = row[words >= 0]
        found.append(scores)
    return found


def _softmax(scores: np.ndarray) -> np.ndarray:
    """Return the softmax over the last axis, in double precision."""
    weights = np.exp(scores.astype(np.float64) - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def _references(data: TaskData) -> list[Any] | None:
    """Return the labels of all examples, None where any is unknown."""
    examples = cast(Sequence[TextExample | ChoiceExample | TaggedExample], data.examples)
    labels = [e.tags if isinstance(e, TaggedExample) else e.label for e in examples]
    return None if any(label is None for label in labels) else labels


def _written(data: TaskData, rows: TargetRows, outputs: tuple[Any, ...]) -> Scored:
    """Score texts, and what the model gave the targets' tokens when it was shown those before."""
    predictions = [rows.text(ids) for ids in outputs[0]]
    if rows.targets is None:
        return Scored(predictions, {})
    scores: dict[str, float] = {}
    for name in data.task.metrics:
        scores |= METRICS[name](predictions, rows.targets.texts, ())
    loss, count, hits = np.asarray(outputs[1], np.float64).sum(axis=0).tolist()
    scores |= {"token_accuracy": hits / count, "loss": loss / count}
    return Scored(predictions, scores | {"perplexity": perplexity(loss / count)})


def _answers(
    data: TaskData, rows: QuestionRows, logits: tuple[Any, ...], null_threshold: float
) -> Scored:
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
        given = {"threshold": null_threshold} if unanswerable else {}
        for name in data.task.metrics:
            scores |= METRICS[name](answers, examples, data.labels, **given)
    final = best.choose(scores.get("best_f1_thresh", null_threshold))
    return Scored([final[example.id].text for example in examples], scores, best)

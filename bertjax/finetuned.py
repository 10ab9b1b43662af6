"""The model that `bertjax evaluate` and `bertjax predict` run, checked against the task."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bertjax.data.features import Rows
from bertjax.data.task_rows import shorten
from bertjax.data.tasks import Task
from bertjax.devices import open_mesh
from bertjax.encoder_decoder_config import AnyConfig, EncoderDecoderConfig
from bertjax.errors import InputError
from bertjax.model_commands import InferenceConfig
from bertjax.objectives import FinetuningObjective, Seq2SeqObjective
from bertjax.pretrained import abstract_params, formats, load_pretrained
from bertjax.pretrained.load import find_class, model_classes
from bertjax.report import say
from bertjax.run_config import TaskConfig
from bertjax.scoring import null_threshold
from bertjax.sharding import state_shardings
from bertjax.splits import Split, configured_task, read_split, source_config
from bertjax.tokenizer import BertTokenizer
from bertjax.writing import make_scorer

# A tuned threshold is the odds of one question; other batches change them by less than this.
_SLACK = 1e-5


def task_of(config: InferenceConfig) -> Task:
    """Return the task that the config names, or that the run does.

    Raises:
      InputError: none is named, or its settings do not fit it.
    """
    if not config.task.name:
        formats.locate(config.model)
        raise InputError(
            f"{config.model}: is no fine-tuning run, which would know its task; name it with "
            "--task.name: a task, such as sst2, or a family, such as classification"
        )
    return configured_task(config.task)


class Finetuned:
    """A model with the head that a task needs.

    Its weights are not read before they are needed: what is wrong with the data is told first.

    Attributes:
      task: the task.
      labels: the task's names of the labels, in the model's order; empty where they have none.

    Raises:
      InputError: no such model, or not one for this task.
    """

    def __init__(self, config: InferenceConfig, task: Task) -> None:
        self._mesh = open_mesh(
            config.mesh, batch_size=config.batch_size, distributed=config.distributed
        )
        self._config = config
        self._path = formats.locate(config.model)
        self._model_config = formats.find_config(self._path)
        name, _ = find_class(self._path, self._model_config)
        if name != task.head:
            raise InputError(
                f"{config.model}: is a {name}, but {task.name} needs a {task.head}: give the task "
                "that the model was fine-tuned on, or fine-tune it on this one"
            )
        self.task = task
        self.labels = fitting_labels(task, self._model_config, config.model)
        self._tokenizer = BertTokenizer.from_pretrained(config.model)
        self._settings = _fitting_lengths(config.task, self._model_config)

    def read(self, files: Sequence[str], *, with_labels: bool) -> Split:
        """Read the examples; see `read_split`."""
        config = self._config
        return read_split(
            self.task,
            self._settings,
            files,
            config.split,
            self._tokenizer,
            labels=self.labels,
            skip_bad=config.skip_bad,
            with_labels=with_labels,
            limit=source_config(self._model_config).max_position_embeddings,
        )

    def logits(self, rows: Rows) -> tuple[list[np.ndarray], ...]:
        """Load the weights, and return the model's scores of every row; see `Scorer.logits`."""
        head = model_classes()[self.task.head]
        model = head(self._model_config, dtype=jnp.dtype(self._config.dtype))
        shardings = state_shardings(abstract_params(model), self._mesh)
        _, params = load_pretrained(
            head, self._path, config=self._model_config, shardings=shardings
        )
        kind = Seq2SeqObjective if self.task.family == "seq2seq" else FinetuningObjective
        batch_size = self._config.batch_size
        scorer = make_scorer(kind(model), self._mesh, shardings, batch_size, self._settings)
        return scorer.logits(params, rows, progress=self.writes)

    def null_threshold(self) -> float:
        """Say and return the odds above which a question has no answer: given, tuned, or 0."""
        given = self._config.null_threshold
        if not self.task.unanswerable:
            return given or 0.0
        tuned = null_threshold(self._model_config)
        threshold = given if given is not None else tuned or 0.0
        why = "as given" if given is not None else "which the model was tuned to"
        if given is None and tuned is None:
            why = "as the model was tuned to none"
        say(f"no-answer threshold: {threshold:.4f}, {why}")
        return threshold if given is not None or tuned is None else tuned + _SLACK

    @property
    def writes(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return jax.process_index() == 0


def fitting_labels(task: Task, config: AnyConfig, source: str) -> tuple[str, ...]:
    """Return the task's names of the labels in the order of the model's outputs.

    Names are the same whatever their case, hyphens and underscores. A model that names no labels is
    taken to have them in the task's order.

    Raises:
      InputError: the model's outputs are not the task's labels.
    """
    if isinstance(config, EncoderDecoderConfig):
        return ()  # it writes texts
    kind, wanted = config.problem_type, task.problem_type
    single = wanted is not None and config.num_labels == 1
    if (kind and wanted and kind != wanted) or single != (task.family == "regression"):
        raise InputError(
            f"{source}: was made for {kind or 'other'} outputs ({config.num_labels} of them), "
            f"{task.name} is {task.family}: give the task that the model was fine-tuned on"
        )
    if task.family in ("regression", "multiple_choice", "question_answering"):
        return ()
    names = config.id2label
    if not task.labels:
        return names or tuple(config.label2id)
    if not names and config.num_labels == len(task.labels):
        say(f"{source}: names no labels; taken as {', '.join(task.labels)}, in this order")
        return task.labels
    own = {_plain(name): name for name in task.labels}
    if sorted(own) != sorted(map(_plain, names)):
        shown = shorten(list(config.label2id), 200)
        raise InputError(
            f"{source}: its labels are {shown}, those of {task.name} are "
            f"{shorten(list(task.labels), 200)}: give the task that the model was fine-tuned on, "
            f"or task {task.family} for data with the model's labels"
        )
    return tuple(own[_plain(name)] for name in names)


def _plain(name: str) -> str:
    return name.lower().replace("-", "_").replace(" ", "_")


def _fitting_lengths(settings: TaskConfig, config: AnyConfig) -> TaskConfig:
    """Return the settings with rows no longer than the model takes."""
    if isinstance(config, EncoderDecoderConfig):
        room = config.decoder.max_position_embeddings - 1  # the start token comes before
        longest = min(settings.target_length, room)
        settings = dataclasses.replace(settings, target_length=longest)
    length = min(settings.sequence_length, source_config(config).max_position_embeddings)
    return dataclasses.replace(settings, sequence_length=length)

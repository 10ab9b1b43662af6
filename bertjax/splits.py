"""The splits that a config names: their examples, and what a model reads of them."""

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from bertjax.config import BertConfig
from bertjax.data.examples import TextExample
from bertjax.data.features import QuestionRows, TextRows, make_rows
from bertjax.data.targets import TargetRows, target_rows
from bertjax.data.task_data import TaskData, no_examples, read_task
from bertjax.data.task_rows import BadRowError, Rejects
from bertjax.data.tasks import Columns, Task, find_task
from bertjax.encoder_decoder_config import AnyConfig, EncoderDecoderConfig
from bertjax.errors import InputError
from bertjax.metrics import FITTING, METRICS
from bertjax.report import say
from bertjax.run_config import TaskConfig
from bertjax.tokenizer import BertTokenizer

# A length that cuts nothing.
_ENDLESS = 1 << 30
# Bad examples that are told one by one.
_TOLD = 10
_COLUMNS = ("text_columns", "label_column", "label_columns", "choice_columns", "id_column")
_OF_TAGS = ("scheme", "word_column", "tag_column")
# Layouts that only files of one family have.
_FAMILIES = {
    "squad": "question_answering",
    "conll": "token_classification",
    "csqa": "multiple_choice",
}


@dataclasses.dataclass(frozen=True)
class Split:
    """A split's examples, and what the model reads of them."""

    data: TaskData
    rows: TextRows | QuestionRows | TargetRows


def configured_task(settings: TaskConfig) -> Task:
    """Return the task that a config names, for the columns and the layout that it names.

    Raises:
      InputError: no such task, or settings that do not fit it.
    """
    if not settings.name:
        raise InputError(
            "task.name: name a task, such as sst2, or a family, such as classification"
        )
    task = find_task(settings.name)
    changes = {name: getattr(settings, name) for name in ("layout", *_OF_TAGS)}
    changes = {name: value for name, value in changes.items() if value is not None}
    for name in changes.keys() & set(_OF_TAGS):
        if task.family != "token_classification":
            raise InputError(
                f"task.{name}: is for token_classification only; {task.name} is {task.family}"
            )
    task = _with_columns(task, settings)
    changed = _with_metrics(dataclasses.replace(task, **changes), settings.metrics)
    family = _FAMILIES.get(changed.layout, task.family)
    moved = task.layout == "squad" != changed.layout
    if family != task.family or moved or (changed.layout == "lines" and not takes_lines(task)):
        raise InputError(
            f"task.layout: the files of {task.name} ({task.family}) cannot be laid out as "
            f"{changed.layout}"
        )
    return changed


def source_config(config: AnyConfig) -> BertConfig:
    """Return the config of the model that reads rows: of an encoder-decoder, of the encoder."""
    return config.encoder if isinstance(config, EncoderDecoderConfig) else config


def takes_lines(task: Task) -> bool:
    """Whether a line of text is all that an example of the task needs."""
    single = task.family in ("classification", "regression", "multi_label", "seq2seq")
    return single and len(task.columns[0].text) == 1


def _with_columns(task: Task, settings: TaskConfig) -> Task:
    """Return the task with the columns that are named; the others are called as in the task."""
    if settings.label_column and settings.label_columns:
        raise InputError("task.label_column, task.label_columns: name one or the other")
    if not any(getattr(settings, name) for name in _COLUMNS):
        return task
    own = task.columns[0] if task.columns else Columns(("question",))
    return task.with_columns(
        settings.text_columns or own.text,
        settings.label_columns or settings.label_column or own.label,
        id=settings.id_column,
        choices=settings.choice_columns or own.choices,
    )


def _with_metrics(task: Task, names: Sequence[str]) -> Task:
    """Return the task with the metrics that are named, if any are."""
    fitting = FITTING.get(task.family, task.metrics)
    for name in names:
        if name not in fitting:
            raise InputError(
                f"task.metrics: {name!r} does not score {task.name} ({task.family}); choose from "
                f"{', '.join(fitting)}"
            )
    return dataclasses.replace(task, metrics=tuple(names)) if names else task


def _with_fitting_metrics(data: TaskData, chosen: Sequence[str]) -> TaskData:
    """Return the data with metrics that fit its labels.

    Raises:
      InputError: one that was chosen does not; a run would find that out after an epoch.
    """
    of_tags = data.task.family == "token_classification"
    if of_tags and not chosen and data.task.scheme == "plain":
        task = dataclasses.replace(data.task, metrics=("token_accuracy",))
        return dataclasses.replace(data, task=task)
    ids: list[Any] = list(range(len(data.labels)))
    ids = [ids] if of_tags and ids else ids
    for name in chosen if ids and data.task.family != "multi_label" else ():
        try:
            METRICS[name](ids, ids, data.labels)
        except InputError as error:
            raise InputError(f"task.metrics: {name} does not fit the labels: {error}") from None
    return data


def read_split(
    task: Task,
    settings: TaskConfig,
    files: Sequence[str],
    name: str,
    tokenizer: BertTokenizer,
    *,
    labels: Sequence[str] = (),
    skip_bad: bool = False,
    with_labels: bool = True,
    most: int = 0,
    limit: int = 0,
) -> Split:
    """Read a split, tokenize it, and say what is in it and what was left out.

    Args:
      task: the task.
      settings: lengths of rows and windows.
      files: files, globs, a directory, or tfds.
      name: train, validation or test.
      tokenizer: of the model.
      labels: the model's labels; empty: the task's, or those found.
      skip_bad: leave out bad examples.
      with_labels: whether labels are read.
      most: keep so many examples, drawn at random but always the same; 0 keeps all.
      limit: tokens that the model takes. Where rows may be as long, a longer one is bad; where
        they are shorter, that was chosen, and longer ones are cut.

    Raises:
      InputError: see `read_task`; a row over the limit.
    """
    longest = settings.sequence_length
    source = files[0] if len(files) == 1 else files
    data = read_task(task, source, name, labels=labels, skip_bad=skip_bad, with_labels=with_labels)
    data = _with_fitting_metrics(data, settings.metrics)
    count = len(data.examples)
    total = count + len(data.skipped)
    if 0 < most < count:
        kept = np.sort(np.random.default_rng(0).permutation(count)[:most])
        data = _picked(data, kept)
        say(f"{name}: {most:,} of {count:,} examples, drawn at random")
    rows = _rows(data, settings, tokenizer)
    if longest == limit and _cut(rows).any():
        data = _without_too_long(data, settings, tokenizer, _cut(rows), skip_bad)
        if not data.examples:
            raise no_examples(source, name, data.skipped)
        rows = _rows(data, settings, tokenizer)
    say(f"{name}: {len(data.examples):,} examples, {len(rows):,} rows")
    for skipped in data.skipped[:_TOLD]:
        say(f"{name}: left out {skipped}")
    left_out = len(data.skipped)
    if left_out > _TOLD:
        say(f"{name}: and {left_out - _TOLD:,} more")
    if left_out or skip_bad:
        say(f"{name}: left out {left_out:,} of {total:,} examples")
    cut = {"examples": (rows.truncated if isinstance(rows, TextRows) else 0, longest)}
    if isinstance(rows, TargetRows):
        lost = 0 if rows.targets is None else rows.targets.truncated
        cut = {"sources": (rows.sources.truncated, longest), "targets": (lost, rows.target_length)}
    for what, (count, most) in cut.items():
        if count:
            say(f"{name}: {count:,} {what} are cut to {most} tokens")
    return Split(data, rows)


def _rows(
    data: TaskData, settings: TaskConfig, tokenizer: BertTokenizer
) -> TextRows | QuestionRows | TargetRows:
    longest = settings.sequence_length
    if data.task.family != "seq2seq":
        return make_rows(data, tokenizer, longest, settings.doc_stride)
    texts = cast(Sequence[TextExample], data.examples)
    return target_rows(texts, tokenizer, longest, settings.target_length)


def _picked(data: TaskData, kept: npt.NDArray[np.int64]) -> TaskData:
    """Return some of the examples."""
    examples = tuple(data.examples[i] for i in kept)
    return dataclasses.replace(data, examples=examples, places=tuple(data.places[i] for i in kept))


def _cut(rows: TextRows | QuestionRows | TargetRows) -> npt.NDArray[np.bool_]:
    """Tell which examples lost tokens; windows lose none."""
    rows = rows.sources if isinstance(rows, TargetRows) else rows
    return rows.cut if isinstance(rows, TextRows) else np.zeros(1, bool)


def _without_too_long(
    data: TaskData,
    settings: TaskConfig,
    tokenizer: BertTokenizer,
    too_long: npt.NDArray[np.bool_],
    skip_bad: bool,
) -> TaskData:
    """Return the data without examples of more tokens than the model takes.

    Raises:
      InputError: bad examples are not to be left out.
    """
    limit, rejects = settings.sequence_length, Rejects(skip_bad)
    rejected = _picked(data, np.flatnonzero(too_long))
    uncut = dataclasses.replace(settings, sequence_length=_ENDLESS)
    lengths = _rows(rejected, uncut, tokenizer).lengths
    for place, length in zip(rejected.places, lengths, strict=True):
        problem = f"{length:,} tokens, where the model takes {limit:,}"
        remedy = f"have texts cut by a --task.sequence-length below {limit}"
        rejects.reject(*place, BadRowError(problem, remedy))
    skipped = (*data.skipped, *rejects.skipped)
    return dataclasses.replace(_picked(data, np.flatnonzero(~too_long)), skipped=skipped)

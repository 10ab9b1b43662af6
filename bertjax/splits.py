"""The splits that a config names: their examples, and what a model reads of them."""

import dataclasses
from collections.abc import Sequence

from bertjax.data.features import QuestionRows, TextRows, make_rows
from bertjax.data.task_data import TaskData, read_task
from bertjax.data.tasks import Task, find_task
from bertjax.errors import InputError
from bertjax.report import say
from bertjax.run_config import TaskConfig
from bertjax.tokenizer import BertTokenizer

# Bad examples that are told one by one.
_TOLD = 10


@dataclasses.dataclass(frozen=True)
class Split:
    """A split's examples, and what the model reads of them."""

    data: TaskData
    rows: TextRows | QuestionRows


def configured_task(settings: TaskConfig) -> Task:
    """Return the task that a config names, with the columns that it names.

    Raises:
      InputError: no such task, or columns that do not fit it.
    """
    if not settings.name:
        raise InputError(
            "task.name: name a task, such as sst2, or a family, such as classification"
        )
    task = find_task(settings.name)
    columns = settings.text_columns
    return task.with_columns(columns, settings.label_column) if columns else task


def read_split(
    task: Task,
    settings: TaskConfig,
    files: Sequence[str],
    name: str,
    tokenizer: BertTokenizer,
    *,
    labels: Sequence[str] = (),
    skip_bad: bool = False,
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

    Raises:
      InputError: see `read_task`.
    """
    source = files[0] if len(files) == 1 else files
    data = read_task(task, source, name, labels=labels, skip_bad=skip_bad)
    rows = make_rows(data, tokenizer, settings.sequence_length, settings.doc_stride)
    say(f"{name}: {len(data.examples):,} examples, {len(rows):,} rows")
    for skipped in data.skipped[:_TOLD]:
        say(f"{name}: left out {skipped}")
    if len(data.skipped) > _TOLD:
        say(f"{name}: left out {len(data.skipped)} in all")
    if isinstance(rows, TextRows) and rows.truncated:
        say(f"{name}: {rows.truncated:,} examples are cut to {settings.sequence_length} tokens")
    return Split(data, rows)

"""Read a split of a task: the one way in for files and for TFDS data sets alike."""

import dataclasses
import os
from collections.abc import Sequence

from bertjax.data.task_examples import Example, ExampleMaker, make_examples
from bertjax.data.task_files import SQUAD_LABELS, read_file
from bertjax.data.task_rows import Rejects, Row, Skipped
from bertjax.data.tasks import Columns, Task, find_task
from bertjax.data.text import find_files
from bertjax.errors import InputError

TFDS = "tfds"


@dataclasses.dataclass(frozen=True)
class TaskData:
    """A split of a task.

    Attributes:
      task: the task, with the scheme that its tags are in.
      examples: the examples, in the order of the source, all of one type.
      labels: names of the labels in order of their ids, a classifier's `id2label`; empty where
        labels have no names.
      skipped: what was left out: bad examples, if they may be skipped, and those that the data set
        itself gives no label.
      places: of each example, its file or data set and where it stands there; data is equal
        wherever it stands.
    """

    task: Task
    examples: tuple[Example, ...]
    labels: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    places: tuple[tuple[str, str], ...] = dataclasses.field(default=(), compare=False)


def read_task(
    task: Task | str,
    source: str | Sequence[str],
    split: str = "train",
    *,
    labels: Sequence[str] = (),
    skip_bad: bool = False,
    with_labels: bool = True,
    data_dir: str = "",
) -> TaskData:
    """Read the examples of a split.

    Args:
      task: a task, or the name of one.
      source: files or globs, plain or .gz; or a directory with files of the usual names; or "tfds"
        for the task's data set in TFDS, "tfds:NAME" for another, "tfds:DIRECTORY" for one that lies
        there.
      split: "train", "validation" or "test"; mnli also has "validation_mismatched" and
        "test_mismatched", and TFDS takes slices such as "train[:10%]". Examples of test splits may
        be without labels.
      labels: names of a model's labels in the order of its ids; where it is empty, the task's are
        taken, or else those that the training split has.
      skip_bad: leave out what cannot be used and list it, instead of stopping there.
      with_labels: whether labels are read; if not, they may be missing, wrong or unknown.
      data_dir: directory of TFDS data sets; empty: TFDS's own choice.

    Raises:
      InputError: something is wrong with the data, told with file and line or field; or the split
        is empty.
    """
    task = find_task(task) if isinstance(task, str) else task
    rejects = Rejects(skip_bad)
    needs_label = with_labels and not split.startswith("test")
    name, _, dataset = source.partition(":") if isinstance(source, str) else ("", "", "")
    if name == TFDS:
        from bertjax.data.task_tfds import read_dataset

        dataset = dataset or task.dataset
        if not dataset:
            raise InputError(f"{task.name} is not in TFDS; give its files, or tfds:NAME")
        columns, rows = read_dataset(task, dataset, split, needs_label, data_dir)
    else:
        columns, rows = _read_files(task, source, split, needs_label, rejects)
    if not with_labels:
        of_questions = task.family == "question_answering"
        hidden = SQUAD_LABELS if of_questions else columns.labels
        rows = [row and _without(row, hidden) for row in rows]
    infer = split.startswith("train")
    maker = ExampleMaker(task, columns, [row for row in rows if row is not None], labels, infer)
    examples, places = make_examples(maker, rows, needs_label, rejects)
    if not examples:
        raise no_examples(source, split, rejects.skipped)
    task = dataclasses.replace(task, scheme=maker.scheme)
    return TaskData(task, tuple(examples), maker.labels, tuple(rejects.skipped), tuple(places))


def no_examples(source: str | Sequence[str], split: str, left_out: Sequence[Skipped]) -> InputError:
    """Return what is wrong with a split that nothing is left of."""
    name = source if isinstance(source, str) else ", ".join(source)
    told = f"; all of {len(left_out)} were left out, as {left_out[0]}" if left_out else ""
    return InputError(f"{name}: no example in the {split} split{told}; give data with examples")


def _without(row: Row, hidden: Sequence[str]) -> Row:
    """Return a row without some of its fields."""
    return row._replace(values={k: v for k, v in row.values.items() if k not in hidden})


def _read_files(
    task: Task, source: str | Sequence[str], split: str, needs_label: bool, rejects: Rejects
) -> tuple[Columns, list[Row | None]]:
    """Read the rows of all files, which must have the same columns."""
    patterns = [source] if isinstance(source, str) else list(source)
    if not patterns:
        raise InputError(f"no file is given for the {split} split of {task.name}")
    patterns = [_named_file(task, pattern, split) for pattern in patterns]
    rows: list[Row | None] = []
    found: dict[Columns, str] = {}
    for file in find_files(patterns):
        columns, read = read_file(task, file.path, needs_label, rejects)
        rows += read
        found.setdefault(columns, file.path)
    if len(found) > 1:
        raise InputError(f"{' and '.join(found.values())} have different columns; read them apart")
    return next(iter(found)), rows


def _named_file(task: Task, pattern: str, split: str) -> str:
    """Return the file of a split in a directory, or what is no directory as it is."""
    if not os.path.isdir(pattern):
        return pattern
    names = task.files.get(split, ())
    for name in names:
        for path in (os.path.join(pattern, name), os.path.join(pattern, f"{name}.gz")):
            if os.path.isfile(path):
                return path
    expected = f"holds no {' or '.join(names)}" if names else f"is a directory ({split} split)"
    raise InputError(f"{pattern} {expected}; name the file itself")

"""Labels as they stand in files, names or ids, and the ids that a model has for them."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from bertjax.data.task_rows import BadRowError, shorten
from bertjax.data.task_tags import tag_types
from bertjax.data.tasks import Scheme, Task, iob2_labels
from bertjax.errors import InputError

_NUMBER = re.compile(r"-?[0-9]{1,18}")


class LabelList:
    """The labels of a data set, and the ids that a model has for them.

    A file holds either names or ids of the data set. Which of them is decided by the first label;
    names that are numbers themselves are names.
    """

    def __init__(self, names: Sequence[str], order: Sequence[str]) -> None:
        """Name the labels.

        Args:
          names: in the order of the data set's ids.
          order: the same in the order of the model's ids.

        Raises:
          InputError: a name is there twice.
        """
        self._ids = {name: index for index, name in enumerate(order)}
        if len(self._ids) < len(order):
            twice = next(name for name in order if list(order).count(name) > 1)
            raise InputError(f"label {twice!r} is there twice; name each label once")
        numbers = all(map(_NUMBER.fullmatch, names))
        self._numbered = {} if numbers else {str(i): self._ids.get(n) for i, n in enumerate(names)}
        self._shown = shorten(list(order), 200)
        self._first: tuple[str, bool] | None = None

    def encode(self, raw: Any) -> int:
        """Return the model's id of a label as it was read.

        Raises:
          BadRowError: it is not in the list, or a name where others are ids, or an id among names.
        """
        name = _label_name(raw)
        by_name = name in self._ids
        index = self._ids[name] if by_name else self._numbered.get(name)
        if self._first:
            first, first_by_name = self._first
            if index is None:
                mixed = _is_number(name) != _is_number(first)
            else:
                mixed = by_name != first_by_name
            if mixed:
                raise BadRowError(
                    f"label types are mixed: {shorten(name)} here, {shorten(first)} before",
                    "write all labels as names, or all as ids",
                )
        if index is None:
            raise BadRowError(f"label {shorten(name)} is not in the list {self._shown}")
        self._first = self._first or (name, by_name)
        return index

    def encode_all(self, raw: Any) -> tuple[int, ...]:
        """Return the model's ids, ascending, of all labels of an example.

        Args:
          raw: a list of labels; or one string of them with commas or, if it has none, spaces
            between; or a dict with 0 or 1 for each.

        Raises:
          BadRowError: see `encode`; or a label is empty, or there twice.
        """
        if isinstance(raw, dict):
            raw = [name for name, cell in raw.items() if _truth(name, cell)]
        if isinstance(raw, str):
            cell, raw = raw, [raw] if raw in self._ids else _split(raw, "," in raw)
            if "" in raw:
                raise BadRowError(f"an empty label in {shorten(cell)}")
        ids = sorted(map(self.encode, raw if isinstance(raw, list) else [raw]))
        if len(set(ids)) < len(ids):
            raise BadRowError(f"a label is there twice in {shorten(raw)}")
        return tuple(ids)


def infer_labels(task: Task, raws: Iterable[Any], scheme: Scheme) -> tuple[str, ...]:
    """Return the names of all labels in order: numbers by value, else sorted; tags as IOB2.

    Labels of another type than the first one's are left out, so that encoding them fails.
    """
    raws = [raw for raw in raws if raw is not None]
    if task.family == "multi_label":
        commas = any(isinstance(raw, str) and "," in raw for raw in raws)
        raws = [_split(raw, commas) if isinstance(raw, str) else raw for raw in raws]
    if task.family in ("multi_label", "token_classification"):
        raws = [item for raw in raws if isinstance(raw, list) for item in raw]
    names: dict[str, None] = {}
    for raw in raws:
        if isinstance(raw, str | int):
            names[_label_name(raw)] = None
    if task.family == "token_classification" and scheme != "plain":
        return iob2_labels(tag_types(names))
    first = next(iter(names), "")
    names_alike = [name for name in names if _is_number(name) == _is_number(first)]
    return tuple(sorted(names_alike, key=int if _is_number(first) else None))


def score(raw: Any) -> float:
    """Return the number that a label of a regression is.

    Raises:
        BadRowError: it is none, or not finite.
    """
    try:
        value = float(raw) if isinstance(raw, str | int | float) else math.nan
    except (ValueError, OverflowError):
        value = math.nan
    if isinstance(raw, bool) or not math.isfinite(value):
        raise BadRowError(f"label {shorten(raw)} is not a finite number")
    return value


def _label_name(raw: Any) -> str:
    if isinstance(raw, float):
        raise BadRowError(
            f"label {shorten(raw)} is a fraction, not a class",
            "write classes as names or whole numbers, take task regression",
        )
    if isinstance(raw, bool):
        return str(raw).lower()
    if not isinstance(raw, str | int):
        raise BadRowError(f"label {shorten(raw)} is neither a name nor a number")
    return str(raw).strip()


def _is_number(name: str) -> bool:
    return bool(_NUMBER.fullmatch(name))


def _split(raw: str, commas: bool) -> list[str]:
    """Split a cell with several labels; an empty one has none."""
    if not raw.strip():
        return []
    return [name.strip() for name in raw.split(",")] if commas else raw.split()


def _truth(column: str, cell: Any) -> bool:
    """Read the cell of a label that has a column to itself."""
    known = {"1": True, "true": True, "0": False, "false": False}
    value = known.get(str(cell).strip().lower())
    if value is None:
        raise BadRowError(f"field {column!r} is {shorten(cell)}, not 0 or 1")
    return value

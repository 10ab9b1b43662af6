"""Rows, the form in which files and TFDS hand labelled data over, and what becomes of bad ones."""

import dataclasses
from typing import Any, Final, NamedTuple

from bertjax.errors import InputError

NO_LABEL: Final = object()
"""Value of a label that the data set itself gives as unknown."""


class Row(NamedTuple):
    """One example as it was read.

    Attributes:
      source: its file or data set.
      place: where it stands there: its line, field or number.
      values: its fields by name.
    """

    source: str
    place: str
    values: dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Skipped:
    """An example that was left out.

    Attributes:
      source: its file or data set.
      place: where it stands there.
      problem: what is wrong with it.
    """

    source: str
    place: str
    problem: str

    def __str__(self) -> str:
        return f"{self.source}, {self.place}: {self.problem}"


class BadRowError(Exception):
    """What is wrong with a row, and what to do about it."""

    def __init__(self, problem: str, remedy: str = "correct it") -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy


class Rejects:
    """Stops at the first bad row, or collects them.

    Attributes:
      skip_bad: leave bad rows out instead of stopping.
      skipped: what was left out so far.
    """

    def __init__(self, skip_bad: bool = False) -> None:
        self.skip_bad = skip_bad
        self.skipped: list[Skipped] = []

    def reject(self, source: str, place: str, bad: BadRowError) -> None:
        """Note a bad row.

        Raises:
            InputError: bad rows are not to be skipped.
        """
        if not self.skip_bad:
            raise InputError(
                f"{source}, {place}: {bad.problem}; {bad.remedy}, or have such examples skipped "
                "(--skip-bad)"
            )
        self.leave_out(source, place, bad.problem)

    def leave_out(self, source: str, place: str, problem: str) -> None:
        """Note a row that is left out although nothing is wrong with it."""
        self.skipped.append(Skipped(source, place, problem))


def is_text(value: Any) -> bool:
    """Whether a value is a string, and one that UTF-8 can hold (no half of a surrogate pair)."""
    if not isinstance(value, str):
        return False
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def text_field(row: Row, name: str) -> str:
    """Return the text in a field.

    Raises:
        BadRowError: there is none.
    """
    if name not in row.values:
        raise BadRowError(f"no field {name!r}", "add it, or name another column")
    value = row.values[name]
    if not isinstance(value, str):
        raise BadRowError(f"field {name!r} is {shorten(value)}, not a text")
    if not is_text(value):
        raise BadRowError(f"field {name!r} is not valid UTF-8", "save the file as UTF-8")
    return value


def shorten(value: Any, most: int = 60) -> str:
    """Return a value as one short piece of a message."""
    shown = repr(value)
    return shown if len(shown) <= most else f"{shown[: most - 4]}...{shown[-1]}"

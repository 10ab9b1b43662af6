"""Tags that mark entities: tell IOB1 from IOB2, and write either as IOB2.

In IOB2 every entity begins with B-. In IOB1 it begins with I-, and with B- only where one of the
same type ends just before (Tjong Kim Sang and Veenstra, 1999).
"""

import re
from collections.abc import Iterable, Iterator, Sequence

from bertjax.data.task_rows import BadRowError, Row, shorten
from bertjax.data.tasks import Scheme
from bertjax.errors import InputError

_MARK = re.compile(r"O|[BI]-.+", re.DOTALL)


def find_scheme(rows: Iterable[Row], column: str) -> Scheme:
    """Tell how the tags in a column of all rows mark entities.

    Returns:
        "plain" if no tag is O, B-... or I-...; else "iob1" if an entity begins with I-, and "iob2"
        if none does.

    Raises:
        InputError: entities begin with I- in one place, and in another with B- where IOB1 has I-.
    """
    marked = False
    first: dict[Scheme, str] = {}
    for row in rows:
        tags = row.values.get(column)
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            continue
        marked = marked or any(map(_MARK.fullmatch, tags))
        for tag, begins in _with_beginnings(tags):
            if tag[:2] == "I-" and begins:
                first.setdefault("iob1", f"{row.source}, {row.place}")
            elif tag[:2] == "B-" and begins:
                first.setdefault("iob2", f"{row.source}, {row.place}")
    if len(first) == 2:
        raise InputError(
            f"entities begin with I- ({first['iob1']}) and with B- ({first['iob2']}); say which is "
            "meant: scheme iob2, or iob1, which takes both"
        )
    if not marked:
        return "plain"
    return "iob1" if "iob1" in first else "iob2"


def to_iob2(tags: Sequence[str], scheme: Scheme) -> list[str]:
    """Write the tags of a sentence, which are in `scheme`, as IOB2; plain ones stay.

    Raises:
        BadRowError: a tag is no tag of the scheme, or not where it can be.
    """
    if scheme == "plain":
        return list(tags)
    converted = []
    for place, (tag, begins) in enumerate(_with_beginnings(tags), 1):
        if not _MARK.fullmatch(tag):
            raise BadRowError(
                f"tag {shorten(tag)} of word {place} is neither O nor B-... nor I-...",
                "correct it, read the file with scheme plain",
            )
        if tag[:2] == "I-" and begins:
            if scheme == "iob2":
                raise BadRowError(
                    f"{tag} of word {place} begins an entity, which is B-{tag[2:]} in IOB2",
                    "correct it, read the file with scheme iob1",
                )
            tag = f"B-{tag[2:]}"
        converted.append(tag)
    return converted


def tag_types(tags: Iterable[str]) -> tuple[str, ...]:
    """Return the types of entities that IOB tags name, sorted."""
    return tuple(sorted({tag[2:] for tag in tags if tag != "O" and _MARK.fullmatch(tag)}))


def _with_beginnings(tags: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Yield each tag, and whether no entity of its type ends just before."""
    before = "O"
    for tag in tags:
        yield tag, before[:2] not in ("B-", "I-") or before[2:] != tag[2:]
        before = tag

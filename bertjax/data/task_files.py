"""Read files of labelled data, plain or .gz, as rows: tables, JSON lines, CoNLL columns and SQuAD.

What a row has to hold is the business of `bertjax.data.task_examples`. A reader yields None for
what it could not read as a row and may skip, so that the rows after it keep their numbers.
"""

import csv
import itertools
import json
from collections.abc import Iterator
from typing import Any

from bertjax.data.task_rows import BadRowError, Rejects, Row, is_text, shorten
from bertjax.data.tasks import Columns, Task
from bertjax.data.text import MAX_LINE_BYTES, TextFile, open_bytes, read_chunks
from bertjax.errors import InputError

Rows = Iterator[Row | None]

SQUAD_LABELS = ("answers", "is_impossible")
SQUAD_FIELDS = ("id", "question", "context", *SQUAD_LABELS)
CONLL_COLUMNS = Columns(("tokens",), "tags")
LINE_COLUMNS = Columns(("text",), id=())


def read_file(task: Task, path: str, needs_label: bool, rejects: Rejects) -> tuple[Columns, Rows]:
    """Read a file of a task.

    Args:
      task: says how the file is laid out.
      path: the file.
      needs_label: whether a table must have the columns of the label.
      rejects: takes what cannot be read.

    Returns:
      The columns that the file has, and its rows.

    Raises:
      InputError: the file cannot be read, or lacks columns; rows raise it unless they may be
        skipped.
    """
    if task.layout == "squad":
        return Columns(()), _squad_rows(path, rejects)
    if task.layout == "lines":
        return LINE_COLUMNS, _line_rows(path)
    suffix = path.removesuffix(".gz").rpartition(".")[2].lower()
    layout = "jsonl" if suffix == "jsonl" and task.layout != "csqa" else task.layout
    layout = "csv" if suffix == "csv" and task.layout == "quoted_tsv" else layout
    if layout == "by_name":
        known = {"csv": "csv", "tsv": "tsv", "txt": "tsv", "json": "jsonl"}
        if suffix not in known:
            raise InputError(f"{path}: unknown kind of file; give .csv, .tsv or .jsonl, or .gz")
        layout = known[suffix]  # type: ignore[assignment]
    if layout == "conll":
        return CONLL_COLUMNS, _conll_rows(task, path, needs_label, rejects)
    if layout in ("jsonl", "csqa"):
        return _json_table(task, path, layout == "csqa", needs_label, rejects)
    cells = _cells(path, "," if layout == "csv" else "\t", quoted=layout != "tsv")
    return _table(task, path, cells, needs_label, rejects)


def choose_columns(
    task: Task, names: tuple[str, ...] | None, source: str, needs_label: bool
) -> Columns:
    """Return the first of the task's columns that are all among `names` (None: nothing is known).

    Raises:
        InputError: a column is missing.
    """
    if names is None:
        return task.columns[0]
    named = [columns for columns in task.columns if not columns.header]
    for columns in named:
        if {*columns.inputs, *columns.labels} <= set(names):
            return columns
    readable = [columns for columns in named if set(columns.inputs) <= set(names)]
    if readable and not needs_label:
        return readable[0]
    wanted = readable[0] if readable else named[0]
    needed = (*wanted.inputs, *(wanted.labels if needs_label else ()))
    lacking = [name for name in needed if name not in names]
    raise InputError(
        f"{source}: no column {', '.join(map(repr, lacking))}; it has {', '.join(map(repr, names))}"
        f": name the columns of task {task.name}, or take another task"
    )


def _line_rows(path: str) -> Rows:
    """Yield the lines of a file, each a text, and None for those that are blank."""
    for number, line in _lines(path):
        yield Row(path, f"line {number}", {"text": line}) if line.strip() else None


def read_label_names(path: str) -> tuple[str, ...]:
    """Read the names of labels, one a line in order of their ids.

    Raises:
        InputError: the file cannot be read, or a line is empty or there twice.
    """
    names: dict[str, int] = {}
    for number, line in _lines(path):
        name = line.strip()
        if not name or not is_text(name):
            raise InputError(f"{path}, line {number}: no name; write one label a line")
        if name in names:
            raise InputError(f"{path}, line {number}: {name!r} is in line {names[name]} already")
        names[name] = number
    if not names:
        raise InputError(f"{path} is empty; write one label a line")
    return tuple(names)


def _lines(path: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file with their numbers; bytes that are not UTF-8 as surrogates."""
    for chunk in read_chunks(TextFile(path, "sentences")):
        lines = chunk.data.decode("utf-8", "surrogateescape").removesuffix("\n").split("\n")
        for number, line in enumerate(lines, chunk.first_line):
            yield number, line.removesuffix("\r")


def _cells(
    path: str, delimiter: str, quoted: bool
) -> Iterator[tuple[str, list[str] | BadRowError]]:
    """Yield the place of every row of a table, and its cells or what is wrong; no blank lines."""
    if not quoted:
        for number, line in _lines(path):
            if line:
                yield f"line {number}", line.split(delimiter)
        return
    # The default stops at 128 KB.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
    reader = csv.reader((f"{line}\n" for _, line in _lines(path)), delimiter=delimiter, strict=True)
    while True:
        place = f"line {reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise InputError(
                    f"{path}, {place}: a quote opens here, or further on, that is never closed; "
                    "close it, and write quotes inside of a text twice"
                ) from None
            yield place, BadRowError(f"broken row: {error}", "write quotes inside of a text twice")
            continue
        if cells:
            yield place, cells


def _table(
    task: Task,
    path: str,
    cells: Iterator[tuple[str, list[str] | BadRowError]],
    needs_label: bool,
    rejects: Rejects,
) -> tuple[Columns, Rows]:
    """Find out the columns of a table by its first row."""
    place, first = next(cells, ("", None))
    if first is None:
        return task.columns[0], iter(())
    if isinstance(first, BadRowError):
        raise InputError(f"{path}, {place}: {first.problem}; {first.remedy}")
    headless = [columns for columns in task.columns if columns.header]
    headed = [columns for columns in task.columns if not columns.header]
    if headless and not any(set(columns.inputs) <= set(first) for columns in headed):
        columns, header = headless[0], list(headless[0].header)
        cells = itertools.chain([(place, first)], cells)
    else:
        columns, header = choose_columns(task, tuple(first), f"{path}, {place}", needs_label), first
    used = {*columns.inputs, *columns.labels, *columns.id}
    for name in used:
        if header.count(name) > 1:
            raise InputError(f"{path}, {place}: two columns are named {name!r}; rename one")
    kept = [(index, name) for index, name in enumerate(header) if name in used]

    def rows() -> Rows:
        for place, row in cells:
            if isinstance(row, BadRowError):
                bad = row
            elif len(row) == len(header) or (columns.surplus and len(row) > len(header)):
                yield Row(path, place, {name: row[index] for index, name in kept})
                continue
            else:
                bad = BadRowError(f"{len(row)} columns where {len(header)} are expected")
            rejects.reject(path, place, bad)
            yield None

    return columns, rows()


def _json_table(
    task: Task, path: str, is_csqa: bool, needs_label: bool, rejects: Rejects
) -> tuple[Columns, Rows]:
    """Find out the fields of JSON lines by their first record."""
    records = _json_records(path, is_csqa, rejects)
    read: list[Row | None] = []
    names: tuple[str, ...] | None = None
    for row in records:
        read.append(row)
        if row is not None:
            names = tuple(row.values)
            break
    columns = choose_columns(task, names, path, needs_label)
    used = (*columns.inputs, *columns.labels, *columns.id)

    def rows() -> Rows:
        for row in itertools.chain(read, records):
            if row is not None:
                values = {name: row.values[name] for name in used if name in row.values}
                row = row._replace(values=values)
            yield row

    return columns, rows()


def _json_records(path: str, is_csqa: bool, rejects: Rejects) -> Rows:
    """Yield the object in each line; of CommonsenseQA, made flat."""
    for number, line in _lines(path):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise BadRowError("no JSON object", "write one JSON object a line")
            yield Row(path, place, _flatten_csqa(record) if is_csqa else record)
            continue
        except BadRowError as error:
            bad = error
        except (ValueError, RecursionError) as error:
            place, bad = _json_error(place, error)
        rejects.reject(path, place, bad)
        yield None


def _json_error(place: str, error: ValueError | RecursionError) -> tuple[str, BadRowError]:
    """Return where in a line, or in a text without `place`, JSON is broken, and how."""
    if not isinstance(error, json.JSONDecodeError):
        return place or "line 1", BadRowError(
            "invalid JSON: a number is too long, or nested too deeply"
        )
    return (
        f"{place or f'line {error.lineno}'}, column {error.colno}",
        BadRowError(f"invalid JSON: {error.msg}"),
    )


def _flatten_csqa(record: dict[str, Any]) -> dict[str, Any]:
    """Bring the stem and the choices' texts, A first, to the top of a CommonsenseQA record."""
    question = record.get("question")
    if not isinstance(question, dict):
        raise BadRowError("no object 'question'")
    choices = question.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise BadRowError("no list of objects 'choices' in 'question'")
    letters = [choice.get("label") for choice in choices]
    if letters != list("ABCDEFGHIJ"[: len(letters)]):
        raise BadRowError(f"the choices are labelled {shorten(letters)}, not A, B, C, ...")
    flat = {"choices": [choice.get("text") for choice in choices], "stem": question.get("stem")}
    return record | flat


def _conll_rows(task: Task, path: str, needs_label: bool, rejects: Rejects) -> Rows:
    """Yield the sentences of a file with one word a line, beside it its tag in another column."""
    words: list[str] = []
    tags: list[str] = []
    start, width, bad = 0, 0, None
    for number, line in itertools.chain(_lines(path), [(0, "")]):
        line = line.rstrip(" \t")
        if not line or line.startswith("-DOCSTART-"):
            if bad:
                rejects.reject(path, *bad)
                yield None
            elif words:
                values = {"tokens": words} | ({"tags": tags} if width > 1 else {})
                yield Row(path, f"line {start}", values)
            words, tags, start, bad = [], [], 0, None
            continue
        cells = line.split("\t") if "\t" in line else [cell for cell in line.split(" ") if cell]
        start = start or number
        if not width:
            width = len(cells)
            _check_conll_columns(task, path, number, width, needs_label)
        if len(cells) != width:
            problem = f"{len(cells)} columns where the lines before have {width}"
            bad = bad or (f"line {number}", BadRowError(problem))
        elif not all(map(is_text, cells)):
            bad = bad or (f"line {number}", BadRowError("invalid UTF-8", "save the file as UTF-8"))
        elif not cells[task.word_column]:
            bad = bad or (f"line {number}", BadRowError("no word"))
        else:
            words.append(cells[task.word_column])
            tags.append(cells[task.tag_column])


def _check_conll_columns(task: Task, path: str, number: int, width: int, needs_label: bool) -> None:
    """Check that lines of `width` columns hold the task's."""
    for name, column in (("words", task.word_column), ("tags", task.tag_column)):
        if not -width <= column < width:
            raise InputError(
                f"{path}, line {number}: no column {column} of {name}; the line has {width}, "
                "counted from 0, or from -1 at the end"
            )
    if width == 1 and needs_label:
        raise InputError(
            f"{path}, line {number}: one column only, and no tags; separate word and tag by a tab "
            "or a space"
        )


def _squad_rows(path: str, rejects: Rejects) -> Rows:
    """Yield the questions of a file in SQuAD's layout, v1.1 or v2.0."""
    with open_bytes(path) as (stream, _):
        data = stream.read()
    try:
        document = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}, line {line}: invalid UTF-8 at byte {error.start}; save the file as UTF-8"
        ) from None
    except (ValueError, RecursionError) as error:
        place, bad = _json_error("", error)
        raise InputError(f"{path}, {place}: {bad.problem}; correct it") from None
    if not isinstance(document, dict) or not isinstance(document.get("data"), list):
        raise InputError(f"{path}: no list 'data'; give a file in SQuAD's layout")
    for place, found in _questions(document, "", ("data", "paragraphs", "qas"), {}):
        if isinstance(found, BadRowError):
            rejects.reject(path, place, found)
            yield None
        else:
            name = f" (question {found['id']})" if is_text(found.get("id")) else ""
            yield Row(path, f"{place}{name}", found)


def _questions(
    node: Any, place: str, levels: tuple[str, ...], above: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any] | BadRowError]]:
    """Yield the place of each question below a node, and its fields with those of `above`."""
    if not isinstance(node, dict):
        yield place, BadRowError(f"{shorten(node)} is no JSON object")
        return
    fields = above | {name: node[name] for name in SQUAD_FIELDS if name in node}
    if not levels:
        yield place, fields
        return
    below = node.get(levels[0])
    if not isinstance(below, list):
        yield place, BadRowError(f"no list {levels[0]!r}")
        return
    # Of what stands above, the questions share the context.
    shared = {"context": fields["context"]} if "context" in fields else {}
    for index, child in enumerate(below):
        step = f"{place}.{levels[0]}[{index}]".removeprefix(".")
        yield from _questions(child, step, levels[1:], shared)

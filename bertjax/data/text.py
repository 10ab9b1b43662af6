"""Read raw text: files and globs, plain or gzip, as bounded chunks of lines and as documents.

A chunk is about a megabyte of whole lines. Where chunks begin depends on the text alone, never on
who reads it or how it is stored, so that everything made chunk by chunk is the same on one core and
on a thousand.
"""

import contextlib
import dataclasses
import glob
import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from bertjax.data.sentences import split_sentences
from bertjax.errors import InputError
from bertjax.run_config import Layout

CHUNK_BYTES = 1 << 20
# A line is held in memory whole, so its length has to end somewhere.
MAX_LINE_BYTES = 64 << 20

_BOM = b"\xef\xbb\xbf"


@dataclasses.dataclass(frozen=True)
class TextFile:
    """An input file and how it is laid out."""

    path: str
    layout: Layout


@dataclasses.dataclass(frozen=True)
class TextChunk:
    """Whole lines of one file."""

    file: TextFile
    data: bytes
    """The lines, undecoded."""
    offset: int
    """Byte of the (uncompressed) text at which `data` begins."""
    first_line: int
    """Number of its first line, from 1."""
    continues: bool
    """Whether its first line goes on with a document of the chunk before."""
    stored_bytes: int
    """Bytes of the file on disk that were read for it (compressed where the file is)."""


def find_files(patterns: Iterable[str], layout: Layout = "paragraphs") -> list[TextFile]:
    """Expand paths and globs, in the order given, each glob's matches by name.

    Raises:
        InputError: a path does not exist or is no file, or a glob matches nothing.
    """
    files = []
    for pattern in patterns:
        if os.path.isfile(pattern):
            matches = [pattern]
        elif os.path.isdir(pattern):
            raise InputError(f"{pattern} is a directory; name its files, as in {pattern}/*.txt")
        else:
            matches = sorted(filter(os.path.isfile, glob.glob(pattern, recursive=True)))
        if not matches:
            raise InputError(f"no file matches {pattern}; give files or globs, plain or .gz")
        for path in matches:
            is_jsonl = path.removesuffix(".gz").endswith(".jsonl")
            files.append(TextFile(path, "jsonl" if is_jsonl else layout))
    return files


def read_chunks(file: TextFile, chunk_bytes: int | None = None) -> Iterator[TextChunk]:
    """Stream a file as chunks of `CHUNK_BYTES`; at most a chunk and a line are in memory.

    Raises:
        InputError: the file cannot be read, its gzip stream is damaged, or a line is longer than
            `MAX_LINE_BYTES`.
    """
    offset, line, continues, stored = 0, 1, False, 0
    with open_bytes(file.path) as (stream, disk):
        for data in _whole_lines(stream, file.path, chunk_bytes or CHUNK_BYTES):
            start = len(_BOM) if offset == 0 and data.startswith(_BOM) else 0
            position = disk.tell()
            yield TextChunk(file, data[start:], offset + start, line, continues, position - stored)
            stored = position
            offset += len(data)
            line += data.count(b"\n")
            continues = _stays_open(file.layout, data)


def chunk_documents(chunk: TextChunk, skip_bad: bool = False) -> tuple[list[list[str]], list[str]]:
    """Split a chunk into its documents (of their parts in this chunk), each a list of sentences.

    Returns:
        The documents, and one line for each bad line that was skipped. Documents may be empty; the
        first goes on with the last one of the chunk before if `chunk.continues`.

    Raises:
        InputError: a line is not UTF-8, or no JSON object with a string `text`; not if `skip_bad`.
    """
    bad: list[str] = []
    lines = _decode(chunk, skip_bad, bad)
    if chunk.file.layout == "jsonl":
        return [
            _paragraph_sentences(text.split("\n"))
            for number, line in lines
            if (text := _json_text(chunk.file.path, number, line, skip_bad, bad)) is not None
        ], bad
    documents: list[list[str]] = [[]]
    for _, line in lines:
        sentence = line.strip()
        if not sentence:
            if chunk.file.layout != "book" and (documents[-1] or len(documents) == 1):
                documents.append([])
        elif chunk.file.layout == "sentences":
            documents[-1].append(sentence)
        else:
            documents[-1] += split_sentences(sentence)
    return documents, bad


def read_documents(files: Iterable[TextFile], skip_bad: bool = False) -> Iterator[list[str]]:
    """Stream the documents of `files` that hold any sentence, each as a list of sentences."""
    for file in files:
        document: list[str] = []
        for chunk in read_chunks(file):
            for index, sentences in enumerate(chunk_documents(chunk, skip_bad)[0]):
                if index or not chunk.continues:
                    if document:
                        yield document
                    document = []
                document += sentences
        if document:
            yield document


def read_lines(files: Iterable[TextFile]) -> Iterator[str]:
    """Stream the lines of text of `files`; those of the `text` fields where a file is JSONL."""
    for file in files:
        for chunk in read_chunks(file):
            for number, line in _decode(chunk, False, []):
                if file.layout == "jsonl":
                    text = _json_text(file.path, number, line, False, [])
                    yield from text.split("\n") if text else ()
                else:
                    yield line


@contextlib.contextmanager
def open_bytes(path: str) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Open a file as (text stream, the file on disk); errors while it is open are explained."""
    try:
        with open(path, "rb") as disk:
            if path.endswith(".gz"):
                with gzip.GzipFile(fileobj=disk) as stream:
                    yield stream, disk  # type: ignore[misc]
            else:
                yield disk, disk
    except EOFError:
        raise InputError(
            f"{path} ends in the middle of its gzip stream: it was cut off, copy it again"
        ) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path} is not a sound gzip file: {error}") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None


def _whole_lines(stream: BinaryIO, path: str, chunk_bytes: int) -> Iterator[bytes]:
    """Cut a stream at the last line end of every `chunk_bytes` block."""
    held: list[bytes] = []
    while block := stream.read(chunk_bytes):
        cut = block.rfind(b"\n") + 1
        if cut:
            yield b"".join([*held, block[:cut]])
            held = [block[cut:]]
            continue
        held.append(block)
        if sum(map(len, held)) > MAX_LINE_BYTES:
            raise InputError(
                f"{path} has a line of more than {MAX_LINE_BYTES >> 20} MiB: put each sentence, "
                "paragraph or JSON document on a line of its own"
            )
    if rest := b"".join(held):
        yield rest


def _stays_open(layout: Layout, data: bytes) -> bool:
    """Whether the document of the last line of `data` goes on in the next chunk."""
    if layout in ("book", "jsonl"):
        return layout == "book"
    last_line = data.removesuffix(b"\n").rpartition(b"\n")[2]
    return bool(last_line.decode("utf-8", "replace").strip())


def _decode(chunk: TextChunk, skip_bad: bool, bad: list[str]) -> Iterator[tuple[int, str]]:
    """Yield (line number, line) of a chunk; bad lines are told in `bad` if they are skipped."""
    try:
        lines = chunk.data.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        yield from _decode_by_line(chunk, skip_bad, bad)
        return
    yield from enumerate(lines[:-1] if lines[-1] == "" else lines, chunk.first_line)


def _decode_by_line(chunk: TextChunk, skip_bad: bool, bad: list[str]) -> Iterator[tuple[int, str]]:
    """As `_decode`, for a chunk that is not all UTF-8."""
    offset = chunk.offset
    lines = chunk.data.removesuffix(b"\n").split(b"\n")
    for number, raw in enumerate(lines, chunk.first_line):
        try:
            yield number, raw.decode("utf-8")
        except UnicodeDecodeError as error:
            _reject(
                f"{chunk.file.path}, line {number}: invalid UTF-8 at byte {offset + error.start}",
                "save the file as UTF-8",
                skip_bad,
                bad,
            )
        offset += len(raw) + 1


def _json_text(path: str, number: int, line: str, skip_bad: bool, bad: list[str]) -> str | None:
    """Return the `text` of a JSON line, or None for a blank line and for a bad one."""
    if not line.strip():
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        what = getattr(error, "msg", "nested too deeply")
        _reject(f"{path}, line {number}: invalid JSON: {what}", "mend it", skip_bad, bad)
        return None
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        what = "no string field `text`"
    elif not _is_encodable(text):
        what = "`text` holds half of a surrogate pair"
    else:
        return text
    _reject(f"{path}, line {number}: {what}", "mend it", skip_bad, bad)
    return None


def _is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _reject(problem: str, remedy: str, skip_bad: bool, bad: list[str]) -> None:
    """Note a bad line, or stop at it."""
    if not skip_bad:
        raise InputError(f"{problem}; {remedy}, or have build-corpus skip such lines (--skip-bad)")
    bad.append(problem)


def _paragraph_sentences(lines: list[str]) -> list[str]:
    return [sentence for line in lines for sentence in split_sentences(line.strip())]

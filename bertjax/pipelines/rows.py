"""Texts as rows of tokens, and what is told of texts that are none or too long."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from bertjax.data.features import TextRows
from bertjax.errors import InputError
from bertjax.tokenizer import BertTokenizer

_LOG = logging.getLogger(__name__)

# Texts whose encodings, which are large, are held at a time.
_BATCH = 1000


def as_list(inputs: Any, single: tuple[type, ...], what: str) -> tuple[list[Any], bool]:
    """Return the inputs as a list, and whether they were a single one.

    Args:
      inputs: what the user gave.
      single: types that one input is of.
      what: the name of an input in messages.

    Raises:
      InputError: neither an input nor an iterable.
    """
    if isinstance(inputs, single):
        return [inputs], True
    if not isinstance(inputs, Iterable) or isinstance(inputs, bytes | dict):
        raise InputError(f"give a {what} or a list of them; got {_kind(inputs)}")
    return list(inputs), False


def check_text(text: Any, number: int, what: str = "text") -> str:
    """Return the text.

    Raises:
      InputError: it is no string.
    """
    if not isinstance(text, str):
        raise InputError(f"{what} {number}: must be a string; got {_kind(text)}")
    return text


def as_pair(given: Any, number: int) -> str | tuple[str, str]:
    """Return a text, or the two of a tuple or of {"text": ..., "text_pair": ...}.

    Raises:
      InputError: it is none of these.
    """
    if isinstance(given, dict) and "text" in given and given.keys() <= {"text", "text_pair"}:
        given = (given["text"], given["text_pair"]) if given.get("text_pair") else given["text"]
    if isinstance(given, tuple) and len(given) == 2:
        return check_text(given[0], number), check_text(given[1], number, "second text")
    if isinstance(given, str):
        return given
    raise InputError(
        f"text {number}: must be a string, a tuple of two or a dictionary with the keys text and "
        f"text_pair; got {given!r}"
    )


def text_rows(
    tokenizer: BertTokenizer,
    inputs: Sequence[str | tuple[str, str]],
    max_length: int,
    *,
    truncation: bool,
) -> TextRows:
    """Tokenize texts or pairs as `[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]`.

    Args:
      tokenizer: of the model.
      inputs: the texts.
      max_length: longest row.
      truncation: whether longer ones lose the end of their longer text, which the log tells.

    Raises:
      InputError: a text is too long, and `truncation` is off.
    """
    backend = tokenizer.truncated_to(max_length)
    ids, types, sizes, cut = [np.empty(0, np.int32)], [np.empty(0, np.int32)], [0], 0
    for number, encoding in enumerate(encoded(backend, inputs)):
        if encoding.overflowing:
            if not truncation:
                given = inputs[number]
                first, second = (given, None) if isinstance(given, str) else given
                length = len(tokenizer.backend.encode(first, second).ids)
                raise InputError(
                    f"text {number}: is {length} tokens long, rows hold {max_length}; shorten it, "
                    "or pass truncation=True to have the end cut off"
                )
            cut += 1
        ids.append(np.array(encoding.ids, np.int32))
        types.append(np.array(encoding.type_ids, np.int32))
        sizes.append(len(ids[-1]))
    warn_of_cut(cut, len(inputs), max_length)
    return make_rows(tokenizer, ids, types, sizes)


def make_rows(
    tokenizer: BertTokenizer,
    ids: Sequence[np.ndarray],
    types: Sequence[np.ndarray],
    sizes: Sequence[int],
) -> TextRows:
    """Return rows of the given tokens; `sizes` begins with a 0."""
    return TextRows(
        ids=np.concatenate(ids),
        types=np.concatenate(types),
        bounds=np.cumsum(sizes, dtype=np.int64),
        choices=0,
        labels=None,
        words=None,
        cut=np.zeros(len(sizes) - 1, bool),
        pad_id=tokenizer.pad_id,
    )


def encoded(
    backend: Tokenizer, inputs: Sequence[Any], *, offsets: bool = False, words: bool = False
) -> Iterator[Encoding]:
    """Yield the encoding of each input.

    Args:
      backend: the tokenizer.
      inputs: texts, pairs of texts, or, with `words`, lists of words.
      offsets: whether the encodings need offsets, which take time.
      words: whether the inputs are words.
    """
    encode = backend.encode_batch if offsets else backend.encode_batch_fast
    for first in range(0, len(inputs), _BATCH):
        yield from encode(list(inputs[first : first + _BATCH]), is_pretokenized=words)


def warn_of_cut(cut: int, count: int, max_length: int, advice: str = "") -> None:
    """Say in the log how many texts lost their end, if any did."""
    if cut:
        _LOG.warning(
            "%d of %d texts are longer than %d tokens: their ends were cut off%s",
            cut,
            count,
            max_length,
            advice,
        )


def _kind(value: Any) -> str:
    return f"{type(value).__name__} {value!r}"[:80]

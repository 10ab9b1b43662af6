"""Rows of sources and of the targets that are to be written from them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bertjax.data.bucket_widths import bucket_width
from bertjax.data.examples import TextExample
from bertjax.data.features import Ints, TextRows, text_rows
from bertjax.losses import IGNORE_INDEX
from bertjax.tokenizer import BertTokenizer


@dataclasses.dataclass(frozen=True, eq=False)
class Targets:
    """What is to be written.

    Attributes:
      ids: tokens of all targets, end to end; each has [SEP] as its last.
      bounds: first token of each target, and the end, [N + 1].
      texts: each target, whole, as the tokenizer writes its tokens: without what it cannot tell,
        such as capitals where it has none.
      truncated: targets that lost tokens.
    """

    ids: Ints
    bounds: npt.NDArray[np.int64]
    texts: tuple[str, ...]
    truncated: int

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each target, [N]."""
        return np.diff(self.bounds)


@dataclasses.dataclass(frozen=True, eq=False)
class TargetRows:
    """Sources, and their targets where they are known.

    Attributes:
      sources: the sources; they have no labels.
      targets: None where they are unknown.
      target_length: longest target in tokens.
      tokenizer: turns tokens back into text.
    """

    sources: TextRows
    targets: Targets | None
    target_length: int
    tokenizer: BertTokenizer

    @property
    def lengths(self) -> Ints:
        """Tokens of each source, [N]."""
        return self.sources.lengths

    @property
    def target_widths(self) -> npt.NDArray[np.int64]:
        """Columns that each target needs, [N]: 16, 32, 64, ... or the longest."""
        lengths = np.zeros(len(self), np.int64) if self.targets is None else self.targets.lengths
        return np.array([self._width(int(length)) for length in lengths])

    def __len__(self) -> int:
        return len(self.sources)

    def batch(self, rows: npt.NDArray[np.int64], width: int) -> dict[str, np.ndarray]:
        """See `Rows.batch`; `labels` are [B, columns of the widest target], -100 behind each."""
        batch = self.sources.batch(rows, width)
        if self.targets is None:
            return batch
        lengths = self.targets.lengths[rows]
        columns = np.arange(self._width(int(lengths.max())))
        there = columns < lengths[:, None]
        places = np.where(there, self.targets.bounds[rows][:, None] + columns, 0)
        labels = np.where(there, self.targets.ids[places], IGNORE_INDEX)
        return batch | {"labels": labels.astype(np.int32)}

    def text(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return what was written: the text of tokens up to the first [SEP]."""
        end = self.tokenizer.sep_id
        known = [int(token) for token in ids]
        return self.tokenizer.decode(known[: known.index(end)] if end in known else known)

    def _width(self, length: int) -> int:
        # Widths of sources and of targets multiply: the fewer of these, the fewer programs.
        return bucket_width(length, self.target_length, steps=1)


def target_rows(
    examples: Sequence[TextExample],
    tokenizer: BertTokenizer,
    max_length: int,
    target_length: int,
) -> TargetRows:
    """Tokenize sources and targets.

    Args:
      examples: texts or pairs, with texts as labels.
      tokenizer: of the model.
      max_length: longest source in tokens.
      target_length: longest target in tokens, [SEP] included.
    """
    inputs = [e.text if e.text_pair is None else (e.text, e.text_pair) for e in examples]
    sources = text_rows(inputs, None, tokenizer, max_length, 0)
    labels: list[Any] = [example.label for example in examples]
    targets = None
    if all(label is not None for label in labels):
        targets = _targets(labels, tokenizer, target_length)
    return TargetRows(sources, targets, target_length, tokenizer)


def _targets(texts: Sequence[str], tokenizer: BertTokenizer, longest: int) -> Targets:
    encodings = tokenizer.backend.encode_batch(list(texts), add_special_tokens=False)
    end = tokenizer.sep_id
    cut = [[*encoding.ids[: longest - 1], end] for encoding in encodings]
    return Targets(
        ids=np.concatenate([np.array(ids, np.int32) for ids in cut]),
        bounds=np.concatenate([[0], np.cumsum([len(ids) for ids in cut])]).astype(np.int64),
        texts=tuple(tokenizer.decode(encoding.ids) for encoding in encodings),
        truncated=sum(len(encoding.ids) >= longest for encoding in encodings),
    )

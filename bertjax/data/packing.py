"""Batches of rows that hold several texts each: hardly any padding, and one shape to compile.

Which lengths share a row is settled once for a split; which texts of these lengths do, anew in
each epoch. Every batch is a pure function of the seed and its number.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from bertjax.data.features import QuestionRows, TextRows
from bertjax.losses import IGNORE_INDEX

_ALIGNED = 8  # columns: what matrix units like


@dataclasses.dataclass(frozen=True, eq=False)
class Packing:
    """How the texts of a split share rows, and the shape of its batches.

    Attributes:
      batch_rows: rows of a batch.
      width: columns of a row.
      lengths: tokens of each text, row after row, [N].
      bounds: first text of each row, and the end, [rows + 1].
    """

    batch_rows: int
    width: int
    lengths: npt.NDArray[np.int64]
    bounds: npt.NDArray[np.int64]

    @property
    def steps_per_epoch(self) -> int:
        """Batches that it takes to see every text once."""
        return -(-(len(self.bounds) - 1) // self.batch_rows)

    @property
    def texts_per_batch(self) -> float:
        """Texts of a batch on average."""
        return len(self.lengths) / self.steps_per_epoch

    @property
    def most_texts(self) -> int:
        """Texts of the fullest row."""
        return int(np.diff(self.bounds).max())

    @property
    def padding(self) -> float:
        """Share of columns without a token."""
        rows = self.steps_per_epoch * self.batch_rows
        return 1 - float(self.lengths.sum()) / (rows * self.width)


def pack(lengths: npt.NDArray[np.integer], batch_size: int, longest: int) -> Packing:
    """Settle the shape of batches of about so many texts, and which lengths share a row.

    The rows of a batch are a power of two, which devices divide, and up to twice as wide as the
    longest text. Lengths are put together by best-fit decreasing: the longest first, each into the
    row that it leaves least room in; equal ones at once (as the histograms of Krell et al., arXiv
    2107.02027).

    Args:
      lengths: tokens of each text, [N], one or more.
      batch_size: texts of a batch, which get to be 0.75 to 1.5 times as many, or as many as one row
        holds.
      longest: columns of a row at most, no less than those of any text.
    """
    tokens = batch_size * float(lengths.mean())
    narrowest = min(_aligned(float(lengths.max())), longest)
    rows = 1
    while rows * min(2 * narrowest, longest) < 0.75 * tokens:
        rows *= 2
    width = min(max(_aligned(tokens / rows), narrowest), longest)
    texts = [held for held, count in _best_fit(lengths, width) for _ in range(count)]
    return Packing(
        batch_rows=rows,
        width=width,
        lengths=np.concatenate([np.array(held, np.int64) for held in texts]),
        bounds=np.cumsum([0, *map(len, texts)]),
    )


def _aligned(columns: float) -> int:
    return _ALIGNED * int(np.ceil(columns / _ALIGNED))


def _best_fit(lengths: npt.NDArray[np.integer], width: int) -> list[tuple[tuple[int, ...], int]]:
    """Return the lengths that share a row, and how many such rows there are."""
    # By the room that they have left; of empty rows there are as many as there are texts.
    rows: list[list[tuple[tuple[int, ...], int]]] = [[] for _ in range(width)]
    rows.append([((), len(lengths))])
    distinct, counts = np.unique(lengths, return_counts=True)
    for length, left in zip(distinct[::-1].tolist(), counts[::-1].tolist(), strict=True):
        room = length
        while left:
            if not rows[room]:
                room += 1
                continue
            held, count = rows[room].pop()
            fitting = min(room // length, left)
            filled = min(count, left // fitting)
            if filled < count:
                rows[room].append((held, count - filled))
            rows[room - fitting * length].append((held + (length,) * fitting, filled))
            left -= filled * fitting
    return [(held, count) for of_room in rows for held, count in of_room if held]


def packed_batches(
    rows: TextRows | QuestionRows, packing: Packing, *, seed: int, start: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Yield batches without end; each epoch has every text once, in another order and company.

    A batch has `input_ids`, `token_type_ids` and `texts` [B, T], the number of each token's text in
    its row from 1, 0 at padding; `cls_positions` and `weights` [B, S] of each text, 0 where a row
    has fewer; labels of texts [B, S, ...], of tokens [B, T], and positions of answers [B, S].

    Args:
      rows: the texts.
      packing: of their lengths.
      seed: of the order.
      start: number of the first batch.
    """
    count, packed_rows = packing.steps_per_epoch, len(packing.bounds) - 1
    places = np.argsort(packing.lengths, kind="stable")
    for epoch in range(start // count, 2**31):
        rng = np.random.default_rng((seed, epoch))
        shuffled = rng.permutation(len(rows))
        texts = np.empty(len(rows), np.int64)
        texts[places] = shuffled[np.argsort(rows.lengths[shuffled], kind="stable")]
        order = rng.permutation(packed_rows)
        for number in range(start - epoch * count if epoch == start // count else 0, count):
            picked = order[number * packing.batch_rows : (number + 1) * packing.batch_rows]
            held = [texts[packing.bounds[row] : packing.bounds[row + 1]] for row in picked]
            yield _batch(rows, held, packing)


def _batch(
    rows: TextRows | QuestionRows, held: list[npt.NDArray[np.int64]], packing: Packing
) -> dict[str, np.ndarray]:
    """Put texts into rows, those of `held[0]` into the first; the last rows may stay empty."""
    counts = np.array([len(texts) for texts in held])
    texts = np.concatenate(held)
    row = np.repeat(np.arange(len(held)), counts)
    slot = np.arange(len(texts)) - np.repeat(np.cumsum(counts) - counts, counts)
    lengths = rows.lengths[texts].astype(np.int64)
    before = np.cumsum(lengths) - lengths
    first = before - before[np.cumsum(counts) - counts][row]  # column of each text's first token
    alone = rows.batch(texts, int(lengths.max()))
    of_text, column = np.nonzero(alone["attention_mask"])
    at_token = row[of_text], first[of_text] + column
    at_text = row, slot
    of_tokens = (packing.batch_rows, packing.width)
    of_texts = (packing.batch_rows, packing.most_texts)

    def tokens(values: np.ndarray, filler: int) -> np.ndarray:
        spread = np.full(of_tokens, filler, np.int32)
        spread[at_token] = values
        return spread

    def per_text(values: np.ndarray) -> np.ndarray:
        spread = np.zeros((*of_texts, *values.shape[1:]), values.dtype)
        spread[at_text] = values
        return spread

    batch = {
        "input_ids": tokens(alone["input_ids"][of_text, column], rows.pad_id),
        "token_type_ids": tokens(alone["token_type_ids"][of_text, column], 0),
        "texts": tokens(slot[of_text] + 1, 0),
        "cls_positions": per_text(first.astype(np.int32)),
        "weights": per_text(np.ones(len(texts), np.float32)),
    }
    for name in ("start_positions", "end_positions"):
        if name in alone:
            batch[name] = per_text((alone[name] + first).astype(np.int32))
    if "labels" in alone:
        labels = alone["labels"]
        of_words = isinstance(rows, TextRows) and rows.words is not None
        batch["labels"] = (
            tokens(labels[of_text, column], IGNORE_INDEX) if of_words else per_text(labels)
        )
    return batch

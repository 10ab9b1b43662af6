"""Batches of rows that hold several texts each: hardly any padding, and one shape to compile.

Which lengths share a row is settled once for a split; which texts of these lengths do, in training,
anew in each epoch. Every batch is a pure function of the seed and its number.
"""

import dataclasses
from collections.abc import Iterator
from typing import TypeGuard

import numpy as np
import numpy.typing as npt

from bertjax.data.bins import Bins, Placement, best_fit, lay_out
from bertjax.data.features import QuestionRows, Rows, TextRows
from bertjax.losses import IGNORE_INDEX

_ALIGNED = 8  # columns: what matrix units like
# Most first: of shapes that cost the same the largest batch is nearest to what is asked for.
_ROWS = sorted((n * 2**power for power in range(24) for n in (1, 3)), reverse=True)


@dataclasses.dataclass(frozen=True, eq=False)
class Packing:
    """How the texts of a split share rows, and the shape of its batches.

    Attributes:
      batch_rows: rows of a batch.
      width: columns of a row.
      bins: the texts of each row.
    """

    batch_rows: int
    width: int
    bins: Bins

    @property
    def steps_per_epoch(self) -> int:
        """Batches that it takes to see every text once."""
        return -(-len(self.bins) // self.batch_rows)

    @property
    def texts_per_batch(self) -> float:
        """Texts of a batch on average."""
        return len(self.bins.lengths) / self.steps_per_epoch

    @property
    def most_texts(self) -> int:
        """Texts of the fullest row."""
        return int(np.diff(self.bins.bounds).max())

    @property
    def padding(self) -> float:
        """Share of columns without a token."""
        rows = self.steps_per_epoch * self.batch_rows
        return 1 - float(self.bins.lengths.sum()) / (rows * self.width)


def sharable(rows: Rows) -> TypeGuard[TextRows | QuestionRows]:
    """Whether these are texts that may share rows: choices of an example and targets may not."""
    return isinstance(rows, QuestionRows) or (isinstance(rows, TextRows) and not rows.choices)


def pack(lengths: npt.NDArray[np.integer], batch_size: int, longest: int) -> Packing:
    """Settle the shape of batches of about so many texts, and which lengths share a row.

    A batch has 1, 2, 3, 4, 6, 8, 12, ... rows, as wide as the longest text or up to 1.6 times as
    wide, whichever costs less: wider ones have less padding where a text fills more than half of a
    row, but attention takes longer in them. The devices do not matter, so that a run is the same on
    any that divide the rows.

    Args:
      lengths: tokens of each text, [N], one or more.
      batch_size: texts of a batch, which get to be 0.75 to 1.25 times as many, or as many as one
        row holds.
      longest: columns of a row at most, no less than those of any text.
    """
    tokens = batch_size * float(lengths.mean())
    narrowest = min(_aligned(float(lengths.max())), longest)
    most = max(1, int(1.25 * tokens / narrowest))

    def packed(rows: int) -> Packing:
        width = min(max(_aligned(tokens / rows), narrowest), longest)
        return Packing(rows, width, best_fit(lengths, width, most=width))

    return min((packed(rows) for rows in _ROWS if most / 2 < rows <= most), key=_cost)


def _cost(packing: Packing) -> float:
    """Return what an epoch takes."""
    return columns_cost(len(packing.bins), packing.width)


def columns_cost(rows: int, width: int) -> float:
    """Return what rows take: their columns, each longer by a thousandth for one more in a row.

    A column in rows of 112 took 6 % longer than in rows of 72 (MiniLM on two CPU cores).
    """
    return rows * width * (1 + width / 1000)


def _aligned(columns: float) -> int:
    return _ALIGNED * int(np.ceil(columns / _ALIGNED))


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
    count, bins = packing.steps_per_epoch, packing.bins
    for epoch in range(start // count, 2**31):
        rng = np.random.default_rng((seed, epoch))
        texts = bins.fill(rows.lengths, rng.permutation(len(rows)))
        order = rng.permutation(len(bins))
        for number in range(start - epoch * count if epoch == start // count else 0, count):
            picked = order[number * packing.batch_rows : (number + 1) * packing.batch_rows]
            held = [texts[bins.bounds[row] : bins.bounds[row + 1]] for row in picked]
            together = np.concatenate(held)
            places = lay_out(rows.lengths[together], np.array(list(map(len, held))))
            shape = packing.batch_rows, packing.width, packing.most_texts
            yield share(rows, together, places, shape)


def shared_batches(
    rows: TextRows | QuestionRows,
    numbers: npt.NDArray[np.int64],
    packing: Packing,
    most_texts: int,
) -> Iterator[tuple[npt.NDArray[np.int64], dict[str, np.ndarray], Placement]]:
    """Yield each text once: the numbers of some, their batch, and their places in its rows.

    The last batch may have empty rows.

    Args:
      rows: the texts.
      numbers: of those that share rows.
      packing: of their lengths.
      most_texts: texts of a row at most, S; no less than those of the fullest row.
    """
    lengths, bounds = rows.lengths, packing.bins.bounds
    texts = numbers[packing.bins.fill(lengths[numbers], np.arange(len(numbers)))]
    shape = packing.batch_rows, packing.width, most_texts
    for first in range(0, len(packing.bins), packing.batch_rows):
        held = bounds[first : first + packing.batch_rows + 1]
        together = texts[held[0] : held[-1]]
        places = lay_out(lengths[together], np.diff(held))
        yield together, share(rows, together, places, shape), places


def share(
    rows: TextRows | QuestionRows,
    texts: npt.NDArray[np.int64],
    places: Placement,
    shape: tuple[int, int, int],
) -> dict[str, np.ndarray]:
    """Put texts into rows that they share; the batch is described at `packed_batches`.

    Args:
      rows: the texts in rows of their own.
      texts: which of them, [n].
      places: of these in the rows that they share; the last rows may stay empty.
      shape: rows, columns, and texts of a row at most, (B, T, S).
    """
    of_tokens, of_texts = shape[:2], (shape[0], shape[2])
    alone = rows.batch(texts, int(rows.lengths[texts].max()))
    shown = alone["attention_mask"]
    numbers = np.broadcast_to(places.slot[:, None] + 1, shown.shape)
    ones = np.ones(len(texts), np.float32)
    batch = {
        "input_ids": places.spread_tokens(alone["input_ids"], shown, of_tokens, rows.pad_id),
        "token_type_ids": places.spread_tokens(alone["token_type_ids"], shown, of_tokens, 0),
        "texts": places.spread_tokens(numbers, shown, of_tokens, 0),
        "cls_positions": places.spread_texts(places.first.astype(np.int32), of_texts),
        "weights": places.spread_texts(ones, of_texts),
    }
    for name in ("start_positions", "end_positions"):
        if name in alone:
            columns = (alone[name] + places.first).astype(np.int32)
            batch[name] = places.spread_texts(columns, of_texts)
    if "labels" in alone:
        labels = alone["labels"]
        of_words = isinstance(rows, TextRows) and rows.words is not None
        batch["labels"] = (
            places.spread_tokens(labels, shown, of_tokens, IGNORE_INDEX)
            if of_words
            else places.spread_texts(labels, of_texts)
        )
    return batch

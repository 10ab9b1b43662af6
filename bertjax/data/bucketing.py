"""Batches of rows of like length, so that little is padding and few shapes are compiled.

Every batch is a pure function of the seed and its number: a run goes on where it was, and hosts
agree without talking.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from bertjax.data.features import Rows

# Batches that are sorted by length together.
_POOL = 50


def bucket_width(length: int, longest: int) -> int:
    """Return the width of the batch for its longest row: 16, 24, 32, 48, 64, 96, ... or `longest`.

    Two widths for each power of two: from 16 tokens on the longest row fills two thirds of it or
    more, and 512 needs 11 shapes.
    """
    width = 16
    while width < length:
        width = width * 3 // 2 if width & (width - 1) == 0 else width * 4 // 3
    return min(width, longest)


def steps_per_epoch(rows: Rows, batch_size: int) -> int:
    """Return the batches that it takes to see every row once."""
    return -(-len(rows) // batch_size)


def training_batches(
    rows: Rows, batch_size: int, longest: int, *, seed: int, start: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Yield batches without end; each epoch has every row once, in another order.

    Rows are shuffled, sorted by length within pools, cut into batches, and the batches shuffled.
    The last batch of an epoch is filled up with rows of weight 0.

    Args:
      rows: the rows.
      batch_size: rows of a batch.
      longest: width of the widest batch.
      seed: of the order.
      start: number of the first batch.
    """
    count = steps_per_epoch(rows, batch_size)
    for epoch in range(start // count, 2**31):
        batches = _epoch(rows.lengths, batch_size, np.random.default_rng((seed, epoch)))
        for picked in batches[start - epoch * count if epoch == start // count else 0 :]:
            yield make_batch(rows, picked, batch_size, longest)


def evaluation_batches(
    rows: Rows, batch_size: int, longest: int
) -> Iterator[tuple[npt.NDArray[np.int64], dict[str, np.ndarray]]]:
    """Yield (numbers of the rows, batch): each row once, longest first, the last batch filled."""
    order = np.argsort(-rows.lengths, kind="stable")
    for first in range(0, len(order), batch_size):
        picked = order[first : first + batch_size]
        yield picked, make_batch(rows, picked, batch_size, longest)


def make_batch(
    rows: Rows, picked: npt.NDArray[np.int64], batch_size: int, longest: int
) -> dict[str, np.ndarray]:
    """Return a batch of `batch_size` rows: those picked, then copies of the first of weight 0.

    `weights` [B] tells them apart.
    """
    width = bucket_width(int(rows.lengths[picked].max()), longest)
    filled = np.concatenate([picked, np.full(batch_size - len(picked), picked[0])])
    weights = (np.arange(batch_size) < len(picked)).astype(np.float32)
    return rows.batch(filled, width) | {"weights": weights}


def _epoch(
    lengths: npt.NDArray[np.int32], batch_size: int, random: np.random.Generator
) -> list[npt.NDArray[np.int64]]:
    order = random.permutation(len(lengths))
    pool = _POOL * batch_size
    batches = []
    for first in range(0, len(order), pool):
        part = order[first : first + pool]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    return [batches[i] for i in random.permutation(len(batches))]

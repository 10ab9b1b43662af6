"""Batches of rows of like length, so that little is padding and few shapes are compiled.

Every batch is a pure function of the seed and its number: a run goes on where it was, and hosts
agree without talking. The width of a batch depends on its number alone: the batches of several
seeds fit together.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from bertjax.data.features import Rows


def bucket_width(length: int, longest: int, steps: int = 2) -> int:
    """Return the width of the batch for its longest row: 16, 24, 32, 48, 64, 96, ... or `longest`.

    With two widths for each power of two, from 16 tokens on the longest row fills two thirds of its
    width or more, and 512 tokens need 11 shapes; with four, four fifths and 21.

    Args:
      length: tokens of the longest row.
      longest: the last width.
      steps: widths for each power of two, 1, 2, 4, ... or 16.
    """
    width = 16
    while width < length:
        width += (1 << (width.bit_length() - 1)) // steps
    return min(width, longest)


def steps_per_epoch(rows: Rows, batch_size: int) -> int:
    """Return the batches that it takes to see every row once."""
    return -(-len(rows) // batch_size)


def training_batches(
    rows: Rows, batch_size: int, longest: int, *, seed: int, start: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Yield batches without end; each epoch has every row once, in another order.

    Rows are shuffled, sorted by the width that they need, and cut into batches, which come in an
    order that is the same for every seed. The last of the widest is filled up with rows of weight
    0.

    Args:
      rows: the rows.
      batch_size: rows of a batch.
      longest: width of the widest batch.
      seed: of the order.
      start: number of the first batch.
    """
    count = steps_per_epoch(rows, batch_size)
    widths = np.array([bucket_width(int(length), longest) for length in rows.lengths])
    for epoch in range(start // count, 2**31):
        order = np.random.default_rng((seed, epoch)).permutation(len(rows))
        order = order[np.argsort(widths[order], kind="stable")]
        numbers = np.random.default_rng(epoch).permutation(count)
        for number in numbers[start - epoch * count if epoch == start // count else 0 :]:
            picked = order[number * batch_size : (number + 1) * batch_size]
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

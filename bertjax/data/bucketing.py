"""Batches of rows of like length, so that little is padding and few shapes are compiled.

Every batch is a pure function of the seed and its number: a run goes on where it was, and hosts
agree without talking. The width of a batch depends on its number alone: the batches of several
seeds fit together.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from bertjax.data.features import Rows
from bertjax.data.targets import TargetRows


def best_widths(lengths: npt.NDArray[np.integer], most: int) -> npt.NDArray[np.int64]:
    """Return the widths, rising, that leave least padding where each row takes the next wider one.

    They are multiples of 4, which vector units like, but for the last, which is the longest row's.
    Found by dynamic programming over the last width and the number of widths.

    Args:
      lengths: tokens of each row, [N], one or more.
      most: widths at most, 1 or more.
    """
    longest = int(lengths.max())
    needed = np.minimum(-(-lengths // 4) * 4, longest)
    widths, rows = np.unique(needed, return_counts=True)
    up_to = np.cumsum(rows)
    # columns[i]: of all rows up to widths[i], with as many widths as rounds were gone through.
    columns = (up_to * widths).astype(float)
    # added[i, j]: columns of the rows over widths[i] up to widths[j], all as wide as that.
    added = np.where(widths[:, None] < widths, (up_to - up_to[:, None]) * widths, np.inf)
    before = []
    for _ in range(min(most, len(widths)) - 1):
        through = columns[:, None] + added
        before.append(through.argmin(axis=0))
        columns = through.min(axis=0)
    chosen = [len(widths) - 1]
    for previous in reversed(before):
        chosen.append(int(previous[chosen[-1]]))
    return widths[chosen[::-1]]


def steps_per_epoch(rows: Rows, batch_size: int) -> int:
    """Return the batches that it takes to see every row once."""
    return -(-len(rows) // batch_size)


def training_batches(
    rows: Rows, batch_size: int, *, seed: int, max_widths: int, start: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Yield batches without end; each epoch has every row once, in another order.

    Rows are shuffled, sorted by the width that they need (and by that of their targets, where they
    have any), and cut into batches, which come in an order that is the same for every seed. The
    last of the widest is filled up with rows of weight 0. There are no more widths than a quarter
    of the batches: else few rows would share each, and the same ones would meet in a batch epoch
    after epoch.

    Args:
      rows: the rows.
      batch_size: rows of a batch.
      seed: of the order.
      max_widths: widths at most, see `bertjax.devices.batch_widths`.
      start: number of the first batch.
    """
    count, lengths = steps_per_epoch(rows, batch_size), rows.lengths
    if isinstance(rows, TargetRows):  # widths of sources and of targets multiply
        most, targets = -(-max_widths // 2), rows.target_widths
    else:
        most, targets = max_widths, np.zeros(len(rows), np.int64)
    target_widths, target_bucket = np.unique(targets, return_inverse=True)
    widths = best_widths(lengths, min(most, -(-count // (4 * len(target_widths)))))
    bucket = np.searchsorted(widths, lengths)
    needed = bucket * len(target_widths) + target_bucket
    for epoch in range(start // count, 2**31):
        order = np.random.default_rng((seed, epoch)).permutation(len(rows))
        order = order[np.argsort(needed[order], kind="stable")]
        numbers = np.random.default_rng(epoch).permutation(count)
        for number in numbers[start - epoch * count if epoch == start // count else 0 :]:
            picked = order[number * batch_size : (number + 1) * batch_size]
            yield _batch(rows, picked, batch_size, int(widths[bucket[picked].max()]))


def evaluation_batches(
    rows: Rows, batch_size: int, max_widths: int
) -> Iterator[tuple[npt.NDArray[np.int64], dict[str, np.ndarray]]]:
    """Yield (numbers of the rows, batch): each row once, longest first, the last batch filled.

    There are no more widths than a quarter of the batches here either: each is compiled for.
    """
    lengths = rows.lengths
    count = steps_per_epoch(rows, batch_size)
    widths = best_widths(lengths, min(max_widths, -(-count // 4)))
    order = np.argsort(-lengths, kind="stable")
    for first in range(0, len(order), batch_size):
        picked = order[first : first + batch_size]
        width = int(widths[np.searchsorted(widths, lengths[picked[0]])])
        yield picked, _batch(rows, picked, batch_size, width)


def _batch(
    rows: Rows, picked: npt.NDArray[np.int64], batch_size: int, width: int
) -> dict[str, np.ndarray]:
    """Return a batch of `batch_size` rows: those picked, then copies of the first of weight 0.

    `weights` [B] tells them apart.
    """
    filled = np.concatenate([picked, np.full(batch_size - len(picked), picked[0])])
    weights = (np.arange(batch_size) < len(picked)).astype(np.float32)
    return rows.batch(filled, width) | {"weights": weights}

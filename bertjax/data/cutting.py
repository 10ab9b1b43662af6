"""Cuts rows of any lengths into batches of few shapes with little padding."""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from bertjax.data.bins import Placement, best_fit
from bertjax.data.bucket_widths import bucket_width
from bertjax.data.features import Rows
from bertjax.data.packing import Packing, columns_cost, sharable, shared_batches

Numbers = npt.NDArray[np.int64]

# Tokens of a batch on a CPU: of more, the intermediate results do not stay in its caches, and rows
# of unlike lengths are padded to one width.
_CPU_TOKENS = 2048

# Widths of batches for each power of two. On a CPU padding takes as long as tokens do, and of many
# rows it is soon as long as compiling for one width more.
_WIDTHS, _CPU_WIDTHS, _CPU_WIDTHS_OF_MANY = 2, 4, 8
_MANY_ROWS = 16

# Rows of the batches that are smaller than the largest: a single text does not pay for many.
_FEW_ROWS = (1, 4, 16)

# Rows that texts share: columns of the narrowest, columns for each text that one may hold, and on a
# CPU the columns of all rows of a batch.
_SHARED_WIDTH, _SHARED_TEXT, _SHARED_TOKENS = 64, 8, 1024

# What one program more must save in each call, in tokens: a small part of what compiling it takes.
_PROGRAM_TOKENS = 500


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """Rows that are computed together.

    Attributes:
      numbers: of the rows.
      inputs: their arrays, with further rows that fill the batch up; or those of
        `bertjax.data.packing`, where they are texts that share rows.
      places: of the texts in the rows that they share, if they do.
    """

    numbers: Numbers
    inputs: dict[str, np.ndarray]
    places: Placement | None = None

    @property
    def shape(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Names and shapes of the arrays: batches of one shape can share a program."""
        return tuple((name, array.shape) for name, array in self.inputs.items())

    def own(self, results: np.ndarray, columns: int | None) -> np.ndarray:
        """Return what is each row's own of a model's results, without the rows that fill it up.

        Args:
          results: [B, ...]; where texts share rows, [B, T, ...] of the tokens or [B, S, ...] of the
            texts.
          columns: tokens of the longest row; None where shared rows have results of the texts.
        """
        if self.places is None:
            return results[: len(self.numbers)]
        if columns is None:
            return self.places.gather_texts(results)
        return self.places.gather_tokens(results, columns)


@dataclasses.dataclass(frozen=True)
class Cutter:
    """Cuts rows into batches.

    A batch is as wide as the bucket of its longest row (`bucket_width`) and of one of at most four
    numbers of rows. Where texts may share rows, they do if this computes less: all rows then have
    one shape, and texts that are longer get rows of their own.

    Attributes:
      batch_size: rows of the largest batch; on a CPU, long rows come in smaller ones.
      longest: width of the widest batch.
      ways: what divides the rows of a batch.
      on_cpu: whether CPUs compute.
      shares: whether texts may share rows.
    """

    batch_size: int
    longest: int
    ways: int
    on_cpu: bool
    shares: bool

    def cut(self, rows: Rows, groups: npt.ArrayLike | None = None) -> Iterator[Batch]:
        """Yield batches until all rows were there.

        Args:
          rows: the rows.
          groups: a number for each row, [N]; rows of different groups share no batch.
        """
        lengths = rows.lengths
        alone = np.arange(len(lengths))
        if self.shares and groups is None and sharable(rows):
            packing = self._packing(lengths)
            if packing is not None:
                together = lengths <= packing.width
                most = _most_texts(packing.width)
                for found in shared_batches(rows, np.flatnonzero(together), packing, most):
                    yield Batch(*found)
                alone = np.flatnonzero(~together)
        for part, count in self._cut(lengths[alone], groups):
            numbers = alone[part]
            width = self._width(lengths[numbers].max(), count)
            filled = np.concatenate([numbers, np.full(count - len(numbers), numbers[0])])
            yield Batch(numbers, rows.batch(filled, width))

    def _packing(self, lengths: npt.NDArray[np.int32]) -> Packing | None:
        """Return how texts are to share rows, if that takes less than rows of their own do."""
        if not len(lengths):
            return None
        best, least = None, self._cost_alone(lengths)
        widest = max(2 * int(lengths.max()), _SHARED_WIDTH)
        reaching = range(_SHARED_WIDTH, widest + 1, 16)
        for width in sorted({bucket_width(n, self.longest) for n in reaching}):
            count = self._shared_rows(width)
            together = lengths <= width
            if columns_cost(count, width) >= least or not together.any():
                continue
            packing = Packing(count, width, best_fit(lengths[together], width, _most_texts(width)))
            takes = columns_cost(packing.steps_per_epoch * count, width) + _PROGRAM_TOKENS
            takes += self._cost_alone(lengths[~together])
            if takes < least:
                best, least = packing, takes
        return best

    def _shared_rows(self, width: int) -> int:
        """Return the rows of a batch that texts share."""
        count = min(self.batch_size, _SHARED_TOKENS // width) if self.on_cpu else self.batch_size
        return -(-max(1, count) // self.ways) * self.ways

    def _cost_alone(self, lengths: npt.NDArray[np.int32]) -> float:
        """Return what rows of one text each take, in tokens."""
        shapes = [(n, self._width(lengths[part].max(), n)) for part, n in self._cut(lengths)]
        return sum(columns_cost(*shape) for shape in shapes) + _PROGRAM_TOKENS * len(set(shapes))

    def _cut(
        self, lengths: npt.NDArray[np.int32], groups: npt.ArrayLike | None = None
    ) -> Iterator[tuple[Numbers, int]]:
        """Yield the rows of each batch, longest first, and the rows that it is filled up to."""
        group = np.zeros(len(lengths), np.int64) if groups is None else np.asarray(groups)
        order = np.lexsort((-lengths, group))
        for part in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
            first = 0
            while first < len(part):
                width = self._width(lengths[part[first]], len(part) - first)
                count = self._row_count(len(part) - first, width)
                yield part[first : first + count], count
                first += count

    def _width(self, length: int, count: int) -> int:
        """Return the columns of a batch of so many rows."""
        widths = _WIDTHS
        if self.on_cpu:
            widths = _CPU_WIDTHS if count < _MANY_ROWS else _CPU_WIDTHS_OF_MANY
        return bucket_width(int(length), self.longest, widths)

    def _row_count(self, left: int, width: int) -> int:
        """Return the rows of the next batch: more than `left` only where half are not filling."""
        most_tokens = _CPU_TOKENS if self.on_cpu else math.inf
        counts = sorted(
            {
                -(-count // self.ways) * self.ways
                for count in (*_FEW_ROWS, self.batch_size)
                if count <= self.batch_size
            }
        )
        counts = counts[:1] + [count for count in counts[1:] if count * width <= most_tokens]
        for count in counts:
            if left <= count < 2 * left:
                return count
        return max((count for count in counts if count <= left), default=counts[0])


def _most_texts(width: int) -> int:
    """Return the texts of a row that they share at most, so that it is one shape for all calls."""
    return max(1, width // _SHARED_TEXT)

"""Which texts share a row: bin packing by their lengths."""

import dataclasses

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, eq=False)
class Bins:
    """Rows of texts, of which the lengths alone are settled.

    Attributes:
      lengths: tokens of each text, row after row, [N].
      bounds: first text of each row, and the end, [rows + 1].
    """

    lengths: Integers
    bounds: Integers

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def fill(self, lengths: npt.NDArray[np.integer], order: Integers) -> Integers:
        """Return which text takes each place, [N]; of equal lengths the first in `order` first.

        Args:
          lengths: tokens of the texts, [N].
          order: a permutation of the texts.
        """
        texts = np.empty(len(order), np.int64)
        places = np.argsort(self.lengths, kind="stable")
        texts[places] = order[np.argsort(lengths[order], kind="stable")]
        return texts


def best_fit(lengths: npt.NDArray[np.integer], width: int, most: int) -> Bins:
    """Put texts together into as few rows as best-fit decreasing finds.

    The longest come first, each into the row that it leaves least room in; equal ones at once, so
    that millions of texts take little time (as the histograms of Krell et al., arXiv 2107.02027).

    Args:
      lengths: tokens of each text, [N], 1 to `width`.
      width: columns of a row.
      most: texts of a row at most.
    """
    # By the room that they have left; of empty rows there are as many as there are texts.
    rows: list[list[tuple[tuple[int, ...], int]]] = [[] for _ in range(width)]
    rows.append([((), len(lengths))])
    full: list[tuple[tuple[int, ...], int]] = []
    distinct, counts = np.unique(lengths, return_counts=True)
    for length, left in zip(distinct[::-1].tolist(), counts[::-1].tolist(), strict=True):
        room = length
        while left:
            if not rows[room]:
                room += 1
                continue
            held, count = rows[room].pop()
            fitting = min(room // length, most - len(held), left)
            filled = min(count, left // fitting)
            if filled < count:
                rows[room].append((held, count - filled))
            there = held + (length,) * fitting
            (full if len(there) == most else rows[room - fitting * length]).append((there, filled))
            left -= filled * fitting
    kinds = [kind for of_room in (full, *rows) for kind in of_room if kind[0]]
    sizes = np.repeat([len(held) for held, _ in kinds], [count for _, count in kinds])
    return Bins(
        lengths=np.concatenate([np.tile(np.array(held, np.int64), count) for held, count in kinds]),
        bounds=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Placement:
    """Where texts lie in the rows that they share.

    Attributes:
      row: of each text, [n].
      slot: its number in its row, from 0, [n].
      first: column of its first token, [n].
    """

    row: Integers
    slot: Integers
    first: Integers

    def spread_tokens(
        self, values: np.ndarray, shown: np.ndarray, shape: tuple[int, int], filler: int
    ) -> npt.NDArray[np.int32]:
        """Return the rows of tokens that the texts make.

        Args:
          values: of each text's tokens, [n, columns].
          shown: where there are any, [n, columns].
          shape: of the rows, (B, T).
          filler: of the columns without a token.
        """
        text, column = np.nonzero(shown)
        rows = np.full(shape, filler, np.int32)
        rows[self.row[text], self.first[text] + column] = values[text, column]
        return rows

    def spread_texts(
        self, values: np.ndarray, shape: tuple[int, int], filler: float = 0
    ) -> np.ndarray:
        """Return values of the texts, [n, ...], as [B, S, ...].

        Args:
          values: of each text.
          shape: rows and texts of a row at most, (B, S).
          filler: where a row has fewer texts.
        """
        rows = np.full((*shape, *values.shape[1:]), filler, values.dtype)
        rows[self.row, self.slot] = values
        return rows

    def gather_tokens(self, rows: np.ndarray, columns: int) -> np.ndarray:
        """Return each text's part of rows of tokens, [n, columns, ...]; what follows it is noise.

        Args:
          rows: values of the tokens, [B, T, ...].
          columns: tokens of the longest text.
        """
        places = self.first[:, None] + np.arange(columns)
        return rows[self.row[:, None], np.minimum(places, rows.shape[1] - 1)]

    def gather_texts(self, rows: np.ndarray) -> np.ndarray:
        """Return the texts' values, [n, ...], of rows of texts [B, S, ...]."""
        return rows[self.row, self.slot]


def lay_out(lengths: npt.NDArray[np.integer], counts: npt.NDArray[np.integer]) -> Placement:
    """Lay texts side by side.

    Args:
      lengths: tokens of each text, row after row, [n].
      counts: texts of each row.
    """
    begins = np.cumsum(counts) - counts
    row = np.repeat(np.arange(len(counts)), counts)
    before = np.cumsum(lengths) - lengths
    return Placement(row, np.arange(len(row)) - begins[row], before - before[begins[row]])

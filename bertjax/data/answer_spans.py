"""Which tokens of windows are likely to begin and to end an answer, found for many at a time."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from bertjax.data.examples import QuestionExample
from bertjax.data.windows import Numbers, Windows

Scores = npt.NDArray[np.float64]

_Span = TypeVar("_Span")

# Windows whose spans, which are many, are held at a time.
_BLOCK = 256


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """All windows of some questions, B of them, as wide as the longest row, T.

    Attributes:
      windows: what they are of.
      rows: their numbers, ascending, [B].
      starts: scores as first token, [B, T].
      ends: scores as last token, [B, T].
      inside: whether a column holds a token of the context, [B, T].
    """

    windows: Windows
    rows: Numbers
    starts: Scores
    ends: Scores
    inside: npt.NDArray[np.bool_]

    def probabilities(self, scores: Scores) -> Scores:
        """Return each row's softmax over the context and [CLS], 0 elsewhere, [B, T]."""
        counted = self.inside.copy()
        counted[:, 0] = True
        scores = np.where(counted, scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)

    def characters(
        self, row: Numbers, first: Numbers, last: Numbers, align_to_words: bool
    ) -> tuple[list[int], list[int]]:
        """Return the characters of the context, from and to, of the tokens of spans, [N] each."""
        contexts = self.windows.contexts
        first, last = self.windows.token(self.rows[row], np.stack([first, last]))
        if align_to_words:
            first, last = contexts.word_firsts[first], contexts.word_lasts[last]
        return contexts.starts[first].tolist(), contexts.ends[last].tolist()

    def questions(
        self, row: Numbers, spans: Iterator[_Span]
    ) -> Iterator[tuple[QuestionExample, slice, list[_Span]]]:
        """Yield each question with its rows and its spans.

        Args:
          row: the row of each span; the rows of a question come before those of the next.
          spans: as many.
        """
        examples = self.windows.example[self.rows]
        bounds = np.flatnonzero(np.diff(examples, prepend=-1, append=-1)).tolist()
        counts = np.bincount(row, minlength=len(examples))
        for start, end in itertools.pairwise(bounds):
            found = list(itertools.islice(spans, int(counts[start:end].sum())))
            yield self.windows.examples[examples[start]], slice(start, end), found


def blocks(
    windows: Windows, start_logits: npt.ArrayLike, end_logits: npt.ArrayLike
) -> Iterator[Block]:
    """Check the scores and yield them, some questions at a time."""
    all_scores = np.asarray(start_logits), np.asarray(end_logits)
    longest = int(windows.lengths.max(initial=0))
    for scores in all_scores:
        if scores.ndim != 2 or len(scores) != len(windows) or scores.shape[1] < longest:
            raise ValueError(
                f"scores of shape {list(scores.shape)} for {len(windows)} rows of up to {longest}"
            )
    bounds = np.searchsorted(windows.example, np.arange(len(windows.examples) + 1))
    first = 0
    while first < len(windows.examples):
        fitting = int(np.searchsorted(bounds, bounds[first] + _BLOCK, side="right")) - 1
        last = max(fitting, first + 1)
        rows = np.arange(bounds[first], bounds[last])
        lengths = windows.lengths[rows, None]
        columns = np.arange(lengths.max())
        inside = (columns >= windows.context_column[rows, None]) & (columns < lengths - 1)
        starts, ends = (
            scores[rows[0] : rows[-1] + 1, : len(columns)].astype(np.float64)
            for scores in all_scores
        )
        used = inside | (columns == 0)
        if not (np.isfinite(starts[used]).all() and np.isfinite(ends[used]).all()):
            raise ValueError(f"scores of windows {rows[0]} to {rows[-1]} are not all finite")
        yield Block(windows, rows, starts, ends, inside)
        first = last


def best_pairs(block: Block, n_best: int, longest: int) -> tuple[Numbers, Numbers, Numbers]:
    """Pair each row's best first tokens with its best last ones.

    Returns:
      Row, first and last column of the pairs that are answers of at most `longest` tokens, the best
      of each question first, [N] each. Equal scores keep the order of rows and columns.
    """
    columns = np.arange(block.inside.shape[1])
    limits = block.windows.start_columns[block.rows]
    may_start = (columns >= limits[:, :1]) & (columns < limits[:, 1:])
    masked = np.where(may_start, -block.starts, np.inf)
    firsts = np.argsort(masked, axis=1, kind="stable")[:, :n_best]
    masked = np.where(block.inside, -block.ends, np.inf)
    lasts = np.argsort(masked, axis=1, kind="stable")[:, :n_best]
    lengths = lasts[:, None, :] - firsts[:, :, None] + 1
    row, i, j = np.nonzero(
        (lengths >= 1)
        & (lengths <= longest)
        & np.take_along_axis(may_start, firsts, axis=1)[:, :, None]
        & np.take_along_axis(block.inside, lasts, axis=1)[:, None, :]
    )
    first, last = firsts[row, i], lasts[row, j]
    scores = block.starts[row, first] + block.ends[row, last]
    order = np.lexsort((-scores, block.windows.example[block.rows[row]]))
    return row[order], first[order], last[order]


def most_probable(
    block: Block, starts: Scores, ends: Scores, kept: int, longest: int
) -> tuple[Numbers, Numbers, Numbers]:
    """Find the spans whose probabilities multiply to most.

    Returns:
      Row, first and last column of each row's `kept` best spans of at most `longest` tokens, row
      after row, best first, [N] each.
    """
    followed = np.pad(ends, ((0, 0), (0, longest - 1)))
    reach = np.lib.stride_tricks.sliding_window_view(followed, longest, axis=1)
    products = np.where(block.inside, starts, 0.0)[:, :, None] * reach
    flat = products.reshape(len(products), -1)
    # No partial sort of positions: it may order equal products differently on each machine.
    place = flat.shape[1] - min(kept, flat.shape[1])
    least = np.partition(flat, place, axis=1)[:, place, None]
    row, position = np.nonzero((flat >= least) & (flat > 0))
    order = np.lexsort((-flat[row, position], row))
    row, position = row[order], position[order]
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    first, length = np.divmod(position[rank < kept], longest)
    return row[rank < kept], first, first + length

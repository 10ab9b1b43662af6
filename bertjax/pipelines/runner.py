"""Runs a model on rows of any lengths in few shapes, and counts the programs that are compiled."""

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, Literal

import jax
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh, NamedSharding

from bertjax.data.bins import Placement, best_fit, lay_out
from bertjax.data.bucket_widths import bucket_width
from bertjax.data.features import QuestionRows, Rows, TextRows
from bertjax.data.packing import Packing, columns_cost, share
from bertjax.sharding import MESH_AXES, batch_sharding, batch_ways
from bertjax.unstacked import apart, restored, together

Numbers = npt.NDArray[np.int64]

# Of what a function returns arrays: of the texts that share rows, or of the tokens.
SharedRows = Literal["texts", "tokens"]

# Batches that are computed while the results of one are read.
_AHEAD = 2

# Tokens of a batch on a CPU: of more, the intermediate results do not stay in its caches, and rows
# of unlike lengths are padded to one width.
_CPU_TOKENS = 2048

# Widths of batches for each power of two. On a CPU padding takes as long as tokens do, and of many
# rows it is soon as long as compiling for one width more.
_WIDTHS, _CPU_WIDTHS, _CPU_WIDTHS_OF_MANY = 2, 4, 8
_MANY_ROWS = 16

# Rows of the batches that are smaller than the largest: a single text does not pay for many.
_FEW_ROWS = (1, 4, 16)

# Rows that texts share on a CPU: columns of the narrowest, for as many columns one text at most,
# and columns of a batch.
_SHARED_WIDTH, _SHARED_TEXT, _SHARED_TOKENS = 64, 8, 1024

# What one program more must save in each call, in tokens: a small part of what compiling it takes.
_PROGRAM_TOKENS = 500


@dataclasses.dataclass(frozen=True, eq=False)
class _Batch:
    """Some rows, by their numbers, as inputs; and, where they share rows, their places in these."""

    picked: Numbers
    inputs: dict[str, np.ndarray]
    places: Placement | None = None


class Runner:
    """Runs one function of parameters and batches on all rows, sorted by length.

    A batch is as wide as the bucket of its longest row (`bucket_width`) and of one of at most four
    numbers of rows, so that as many programs are compiled as there are such shapes among the rows
    and no more. On a CPU, texts come together in rows that they share, all of one shape, where this
    computes less; and the layers are held apart (`bertjax.unstacked`). Where the parameters lie on
    a mesh of `bertjax.sharding`, the rows of a batch are split over its data axes.

    Args:
      compute: (params, batch, static) -> arrays [B, ...] or a tree of them; traced, so pure. Where
        texts share rows (see `bertjax.packing.model_inputs`), arrays [B, S, ...] of the texts or
        [B, T, ...] of the tokens, as `shared_rows` says.
      params: its first argument.
      batch_size: rows of the largest batch; on a CPU, long rows come in smaller ones.
      longest: width of the widest batch.
      shared_rows: what the function returns where texts share rows; None: they never do.

    Attributes:
      compilations: programs compiled so far. It grows where the function is traced and nowhere
        else: what a call adds to it is what that call compiled.
    """

    def __init__(
        self,
        compute: Callable[[Any, Mapping[str, Any], Any], Any],
        params: Any,
        *,
        batch_size: int,
        longest: int,
        shared_rows: SharedRows | None = None,
    ) -> None:
        def traced(params: Any, batch: Mapping[str, Any], static: Hashable) -> Any:
            self.compilations += 1
            return compute(together(params) if self._on_cpu else params, batch, static)

        self.compilations = 0
        self._compute = jax.jit(traced, static_argnums=2)
        self._batch_size = batch_size
        self._longest = longest
        self._shared_rows = shared_rows
        self._mesh = _mesh_of(params)
        self._on_cpu = self._mesh is None and jax.default_backend() == "cpu"
        self._params = apart(params) if self._on_cpu else params
        self._most_tokens = _CPU_TOKENS if self._on_cpu else math.inf
        # A mesh divides the rows of a batch by so many.
        ways = 1 if self._mesh is None else batch_ways(self._mesh)
        self._row_counts = sorted(
            {-(-count // ways) * ways for count in (*_FEW_ROWS, batch_size) if count <= batch_size}
        )

    @property
    def params(self) -> Any:
        """The parameters as they were given."""
        return restored(self._params) if self._on_cpu else self._params

    def __call__(
        self,
        rows: Rows,
        *,
        groups: npt.ArrayLike | None = None,
        shared: Mapping[str, np.ndarray] | None = None,
        static: Hashable = None,
    ) -> Iterator[tuple[Numbers, Any]]:
        """Yield (numbers of some rows, their results as numpy arrays) until all rows were there.

        Args:
          rows: the rows.
          groups: a number for each row, [N]; rows of different groups share no batch.
          shared: arrays that every batch holds beside its own.
          static: third argument of the function; each value is compiled for apart.
        """
        pending: deque[tuple[_Batch, Any]] = deque()
        for batch in self._batches(rows, groups):
            pending.append((batch, self._dispatch(batch.inputs, shared, static)))
            if len(pending) > _AHEAD:
                yield self._fetched(rows, *pending.popleft())
        while pending:
            yield self._fetched(rows, *pending.popleft())

    def _batches(self, rows: Rows, groups: npt.ArrayLike | None) -> Iterator[_Batch]:
        if groups is None and self._shared_rows and isinstance(rows, TextRows | QuestionRows):
            packing = self._packing(rows.lengths)
            if packing is not None:
                yield from _sharing(rows, packing)
                return
        for picked, count in self._cut(rows.lengths, groups):
            width = self._width(rows.lengths[picked].max(), count)
            filled = np.concatenate([picked, np.full(count - len(picked), picked[0])])
            yield _Batch(picked, rows.batch(filled, width))

    def _dispatch(
        self, batch: dict[str, np.ndarray], shared: Mapping[str, np.ndarray] | None, static: Any
    ) -> Any:
        """Start the computation of a batch; the result is still being computed."""
        if self._mesh is None:
            return self._compute(self._params, {**batch, **(shared or {})}, static)
        placed = jax.device_put(batch, batch_sharding(self._mesh))
        with jax.set_mesh(self._mesh):
            return self._compute(self._params, {**placed, **(shared or {})}, static)

    def _fetched(self, rows: Rows, batch: _Batch, results: Any) -> tuple[Numbers, Any]:
        """Wait for a batch; return what is each row's own, without those that filled it up."""
        results, places, picked = jax.device_get(results), batch.places, batch.picked
        if places is None:
            return picked, jax.tree.map(lambda x: x[: len(picked)], results)
        if self._shared_rows == "texts":
            return picked, jax.tree.map(places.gather_texts, results)
        columns = int(rows.lengths[picked].max())
        return picked, jax.tree.map(lambda x: places.gather_tokens(x, columns), results)

    def _packing(self, lengths: npt.NDArray[np.int32]) -> Packing | None:
        """Return how texts are to share rows, if that takes less than rows of their own."""
        if not self._on_cpu or not len(lengths):
            return None
        shapes = [(n, self._width(lengths[picked].max(), n)) for picked, n in self._cut(lengths)]
        least = sum(columns_cost(*shape) for shape in shapes) + _PROGRAM_TOKENS * len(set(shapes))
        best = None
        longest = max(int(lengths.max()), _SHARED_WIDTH)
        for columns in (longest, longest * 3 // 2, longest * 2):
            width = bucket_width(columns, self._longest)
            count = max(1, min(self._batch_size, _SHARED_TOKENS // width))
            packing = Packing(count, width, best_fit(lengths, width, most=width // _SHARED_TEXT))
            takes = columns_cost(packing.steps_per_epoch * count, width) + _PROGRAM_TOKENS
            if takes < least:
                best, least = packing, takes
        return best

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
        if self._on_cpu:
            widths = _CPU_WIDTHS if count < _MANY_ROWS else _CPU_WIDTHS_OF_MANY
        return bucket_width(int(length), self._longest, widths)

    def _row_count(self, left: int, width: int) -> int:
        """Return the rows of the next batch: more than `left` only where half are not filling."""
        counts = self._row_counts[:1]
        counts += [c for c in self._row_counts[1:] if c * width <= self._most_tokens]
        for count in counts:
            if left <= count < 2 * left:
                return count
        return max((count for count in counts if count <= left), default=counts[0])


def _sharing(rows: TextRows | QuestionRows, packing: Packing) -> Iterator[_Batch]:
    """Yield batches of rows that hold several texts each; the last one may have empty rows."""
    lengths, bounds = rows.lengths, packing.bins.bounds
    texts = packing.bins.fill(lengths, np.arange(len(lengths)))
    shape = packing.batch_rows, packing.width, packing.width // _SHARED_TEXT
    for first in range(0, len(packing.bins), packing.batch_rows):
        own = bounds[first : first + packing.batch_rows + 1]
        picked = texts[own[0] : own[-1]]
        places = lay_out(lengths[picked], np.diff(own))
        yield _Batch(picked, share(rows, picked, places, shape), places)


def _mesh_of(params: Any) -> Mesh | None:
    """Return the mesh that the parameters lie on, where it is one of `bertjax.sharding`."""
    sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
    mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
    if not isinstance(mesh, Mesh) or mesh.size == 1 or not set(MESH_AXES) <= set(mesh.axis_names):
        return None
    return mesh

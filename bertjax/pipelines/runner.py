"""Runs a model on rows of any lengths, and counts the programs that are compiled."""

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike

from bertjax.data.cutting import Batch, Cutter, Numbers
from bertjax.data.features import Rows
from bertjax.sharding import MESH_AXES, batch_sharding, batch_ways
from bertjax.unstacked import apart, restored, together

# Batches that are computed while the results of one are read.
_AHEAD = 2

# Batches that a CPU computes at the same time: while some threads wait for the slowest of a
# product, they have another batch's work. JAX runs what one thread asks for in turn.
_AT_ONCE = 2

# What a function computes where texts share rows: arrays of the texts, or of the tokens.
SharedRows = Literal["texts", "tokens"]


class Runner:
    """Runs one function of parameters and batches on all rows.

    As many programs are compiled as `Cutter` makes shapes of the rows, and no more. On a
    CPU, texts may share rows, the layers are held apart (`bertjax.unstacked`), and two batches are
    computed at the same time, so that a second thread calls the function's program. Where the
    parameters lie on a mesh of `bertjax.sharding`, the rows of a batch are split over its data
    axes.

    Args:
      compute: (params, batch, static) -> arrays [B, ...] or a tree of them; traced, so pure. Where
        texts share rows (see `bertjax.packing.model_inputs`), arrays [B, S, ...] of the texts or
        [B, T, ...] of the tokens, as `shared_rows` says.
      params: its first argument.
      dtype: type that the function computes with.
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
        dtype: DTypeLike,
        batch_size: int,
        longest: int,
        shared_rows: SharedRows | None = None,
    ) -> None:
        def traced(params: Any, batch: Mapping[str, Any], static: Hashable) -> Any:
            self.compilations += 1
            return compute(together(params) if self._on_cpu else params, batch, static)

        self.compilations = 0
        self._compiled: set[Hashable] = set()
        self._compute = jax.jit(traced, static_argnums=2)
        self._shared_rows = shared_rows
        self._mesh = _mesh_of(params)
        self._on_cpu = self._mesh is None and jax.default_backend() == "cpu"
        self._params = apart(params, dtype) if self._on_cpu else params
        exact = {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
        self._given = None if self._on_cpu and exact else params
        self._pool = ThreadPoolExecutor(_AT_ONCE)
        self._cutter = Cutter(
            batch_size,
            longest,
            ways=1 if self._mesh is None else batch_ways(self._mesh),
            on_cpu=self._on_cpu,
            shares=self._on_cpu and shared_rows is not None,
        )

    @property
    def params(self) -> Any:
        """The parameters as they were given."""
        return restored(self._params) if self._given is None else self._given

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
        pending: deque[tuple[Batch, Callable[[], Any]]] = deque()
        for batch in self._cutter.cut(rows, groups):
            pending.append((batch, self._started(batch.inputs, shared, static)))
            if len(pending) > _AHEAD:
                yield self._fetched(rows, *pending.popleft())
        while pending:
            yield self._fetched(rows, *pending.popleft())

    def _started(
        self, batch: dict[str, np.ndarray], shared: Mapping[str, np.ndarray] | None, static: Any
    ) -> Callable[[], Any]:
        """Start the computation of a batch; return what waits for its results."""
        if self._mesh is not None:
            placed = jax.device_put(batch, batch_sharding(self._mesh))
            with jax.set_mesh(self._mesh):
                results = self._compute(self._params, {**placed, **(shared or {})}, static)
            return partial(jax.device_get, results)
        inputs = {**batch, **(shared or {})}
        shape = static, *((name, array.shape) for name, array in inputs.items())
        if self._on_cpu and shape in self._compiled:
            run = lambda: jax.device_get(self._compute(self._params, inputs, static))  # noqa: E731
            return self._pool.submit(run).result
        self._compiled.add(shape)  # here, and so once
        return partial(jax.device_get, self._compute(self._params, inputs, static))

    def _fetched(self, rows: Rows, batch: Batch, results: Callable[[], Any]) -> tuple[Numbers, Any]:
        """Wait for a batch; return what is each row's own."""
        of_texts = self._shared_rows == "texts"
        columns = None if of_texts else int(rows.lengths[batch.numbers].max())
        own = jax.tree.map(lambda x: batch.own(x, columns), results())
        return batch.numbers, own


def _mesh_of(params: Any) -> Mesh | None:
    """Return the mesh that the parameters lie on, where it is one of `bertjax.sharding`."""
    sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
    mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
    if not isinstance(mesh, Mesh) or mesh.size == 1 or not set(MESH_AXES) <= set(mesh.axis_names):
        return None
    return mesh

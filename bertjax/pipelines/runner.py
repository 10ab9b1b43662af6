"""Runs a model on rows of any lengths, and counts the programs that are compiled."""

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike

from bertjax.data.cutting import Batch, Cutter, Numbers
from bertjax.data.features import Rows
from bertjax.overlap import Overlap
from bertjax.sharding import MESH_AXES, batch_sharding, batch_ways
from bertjax.unstacked import apart, restored, together

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
      dtype: type that the function computes with; None: that of the parameters.
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
        dtype: DTypeLike | None = None,
        batch_size: int,
        longest: int,
        shared_rows: SharedRows | None = None,
    ) -> None:
        def traced(params: Any, batch: Mapping[str, Any], static: Hashable) -> Any:
            self.compilations += 1
            return compute(together(params) if self._on_cpu else params, batch, static)

        self.compilations = 0
        self._compute = jax.jit(traced, static_argnums=2)
        self._shared_rows = shared_rows
        self._mesh = _mesh_of(params)
        self._on_cpu = self._mesh is None and jax.default_backend() == "cpu"
        self._params = apart(params, dtype) if self._on_cpu else params
        kinds = {leaf.dtype for leaf in jax.tree.leaves(params)}
        exact = dtype is None or kinds == {jnp.dtype(dtype)}
        self._given = None if self._on_cpu and exact else params
        self._overlap = Overlap(on_one_cpu=self._on_cpu)
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
        beside = shared or {}

        def compute(batch: Batch) -> Any:
            if self._mesh is None:
                return self._compute(self._params, {**batch.inputs, **beside}, static)
            placed = jax.device_put(batch.inputs, batch_sharding(self._mesh))
            with jax.set_mesh(self._mesh):
                return self._compute(self._params, {**placed, **beside}, static)

        others = static, *((name, array.shape) for name, array in beside.items())
        batches = self._cutter.cut(rows, groups)
        of_texts = self._shared_rows == "texts"
        for batch, results in self._overlap(batches, compute, lambda x: (x.shape, *others)):
            columns = None if of_texts else int(rows.lengths[batch.numbers].max())
            yield batch.numbers, jax.tree.map(lambda x, b=batch, c=columns: b.own(x, c), results)


def _mesh_of(params: Any) -> Mesh | None:
    """Return the mesh that the parameters lie on, where it is one of `bertjax.sharding`."""
    sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
    mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
    if not isinstance(mesh, Mesh) or mesh.size == 1 or not set(MESH_AXES) <= set(mesh.axis_names):
        return None
    return mesh

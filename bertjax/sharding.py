"""Where arrays live: the device mesh, two tables from parameter paths to mesh axes, and batches.

Sharding stays outside the model. `PARAM_AXES` gives each parameter its logical axes by its path,
`RULES` maps logical axes to mesh axes; optimizer moments repeat the parameters' paths, so the same
two tables shard the whole training state. The model itself only calls `constrain`.
"""

import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bertjax.errors import InputError
from bertjax.run_config import MeshConfig

MESH_AXES = ("data", "fsdp", "model")

# Logical axis -> mesh axes. Rows of a batch are split over both data-parallel axes.
RULES: dict[str | None, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "embed": ("fsdp",),
    "heads": ("model",),
    "mlp": ("model",),
    "vocab": ("model", "fsdp"),
    "width": ("fsdp",),
    None: (),
}

# (pattern of the end of a parameter's path, its logical axes without the leading layer axis).
# Word embeddings are split over the vocabulary. Their width is split only where the mesh is of fsdp
# alone and does not divide the vocabulary: on mixed meshes XLA rematerialises the lookup's output.
PARAM_AXES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"word_embeddings/embedding", ("vocab", "width")),
    (r"(position|token_type)_embeddings/embedding", (None, None)),
    (r"distance_embedding/embedding", (None, None)),
    (r"LayerNorm/(scale|bias)", (None,)),
    (r"self/(query|key|value)/kernel", ("embed", "heads", None)),
    (r"self/(query|key|value)/bias", ("heads", None)),
    (r"(cross)?attention/output/dense/kernel", ("heads", None, "embed")),
    (r"(cross)?attention/output/dense/bias", (None,)),
    (r"intermediate/dense/kernel", ("embed", "mlp")),
    (r"intermediate/dense/bias", ("mlp",)),
    (r"layer/output/dense/kernel", ("mlp", "embed")),
    (r"layer/output/dense/bias", (None,)),
    (r"(pooler|transform)/dense/kernel", ("embed", None)),
    (r"(pooler|transform)/dense/bias", (None,)),
    (r"predictions/decoder/kernel", ("width", "vocab")),
    (r"predictions/bias", ("vocab",)),
    (r"enc_to_dec_proj/kernel", ("embed", None)),
    (r"enc_to_dec_proj/bias", (None,)),
    (r"(seq_relationship|classifier|qa_outputs)/kernel", (None, None)),
    (r"(seq_relationship|classifier|qa_outputs)/bias", (None,)),
    (r"self/(query|key|value)/lora_B/kernel", (None, "heads", None)),
    (r"(cross)?attention/output/dense/lora_A/kernel", ("heads", None, None)),
    (r"(?<!attention/output/dense/)lora_A/kernel", (None, None)),
    (r"(?<!self/query/)(?<!self/key/)(?<!self/value/)lora_B/kernel", (None, None)),
)


def join_hosts() -> None:
    """Connect the processes of a run, one or more a host, before anything else touches JAX.

    TPU pods, SLURM, GKE and Open MPI are recognised by `jax.distributed.initialize`; elsewhere set
    JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID for each process.

    Raises:
      InputError: the environment describes no cluster.
    """
    count, number = (os.environ.get(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
    try:
        jax.distributed.initialize(
            num_processes=int(count) if count else None, process_id=int(number) if number else None
        )
    except ValueError as error:
        raise InputError(
            f"distributed: {error} Set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and "
            "JAX_PROCESS_ID, or leave --distributed out on a single host"
        ) from error


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arrange the devices of all hosts as a mesh `("data", "fsdp", "model")`.

    Raises:
      InputError: when the axis sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices()) if devices is None else list(devices)
    shape = [config.data, config.fsdp, config.model]
    if shape.count(-1) > 1 or any(n < 1 and n != -1 for n in shape):
        raise InputError(f"mesh: axis sizes must be positive, at most one -1; got {shape}")
    fixed = math.prod(n for n in shape if n != -1)
    if -1 in shape and len(devices) % fixed == 0:
        shape[shape.index(-1)] = len(devices) // fixed
    if math.prod(shape) != len(devices):
        raise InputError(
            f"mesh: data x fsdp x model = {shape} does not fit {len(devices)} devices; "
            "change the mesh or the number of devices"
        )
    # Auto: jax.make_mesh defaults to Explicit axes, under which Linen's Dense and Embed raise.
    return jax.make_mesh(tuple(shape), MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def logical_axes(path: str, ndim: int) -> tuple[str | None, ...]:
    """Return the logical axes of the parameter at `path` ("a/b/c") with `ndim` axes.

    Parameters of stacked layers have one leading axis more, which is never split.

    Raises:
      ValueError: when no row of `PARAM_AXES` matches, or its number of axes does not fit.
    """
    for pattern, axes in PARAM_AXES:
        if re.search(rf"(^|/){pattern}$", path):
            stacked = ndim - len(axes)
            if stacked not in (0, 1):
                raise ValueError(f"{path}: has {ndim} axes, its rule names {axes}")
            return (None,) * stacked + axes
    raise ValueError(f"{path}: no rule of sharding.PARAM_AXES matches this parameter")


def partition_spec(path: str, shape: Sequence[int], mesh: Mesh) -> P:
    """Return how the mesh splits a parameter.

    An axis that its mesh axes do not divide is left whole, as a vocabulary of 30,522 must be on 8
    devices: the last mesh axis is dropped first, then the next. A `width` is split only where its
    vocabulary is whole, on a mesh of `fsdp` alone.
    """

    def split(size: int, name: str | None) -> tuple[str, ...] | None:
        axes = tuple(axis for axis in RULES[name] if mesh.shape[axis] > 1)
        while axes and size % math.prod(mesh.shape[axis] for axis in axes):
            axes = axes[:-1]
        return axes or None

    names = logical_axes(path, len(shape))
    spec = dict(zip(names, map(split, shape, names), strict=True))
    if spec.get("vocab") or mesh.shape["fsdp"] < math.prod(mesh.shape.values()):
        spec["width"] = None
    return P(*(spec[name] for name in names))


def path_of(key_path: tuple[Any, ...]) -> str:
    """Write a key path of `jax.tree_util` as "a/b/c"."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def state_shardings(abstract_state: Any, mesh: Mesh) -> Any:
    """Return the `NamedSharding` of every leaf of a training state (or of parameters).

    Scalars are replicated; every other leaf must match a row of `PARAM_AXES`.

    Args:
      abstract_state: a tree of arrays or `jax.ShapeDtypeStruct`s.
      mesh: the mesh of `make_mesh`.
    """

    def sharding(key_path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        spec = partition_spec(path_of(key_path), leaf.shape, mesh) if leaf.shape else P()
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, abstract_state)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pin the sharding of an activation inside `jit` by logical axes; without a mesh, do nothing.

    The mesh is that of the `jax.set_mesh` context. Axes not named at the end are left whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not set(MESH_AXES) <= set(mesh.axis_names):
        return x
    return jax.lax.with_sharding_constraint(x, P(*(RULES[axis] or None for axis in axes)))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch: rows over `data` and `fsdp`."""
    return NamedSharding(mesh, P(RULES["batch"]))


def is_one_cpu(mesh: Mesh) -> bool:
    """Tell whether a mesh is one CPU alone."""
    return mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"


def batch_ways(mesh: Mesh) -> int:
    """Return how many parts the rows of a batch are split into."""
    return math.prod(mesh.shape[axis] for axis in RULES["batch"])


def check_batch_size(mesh: Mesh, batch_size: int, accumulation_steps: int = 1) -> None:
    """Raise InputError unless the mesh divides each part of the batch."""
    ways = batch_ways(mesh)
    if batch_size % (ways * accumulation_steps):
        raise InputError(
            f"batch_size {batch_size} is not divisible by data x fsdp x accumulation_steps = "
            f"{mesh.shape['data']} x {mesh.shape['fsdp']} x {accumulation_steps}: "
            f"take a multiple of {ways * accumulation_steps}"
        )


def host_rows(mesh: Mesh, batch_size: int) -> tuple[int, int]:
    """Return the range `(start, stop)` of a global batch's rows that this host must supply."""
    slices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    bounds = {s[0].indices(batch_size)[:2] for s in slices if s is not None}
    start, stop = min(b[0] for b in bounds), max(b[1] for b in bounds)
    covered = {row for b in bounds for row in range(*b)}
    if len(covered) != stop - start:
        raise InputError(
            "mesh: the rows of one host do not lie together; let the model axis be the one that "
            "spans the devices of a host"
        )
    return start, stop


def global_batch(batch: dict[str, np.ndarray], mesh: Mesh, batch_size: int) -> dict[str, jax.Array]:
    """Turn this host's rows of a batch into arrays over the whole mesh.

    Args:
      batch: the rows `host_rows(mesh, batch_size)` of each array.
      mesh: the mesh of `make_mesh`.
      batch_size: rows of the global batch.
    """
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows, (batch_size, *rows.shape[1:]))
        for name, rows in batch.items()
    }


def whole_on_host(params: Any) -> Any:
    """Gather sharded parameters as numpy arrays on every host."""
    if jax.process_count() > 1:
        return multihost_utils.process_allgather(params, tiled=True)
    return jax.device_get(params)

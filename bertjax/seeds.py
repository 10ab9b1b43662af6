"""Several runs at once that differ in their seeds alone: their states stacked, their step vmapped.

A stacked tree has one axis more than that of a run, the first, along which the runs lie.
"""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from bertjax.errors import InputError
from bertjax.train import Batch, Objective, StepFunction, TrainState, compile_step, train_step

Tree = TypeVar("Tree")


def check_mesh(seeds: Sequence[int], mesh: Mesh) -> None:
    """Raise InputError where several seeds meet several devices."""
    if len(seeds) > 1 and mesh.size > 1:
        raise InputError(
            f"seeds {len(seeds)}: several seeds learn at once on one device, and here are "
            f"{mesh.size}; let the run see one, or run the seeds one after another with --seed"
        )


@jax.jit
def stack(trees: Sequence[Tree]) -> Tree:
    """Stack the trees of all runs."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@jax.jit
def member(stacked: Tree, number: int) -> Tree:
    """Return the tree of one run."""
    return jax.tree.map(lambda leaf: leaf[number], stacked)


def make_seeds_step(
    objective: Objective,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    shardings: Any,
    *,
    seeds: Sequence[int],
    **options: Any,
) -> StepFunction:
    """Compile `train_step` for stacked states and batches.

    Args:
      objective: what is minimised.
      tx: the optimizer.
      mesh: of one device.
      shardings: those of the state of one run.
      seeds: of dropout, one a run.
      **options: as in `train_step`.

    Returns:
      A step whose metrics are the means over the runs, with `loss_std` beside; `finite` says
      whether all are.
    """

    def one(state: TrainState, batch: Batch, seed: jax.Array) -> Any:
        return train_step(state, batch, objective=objective, tx=tx, seed=seed, **options)

    def step(states: TrainState, batches: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        states, metrics = jax.vmap(one)(states, batches, jnp.array(seeds))
        finite = metrics.pop("finite").all()
        means = {name: values.mean() for name, values in metrics.items()}
        spread = jnp.std(metrics["loss"], ddof=1)
        return states, means | {"loss_std": spread, "finite": finite}

    return compile_step(step, mesh, shardings)


def stacked_batches(
    streams: Sequence[Iterator[dict[str, np.ndarray]]],
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the batches of all runs; `data.bucketing` makes those of one number equally wide."""
    for parts in zip(*streams, strict=True):
        yield {name: np.stack([part[name] for part in parts]) for name in parts[0]}


def over_seeds(scores: Sequence[dict[str, float]], seeds: Sequence[int]) -> dict[str, float]:
    """Return means, then sample standard deviations (`_std`), then every run's (`_seed7`)."""
    columns = {name: [of_one[name] for of_one in scores] for name in scores[0]}
    means = {name: float(np.mean(values)) for name, values in columns.items()}
    deviations = {f"{name}_std": float(np.std(values, ddof=1)) for name, values in columns.items()}
    single = {
        f"{name}_seed{seed}": value
        for name, values in columns.items()
        for seed, value in zip(seeds, values, strict=True)
    }
    return means | deviations | single

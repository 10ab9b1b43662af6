"""The sharded training step: state, exact global normalisation, accumulation, evaluation."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bertjax import partition
from bertjax.config import BertConfig
from bertjax.encoder_decoder_config import EncoderDecoderConfig
from bertjax.losses import LossSum
from bertjax.sharding import batch_sharding, constrain, is_one_cpu, state_shardings
from bertjax.unstacked import together

Batch = dict[str, jax.Array]
Sums = dict[str, LossSum]
StepFunction = Callable[["TrainState", Batch], tuple["TrainState", dict[str, jax.Array]]]


class TrainState(struct.PyTreeNode):
    """All that a step changes: data only, no functions.

    Attributes:
      step: int32 scalar, optimizer steps done.
      params: parameter tree, float32.
      opt_state: the optimizer's state.
    """

    step: jax.Array
    params: Any
    opt_state: Any


class Objective(Protocol):
    """What is minimised: a model, its inputs and its losses."""

    def init(self, key: jax.Array) -> Any:
        """Return fresh parameters."""

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Return the weight of each loss over a whole batch, from its labels alone."""

    def sums(self, params: Any, batch: Batch, dropout_key: jax.Array | None) -> Sums:
        """Return losses (the names of `weights`) and metrics as sums; no key, no dropout."""


def init_state(
    objective: Objective, tx: optax.GradientTransformation, mesh: Mesh, seed: int
) -> tuple[TrainState, Any]:
    """Create the training state, each leaf on its own devices from the start.

    Returns:
      The state and its shardings.
    """
    abstract = abstract_state(objective, tx)
    shardings = state_shardings(abstract, mesh)

    def init(key: jax.Array) -> TrainState:
        return new_state(objective.init(key), tx)

    with jax.set_mesh(mesh):
        return jax.jit(init, out_shardings=shardings)(jax.random.key(seed)), shardings


def new_state(params: Any, tx: optax.GradientTransformation) -> TrainState:
    """Return the state before the first step on `params`."""
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))


def abstract_state(objective: Objective, tx: optax.GradientTransformation) -> TrainState:
    """Return the state as shapes, without computing anything."""
    return jax.eval_shape(lambda: new_state(objective.init(jax.random.key(0)), tx))


def microbatches(batch: Batch, parts: int) -> Batch:
    """Reshape `[B, ...]` to `[parts, B / parts, ...]`, each device splitting its own rows."""

    def split(x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
        return constrain(x, None, "batch")

    return jax.tree.map(split, batch)


def loss_and_grads(
    objective: Objective,
    params: Any,
    batch: Batch,
    key: jax.Array,
    accumulation_steps: int = 1,
    freeze: Sequence[str] = (),
) -> tuple[Sums, Any]:
    """Return the sums of a batch and the gradient of the sum of its mean losses.

    Every loss is divided by its weight over the whole global batch before the backward pass, so
    that neither the number of devices nor of microbatches changes the gradient. That of what
    `freeze` matches is zero, and is not computed. The layers of the parameters may be one by one.
    """
    weights = objective.weights(batch)
    trained, frozen = partition.split(params, freeze)

    def loss(trained: Any, part: Batch, key: jax.Array) -> tuple[jax.Array, Sums]:
        params = together(partition.join(trained, frozen))
        sums = objective.sums(params, part, key)
        scaled = (LossSum(sums[name].total, weight).mean() for name, weight in weights.items())
        return sum(scaled, jnp.zeros(())), sums

    grad = jax.grad(loss, has_aux=True)

    def whole(grads: Any) -> Any:
        grads = partition.join(grads, jax.tree.map(jnp.zeros_like, frozen))
        return partition.hold(grads, freeze)

    if accumulation_steps == 1:
        grads, sums = grad(trained, batch, key)
        return sums, whole(grads)
    parts = microbatches(batch, accumulation_steps)

    def add_part(total: Any, inputs: tuple[jax.Array, Batch]) -> tuple[Any, None]:
        index, part = inputs
        return jax.tree.map(
            jnp.add, total, grad(trained, part, jax.random.fold_in(key, index))
        ), None

    first = jax.tree.map(lambda x: x[0], parts)
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(grad, trained, first, key)
    )
    (grads, sums), _ = jax.lax.scan(add_part, zeros, (jnp.arange(accumulation_steps), parts))
    return sums, whole(grads)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    objective: Objective,
    tx: optax.GradientTransformation,
    seed: int | jax.Array,
    accumulation_steps: int = 1,
    skip_nonfinite: bool = False,
    freeze: Sequence[str] = (),
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Take one optimizer step; a pure function of state and batch.

    Args:
      state: the state before; its layers may be one by one (`unstacked.one_by_one`).
      batch: a global batch.
      objective: what is minimised.
      tx: the optimizer.
      seed: seed of dropout.
      accumulation_steps: parts that the batch is worked through in.
      skip_nonfinite: leave parameters and optimizer state as they are where loss or gradient is not
        finite. (Costs a copy of the moments on a CPU.)
      freeze: the patterns that `tx` freezes, see `loss_and_grads`.

    Returns:
      The new state, and scalars: each mean of `Objective.sums`, `loss` (sum of the losses),
      `grad_norm` before clipping, of what is trained, and `finite`.
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    sums, grads = loss_and_grads(objective, state.params, batch, key, accumulation_steps, freeze)
    metrics = {name: pair.mean() for name, pair in sums.items()}
    metrics["loss"] = sum((metrics[name] for name in objective.weights(batch)), jnp.zeros(()))
    metrics["grad_norm"] = optax.tree.norm(grads)
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    if skip_nonfinite:
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, opt_state),
            (state.params, state.opt_state),
        )
    metrics["finite"] = finite
    return TrainState(state.step + 1, params, opt_state), metrics


def make_train_step(
    objective: Objective,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    shardings: Any,
    *,
    seed: int,
    accumulation_steps: int = 1,
    skip_nonfinite: bool = False,
    freeze: Sequence[str] = (),
) -> StepFunction:
    """Compile `train_step` over the mesh (what used to be `pjit`); the state is donated.

    Args:
      objective: what is minimised.
      tx: the optimizer.
      mesh: the mesh of `sharding.make_mesh`.
      shardings: those of the state, from `init_state`.
      seed: see `train_step`, as the rest.
      accumulation_steps: see there.
      skip_nonfinite: see there.
      freeze: see there.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        return train_step(
            state,
            batch,
            objective=objective,
            tx=tx,
            seed=seed,
            accumulation_steps=accumulation_steps,
            skip_nonfinite=skip_nonfinite,
            freeze=freeze,
        )

    return compile_step(step, mesh, shardings)


def compile_step(step: StepFunction, mesh: Mesh, shardings: Any) -> StepFunction:
    """Compile a step over the mesh; the state is donated.

    On one device it takes any form of the state, whatever that which `shardings` are of.
    """
    if mesh.size == 1:
        shardings = NamedSharding(mesh, P())
    jitted = jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, NamedSharding(mesh, P())),
        donate_argnums=0,
    )
    return _under(mesh, jitted)


def prefers_layers_apart(
    config: BertConfig | EncoderDecoderConfig, mesh: Mesh, freeze: Sequence[str] = ()
) -> bool:
    """Whether steps are faster on a state with its layers one by one (`unstacked.one_by_one`).

    On one CPU they are, but for layers that run in a loop, which reads stacks. Other devices were
    not measured; shardings of several, and patterns of `freeze`, are of stacks alone.
    """
    models = [config] if isinstance(config, BertConfig) else [config.encoder, config.decoder]
    unrolled = all(model.scan_unroll == 0 for model in models)
    return is_one_cpu(mesh) and unrolled and not freeze


def make_eval_step(
    objective: Objective, mesh: Mesh, shardings: Any
) -> Callable[[Any, Batch], Sums]:
    """Compile `Objective.sums` without dropout: (params, batch) -> sums over the whole mesh."""

    def step(params: Any, batch: Batch) -> Sums:
        return objective.sums(params, batch, None)

    jitted = jax.jit(
        step,
        in_shardings=(shardings.params, batch_sharding(mesh)),
        out_shardings=NamedSharding(mesh, P()),
    )
    return _under(mesh, jitted)


def evaluate(
    eval_step: Callable[[Any, Batch], Sums], params: Any, batches: Iterable[Batch]
) -> Sums:
    """Add up the sums of all batches; rows without weight count nothing."""
    total: Sums | None = None
    for batch in batches:
        sums = eval_step(params, batch)
        total = sums if total is None else jax.tree.map(jnp.add, total, sums)
    return total or {}


def _under(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """Call `function` in the mesh's context, which `sharding.constrain` reads while tracing."""

    def call(*args: Any) -> Any:
        with jax.set_mesh(mesh):
            return function(*args)

    return call

"""The optimizer as an Optax chain: clipping, update rule, decay mask, learning-rate schedule.

`optimizer` builds the chain of an `OptimizerConfig`; every piece is public and works on its own.
"""

import functools
import math
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from bertjax.errors import InputError
from bertjax.partition import freeze, is_stacked, scale_by_depth
from bertjax.run_config import OptimizerConfig, OptimizerName, ScheduleName
from bertjax.sharding import path_of

Ramp = Literal["linear", "cosine", "1-sqrt"]


def optimizer(config: OptimizerConfig, train_steps: int) -> optax.GradientTransformation:
    """Return the Optax chain of `config` for a run of `train_steps` steps.

    The moments in its state repeat the parameters' paths under `mu` and `nu`. The chain has the
    same length for every config, so that a checkpoint does not depend on `clip_norm`; `freeze` and
    `layer_decay`, where they are used, put further transformations around it.

    Raises:
      InputError: when a field of the config is out of range; from `init`, when a pattern of
        `freeze` matches no parameter.
    """
    names = get_args(OptimizerName)
    require = functools.partial(_require, config)
    require("name", config.name in names, f"must be one of {', '.join(names)}")
    require("weight_decay", 0 <= config.weight_decay < math.inf, "must be 0 or positive")
    require("b1", 0 <= config.b1 < 1, "must lie in [0, 1)")
    require("b2", 0 <= config.b2 < 1, "must lie in [0, 1)")
    require("eps", 0 < config.eps < math.inf, "must be positive")
    require("clip_norm", config.clip_norm >= 0, "must be positive, or 0 for no clipping")
    require("layer_decay", 0 < config.layer_decay <= 1, "must lie in (0, 1]")
    scale_by_rule = scale_by_bert_adam if config.name == "bert_adam" else optax.scale_by_adam
    chain = optax.chain(
        clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        scale_by_rule(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
        optax.masked(scale_by_layer_trust_ratio(), decay_mask)
        if config.name == "lamb"
        else optax.identity(),
        optax.scale_by_learning_rate(learning_rate_schedule(config, train_steps)),
    )
    if config.freeze:
        chain = freeze(chain, config.freeze)
    if config.layer_decay < 1:
        chain = optax.chain(chain, scale_by_depth(config.layer_decay))
    return chain


def decay_mask(params: optax.Params) -> Any:
    """Return a tree like `params` that is False at every bias and in every LayerNorm."""

    def decayed(path: tuple[Any, ...], _: Any) -> bool:
        names = path_of(path).split("/")
        return names[-1] != "bias" and "LayerNorm" not in names

    return jax.tree_util.tree_map_with_path(decayed, params)


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scale the gradient by `max_norm / |gradient|` where its global norm is over `max_norm`.

    The same as Optax's, as one multiplication: Optax's division of every element is not fused into
    the update rule by XLA on CPUs, which costs a copy of the whole gradient.
    """

    def clip(updates: optax.Updates, _: optax.Params | None) -> optax.Updates:
        factor = max_norm / jnp.maximum(optax.tree.norm(updates), max_norm)
        return jax.tree.map(lambda u: u * factor, updates)

    return optax.stateless(clip)


def scale_by_bert_adam(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-6
) -> optax.GradientTransformation:
    """Adam without bias correction, `m / (sqrt(v) + eps)`: google's AdamWeightDecayOptimizer.

    Against corrected Adam its updates are about 3 times as large at step 1 and 6 times at step 10
    (b1 0.9, b2 0.999), and equal after some thousand steps.
    """

    def update(
        updates: optax.Updates, state: optax.ScaleByAdamState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.ScaleByAdamState]:
        del params
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
        return updates, optax.ScaleByAdamState(optax.safe_increment(state.count), mu, nu)

    return optax.GradientTransformation(optax.scale_by_adam().init, update)


def scale_by_layer_trust_ratio() -> optax.GradientTransformation:
    """Scale updates by LAMB's trust ratio |parameter| / |update|, or 1 where a norm is zero.

    Parameters of stacked layers (below a path component `layer`) have one ratio for each index of
    their first axis, as if the layers were separate: `optax.scale_by_trust_ratio` would take one
    for the whole stack. `optimizer` leaves out what `decay_mask` does, which keeps ratio 1: so do
    google's LAMB, and NVIDIA's FusedLAMB unless `use_nvlamb` (which differs only where the decay is
    0: it then has no ratios at all). You et al. 2020, "Large Batch Optimization for Deep Learning",
    algorithm 2 with the identity as phi.
    """

    def scale(path: tuple[Any, ...], update: jax.Array, param: jax.Array) -> jax.Array:
        axes = tuple(range(int(is_stacked(path_of(path))), update.ndim))
        update_norm, param_norm = (
            jnp.sqrt(jnp.sum(jnp.square(x), axes, keepdims=True)) for x in (update, param)
        )
        scalable = (update_norm > 0) & (param_norm > 0)
        return update * jnp.where(scalable, param_norm / update_norm, 1.0)

    return optax.stateless(lambda *trees: jax.tree_util.tree_map_with_path(scale, *trees))


def learning_rate_schedule(config: OptimizerConfig, train_steps: int) -> optax.Schedule:
    """Return the learning rate as a function of the step, which counts from 0.

    Every schedule is that of transformers' `get_scheduler`, also after the end of the run (a cosine
    rises again), except `google_linear`, which is that of google's optimization.py. Differences of
    steps are taken as integers: near the end of a long run `1 - step / train_steps` has no digits
    left in float32.

    Raises:
      InputError: when a field of the config is out of range or does not go with the others.
    """
    _check_schedule(config, train_steps)
    warmup_steps = config.warmup_steps

    def schedule(count: ArrayLike) -> jax.Array:
        step = jnp.asarray(count)
        kind = config.warmup_type if config.schedule == "warmup_stable_decay" else "linear"
        rising = _ramp(kind, jnp.minimum(step, warmup_steps), max(1, warmup_steps))
        if config.schedule == "warmup_stable_decay":
            rising = _lift(rising, config)
        after = _after_warmup(config, train_steps, step)
        return config.learning_rate * jnp.where(step < warmup_steps, rising, after)

    return schedule


def _after_warmup(config: OptimizerConfig, train_steps: int, step: jax.Array) -> jax.Array:
    """Return what the learning rate is multiplied by once the warmup is over."""
    since = jnp.maximum(step - config.warmup_steps, 0)
    steps = max(1, train_steps - config.warmup_steps)
    left = jnp.clip(train_steps - step, 0, steps)
    match config.schedule:
        case "linear":
            return left / steps
        case "google_linear":
            return jnp.maximum(train_steps - step, 0) / train_steps
        case "cosine":
            return _cosine(2 * _num_cycles(config), since, steps)
        case "cosine_with_min_lr":
            return _lift(_cosine(2 * _num_cycles(config), since, steps), config)
        case "cosine_with_restarts":
            wave = _cosine(_num_cycles(config), since, steps, restarts=True)
            return jnp.where(since < steps, wave, 0.0)
        case "polynomial":
            end = config.end_learning_rate / config.learning_rate
            return end + (1 - end) * (left / steps) ** config.power
        case "inverse_sqrt":
            timescale = config.timescale or config.warmup_steps or 10_000
            return jnp.sqrt(timescale / (since + timescale))
        case "warmup_stable_decay":
            falling, steps = jnp.clip(train_steps - step, 0, config.decay_steps), config.decay_steps
            if config.decay_type == "cosine":
                fall = _cosine(2 * _num_cycles(config), steps - falling, steps)
            else:
                fall = _ramp(config.decay_type, falling, steps)
            return _lift(jnp.where(falling > 0, fall, 0.0), config)
        case "constant" | "constant_with_warmup":
            return jnp.ones(step.shape)


def _num_cycles(config: OptimizerConfig) -> float:
    default = 1.0 if config.schedule == "cosine_with_restarts" else 0.5
    return default if config.num_cycles is None else config.num_cycles


def _cosine(half_waves: float, step: jax.Array, steps: int, *, restarts: bool = False) -> jax.Array:
    """Return `(1 + cos(pi * half_waves * step / steps)) / 2`, each half wave falling if `restarts`.

    A whole number of half waves is reduced in integers, and the cosine is written as the square of
    a sine that counts from its zero: so small values keep their digits.
    """
    rate = int(half_waves) if float(half_waves).is_integer() else half_waves
    phase = (rate * step) % (steps if restarts else 2 * steps)
    return jnp.square(jnp.sin((steps - phase) / steps * (math.pi / 2)))


def _ramp(kind: Ramp, step: jax.Array, steps: int) -> jax.Array:
    """Return x, (1 - cos(pi * x)) / 2 or 1 - sqrt(1 - x), where x = step / steps."""
    x = step / steps
    match kind:
        case "linear":
            return x
        case "cosine":
            return jnp.square(jnp.sin(x * (math.pi / 2)))
        case "1-sqrt":
            return x / (1 + jnp.sqrt((steps - step) / steps))


def _lift(multiplier: jax.Array, config: OptimizerConfig) -> jax.Array:
    """Map the multipliers [0, 1] to those from the minimal to the peak learning rate."""
    floor = config.min_learning_rate / config.learning_rate
    return floor + (1 - floor) * multiplier


def _check_schedule(config: OptimizerConfig, train_steps: int) -> None:
    if train_steps < 1:
        raise InputError(f"train_steps must be at least 1; got {train_steps}")
    kind, kinds, ramps = config.schedule, get_args(ScheduleName), get_args(Ramp)
    peak, warmup = config.learning_rate, config.warmup_steps
    require = functools.partial(_require, config)
    require("schedule", kind in kinds, f"must be one of {', '.join(kinds)}")
    require("learning_rate", 0 < peak < math.inf, "must be positive")
    in_run = 0 <= warmup <= train_steps
    require("warmup_steps", in_run, f"must lie in [0, train_steps {train_steps}]")
    no_warmup = kind != "constant" or warmup == 0
    require("warmup_steps", no_warmup, "must be 0 for constant; there is constant_with_warmup")
    # Phases of waves are counted in int32.
    countable = 0 < _num_cycles(config) * train_steps < 2**29
    require("num_cycles", countable, "must be positive and, times train_steps, below 2**29")
    require("timescale", config.timescale >= 0, "must be 0 or positive")
    below_peak = 0 <= config.min_learning_rate <= peak
    require("min_learning_rate", below_peak, f"must lie in [0, learning_rate {peak}]")
    if kind == "polynomial":
        require("power", 0 < config.power < math.inf, "must be positive")
        falls = 0 <= config.end_learning_rate < peak
        require("end_learning_rate", falls, f"must lie in [0, learning_rate {peak})")
    if kind == "warmup_stable_decay":
        fits = 1 <= config.decay_steps <= train_steps - warmup
        rule = f"must lie in [1, train_steps - warmup_steps = {train_steps - warmup}]"
        require("decay_steps", fits, rule)
        require("warmup_type", config.warmup_type in ramps, f"must be one of {', '.join(ramps)}")
        require("decay_type", config.decay_type in ramps, f"must be one of {', '.join(ramps)}")


def _require(config: OptimizerConfig, field: str, holds: bool, rule: str) -> None:
    if not holds:
        raise InputError(f"optimizer.{field} {rule}; got {getattr(config, field)!r}")

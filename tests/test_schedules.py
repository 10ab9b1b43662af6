"""Learning-rate schedules against transformers (live), published values and google's formula."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import get_scheduler

from bertjax.optimizer import (
    learning_rate_schedule,
)
from bertjax.run_config import OptimizerConfig

LAYERS, HIDDEN, HEADS, HEAD, MLP, VOCAB = 3, 8, 2, 4, 12, 20
RAMPS = ("linear", "cosine", "1-sqrt")
WSD = {"schedule": "warmup_stable_decay", "decay_steps": 20}


def reference(config: OptimizerConfig, train_steps: int) -> Callable[[int], float]:
    """Return transformers' schedule of `config` as a function of the step."""
    peak, name = config.learning_rate, config.schedule
    cycles = {} if config.num_cycles is None else {"num_cycles": config.num_cycles}
    specific: dict[str, Any] = {
        "cosine": cycles,
        "cosine_with_restarts": cycles,
        "polynomial": {"lr_end": config.end_learning_rate, "power": config.power},
        "inverse_sqrt": {"timescale": config.timescale or None},
        "cosine_with_min_lr": {"min_lr": config.min_learning_rate, **cycles},
        "warmup_stable_decay": {
            "num_decay_steps": config.decay_steps,
            "warmup_type": config.warmup_type,
            "decay_type": config.decay_type,
            "min_lr_ratio": config.min_learning_rate / peak,
            **cycles,
        },
    }.get(name, {})
    parameter = torch.nn.Parameter(torch.zeros(1))
    scheduler = get_scheduler(
        name,
        torch.optim.SGD([parameter], lr=peak),
        num_warmup_steps=config.warmup_steps,
        num_training_steps=train_steps,
        scheduler_specific_kwargs=specific,
    )
    return lambda step: peak * scheduler.lr_lambdas[0](step)


def setting(schedule: Any, **fields: Any) -> OptimizerConfig:
    return OptimizerConfig(learning_rate=1e-4, schedule=schedule, **fields)


def schedule_settings() -> Iterator[OptimizerConfig]:
    """Yield several settings of every schedule for a run of 100 steps."""
    wsd, floored = "warmup_stable_decay", {"min_learning_rate": 1e-5}
    yield setting("constant")
    for warmup in ({}, {"warmup_steps": 7}, {"warmup_steps": 100}):
        for name in ("linear", "cosine", "cosine_with_restarts", "constant_with_warmup"):
            yield setting(name, **warmup)
    for warmup in ({}, {"warmup_steps": 7}):
        for cycles in (1.0, 1.5, 20.5):
            yield setting("cosine", num_cycles=cycles, **warmup)
        # With other large numbers transformers' own rounding misses some of the restarts.
        for cycles in (2, 64):
            yield setting("cosine_with_restarts", num_cycles=cycles, **warmup)
        for power in (0.5, 1.0, 2.0, 3.7):
            yield setting("polynomial", power=power, **warmup)
        for end in (0.0, 2e-5):
            yield setting("polynomial", end_learning_rate=end, power=2.0, **warmup)
        for timescale in (0, 3, 50_000):
            yield setting("inverse_sqrt", timescale=timescale, **warmup)
        yield setting("cosine_with_min_lr", **warmup)
        yield setting("cosine_with_min_lr", **floored, **warmup)
        yield setting("cosine_with_min_lr", num_cycles=2.0, **floored, **warmup)
        for rise in RAMPS:
            for fall in RAMPS:
                types = {"warmup_type": rise, "decay_type": fall}
                yield setting(wsd, decay_steps=20, **types, **warmup)
            yield setting(wsd, decay_steps=93, warmup_type=rise, **floored, **warmup)
            yield setting(wsd, decay_steps=30, decay_type=rise, **floored, **warmup)
        yield setting(wsd, decay_steps=30, num_cycles=1.0, **floored, **warmup)


@pytest.mark.parametrize("config", list(schedule_settings()), ids=lambda c: c.schedule)
def test_schedule_is_that_of_transformers(config: OptimizerConfig) -> None:
    """Every step of a short run, and a run of a million steps around its turns and at random."""
    rng = np.random.default_rng(2)
    for scale in (1, 10_000):
        warmup, decay, total = config.warmup_steps * scale, config.decay_steps * scale, 100 * scale
        config = dataclasses.replace(config, warmup_steps=warmup, decay_steps=decay)
        turns = np.array([0, warmup, total - decay, total])[:, None] + np.arange(-100, 160)
        steps = np.maximum(0, np.append(turns, rng.integers(0, 2 * total, 500)))
        got = jax.jit(learning_rate_schedule(config, total))(jnp.asarray(steps, jnp.int32))
        expected = reference(config, total)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(
            np.asarray(got, np.float64),
            [expected(step) for step in steps.tolist()],
            rtol=1e-6,
            # transformers' 1 + cos(...) is itself off by an ulp of 1 near its zeros.
            atol=4e-16 * config.learning_rate,
        )


@pytest.mark.parametrize("num_cycles", [0.4, 0.7, 2.3])
@pytest.mark.parametrize("schedule", ["cosine", "cosine_with_min_lr"])
def test_cosine_with_broken_cycles(schedule: Any, num_cycles: float) -> None:
    """A number of cycles that is no multiple of 1/2 is exact to 1e-6 of the peak."""
    config = setting(schedule, warmup_steps=1000, num_cycles=num_cycles)
    steps = np.random.default_rng(3).integers(0, 10**6, 2000)
    got = learning_rate_schedule(config, 10**6)(jnp.asarray(steps))
    expected = reference(config, 10**6)
    np.testing.assert_allclose(got, [expected(s) for s in steps.tolist()], rtol=0, atol=1e-10)


# The expectations of transformers' own tests/optimization/test_optimization.py.
COPIED = [
    ({"schedule": "constant_with_warmup", "warmup_steps": 4}, [0, 2.5, 5, 7.5] + [10] * 6),
    (
        {"schedule": "linear", "warmup_steps": 2},
        [0, 5, 10, 8.75, 7.5, 6.25, 5, 3.75, 2.5, 1.25],
    ),
    (
        {"schedule": "cosine", "warmup_steps": 2},
        [0, 5, 10, 9.61, 8.53, 6.91, 5, 3.08, 1.46, 0.38],
    ),
    (
        {"schedule": "cosine_with_restarts", "warmup_steps": 2, "num_cycles": 2},
        [0, 5, 10, 8.53, 5, 1.46, 10, 8.53, 5, 1.46],
    ),
    (
        {"schedule": "polynomial", "warmup_steps": 2, "power": 2.0},
        [0, 5, 10, 7.656, 5.625, 3.906, 2.5, 1.406, 0.625, 0.156],
    ),
]


@pytest.mark.parametrize(("fields", "expected"), COPIED)
def test_schedule_has_the_published_values(fields: Any, expected: list[float]) -> None:
    schedule = learning_rate_schedule(OptimizerConfig(learning_rate=10.0, **fields), 10)
    np.testing.assert_allclose([schedule(step) for step in range(10)], expected, atol=0.01)


@pytest.mark.parametrize(("warmup", "train_steps"), [(0, 40), (10, 100), (9_999, 1_000_000)])
def test_google_linear_counts_its_decay_from_step_0(warmup: int, train_steps: int) -> None:
    config = OptimizerConfig(learning_rate=3e-4, schedule="google_linear", warmup_steps=warmup)
    steps = np.unique(np.r_[0:50, warmup - 5 : warmup + 5, train_steps - 50 : train_steps + 50])
    steps = steps[steps >= 0]
    decayed = 3e-4 * (1 - np.minimum(steps, train_steps).astype(np.float64) / train_steps)
    expected = np.where(steps < warmup, 3e-4 * steps / max(1, warmup), decayed)
    got = learning_rate_schedule(config, train_steps)(jnp.asarray(steps))
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-20)

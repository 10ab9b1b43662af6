"""The training loop: everything that happens around the step."""

import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, Self

import jax
import numpy as np
from jax.experimental import multihost_utils

from bertjax.checkpoint import Checkpoints
from bertjax.report import Report, say
from bertjax.train import Batch, TrainState
from bertjax.unstacked import one_by_one, together


class StoppedBySignalError(Exception):
    """The run was asked to stop, has saved, and can be started again (exit code 75)."""


class NonFiniteError(RuntimeError):
    """A loss or gradient was not finite more often than the run allows."""


class StopSignal:
    """Turns SIGTERM and the first Ctrl-C into a wish to stop after the step at hand.

    With several hosts, JAX's coordination service takes SIGTERM and has all hosts stop after the
    same step.
    """

    def __init__(self) -> None:
        self._asked = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True

    def asked(self, step: int) -> bool:
        """Whether all hosts should stop after this step."""
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self._asked


class Window:
    """Means of the metrics since the last line of the log, and the rate.

    Args:
      rates: what one step amounts to: sequences, tokens, FLOPs.
      peak_flops: the devices' peak in FLOP/s, where known.
      skip_nonfinite: steps in a row that may be non-finite.
    """

    def __init__(
        self, rates: dict[str, float], peak_flops: float | None, skip_nonfinite: int
    ) -> None:
        self._rates = rates
        self._peak = peak_flops
        self._allowed = skip_nonfinite
        self._in_a_row = 0
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self._restart()

    def _restart(self) -> None:
        self._values: list[dict[str, float]] = []
        self._skipped = 0
        self._steps = 0
        self._start = time.perf_counter()

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Take in a step that was dispatched, and look at the one before, which is done."""
        self.settle()
        self._pending = (step, metrics)

    def settle(self) -> None:
        """Wait for the last step and check it.

        Raises:
          NonFiniteError: with the number of the step.
        """
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        finite = bool(values.pop("finite"))
        self._steps += 1
        if finite:
            self._in_a_row = 0
            self._values.append(values)
            return
        self._in_a_row += 1
        self._skipped += 1
        told = ", ".join(f"{name} {value}" for name, value in values.items())
        if self._in_a_row > self._allowed:
            raise NonFiniteError(
                f"step {step}: loss or gradient is not finite ({told}); lower the learning "
                "rate, or allow a few such steps with --skip-nonfinite"
            )
        say(f"step {step}: loss or gradient is not finite, skipped")

    def close(self, learning_rate: float) -> dict[str, float]:
        """Return the means since the last call, with rates, and start a new window."""
        self.settle()
        seconds = max(time.perf_counter() - self._start, 1e-9)
        names = self._values[0] if self._values else {}
        values = {name: float(np.mean([v[name] for v in self._values])) for name in names}
        values.setdefault("loss", float("nan"))
        values["learning_rate"] = learning_rate
        for name in self._rates.keys() - {"flops"}:
            values[f"{name}_per_second"] = self._rates[name] * self._steps / seconds
        if self._peak is not None:
            values["mfu"] = self._rates["flops"] * self._steps / seconds / self._peak
        if self._skipped:
            values["skipped_steps"] = self._skipped
        self._restart()
        return values

    def pause(self) -> float:
        """Settle, and return the time from which a pause counts."""
        self.settle()
        return time.perf_counter()

    def resume(self, paused: float) -> None:
        """Leave the time since `paused` out of the rates."""
        self._start += time.perf_counter() - paused


def fit(
    state: TrainState,
    step_function: Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]],
    batches: Iterator[Batch],
    *,
    start: int,
    steps: int,
    window: Window,
    learning_rate: Callable[[int], float],
    log_every: int,
    eval_every: int,
    save_every: int,
    evaluate: Callable[[TrainState], dict[str, float]],
    checkpoints: Checkpoints,
    position: Callable[[int], dict[str, Any]],
    report: Report,
    layers_apart: bool,
    enough: Callable[[], bool] = lambda: False,
) -> TrainState:
    """Train from step `start` to step `steps` and save the end.

    Args:
      state: the state after `start` steps; it is consumed.
      step_function: from `train.make_train_step`.
      batches: global batches, the first one that of step `start`.
      start: steps done.
      steps: steps of the whole run.
      window: gathers the metrics.
      learning_rate: rate of a step.
      log_every: steps between lines of the log.
      eval_every: steps between evaluations, 0 for none.
      save_every: steps between checkpoints.
      evaluate: values of the held-out split; reads step and parameters of the state alone.
      checkpoints: where the state is saved.
      position: where the data stands after a number of steps.
      report: where the metrics go.
      layers_apart: whether steps are taken on the state with its layers one by one; what is
        evaluated, saved and returned is stacked again.
      enough: asked after each evaluation, whether to end the run there.

    Raises:
      StoppedBySignalError: after saving.
      NonFiniteError: see `Window`.
      InputError: the disk is full.
    """
    if layers_apart:
        state = one_by_one(state)
    with StopSignal() as stop:
        for step in range(start + 1, steps + 1):
            state, metrics = step_function(state, next(batches))
            window.add(step, metrics)
            report.advance()
            if step % log_every == 0 or step == steps:
                report.write(step, "train", window.close(learning_rate(step - 1)))
            if eval_every and step % eval_every == 0 and step < steps:
                paused = window.pause()
                whole = state.replace(params=together(state.params))  # no moments: none are read
                report.write(step, "eval", evaluate(whole))
                window.resume(paused)
            ending = step == steps or enough()
            stopping = stop.asked(step)
            if step % save_every == 0 or ending or stopping:
                paused = window.pause()
                checkpoints.save(step, together(state), position(step))
                window.resume(paused)
            if ending:
                break
            if stopping:
                checkpoints.wait()
                raise StoppedBySignalError(f"stopped by a signal after saving step {step}")
    checkpoints.wait()
    return together(state)

"""Checkpoints of a run: Orbax, written in the background, verified when read, on any mesh."""

import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from bertjax.errors import InputError
from bertjax.run_config import CheckpointConfig

_LOG = logging.getLogger(__name__)


@jax.jit
def fingerprint(state: Any) -> jax.Array:
    """Return one uint32 for each leaf, which changes with any bit of it and with no mesh.

    Each element's bits are multiplied by an odd number of its own position and added modulo 2**32:
    a sum that does not depend on the order, so on the sharding, and that no change of a single
    element leaves alone.
    """

    def leaf(x: jax.Array) -> jax.Array:
        x = jnp.atleast_1d(x)
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
        weight = jnp.ones_like(bits)
        for axis in range(x.ndim):
            weight = weight * jnp.uint32(2654435761) + jax.lax.broadcasted_iota(
                jnp.uint32, x.shape, axis
            )
        return jnp.sum(bits * (2 * weight + 1), dtype=jnp.uint32)

    return jnp.stack([leaf(x) for x in jax.tree.leaves(state)])


class Checkpoints:
    """The checkpoints of one run directory."""

    def __init__(self, directory: Path, config: CheckpointConfig) -> None:
        self._directory = directory
        options = ocp.CheckpointManagerOptions(
            max_to_keep=config.keep,
            step_format_fixed_length=8,
            enable_async_checkpointing=True,
        )
        try:
            self._manager = ocp.CheckpointManager(directory.resolve(), options=options)
        except OSError as error:
            raise InputError(f"{directory}: cannot be written ({error.strerror})") from error

    def save(self, step: int, state: Any, position: dict[str, Any]) -> None:
        """Start writing the state; the arrays may be donated as soon as this returns.

        Args:
          step: optimizer steps done.
          state: the training state.
          position: where the data stands, and what else a restart needs (JSON).
        """
        if step in self._manager.all_steps():
            return
        meta = {"position": position, "fingerprint": np.asarray(fingerprint(state)).tolist()}
        if jax.default_backend() == "cpu":
            # Orbax would go on reading the very buffers that the next step overwrites.
            state = jax.tree.map(jnp.copy, state)
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
                ),
            )
        except Exception as error:
            raise self._save_error(error) from error

    def wait(self) -> None:
        """Return when everything is on disk; InputError where the disk refused."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._save_error(error) from error

    def close(self) -> None:
        """Finish writing and let go."""
        self.wait()
        self._manager.close()

    def latest_step(self) -> int | None:
        """Return the newest step there is, whole or not."""
        return self._manager.latest_step()

    def restore(self, abstract_state: Any) -> tuple[Any, dict[str, Any]] | None:
        """Read the newest checkpoint that is whole.

        Damaged ones (unreadable, or with another fingerprint than was written) are named in the log
        and moved aside.

        Args:
          abstract_state: the state as `jax.ShapeDtypeStruct`s with shardings: any mesh will do.

        Returns:
          The state and its position, or None where there is no checkpoint.

        Raises:
          InputError: there are checkpoints, all of them damaged.
        """
        damaged = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(abstract_state),
                        meta=ocp.args.JsonRestore(),
                    ),
                )
                meta = restored["meta"]
                if np.asarray(fingerprint(restored["state"])).tolist() != meta["fingerprint"]:
                    raise ValueError("its content is not what was written")
            except Exception as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                _LOG.warning("checkpoint of step %d is damaged (%s)", step, reason[:200])
                damaged.append(step)
                continue
            for bad in damaged:
                self._set_aside(bad)
            if damaged:
                self._manager.reload()
                _LOG.warning("going on from the checkpoint of step %d", step)
            return restored["state"], meta["position"]
        if damaged:
            raise InputError(
                f"{self._directory}: every checkpoint is damaged (steps {damaged}); "
                "remove the directory to start anew"
            )
        return None

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            path = self._directory / f"{step:08d}"
            path.rename(path.with_name(f"{path.name}.damaged"))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"set aside {step}")

    def _save_error(self, error: BaseException) -> Exception:
        """Tell a disk that is full or cannot be written from a fault of ours."""
        text = " ".join(str(e) for e in _chain(error))
        for mark, reason in (
            ("No space left", "no space left on the disk"),
            ("RESOURCE_EXHAUSTED", "no space left on the disk"),
            ("Permission denied", "not writable"),
            ("Read-only file system", "not writable"),
        ):
            if mark in text:
                last = max(self._manager.all_steps(), default=None)
                return InputError(
                    f"{self._directory}: checkpoint not saved, {reason}; the last good one is of "
                    f"step {last}. Make room and start again"
                )
        return RuntimeError(f"{self._directory}: checkpoint not saved ({error})")


def _chain(error: BaseException | None) -> list[BaseException]:
    """Return an exception and all that it was raised from."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain

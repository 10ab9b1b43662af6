"""Orbax directories: our own parameter tree, of `save_pretrained` or of a run's checkpoint."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from bertjax import run_dir
from bertjax.encoder_decoder_config import AnyConfig, config_at, config_from_directory
from bertjax.errors import InputError
from bertjax.pretrained import names
from bertjax.sharding import path_of

DIRECTORY = "params"


class OrbaxTensors:
    """Parameters of an Orbax directory, one layer's tensor at a time."""

    def __init__(self, directory: Path, config: AnyConfig | None, checkpointer: Any) -> None:
        self._directory = directory
        self._checkpointer = checkpointer
        try:
            tree = checkpointer.metadata(directory).item_metadata.tree
        except Exception as error:
            raise self._damaged(error) from error
        self._prefix = [DIRECTORY] if DIRECTORY in tree else []  # a run's checkpoint holds more
        self._tensors: dict[str, tuple[str, names.HfTensor]] = {}
        for key_path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            path = path_of(key_path)
            if self._prefix and not path.startswith(f"{DIRECTORY}/"):
                continue
            path = path.removeprefix(f"{DIRECTORY}/")
            if path.rpartition("/")[2] not in names.LEAVES:
                raise InputError(f"{directory}: {path} is not a parameter of a BERT")
            for tensor in names.hf_tensors(path, leaf.shape, config_at(config, path)):
                self._tensors[tensor.name] = path, tensor
        self._last: tuple[str, np.ndarray] | None = None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor, by name."""
        return {name: tensor.shape for name, (_, tensor) in self._tensors.items()}

    def read(self, name: str) -> np.ndarray:
        """Return one tensor in the type of the checkpoint."""
        path, tensor = self._tensors[name]
        if self._last is None or self._last[0] != path:  # all layers of a parameter lie together
            self._last = None
            self._last = path, self._restore(path)
        whole = self._last[1]
        if tensor.layer is None or tensor.layer == len(whole) - 1:
            self._last = None  # nothing of it is left to be read
        return tensor.encode(whole)

    def _restore(self, path: str) -> np.ndarray:
        item: Any = 0
        for key in reversed([*self._prefix, *path.split("/")]):
            item = {key: item}
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        arguments = ocp.args.PyTreeRestore(item, restore_args=as_numpy, partial_restore=True)
        try:
            return jax.tree.leaves(self._checkpointer.restore(self._directory, args=arguments))[0]
        except Exception as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> InputError:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return InputError(f"{self._directory}: not a whole Orbax checkpoint ({reason[:200]})")


@contextmanager
def open_tensors(path: Path) -> Iterator[OrbaxTensors]:
    """Open the parameters beside an Orbax `_METADATA` file.

    Raises:
      InputError: damaged, or no tree of a BERT.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports every file it reads
    with ocp.PyTreeCheckpointer() as checkpointer:
        yield OrbaxTensors(path.parent.resolve(), _config(path), checkpointer)


def _config(path: Path) -> AnyConfig | None:
    """Return the config that tells which heads are pruned: of the model, or of the run."""
    above = path.resolve().parents
    if (above[1] / "config.json").is_file():
        return config_from_directory(above[1])
    if above[2].name == run_dir.CHECKPOINTS and (above[3] / run_dir.CONFIG).is_file():
        return run_dir.model_config(above[3])
    return None


def write(directory: Path, params: Any) -> None:
    """Write a parameter tree into `directory`/params."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((directory / DIRECTORY).resolve(), params)

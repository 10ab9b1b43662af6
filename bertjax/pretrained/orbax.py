"""Orbax directories: our own parameter tree, of `save_pretrained` or of a run's checkpoint."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from bertjax import run_dir
from bertjax.encoder_decoder_config import AnyConfig, config_at, config_from_directory
from bertjax.errors import InputError
from bertjax.output_files import as_os_error
from bertjax.pretrained import names
from bertjax.pretrained.reader import check_float
from bertjax.sharding import path_of

DIRECTORY = "params"

_QUIET = 0.5  # seconds


class OrbaxTensors:
    """Parameters of an Orbax directory, one layer's tensor at a time."""

    def __init__(self, directory: Path, config: AnyConfig | None) -> None:
        self._directory = directory
        try:
            with ocp.PyTreeCheckpointer() as checkpointer:
                self._metadata = checkpointer.metadata(directory).item_metadata
            tree = self._metadata.tree
        except Exception as error:
            raise self._damaged(error) from error
        of_run = DIRECTORY in tree  # a run's checkpoint holds more
        self._tensors: dict[str, tuple[str, names.HfTensor]] = {}
        self._types: dict[str, str] = {}
        for key_path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            path = path_of(key_path)
            if of_run and not path.startswith(f"{DIRECTORY}/"):
                continue
            path = path.removeprefix(f"{DIRECTORY}/")
            if path.rpartition("/")[2] not in names.LEAVES:
                raise InputError(f"{directory}: {path} is not a parameter of a BERT")
            self._types[leaf.name] = str(leaf.dtype)
            for tensor in names.hf_tensors(path, leaf.shape, config_at(config, path)):
                self._tensors[tensor.name] = leaf.name, tensor
        self._last: tuple[str, np.ndarray] | None = None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor, by name."""
        return {name: tensor.shape for name, (_, tensor) in self._tensors.items()}

    def check_type(self, name: str) -> None:
        """Check that a tensor's numbers are weights."""
        parameter, _ = self._tensors[name]
        check_float(self._directory, parameter, self._types[parameter])

    def read(self, name: str) -> np.ndarray:
        """Return one tensor in the type of the checkpoint."""
        parameter, tensor = self._tensors[name]
        if self._last is None or self._last[0] != parameter:  # all layers of one lie together
            self._last = None
            self._last = parameter, self._restore(parameter)
        whole = self._last[1]
        if tensor.layer is None or tensor.layer == len(whole) - 1:
            self._last = None  # nothing of it is left to be read
        return tensor.encode(whole)

    def _restore(self, parameter: str) -> np.ndarray:
        """Return a whole parameter, by Orbax's name of it.

        Orbax itself would hold the file's bytes, a decoded copy and the result at once, and the
        allocators of its threads keep much of that. Here the file is mapped and decoded straight
        into the result.
        """
        store: dict[str, Any] = {"driver": "file", "path": f"{self._directory}/{parameter}/"}
        if (self._directory / "manifest.ocdbt").is_file():  # all parameters in the same files
            files = {"driver": "file", "path": f"{self._directory}/"}
            store = {"driver": "ocdbt", "base": files, "path": f"{parameter}/"}
        spec = {
            "driver": "zarr3" if self._metadata.use_zarr3 else "zarr",
            "kvstore": store,
            "fill_missing_data_reads": False,  # they are damage, not zeros
            "context": {"file_io_mode": {"mode": "memmap"}},
        }
        try:
            stored = tensorstore.open(spec, read=True).result()
            array = np.empty(stored.shape, stored.dtype.numpy_dtype)
            tensorstore.array(array, copy=False, write=True).write(stored).result()
        except Exception as error:
            raise self._damaged(error) from error
        return array

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
    yield OrbaxTensors(path.parent.resolve(), _config(path))


def _config(path: Path) -> AnyConfig | None:
    """Return the config that tells which heads are pruned: of the model, or of the run."""
    above = path.resolve().parents
    if (above[1] / "config.json").is_file():
        return config_from_directory(above[1])
    if above[2].name == run_dir.CHECKPOINTS and (above[3] / run_dir.CONFIG).is_file():
        return run_dir.model_config(above[3])
    return None


def write(directory: Path, params: Any) -> None:
    """Write a parameter tree into `directory`/params.

    Uncompressed: zstd takes less than a tenth off weights, and reading takes more than twice as
    long.

    Raises:
      OSError: it cannot be written.
    """
    logger = logging.getLogger("absl")  # where Orbax's threads tell what is raised here, too
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with ocp.PyTreeCheckpointer(use_compression=False) as checkpointer:
            checkpointer.save((directory / DIRECTORY).resolve(), params)
    except Exception as error:  # the libraries under Orbax raise all kinds
        _wait_for_writers(directory)
        raise as_os_error(error) from error
    finally:
        logger.setLevel(level)


def _wait_for_writers(directory: Path) -> None:
    """Wait until nothing changes below a directory.

    Orbax gives up at the first error; TensorStore's threads write on, and would make the
    directories again that the caller removes. Nothing tells when they end.
    """
    seen = None
    while (now := list(os.walk(directory))) != seen:
        seen = now
        time.sleep(_QUIET)

"""Reading and writing safetensors files, single or sharded, without torch."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bertjax.errors import InputError

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class TensorFiles:
    """Lazily read tensors by name; a tensor is read when asked for, and not kept."""

    def __init__(self, handles: Mapping[str, Any], paths: Mapping[str, Path]) -> None:
        self._handles = handles
        self._paths = paths

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor, by name."""
        return {n: tuple(h.get_slice(n).get_shape()) for n, h in self._handles.items()}

    def read(self, name: str) -> np.ndarray:
        """Return a tensor as float32 numpy."""
        try:
            return np.asarray(self._handles[name].get_tensor(name), dtype=np.float32)
        except SafetensorError as error:
            raise InputError(f"{self._paths[name]}: tensor {name}: {error}") from error


@contextmanager
def open_tensors(source: Path) -> Iterator[TensorFiles]:
    """Open the weights of a model directory, or one .safetensors file.

    Raises:
      InputError: no weights there, a damaged file, a shard missing.
    """
    with ExitStack() as stack:
        handles: dict[str, Any] = {}
        paths: dict[str, Path] = {}
        for path in _files(source):
            try:
                handle = stack.enter_context(safe_open(path, framework="numpy"))
            except (SafetensorError, OSError) as error:
                raise InputError(f"{path}: not a whole safetensors file ({error})") from error
            for name in handle.keys():  # noqa: SIM118 (the handle is no mapping)
                handles[name] = handle
                paths[name] = path
        yield TensorFiles(handles, paths)


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if (source / INDEX).is_file():
        try:
            shards = sorted(set(json.loads((source / INDEX).read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{source / INDEX}: is not a safetensors index ({error})") from error
        missing = [shard for shard in shards if not (source / shard).is_file()]
        if missing:
            raise InputError(f"{source / INDEX}: names shards that are not there: {missing}")
        return [source / shard for shard in shards]
    if (source / FILE).is_file():
        return [source / FILE]
    raise InputError(f"{source}: holds no {FILE} and no {INDEX}")


def write(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write tensors as one file that transformers loads."""
    save_file(tensors, path, metadata={"format": "pt"})

"""Safetensors files, single or sharded, without torch."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bertjax.errors import InputError
from bertjax.output_files import as_os_error
from bertjax.pretrained import shards
from bertjax.pretrained.reader import check_float

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"

# The library's names of types -> numpy's.
_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


class TensorFiles:
    """Lazily read tensors by name; see `reader.TensorReader`."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._types: dict[str, str] = {}
        for path in paths:
            try:
                with safe_open(path, framework="numpy") as file:
                    for name in file.keys():  # noqa: SIM118 (the file is no mapping)
                        self._paths[name] = path
                        tensor = file.get_slice(name)
                        self._shapes[name] = tuple(tensor.get_shape())
                        self._types[name] = tensor.get_dtype()
            except (SafetensorError, OSError) as error:
                raise InputError(f"{path}: not a whole safetensors file ({error})") from error

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor, by name."""
        return dict(self._shapes)

    def check_type(self, name: str) -> None:
        """Check that a tensor's numbers are weights."""
        kind = self._types[name]
        check_float(self._paths[name], name, _TYPES.get(kind, kind))

    def read(self, name: str) -> np.ndarray:
        """Return a tensor in the type of the file."""
        self.check_type(name)  # the library has no numpy arrays of many others
        # Opened anew each time: the library maps the file, and what was read of it would stay in
        # memory for as long as it is open.
        path = self._paths[name]
        try:
            with safe_open(path, framework="numpy") as file:
                return file.get_tensor(name)
        except (SafetensorError, OSError, TypeError) as error:
            raise InputError(f"{path}: tensor {name}: {error}") from error


@contextmanager
def open_tensors(path: Path) -> Iterator[TensorFiles]:
    """Open a .safetensors file, or the index of several.

    Raises:
      InputError: a damaged file, a shard missing.
    """
    sharded = path.name.endswith(".json")
    yield TensorFiles(sorted(set(shards.read_index(path).values())) if sharded else [path])


def write(directory: Path, tensors: Mapping[str, np.ndarray], max_shard_bytes: int) -> None:
    """Write tensors as one file that transformers loads, or as shards with their index."""
    weight_map: dict[str, str] = {}
    for file, group in shards.split(tensors, FILE, max_shard_bytes):
        write_file(directory / file, group)
        weight_map |= dict.fromkeys(group, file)
    if set(weight_map.values()) != {FILE}:
        size = sum(tensor.nbytes for tensor in tensors.values())
        shards.write_index(directory / INDEX, weight_map, size)


def write_file(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write one file.

    Raises:
      OSError: it cannot be written.
    """
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise as_os_error(error) from error

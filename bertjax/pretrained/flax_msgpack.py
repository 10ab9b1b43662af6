"""`flax_model.msgpack`, single or sharded, as transformers 4 wrote it for its Flax models.

A file is one msgpack value: nested maps of names down to arrays, each array an extension that holds
(shape, name of the type, bytes), as `flax.serialization` makes it. Reading walks the maps and skips
the arrays' bytes, so that opening a file costs next to nothing.
"""

import dataclasses
import logging
import math
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import msgpack
import numpy as np

from bertjax.errors import InputError
from bertjax.pretrained import names, shards
from bertjax.pretrained.reader import check_float

_LOG = logging.getLogger(__name__)

FILE = "flax_model.msgpack"
INDEX = "flax_model.msgpack.index.json"
FILES = (FILE, INDEX)

_ARRAY, _SCALAR = 1, 3  # flax's extension types for arrays
_DTYPES = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    **{name: np.dtype(name) for name in ("float16", "float32", "float64", "bool")},
    **{name: np.dtype(name) for name in ("int8", "int16", "int32", "int64")},
    **{name: np.dtype(name) for name in ("uint8", "uint16", "uint32", "uint64")},
}
# flax cuts larger arrays into pieces of this many bytes, under this key.
_CHUNK_BYTES = 2**30
_CHUNKED = "__msgpack_chunked_array__"
_DEEPEST = 64
_MOST_DIMENSIONS = 8

# First byte of a msgpack value -> its kind, and how its value or its length is encoded.
_FORMS = {
    **dict.fromkeys((0xC0, 0xC2, 0xC3), ("scalar", "")),
    **{0xC4 + i: ("bytes", f">{form}") for i, form in enumerate("BHI")},
    **{0xC7 + i: ("extension", f">{form}") for i, form in enumerate("BHI")},
    **{0xCA + i: ("scalar", f">{form}") for i, form in enumerate("fdBHIQbhiq")},
    **{0xD9 + i: ("text", f">{form}") for i, form in enumerate("BHI")},
    **{0xDC + i: ("array", f">{form}") for i, form in enumerate("HI")},
    **{0xDE + i: ("map", f">{form}") for i, form in enumerate("HI")},
}
_FIXED_EXTENSIONS = {0xD4 + i: 2**i for i in range(5)}


@dataclasses.dataclass(frozen=True)
class _Array:
    """An array in the file: its bytes are those of its parts, (offset, size), in a row."""

    shape: tuple[int, ...]
    dtype: np.dtype
    parts: tuple[tuple[int, int], ...]


class _Walk:
    """One file, read from its start to its end but for the bytes of its arrays."""

    def __init__(self, path: Path, file: BufferedReader) -> None:
        self._path = path
        self._file = file
        self._length = file.seek(0, os.SEEK_END)

    def tree(self) -> dict[str, Any]:
        """Return the file's nested dicts, with an `_Array` for each array.

        Raises:
          InputError: the file is damaged, or no such tree.
        """
        self._file.seek(0)
        tree = self._value(0)
        if not isinstance(tree, dict):
            raise self._fault("is not a file of a Flax model")
        if self._file.tell() != self._length:
            raise self._fault("damaged: more follows its end")
        return tree

    def _value(self, depth: int) -> Any:
        kind, value = self._head()
        if kind == "map" and depth < _DEEPEST:
            tree = {self._text(): self._value(depth + 1) for _ in range(value)}
            return self._joined(tree) if _CHUNKED in tree else tree
        if kind == "extension":
            return self._array(value)
        if kind != "scalar":
            raise self._fault(f"holds {kind} where a Flax model has arrays by name")
        return value

    def _array(self, size: int) -> _Array:
        (code,) = self._take(1)
        end = self._file.tell() + size
        if code not in (_ARRAY, _SCALAR) or self._head() != ("array", 3):
            raise self._fault("holds something that is no array")
        kind, dimensions = self._head()
        if kind != "array" or dimensions > _MOST_DIMENSIONS:
            raise self._fault("damaged: an array has no shape")
        lengths = [self._head() for _ in range(dimensions)]
        shape = tuple(n for kind, n in lengths if kind == "scalar")
        dtype = _DTYPES.get(self._text())
        if dtype is None or len(shape) != dimensions or not _is_shape(shape):
            raise self._fault("holds an array of a type or shape that no model's weights have")
        kind, count = self._head()
        start = self._file.tell()
        if (kind, start + count) != ("bytes", end) or count != math.prod(shape) * dtype.itemsize:
            raise self._fault("damaged: an array's size is not that of its shape")
        self._ensure(count)
        self._file.seek(end)
        return _Array(shape, dtype, ((start, count),))

    def _joined(self, tree: Mapping[str, Any]) -> _Array:
        """Return the one array that flax cut into pieces."""
        try:
            shape = tuple(tree["shape"][str(i)] for i in range(len(tree["shape"])))
            chunks = [tree["chunks"][str(i)] for i in range(len(tree["chunks"]))]
            parts = tuple(part for chunk in chunks for part in chunk.parts)
            (dtype,) = {chunk.dtype for chunk in chunks}
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise self._fault("damaged: an array's pieces do not fit together") from error
        size = sum(size for _, size in parts)
        if not _is_shape(shape) or size != math.prod(shape) * dtype.itemsize:
            raise self._fault("damaged: an array's pieces are not of its size")
        return _Array(shape, dtype, parts)

    def _text(self) -> str:
        kind, size = self._head()
        if kind not in ("text", "bytes"):
            raise self._fault(f"holds {kind} where a name belongs")
        try:
            return self._take(size).decode()
        except UnicodeDecodeError as error:
            raise self._fault("damaged: a name is no text") from error

    def _head(self) -> tuple[str, Any]:
        """Read up to a value's content: its kind, and the number itself or the content's length."""
        (first,) = self._take(1)
        if first < 0x80 or first >= 0xE0:
            return "scalar", first if first < 0x80 else first - 0x100
        if first < 0xC0:
            kind = "map" if first < 0x90 else "array" if first < 0xA0 else "text"
            return kind, first & (0x0F if first < 0xA0 else 0x1F)
        if first in _FIXED_EXTENSIONS:
            return "extension", _FIXED_EXTENSIONS[first]
        if first not in _FORMS:
            raise self._fault("is not msgpack")
        kind, form = _FORMS[first]
        values = struct.unpack(form, self._take(struct.calcsize(form)))
        return kind, values[0] if values else None

    def _take(self, size: int) -> bytes:
        self._ensure(size)
        return self._file.read(size)

    def _ensure(self, size: int) -> None:
        if self._file.tell() + size > self._length:
            raise self._fault("truncated")

    def _fault(self, message: str) -> InputError:
        return InputError(f"{self._path}: {message} (byte {self._file.tell()})")


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """An array, the file that it is in, and whether torch has it transposed."""

    path: Path
    file: BufferedReader
    array: _Array
    transposed: bool


class TensorFiles:
    """The tensors of one file or of several shards; see `reader.TensorReader`."""

    def __init__(self) -> None:
        self._tensors: dict[str, _Tensor] = {}

    def add(self, path: Path, file: BufferedReader) -> None:
        """Take in the tensors of one file.

        Raises:
          InputError: the file is damaged.
        """
        left_out = []
        for flax_name, leaf in _leaves(_Walk(path, file).tree(), ""):
            if isinstance(leaf, _Array):
                name, transposed = _torch_name(flax_name)
                self._tensors[name] = _Tensor(path, file, leaf, transposed)
            else:
                left_out.append(flax_name)
        if left_out:
            _LOG.info("%s: left out what is no array: %s", path, ", ".join(left_out))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor, by name."""
        return {
            name: tensor.array.shape[::-1] if tensor.transposed else tensor.array.shape
            for name, tensor in self._tensors.items()
        }

    def check_type(self, name: str) -> None:
        """Check that a tensor's numbers are weights."""
        tensor = self._tensors[name]
        check_float(tensor.path, name, tensor.array.dtype.name)

    def read(self, name: str) -> np.ndarray:
        """Return a tensor in the type of the file."""
        tensor = self._tensors[name]
        raw = np.empty(sum(size for _, size in tensor.array.parts), np.uint8)
        position = 0
        try:
            for offset, size in tensor.array.parts:
                tensor.file.seek(offset)
                position += tensor.file.readinto(raw[position : position + size].data)
        except OSError as error:
            raise InputError(f"{tensor.path}: tensor {name}: {error.strerror}") from error
        if position < raw.size:
            raise InputError(f"{tensor.path}: tensor {name}: truncated")
        array = raw.view(tensor.array.dtype).reshape(tensor.array.shape)
        return array.T if tensor.transposed else array


@contextmanager
def open_tensors(path: Path) -> Iterator[TensorFiles]:
    """Open a .msgpack file, or the index of several.

    Raises:
      InputError: a damaged file, a shard missing.
    """
    sharded = path.name.endswith(".json")
    paths = sorted(set(shards.read_index(path).values())) if sharded else [path]
    with ExitStack() as stack:
        files = TensorFiles()
        for part in paths:
            try:
                file = stack.enter_context(part.open("rb"))
            except OSError as error:
                raise InputError(f"{part}: cannot be read ({error.strerror})") from error
            files.add(part, file)
        yield files


def write(directory: Path, tensors: Mapping[str, np.ndarray], max_shard_bytes: int) -> None:
    """Write tensors as one file that transformers 4 loads, or as shards with their index.

    Raises:
      InputError: a tensor that no Flax model has.
    """
    tensors = dict(tensors)
    if names.DECODER_BIAS in tensors:  # Flax's decoder has no bias but the head's
        tensors[names.BIAS] = tensors.pop(names.DECODER_BIAS)
    arrays = dict(_flax_array(name, tensor) for name, tensor in tensors.items())
    weight_map: dict[str, str] = {}
    for file, group in shards.split(arrays, FILE, max_shard_bytes):
        with (directory / file).open("wb") as out:
            _pack(out, msgpack.Packer(), _nested(group))
        weight_map |= dict.fromkeys(group, file)
    if set(weight_map.values()) != {FILE}:
        size = sum(array.nbytes for array in arrays.values())
        shards.write_index(directory / INDEX, weight_map, size)


def _is_shape(lengths: tuple[Any, ...]) -> bool:
    return all(isinstance(length, int) and length >= 0 for length in lengths)


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value


def _nested(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *parents, leaf = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = array
    return tree


def _torch_name(flax_name: str) -> tuple[str, bool]:
    """Return a tensor's name in torch, and whether torch has it transposed."""
    leaf = flax_name.rpartition("/")[2]
    name = flax_name.removesuffix(leaf) + names.LEAVES.get(leaf, leaf)
    return name.replace("/", "."), leaf == "kernel"


def _flax_array(name: str, tensor: np.ndarray) -> tuple[str, np.ndarray]:
    """Return a torch tensor's name and array in a Flax model."""
    parent, _, leaf = name.rpartition(".")
    path = parent.replace(".", "/")
    if leaf == "bias" and tensor.ndim == 1:
        return f"{path}/bias", tensor
    if leaf == "weight" and tensor.ndim == 1:
        return f"{path}/scale", tensor
    if leaf == "weight" and tensor.ndim == 2:
        if path.endswith(("_embeddings", "_embedding")):
            return f"{path}/embedding", tensor
        return f"{path}/kernel", tensor.T
    raise InputError(f"{name} {list(tensor.shape)}: no Flax model has such a tensor")


def _pack(out: IO[bytes], packer: msgpack.Packer, tree: Mapping[str, Any]) -> None:
    out.write(packer.pack_map_header(len(tree)))
    for key, value in tree.items():
        out.write(packer.pack(key))
        if isinstance(value, dict):
            _pack(out, packer, value)
        elif not isinstance(value, np.ndarray):
            out.write(packer.pack(value))
        elif value.nbytes > _CHUNK_BYTES:
            _pack(out, packer, _cut(value))
        else:
            _pack_array(out, packer, value)


def _pack_array(out: IO[bytes], packer: msgpack.Packer, array: np.ndarray) -> None:
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    head = packer.pack_array_header(3) + packer.pack(array.shape) + packer.pack(array.dtype.name)
    head += _length(0xC4, raw.size)
    out.write(_length(0xC7, len(head) + raw.size) + bytes([_ARRAY]) + head)
    out.write(raw.data)


def _length(code: int, size: int) -> bytes:
    """Return a msgpack length, in the shortest of three forms whose codes follow each other."""
    width = 0 if size < 2**8 else 1 if size < 2**16 else 2
    return struct.pack(f">B{'BHI'[width]}", code + width, size)


def _cut(array: np.ndarray) -> dict[str, Any]:
    """Return the tree of pieces that flax makes of a large array."""
    step = max(1, _CHUNK_BYTES // array.dtype.itemsize)
    flat = array.reshape(-1)
    pieces = [flat[i : i + step] for i in range(0, flat.size, step)]
    return {
        _CHUNKED: True,
        "shape": {str(i): n for i, n in enumerate(array.shape)},
        "chunks": {str(i): piece for i, piece in enumerate(pieces)},
    }

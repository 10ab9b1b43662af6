"""TensorFlow's checkpoints ("tensor bundles"), read and written without TensorFlow.

`PREFIX.index` is a sorted table of the variables' types, shapes and places, as protocol buffers;
`PREFIX.data-00000-of-00001` and so on hold the bytes.
(TensorFlow: core/util/tensor_bundle/tensor_bundle.cc, core/protobuf/tensor_bundle.proto.)

Of TensorFlow's format a BERT's checkpoint uses little, which this module and `sstable` read to the
bit: the tests hold them against files that TensorFlow wrote. Nothing else in bertjax would use
TensorFlow, so that it would be a dependency for this alone.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import ml_dtypes
import numpy as np

from bertjax.errors import InputError
from bertjax.pretrained.shards import split
from bertjax.pretrained.sstable import (
    DamagedTableError,
    encode_varint,
    masked_crc32c,
    read_table,
    varint,
    write_table,
)

# TensorFlow's numbers of types (core/framework/types.proto), of those that are read and written.
_TYPES: dict[int, np.dtype] = {
    1: np.dtype("<f4"),
    2: np.dtype("<f8"),
    3: np.dtype("<i4"),
    9: np.dtype("<i8"),
    14: np.dtype(ml_dtypes.bfloat16),
    19: np.dtype("<f2"),
}
_TYPE_NUMBERS = {dtype: number for number, dtype in _TYPES.items()}

_HEADER = b""  # the key that the header stands under
_LITTLE_ENDIAN = 0
_VERSION = 1
_LARGEST_INDEX = 16 * 2**20  # bytes; BERT's is 20 thousand
_MOST_DIMENSIONS = 32
_MOST_ELEMENTS = 2**48


@dataclass(frozen=True, slots=True)
class Entry:
    """What the index says of one tensor.

    Attributes:
      dtype: TensorFlow's number of its type.
      shape: its shape.
      shard: number of the data file, from 0.
      offset: its first byte there.
      size: bytes.
      crc: masked CRC32C of the bytes.
    """

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int


class Bundle:
    """The tensors of an open bundle; one is read when asked for, and not kept."""

    def __init__(
        self, index: Path, entries: Mapping[str, Entry], files: Mapping[int, BufferedReader]
    ) -> None:
        self.index = index
        self.entries = entries
        self._files = files

    def type_of(self, name: str) -> str:
        """Return numpy's name of a tensor's type, TensorFlow's number where it is not read."""
        number = self.entries[name].dtype
        return _TYPES[number].name if number in _TYPES else f"{number} of TensorFlow"

    def read(self, name: str) -> np.ndarray:
        """Return a tensor in its own type.

        Raises:
          InputError: the file is damaged there, or the type is none of numbers.
        """
        entry = self.entries[name]
        file = self._files[entry.shard]
        where = f"{file.name}: tensor {name}"
        if entry.dtype not in _TYPES:
            raise InputError(f"{where} is of TensorFlow's type {entry.dtype}, which is not read")
        raw = np.empty(entry.size, np.uint8)
        file.seek(entry.offset)
        if file.readinto(raw.data) != entry.size or masked_crc32c(raw) != entry.crc:
            raise InputError(f"{where} does not fit its checksum: the file is damaged")
        return raw.view(_TYPES[entry.dtype]).reshape(entry.shape)


@contextmanager
def open_bundle(index: Path) -> Iterator[Bundle]:
    """Open a bundle by its `.index` file.

    Raises:
      InputError: the index is damaged or of another kind, or a data file is missing or truncated.
    """
    try:
        count, entries = _parse(_read_index(index))
    except DamagedTableError as error:
        raise InputError(
            f"{index}: cannot be read as the index of a TensorFlow checkpoint: {error}"
        ) from error
    with ExitStack() as stack:
        files: dict[int, BufferedReader] = {}
        for shard in sorted({entry.shard for entry in entries.values()}):
            path = _data_file(index, shard, count)
            try:
                files[shard] = stack.enter_context(path.open("rb"))
            except OSError as error:
                raise InputError(
                    f"{path}: is needed by {index.name}, but cannot be read ({error.strerror})"
                ) from error
        sizes = {shard: file.seek(0, 2) for shard, file in files.items()}
        for name, entry in entries.items():
            if entry.offset + entry.size > sizes[entry.shard]:
                raise InputError(
                    f"{files[entry.shard].name}: is truncated: tensor {name} ends at byte "
                    f"{entry.offset + entry.size}, the file at {sizes[entry.shard]}"
                )
        yield Bundle(index, entries, files)


def _data_file(index: Path, shard: int, count: int) -> Path:
    return index.with_name(f"{index.name.removesuffix('.index')}.data-{shard:05d}-of-{count:05d}")


def _read_index(index: Path) -> bytes:
    try:
        with index.open("rb") as file:
            if file.seek(0, 2) > _LARGEST_INDEX:
                raise InputError(f"{index}: is larger than an index of BERT's variables can be")
            file.seek(0)
            return file.read()
    except OSError as error:
        raise InputError(f"{index}: cannot be read ({error.strerror})") from error


def _parse(data: bytes) -> tuple[int, dict[str, Entry]]:
    """Return the number of data files and the tensors of an index."""
    pairs = read_table(data)
    header = pairs.pop(_HEADER, b"")
    numbers = _numbers(header)
    count = numbers.get(1, 0)
    if count == 0:
        raise DamagedTableError("it has no header (is it a V1 checkpoint?)")
    if numbers.get(2, _LITTLE_ENDIAN) != _LITTLE_ENDIAN:
        raise DamagedTableError("it was written on a big-endian machine")
    needed = max((_numbers(version).get(2, 0) for version in _messages(header, 3)), default=0)
    if needed > _VERSION:
        raise DamagedTableError(f"it needs a reader of version {needed}")
    entries = {}
    for key, value in pairs.items():
        name = key.decode("utf-8", "backslashreplace")
        if not name.isprintable():  # as are the keys of slices; messages stay on one line
            name = repr(name)[1:-1]
        try:
            entries[name] = _entry(value, count)
        except DamagedTableError as error:
            raise DamagedTableError(f"tensor {name}: {error}") from None
    return count, entries


def _entry(message: bytes, count: int) -> Entry:
    """Return what a BundleEntryProto says, or say why it cannot be so."""
    if _messages(message, 7):
        raise DamagedTableError("it is a partitioned variable, stored in slices")
    numbers = _numbers(message)
    dims = [dim for shape in _messages(message, 2) for dim in _messages(shape, 2)]
    entry = Entry(
        dtype=numbers.get(1, 0),
        shape=tuple(_numbers(dim).get(1, 0) for dim in dims),
        shard=numbers.get(3, 0),
        offset=numbers.get(4, 0),
        size=numbers.get(5, 0),
        crc=numbers.get(6, 0),
    )
    if entry.shard >= count:
        raise DamagedTableError(f"it is in data file {entry.shard}, of {count}")
    shape = entry.shape
    if len(shape) > _MOST_DIMENSIONS or math.prod(d or 1 for d in shape) > _MOST_ELEMENTS:
        raise DamagedTableError("its shape is impossible")
    dtype = _TYPES.get(entry.dtype)
    if dtype is not None and entry.size != math.prod(shape) * dtype.itemsize:
        raise DamagedTableError(f"it has {entry.size} bytes, which its shape {shape} has not")
    return entry


def _numbers(message: bytes) -> dict[int, int]:
    """Return the fields of a protocol buffer that are numbers, by their own numbers."""
    return {number: value for number, value in _fields(message) if isinstance(value, int)}


def _messages(message: bytes, number: int) -> list[bytes]:
    """Return the messages (or strings) that a protocol buffer has under a field's number."""
    return [value for n, value in _fields(message) if n == number and isinstance(value, bytes)]


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (number, value) of the fields of a protocol buffer.

    (https://protobuf.dev/programming-guides/encoding)
    """
    at = 0
    while at < len(message):
        tag, at = varint(message, at)
        kind = tag & 7
        value: int | bytes
        if kind == 0:
            value, at = varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, at = int.from_bytes(message[at : at + size], "little"), at + size
        elif kind == 2:
            size, at = varint(message, at)
            value, at = message[at : at + size], at + size
        else:
            raise DamagedTableError("a description is no protocol buffer")
        if at > len(message):
            raise DamagedTableError("a description is cut off")
        yield tag >> 3, value


def write_bundle(prefix: Path, tensors: Mapping[str, np.ndarray], max_shard_bytes: int) -> None:
    """Write `PREFIX.data-*` and then `PREFIX.index`, byte for byte as TensorFlow's Saver does.

    (But for the keys of the index block, which TensorFlow shortens.)

    Args:
      prefix: path of the checkpoint, without a suffix.
      tensors: variable name -> array of a type that TensorFlow stores.
      max_shard_bytes: bytes of tensors in one data file, unless a single one has more.

    Raises:
      InputError: an array of another type.
    """
    index = Path(f"{prefix}.index")
    ordered = {name: tensors[name] for name in sorted(tensors)}
    groups = [group for _, group in split(ordered, prefix.name, max_shard_bytes)]
    header = b"\x08" + encode_varint(len(groups)) + b"\x1a\x02\x08" + encode_varint(_VERSION)
    pairs = {_HEADER: header}
    for shard, group in enumerate(groups):
        offset = 0
        with _data_file(index, shard, len(groups)).open("wb") as file:
            for name, tensor in group.items():
                if tensor.dtype not in _TYPE_NUMBERS:
                    raise InputError(f"{index}: {name}: {tensor.dtype} arrays cannot be stored")
                raw = np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)
                entry = Entry(
                    dtype=_TYPE_NUMBERS[tensor.dtype],
                    shape=tensor.shape,
                    shard=shard,
                    offset=offset,
                    size=raw.size,
                    crc=masked_crc32c(raw),
                )
                pairs[name.encode()] = _encode(entry)
                file.write(raw.data)
                offset += raw.size
    index.write_bytes(write_table(pairs))


def _encode(entry: Entry) -> bytes:
    """Return an entry as a BundleEntryProto, which leaves out every zero."""
    dims = b""
    for dim in entry.shape:
        size = b"\x08" + encode_varint(dim) if dim else b""
        dims += b"\x12" + encode_varint(len(size)) + size
    message = b"\x08" + encode_varint(entry.dtype) + b"\x12" + encode_varint(len(dims)) + dims
    for tag, value in ((b"\x18", entry.shard), (b"\x20", entry.offset), (b"\x28", entry.size)):
        message += tag + encode_varint(value) if value else b""
    return message + (b"\x35" + entry.crc.to_bytes(4, "little") if entry.crc else b"")

"""`pytorch_model.bin`, single or sharded, in both containers of `torch.save`; torch is not needed.

Since torch 1.6 a file is a zip archive: NAME/data.pkl describes the tensors, NAME/data/KEY holds
the elements of one storage. Before, it was a row of pickles (magic number, version, machine, the
tensors, storage keys) and then the storages, each after its number of elements.
"""

import dataclasses
import io
import logging
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from bertjax.errors import InputError
from bertjax.pretrained import shards
from bertjax.pretrained.reader import check_float
from bertjax.pretrained.torch_pickle import Storage, Tensor, interpret

_LOG = logging.getLogger(__name__)

FILES = ("pytorch_model.bin", "pytorch_model.bin.index.json")

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_ZIP = b"PK\3\4"
_LOCAL_HEADER = 30  # bytes of a zip record's header before its name and its extra field
# A state dict needs some 300 bytes of pickle a tensor. The limit bounds what a bad file can cost.
_PICKLE_LIMIT = 2**23
_MOST_DIMENSIONS = 8
# Where training scripts put the model's state dict beside other things.
_NESTED = ("state_dict", "model_state_dict", "model", "module")


@dataclasses.dataclass(frozen=True)
class _Record:
    """A run of bytes in a file; `crc` is 0 where its writer computed none."""

    offset: int
    size: int
    crc: int = 0


class TorchFile:
    """The tensors of one file; a tensor is read when asked for, and not kept.

    Raises:
      InputError: damaged, of another kind, or more than plain tensors.
    """

    def __init__(self, path: Path, file: io.BufferedReader) -> None:
        self._path = path
        self._file = file
        self._length = file.seek(0, os.SEEK_END)
        self._byte_order = "<"
        file.seek(0)
        is_zip = file.read(4) == _ZIP
        tree, self._records = self._open_zip() if is_zip else self._open_legacy()
        self.tensors = _state_dict(tree, path)
        for name, tensor in self.tensors.items():
            self._check(name, tensor)

    def check_type(self, name: str) -> None:
        """Check that a tensor's numbers are weights."""
        check_float(self._path, name, self.tensors[name].storage.dtype)

    def read(self, name: str) -> np.ndarray:
        """Return a tensor in the type of the file."""
        tensor = self.tensors[name]
        dtype = _dtype(tensor.storage)
        record = self._records[tensor.storage.key]
        start = (tensor.storage.start + tensor.offset) * dtype.itemsize
        raw = self._bytes(record, start, _span(tensor) * dtype.itemsize, f"tensor {name}")
        elements = raw.view(f"{self._byte_order}u{dtype.itemsize}")
        elements = elements.astype(f"=u{dtype.itemsize}", copy=False).view(dtype)
        strides = [stride * dtype.itemsize for stride in tensor.strides]
        view = np.lib.stride_tricks.as_strided(elements, tensor.shape, strides)
        return np.asarray(view, order="C")

    def _open_zip(self) -> tuple[Any, dict[str, _Record]]:
        try:
            with zipfile.ZipFile(self._file) as archive:
                entries = {entry.filename: entry for entry in archive.infolist()}
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
            raise self._fault(f"not a whole zip archive ({error})") from error
        roots = [name.split("/")[0] for name in entries if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise self._fault("is a zip archive, but holds no data.pkl as torch.save writes it")
        records = {
            name.removeprefix(f"{roots[0]}/"): self._record(entry)
            for name, entry in entries.items()
        }
        if "byteorder" in records:
            order = self._bytes(records["byteorder"], 0, None, "record byteorder").tobytes()
            if order not in (b"little", b"big"):
                raise self._fault(f"its byte order is {order!r}, neither little nor big")
            self._byte_order = ">" if order == b"big" else "<"
        pickle = records["data.pkl"]
        if pickle.size > _PICKLE_LIMIT:
            raise self._fault(f"data.pkl has {pickle.size} bytes, far more than a state dict needs")
        data = self._bytes(pickle, 0, None, "record data.pkl").tobytes()
        tree, storages = self._interpret(io.BytesIO(data))
        return tree, {k: records[f"data/{k}"] for k in storages if f"data/{k}" in records}

    def _record(self, entry: zipfile.ZipInfo) -> _Record:
        """Find an entry's bytes, stored as they are: none costs more memory than it is long."""
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise self._fault(f"record {entry.filename} is compressed or encrypted; torch does not")
        self._file.seek(max(entry.header_offset, 0))
        header = self._file.read(_LOCAL_HEADER)
        if entry.header_offset < 0 or len(header) < _LOCAL_HEADER or header[:4] != _ZIP:
            raise self._fault(f"record {entry.filename} is not where the archive says")
        name_size, extra_size = struct.unpack("<HH", header[26:])
        offset = entry.header_offset + _LOCAL_HEADER + name_size + extra_size
        if offset + entry.file_size > self._length:
            raise self._fault(f"truncated: record {entry.filename} ends after the end of the file")
        return _Record(offset, entry.file_size, entry.CRC)

    def _open_legacy(self) -> tuple[Any, dict[str, _Record]]:
        self._file.seek(0)
        pickles = io.BytesIO(self._file.read(_PICKLE_LIMIT))
        try:
            magic, _ = interpret(pickles)
        except InputError:
            magic = None
        if magic != _MAGIC:
            raise self._fault("is not a file of torch.save")
        version, _ = self._interpret(pickles)
        if version != _VERSION:
            raise self._fault("is a file of torch.save of an unknown version")
        self._interpret(pickles)  # sizes of integers on the machine that wrote it
        tree, storages = self._interpret(pickles)
        keys, _ = self._interpret(pickles)
        if not isinstance(keys, list) or not all(
            isinstance(k, str) and k in storages for k in keys
        ):
            raise self._fault("damaged: its list of storages is not that of its tensors")
        records = {}
        position = pickles.tell()
        for key in keys:
            self._file.seek(position)
            count = int.from_bytes(self._file.read(8), "little", signed=True)
            records[key] = _Record(position + 8, max(count, 0) * _dtype(storages[key]).itemsize)
            position = records[key].offset + records[key].size
            if position > self._length:
                raise self._fault("truncated: its last tensors are missing")
        return tree, records

    def _interpret(self, pickle: io.BytesIO) -> tuple[Any, dict[str, Storage]]:
        try:
            return interpret(pickle)
        except InputError as error:
            raise self._fault(str(error)) from error

    def _check(self, name: str, tensor: Tensor) -> None:
        """Refuse a tensor that is not whole in the file, or larger than its part of it."""
        storage = tensor.storage
        record = self._records.get(storage.key)
        if record is None:
            raise self._fault(f"tensor {name}: its storage {storage.key!a} is not there")
        dimensions = len(tensor.shape)
        if (
            _dtype(storage).itemsize * (storage.start + storage.size) > record.size
            or dimensions != len(tensor.strides)
            or dimensions > _MOST_DIMENSIONS
            or tensor.offset + _span(tensor) > storage.size
            or math.prod(tensor.shape) > storage.size
        ):
            raise self._fault(f"tensor {name} does not lie within its storage")

    def _bytes(self, record: _Record, start: int, size: int | None, what: str) -> np.ndarray:
        """Return a part of a record, all of it by default, as bytes."""
        raw = np.empty(record.size if size is None else size, np.uint8)
        try:
            self._file.seek(record.offset + start)
            count = self._file.readinto(raw.data)
        except OSError as error:
            raise self._fault(f"{what}: cannot be read ({error.strerror})") from error
        if count != raw.size:
            raise self._fault(f"{what}: truncated")
        if record.crc and raw.size == record.size and zlib.crc32(raw.data) != record.crc:
            raise self._fault(f"{what}: damaged, its checksum differs")
        return raw

    def _fault(self, message: str) -> InputError:
        return InputError(f"{self._path}: {message}")


class TensorFiles:
    """The tensors of one file or of several shards; see `reader.TensorReader`."""

    def __init__(self, files: list[TorchFile]) -> None:
        self._files = {name: file for file in files for name in file.tensors}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor, by name."""
        return {name: file.tensors[name].shape for name, file in self._files.items()}

    def check_type(self, name: str) -> None:
        """Check that a tensor's numbers are weights."""
        self._files[name].check_type(name)

    def read(self, name: str) -> np.ndarray:
        """Return a tensor in the type of the file."""
        return self._files[name].read(name)


@contextmanager
def open_tensors(path: Path) -> Iterator[TensorFiles]:
    """Open a file of `torch.save`, or the index of several.

    Raises:
      InputError: a damaged file, a shard missing, or more than plain tensors in a file.
    """
    sharded = path.name.endswith(".json")
    paths = sorted(set(shards.read_index(path).values())) if sharded else [path]
    with ExitStack() as stack:
        files = []
        for part in paths:
            try:
                file = stack.enter_context(part.open("rb"))
            except OSError as error:
                raise InputError(f"{part}: cannot be read ({error.strerror})") from error
            files.append(TorchFile(part, file))
        yield TensorFiles(files)


def _state_dict(tree: Any, path: Path) -> dict[str, Tensor]:
    """Find the model's tensors: at the top, or beside a training script's other things."""
    outer = tree if isinstance(tree, dict) else {}
    candidates = [outer, *(outer[key] for key in _NESTED if isinstance(outer.get(key), dict))]
    inner = next((part for part in candidates if _tensors(part)), None)
    if inner is None:
        raise InputError(f"{path}: holds no state dict, which maps names to tensors")
    parts = [outer] if inner is outer else [outer, inner]
    left_out = [
        str(key)
        for part in parts
        for key, value in part.items()
        if value is not inner and not isinstance(value, Tensor)
    ]
    if left_out:
        _LOG.info("%s: left out what is no tensor of the model: %s", path, ", ".join(left_out))
    return _tensors(inner)


def _tensors(tree: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {str(key): value for key, value in tree.items() if isinstance(value, Tensor)}


def _dtype(storage: Storage) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if storage.dtype == "bfloat16" else storage.dtype)


def _span(tensor: Tensor) -> int:
    """Elements of the storage from a tensor's first to its last."""
    if 0 in tensor.shape:
        return 0
    steps = zip(tensor.shape, tensor.strides, strict=True)
    return 1 + sum((length - 1) * stride for length, stride in steps)

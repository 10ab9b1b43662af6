"""The sorted tables of LevelDB, uncompressed, in which TensorFlow keeps a checkpoint's index.

A table is a sequence of blocks of (key, value) pairs in ascending order of the keys, an index block
that says where they are, and a footer that says where the index block is. A key is stored without
what it shares with the one before; a block ends with the places where that starts anew, and is
followed by its kind of compression and a checksum.
(https://github.com/google/leveldb/blob/main/doc/table_format.md; TensorFlow: core/lib/io/table*.)
"""

from collections.abc import Iterator, Mapping
from typing import Any

import google_crc32c

MAGIC = 0xDB4775248B80FB57.to_bytes(8, "little")
"""The last bytes of every table."""

_FOOTER_BYTES = 48
_TRAILER_BYTES = 5  # kind of compression, checksum
_BLOCK_BYTES = 262_144  # as TensorFlow: a block is closed when it has come to this
_RESTART_INTERVAL = 16
# Keys can repeat all of the key before at the cost of three bytes, so that without a bound a small
# file would make large keys. TensorFlow's names of variables are far shorter than this.
_LONGEST_KEY = 1024


class DamagedTableError(Exception):
    """The bytes are no whole table (or message in a table); says what and where."""


def masked_crc32c(data: Any) -> int:
    """Return the CRC32C of bytes or a uint8 array, rotated and shifted as LevelDB stores it."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number (7 bits a byte, lowest first) that begins at byte `at`, and its end."""
    value = 0
    for i, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value, at + i + 1
    raise DamagedTableError(f"the number at byte {at} has no end")


def encode_varint(value: int) -> bytes:
    """Return a number >= 0 as `varint` reads it."""
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def read_table(data: bytes) -> dict[bytes, bytes]:
    """Return the pairs of a table, in ascending order of the keys.

    Raises:
      DamagedTableError: truncated, compressed, or a checksum that does not fit.
    """
    if len(data) < _FOOTER_BYTES or not data.endswith(MAGIC):
        raise DamagedTableError("its end is missing or not that of an index")
    extras, at = _handle(data, len(data) - _FOOTER_BYTES)
    index, _ = _handle(data, at)
    _block(data, extras)  # an empty one; its checksum is looked at all the same
    pairs: dict[bytes, bytes] = {}
    last = None
    for _, handle in _pairs(_block(data, index)):
        block, _ = _handle(handle, 0)
        for key, value in _pairs(_block(data, block)):
            if last is not None and key <= last:
                raise DamagedTableError(f"key {key!r} is out of order")
            pairs[key] = value
            last = key
    return pairs


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    """Return where a block is (its first byte and its size), as said at byte `at`, and the end."""
    offset, at = varint(data, at)
    size, at = varint(data, at)
    return (offset, size), at


def _block(data: bytes, where: tuple[int, int]) -> bytes:
    offset, size = where
    end = offset + size + _TRAILER_BYTES
    if end > len(data) - _FOOTER_BYTES:
        raise DamagedTableError(f"the block at byte {offset} reaches past the end")
    if masked_crc32c(data[offset : end - 4]) != int.from_bytes(data[end - 4 : end], "little"):
        raise DamagedTableError(f"the block at byte {offset} does not fit its checksum")
    if data[end - _TRAILER_BYTES] != 0:
        raise DamagedTableError(
            f"the block at byte {offset} is compressed, which TensorFlow's indexes are not"
        )
    return data[offset : end - _TRAILER_BYTES]


def _pairs(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 * (restarts + 1)
    at, key = 0, b""
    while at < end:
        shared, at = varint(block, at)
        unshared, at = varint(block, at)
        length, at = varint(block, at)
        if shared > len(key) or shared + unshared > _LONGEST_KEY or at + unshared + length > end:
            raise DamagedTableError(f"the entry after {key!r} does not fit into its block")
        key = key[:shared] + block[at : at + unshared]
        at += unshared
        yield key, block[at : at + length]
        at += length
    if at != end:
        raise DamagedTableError("a block is shorter than its list of restarts")


def write_table(pairs: Mapping[bytes, bytes]) -> bytes:
    """Return the table of these pairs, which come in ascending order of the keys."""
    table = bytearray()
    index: dict[bytes, bytes] = {}
    builder = _BlockBuilder(_RESTART_INTERVAL)
    for key, value in pairs.items():
        builder.add(key, value)
        if builder.size() >= _BLOCK_BYTES:
            index[key] = _append_block(table, builder)
            builder = _BlockBuilder(_RESTART_INTERVAL)
    if builder.last:
        index[builder.last] = _append_block(table, builder)
    footer = _append_block(table, _BlockBuilder(1))
    builder = _BlockBuilder(1)
    for key, handle in index.items():
        builder.add(key, handle)
    footer += _append_block(table, builder)
    return bytes(table) + footer.ljust(_FOOTER_BYTES - len(MAGIC), b"\0") + MAGIC


class _BlockBuilder:
    """A block that grows; its keys are written in full once every `interval`."""

    def __init__(self, interval: int) -> None:
        self.last = b""
        self._interval = interval
        self._entries = bytearray()
        self._restarts = [0]
        self._count = 0

    def add(self, key: bytes, value: bytes) -> None:
        shared = 0
        if self._count and self._count % self._interval == 0:
            self._restarts.append(len(self._entries))
        else:
            while key[: shared + 1] == self.last[: shared + 1] and shared < len(self.last):
                shared += 1
        for number in (shared, len(key) - shared, len(value)):
            self._entries += encode_varint(number)
        self._entries += key[shared:] + value
        self._count += 1
        self.last = key

    def size(self) -> int:
        return len(self._entries) + 4 * (len(self._restarts) + 1)

    def finish(self) -> bytes:
        numbers = [*self._restarts, len(self._restarts)]
        return bytes(self._entries) + b"".join(n.to_bytes(4, "little") for n in numbers)


def _append_block(table: bytearray, builder: _BlockBuilder) -> bytes:
    """Append a block and its trailer, and return its handle."""
    block = builder.finish()
    handle = encode_varint(len(table)) + encode_varint(len(block))
    uncompressed = b"\0"
    table += block + uncompressed
    table += masked_crc32c(block + uncompressed).to_bytes(4, "little")
    return handle

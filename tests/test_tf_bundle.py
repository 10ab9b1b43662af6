"""TensorFlow's checkpoint files: those that TensorFlow wrote, ours like them, and damaged ones."""

import lzma
import re
import shutil
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from bertjax.errors import InputError
from bertjax.pretrained import sstable, tf_bundle
from bertjax.pretrained.tf_bundle import Entry, open_bundle, write_bundle
from tests.tf1_files import DATA, WHOLE, bits, read_all

FOOTER = 48


@pytest.fixture
def types(tmp_path):
    """A copy of the checkpoint of all types, to be damaged: index and data file."""
    for path in (DATA / "types").glob("model*"):
        shutil.copy(path, tmp_path)
    (index,) = tmp_path.glob("*.index")
    (data,) = tmp_path.glob("*.data*")
    return index, data


def rewrite(index, change):
    """Change the pairs of an index, with checksums that fit."""
    pairs = sstable.read_table(index.read_bytes())
    change(pairs)
    index.write_bytes(sstable.write_table(dict(sorted(pairs.items()))))


def refused(index):
    """The one line that opening (or reading) a checkpoint ends in."""
    with pytest.raises(InputError) as caught:
        read_all(index)
    assert_one_line(caught.value)
    return str(caught.value)


def assert_one_line(error):
    assert str(error).isprintable()


# Files of TensorFlow


def test_every_type_is_read_bitwise():
    want = dict(np.load(DATA / "types" / "expected.npz"))
    want["bfloat16"] = want["bfloat16"].view(ml_dtypes.bfloat16)
    with open_bundle(DATA / "types" / "model.ckpt-1000.index") as bundle:
        assert bundle.entries.keys() == want.keys() | {"text"}
        for name, array in want.items():
            assert bits(bundle.read(name)) == bits(array), name
        with pytest.raises(InputError, match="tensor text is of TensorFlow's type 7"):
            bundle.read("text")


def test_several_data_files_are_read_bitwise():
    want = np.load(DATA / "shards" / "expected.npz")
    arrays = read_all(DATA / "shards" / "model.ckpt-7.index")
    assert {n: bits(a) for n, a in arrays.items()} == {n: bits(a) for n, a in want.items()}


def unpacked_blocks(directory):
    shutil.copy(DATA / "blocks" / "model.ckpt.data-00000-of-00001", directory)
    index = directory / "model.ckpt.index"
    index.write_bytes(lzma.decompress((DATA / "blocks" / "model.ckpt.index.xz").read_bytes()))
    return index


def test_index_of_several_blocks(tmp_path):
    arrays = read_all(unpacked_blocks(tmp_path))
    assert len(arrays) == 540
    for i, (name, array) in enumerate(arrays.items()):
        assert name == f"{i:03d}/" + "long_scope/" * 45 + "kernel"
        assert bits(array) == bits(np.array(i, np.float32))


def body(index_bytes):
    """An index but for its index block and footer."""
    at = len(index_bytes) - FOOTER
    for _ in range(2):
        _, at = sstable.varint(index_bytes, at)
    return index_bytes[: sstable.varint(index_bytes, at)[0]]


@pytest.mark.parametrize("name", ["pretraining", "blocks"])
def test_what_is_written_is_what_tensorflow_writes(name, tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    source = unpacked_blocks(theirs) if name == "blocks" else DATA / name / "bert_model.ckpt.index"
    arrays = read_all(source)
    write_bundle(tmp_path / "ours", dict(reversed(arrays.items())), WHOLE)
    data = source.with_name(source.stem + ".data-00000-of-00001").read_bytes()
    assert (tmp_path / "ours.data-00000-of-00001").read_bytes() == data
    ours = (tmp_path / "ours.index").read_bytes()
    assert body(ours) == body(source.read_bytes())
    assert len(body(ours)) > len(ours) * 0.9


# Round trips and names


@pytest.mark.parametrize("max_shard_bytes", [WHOLE, 100, 1])
def test_bundle_round_trip(max_shard_bytes, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "b/f32": rng.normal(size=(3, 4)).astype("f4"),
        "transposed": rng.normal(size=(5, 7)).astype("f4").T,
        "a/bf16": rng.normal(size=(2, 3, 4)).astype(ml_dtypes.bfloat16),
        "a/f16": rng.normal(size=9).astype("f2"),
        "f64": rng.normal(size=2),
        "step": np.array(2**40),
        "i32": np.arange(5, dtype=np.int32),
        "none": np.zeros((3, 0), np.float32),
    }
    write_bundle(tmp_path / "x", arrays, max_shard_bytes)
    back = read_all(tmp_path / "x.index")
    assert list(back) == sorted(arrays)
    assert {n: bits(a) for n, a in back.items()} == {n: bits(a) for n, a in arrays.items()}
    files = sorted(path.name for path in tmp_path.glob("x.data-*"))
    # In the order of the names they have 48 + 18, 48 + 16 + 20 + 0 + 8, and 140 bytes.
    assert len(files) == {WHOLE: 1, 100: 3, 1: 8}[max_shard_bytes]
    assert files == [f"x.data-{i:05d}-of-{len(files):05d}" for i in range(len(files))]


def test_arrays_of_other_types_are_not_written(tmp_path):
    with pytest.raises(InputError, match=r"x\.index: w: complex64 arrays cannot be stored"):
        write_bundle(tmp_path / "x", {"w": np.zeros(2, np.complex64)}, WHOLE)
    assert not (tmp_path / "x.index").exists()


# Damage


def test_truncated_index(types):
    index, _ = types
    content = index.read_bytes()
    for length in range(len(content)):
        with pytest.raises(sstable.DamagedTableError, match="its end is missing"):
            sstable.read_table(content[:length])
    for length in (0, FOOTER, len(content) - 1):
        index.write_bytes(content[:length])
        start = f"{index}: cannot be read as the index of a TensorFlow checkpoint: its end is miss"
        assert refused(index).startswith(start)


def test_every_flipped_bit_of_the_index_is_harmless_or_seen():
    content = (DATA / "types" / "model.ckpt-1000.index").read_bytes()
    want = sstable.read_table(content)
    harmless = []
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            pairs = sstable.read_table(bytes(damaged))
        except sstable.DamagedTableError:
            continue
        assert pairs == want
        harmless.append(bit // 8 - len(content) + FOOTER)
    # The padding of the footer after its six bytes of numbers; and the bit that makes the last of
    # these a byte longer without changing it.
    assert harmless == [5] + [i for i in range(6, FOOTER - len(sstable.MAGIC)) for _ in range(8)]


def test_flipped_bits_of_the_data_are_seen_and_named(types):
    index, data = types
    content = data.read_bytes()
    with open_bundle(index) as bundle:
        entries = {name: entry for name, entry in bundle.entries.items() if name != "text"}
    for byte in range(0, sum(entry.size for entry in entries.values()), 7):
        data.write_bytes(content[:byte] + bytes([content[byte] ^ 4]) + content[byte + 1 :])
        damaged = []
        with open_bundle(index) as bundle:
            for name in entries:
                try:
                    bundle.read(name)
                except InputError as error:
                    damaged.append(name)
                    text = str(error)
        (name,) = damaged
        assert entries[name].offset <= byte < entries[name].offset + entries[name].size
        assert text == f"{data}: tensor {name} does not fit its checksum: the file is damaged"


def test_truncated_data_is_seen_before_reading(types):
    index, data = types
    content = data.read_bytes()
    data.write_bytes(content[:-1])
    assert f"{data}: is truncated: tensor text ends at byte 1543, the file at 1542" in refused(
        index
    )
    data.write_bytes(b"")
    assert f"{data}: is truncated" in refused(index)
    data.write_bytes(content)
    with open_bundle(index) as bundle:
        data.write_bytes(content[:10])  # while it is open
        with pytest.raises(InputError, match="tensor global_step does not fit its checksum"):
            bundle.read("global_step")


def test_missing_files(tmp_path):
    shutil.copytree(DATA / "shards", tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.ckpt-7.data-00001-of-00003").unlink()
    message = refused(tmp_path / "model.ckpt-7.index")
    assert "data-00001-of-00003: is needed by model.ckpt-7.index, but cannot be read" in message
    assert "cannot be read (No such file" in refused(tmp_path / "model.ckpt-8.index")


def test_wrong_magic_and_huge_index(types):
    index, _ = types
    index.write_bytes(index.read_bytes()[:-1] + b"\0")
    assert "not that of an index" in refused(index)
    with index.open("wb") as file:
        file.truncate(2**34)
    assert "is larger than an index" in refused(index)


def test_compressed_blocks_are_refused(types):
    index, _ = types
    content = bytearray(index.read_bytes())
    end = len(body(bytes(content))) - 13  # the trailer before the empty block of extras
    assert content[end - 5] == 0
    content[end - 5] = 1
    content[end - 4 : end] = sstable.masked_crc32c(bytes(content[: end - 4])).to_bytes(4, "little")
    index.write_bytes(content)
    assert "the block at byte 0 is compressed" in refused(index)


def test_tables_that_do_not_hold_together():
    table = bytearray(sstable.write_table({b"a": b"1", b"b": b"2"}))
    assert sstable.read_table(bytes(table)) == {b"a": b"1", b"b": b"2"}
    for pairs in ({b"b": b"", b"a": b""}, {b"aa": b"", b"a": b""}):
        with pytest.raises(sstable.DamagedTableError, match="key b'a' is out of order"):
            sstable.read_table(sstable.write_table(pairs))
    for at in (0, 2):  # the first bytes of the two handles in the footer
        damaged = table.copy()
        damaged[len(table) - FOOTER + at] = 127
        with pytest.raises(sstable.DamagedTableError, match="block at byte 127 reaches past the e"):
            sstable.read_table(bytes(damaged))


HEADER = b"\x08\x01"


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (None, "it has no header"),
        (b"", "it has no header"),
        (HEADER + b"\x10\x01", "big-endian machine"),
        (HEADER + b"\x1a\x02\x10\x02", "needs a reader of version 2"),
        (HEADER + b"\x1a\x7f\x10", "a description is cut off"),
        (HEADER + b"\x13", "a description is no protocol buffer"),
        (b"\x08" + b"\xff" * 20, "the number at byte 1 has no end"),
    ],
)
def test_headers_that_are_refused(header, message, types):
    index, _ = types
    rewrite(index, lambda pairs: pairs.pop(b"") if header is None else pairs.update({b"": header}))
    assert message in refused(index)


HUGE = 2**40
GOOD = {"dtype": 1, "shape": (308,), "shard": 0, "offset": 0, "size": 1232, "crc": 0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (HUGE,), "size": 4 * HUGE}, "is truncated: tensor float32 ends at byte"),
        ({"offset": 2**63}, "is truncated: tensor float32 ends at byte"),
        ({"dtype": 7, "size": HUGE}, "is truncated: tensor float32 ends at byte"),
        ({"shape": (HUGE,)}, "it has 1232 bytes, which its shape"),
        ({"size": HUGE}, f"it has {HUGE} bytes, which its shape"),
        ({"shape": (2**64 - 1,)}, "its shape is impossible"),
        ({"shape": (0, 2**62), "size": 0}, "its shape is impossible"),
        ({"shape": (1,) * 40, "size": 4}, "its shape is impossible"),
        ({"shard": 1}, "it is in data file 1, of 1"),
        ({"shard": 2**64 - 1}, "it is in data file"),
    ],
)
def test_a_huge_claim_costs_nothing(change, message, types):
    index, _ = types
    entry = Entry(**GOOD | change)
    rewrite(index, lambda pairs: pairs.update({b"float32": tf_bundle._encode(entry)}))
    tracemalloc.start()
    text = refused(index)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert message in text
    assert "tensor float32" in text
    assert peak < 2**20


def test_keys_cannot_be_made_large_by_sharing(tmp_path):
    index = tmp_path / "bomb.index"
    keys = {b"k" * 1000 + bytes([i // 256, i % 256]): b"" for i in range(30)}
    index.write_bytes(sstable.write_table(keys))
    assert "it has no header" in refused(index)
    index.write_bytes(sstable.write_table({b"k" * 1100: b""}))
    assert "does not fit into its block" in refused(index)


def test_hostile_entries_end_in_one_line_or_in_arrays(types):
    index, _ = types
    pairs = sstable.read_table(index.read_bytes())
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(600):
        damaged = {key: bytearray(value) for key, value in pairs.items()}
        damaged[b"\xff\n" + rng.bytes(3)] = damaged.pop(b"float16")
        for _ in range(rng.integers(1, 4)):
            value = damaged[list(damaged)[rng.integers(len(damaged))]]
            value[rng.integers(len(value))] = rng.integers(256)
        index.write_bytes(sstable.write_table({k: bytes(v) for k, v in sorted(damaged.items())}))
        try:
            with open_bundle(index) as bundle:
                for name in bundle.entries:
                    bundle.read(name)
        except InputError as error:
            assert_one_line(error)
            seen.add(
                re.sub("[0-9]+", "#", str(error).partition("tensor ")[2].partition(" ")[2])[:20]
            )
    assert len(seen) > 5


def test_v1_file_in_place_of_an_index(tmp_path):
    shutil.copy(DATA / "v1" / "model.ckpt", tmp_path / "model.ckpt.index")
    assert "it has no header (is it a V1 checkpoint?)" in refused(tmp_path / "model.ckpt.index")

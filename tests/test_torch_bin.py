"""Files of `torch.save`, read without torch: right to the bit, or refused; never run."""

import collections
import copyreg
import io
import json
import logging
import os
import pickle
import random
import shutil
import struct
import tracemalloc
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers

from bertjax.errors import InputError
from bertjax.pretrained import from_pretrained, torch_bin

STORED = Path(__file__).parent / "data" / "formats"
CONTAINERS = ("zip", "zip without checksums", "legacy")
MAGIC = 0x1950A86A20F9469CFC6C


def save(content, path, container="zip"):
    """`torch.save` in one of its containers."""
    torch.serialization.set_crc32_options(container != "zip without checksums")
    try:
        torch.save(content, path, _use_new_zipfile_serialization=container != "legacy")
    finally:
        torch.serialization.set_crc32_options(True)
    return path


def read(path):
    with torch_bin.open_tensors(path) as tensors:
        arrays = {name: tensors.read(name) for name in tensors.shapes()}
        assert tensors.shapes() == {name: array.shape for name, array in arrays.items()}
    return arrays


def assert_equal(arrays, tensors):
    """The same names, shapes, types and bits."""
    assert list(arrays) == list(tensors)
    for name, tensor in tensors.items():
        array = arrays[name]
        assert str(tensor.dtype) == f"torch.{array.dtype.name}", name
        assert array.shape == tuple(tensor.shape), name
        want = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        got = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        np.testing.assert_array_equal(got, want, err_msg=name)


def refused(path):
    """The one line with which a file is refused."""
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


@pytest.fixture(scope="module")
def bert():
    """A small model of transformers 5."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 20}
    config = transformers.BertConfig(vocab_size=30, num_hidden_layers=2, **sizes)
    return transformers.BertForPreTraining(config)


def odd_tensors():
    """Tensors of every type, and with every kind of view."""
    torch.manual_seed(0)
    base = torch.randn(4, 6, 5)
    dense = torch.nn.Linear(3, 2)
    kinds = (torch.float64, torch.float16, torch.bfloat16)
    integers = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    numbers = torch.randn(3, 4) * 50
    return {
        "whole": base,
        "transposed": base[1].T,
        "permuted": base.permute(2, 0, 1),
        "offset": base[2:, 1:4],
        "steps": base[::2, 1::3, ::4],
        "reversed axes of a slice": base[3, 2:5, 1:].T,
        "scalar": base[1, 2, 3],
        "empty": base[:, :0],
        "last": base[3, 5, 4:],
        "contiguous copy": base[1].T.contiguous(),
        "position_ids": torch.arange(9).expand((1, -1)),
        "parameter": dense.weight,
        "frozen": torch.nn.Parameter(torch.ones(2), requires_grad=False),
        "tied": dense.weight,
        "part of it": dense.weight[1],
        "bool": torch.tensor([True, False, True]),
        **{f"float {kind}": numbers.to(kind) for kind in kinds},
        **{f"integer {kind}": numbers.to(kind) for kind in integers},
    }


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_type_and_view(container, tmp_path):
    tensors = odd_tensors()
    assert_equal(read(save(tensors, tmp_path / "odd.bin", container)), tensors)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_state_dict_of_a_model(bert, container, kind, tmp_path, caplog):
    state = bert.state_dict()
    assert hasattr(state, "_metadata")
    assert "cls.predictions.decoder.weight" in state  # the same storage as the word embeddings
    for name in state:
        state[name] = state[name].to(kind)
    with caplog.at_level(logging.INFO, logger="bertjax"):
        assert_equal(read(save(state, tmp_path / "pytorch_model.bin", container)), state)
    assert not caplog.messages


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_protocols(bert, protocol, tmp_path):
    torch.save(bert.state_dict(), tmp_path / "a.bin", pickle_protocol=protocol)
    assert_equal(read(tmp_path / "a.bin"), bert.state_dict())


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "module"])
def test_checkpoints_of_training_scripts(bert, key, tmp_path, caplog):
    state = bert.state_dict()
    optimizer = torch.optim.AdamW(bert.parameters())
    sum(p.sum() for p in bert.parameters()).backward()
    optimizer.step()
    content = {"epoch": 3, "best": 0.5, key: state, "optimizer": optimizer.state_dict()}
    with caplog.at_level(logging.INFO, logger="bertjax"):
        assert_equal(read(save(content, tmp_path / "last.ckpt")), state)
    (line,) = caplog.messages
    assert line.endswith("left out what is no tensor of the model: epoch, best, optimizer")


def test_what_is_no_tensor_is_named(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="bertjax"):
        arrays = read(save({"step": 3, "a": torch.ones(2), "note": "x"}, tmp_path / "a.bin"))
    assert list(arrays) == ["a"]
    (line,) = caplog.messages
    assert line.endswith("left out what is no tensor of the model: step, note")


@pytest.mark.parametrize("content", [[torch.ones(2)], {}, {"a": 1}, torch.ones(2), {"model": 5}, 7])
@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_files_without_a_state_dict(content, container, tmp_path):
    message = refused(save(content, tmp_path / "a.bin", container))
    assert message == "holds no state dict, which maps names to tensors"


def test_a_whole_module_is_refused_by_name(tmp_path):
    message = refused(save(torch.nn.Linear(2, 2), tmp_path / "a.bin"))
    assert "asks to run 'torch.nn.modules.linear.Linear'" in message
    assert "save model.state_dict()" in message


# Files of transformers 4


@pytest.mark.parametrize("name", ["relative_key", "relative_key_query", "sharded"])
def test_logits_of_transformers_4(name):
    directory = STORED / f"torch_{name}"
    model, params = from_pretrained(directory)
    stored = dict(np.load(f"{directory}.npz"))
    want = stored.pop("logits")
    output = jax.jit(lambda p: model.apply({"params": p}, **stored))(params)
    assert np.abs(want).max() > 1
    np.testing.assert_allclose(output.logits, want, rtol=0, atol=1e-5)


def test_shards_are_all_read():
    directory = STORED / "torch_sharded"
    shards = sorted(directory.glob("*.bin"))
    assert len(shards) > 2
    want = {}
    for shard in shards:
        want |= torch.load(shard, weights_only=True)
    assert_equal(read(directory / "pytorch_model.bin.index.json"), want)


def test_damaged_sharded_checkpoints(tmp_path):
    directory = shutil.copytree(STORED / "torch_sharded", tmp_path / "copy")
    index = directory / "pytorch_model.bin.index.json"
    shard = sorted(directory.glob("*.bin"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    with pytest.raises(InputError, match=f"^{shard}: not a whole zip archive"):
        read(index)
    shard.unlink()
    assert shard.name in refused(index)
    index.write_text(json.dumps({"weight_map": 3}))
    refused(index)


# Files made by hand, of what torch does not write


class Call:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments, state)

    def __reduce__(self):
        return self.reduced


def tensor(
    offset=0, shape=(3, 4), strides=(4, 1), key="0", size=12, storage=torch.FloatStorage, rest=()
):
    """A tensor that pickles with just these numbers."""
    identity = Call(tuple)
    identity.persistent = ("storage", storage, key, "cpu", size, *rest)
    rebuild = torch._utils._rebuild_tensor_v2
    return Call(rebuild, identity, offset, shape, strides, False, collections.OrderedDict())


def pickled(content, protocol=2):
    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return getattr(value, "persistent", None)

    data = io.BytesIO()
    Pickler(data, protocol).dump(content)
    return data.getvalue()


def write_zip(path, pickle_bytes, data=None, compression=zipfile.ZIP_STORED, order=None):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickle_bytes)
        archive.writestr("archive/version", "3")
        if order is not None:
            archive.writestr("archive/byteorder", order)
        if data is not None:
            archive.writestr("archive/data/0", data)
    return path


def write_legacy(path, pickle_bytes, data=b"", keys=("0",), count=12, magic=MAGIC, version=1001):
    head = b"".join(pickle.dumps(value, 2) for value in (magic, version, {"little_endian": True}))
    parts = head, pickle_bytes, pickle.dumps(list(keys), 2), struct.pack("<q", count), data
    path.write_bytes(b"".join(parts))
    return path


NUMBERS = np.arange(12, dtype=np.float32)


def test_files_made_by_hand_are_read(tmp_path):
    path = tmp_path / "a.bin"
    for write, rest in ((write_zip, ()), (write_legacy, (None,))):
        content = {"a": tensor(rest=rest), "b": tensor(1, (2,), (5,), rest=rest)}
        write(path, pickled(content), NUMBERS.tobytes())
        assert_equal(read(path), torch.load(path, weights_only=True))


def test_byte_order(tmp_path):
    content = pickled({"a": tensor(1, (2, 3), (4, 1))})
    for order, kind in (("little", "<f4"), ("big", ">f4")):
        path = write_zip(tmp_path / order, content, NUMBERS.astype(kind).tobytes(), order=order)
        np.testing.assert_array_equal(read(path)["a"], NUMBERS[1:9].reshape(2, 4)[:, :3])
        assert read(path)["a"].dtype == np.dtype("=f4")
        assert_equal(read(path), torch.load(path, weights_only=True))
    path = write_zip(tmp_path / "middle", content, NUMBERS.tobytes(), order="middle")
    assert "byte order is b'middle'" in refused(path)


def test_views_of_storages_in_legacy_files(tmp_path):
    def write(*view):
        content = {"a": tensor(1, (2, 2), (2, 1), rest=(view,))}
        return write_legacy(tmp_path / "a.bin", pickled(content), NUMBERS.tobytes())

    path = write("1", 3, 6)
    np.testing.assert_array_equal(read(path)["a"], [[4, 5], [6, 7]])
    assert_equal(read(path), torch.load(path, weights_only=True))
    assert "does not lie within its storage" in refused(write("1", 3, 4))
    for bad in (("1", 7, 6), ("1", -1, 6), ("1", 0, -1), ("1", 3), (0, 3, 6)):
        assert "refers to something that is no storage" in refused(write(*bad))


def test_names_as_python_2_wrote_them(tmp_path):
    pair = b"](U\x01a" + pickled(tensor())[2:-1] + b"e"
    content = b"\x80\x02ccollections\nOrderedDict\n(](" + pair + b"etR."
    path = write_legacy(tmp_path / "a.bin", content, NUMBERS.tobytes())
    np.testing.assert_array_equal(read(path)["a"], NUMBERS.reshape(3, 4))
    assert "whose keys are no names" in refused(
        write_legacy(path, content.replace(b"(U\x01a", b"(K\x01U\x01a"), NUMBERS.tobytes())
    )


OUTSIDE = {
    "offset": {"offset": 1},
    "far offset": {"offset": 2**62},
    "negative offset": {"offset": -1},
    "shape": {"shape": (4, 4)},
    "huge shape": {"shape": (2**40, 2**40)},
    "negative length": {"shape": (-3, -4)},
    "stride": {"strides": (5, 1)},
    "negative stride": {"strides": (-4, 1)},
    "too few strides": {"strides": (1,)},
    "too many dimensions": {"shape": (1,) * 9, "strides": (1,) * 9},
    "more elements than there are": {"shape": (2**40,), "strides": (0,)},
    "storage longer than its record": {"size": 13},
    "storage of longer elements": {"storage": torch.DoubleStorage},
    "storage that is not there": {"key": "1"},
    "negative storage": {"size": -1},
    "float offset": {"offset": 0.5},
    "list for a shape": {"shape": [3, 4]},
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_tensors_outside_their_storage(name, tmp_path):
    content = pickled({"good": tensor(), "bad": tensor(**OUTSIDE[name])})
    for path in (
        write_zip(tmp_path / "zip.bin", content, NUMBERS.tobytes()),
        write_legacy(tmp_path / "legacy.bin", content, NUMBERS.tobytes() * 2),
    ):
        refused(path)


# Pickles that would run something


def text(string):
    return b"X" + struct.pack("<I", len(string)) + string.encode()


def evil(target):
    """Pickle opcodes, by name, each of which makes unpickling create the file `target`."""
    command = f"touch '{target}'"
    call = b"(" + text(command) + b"tR"
    python = b"(" + text(f"__import__('os').system({command!r})") + b"tR"
    system = b"cos\nsystem\n"
    inner = io.BytesIO()
    torch.save({"a": Call(os.system, command)}, inner)
    nested = inner.getvalue()
    return {
        "os.system": system + call,
        "posix.system": b"cposix\nsystem\n" + call,
        "builtins.eval": b"cbuiltins\neval\n" + python,
        "name of Python 2": b"c__builtin__\neval\n" + python,
        "name on the stack": b"\x8c\x02os\x8c\x06system\x93" + call,
        "dotted name": b"cos\npath.os.system\n" + call,
        "dotted name on the stack": b"\x8c\x02os\x8c\x0epath.os.system\x93" + call,
        "through torch": b"ctorch._utils\ntorch.os.system\n" + call,
        "INST": b"(" + text(command) + b"ios\nsystem\n",
        "OBJ": b"(" + system + text(command) + b"o",
        "EXT1": b"\x82\xf1" + call,
        "functools.partial": b"cfunctools\npartial\n(" + system + text(command) + b"tR)R",
        "bytes that torch loads": (
            b"ctorch.storage\n_load_from_bytes\n(B"
            + struct.pack("<I", len(nested))
            + nested
            + b"tR"
        ),
        "memo": system + b"q\xffh\xff" + call,
        "key": system + call,
        "state of a dict": b"ccollections\nOrderedDict\n)R}" + text("x") + system + call + b"sb",
        "argument": b"ccollections\nOrderedDict\n(]" + system + call + b"0tR",
    }


def around(opcodes):
    """A state dict's pickle, of protocol 4, with these opcodes for one of its values."""
    return b"\x80\x04}(" + text("a") + pickled(tensor())[2:-1] + text("b") + opcodes + b"u."


def both_containers(directory, content):
    return (
        write_zip(directory / "zip.bin", content, NUMBERS.tobytes()),
        write_legacy(directory / "legacy.bin", content, NUMBERS.tobytes()),
    )


@pytest.fixture
def extension_code():
    copyreg.add_extension("posix", "system", 0xF1)
    yield
    copyreg.remove_extension("posix", "system", 0xF1)


@pytest.mark.parametrize("name", evil("target"))
def test_malicious_pickles_are_not_run(name, tmp_path, extension_code):
    target = tmp_path / "it ran"
    opcodes = evil(target)[name]
    protocol = b"\x02" if name == "name of Python 2" else b"\x04"
    pickle.loads(b"\x80" + protocol + opcodes + b".")
    assert target.exists()  # what it would do
    target.unlink()
    content = around(opcodes)
    if name == "key":
        content = b"\x80\x04}" + opcodes + b"Ns."
    for path in both_containers(tmp_path, content):
        message = refused(path)
        assert "asks to run" in message or "the pickle uses" in message
        assert not target.exists()


@pytest.mark.parametrize("place", ["magic", "version", "machine", "keys"])
def test_malicious_pickles_around_the_state_dict(place, tmp_path):
    target = tmp_path / "it ran"
    content, numbers = pickled({"a": tensor()}), struct.pack("<q", 12) + NUMBERS.tobytes()
    pickles = {
        "magic": pickle.dumps(MAGIC, 2),
        "version": pickle.dumps(1001, 2),
        "machine": pickle.dumps({"little_endian": True}, 2),
        "state dict": content,
        "keys": pickle.dumps(["0"], 2),
    }
    path = tmp_path / "a.bin"
    path.write_bytes(b"".join(pickles.values()) + numbers)
    assert list(read(path)) == ["a"]
    pickles[place] = pickle.dumps(Call(os.system, f"touch '{target}'"), 2)
    path.write_bytes(b"".join(pickles.values()) + numbers)
    refused(path)
    assert not target.exists()


ORDERED = b"ccollections\nOrderedDict\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
# Opcodes that ask for something other than torch's own do, and a part of the refusal.
ODD = {
    "another class": (b"cnumpy\nndarray\n", "asks to run 'numpy.ndarray'"),
    "torch.hub": (b"ctorch.hub\nload\n(" + text("a/b") + text("c") + b"tR", "'torch.hub.load'"),
    "method of a known class": (b"ccollections\nOrderedDict.fromkeys\n", "asks to run"),
    "method in two steps": (ORDERED + b"cbuiltins\ngetattr\n", "'builtins.getattr'"),
    "another storage": (b"ctorch.storage\nUntypedStorage\n", "'torch.storage.UntypedStorage'"),
    "lines in a name": (text("os\nx") + text("y\x1b") + b"\x93", r"'os\nx.y\x1b'"),
    "number for a name": (b"K\x01K\x02\x93", "'an object'"),
    "call of a tensor": (pickled(tensor())[2:-1] + b")R", "calls a Tensor"),
    "call of a dict": (b"})R", "calls a dict"),
    "call of a type of storage": (b"ctorch\nFloatStorage\n)R", "calls torch.FloatStorage"),
    "call without arguments": (REBUILD + b")R", "calls torch._utils._rebuild_tensor_v2"),
    "call with a name": (ORDERED + text("x") + b"R", "calls collections.OrderedDict"),
    "state of a class": (ORDERED + b"}b", "changes a Global"),
    "state of a function": (REBUILD + b"}" + text("__code__") + b"Nsb", "changes a Global"),
    "state of a tensor": (pickled(tensor())[2:-1] + b"}b", "changes a Tensor"),
    "items of a class": (ORDERED + b"NNs", "changes a Global"),
    "items of a tuple": (b")NNs", "changes a tuple"),
    "append to a tuple": (b")Na", "changes a tuple"),
    "persistent class": (b"(" + text("module") + ORDERED + b"NNtQ", "refers to something"),
    "persistent name": (text("0") + b"Q", "refers to something"),
    "persistent text": (b"Pcpu\n", "uses PERSID"),
    "NEWOBJ": (ORDERED + b")\x81", "uses NEWOBJ"),
    "NEWOBJ_EX": (ORDERED + b")}\x92", "uses NEWOBJ_EX"),
    "a set": (b"\x8f", "uses EMPTY_SET"),
    "a buffer": (b"\x97", "uses NEXT_BUFFER"),
    "list as a key": (b"}]Ns", "keys are no names"),
    "tuple as a key": (b"})Ns", "keys are no names"),
    "odd number of items": (b"}(" + text("x") * 3 + b"u", "damaged pickle"),
    "memo that is not there": (b"h\x63", "damaged pickle"),
    "pop from nothing": (b"(\x85", "damaged pickle"),
    "unknown opcode": (b"\xff", "damaged pickle"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_pickles_are_refused(name, tmp_path):
    opcodes, part = ODD[name]
    for path in both_containers(tmp_path, around(opcodes)):
        assert part in refused(path)


HUGE = {
    "memo far away": b"N" + b"r\xff\xff\xff\x7f",
    "long text": b"\x8d" + struct.pack("<Q", 2**40),
    "long bytes": b"\x8e" + struct.pack("<Q", 2**40),
    "long buffer": b"\x96" + struct.pack("<Q", 2**40),
    "long number": b"\x8b" + struct.pack("<i", 2**30),
    "deep tuple": b")" + b"\x85" * 4 * 10**4,
    "deep tuple as a key": b"})" + b"\x85" * 4 * 10**4 + b"Ns",
    "deep marks": b"(" * 4 * 10**4,
    "lists of lists of lists": b"]" + b"2(22e" * 60,
    "tuples of tuples": b")q\x00" + b"h\x00h\x00\x86q\x00" * 60,
    "list that holds itself": b"]q\x00h\x00a",
    "dict that holds itself": b"}q\x00" + text("x") + b"h\x00s",
}


@pytest.mark.parametrize("name", HUGE)
def test_what_a_pickle_costs_is_bounded(name, tmp_path):
    for path in both_containers(tmp_path, around(HUGE[name])):
        tracemalloc.start()
        try:
            assert list(read(path)) == ["a"]
        except InputError:
            pass
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 30 * 2**20


# Damage


def test_wrong_files(tmp_path):
    path = tmp_path / "a.bin"
    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n"
    for content in (b"", b"P", b"x" * 100, lfs, pickle.dumps({"a": 1}), bytes(100)):
        path.write_bytes(content)
        assert refused(path) == "is not a file of torch.save"
    path.write_bytes(b"PK\3\4" + bytes(100))
    assert "not a whole zip archive" in refused(path)
    content = pickled({"a": tensor()})
    assert refused(write_legacy(path, content, magic=MAGIC + 1)) == "is not a file of torch.save"
    assert "unknown version" in refused(write_legacy(path, content, version=1002))
    refused(write_legacy(path, content, NUMBERS.tobytes(), count=-1))
    refused(write_legacy(path, content, NUMBERS.tobytes(), count=11))
    refused(write_legacy(path, content, NUMBERS.tobytes(), keys=("1",)))
    refused(write_legacy(path, content, NUMBERS.tobytes(), keys=()))
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "nowhere.bin")


@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_truncated_files(container, tmp_path):
    whole = save({"a": torch.ones(9), "b": torch.ones(5)}, tmp_path / "a", container).read_bytes()
    path = tmp_path / "b.bin"
    for length in (*range(0, len(whole) - 40, 5), *range(len(whole) - 40, len(whole))):
        path.write_bytes(whole[:length])
        refused(path)
    path.write_bytes(whole)
    assert len(read(path)) == 2


def test_archives_that_are_not_of_torch(tmp_path):
    path = tmp_path / "a.bin"
    content = pickled({"a": tensor()})
    assert "'0' is not there" in refused(write_zip(path, content))
    message = refused(write_zip(path, content, NUMBERS.tobytes(), zipfile.ZIP_DEFLATED))
    assert "is compressed or encrypted" in message
    np.savez(tmp_path / "a.npz", a=NUMBERS)
    assert "holds no data.pkl" in refused(tmp_path / "a.npz")
    assert "far more than a state dict needs" in refused(write_zip(path, bytes(2**23 + 1)))


def test_records_that_claim_more_than_the_file(tmp_path):
    path = write_zip(tmp_path / "a.bin", pickled({"a": tensor()}), NUMBERS.tobytes())
    content = path.read_bytes()
    directory = content.index(b"PK\1\2")
    sizes = struct.pack("<II", 48, 48)  # stored and real, of the only record that is this long
    place = content.index(sizes, directory)
    path.write_bytes(content[:place] + struct.pack("<II", 2**31, 2**31) + content[place + 8 :])
    assert refused(path).startswith("truncated: record archive/data/0 ends after the end")


def test_flipped_bytes_are_noticed(bert, tmp_path):
    path = save(bert.state_dict(), tmp_path / "a.bin")
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo("a/data/3")
    content = bytearray(path.read_bytes())
    content[entry.header_offset + 1000] ^= 1  # after the header, which is padded to 64 bytes
    path.write_bytes(content)
    assert "damaged, its checksum differs" in refused(path)


@pytest.mark.filterwarnings("ignore:invalid escape")  # in a text that damage made
@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_any_damage_gives_tensors_or_one_line(container, tmp_path):
    content = {"a": torch.ones(3, 2), "b": torch.nn.Parameter(torch.ones(2).bfloat16())}
    whole = save(content, tmp_path / "a.bin", container).read_bytes()
    path = tmp_path / "b.bin"
    draw = random.Random(0)
    outcomes = collections.Counter()
    for _ in range(600):
        damaged = bytearray(whole)
        for _ in range(draw.choice((1, 1, 2, 8))):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            outcomes["read" if read(path) else "empty"] += 1
        except InputError as error:
            outcomes["refused" if "\n" not in str(error) else "several lines"] += 1
    assert set(outcomes) == {"read", "refused"}
    assert min(outcomes.values()) > 20


# Memory


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_tensor_is_read_when_asked_for(container, tmp_path):
    many = torch.zeros(30, 2**18)
    content = {"first": torch.ones(2**22), **{f"row {i}": many[i] for i in range(30)}}
    path = save(content, tmp_path / "a.bin", container)
    head = 10 * 2**20  # the pickles of a legacy file are looked for in its first 8 MB

    def peak(action):
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        action()
        return tracemalloc.get_traced_memory()[1] - before

    tracemalloc.start()
    try:
        with torch_bin.open_tensors(path) as tensors:
            assert peak(tensors.shapes) < 2**20
            assert peak(lambda: tensors.read("first")) < 2**24 * 1.1
            assert peak(lambda: tensors.read("row 7")) < 2**20 * 1.1  # not the storage of all rows

        def look():
            with torch_bin.open_tensors(path) as tensors:
                tensors.shapes()

        assert peak(look) < (2 * head if container == "legacy" else 2**20)
    finally:
        tracemalloc.stop()

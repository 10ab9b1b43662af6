"""Flax files: those of transformers 4 are read, and ours are byte for byte what flax writes."""

import collections
import json
import logging
import random
import re
import shutil
import struct
import tracemalloc
from pathlib import Path

import flax.serialization
import jax
import ml_dtypes
import msgpack
import numpy as np
import pytest
import torch
import transformers
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save

from bertjax.errors import InputError
from bertjax.pretrained import flax_msgpack, from_pretrained, names

STORED = Path(__file__).parent / "data" / "formats"
CLASSES = [
    "BertModel",
    "BertForPreTraining",
    "BertForMaskedLM",
    "BertForNextSentencePrediction",
    "BertForSequenceClassification",
    "BertForMultipleChoice",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
]
FILES = [*CLASSES, "untied", "sharded", "bfloat16", "float16"]
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
ALL_IN_ONE = 10**12


def read(path):
    with flax_msgpack.open_tensors(path) as tensors:
        arrays = {name: tensors.read(name) for name in tensors.shapes()}
        assert tensors.shapes() == {name: array.shape for name, array in arrays.items()}
    return arrays


def stored(name):
    """A model's directory, its class, its tensors, its inputs and its outputs."""
    directory = STORED / f"flax_{name}"
    (path,) = [directory / file for file in flax_msgpack.FILES if (directory / file).is_file()]
    (architecture,) = json.loads((directory / "config.json").read_text())["architectures"]
    outputs = dict(np.load(f"{directory}.npz"))
    inputs = {key: outputs.pop(key) for key in INPUTS}
    return directory, architecture, read(path), inputs, outputs


def refused(path):
    """The one line with which a file is refused."""
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def assert_same_bits(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype, name
        assert ours[name].shape == array.shape, name
        assert ours[name].tobytes() == array.tobytes(), name


# Files of transformers 4


@pytest.mark.parametrize("name", FILES)
def test_transformers_5_makes_the_same_of_the_tensors(name):
    directory, architecture, arrays, inputs, outputs = stored(name)
    config = transformers.BertConfig.from_pretrained(directory)
    model = getattr(transformers, architecture)(config).float().eval()
    state = {key: torch.from_numpy(np.array(x, np.float32)) for key, x in arrays.items()}
    if name == "untied":
        state[names.DECODER_BIAS] = state[names.BIAS]
    absent, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(absent) <= ({names.DECODER, names.DECODER_BIAS} if name != "untied" else set())
    with torch.no_grad():
        result = model(**{key: torch.from_numpy(x).long() for key, x in inputs.items()})
    assert outputs.keys() == result.keys()
    for key, want in outputs.items():
        assert np.abs(want).max() > 0.1
        np.testing.assert_allclose(result[key].numpy(), want, rtol=0, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", FILES)
def test_bertjax_makes_the_same_of_the_directory(name):
    directory, architecture, _, inputs, outputs = stored(name)
    model, params = from_pretrained(directory)
    assert type(model).__name__ == architecture
    result = jax.jit(lambda p: model.apply({"params": p}, **inputs))(params)
    for key, want in outputs.items():
        np.testing.assert_allclose(getattr(result, key), want, rtol=0, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", FILES)
def test_every_bit_is_what_flax_reads(name):
    directory, _, arrays, _, _ = stored(name)
    want = {}
    for file in directory.glob("*.msgpack"):
        want |= flatten_dict(flax.serialization.msgpack_restore(file.read_bytes()), sep="/")
    kind = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}.get(name, np.float32)
    assert {array.dtype for array in arrays.values()} == {np.dtype(kind)}
    ours = {}
    for key in want:
        parent, leaf = key.rsplit("/", 1)
        torch_leaf = "bias" if leaf == "bias" else "weight"
        tensor = arrays.pop(f"{parent.replace('/', '.')}.{torch_leaf}")
        ours[key] = tensor.T if leaf == "kernel" else tensor
    assert not arrays
    assert_same_bits(ours, want)


@pytest.mark.parametrize("name", FILES)
def test_ours_are_byte_for_byte_those_of_transformers_4(name, tmp_path):
    directory, _, arrays, _, _ = stored(name)
    flax_msgpack.write(tmp_path, arrays, 5000 if name == "sharded" else ALL_IN_ONE)
    theirs = {path.name: path.read_bytes() for path in directory.glob("*.msgpack*")}
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == theirs


# Writing


def random_tensors(dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = {
        "bert.embeddings.word_embeddings.weight": (70, 8),
        "bert.embeddings.LayerNorm.weight": (8,),
        "bert.embeddings.LayerNorm.bias": (8,),
        "bert.encoder.layer.0.attention.self.query.weight": (8, 8),
        "bert.encoder.layer.0.attention.self.query.bias": (8,),
        "bert.encoder.layer.0.attention.self.distance_embedding.weight": (9, 4),
        "bert.encoder.layer.0.intermediate.dense.weight": (12, 8),
        "bert.encoder.layer.10.output.dense.weight": (200, 120),
        "cls.predictions.bias": (70,),
        "cls.predictions.decoder.weight": (70, 8),
        "classifier.weight": (3, 8),
        "classifier.bias": (3,),
    }
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


FLAX_NAMES = {
    "bert/embeddings/word_embeddings/embedding": (70, 8),
    "bert/embeddings/LayerNorm/scale": (8,),
    "bert/embeddings/LayerNorm/bias": (8,),
    "bert/encoder/layer/0/attention/self/query/kernel": (8, 8),
    "bert/encoder/layer/0/attention/self/query/bias": (8,),
    "bert/encoder/layer/0/attention/self/distance_embedding/embedding": (9, 4),
    "bert/encoder/layer/0/intermediate/dense/kernel": (8, 12),
    "bert/encoder/layer/10/output/dense/kernel": (120, 200),
    "cls/predictions/bias": (70,),
    "cls/predictions/decoder/kernel": (8, 70),
    "classifier/kernel": (8, 3),
    "classifier/bias": (3,),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("size", [ALL_IN_ONE, 40_000, 1])
def test_round_trip_is_bitwise(dtype, size, tmp_path):
    tensors = random_tensors(dtype)
    flax_msgpack.write(tmp_path, tensors, size)
    sharded = size != ALL_IN_ONE
    assert [(tmp_path / file).is_file() for file in flax_msgpack.FILES] == [not sharded, sharded]
    assert_same_bits(read(tmp_path / flax_msgpack.FILES[sharded]), tensors)


def test_names_and_bytes_are_flaxs_own(tmp_path):
    tensors = random_tensors()
    flax_msgpack.write(tmp_path, tensors, ALL_IN_ONE)
    content = (tmp_path / "flax_model.msgpack").read_bytes()
    tree = flax.serialization.msgpack_restore(content)
    flat = flatten_dict(tree, sep="/")
    assert {name: array.shape for name, array in flat.items()} == FLAX_NAMES
    name = "encoder.layer.10.output.dense.weight"
    np.testing.assert_array_equal(
        flat["bert/encoder/layer/10/output/dense/kernel"].T, tensors[f"bert.{name}"]
    )
    assert content == flax.serialization.to_bytes(unflatten_dict(flat, sep="/"))


def test_index_of_shards(tmp_path):
    tensors = random_tensors()
    flax_msgpack.write(tmp_path, tensors, 40_000)
    index = json.loads((tmp_path / "flax_model.msgpack.index.json").read_text())
    assert index["metadata"] == {"total_size": sum(x.nbytes for x in tensors.values())}
    assert index["weight_map"].keys() == FLAX_NAMES.keys()
    for file in set(index["weight_map"].values()):
        assert re.fullmatch(r"flax_model-0000\d-of-0000\d\.msgpack", file)
        tree = flax.serialization.msgpack_restore((tmp_path / file).read_bytes())
        held = {name for name, shard in index["weight_map"].items() if shard == file}
        assert flatten_dict(tree, sep="/").keys() == held


def test_arrays_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 1000)
    monkeypatch.setattr(flax_msgpack, "_CHUNK_BYTES", 1000)
    tensors = random_tensors()
    flax_msgpack.write(tmp_path, tensors, ALL_IN_ONE)
    path = tmp_path / "flax_model.msgpack"
    content = path.read_bytes()
    assert content.count(b"__msgpack_chunked_array__") == 3
    tree = flax.serialization.msgpack_restore(content)
    assert content == flax.serialization.to_bytes(tree)
    assert_same_bits(read(path), tensors)


def test_the_decoders_bias_is_that_of_the_head(tmp_path):
    tensors = random_tensors()
    bias = tensors["cls.predictions.bias"]
    tensors |= {"cls.predictions.bias": bias + 1, "cls.predictions.decoder.bias": bias}
    flax_msgpack.write(tmp_path, tensors, ALL_IN_ONE)
    assert_same_bits(read(tmp_path / "flax_model.msgpack"), random_tensors())


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("bert.embeddings.position_ids", (1, 5)),
        ("bert.pooler.dense.weight", (2, 2, 2)),
        ("bert.pooler.dense.bias", ()),
        ("bert.embeddings.LayerNorm.gamma", (3,)),
    ],
)
def test_what_no_flax_model_has_is_not_written(name, shape, tmp_path):
    with pytest.raises(InputError, match=f"^{re.escape(f'{name} {list(shape)}')}: no Flax model"):
        flax_msgpack.write(tmp_path, random_tensors() | {name: np.zeros(shape)}, ALL_IN_ONE)
    assert not list(tmp_path.iterdir())


# Damage


def write_tree(path, tree):
    path.write_bytes(flax.serialization.msgpack_serialize(tree))
    return path


def test_what_is_no_array_is_named(tmp_path, caplog):
    tree = {"step": 3, "a": {"bias": np.ones(2, np.float32), "rate": -0.5, "none": None}}
    with caplog.at_level(logging.INFO, logger="bertjax"):
        arrays = read(write_tree(tmp_path / "a.msgpack", tree | {"n": 2**40, "b": True}))
    assert list(arrays) == ["a.bias"]
    (line,) = caplog.messages
    assert line.endswith("left out what is no array: a/none, a/rate, b, n, step")


@pytest.mark.parametrize("kind", ["int8", "uint16", "int32", "uint64", "bool", "float64"])
def test_other_types(kind, tmp_path):
    tree = {"a": np.arange(6).astype(kind).reshape(2, 3), "b": np.ones((), kind), "c": np.int8(3)}
    path = write_tree(tmp_path / "a.msgpack", tree | {"empty": np.zeros((3, 0), kind)})
    want = tree | {"c": np.asarray(tree["c"]), "empty": np.zeros((3, 0), kind)}
    assert_same_bits(read(path), want)


def test_wrong_files(tmp_path):
    path = tmp_path / "a.msgpack"
    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n"
    wrong = (lfs, b'{"a": 1}', b"PK\3\4" + bytes(50), msgpack.packb([1, 2]), msgpack.packb("text"))
    for content in (*wrong, b"\xc1", save({"a": np.ones(3)})):
        path.write_bytes(content)
        message = refused(path)
        assert re.match("is not|holds (array|text) where|truncated", message), (content, message)
    for content in (b"", b"\x81", msgpack.packb({"a": 1})[:-1]):
        path.write_bytes(content)
        assert refused(path).startswith("truncated")
    path.write_bytes(msgpack.packb({}) + b"\0")
    assert refused(path) == "damaged: more follows its end (byte 1)"
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "nowhere.msgpack")


def array_bytes(shape=(2, 3), kind="float32", size=24, parts=3):
    return msgpack.packb([list(shape), kind, bytes(size), None][:parts])


ODD = {
    "size": array_bytes(size=20),
    "shape": array_bytes((2, 4)),
    "shape of floats": array_bytes((2.0, 3.0)),
    "negative shape": array_bytes((-2, -3)),
    "shape of arrays": array_bytes(([2], 3)),
    "huge shape": array_bytes((2**60, 2**60, 0), size=0)[:-1],
    "number of dimensions": array_bytes((1,) * 9, size=4),
    "type": array_bytes(kind="object"),
    "another type": array_bytes(kind="<f4"),
    "structured type": array_bytes(kind="f4,f4"),
    "two parts": array_bytes(parts=2),
    "four parts": array_bytes(parts=4),
    "no array": msgpack.packb({"a": 1}),
    "text for the bytes": msgpack.packb([[2, 3], "float32", "x" * 24]),
    "nothing": b"",
    "more than itself": array_bytes() + b"\0",
    "length of the bytes": array_bytes().replace(struct.pack(">BB", 0xC4, 24), b"\xc4\xff"),
}


@pytest.mark.parametrize("name", ODD)
def test_damaged_arrays(name, tmp_path):
    path = tmp_path / "a.msgpack"
    tree = {"a": {"bias": msgpack.ExtType(1, array_bytes())}}
    path.write_bytes(msgpack.packb(tree))
    assert list(read(path)) == ["a.bias"]
    path.write_bytes(msgpack.packb(tree | {"b": msgpack.ExtType(1, ODD[name]), "z": 1}))
    refused(path)


def test_damaged_trees(tmp_path):
    path = tmp_path / "a.msgpack"
    deep = 1
    for _ in range(400):
        deep = {"a": deep}
    array = msgpack.ExtType(1, array_bytes())
    for tree in (
        {"a": [1, 2]},
        {"a": "text"},
        {"a": b"bytes"},
        {"a": msgpack.ExtType(2, b"\x92\1\2")},
        {"a": msgpack.ExtType(77, array_bytes())},
        {1: array},
        {None: array},
        deep,
    ):
        path.write_bytes(msgpack.packb(tree))
        refused(path)
    path.write_bytes(b"\x81\xa1\xff\x01")
    assert "a name is no text" in refused(path)
    path.write_bytes(b"\xdf\xff\xff\xff\xff")
    assert refused(path).startswith("truncated")


def test_damaged_pieces(tmp_path):
    path = tmp_path / "a.msgpack"
    piece = msgpack.ExtType(1, array_bytes((6,)))
    good = {"shape": {"0": 4, "1": 3}, "chunks": {"0": piece, "1": piece}}

    def write(**changes):
        path.write_bytes(msgpack.packb({"a": {"__msgpack_chunked_array__": True} | good | changes}))

    write()
    assert read(path)["a"].shape == (4, 3)
    other = msgpack.ExtType(1, array_bytes((6,), "int32"))
    for changes in (
        {"shape": {"0": 4, "1": 4}},
        {"shape": {"0": -4, "1": -3}},
        {"shape": {"0": 4.0, "1": 3}},
        {"shape": {"0": 4, "2": 3}},
        {"shape": 12},
        {"shape": {"0": {"x": 1}}},
        {"chunks": {"0": piece}},
        {"chunks": {"0": piece, "1": other}},
        {"chunks": {"0": piece, "1": 5}},
        {"chunks": {"1": piece, "2": piece}},
        {"chunks": {}},
        {"chunks": None},
    ):
        write(**changes)
        assert "an array's pieces" in refused(path)


def test_truncated_files(tmp_path):
    small = {name: x for name, x in random_tensors().items() if x.nbytes < 300}
    flax_msgpack.write(tmp_path, small, ALL_IN_ONE)
    path = tmp_path / "flax_model.msgpack"
    whole = path.read_bytes()
    for length in (*range(0, len(whole) - 40, 3), *range(len(whole) - 40, len(whole))):
        path.write_bytes(whole[:length])
        assert refused(path).startswith("truncated")


def test_any_damage_gives_tensors_or_one_line(tmp_path):
    small = {name: x for name, x in random_tensors().items() if x.nbytes < 300}
    flax_msgpack.write(tmp_path, small, ALL_IN_ONE)
    path = tmp_path / "flax_model.msgpack"
    whole = path.read_bytes()
    draw = random.Random(0)
    outcomes = collections.Counter()
    for _ in range(600):
        damaged = bytearray(whole)
        for _ in range(draw.choice((1, 1, 2, 8))):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            read(path)
            outcomes["read"] += 1
        except InputError as error:
            outcomes["refused" if "\n" not in str(error) else "several lines"] += 1
    assert set(outcomes) == {"read", "refused"}
    assert min(outcomes.values()) > 50


def test_damaged_sharded_checkpoints(tmp_path):
    directory = shutil.copytree(STORED / "flax_sharded", tmp_path / "copy")
    index = directory / "flax_model.msgpack.index.json"
    shard = sorted(directory.glob("*.msgpack"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=f"^{re.escape(str(shard))}: truncated"):
        read(index)
    shard.unlink()
    assert shard.name in refused(index)
    index.write_text("[]")
    refused(index)


def test_files_that_shrink_while_they_are_read(tmp_path):
    flax_msgpack.write(tmp_path, random_tensors(), ALL_IN_ONE)
    path = tmp_path / "flax_model.msgpack"
    with flax_msgpack.open_tensors(path) as tensors:
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(InputError, match=r"tensor classifier\.weight: truncated"):
            tensors.read("classifier.weight")


# Memory


def test_a_tensor_is_read_when_asked_for(tmp_path):
    tensors = {f"bert.layer.{i}.weight": np.zeros((2**10, 2**10), np.float32) for i in range(8)}
    size = 2**22

    def peak(action):
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        action()
        return tracemalloc.get_traced_memory()[1] - before

    def look():
        with flax_msgpack.open_tensors(tmp_path / "flax_model.msgpack") as files:
            files.shapes()

    tracemalloc.start()
    try:
        assert peak(lambda: flax_msgpack.write(tmp_path, tensors, ALL_IN_ONE)) < 1.1 * size
        assert peak(look) < 2**17
        with flax_msgpack.open_tensors(tmp_path / "flax_model.msgpack") as files:
            assert peak(lambda: files.read("bert.layer.3.weight")) < 1.1 * size
    finally:
        tracemalloc.stop()

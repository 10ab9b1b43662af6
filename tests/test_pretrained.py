"""Weights in and out: files of transformers, damaged ones, other prefixes, half-written ones."""

import dataclasses
import errno
import json
import logging
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from jax.sharding import NamedSharding
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch

from bertjax.config import BertConfig
from bertjax.errors import InputError
from bertjax.heads import BertForPreTraining
from bertjax.model import BertModel
from bertjax.model_commands import ConvertConfig
from bertjax.pretrained import abstract_params, load_pretrained, names, safetensors, save_pretrained
from bertjax.pretrained.convert import convert
from bertjax.run_config import MeshConfig
from bertjax.sharding import make_mesh, state_shardings

SMALL = BertConfig(
    vocab_size=50,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
    max_position_embeddings=16,
    initializer_range=0.3,
)
UNTIED = dataclasses.replace(SMALL, tie_word_embeddings=False)
IDS = np.random.default_rng(0).integers(0, 50, (3, 9), dtype=np.int32)


def random_params(model):
    """Parameters with nothing at its initial value, made without running the model."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), abstract_params(model)
    )


def assert_equal(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for (path, a), (_, b) in zip(names.parameters(ours), names.parameters(theirs), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype == np.float32, path
        np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32), err_msg=path)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A model of transformers with nothing at its initial value, and its directory."""
    torch.manual_seed(0)
    settings = {k: v for k, v in SMALL.to_dict().items() if k not in ("model_type", "num_labels")}
    model = transformers.BertForPreTraining(transformers.BertConfig(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    directory = tmp_path_factory.mktemp("theirs")
    model.save_pretrained(directory)
    return model, directory


def copy_with(theirs, directory, change):
    """Their directory with the tensors that `change` makes of its tensors."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_bytes((theirs[1] / "config.json").read_bytes())
    save_torch(change(load_torch(theirs[1] / "model.safetensors")), directory / "model.safetensors")
    return directory


def assert_same_outputs(model, params, peer):
    ours = jax.jit(lambda p: model.apply({"params": p}, IDS))(params)
    with torch.no_grad():
        want = peer(torch.tensor(IDS, dtype=torch.long))
    for ours_, want_ in (
        (ours.prediction_logits, want.prediction_logits),
        (ours.seq_relationship_logits, want.seq_relationship_logits),
    ):
        np.testing.assert_allclose(ours_, want_.numpy(), rtol=0, atol=2e-5)


MODELS = {
    "encoder": BertModel(SMALL),
    "no pooler": BertModel(SMALL, add_pooling_layer=False),
    "pretraining": BertForPreTraining(SMALL),
    "untied": BertForPreTraining(UNTIED),
    "relative": BertModel(dataclasses.replace(SMALL, position_embedding_type="relative_key")),
    "one layer": BertModel(dataclasses.replace(SMALL, num_hidden_layers=1)),
}


@pytest.mark.parametrize("name", MODELS)
def test_round_trip_is_bitwise(name, tmp_path):
    model = MODELS[name]
    params = random_params(model)
    save_pretrained(tmp_path, model, params)
    attributes = {"add_pooling_layer": False} if name == "no pooler" else {}
    loaded, back = load_pretrained(type(model), tmp_path, **attributes)
    assert_equal(back, params)
    assert dataclasses.replace(loaded.config, other=()) == model.config
    assert dict(loaded.config.other) == {
        "architectures": json.dumps([type(model).__name__]),
        "dtype": '"float32"',
    }
    assert type(loaded) is type(model)
    # A file alone will do where the config is given.
    _, back = load_pretrained(
        type(model), tmp_path / "model.safetensors", config=model.config, **attributes
    )
    assert_equal(back, params)


@pytest.mark.parametrize("name", ["encoder", "pretraining", "untied"])
def test_transformers_loads_it_whole(name, tmp_path):
    model = MODELS[name]
    params = random_params(model)
    save_pretrained(tmp_path, model, params)
    peer, report = getattr(transformers, type(model).__name__).from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report.values()), report
    if name != "encoder":
        assert_same_outputs(model, params, peer.eval())
    state = peer.state_dict()
    for path, leaf in names.parameters(params):
        for tensor in names.hf_tensors(path, leaf.shape):
            np.testing.assert_array_equal(state[tensor.name].numpy(), tensor.encode(leaf), path)
    assert peer.config.architectures == [type(model).__name__]


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "10KB"}])
def test_files_of_transformers(theirs, options, tmp_path):
    theirs[0].save_pretrained(tmp_path, **options)
    shards = list(tmp_path.glob("model-*.safetensors"))
    assert bool(shards) == bool(options)
    assert len(shards) != 1
    model, params = load_pretrained(BertForPreTraining, tmp_path)
    assert_same_outputs(model, params, theirs[0])


def test_untied_decoder_of_transformers(theirs, tmp_path):
    torch.manual_seed(1)
    settings = theirs[0].config.to_dict() | {"tie_word_embeddings": False}
    peer = transformers.BertForPreTraining(transformers.BertConfig(**settings)).eval()
    with torch.no_grad():  # the bias that is applied, and the one that is not
        peer.cls.predictions.decoder.bias += torch.randn(50)
        peer.cls.predictions.bias += 9.0
    peer.save_pretrained(tmp_path)
    model, params = load_pretrained(BertForPreTraining, tmp_path)
    assert not model.config.tie_word_embeddings
    assert_same_outputs(model, params, peer)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_files_load_as_float32(theirs, kind, tmp_path):
    directory = copy_with(theirs, tmp_path, lambda t: {n: x.to(kind) for n, x in t.items()})
    _, params = load_pretrained(BertForPreTraining, directory)
    tensors = load_torch(theirs[1] / "model.safetensors")
    count = 0
    for path, leaf in names.parameters(params):
        assert leaf.dtype == jnp.float32
        for tensor in names.hf_tensors(path, leaf.shape):
            want = tensors[tensor.name].to(kind).float().numpy()
            np.testing.assert_array_equal(tensor.encode(np.asarray(leaf)), want, path)
            count += 1
    assert count == len(tensors)


def test_encoder_from_a_pretraining_checkpoint_says_what_it_leaves_out(theirs, caplog):
    with caplog.at_level(logging.INFO, logger="bertjax.pretrained"):
        model, params = load_pretrained(BertModel, theirs[1])
    (line,) = caplog.messages
    assert "left out" in line
    assert "cls.seq_relationship.weight" in line
    assert "pooler" not in line
    ours = jax.jit(lambda p: model.apply({"params": p}, IDS))(params)
    with torch.no_grad():
        want = theirs[0].bert(torch.tensor(IDS, dtype=torch.long))
    np.testing.assert_allclose(ours.pooler_output, want.pooler_output.numpy(), rtol=0, atol=2e-5)
    _, bare = load_pretrained(BertModel, theirs[1], add_pooling_layer=False)
    assert bare.keys() == {"embeddings", "encoder"}
    assert_equal(bare, {k: params[k] for k in bare})


def test_a_base_checkpoint_gets_a_new_head_and_says_so(theirs, tmp_path, caplog):
    theirs[0].bert.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, logger="bertjax.pretrained"):
        model, params = load_pretrained(BertForPreTraining, tmp_path, key=jax.random.key(3))
    assert caplog.messages == [
        f"{tmp_path}: newly initialised, not in the checkpoint: cls/predictions/bias, "
        "cls/predictions/transform/LayerNorm/bias, cls/predictions/transform/LayerNorm/scale, "
        "cls/predictions/transform/dense/bias, cls/predictions/transform/dense/kernel, "
        "cls/seq_relationship/bias, cls/seq_relationship/kernel"
    ]
    want = jax.jit(model.init)(jax.random.key(3), IDS)["params"]["cls"]
    assert_equal(params["cls"], want)
    _, whole = load_pretrained(BertForPreTraining, theirs[1])
    assert_equal(params["bert"], whole["bert"])


WRAPPINGS = {
    "data parallel": lambda t: {f"module.{n}": x for n, x in t.items()},
    "compiled": lambda t: {f"_orig_mod.{n}": x for n, x in t.items()},
    "both": lambda t: {f"_orig_mod.module.{n}": x for n, x in t.items()},
    "tensorflow's names": lambda t: {
        re.sub(
            r"(LayerNorm)\.weight$", r"\1.gamma", re.sub(r"(LayerNorm)\.bias$", r"\1.beta", n)
        ): x
        for n, x in t.items()
    },
    "tied decoder written out": lambda t: (
        t
        | {
            "cls.predictions.decoder.weight": t["bert.embeddings.word_embeddings.weight"].clone(),
            "cls.predictions.decoder.bias": t["cls.predictions.bias"].clone(),
        }
    ),
    "position ids": lambda t: t | {"bert.embeddings.position_ids": torch.arange(16)[None]},
    "type ids": lambda t: t | {"bert.embeddings.token_type_ids": torch.zeros(1, 16).long()},
}


@pytest.mark.parametrize("name", WRAPPINGS)
def test_names_of_other_origins(name, theirs, tmp_path):
    directory = copy_with(theirs, tmp_path, WRAPPINGS[name])
    _, want = load_pretrained(BertForPreTraining, theirs[1])
    _, params = load_pretrained(BertForPreTraining, directory)
    assert_equal(params, want)


def test_everything_amiss_is_listed_at_once(theirs, tmp_path):
    def change(tensors):
        del tensors["bert.pooler.dense.bias"]
        del tensors["bert.encoder.layer.1.output.dense.weight"]
        tensors["bert.encoder.layer.2.output.dense.bias"] = torch.zeros(24)
        tensors["bert.encoder.layer.0.output.dense.bias"] = torch.zeros(7)
        return tensors

    directory = copy_with(theirs, tmp_path, change)
    with pytest.raises(InputError) as caught:
        load_pretrained(BertForPreTraining, directory)
    assert str(caught.value) == (
        f"{directory}: 4 tensors do not fit: "
        "missing bert.encoder.layer.1.output.dense.weight [24, 40]; "
        "missing bert.pooler.dense.bias [24]; "
        "misshapen bert.encoder.layer.0.output.dense.bias [7], the config says [24]; "
        "unexpected bert.encoder.layer.2.output.dense.bias [24]"
    )
    with pytest.raises(InputError, match=r"layer\.2\.output"):
        load_pretrained(BertModel, directory)


def test_the_same_fault_of_several_layers_is_told_once(theirs, tmp_path):
    def change(tensors):
        for layer in (2, 3, 4, 7, 10, 11):
            tensors[f"bert.encoder.layer.{layer}.output.dense.bias"] = torch.zeros(24)
        tensors["bert.encoder.layer.6.output.dense.bias"] = torch.zeros(8)
        for layer in (0, 1):
            tensors[f"bert.encoder.layer.{layer}.output.LayerNorm.bias"] = torch.zeros(8)
        tensors["bertt.encoder.layer.1.output.dense.bias"] = torch.zeros(24)
        return tensors

    directory = copy_with(theirs, tmp_path, change)
    with pytest.raises(InputError) as caught:
        load_pretrained(BertForPreTraining, directory)
    start, *faults = re.split(r": (?=misshapen)|; ", str(caught.value))
    assert start == f"{directory}: 10 tensors do not fit"
    assert sorted(faults) == [
        "misshapen bert.encoder.layer.0-1.output.LayerNorm.bias [8], the config says [24]",
        "unexpected bert.encoder.layer.2-4,7,10-11.output.dense.bias [24]",
        "unexpected bert.encoder.layer.6.output.dense.bias [8]",
        "unexpected bertt.encoder.layer.1.output.dense.bias [24]",
    ]


def test_config_that_contradicts_the_weights(theirs):
    def load(**values):
        config = dataclasses.replace(SMALL, **values)
        with pytest.raises(InputError) as caught:
            load_pretrained(BertForPreTraining, theirs[1], config=config)
        return str(caught.value)

    assert "unexpected bert.encoder.layer.1." in load(num_hidden_layers=1)
    assert "missing bert.encoder.layer.2." in load(num_hidden_layers=3)
    assert "word_embeddings.weight [50, 24], the config says [60, 24]" in load(vocab_size=60)
    assert "missing cls.predictions.decoder.weight [50, 24]" in load(tie_word_embeddings=False)


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[: len(b) // 2],
        lambda b: b[:-1],
        lambda b: b[:4],
        lambda b: b"",
        lambda b: b"PK\3\4" + b,
        lambda b: b[:8] + b"[" + b[9:],
    ],
)
def test_damaged_files_are_named(theirs, damage, tmp_path):
    directory = copy_with(theirs, tmp_path, lambda t: t)
    path = directory / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=re.escape(f"{path}: not a whole safetensors file")):
        load_pretrained(BertForPreTraining, directory)


def test_shards_that_are_not_there(theirs, tmp_path):
    theirs[0].save_pretrained(tmp_path, max_shard_size="10KB")
    index = tmp_path / "model.safetensors.index.json"
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    gone = shards[1].read_bytes()
    shards[1].unlink()
    with pytest.raises(InputError, match=f"names shards that are not there.*{shards[1].name}"):
        load_pretrained(BertForPreTraining, tmp_path)
    shards[1].write_bytes(gone[:-1])
    with pytest.raises(InputError, match=f"{shards[1].name}: not a whole"):
        load_pretrained(BertForPreTraining, tmp_path)
    shards[1].write_bytes(gone)
    outside = '{"weight_map": {"a": "../a.safetensors"}}'
    for text in ("", "[]", "{}", '{"weight_map": []}', outside):
        index.write_text(text)
        with pytest.raises(InputError, match="is not an index of shards"):
            load_pretrained(BertForPreTraining, tmp_path)


def test_shards_that_the_index_does_not_name(theirs, tmp_path):
    """Were a whole head in them, the model would get a new one."""
    theirs[0].save_pretrained(tmp_path, max_shard_size="10KB")
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())["weight_map"]
    shard = content["cls.seq_relationship.weight"]
    index.write_text(json.dumps({"weight_map": {k: v for k, v in content.items() if v != shard}}))
    with pytest.raises(InputError, match=f"index.json: does not name shards .* it: {shard}; take"):
        load_pretrained(BertForPreTraining, tmp_path)
    count = int(shard[-17:-12])
    (tmp_path / shard).unlink()
    with pytest.raises(InputError, match=f": names {count - 1} of {count} shards, and not {shard}"):
        load_pretrained(BertForPreTraining, tmp_path)


def test_one_shard_is_no_model(theirs, tmp_path):
    theirs[0].save_pretrained(tmp_path, max_shard_size="10KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    message = f"{shards[0].name}: is one of {len(shards)} shards; give their index or"
    with pytest.raises(InputError, match=message):
        load_pretrained(BertForPreTraining, shards[0])
    load_pretrained(BertForPreTraining, tmp_path / "model.safetensors.index.json")


def test_directories_without_a_model(theirs, tmp_path):
    with pytest.raises(InputError, match="nowhere: no such model directory or file"):
        load_pretrained(BertModel, tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"holds no config.json"):
        load_pretrained(BertModel, tmp_path)
    SMALL.to_json(tmp_path / "config.json")
    with pytest.raises(InputError, match=r"holds no weights \(none of model.safetensors, "):
        load_pretrained(BertModel, tmp_path)


def contents(directory):
    return {p.name: p.read_bytes() for p in directory.iterdir()}


@pytest.mark.parametrize("moment", ["weights", "tokenizer"])
def test_nothing_is_left_half_written(moment, monkeypatch, tmp_path):
    model = BertModel(SMALL)
    params = random_params(model)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Tokenizer:
        def save_pretrained(self, directory):
            Path(directory, "vocab.txt").write_text("[PAD]\n")
            raise full

    def cut_off(directory, tensors, max_shard_bytes):
        (directory / "model.safetensors").write_bytes(b"\0" * 100)
        raise full

    tokenizer = Tokenizer() if moment == "tokenizer" else None
    for before in ({}, None):
        if before is None:  # an older model stays what it was
            save_pretrained(tmp_path, BertModel(UNTIED), params)
            before = contents(tmp_path)
        with monkeypatch.context() as patch:
            if moment == "weights":
                patch.setattr(safetensors, "write", cut_off)
            with pytest.raises(InputError, match=r"cannot be written \(No space left"):
                save_pretrained(tmp_path, model, params, tokenizer)
        assert contents(tmp_path) == before


def test_directories_that_cannot_be_written(tmp_path):
    (tmp_path / "taken").write_text("a file")
    model = BertModel(SMALL)
    for directory in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(InputError, match=f"^{directory}: cannot be written"):
            save_pretrained(directory, model, random_params(model))


def test_everyone_may_read_the_files(tmp_path):
    class Tokenizer:
        def save_pretrained(self, directory):
            Path(directory, "vocab.txt").write_text("[PAD]\n")
            Path(directory, "vocab.txt").chmod(0o600)

    model = BertModel(SMALL)
    save_pretrained(tmp_path / "a" / "b", model, random_params(model), Tokenizer())
    files = sorted((tmp_path / "a" / "b").iterdir())
    assert [f.name for f in files] == ["README.md", "config.json", "model.safetensors", "vocab.txt"]
    assert all(f.stat().st_mode & 0o777 == 0o644 for f in files)


def test_device_arrays_and_half_precision_parameters_are_saved_as_float32(tmp_path):
    model = BertModel(SMALL)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), random_params(model))
    save_pretrained(tmp_path, model, params)
    tensors = load_file(tmp_path / "model.safetensors")
    assert {x.dtype for x in tensors.values()} == {np.dtype(np.float32)}
    _, back = load_pretrained(BertModel, tmp_path)
    assert_equal(back, jax.tree.map(lambda x: np.asarray(x, np.float32), params))


def test_loading_into_shardings(theirs):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    model = BertForPreTraining(SMALL)
    shardings = state_shardings(abstract_params(model), mesh)
    _, params = load_pretrained(BertForPreTraining, theirs[1], shardings=shardings)
    assert jax.tree.map(lambda leaf: leaf.sharding, params) == shardings
    assert all(isinstance(leaf.sharding, NamedSharding) for leaf in jax.tree.leaves(params))
    _, plain = load_pretrained(BertForPreTraining, theirs[1])
    assert_equal(params, plain)


def test_files_of_safetensors_numpy_without_metadata(theirs, tmp_path):
    directory = copy_with(theirs, tmp_path, lambda t: t)
    path = directory / "model.safetensors"
    save_file(load_file(path), path)
    _, want = load_pretrained(BertForPreTraining, theirs[1])
    assert_equal(load_pretrained(BertForPreTraining, directory)[1], want)


def test_what_only_a_tied_decoder_has(theirs, tmp_path):
    """transformers ties either to the other, so a file may have but the decoder's."""
    embeddings, bias = "bert.embeddings.word_embeddings.weight", "cls.predictions.bias"
    _, want = load_pretrained(BertForPreTraining, theirs[1])

    def change(tensors):
        tensors["cls.predictions.decoder.weight"] = tensors.pop(embeddings)
        tensors["cls.predictions.decoder.bias"] = tensors.pop(bias)
        return tensors

    directory = copy_with(theirs, tmp_path, change)
    assert_equal(load_pretrained(BertForPreTraining, directory)[1], want)
    assert_equal(load_pretrained(BertModel, directory)[1], want["bert"])
    untied = dataclasses.replace(SMALL, tie_word_embeddings=False)
    with pytest.raises(InputError, match=f"1 tensors do not fit: missing {embeddings}"):
        load_pretrained(BertForPreTraining, directory, config=untied)


FOREIGN = ("crf.transitions", "my_head.weight", "classifier.0.weight", "log_sigma")


def test_tensors_that_no_bert_has_are_left_out_in_one_line(theirs, tmp_path, caplog):
    def change(tensors):
        return tensors | {name: torch.zeros(3, 2) for name in FOREIGN}

    directory = copy_with(theirs, tmp_path, change)
    with caplog.at_level(logging.WARNING, logger="bertjax.pretrained"):
        _, params = load_pretrained(BertForPreTraining, directory)
    (line,) = caplog.messages
    start = f"{directory}: left out 4 tensors that no BERT has: "
    assert line.startswith(start)
    assert sorted(line.removeprefix(start).split(", ")) == sorted(FOREIGN)
    assert_equal(params, load_pretrained(BertForPreTraining, theirs[1])[1])
    lines = convert(ConvertConfig(str(directory), "nowhere", dry_run=True)).splitlines()
    assert {f"drop  {name} [3, 2]" for name in FOREIGN} < set(lines)


@pytest.mark.parametrize("prefix", ["", "module.", "bert."])
@pytest.mark.parametrize(
    "name",
    [
        "bert.embeddings.word_embeding.weight",
        "bert.something",
        "embeddings.LayerNorm.scale",
        "encoder.layers.0.output.dense.weight",
        "pooler.dens.weight",
        "cls.predictions.transforms.dense.weight",
    ],
)
def test_no_tensor_in_a_part_of_bert_is_left_out(theirs, tmp_path, prefix, name):
    """A head is, by the names that it has; what is misspelt is told."""
    name = prefix + name
    directory = copy_with(theirs, tmp_path, lambda tensors: tensors | {name: torch.zeros(3, 2)})
    for model_class in (BertForPreTraining, BertModel):
        with pytest.raises(InputError, match=rf"1 tensors do not fit: unexpected {name} \[3, 2\]$"):
            load_pretrained(model_class, directory)

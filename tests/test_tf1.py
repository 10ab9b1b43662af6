"""Google's checkpoints by Hugging Face's names, and finding them."""

import json
import logging
import re

import jax
import numpy as np
import pytest

from bertjax.config import BertConfig
from bertjax.errors import InputError
from bertjax.heads import BertForPreTraining
from bertjax.pretrained import names, tf1
from bertjax.pretrained.tf_bundle import open_bundle, write_bundle
from tests.tf1_files import DATA, WHOLE, bits


def test_pretraining_checkpoint_equals_transformers(caplog):
    want = dict(np.load(DATA / "pretraining" / "state_dict.npz"))
    tied = want.pop("cls.predictions.decoder.weight"), want.pop("cls.predictions.decoder.bias")
    assert bits(tied[0]) == bits(want["bert.embeddings.word_embeddings.weight"])
    assert bits(tied[1]) == bits(want["cls.predictions.bias"])
    with (
        caplog.at_level(logging.INFO, logger="bertjax.pretrained"),
        tf1.open_tensors(DATA / "pretraining") as tensors,
    ):
        assert tensors.shapes() == {name: array.shape for name, array in want.items()}
        for name, array in want.items():
            assert bits(tensors.read(name)) == bits(array), name
    (line,) = caplog.messages
    assert line.endswith("left out 93 variables of the training: adam_m, adam_v, global_step")


def test_every_name_of_the_pretraining_model():
    settings = json.loads((DATA / "pretraining" / "bert_config.json").read_text())
    model = BertForPreTraining(BertConfig(**{k: settings[k] for k in SIZES}))
    ids = jax.ShapeDtypeStruct((1, 2), np.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), ids)["params"]
    tensors = {
        tensor.name
        for path, leaf in names.parameters(params)
        for tensor in names.hf_tensors(path, leaf.shape)
    }
    variables = {tensor: tf1.variable_name(tensor) for tensor in tensors}
    assert {tf1.tensor_name(variable): variable for variable in variables.values()} == variables
    with open_bundle(DATA / "pretraining" / "bert_model.ckpt.index") as bundle:
        theirs = {n for n in bundle.entries if not re.search("adam_|global_step", n)}
    assert set(variables.values()) == theirs


SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
)


@pytest.mark.parametrize(
    ("variable", "tensor"),
    [
        ("output_weights", "classifier.weight"),
        ("output_bias", "classifier.bias"),
        ("cls/squad/output_weights", "qa_outputs.weight"),
        ("cls/squad/output_bias", "qa_outputs.bias"),
        (
            "bert/encoder/layer_23/attention/self/key/kernel",
            "bert.encoder.layer.23.attention.self.key.weight",
        ),
        ("bert/encoder/layer_01/output/dense/bias", None),
        ("bert/encoder/layer_x/output/dense/bias", None),
        ("bert/encoder/layer_1/output/dense/gamma", None),
        ("module/bert/pooler/dense/kernel", None),
        ("cls/predictions/output_weights", None),
    ],
)
def test_names(variable, tensor):
    assert tf1.tensor_name(variable) == tensor
    if tensor:
        assert tf1.variable_name(tensor) == variable


@pytest.mark.parametrize("prefix", ["bert.", ""])
def test_write_and_read_by_our_names(prefix, tmp_path):
    rng = np.random.default_rng(0)
    shapes = {
        f"{prefix}embeddings.word_embeddings.weight": (9, 4),
        f"{prefix}encoder.layer.11.intermediate.dense.weight": (6, 4),
        f"{prefix}encoder.layer.11.output.LayerNorm.weight": (4,),
        f"{prefix}pooler.dense.weight": (4, 4),
        "classifier.weight": (3, 4),
        "classifier.bias": (3,),
    }
    arrays = {name: rng.normal(size=shape).astype("f2") for name, shape in shapes.items()}
    tf1.write(tmp_path, arrays, 50)
    assert len(list(tmp_path.glob("bert_model.ckpt.data-*-of-*"))) > 1
    with open_bundle(tmp_path / "bert_model.ckpt.index") as bundle:
        assert bundle.entries["bert/encoder/layer_11/intermediate/dense/kernel"].shape == (4, 6)
        assert bundle.entries["output_weights"].shape == (3, 4)
    with tf1.open_tensors(tmp_path) as tensors:
        back = {name: tensors.read(name) for name in tensors.shapes()}
        assert {n: a.shape for n, a in back.items()} == tensors.shapes()
    want = {
        n if n.startswith("cl") else "bert." + n.removeprefix("bert."): arrays[n] for n in arrays
    }
    assert {n: bits(a) for n, a in back.items()} == {n: bits(a) for n, a in want.items()}


def test_tensors_that_google_has_no_variables_for(tmp_path):
    arrays = {
        "bert.pooler.dense.bias": np.zeros(2, np.float32),
        "cls.predictions.decoder.weight": np.zeros((2, 2), np.float32),
        "bert.encoder.layer.0.attention.self.distance_embedding.weight": np.zeros((2, 2), "f4"),
    }
    with pytest.raises(
        InputError, match=r"no variables for cls.+decoder.+, .+distance_embedding.weight: take"
    ):
        tf1.write(tmp_path, arrays, WHOLE)
    assert not list(tmp_path.iterdir())


def test_what_training_leaves_behind_is_left_out_and_nothing_else(tmp_path):
    kernel = "bert/pooler/dense/kernel"
    slots = [
        *("Adam", "Adam_1", "LAMB", "LAMB_1", "lamb_m", "Momentum", "ExponentialMovingAverage"),
        *("AdamWeightDecayOptimizer", "AdamWeightDecayOptimizer_1"),
    ]
    training = ["global_step", "beta1_power", "beta2_power_1", "loss_scale", "good_steps"]
    strange = [
        "bert/pooler/dense/gamma",  # of no BERT
        "bert/encoder/layer_0/output/dense/kernel/adam_m",  # of a variable that is not there
        "global_steps",
        "loss/output_weights",
    ]
    everything = [kernel, "output_bias", *training, *strange, "output_bias/adam_v"]
    everything += [f"{kernel}/{slot}" for slot in slots]
    arrays = {n: np.full((2, 3), i, np.float32) for i, n in enumerate(everything)}
    write_bundle(tmp_path / "model.ckpt-5", arrays, WHOLE)
    with tf1.open_tensors(tmp_path) as tensors:
        shapes = dict.fromkeys((*strange, "classifier.bias"), (2, 3))
        assert tensors.shapes() == shapes | {"bert.pooler.dense.weight": (3, 2)}
        np.testing.assert_array_equal(tensors.read("bert.pooler.dense.weight"), np.zeros((3, 2)))
        assert bits(tensors.read(strange[1])) == bits(arrays[strange[1]])


# Where a checkpoint is


def test_a_checkpoint_by_any_of_its_names():
    directory = DATA / "shards"
    for name in ("", "model.ckpt-7", "model.ckpt-7.index", "model.ckpt-7.data-00001-of-00003"):
        with tf1.open_tensors(directory / name) as tensors:
            assert len(tensors.shapes()) == 20
    assert tf1.find(directory) == directory / "model.ckpt-7.index"
    assert tf1.find(DATA / "v1") is None


def test_the_latest_of_several(tmp_path):
    for step in (200, 1000):
        write_bundle(tmp_path / f"model.ckpt-{step}", {"a": np.array(step)}, WHOLE)
    with pytest.raises(InputError, match=r"2 checkpoints \(model.ckpt-1000.index, .*-200.index\)"):
        tf1.find(tmp_path)
    state = tmp_path / "checkpoint"
    for path in ("model.ckpt-1000", "/home/x/model.ckpt-1000", r"C:\\run\\model.ckpt-1000"):
        state.write_text(
            f'model_checkpoint_path: "{path}"\nall_model_checkpoint_paths: "model.ckpt-200"\n'
        )
        assert tf1.find(tmp_path) == tmp_path / "model.ckpt-1000.index"
    state.write_text('model_checkpoint_path: "model.ckpt-9"\n')
    with pytest.raises(InputError, match=r"checkpoint: names model.ckpt-9.index, which is not the"):
        tf1.find(tmp_path)
    for content in (b"", b"\xff", b"model_checkpoint_path: model", b'model_checkpoint_path: "\\x"'):
        state.write_bytes(content)
        with pytest.raises(InputError, match="checkpoint: does not name a checkpoint"):
            tf1.find(tmp_path)
    with tf1.open_tensors(tmp_path / "model.ckpt-200") as tensors:
        assert tensors.read("a") == 200


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("v1/model.ckpt", "V1 format, which is not read; restore it"),
        ("v1", r"holds no TensorFlow checkpoint \(\*.index\)"),
        ("nothing", "is no TensorFlow checkpoint: there is no .*nothing.index"),
        ("make.py", "is no TensorFlow checkpoint"),
        ("object", "ckpt-1.index: is an object checkpoint of TensorFlow 2"),
        ("slices", "tensor bert/embeddings/word_embeddings: it is a partitioned variable"),
    ],
)
def test_checkpoints_of_other_kinds(path, message):
    with pytest.raises(InputError, match=message), tf1.open_tensors(DATA / path):
        pass

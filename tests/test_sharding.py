"""The two sharding tables, against every parameter and every rule."""

import re

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from bertjax import EncoderDecoderConfig, EncoderDecoderModel, lora, sharding, train
from bertjax.config import BertConfig
from bertjax.errors import InputError
from bertjax.heads import BertForPreTraining
from bertjax.objectives import PretrainingObjective
from bertjax.pretrained import abstract_params, names
from bertjax.run_config import MeshConfig


class FakeMesh:
    def __init__(self, data, fsdp, model):
        self.shape = {"data": data, "fsdp": fsdp, "model": model}


def paths(**fields):
    model = BertForPreTraining(BertConfig.preset("base", **fields))
    return {path: leaf.shape for path, leaf in names.parameters(abstract_params(model))}


def adapter_paths():
    params = abstract_params(BertForPreTraining(BertConfig.preset("tiny", vocab_size=50)))
    rule = lora.LoraConfig(rank=2, targets=("query", "key", "value", "dense"))
    adapters = jax.eval_shape(lambda p: lora.init(jax.random.key(0), p, rule), params)
    return {path: leaf.shape for path, leaf in names.parameters(adapters)}


def pair_paths():
    tiny = BertConfig.preset("tiny", vocab_size=50)
    wide = BertConfig.preset("mini", vocab_size=50, num_hidden_layers=1)
    config = EncoderDecoderConfig.from_encoder_decoder_configs(wide, tiny)
    params = abstract_params(EncoderDecoderModel(config))
    return {path: leaf.shape for path, leaf in names.parameters(params)}


ALL_PATHS = (
    paths()
    | paths(tie_word_embeddings=False)
    | paths(position_embedding_type="relative_key")
    | paths(is_decoder=True, add_cross_attention=True)
    | adapter_paths()
    | pair_paths()
)


def test_every_parameter_matches_exactly_one_rule_and_every_rule_is_used():
    used = set()
    for path in ALL_PATHS:
        hits = [p for p, _ in sharding.PARAM_AXES if re.search(rf"(^|/){p}$", path)]
        assert len(hits) == 1, (path, hits)
        used.update(hits)
    assert used == {pattern for pattern, _ in sharding.PARAM_AXES}


def test_every_logical_axis_is_used_and_maps_to_the_mesh():
    named = {axis for _, axes in sharding.PARAM_AXES for axis in axes} | {"batch"}
    assert named == set(sharding.RULES)
    assert {axis for axes in sharding.RULES.values() for axis in axes} == set(sharding.MESH_AXES)


def test_unmatched_parameter_is_an_error():
    with pytest.raises(ValueError, match=r"bert/newthing/kernel"):
        sharding.logical_axes("bert/newthing/kernel", 2)
    with pytest.raises(ValueError, match="4 axes"):
        sharding.logical_axes("bert/pooler/dense/kernel", 4)


def test_large_parameters_are_split_over_fsdp_and_model():
    mesh = FakeMesh(2, 4, 2)
    for path, shape in paths(vocab_size=30528).items():
        spec = sharding.partition_spec(path, shape, mesh)
        ways = 1
        for axes in spec:
            for axis in (axes,) if isinstance(axes, str) else axes or ():
                ways *= mesh.shape[axis]
        size = int(np.prod(shape))
        if size >= 768 * 768 * 12 or "word_embeddings" in path:
            assert ways == 8, (path, spec)


def test_an_axis_that_the_mesh_does_not_divide_stays_whole():
    path = "bert/embeddings/word_embeddings/embedding"
    for mixed in (FakeMesh(2, 8, 1), FakeMesh(1, 8, 4)):
        assert sharding.partition_spec(path, (30521, 768), mixed) == P(None, None)
    # 30,522 = 2 x 3 x 5,087: the model axis divides it, model x fsdp does not.
    assert sharding.partition_spec(path, (30522, 768), FakeMesh(1, 8, 2)) == P(("model",), None)
    assert sharding.partition_spec(path, (30528, 768), FakeMesh(1, 8, 2)) == P(
        ("model", "fsdp"), None
    )


def test_fsdp_alone_splits_every_large_parameter_over_all_devices():
    mesh = FakeMesh(1, 8, 1)
    for fields in ({}, {"tie_word_embeddings": False}):
        for path, shape in paths(vocab_size=30522, **fields).items():
            spec = sharding.partition_spec(path, shape, mesh)
            if np.prod(shape) >= 768 * 768:
                assert sum(axes is not None for axes in spec) == 1, (path, spec)


def test_optimizer_state_is_sharded_like_the_parameters():
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    objective = PretrainingObjective(BertForPreTraining(BertConfig.preset("tiny")))
    state = train.abstract_state(objective, optax.adamw(1e-3))
    shardings = sharding.state_shardings(state, mesh)
    assert jax.tree.structure(shardings) == jax.tree.structure(state)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(3, 1, 1), "does not fit 1 devices"),
        (MeshConfig(-1, -1, 1), "at most one -1"),
        (MeshConfig(0, 1, 1), "positive"),
        (MeshConfig(-1, 2, 1), "does not fit"),
    ],
)
def test_bad_meshes(config, message):
    with pytest.raises(InputError, match=message):
        sharding.make_mesh(config, jax.devices()[:1])


def test_batch_size_must_be_divisible():
    with pytest.raises(InputError, match=r"batch_size 20 .* 2 x 4 x 2.* multiple of 16"):
        sharding.check_batch_size(FakeMesh(2, 4, 1), 20, 2)
    sharding.check_batch_size(FakeMesh(2, 4, 1), 32, 2)


def test_constrain_without_a_mesh_does_nothing():
    x = np.ones((2, 3), np.float32)
    assert sharding.constrain(x, "batch") is x

"""Freezing and layer-wise rates against torch's requires_grad and parameter groups."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from jax.sharding import AbstractMesh
from transformers import get_scheduler

from bertjax.checkpoint import Checkpoints
from bertjax.config import BertConfig
from bertjax.errors import InputError
from bertjax.heads import BertForPreTraining
from bertjax.optimizer import decay_mask, optimizer
from bertjax.partition import freeze, scale_by_depth, select
from bertjax.pretrained import abstract_params, names
from bertjax.run_config import CheckpointConfig, OptimizerConfig
from bertjax.sharding import MESH_AXES, partition_spec, state_shardings
from tests import processes

LAYERS, STEPS = 3, 12
CONFIG = BertConfig(
    vocab_size=16,
    hidden_size=8,
    num_hidden_layers=LAYERS,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=6,
    scan_unroll=1,
)
ABSTRACT = abstract_params(BertForPreTraining(CONFIG))
PATHS = {path: leaf.shape for path, leaf in names.parameters(ABSTRACT)}


def random_tree(seed, scale):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale * rng.standard_normal(leaf.shape), jnp.float32), ABSTRACT
    )


PARAMS = random_tree(0, 0.1)
# Their global norm goes through 1, with and without the parts that the tests freeze.
GRADIENTS = [random_tree(1 + step, 0.01 * 6 ** np.sin(step)) for step in range(STEPS)]


def walk(tx, params, gradients):
    """Return the parameters and the optimizer's state after all steps."""

    @jax.jit
    def step(params, state, gradient):
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for gradient in gradients:
        params, state = step(params, state, gradient)
    return params, state


def by_layer(tree):
    """float32 arrays by path, those of the stacked layers as one a layer: {(path, layer)}."""
    flat = {}
    for path, leaf in names.parameters(tree):
        leaf = np.asarray(leaf)
        if "/layer/" in path:
            flat |= {(path, layer): leaf[layer] for layer in range(LAYERS)}
        else:
            flat[path, None] = leaf
    return flat


# Patterns


def all_of(pattern):
    return {path: True for path in PATHS if re.search(pattern, path)}


LAYER_01 = np.array([True, True, False])


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["embeddings"], all_of("/embeddings/")),
        (["bert/embeddings"], all_of("^bert/embeddings/")),
        (["*_embeddings"], all_of("_embeddings/")),
        (["query/kernel", "po?ler"], all_of("query/kernel|pooler")),
        (["LayerNorm/scale"], all_of("LayerNorm/scale")),
        (["/cls/"], all_of("^cls/")),
        (["bert/*/layer"], all_of("^bert/encoder/layer/")),
        (["encoder/layer/0-2"], all_of("/layer/")),
        (["encoder/layer/0-1"], dict.fromkeys(all_of("/layer/"), LAYER_01)),
        (["layer/0", "layer/1"], dict.fromkeys(all_of("/layer/"), LAYER_01)),
        (
            ["layer/0-1/attention/self", "value"],
            dict.fromkeys(all_of("/self/"), LAYER_01) | all_of("/value/"),
        ),
        ([], {}),
    ],
)
def test_patterns(patterns, expected):
    chosen = dict(names.parameters(select(ABSTRACT, patterns)))
    assert chosen.keys() == PATHS.keys()
    assert expected or not patterns
    for path, hit in chosen.items():
        want = expected.get(path, False)
        assert type(hit) is type(want), path
        assert np.array_equal(hit, want), path


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("embedings", "'embedings' matches no parameter: near it are embeddings"),
        ("bert/encoder/layr/0-1", "near it are bert/encoder/layer"),
        ("bert/encodr/layer/0-1", "near it are bert/encoder/layer"),
        ("xyzzy", "paths look like bert/"),
        ("query/kern", "near it are query/kernel"),
        ("", "paths look like bert/"),
        ("encoder/layer/0-3", "'encoder/layer/0-3': layers are numbered from 0 to 2"),
        ("layer/3", "numbered from 0 to 2"),
        ("layer/2-1", "'layer/2-1': write a range of layers upwards"),
        ("encoder/1", "matches no parameter"),
    ],
)
def test_patterns_that_match_nothing(pattern, message):
    tx = optimizer(OptimizerConfig(freeze=("query", pattern)), 10)
    with pytest.raises(InputError, match=rf"^freeze .*{re.escape(message)}"):
        jax.eval_shape(tx.init, PARAMS)


# Freezing

FREEZE = ("embeddings", "layer/0-1", "query/bias", "seq_relationship")


def is_frozen(path, layer):
    return (
        "/embeddings/" in path or layer in (0, 1) or "query/bias" in path or "seq_relation" in path
    )


def test_frozen_parameters_are_those_of_torch_without_gradient():
    config = OptimizerConfig(learning_rate=1e-2, weight_decay=0.1, warmup_steps=2, freeze=FREEZE)
    got, state = walk(optimizer(config, STEPS), PARAMS, GRADIENTS)
    start, decayed = by_layer(PARAMS), dict(names.parameters(decay_mask(PARAMS)))
    tensors = {
        key: torch.nn.Parameter(torch.tensor(array), requires_grad=not is_frozen(*key))
        for key, array in start.items()
    }
    groups = [
        {"params": [t for (path, _), t in tensors.items() if t.requires_grad and decayed[path]]},
        {
            "params": [
                t for (path, _), t in tensors.items() if t.requires_grad and not decayed[path]
            ],
            "weight_decay": 0.0,
        },
    ]
    adamw = torch.optim.AdamW(groups, lr=1e-2, eps=config.eps, weight_decay=0.1)
    scheduler = get_scheduler("linear", adamw, num_warmup_steps=2, num_training_steps=STEPS)
    clipped = set()
    for gradient in GRADIENTS:
        for key, array in by_layer(gradient).items():
            if tensors[key].requires_grad:
                tensors[key].grad = torch.tensor(array)
        norm = torch.nn.utils.clip_grad_norm_(tensors.values(), config.clip_norm)
        clipped.add(bool(norm > config.clip_norm))
        adamw.step()
        scheduler.step()
    assert clipped == {True, False}
    assert {is_frozen(*key) for key in start} == {True, False}
    for key, array in by_layer(got).items():
        if is_frozen(*key):
            np.testing.assert_array_equal(array, start[key], err_msg=str(key))
        else:
            want = tensors[key].detach().numpy()
            np.testing.assert_allclose(array, want, rtol=0, atol=1e-6, err_msg=str(key))
            assert np.abs(array - start[key]).max() > 1e-2, key
    # Whole parameters have no moments; those of frozen layers are there and zero.
    moments = {path: leaf for path, leaf in names.parameters(state) if leaf.ndim}
    stacked = [path for path in PATHS if "/layer/" in path and "query/bias" not in path]
    whole = [path for path in PATHS if is_frozen(path, None)]
    assert len(moments) == 2 * (len(PATHS) - len(whole))
    for path in stacked:
        for name in ("mu", "nu"):
            (moment,) = (m for p, m in moments.items() if p.endswith(f"/{name}/{path}"))
            assert not np.any(moment[:2]), path
            assert np.any(moment[2]), path


@pytest.mark.parametrize("name", ["bert_adam", "lamb"])
def test_what_is_not_frozen_moves_as_if_it_were_alone(name):
    config = OptimizerConfig(name=name, learning_rate=1e-2, weight_decay=0.1, freeze=FREEZE)
    got, _ = walk(optimizer(config, STEPS), PARAMS, GRADIENTS)
    got = by_layer(got)

    def alone(tree):
        flat = {}
        for (path, layer), array in by_layer(tree).items():
            if not is_frozen(path, layer):
                flat[path] = array if layer is None else array[None]
        return flat

    unfrozen = dataclasses.replace(config, freeze=())
    want, _ = walk(optimizer(unfrozen, STEPS), alone(PARAMS), list(map(alone, GRADIENTS)))
    assert 0 < len(want) < len(PATHS)
    for key, array in got.items():
        if is_frozen(*key):
            np.testing.assert_array_equal(array, by_layer(PARAMS)[key])
        else:
            other = want[key[0]] if key[1] is None else want[key[0]][0]
            np.testing.assert_allclose(array, other, rtol=0, atol=1e-6, err_msg=str(key))


def test_frozen_gradients_that_are_not_finite_do_no_harm():
    tx = optimizer(OptimizerConfig(freeze=FREEZE), STEPS)

    def spoil(path, leaf):
        frozen = dict(names.parameters(select(ABSTRACT, FREEZE)))[names.path_of(path)]
        frozen = np.reshape(frozen, (-1, *[1] * (leaf.ndim - 1)))
        return jnp.where(frozen, jnp.nan, leaf)

    spoiled = jax.tree_util.tree_map_with_path(spoil, GRADIENTS[0])
    assert np.isnan(spoiled["bert"]["embeddings"]["LayerNorm"]["bias"]).all()
    for one, other in zip(
        jax.tree.leaves(walk(tx, PARAMS, [spoiled])),
        jax.tree.leaves(walk(tx, PARAMS, GRADIENTS[:1])),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


# Layer-wise rates


def test_layer_decay_is_a_learning_rate_for_each_depth():
    decay, rate = 0.7, 1e-2
    config = OptimizerConfig(
        learning_rate=rate, weight_decay=0.1, schedule="constant", layer_decay=decay
    )
    got, _ = walk(optimizer(config, STEPS), PARAMS, GRADIENTS)
    decayed = dict(names.parameters(decay_mask(PARAMS)))
    tensors = {k: torch.nn.Parameter(torch.tensor(a)) for k, a in by_layer(PARAMS).items()}

    def depth(path, layer):
        if layer is not None:
            return layer + 1
        return 0 if path.startswith("bert/embeddings/") else LAYERS + 1

    groups = [
        {
            "params": [tensor],
            "lr": rate * decay ** (LAYERS + 1 - depth(*key)),
            "weight_decay": 0.1 * decayed[key[0]],
        }
        for key, tensor in tensors.items()
    ]
    assert {round(group["lr"] / rate, 6) for group in groups} == {1.0, 0.7, 0.49, 0.343, 0.2401}
    adamw = torch.optim.AdamW(groups, eps=config.eps)
    for gradient in GRADIENTS:
        for key, array in by_layer(gradient).items():
            tensors[key].grad = torch.tensor(array)
        torch.nn.utils.clip_grad_norm_(tensors.values(), config.clip_norm)
        adamw.step()
    for key, array in by_layer(got).items():
        want = tensors[key].detach().numpy()
        np.testing.assert_allclose(array, want, rtol=0, atol=2e-6, err_msg=str(key))


def test_layer_decay_needs_one_stack():
    rule = scale_by_depth(0.5)
    with pytest.raises(InputError, match="got 0"):
        rule.update({"embeddings": jnp.ones(3)}, rule.init({}))
    with pytest.raises(InputError, match="got 2"):
        rule.update({"a": {"layer": jnp.ones(3)}, "b": {"layer": jnp.ones(2)}}, rule.init({}))


@pytest.mark.parametrize("value", [0.0, -0.5, 1.01, float("nan")])
def test_bad_layer_decay(value):
    with pytest.raises(InputError, match=r"^optimizer\.layer_decay must lie in \(0, 1\]"):
        optimizer(OptimizerConfig(layer_decay=value), 10)


# In the optimizer's state


def test_the_state_costs_nothing_where_they_are_off():
    plain = optimizer(OptimizerConfig(), 10).init(PARAMS)
    assert [type(part).__name__ for part in plain] == [
        "EmptyState",
        "ScaleByAdamState",
        "MaskedState",
        "EmptyState",
        "ScaleByScheduleState",
    ]
    everything = optimizer(OptimizerConfig(freeze=("bert", "cls")), 10).init(PARAMS)
    assert sum(leaf.size for leaf in jax.tree.leaves(everything)) == 2  # the counts


def test_moments_are_sharded_like_their_parameters():
    mesh = AbstractMesh((1, 2, 2), MESH_AXES)
    for name in ("adamw", "lamb"):
        tx = optimizer(OptimizerConfig(name=name, freeze=FREEZE, layer_decay=0.9), 10)
        state = jax.eval_shape(tx.init, PARAMS)
        shardings = state_shardings(state, mesh)
        assert jax.tree.structure(shardings) == jax.tree.structure(state)
        split = 0
        for path, sharding in names.parameters(shardings):
            found = re.search(r"/(?:mu|nu)/(.*)", path)
            if found:
                assert sharding.spec == partition_spec(found[1], PATHS[found[1]], mesh), path
                split += any(sharding.spec)
        assert split > 10


def test_a_checkpoint_of_the_state_comes_back(tmp_path):
    tx = freeze(optax.adam(1e-2), FREEZE)
    _, state = walk(tx, PARAMS, GRADIENTS[:2])
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    checkpoints.save(1, state, {"examples": 0})
    checkpoints.wait()
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), state
    )
    restored, _ = checkpoints.restore(abstract)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for one, other in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_frozen_pruned_and_adapted_on_a_mesh():
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    code, out, err = processes.run("tests.workers.tools", env={"XLA_FLAGS": flags})
    assert code == 0, err
    found = json.loads(out)
    one, eight = found["1x1x1"], found["2x2x2"]
    assert one["norms"].keys() == eight["norms"].keys()
    moved = 0
    for path, norm in one["norms"].items():
        np.testing.assert_allclose(eight["norms"][path], norm, rtol=1e-4, atol=1e-6, err_msg=path)
        frozen = "/embeddings/" in path or "/pooler/" in path
        assert (norm > 0) != (frozen and path.startswith("updates/")), path
        moved += norm > 0
    assert moved > 20
    (query,) = (p for p in eight["shards"] if re.search(r"/mu/.*/query/kernel$", p))
    # [L, D, H, K]: fsdp splits D, nothing the three heads.
    assert eight["shards"][query] == [[2, 64, 3, 16], [2, 32, 3, 16]]
    (inner,) = (p for p in eight["shards"] if re.search(r"/nu/.*/intermediate/dense/kernel$", p))
    assert eight["shards"][inner] == [[2, 64, 128], [2, 32, 64]]
    assert not any("/embeddings/" in path for path in eight["shards"])

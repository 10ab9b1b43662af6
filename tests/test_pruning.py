"""Pruned heads against masked ones, and against transformers 4."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file

from bertjax.config import BertConfig
from bertjax.errors import InputError
from bertjax.heads import BertForPreTraining
from bertjax.model import BertModel
from bertjax.optimizer import optimizer
from bertjax.pretrained import abstract_params, names
from bertjax.pruning import head_axis, prune_heads, pruned_head_mask, take_heads
from bertjax.run_config import OptimizerConfig
from bertjax.sharding import partition_spec
from tests.models import SMALL, apply, assert_same_trees, inputs
from tests.peers import checkpoint, quick_params, torch_peer

KEY = jax.random.key(7)
DATA = Path(__file__).parent / "data" / "pruned"
RAGGED = {0: [1], 1: [0, 1, 2, 3], 2: [3, 0]}  # layers that keep 3, 0 and 2 heads
EVEN = {0: [3], 1: [0], 2: [1]}


@functools.cache
def compiled(model):
    """Logits, and the gradient of a sum that all of them enter, as a function of the parameters."""
    batch = inputs(SMALL)

    @jax.jit
    def run(params, mask):
        def total(params, mask):
            output = model.apply({"params": params}, **batch, head_mask=mask)
            logits = (output.prediction_logits, output.seq_relationship_logits)
            return sum(jnp.sum(jnp.sin(x)) for x in logits), logits

        (_, logits), gradients = jax.value_and_grad(total, (0, 1), has_aux=True)(params, mask)
        return logits, *gradients

    return lambda params, mask: run(params, np.float32(mask))


@pytest.mark.parametrize(
    ("heads", "kind"), [(RAGGED, "relative_key_query"), (EVEN, "absolute")], ids=["ragged", "even"]
)
def test_pruned_model_equals_the_masked_one(heads, kind):
    model = BertForPreTraining(dataclasses.replace(SMALL, position_embedding_type=kind))
    params = quick_params(model)
    smaller, pruned = prune_heads(model, params, heads)
    hard = pruned_head_mask(smaller.config)
    assert {(int(i), int(j)) for i, j in np.argwhere(hard == 0)} == {
        (layer, head) for layer, hs in heads.items() for head in hs
    }
    # Its own masks count heads as the full model's do.
    soft = np.random.default_rng(0).random(hard.shape)
    want, want_grad, slopes = compiled(model)(params, soft * hard)
    got, got_grad, got_slopes = compiled(smaller)(pruned, soft)
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
    np.testing.assert_allclose(got_slopes, slopes * hard, atol=1e-4 * np.abs(slopes).max())
    assert not np.any(got_slopes[hard == 0])
    # The kept heads learn as in the masked model; the room that a layer has left does not.
    _, want_grad = prune_heads(model, want_grad, heads)
    want_grads = {path: np.asarray(leaf) for path, leaf in names.parameters(want_grad)}
    for path, ours in names.parameters(got_grad):
        # The gradient of a key's bias is zero but for rounding: measure it by the query's.
        size = np.abs(want_grads[path.replace("key/bias", "query/bias")]).max()
        np.testing.assert_allclose(ours, want_grads[path], rtol=0, atol=1e-4 * size, err_msg=path)
    assert not any(np.any(leaf) for _, leaf in surplus(smaller.config, got_grad))
    assert jax.tree.map(jnp.shape, pruned) == jax.tree.map(
        lambda leaf: leaf.shape, abstract_params(smaller)
    )


def surplus(config, params):
    """What each parameter holds beyond the heads that its layers keep."""
    for path, leaf in names.parameters(params):
        axis = head_axis(path)
        if axis is not None:
            for layer, kept in enumerate(config.kept_heads):
                beyond = np.arange(len(kept), config.num_stored_heads)
                yield path, np.take(np.asarray(leaf)[layer], beyond, axis)


def test_room_that_is_left_stays_zero_in_training():
    model = BertModel(SMALL)
    smaller, params = prune_heads(model, quick_params(model), RAGGED)
    assert sum(leaf.size for _, leaf in surplus(smaller.config, params)) > 0
    tx = optimizer(OptimizerConfig(learning_rate=1e-2, weight_decay=0.1), 10)
    batch = inputs(SMALL)

    @jax.jit
    def step(params, state, key):
        def loss(params):
            output = smaller.apply(
                {"params": params}, **batch, deterministic=False, rngs={"dropout": key}
            )
            return jnp.sum(output.last_hidden_state[:, 0] ** 3)

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    def walk(params):
        state = tx.init(params)
        for key in jax.random.split(KEY, 3):
            params, state = step(params, state, key)
        return params

    trained = walk(params)
    for path, leaf in surplus(smaller.config, trained):
        assert not np.any(leaf), path
    # Whatever else lies there neither counts nor learns.
    noise = quick_params(smaller)
    _, clean = prune_heads(smaller, noise, {})
    noisy = jax.tree.map(lambda x, n, c: x + (n - c), params, noise, clean)
    noisy_trained = walk(noisy)
    assert_same_trees(prune_heads(smaller, noisy_trained, {})[1], trained)
    for (path, leaf), (_, before) in zip(
        surplus(smaller.config, noisy_trained), surplus(smaller.config, noisy), strict=True
    ):
        assert np.any(before) or not before.size, path
        decayed = 1 if path.endswith("bias") else (1 - 1e-3) * (1 - 9e-4) * (1 - 8e-4)
        np.testing.assert_allclose(leaf, decayed * before, rtol=1e-5, err_msg=path)
    query = ["encoder", "layer", "attention", "self", "query", "kernel"]
    before, after = params, trained
    for name in query:
        before, after = before[name], after[name]
    moved = np.abs(after - before).max(axis=(1, 3)) > 1e-3
    assert moved.tolist() == [[True] * 3, [False] * 3, [True, True, False]]


def test_a_model_made_from_a_config_has_zeros_in_the_room_left():
    config = dataclasses.replace(SMALL, pruned_heads=RAGGED)
    model = BertModel(config)
    key = jax.random.key(0, impl="rbg")  # compiles fastest
    params = jax.jit(model.init)(key, model.init_ids)["params"]
    leaves = list(surplus(config, params))
    assert len(leaves) == 7 * 3
    assert sum(leaf.size for _, leaf in leaves) > 0
    assert not any(np.any(leaf) for _, leaf in leaves)
    query = np.asarray(params["encoder"]["layer"]["attention"]["self"]["query"]["kernel"])
    assert np.any(query, axis=(1, 3)).tolist() == [[True] * 3, [False] * 3, [True, True, False]]


def test_pruning_in_turns_counts_heads_as_in_the_full_model():
    model = BertModel(SMALL)
    params = quick_params(model)
    at_once, once = prune_heads(model, params, {0: [1, 2], 1: [0], 2: [3]})
    first, twice = prune_heads(model, params, {0: [2], 2: [3]})
    assert first.config.kept_heads == ((0, 1, 3), (0, 1, 2, 3), (0, 1, 2))
    in_turns, twice = prune_heads(first, twice, {0: [1, 2], 1: [0]})
    assert in_turns == at_once
    assert in_turns.config.num_stored_heads == 3
    assert_same_trees(twice, once)


def test_full_head_masks_of_pruned_models():
    """The five-axis form; see above for [L, H]."""
    kept = ((0, 2, 3), (), (1, 2))
    mask = np.random.default_rng(0).random((3, 5, 4, 33, 1), np.float32)
    taken = take_heads(mask, 2, kept, 3)
    assert taken.shape == (3, 5, 3, 33, 1)
    for layer, heads in enumerate(kept):
        np.testing.assert_array_equal(taken[layer][:, : len(heads)], mask[layer][:, list(heads)])
        assert not np.any(taken[layer][:, len(heads) :])
    model = BertModel(dataclasses.replace(SMALL, pruned_heads=RAGGED))
    for shape in ((3,), (3, 3), (3, 5, 3, 1, 1)):
        with pytest.raises(ValueError, match=r"head_mask must be \[4\], \[3, 4\]"):
            jax.eval_shape(model.init, KEY, model.init_ids, head_mask=np.ones(shape, np.float32))


def test_heads_that_are_not_there():
    model = BertModel(SMALL)
    for heads, message in (({3: [0]}, r"\(3, 0\)"), ({0: [4]}, r"\(0, 4\)"), ({0: 1}, "map")):
        with pytest.raises(InputError, match=message):
            prune_heads(model, {}, heads)


def test_stored_heads_that_the_mesh_does_not_divide_stay_whole():
    class FakeMesh:
        shape = {"data": 1, "fsdp": 2, "model": 2}  # noqa: RUF012

    model = BertModel(SMALL)
    for heads, split in ((EVEN, None), ({i: [0, 1] for i in range(3)}, ("model",))):
        smaller = model.clone(config=dataclasses.replace(SMALL, pruned_heads=heads))
        shapes = dict(names.parameters(abstract_params(smaller)))
        path = "encoder/layer/attention/self/query/kernel"
        spec = partition_spec(path, shapes[path].shape, FakeMesh())
        assert spec == P(None, ("fsdp",), split, None)


# Files with pruned heads


def read_params(model, file):
    """Parameters from a checkpoint, by the name table."""
    tensors = load_file(file)

    def read(path, leaf):
        parts = [
            tensor.decode(tensors[tensor.name])
            for tensor in names.hf_tensors(names.path_of(path), leaf.shape, model.config)
        ]
        return np.stack(parts) if parts[0].ndim < leaf.ndim else parts[0]

    return jax.tree_util.tree_map_with_path(read, abstract_params(model))


def test_agrees_with_transformers_4():
    outputs = np.load(DATA / "outputs.npz")
    full = BertModel(BertConfig.from_pretrained(DATA / "full"), add_pooling_layer=False)
    params = read_params(full, DATA / "full" / "model.safetensors")
    ids = outputs["input_ids"]
    masked = apply(full, params, ids, head_mask=outputs["soft_mask"])
    np.testing.assert_allclose(masked.last_hidden_state, outputs["masked"], atol=2e-5)
    first, cut = prune_heads(full, params, {0: [1], 2: [0]})
    smaller, cut = prune_heads(first, cut, {0: [1], 2: [2]})
    got = apply(smaller, cut, ids, output_attentions=True)
    np.testing.assert_allclose(got.last_hidden_state, outputs["pruned"], atol=2e-5)
    for layer, attentions in enumerate(got.attentions):
        want = outputs[f"attentions{layer}"]
        assert attentions.shape == (2, 3, 7, 7)
        np.testing.assert_allclose(attentions[:, : want.shape[1]], want, atol=2e-5)
    # Its file, without the pruned heads, gives the same parameters.
    config = BertConfig.from_pretrained(DATA / "pruned")
    assert config.pruned_heads == smaller.config.pruned_heads == ((0, 1), (2, 0), (2, 2))
    loaded = read_params(smaller.clone(config=config), DATA / "pruned" / "model.safetensors")
    assert_same_trees(loaded, cut)
    stored = load_file(DATA / "pruned" / "model.safetensors")
    for path, leaf in names.parameters(cut):
        for tensor in names.hf_tensors(path, leaf.shape, config):
            assert tensor.pruned_shape == stored[tensor.name].shape


def test_files_hold_the_full_model_with_zeros():
    model = BertForPreTraining(SMALL)
    smaller, params = prune_heads(model, quick_params(model), RAGGED)
    tensors = checkpoint(smaller, params)
    shapes = {
        tensor.name: tensor.shape
        for path, leaf in names.parameters(abstract_params(model))
        for tensor in names.hf_tensors(path, leaf.shape)
    }
    assert {name: tensor.shape for name, tensor in tensors.items()} == shapes
    # transformers 5, which prunes no heads, computes the same from them.
    batch = inputs(SMALL)
    ours = apply(smaller, params, **batch).prediction_logits
    with torch.no_grad():
        theirs = torch_peer(smaller, params)(
            **{name: torch.tensor(array, dtype=torch.long) for name, array in batch.items()}
        )
    np.testing.assert_allclose(ours, theirs.prediction_logits.numpy(), atol=2e-5)
    for path, leaf in names.parameters(params):
        for tensor in names.hf_tensors(path, leaf.shape, smaller.config):
            part = leaf if tensor.layer is None else leaf[tensor.layer]
            np.testing.assert_array_equal(tensor.decode(tensors[tensor.name]), part, path)

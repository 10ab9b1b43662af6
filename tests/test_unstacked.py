"""Parameters taken apart: the same model, in another form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertjax import unstacked
from bertjax.heads import BertForMaskedLM
from bertjax.layers import transposed_product
from bertjax.optimizer import optimizer
from bertjax.pruning import prune_heads
from bertjax.run_config import OptimizerConfig
from bertjax.train import new_state
from tests.models import SMALL, assert_same_trees
from tests.peers import quick_params


@pytest.fixture(scope="module")
def params():
    return quick_params(BertForMaskedLM(SMALL))


def test_what_is_taken_apart_can_be_restored(params):
    taken = unstacked.apart(params)
    assert unstacked.apart(taken) is taken
    assert_same_trees(unstacked.restored(taken), params)
    assert_same_trees(unstacked.together(params), params)  # was never taken apart


def test_a_training_state_has_each_layer_under_its_number_and_back(params):
    state = new_state(params, optimizer(OptimizerConfig(), 10))
    given = jax.tree.map(jnp.copy, state)
    taken = unstacked.one_by_one(given)
    for tree, whole in ((taken.params, state.params), (taken.opt_state[1].nu, state.params)):
        layers = tree["bert"]["encoder"]["layer"]
        assert list(layers) == ["0", "1", "2"]
        stacks = whole["bert"]["encoder"]["layer"]
        for number, layer in enumerate(layers.values()):
            shapes = jax.tree.map(lambda stack: stack.shape[1:], stacks)
            assert jax.tree.map(jnp.shape, layer) == shapes
            if tree is taken.params:
                own = jax.tree.map(lambda stack, number=number: stack[number], stacks)
                assert_same_trees(layer, own)
    stack = given.params["bert"]["encoder"]["layer"]["intermediate"]["dense"]["kernel"]
    assert stack.is_deleted()
    assert_same_trees(unstacked.one_by_one(taken), taken)
    assert_same_trees(unstacked.together(taken), state)


def test_kernels_have_a_row_for_each_output_on_a_cpu(params):
    layer = params["bert"]["encoder"]["layer"]
    taken = unstacked.apart(params)["bert"]["encoder"]["layer"]
    for path, axes in (
        (("intermediate", "dense"), "io->oi"),
        (("attention", "self", "query"), "ihk->hki"),
        (("attention", "output", "dense"), "hko->ohk"),
    ):
        given = at(layer, path)
        for number in range(SMALL.num_hidden_layers):
            found = at(taken[str(number)], path)
            assert set(found) == {"transposed_kernel", "bias"}
            kernel = jnp.einsum(axes, given["kernel"][number])
            np.testing.assert_array_equal(found["transposed_kernel"], kernel)
            np.testing.assert_array_equal(found["bias"], given["bias"][number])


def test_kernels_are_rounded_once_where_products_would_round_them(params):
    layer = unstacked.apart(params, jnp.bfloat16)["bert"]["encoder"]["layer"]["0"]
    plain = unstacked.apart(params)["bert"]["encoder"]["layer"]["0"]
    kernel = layer["intermediate"]["dense"]["transposed_kernel"]
    assert kernel.dtype == jnp.bfloat16
    want = plain["intermediate"]["dense"]["transposed_kernel"]
    np.testing.assert_array_equal(kernel, want.astype(jnp.bfloat16))
    others = {name: entry for name, entry in layer["output"].items() if name != "dense"}
    assert {leaf.dtype for leaf in jax.tree.leaves(others)} == {jnp.dtype(jnp.float32)}

    model = BertForMaskedLM(SMALL, dtype=jnp.bfloat16)
    ids = np.arange(5, 15)[None]
    run = jax.jit(lambda params: model.apply({"params": unstacked.together(params)}, ids).logits)
    rounded, as_they_are = (run(unstacked.apart(params, kind)) for kind in (jnp.bfloat16, None))
    np.testing.assert_array_equal(rounded, as_they_are)


@pytest.mark.parametrize("tokens", [1, 7, 17])
def test_bfloat16_with_one_head(tokens):
    """Where scores are one product of two matrices XLA might have put a transpose into it."""
    config = dataclasses.replace(SMALL, num_attention_heads=1)
    model = BertForMaskedLM(config, dtype=jnp.bfloat16)
    params = quick_params(model)
    ids, mask = np.arange(5, 5 + tokens)[None], np.ones((1, tokens), np.int32)

    def run(params):
        return model.apply({"params": unstacked.together(params)}, ids, mask).logits

    want, found = (jax.jit(run)(tree) for tree in (params, unstacked.apart(params, jnp.bfloat16)))
    np.testing.assert_allclose(found, want, atol=0.02)


def at(tree, path):
    for name in path:
        tree = tree[name]
    return tree


@pytest.mark.parametrize("tokens", [1, 16, 17])
@pytest.mark.parametrize("kind", ["absolute", "relative_key_query"])
def test_the_model_computes_the_same(kind, tokens):
    model = BertForMaskedLM(dataclasses.replace(SMALL, position_embedding_type=kind))
    params = quick_params(model)
    check_same(model, params, tokens)


def test_no_more_than_the_kept_heads_act():
    model = BertForMaskedLM(SMALL)
    smaller, pruned = prune_heads(model, quick_params(model), {0: [1], 1: [3, 0]})
    # Not the zeros that are there in the room that is left.
    noisy = jax.tree.map(lambda x, n: jnp.where(x == 0, n, x), pruned, quick_params(smaller))
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (noisy, pruned)), strict=True))
    check_same(smaller, noisy, 5)


def check_same(model, params, tokens):
    """Compare logits; up to 16 tokens are few rows, which are multiplied the other way round."""
    ids = np.arange(5, 5 + tokens)[None]
    run = jax.jit(lambda params: model.apply({"params": unstacked.together(params)}, ids).logits)
    np.testing.assert_allclose(run(unstacked.apart(params)), run(params), atol=1e-5)


@pytest.mark.parametrize("rows", [1, 16, 17])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_of_few_rows(rows, dtype):
    random = np.random.default_rng(rows)
    x = jnp.asarray(random.standard_normal((rows, 24)), dtype)
    kernel = jnp.asarray(random.standard_normal((40, 24)), dtype)
    found = jax.jit(lambda x, kernel: transposed_product(x, kernel, jnp.float32))(x, kernel)
    assert found.dtype == jnp.float32
    want = np.float64(x) @ np.float64(kernel).T
    np.testing.assert_allclose(found, want, atol=1e-5)

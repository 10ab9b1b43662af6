"""Parameters taken apart: the same model, in another form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertjax import unstacked
from bertjax.heads import BertForMaskedLM
from bertjax.layers import transposed_product
from bertjax.pruning import prune_heads
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


def test_kernels_have_a_row_for_each_output_on_a_cpu(params):
    layer = params["bert"]["encoder"]["layer"]
    taken = unstacked.apart(params)["bert"]["encoder"]["layer"]
    for path, axes in (
        (("intermediate", "dense"), "io->oi"),
        (("attention", "self", "query"), "ihk->hki"),
        (("attention", "output", "dense"), "hko->ohk"),
    ):
        given, found = layer, taken
        for name in path:
            given, found = given[name], found[name]
        assert set(found) == {"transposed_kernel", "bias"}
        for number, (array, addend) in enumerate(
            zip(found["transposed_kernel"].arrays, found["bias"].arrays, strict=True)
        ):
            np.testing.assert_array_equal(array, jnp.einsum(axes, given["kernel"][number]))
            np.testing.assert_array_equal(addend, given["bias"][number])


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

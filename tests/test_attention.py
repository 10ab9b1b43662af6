"""Attention in parts, as a CPU computes it where there are many scores, against all at once."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertjax import attention, sharding
from tests.peers import quick_jit

BATCH, TOKENS, HEADS, SIZE = 6, 160, 6, 4
RNG = np.random.default_rng(0)
INPUTS = RNG.standard_normal((3, BATCH, TOKENS, HEADS, SIZE), np.float32)
MASK = np.arange(TOKENS) < np.array([[TOKENS], [1], [97], [98], [3], [159]])
BIASES = {
    "no mask": None,
    "of rows": attention.attention_bias(MASK),
    "of queries": attention.attention_bias(attention.causal_mask(MASK, TOKENS, TOKENS)),
    "of all rows alike": attention.attention_bias(attention.causal_mask(None, TOKENS, TOKENS)),
}


def attend(query, key, value, bias):
    return attention.dot_product_attention(query, key, value, bias)[0]


def all_at_once(query, key, value, bias):
    scores = jnp.einsum("bthk,bshk->bhts", query, key) / SIZE**0.5
    probs = jax.nn.softmax(scores if bias is None else scores + bias)
    return jnp.einsum("bhts,bshk->bthk", probs, value)


def loops(function, *inputs):
    """Count the loops of two passes or more."""
    passes = re.findall(r"length=(\d+)", str(jax.make_jaxpr(function)(*inputs)))
    return sum(count != "1" for count in passes)


@pytest.mark.parametrize(
    ("rows", "queries", "count"),
    [(BATCH, TOKENS, 0), (3, TOKENS, 1), (BATCH, 40, 1), (3, 40, 2), (1, 5, 2)],
)
@pytest.mark.parametrize("mask", BIASES)
def test_parts_are_all_scores_at_once(mask, rows, queries, count, monkeypatch):
    monkeypatch.setattr(attention, "_PART_BYTES", 4 * rows * HEADS * queries * TOKENS)
    monkeypatch.setattr(attention, "_PART_QUERIES", queries)
    bias = BIASES[mask]
    together = functools.partial(attend, bias=bias)
    assert loops(together, *INPUTS) == count
    np.testing.assert_allclose(
        quick_jit(together)(*INPUTS), all_at_once(*INPUTS, bias), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("queries", [1, 4, TOKENS])
def test_a_row_alone_is_that_of_a_batch(queries):
    """Of one row the few queries of a step are computed in another order."""
    query, key, value = map(jnp.asarray, INPUTS)
    bias = BIASES["of rows"]
    inputs = query[:, :queries], key, value
    for row in (0, 2):
        alone = attend(*(x[row : row + 1] for x in inputs), bias[row : row + 1])
        want = all_at_once(*inputs, bias)[row : row + 1]
        np.testing.assert_allclose(alone, want, rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_all_scores_at_once(monkeypatch):
    monkeypatch.setattr(attention, "_PART_QUERIES", 40)

    def loss(attend, *inputs):
        return jnp.sum(jnp.sin(attend(*inputs, BIASES["of rows"])))

    def grads(attend):
        return jax.grad(functools.partial(loss, attend), argnums=(0, 1, 2))

    near = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(near, jax.jit(grads(attend))(*INPUTS), jax.jit(grads(all_at_once))(*INPUTS))
    # The backward pass needs the probabilities: the loop is not there beside them.
    assert loops(grads(attend), *INPUTS) == 0


def test_few_scores_and_several_devices_take_no_loop(monkeypatch):
    bias = BIASES["of rows"]
    assert loops(functools.partial(attend, bias=bias), *INPUTS) == 0
    monkeypatch.setattr(attention, "_PART_QUERIES", 40)
    for devices, count in ((1, 1), (2, 0)):
        mesh = jax.sharding.AbstractMesh((devices, 1, 1), sharding.MESH_AXES)
        with jax.sharding.use_abstract_mesh(mesh):
            assert loops(functools.partial(attend, bias=bias), *INPUTS) == count

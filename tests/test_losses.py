"""Losses and accuracies as sums, against torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from bertjax.losses import IGNORE_INDEX, LossSum, accuracy, cross_entropy, pretraining_loss

RNG = np.random.default_rng(0)
LOGITS = (4 * RNG.standard_normal((7, 11, 33))).astype(np.float32)
LABELS = RNG.integers(0, 33, (7, 11), dtype=np.int32)
LABELS[RNG.random(LABELS.shape) < 0.3] = IGNORE_INDEX
WEIGHTS = RNG.uniform(0, 2, LABELS.shape).astype(np.float32)

sums = jax.jit(cross_entropy)


def torch_losses(logits, labels, **options):
    return functional.cross_entropy(
        torch.tensor(logits).double().flatten(0, -2), torch.tensor(labels).long().ravel(), **options
    )


def test_mean_and_gradient_agree_with_torch():
    logits = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    want = functional.cross_entropy(logits.flatten(0, 1), torch.tensor(LABELS).long().ravel())
    want.backward()
    value, grad = jax.jit(jax.value_and_grad(lambda x: cross_entropy(x, LABELS).mean()))(LOGITS)
    np.testing.assert_allclose(value, want.item(), rtol=1e-6)
    np.testing.assert_allclose(grad, logits.grad.numpy(), atol=1e-8, rtol=1e-5)
    assert np.all(np.asarray(grad)[LABELS == IGNORE_INDEX] == 0)


def test_sum_and_weight():
    loss = sums(LOGITS, LABELS)
    np.testing.assert_allclose(loss.total, torch_losses(LOGITS, LABELS, reduction="sum"), rtol=1e-6)
    assert loss.weight == (LABELS != IGNORE_INDEX).sum()
    assert loss.total.dtype == loss.weight.dtype == jnp.float32


def test_weights():
    each = torch_losses(LOGITS, LABELS, reduction="none").numpy().reshape(LABELS.shape)
    kept = LABELS != IGNORE_INDEX
    loss = sums(LOGITS, LABELS, WEIGHTS)
    np.testing.assert_allclose(loss.total, (each * WEIGHTS).sum(), rtol=1e-6)
    np.testing.assert_allclose(loss.weight, WEIGHTS[kept].sum(), rtol=1e-6)
    np.testing.assert_allclose(loss.mean(), (each * WEIGHTS).sum() / WEIGHTS[kept].sum(), rtol=1e-6)
    for kind in (bool, np.int32):  # whole weights of any type
        chosen = WEIGHTS > 1
        loss = sums(LOGITS, LABELS, chosen.astype(kind))
        np.testing.assert_allclose(loss.total, (each * chosen).sum(), rtol=1e-6)
        assert loss.weight == (chosen & kept).sum()


@pytest.mark.parametrize("how", ["labels", "weights"])
def test_nothing_counted_gives_zero_and_a_zero_gradient(how):
    labels = np.full_like(LABELS, IGNORE_INDEX) if how == "labels" else np.abs(LABELS) % 33
    weights = None if how == "labels" else np.zeros_like(WEIGHTS)
    value, grad = jax.jit(jax.value_and_grad(lambda x: cross_entropy(x, labels, weights).mean()))(
        LOGITS
    )
    assert value == 0
    assert np.all(np.asarray(grad) == 0)
    hits = accuracy(LOGITS, labels, weights)
    assert (hits.total, hits.weight, hits.mean()) == (0, 0, 0)


def test_ignored_positions_may_hold_any_logits():
    logits = np.where((LABELS == IGNORE_INDEX)[..., None], np.float32(1e30), LOGITS)
    assert sums(logits, LABELS).total == sums(LOGITS, LABELS).total


def test_bfloat16_logits_are_summed_in_float32():
    half = jnp.asarray(LOGITS, jnp.bfloat16)
    loss = sums(half, LABELS)
    exact = np.asarray(half, np.float32)
    assert loss.total == sums(exact, LABELS).total
    assert loss.total.dtype == jnp.float32
    grad = jax.jit(jax.grad(lambda x: cross_entropy(x, LABELS).mean()))(half)
    assert grad.dtype == jnp.bfloat16
    # 8192 positions of loss ln 2: bfloat16 sums would stick at 256.
    flat = sums(jnp.zeros((8192, 2), jnp.bfloat16), jnp.zeros(8192, jnp.int32))
    np.testing.assert_allclose(flat.mean(), np.log(2), rtol=1e-6)


def test_large_logits_stay_finite():
    logits = np.array([[1e4, -1e4, 0.0], [-1e30, 1e30, 0.0]], np.float32)
    loss = sums(logits, np.array([1, 1], np.int32))
    np.testing.assert_allclose(loss.total, 2e4, rtol=1e-6)


def test_sums_add_over_shards_and_microbatches():
    whole = sums(LOGITS, LABELS, WEIGHTS)
    parts = [sums(LOGITS[i : i + 1], LABELS[i : i + 1], WEIGHTS[i : i + 1]) for i in range(7)]
    added = LossSum(sum(p.total for p in parts), sum(p.weight for p in parts))
    np.testing.assert_allclose(added.mean(), whole.mean(), rtol=1e-6)
    means = np.mean([p.mean() for p in parts])  # what averaging the shards' means would give
    assert abs(means - whole.mean()) > 1e-3


def test_accuracy():
    want = (LOGITS.argmax(-1) == LABELS)[LABELS != IGNORE_INDEX]
    hits = jax.jit(accuracy)(LOGITS, LABELS)
    assert (hits.total, hits.weight) == (want.sum(), want.size)
    right = np.where(LABELS == IGNORE_INDEX, IGNORE_INDEX, LOGITS.argmax(-1)).astype(np.int32)
    assert accuracy(LOGITS, right).mean() == 1
    weighted = accuracy(LOGITS, LABELS, WEIGHTS)
    kept = LABELS != IGNORE_INDEX
    np.testing.assert_allclose(
        weighted.total, (WEIGHTS * (LOGITS.argmax(-1) == LABELS))[kept].sum(), rtol=1e-6
    )
    np.testing.assert_allclose(weighted.weight, WEIGHTS[kept].sum(), rtol=1e-6)
    assert accuracy(np.full((1, 2), np.nan, np.float32), np.array([0], np.int32)).total == 0


def test_pretraining_loss_is_the_sum_of_two_means():
    pairs = RNG.standard_normal((7, 2)).astype(np.float32)
    labels = np.array([0, 1, 1, IGNORE_INDEX, 0, 1, 0], np.int32)
    want = torch_losses(LOGITS, LABELS) + torch_losses(pairs, labels)
    loss = jax.jit(pretraining_loss)(LOGITS, LABELS, pairs, labels)
    np.testing.assert_allclose(loss, want, rtol=1e-6)

"""Losses and accuracies as sums, against torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from bertjax.losses import (
    IGNORE_INDEX,
    LossSum,
    accuracy,
    binary_cross_entropy,
    cross_entropy,
    infer_problem_type,
    position_labels,
    pretraining_loss,
    sequence_classification_loss,
    span_loss,
    squared_error,
)

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


SCORES = (3 * RNG.standard_normal((11, 5))).astype(np.float32)
TARGETS = RNG.random((11, 5)).astype(np.float32)
CLASSES = RNG.integers(0, 5, 11, dtype=np.int32)
ROW_WEIGHTS = np.array([1, 1, 0, 1, 1, 1, 0, 0, 1, 1, 1], np.float32)
TORCH = {
    "regression": functional.mse_loss,
    "single_label_classification": functional.cross_entropy,
    "multi_label_classification": functional.binary_cross_entropy_with_logits,
}
# Kind -> our labels, and torch's.
KINDS = {
    "regression": (TARGETS, torch.tensor(TARGETS)),
    "single_label_classification": (CLASSES, torch.tensor(CLASSES).long()),
    "multi_label_classification": (TARGETS, torch.tensor(TARGETS)),
}

classify = jax.jit(sequence_classification_loss, static_argnums=2)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_agree_with_torch(kind):
    """Mean and gradient over all rows, and over those that have weight."""
    labels, theirs = KINDS[kind]
    for weights in (None, ROW_WEIGHTS):
        kept = np.arange(11) if weights is None else np.flatnonzero(weights)
        logits = torch.tensor(SCORES[kept], dtype=torch.float64, requires_grad=True)
        target = theirs[kept] if kind == "single_label_classification" else theirs[kept].double()
        want = TORCH[kind](logits, target)
        want.backward()

        def loss(x, weights=weights):
            return sequence_classification_loss(x, labels, kind, weights).mean()

        value, grad = jax.jit(jax.value_and_grad(loss))(SCORES)
        np.testing.assert_allclose(value, want.item(), rtol=1e-6)
        np.testing.assert_allclose(grad[kept], logits.grad.numpy(), atol=1e-7)
        if weights is not None:
            assert np.all(np.asarray(grad)[weights == 0] == 0)
        sums = classify(SCORES, labels, kind, weights)
        assert sums.weight == len(kept)
        assert sums.total.dtype == sums.weight.dtype == jnp.float32


@pytest.mark.parametrize("kind", KINDS)
def test_rows_add_over_shards_and_fractions_weigh(kind):
    labels, _ = KINDS[kind]
    weights = np.linspace(0.1, 2, 11, dtype=np.float32)
    whole = classify(SCORES, labels, kind, weights)
    rows = [classify(SCORES[i : i + 1], labels[i : i + 1], kind) for i in range(11)]
    total = sum(w * r.total for w, r in zip(weights, rows, strict=True))
    np.testing.assert_allclose(whole.total, total, rtol=1e-6)
    np.testing.assert_allclose(whole.weight, weights.sum(), rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_weight_may_hold_any_label(kind):
    labels = KINDS[kind][0].copy()
    filler = -1 if kind == "single_label_classification" else np.nan
    want = classify(SCORES, labels, kind, ROW_WEIGHTS)
    labels[ROW_WEIGHTS == 0] = filler

    def loss(x):
        return sequence_classification_loss(x, labels, kind, ROW_WEIGHTS).mean()

    value, grad = jax.jit(jax.value_and_grad(loss))(SCORES)
    np.testing.assert_allclose(value, want.mean(), rtol=1e-6)
    assert np.all(np.isfinite(grad))
    nothing = classify(SCORES, labels, kind, np.zeros(11, np.float32))
    assert (nothing.total, nothing.weight, nothing.mean()) == (0, 0, 0)


@pytest.mark.parametrize(
    ("labels", "outputs", "kind"),
    [
        (np.zeros(3, np.float32), 1, "regression"),
        (np.zeros(3, np.int32), 1, "regression"),
        (np.zeros(3, np.int32), 2, "single_label_classification"),
        (np.zeros(3, np.int64), 7, "single_label_classification"),
        (np.zeros(3, np.uint8), 7, "single_label_classification"),
        (np.zeros((3, 7), np.float32), 7, "multi_label_classification"),
        (jnp.zeros((3, 7), jnp.bfloat16), 7, "multi_label_classification"),
        (np.zeros((3, 7), bool), 7, "multi_label_classification"),
    ],
)
def test_problem_type_is_inferred_from_labels_and_outputs(labels, outputs, kind):
    assert infer_problem_type(labels, outputs) == kind
    logits = np.zeros((3, outputs), np.float32)
    assert classify(logits, labels, None) == classify(logits, labels, kind)


@pytest.mark.parametrize(
    ("labels", "kind", "like"),
    [
        (CLASSES.astype(np.uint8), None, CLASSES),
        (CLASSES.astype(np.int64)[:, None], None, CLASSES),
        (TARGETS > 0.5, None, (TARGETS > 0.5).astype(np.float32)),
        ((TARGETS > 0.5).astype(np.int32), "multi_label_classification", np.float32(TARGETS > 0.5)),
        (np.int32(9 * TARGETS), "regression", np.float32(np.int32(9 * TARGETS))),
    ],
)
def test_label_types_and_axes_of_one(labels, kind, like):
    assert classify(SCORES, labels, kind) == classify(SCORES, like, kind)


def test_one_output_takes_a_row_or_a_column():
    x, y = SCORES[:, :1], TARGETS[:, 0]
    want = functional.mse_loss(torch.tensor(x[:, 0]), torch.tensor(y))
    for labels in (y, y[:, None]):
        np.testing.assert_allclose(classify(x, labels, None).mean(), want.item(), rtol=1e-6)
    weighed = classify(x, y, None, ROW_WEIGHTS[:, None])
    assert weighed.weight == ROW_WEIGHTS.sum()


def test_other_shapes_and_types_are_told_not_broadcast():
    for labels, message in (
        (CLASSES[:1], r"labels of shape \(1,\) do not fit scores of shape \(11, 5\).*\(11,\)"),
        (CLASSES[None], r"labels of shape \(1, 11\)"),
        (CLASSES.astype(np.float32), "float32 are no class ids"),
    ):
        for function in (cross_entropy, accuracy):
            with pytest.raises(ValueError, match=message):
                function(SCORES, labels)
    with pytest.raises(ValueError, match=r"weights of shape \(1,\) do not fit .* \(11, 5\)"):
        cross_entropy(SCORES, CLASSES, ROW_WEIGHTS[:1])
    for function in (squared_error, binary_cross_entropy):
        with pytest.raises(ValueError, match=r"labels of shape \(11, 1\) do not fit .*\(11, 5\)"):
            function(SCORES, TARGETS[:, :1])
        with pytest.raises(ValueError, match=r"weights of shape \(11, 5\) .* shape \(11,\)"):
            function(SCORES, TARGETS, TARGETS)


@pytest.mark.parametrize("label", [-1, -99, 5, 6])
def test_classes_that_do_not_exist_are_no_other_class(label):
    labels = CLASSES.copy()
    labels[3] = label
    assert np.isnan(sums(SCORES, labels).total)


def test_binary_cross_entropy_is_exact_for_large_scores():
    x = np.array([[1e4, -1e4, 1e4, -1e4, 30.0, -30.0]], np.float32)
    y = np.array([[1, 0, 0, 1, 1, 0]], np.float32)
    loss = binary_cross_entropy(x, y)
    np.testing.assert_allclose(loss.total, 2e4 / 6, rtol=1e-6)
    small = binary_cross_entropy(x[:, 4:], y[:, 4:])
    np.testing.assert_allclose(small.total, np.log1p(np.exp(-30.0)), rtol=1e-5)


def test_row_losses_are_computed_in_float32():
    half = jnp.asarray(SCORES, jnp.bfloat16)
    exact = np.asarray(half, np.float32)
    for kind, (labels, _) in KINDS.items():
        assert classify(half, labels, kind).total == classify(exact, labels, kind).total


def test_spans_agree_with_torch():
    """As transformers has it: clamped to [0, T], where T does not count."""
    starts, ends = SCORES, (2 * RNG.standard_normal((11, 5))).astype(np.float32)
    first = np.array([0, 4, 5, 6, -1, -100, 2, 3, 1, 900, 4], np.int32)
    last = np.array([1, 4, 4, 2, 3, 0, 5, 3, 2, 900, 4], np.int32)
    want = [
        functional.cross_entropy(
            torch.tensor(x), torch.tensor(p).long().clamp(0, 5), ignore_index=5
        )
        for x, p in ((starts, first), (ends, last))
    ]
    got = jax.jit(span_loss)(starts, ends, first, last)
    np.testing.assert_allclose([s.mean() for s in got], want, rtol=1e-6)
    assert [s.weight for s in got] == [8, 9]
    np.testing.assert_array_equal(
        position_labels(first, 5), [0, 4, -100, -100, 0, 0, 2, 3, 1, -100, 4]
    )
    column = jax.jit(span_loss)(starts, ends, first[:, None], last[:, None])
    assert column == got
    weighed = jax.jit(span_loss)(starts, ends, first, last, ROW_WEIGHTS)
    kept = ROW_WEIGHTS > 0
    alone = jax.jit(span_loss)(starts[kept], ends[kept], first[kept], last[kept])
    np.testing.assert_allclose(jax.tree.leaves(weighed), jax.tree.leaves(alone), rtol=1e-6)
    outside = jax.jit(span_loss)(starts, ends, first + 10**6, last)
    assert (outside[0].mean(), outside[0].weight) == (0, 0)

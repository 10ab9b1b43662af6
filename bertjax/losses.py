"""Losses as (sum, weight) pairs in float32, so that shards and microbatches add up exactly.

Labels that do not count, and rows of weight 0 that only fill a batch, add to neither; a mean over
nothing is 0 (torch gives NaN). Labels and weights may have an axis of size 1 more or less at the
end than they need; any other shape raises ValueError.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from bertjax.config import ProblemType
from bertjax.module import Input

IGNORE_INDEX = -100
"""Label of a position that does not count, as in torch and transformers."""


class LossSum(NamedTuple):
    """A sum of weighted losses and the sum of their weights (float32 scalars)."""

    total: jax.Array
    weight: jax.Array

    def mean(self) -> jax.Array:
        """Return total / weight, and 0 where nothing had weight."""
        return self.total / jnp.maximum(self.weight, jnp.finfo(jnp.float32).tiny)


def cross_entropy(
    logits: Float[Input, "*shape classes"],
    labels: Shaped[Input, "..."],
    weights: Shaped[Input, "..."] | None = None,
) -> LossSum:
    """Sum the softmax cross entropy over all positions whose label is not IGNORE_INDEX.

    Args:
      logits: scores of any float type; the arithmetic is float32.
      labels: [*shape], class ids in [0, classes), or IGNORE_INDEX. Other numbers make the sum NaN.
      weights: [*shape], weight of each position; None weighs all by 1.
    """
    logits = logits.astype(jnp.float32)
    picked, weights = _at_labels(logits, labels, weights)
    losses = jax.nn.logsumexp(logits, axis=-1) - picked
    return LossSum(jnp.sum(losses * weights), jnp.sum(weights))


def accuracy(
    logits: Float[Input, "*shape classes"],
    labels: Shaped[Input, "..."],
    weights: Shaped[Input, "..."] | None = None,
) -> LossSum:
    """Sum the positions whose label has the highest score; arguments as in `cross_entropy`.

    Ties count as hits. Beside `cross_entropy` this costs next to nothing, as an argmax would not.
    """
    logits = logits.astype(jnp.float32)
    picked, weights = _at_labels(logits, labels, weights)
    hits = picked >= jnp.max(logits, axis=-1)
    return LossSum(jnp.sum(hits * weights), jnp.sum(weights))


def _at_labels(logits: Input, labels: Input, weights: Input | None) -> tuple[jax.Array, jax.Array]:
    """Return the label's score and the weight of every position."""
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels of type {labels.dtype} are no class ids: they must be integers")
    labels = _fit("labels", labels, logits.shape[:-1], logits).astype(jnp.int32)
    counted = jnp.where(labels == IGNORE_INDEX, 0.0, _weights(weights, logits))
    # A negative index would count from the end; one past the end reads NaN.
    index = jnp.where(labels < 0, logits.shape[-1], labels)
    index = jnp.where(counted != 0, index, 0)
    return jnp.take_along_axis(logits, index[..., None], axis=-1)[..., 0], counted


def _weights(weights: Input | None, scores: Input) -> jax.Array:
    """Return the weight of every position of `scores`, all 1 where none are given."""
    if weights is None:
        return jnp.ones(scores.shape[:-1], jnp.float32)
    return _fit("weights", weights, scores.shape[:-1], scores).astype(jnp.float32)


def _fit(what: str, given: Input, wanted: tuple[int, ...], scores: Input) -> jax.Array:
    """Bring labels or weights to the wanted shape, from which an axis of 1 may set them apart."""
    if wanted not in (given.shape, (*given.shape, 1)) and given.shape != (*wanted, 1):
        raise ValueError(
            f"{what} of shape {given.shape} do not fit scores of shape {scores.shape}: "
            f"they must have shape {wanted}"
        )
    return jnp.asarray(given).reshape(wanted)


def pretraining_loss(
    prediction_logits: Float[Input, "B positions V"],
    labels: Int[Input, "..."],
    seq_relationship_logits: Float[Input, "B ... 2"],
    next_sentence_label: Int[Input, "..."],
) -> jax.Array:
    """Return BERT's pretraining loss: mean over masked tokens plus mean over sentence pairs."""
    mlm = cross_entropy(prediction_logits, labels)
    return mlm.mean() + cross_entropy(seq_relationship_logits, next_sentence_label).mean()


def squared_error(
    predictions: Float[Input, "*shape outputs"],
    targets: Shaped[Input, "..."],
    weights: Shaped[Input, "..."] | None = None,
) -> LossSum:
    """Sum the squared error of every row, averaged over its outputs.

    Args:
      predictions: numbers of any float type; the arithmetic is float32.
      targets: [*shape, outputs], numbers of any type.
      weights: [*shape], weight of each row; None weighs all by 1.
    """
    return _row_sum(lambda x, y: jnp.square(x - y), predictions, targets, weights)


def binary_cross_entropy(
    logits: Float[Input, "*shape classes"],
    labels: Shaped[Input, "..."],
    weights: Shaped[Input, "..."] | None = None,
) -> LossSum:
    """Sum the sigmoid cross entropy of every row, averaged over its classes.

    Args:
      logits: scores of any float type; the arithmetic is float32.
      labels: [*shape, classes], numbers in [0, 1] of any type: how far each class applies.
      weights: [*shape], weight of each row; None weighs all by 1.
    """

    def losses(x: Input, y: jax.Array) -> jax.Array:
        return -(y * jax.nn.log_sigmoid(x) + (1 - y) * jax.nn.log_sigmoid(-x))

    return _row_sum(losses, logits, labels, weights)


def _row_sum(
    losses: Callable[[Input, jax.Array], jax.Array],
    scores: Input,
    targets: Input,
    weights: Input | None,
) -> LossSum:
    """Weigh and sum the rows' mean losses; a row of weight 0 may hold any target, NaN too."""
    scores = scores.astype(jnp.float32)
    rows = _weights(weights, scores)
    targets = _fit("labels", targets, scores.shape, scores).astype(jnp.float32)
    targets = jnp.where(rows[..., None] != 0, targets, 0.0)
    return LossSum(jnp.sum(losses(scores, targets).mean(axis=-1) * rows), jnp.sum(rows))


def infer_problem_type(labels: Shaped[Input, "..."], num_labels: int) -> ProblemType:
    """Tell the kind of a sequence classifier from one batch of labels, as transformers does.

    One output is a regression; else integers are class ids, and anything else (float, bool) tells
    how far each class applies. transformers keeps the first batch's answer in its config; a pure
    function cannot, so every call decides anew: name `problem_type` where label types vary.
    """
    if num_labels == 1:
        return "regression"
    if jnp.issubdtype(labels.dtype, jnp.integer):
        return "single_label_classification"
    return "multi_label_classification"


def sequence_classification_loss(
    logits: Float[Input, "*shape outputs"],
    labels: Shaped[Input, "..."],
    problem_type: ProblemType | None = None,
    weights: Shaped[Input, "..."] | None = None,
) -> LossSum:
    """Sum the loss that fits the kind of labels over the rows.

    Args:
      logits: scores of any float type; the arithmetic is float32.
      labels: [*shape] class ids or IGNORE_INDEX for "single_label_classification", else
        [*shape, outputs].
      problem_type: the kind; None infers it with `infer_problem_type`.
      weights: [*shape], weight of each row; None weighs all by 1.
    """
    losses = {
        "regression": squared_error,
        "single_label_classification": cross_entropy,
        "multi_label_classification": binary_cross_entropy,
    }
    kind = problem_type or infer_problem_type(labels, logits.shape[-1])
    return losses[kind](logits, labels, weights)


def position_labels(positions: Int[Input, "*shape"], length: int) -> Int[Array, "*shape"]:
    """Turn positions of an answer into labels of `cross_entropy` over `length` tokens.

    As in transformers, `length` or more does not count and a negative position means 0.
    """
    clipped = jnp.clip(jnp.asarray(positions), 0, length)
    return jnp.where(clipped == length, IGNORE_INDEX, clipped)


def span_loss(
    start_logits: Float[Input, "*shape T"],
    end_logits: Float[Input, "*shape T"],
    start_positions: Int[Input, "..."],
    end_positions: Int[Input, "..."],
    weights: Shaped[Input, "..."] | None = None,
) -> tuple[LossSum, LossSum]:
    """Sum the cross entropies of starts and of ends of answers.

    They are two sums because one end of an answer may lie outside the row; the loss of
    `BertForQuestionAnswering` is half the sum of their means.

    Args:
      start_logits: scores of any float type; the arithmetic is float32.
      end_logits: likewise.
      start_positions: [*shape], see `position_labels`.
      end_positions: likewise.
      weights: [*shape], weight of each row; None weighs all by 1.
    """
    length = start_logits.shape[-1]
    return (
        cross_entropy(start_logits, position_labels(start_positions, length), weights),
        cross_entropy(end_logits, position_labels(end_positions, length), weights),
    )

"""Losses as (sum, weight) pairs in float32, so that shards and microbatches add up exactly."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Shaped

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
    labels: Int[Input, "*shape"],
    weights: Shaped[Input, "*shape"] | None = None,
) -> LossSum:
    """Sum the softmax cross entropy over all positions whose label is not IGNORE_INDEX.

    Args:
      logits: scores of any float type; the arithmetic is float32.
      labels: class ids in [0, classes), or IGNORE_INDEX.
      weights: weight of each position; None weighs all by 1.
    """
    logits = logits.astype(jnp.float32)
    picked, weights = _at_labels(logits, labels, weights)
    losses = jax.nn.logsumexp(logits, axis=-1) - picked
    return LossSum(jnp.sum(losses * weights), jnp.sum(weights))


def accuracy(
    logits: Float[Input, "*shape classes"],
    labels: Int[Input, "*shape"],
    weights: Shaped[Input, "*shape"] | None = None,
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
    keep = labels != IGNORE_INDEX
    kept = jnp.ones((), jnp.float32) if weights is None else jnp.asarray(weights, jnp.float32)
    index = jnp.where(keep, labels, 0)[..., None]
    return jnp.take_along_axis(logits, index, axis=-1)[..., 0], jnp.where(keep, kept, 0.0)


def pretraining_loss(
    prediction_logits: Float[Input, "B positions V"],
    labels: Int[Input, "B positions"],
    seq_relationship_logits: Float[Input, "B 2"],
    next_sentence_label: Int[Input, " B"],
) -> jax.Array:
    """Return BERT's pretraining loss: mean over masked tokens plus mean over sentence pairs."""
    mlm = cross_entropy(prediction_logits, labels)
    return mlm.mean() + cross_entropy(seq_relationship_logits, next_sentence_label).mean()

"""Rows that hold several texts each: who sees whom, and what of a row is each text's.

A row is described by its text numbers [B, T]: 0 at padding, then 1, 2, ... for the tokens of its
first text, its second, and so on. `bertjax.data.packing` makes such rows. With the mask and the
positions of this module every text gets what it would get in a row of its own:

    output = model.apply({"params": params}, **model_inputs(batch, of_cls=True))
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bertjax.module import Input


def model_inputs(batch: Mapping[str, Any], *, of_cls: bool) -> dict[str, Any]:
    """Return the arguments by which a model reads a batch, whether texts share its rows or not.

    Args:
      batch: `input_ids` and `token_type_ids` [B, T], and `attention_mask` [B, T] or, where texts
        share rows, `texts` [B, T] and `cls_positions` [B, S].
      of_cls: whether the model has to be told where each text's [CLS] is.
    """
    inputs = {name: batch[name] for name in ("input_ids", "token_type_ids")}
    if "texts" not in batch:
        return {**inputs, "attention_mask": batch["attention_mask"]}
    texts = batch["texts"]
    inputs |= {"attention_mask": mask(texts), "position_ids": positions(texts)}
    return {**inputs, "cls_positions": batch["cls_positions"]} if of_cls else inputs


def mask(texts: Int[Input, "B T"]) -> Bool[Array, "B T T"]:
    """Return the attention mask by which a token sees those of its own text alone."""
    return (texts[:, :, None] == texts[:, None, :]) & (texts[:, None, :] > 0)


def positions(texts: Int[Input, "B T"]) -> Int[Array, "B T"]:
    """Return the position of each token in its own text, from 0."""
    columns = jnp.arange(texts.shape[1])
    begins = jnp.diff(texts, axis=1, prepend=-1) != 0
    return columns - jax.lax.cummax(jnp.where(begins, columns, 0), axis=1)


def members(texts: Int[Input, "B T"], count: int) -> Bool[Array, "B count T"]:
    """Tell which tokens are those of each text, of up to `count` in a row."""
    return texts[:, None, :] == jnp.arange(1, count + 1)[:, None]


def of_each_text(
    scores: Float[Input, "B T"], texts: Int[Input, "B T"], count: int
) -> Float[Array, "B count T"]:
    """Return the scores of each text in a row of its own, where others' are as low as can be.

    Args:
      scores: of the tokens.
      texts: their texts' numbers.
      count: texts of a row at most.
    """
    return jnp.where(members(texts, count), scores[:, None, :], jnp.finfo(scores.dtype).min)

"""Multi-head attention: masks, relative positions, softmax in float32, dropout of probabilities."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from bertjax.dropout import dropout
from bertjax.module import Input


def attention_bias(mask: Shaped[Input, "B ..."]) -> Float[Array, "B 1 _ S"]:
    """Turn an attention mask into what is added to the scores.

    Args:
      mask: [B, S], or [B, T, S] with one row for each query; zero hides a key, anything else shows
        it. A row that hides everything attends to all keys alike.

    Returns:
      float32 [B, 1, 1, S] or [B, 1, T, S]: 0 where shown, the least float32 where hidden.
    """
    if mask.ndim not in (2, 3):
        raise ValueError(f"attention_mask must be [B, S] or [B, T, S]; got shape {mask.shape}")
    mask = mask[:, None, None, :] if mask.ndim == 2 else mask[:, None, :, :]
    return jnp.where(mask != 0, 0.0, jnp.finfo(jnp.float32).min)


def causal_mask(
    mask: Shaped[Input, "B ..."] | None, queries: int, keys: int, first: jax.Array | int = 0
) -> Bool[Array, "_ T S"]:
    """Tell which keys each query of a decoder may see: real tokens, up to its own.

    Args:
      mask: [B, up to S], or [B, T, up to S] with one row for each query; zero hides a key. Keys
        that it does not reach are not hidden.
      queries: T.
      keys: S.
      first: place of the first query among the keys.

    Raises:
      ValueError: a mask of more than S columns, or of other than T rows.
    """
    visible = jnp.arange(keys) <= (first + jnp.arange(queries))[:, None]
    if mask is None:
        return visible[None]
    if mask.ndim not in (2, 3):
        raise ValueError(f"attention_mask must be [B, S] or [B, T, S]; got shape {mask.shape}")
    if mask.shape[-1] > keys or (mask.ndim == 3 and mask.shape[1] != queries):
        raise ValueError(
            f"attention_mask of shape {mask.shape} is not for {queries} queries of {keys} keys"
        )
    real = mask[:, None, :] != 0 if mask.ndim == 2 else mask != 0
    beyond = ((0, 0), (0, 0), (0, keys - mask.shape[-1]))
    return visible & jnp.pad(real, beyond, constant_values=True)


def relative_scores(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S H K"],
    distance_embedding: Float[Array, "distances K"],
    *,
    with_key: bool,
    first: Int[Array, ""] | None = None,
    places: Int[Array, " S"] | None = None,
) -> Float[Array, "B H T S"]:
    """Scores of relative positions, to be added before scaling.

    `relative_key` (Shaw et al., arXiv 1803.02155): the query with the embedding of its distance to
    each key. `relative_key_query` (Huang et al., arXiv 2009.13658, method 4): the key's with it
    too.

    Args:
      query: queries.
      key: keys.
      distance_embedding: one row for each distance from -(max - 1) to max - 1.
      with_key: add the key's term.
      first: place of the first query among the keys; None is the first.
      places: where each key stands in its text; None: as they lie.
    """
    reach = (distance_embedding.shape[0] + 1) // 2
    if places is None:
        places = jnp.arange(key.shape[1])
    asking = jnp.arange(query.shape[1])
    asking = places[asking if first is None else first + asking]
    distance = asking[:, None] - places[None, :]
    positional = distance_embedding[distance + reach - 1]  # [T, S, K]
    scores = jnp.einsum("bthk,tsk->bhts", query, positional)
    if with_key:
        scores += jnp.einsum("bshk,tsk->bhts", key, positional)
    return scores


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def softmax(scores: Float[Array, "*rows S"], dtype: DTypeLike) -> Float[Array, "*rows S"]:
    """Softmax over the last axis, computed in float32 and returned as `dtype`.

    One division a row; the result is all that the backward pass keeps.
    """
    unnormalized = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    return (unnormalized * (1.0 / unnormalized.sum(axis=-1, keepdims=True))).astype(dtype)


@softmax.defjvp
def _softmax_jvp(
    dtype: DTypeLike, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    result, (change,) = softmax(*primals, dtype), tangents
    probs = result.astype(jnp.float32)
    slope = probs * (change - (probs * change).sum(axis=-1, keepdims=True))
    return result, slope.astype(dtype)


def dot_product_attention(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S H K"],
    value: Float[Array, "B S H K"],
    bias: Float[Array, "#B 1 _ S"] | None = None,
    *,
    extra_scores: Float[Array, "B H T S"] | None = None,
    head_mask: Float[Input, "..."] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> tuple[Float[Array, "B T H K"], Float[Array, "B H T S"]]:
    """Scaled dot-product attention (Vaswani et al., arXiv 1706.03762).

    Args:
      query: queries; key and value likewise.
      key: keys.
      value: values.
      bias: added to the scaled scores, see `attention_bias`.
      extra_scores: added to the scores before scaling, see `relative_scores`.
      head_mask: factors of the probabilities, broadcast to [B, H, T, S].
      dropout_rate: dropout of the probabilities, where `dropout_key` is given.
      dropout_key: key of the dropout mask.

    Returns:
      The weighted values, and the probabilities after dropout and `head_mask`.
    """
    scores = jnp.einsum("bthk,bshk->bhts", query, key, preferred_element_type=jnp.float32)
    if extra_scores is not None:
        scores += extra_scores
    scores *= query.shape[-1] ** -0.5
    if bias is not None:
        scores += bias
    probs = softmax(scores, query.dtype)
    if dropout_key is None and head_mask is None:
        return weighted_mean(scores, value), probs  # which nobody computes unless it is used
    if dropout_key is not None and dropout_rate > 0.0:
        probs = dropout(dropout_key, probs, dropout_rate)
    if head_mask is not None:
        probs *= head_mask.astype(probs.dtype)
    return _weigh(probs, value), probs


@jax.custom_jvp
def weighted_mean(
    scores: Float[Array, "B H T S"], value: Float[Array, "B S H K"]
) -> Float[Array, "B T H K"]:
    """Return the values' mean under the softmax of the scores, divided at the end.

    That is K divisions a row in place of S, and no array of probabilities beside that of
    exponentials. Where it is differentiated, the backward pass needs the probabilities.
    """
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1)
    mean = _weigh(weights.astype(value.dtype), value) / total.swapaxes(1, 2)[..., None]
    return mean.astype(value.dtype)


@weighted_mean.defjvp
def _weighted_mean_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (scores, value), (dscores, dvalue) = primals, tangents
    probs, dprobs = jax.jvp(lambda x: softmax(x, value.dtype), (scores,), (dscores,))
    return _weigh(probs, value), _weigh(dprobs, value) + _weigh(probs, dvalue)


def _weigh(weights: Float[Array, "B H T S"], value: Float[Array, "B S H K"]) -> jax.Array:
    # Heads before tokens: asked for tokens first, XLA on a CPU fuses softmax and product into one
    # loop, which takes up to four times as long.
    return jnp.einsum("bhts,bshk->bhtk", weights, value).swapaxes(1, 2)

"""Multi-head attention: masks, relative positions, softmax in float32, dropout of probabilities."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from bertjax.dropout import dropout
from bertjax.module import Input

# Scores that a CPU computes at a time: they stay in the second-level cache of a core. With 12 heads
# of 32 and 384 tokens attention takes a third of the time that it takes with all scores in memory.
_BLOCK_BYTES = 2**20


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
    probs = softmax(_scores(query, key, bias, extra_scores), query.dtype)
    if dropout_key is None and head_mask is None:
        # Nobody computes the probabilities unless they are used.
        return _attend(query, key, value, bias, extra_scores), probs
    if dropout_key is not None and dropout_rate > 0.0:
        probs = dropout(dropout_key, probs, dropout_rate)
    if head_mask is not None:
        probs *= head_mask.astype(probs.dtype)
    return _weigh(probs, value), probs


def _scores(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S H K"],
    bias: Float[Array, "#B 1 _ S"] | None,
    extra_scores: Float[Array, "B H T S"] | None = None,
) -> Float[Array, "B H T S"]:
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    few = len(query) == 1 and query.shape[1] < key.shape[1]
    if few and jax.default_backend() == "cpu":
        # XLA on a CPU would transpose all keys of one row for a few queries of each step.
        scores = product("bshk,bthk->bhst", key, query).swapaxes(2, 3)
    else:
        scores = product("bthk,bshk->bhts", query, key)
    if extra_scores is not None:
        scores += extra_scores
    scores *= query.shape[-1] ** -0.5
    return scores if bias is None else scores + bias


@jax.custom_jvp
def _attend(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S H K"],
    value: Float[Array, "B S H K"],
    bias: Float[Array, "#B 1 _ S"] | None,
    extra_scores: Float[Array, "B H T S"] | None,
) -> Float[Array, "B T H K"]:
    """Return the weighted values alone, which needs no array of probabilities.

    Where it is differentiated, the backward pass needs one.
    """
    if extra_scores is None and _needs_blocks(query, key):
        return _attend_in_blocks(query, key, value, bias)
    return _weighted_mean(_scores(query, key, bias, extra_scores), value)


@_attend.defjvp
def _attend_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
    def attend(query: jax.Array, key: jax.Array, value: jax.Array, *added: Any) -> jax.Array:
        return _weigh(softmax(_scores(query, key, *added), query.dtype), value)

    return jax.jvp(attend, primals, tangents)


def _needs_blocks(query: jax.Array, key: jax.Array) -> bool:
    """Tell whether the scores of all heads would leave the caches of the one CPU that computes."""
    mesh = jax.sharding.get_abstract_mesh()
    alone = jax.default_backend() == "cpu" and (mesh.empty or mesh.size == 1)
    batch, queries, heads, _ = query.shape
    return alone and 4 * batch * heads * queries * key.shape[1] > 8 * _BLOCK_BYTES


def _attend_in_blocks(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S H K"],
    value: Float[Array, "B S H K"],
    bias: Float[Array, "#B 1 _ S"] | None,
) -> Float[Array, "B T H K"]:
    """Attend with a few heads of one row at a time."""
    batch, queries, heads, size = query.shape
    most = max(1, _BLOCK_BYTES // (4 * queries * key.shape[1]))
    together = max(n for n in range(1, min(heads, most) + 1) if heads % n == 0)
    groups = heads // together

    def split(x: jax.Array) -> jax.Array:
        grouped = x.reshape(batch, -1, groups, together, size).swapaxes(1, 2)
        return grouped.reshape(batch * groups, 1, -1, together, size)

    def attend(block: tuple[jax.Array, ...]) -> jax.Array:
        query, key, value, number = block
        own = bias
        if bias is not None and len(bias) > 1:
            own = jax.lax.dynamic_index_in_dim(bias, number // groups)
        return _weighted_mean(_scores(query, key, own), value)

    blocks = *map(split, (query, key, value)), jnp.arange(batch * groups)
    context = jax.lax.map(attend, blocks).reshape(batch, groups, queries, together, size)
    return context.swapaxes(1, 2).reshape(query.shape)


def _weighted_mean(
    scores: Float[Array, "B H T S"], value: Float[Array, "B S H K"]
) -> Float[Array, "B T H K"]:
    """Return the values' mean under the softmax of the scores, divided at the end.

    That is K divisions a row in place of S, and no array of probabilities beside that of
    exponentials.
    """
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1)
    mean = _weigh(weights.astype(value.dtype), value) / total.swapaxes(1, 2)[..., None]
    return mean.astype(value.dtype)


def _weigh(weights: Float[Array, "B H T S"], value: Float[Array, "B S H K"]) -> jax.Array:
    # Heads before tokens: asked for tokens first, XLA on a CPU fuses softmax and product into one
    # loop, which takes up to four times as long.
    return jnp.einsum("bhts,bshk->bhtk", weights, value).swapaxes(1, 2)

"""Multi-head attention: masks, relative positions, softmax in float32, dropout of probabilities."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from bertjax.dropout import dropout
from bertjax.layers import needs_wide_result
from bertjax.module import Input

# What a CPU computes at a time: scores of so many bytes, so that they stay in its caches, and of so
# many queries, as the products of 384 with as many keys take a quarter longer than those of 192.
_PART_BYTES = 2**24
_PART_QUERIES = 192

# Queries of a decoder's step at most, which are few beside its keys.
_FEW_QUERIES = 16


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
    return _weigh(probs, value).swapaxes(1, 2), probs


def _scores(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S H K"],
    bias: Float[Array, "#B 1 _ S"] | None,
    extra_scores: Float[Array, "B H T S"] | None = None,
) -> Float[Array, "B H T S"]:
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    if len(query) == 1 and _few(query, key) and jax.default_backend() == "cpu":
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
    mesh = jax.sharding.get_abstract_mesh()
    one_cpu = jax.default_backend() == "cpu" and (mesh.empty or mesh.size == 1)
    if one_cpu and extra_scores is None and not _few(query, key):
        return _attend_in_parts(query, key, value, bias)
    return _weighted_mean(_scores(query, key, bias, extra_scores), value)


@_attend.defjvp
def _attend_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
    def attend(query: jax.Array, key: jax.Array, value: jax.Array, *added: Any) -> jax.Array:
        return _weigh(softmax(_scores(query, key, *added), query.dtype), value).swapaxes(1, 2)

    return jax.jvp(attend, primals, tangents)


def _few(query: jax.Array, key: jax.Array) -> bool:
    """Tell whether this looks like a step of a decoder with its cache."""
    return query.shape[1] <= _FEW_QUERIES and query.shape[1] < key.shape[1]


def _attend_in_parts(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S H K"],
    value: Float[Array, "B S H K"],
    bias: Float[Array, "#B 1 _ S"] | None,
) -> Float[Array, "B T H K"]:
    """Attend with some rows, and some of their queries, at a time."""
    batch, queries, heads, _ = query.shape
    keys = key.shape[1]
    together = _halved(queries, _PART_QUERIES)
    rows = _halved(batch, _PART_BYTES // (4 * heads * together * keys))
    if bias is None:
        bias = jnp.zeros((1, 1, 1, keys))
    # In the order in which the products read them: left to itself, XLA copies them in each.
    arranged = key.transpose(0, 2, 3, 1), value.swapaxes(1, 2)
    key, value = jax.lax.optimization_barrier(arranged)

    def of_rows(arrays: tuple[jax.Array, ...]) -> jax.Array:
        query, key, value, bias = arrays

        def of_queries(arrays: tuple[jax.Array, ...]) -> jax.Array:
            query, bias = arrays
            scores = _scores(query, key.transpose(0, 3, 1, 2), bias)
            return _weighted_mean(scores, value.swapaxes(1, 2))

        parts = queries // together
        context = jax.lax.map(of_queries, (_split(query, 1, parts), _split(bias, 2, parts)))
        return context.swapaxes(0, 1).reshape(query.shape)

    parts = batch // rows
    arrays = tuple(_split(array, 0, parts) for array in (query, key, value, bias))
    return jax.lax.map(of_rows, arrays).reshape(query.shape)


def _halved(count: int, most: int) -> int:
    """Return what is left of a count when it is halved until it is small enough, or odd."""
    while count > most and count % 2 == 0:
        count //= 2
    return count


def _split(array: jax.Array, axis: int, parts: int) -> jax.Array:
    """Put parts of an axis first, [parts, ...]; all of an axis of 1 is in each part."""
    if array.shape[axis] == 1:
        return jnp.broadcast_to(array, (parts, *array.shape))
    shape = (*array.shape[:axis], parts, array.shape[axis] // parts, *array.shape[axis + 1 :])
    return jnp.moveaxis(array.reshape(shape), axis, 0)


def _weighted_mean(
    scores: Float[Array, "B H T S"], value: Float[Array, "B S H K"]
) -> Float[Array, "B T H K"]:
    """Return the values' mean under the softmax of the scores, divided at the end.

    That is K divisions a row in place of S, and no array of probabilities beside that of
    exponentials.
    """
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    dtype = jnp.float32 if needs_wide_result(value.dtype) else value.dtype
    mean = _weigh(weights.astype(value.dtype), value, dtype)
    mean /= weights.sum(axis=-1, keepdims=True)
    return mean.astype(value.dtype).swapaxes(1, 2)


def _weigh(
    weights: Float[Array, "B H T S"],
    value: Float[Array, "B S H K"],
    dtype: DTypeLike | None = None,
) -> Float[Array, "B H T K"]:
    # Heads before tokens: asked for tokens first, XLA on a CPU fuses softmax and product into one
    # loop, which takes up to four times as long.
    return jnp.einsum("bhts,bshk->bhtk", weights, value, preferred_element_type=dtype)

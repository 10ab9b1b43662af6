"""The cache of a decoder: keys and values of the tokens read so far, as a value of fixed shape.

Axis letters: B batch, H heads, S room for tokens, E tokens of the encoder, K head size.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import ArrayLike, DTypeLike

from bertjax.config import BertConfig


@struct.dataclass
class LayerCache:
    """What one layer keeps.

    Heads come before tokens, as in transformers: on a CPU a step of decoding then takes half the
    time.

    Attributes:
      key: [B, H, S, K], of the self-attention.
      value: likewise.
      cross_key: [B, H, E, K] of the encoder's output, once a call has been given that.
      cross_value: likewise.
    """

    key: jax.Array
    value: jax.Array
    cross_key: jax.Array | None = None
    cross_value: jax.Array | None = None

    def write(self, first: jax.Array, key: jax.Array, value: jax.Array) -> "LayerCache":
        """Put keys and values [B, T, H, K] at the places from `first` on.

        Where there is no room they overwrite the last ones.
        """

        def put(kept: jax.Array, new: jax.Array) -> jax.Array:
            new = new.swapaxes(1, 2).astype(kept.dtype)
            return jax.lax.dynamic_update_slice_in_dim(kept, new, first, axis=2)

        return dataclasses.replace(self, key=put(self.key, key), value=put(self.value, value))

    def write_cross(self, key: jax.Array, value: jax.Array) -> "LayerCache":
        """Keep the keys and values [B, E, H, K] of the encoder's output."""
        kept = (x.swapaxes(1, 2).astype(self.key.dtype) for x in (key, value))
        return LayerCache(self.key, self.value, *kept)

    def read(self, dtype: DTypeLike) -> tuple[jax.Array, jax.Array]:
        """Return the keys and values [B, S, H, K]."""
        return self.key.swapaxes(1, 2).astype(dtype), self.value.swapaxes(1, 2).astype(dtype)

    def read_cross(self, dtype: DTypeLike) -> tuple[jax.Array, jax.Array] | None:
        """Return the keys and values [B, E, H, K] of the encoder's output, if they are there."""
        if self.cross_key is None or self.cross_value is None:
            return None
        cross = self.cross_key.swapaxes(1, 2), self.cross_value.swapaxes(1, 2)
        return cross[0].astype(dtype), cross[1].astype(dtype)


@struct.dataclass
class Cache:
    """What a decoder keeps of the tokens that it has read, for those that follow.

    A call that is given one as `past_key_values` returns another; neither is ever changed. Under
    `jax.jit` with the cache donated, the new one takes the old one's memory.

    Attributes:
      layers: what each layer keeps. Arrays of their own: slices of one for all would be copied
        for every token.
      length: int32 scalar, tokens written; what lies behind them is never read.
      places: int32 [S], where each token stands in its text, if not one after the other: tokens
        that may come at one place share it, and `attention_mask` says which sees which. None: they
        stand as they lie.
    """

    layers: tuple[LayerCache, ...]
    length: jax.Array
    places: jax.Array | None = None

    @property
    def max_length(self) -> int:
        """Tokens that there is room for."""
        return self.layers[0].key.shape[2]

    @property
    def cross_length(self) -> int | None:
        """Tokens of the encoder's output, once that was given."""
        cross_key = self.layers[0].cross_key
        return None if cross_key is None else cross_key.shape[2]

    @property
    def batch_size(self) -> int:
        """Rows."""
        return self.layers[0].key.shape[0]

    def reorder(self, rows: ArrayLike) -> "Cache":
        """Return a cache of other rows, such as those of the beams that stay.

        Args:
          rows: [any number], indices of rows; the same one may come several times.
        """
        take = lambda array: jnp.take(array, jnp.asarray(rows), axis=0)  # noqa: E731
        return dataclasses.replace(self, layers=jax.tree.map(take, self.layers))

    def crop(self, length: ArrayLike) -> "Cache":
        """Forget all tokens but the first `length`, or the last -`length` where it is negative.

        Where there are no more than `length`, nothing changes; where there are no more than
        -`length`, none stays. Negative numbers are those of transformers.
        """
        length = jnp.asarray(length, jnp.int32)
        kept = jnp.minimum(self.length, length)
        kept = jnp.where(length < 0, jnp.maximum(0, self.length + length), kept)
        return dataclasses.replace(self, length=kept)

    def resize(self, max_length: int, places: jax.Array | None = None) -> "Cache":
        """Return a cache with room for another number of tokens.

        Args:
          max_length: so many.
          places: see the class.

        Raises:
          ValueError: fewer than are in it.
        """
        written = concrete(self.length)
        if written is not None and written > max_length:
            raise ValueError(f"a cache that holds {written} tokens cannot shrink to {max_length}")
        room = ((0, 0), (0, 0), (0, max(0, max_length - self.max_length)), (0, 0))

        def fit(layer: LayerCache) -> LayerCache:
            key, value = (jnp.pad(x[:, :, :max_length], room) for x in (layer.key, layer.value))
            return dataclasses.replace(layer, key=key, value=value)

        return Cache(tuple(map(fit, self.layers)), self.length, places)


def init_cache(
    config: BertConfig, batch_size: int, max_length: int, dtype: DTypeLike = jnp.float32
) -> Cache:
    """Return an empty cache.

    Args:
      config: the decoder's.
      batch_size: rows.
      max_length: tokens of a row that there is to be room for, prompt included.
      dtype: type of the keys and values; the model's compute type loses nothing.

    Raises:
      ValueError: max_length over max_position_embeddings, or a model that is no decoder.
    """
    if not config.is_decoder:
        raise ValueError("a cache is for decoders, and the config's is_decoder is off")
    _check_positions(config, max_length)
    shape = (batch_size, config.num_stored_heads, max_length, config.head_size)
    # Arrays of their own: one could not be donated twice.
    layers = tuple(
        LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
        for _ in range(config.num_hidden_layers)
    )
    return Cache(layers, jnp.zeros((), jnp.int32))


def check_cache(cache: Cache, config: BertConfig, batch_size: int, tokens: int) -> None:
    """Refuse a cache that is not the model's and the batch's, or has no room for more tokens.

    Where `cache.length` is traced nobody knows it; then only more tokens than all the room are
    found.

    Raises:
      ValueError: with both numbers.
    """
    layers, (rows, heads, room, size) = len(cache.layers), cache.layers[0].key.shape
    model = (config.num_hidden_layers, config.num_stored_heads, config.head_size)
    if (layers, heads, size) != model:
        raise ValueError(
            f"past_key_values have {layers} layers of {heads} heads of {size}, the model has "
            f"{model[0]} of {model[1]} of {model[2]}"
        )
    if rows != batch_size:
        raise ValueError(f"past_key_values have {rows} rows, the batch has {batch_size}")
    if cache.places is None:
        _check_positions(config, room)
    written = concrete(cache.length)
    if (written or 0) + tokens > room:
        have = "" if written is None else f"the {written} there and "
        raise ValueError(f"{have}{tokens} new tokens are more than a cache with room for {room}")


def _check_positions(config: BertConfig, max_length: int) -> None:
    if max_length > config.max_position_embeddings:
        raise ValueError(
            f"a cache of {max_length} tokens is over max_position_embeddings "
            f"{config.max_position_embeddings}"
        )


def concrete(length: jax.Array) -> int | None:
    """Return a scalar's value, or None while it is traced."""
    try:
        return int(length)
    except jax.errors.ConcretizationTypeError:
        return None

"""The cache of a decoder: keys and values of the tokens read so far, as a value of fixed shape.

Axis letters: L layers, B batch, H heads, S room for tokens, E tokens of the encoder, K head size.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import ArrayLike, DTypeLike

from bertjax.config import BertConfig


@struct.dataclass
class Cache:
    """What a decoder keeps of the tokens that it has read, for those that follow.

    A call that is given one as `past_key_values` returns another; neither is ever changed. Under
    `jax.jit` with the cache donated, the new one takes the old one's memory.

    Attributes:
      key: [L, B, H, S, K], of the self-attention. Heads come before tokens, as in transformers:
        a step of decoding on a CPU then takes half the time.
      value: likewise.
      length: int32 scalar, tokens written; what lies behind them is never read.
      cross_key: [L, B, H, E, K] of the encoder's output, once a call has been given that.
      cross_value: likewise.
      places: int32 [S], where each token stands in its text, if not one after the other: tokens
        that may come at one place share it, and `attention_mask` says which sees which. None: they
        stand as they lie.
    """

    key: jax.Array
    value: jax.Array
    length: jax.Array
    cross_key: jax.Array | None = None
    cross_value: jax.Array | None = None
    places: jax.Array | None = None

    @property
    def max_length(self) -> int:
        """Tokens that there is room for."""
        return self.key.shape[3]

    @property
    def batch_size(self) -> int:
        """Rows."""
        return self.key.shape[1]

    def reorder(self, rows: ArrayLike) -> "Cache":
        """Return a cache of other rows, such as those of the beams that stay.

        Args:
          rows: [any number], indices of rows; the same one may come several times.
        """
        taken = {
            name: jnp.take(array, jnp.asarray(rows), axis=1)
            for name in ("key", "value", "cross_key", "cross_value")
            if (array := getattr(self, name)) is not None
        }
        return dataclasses.replace(self, **taken)

    def crop(self, length: ArrayLike) -> "Cache":
        """Forget all tokens but the first `length`; where there are no more, nothing changes."""
        kept = jnp.minimum(self.length, jnp.asarray(length, jnp.int32))
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
        more = max(0, max_length - self.max_length)

        def fit(array: jax.Array) -> jax.Array:
            room = ((0, 0), (0, 0), (0, 0), (0, more), (0, 0))
            return jnp.pad(array[:, :, :, :max_length], room)

        return dataclasses.replace(self, key=fit(self.key), value=fit(self.value), places=places)

    def write(self, layer: ArrayLike, key: jax.Array, value: jax.Array) -> "Cache":
        """Put the keys and values [B, T, H, K] of one layer behind the tokens written.

        `length` stays, for the other layers; where there is no room they overwrite the last ones.
        """
        at = (layer, 0, 0, self.length, 0)

        def put(stacked: jax.Array, new: jax.Array) -> jax.Array:
            new = new.swapaxes(1, 2)[None].astype(stacked.dtype)
            return jax.lax.dynamic_update_slice(stacked, new, at)

        return dataclasses.replace(self, key=put(self.key, key), value=put(self.value, value))

    def read(self, layer: ArrayLike) -> tuple[jax.Array, jax.Array]:
        """Return the keys and values [B, S, H, K] of one layer."""
        return _layer(self.key, layer), _layer(self.value, layer)

    def read_cross(self, layer: ArrayLike) -> tuple[jax.Array, jax.Array]:
        """Return the keys and values [B, E, H, K] that one layer has of the encoder's output."""
        assert self.cross_key is not None  # whoever asks has looked
        assert self.cross_value is not None
        return _layer(self.cross_key, layer), _layer(self.cross_value, layer)


def _layer(stacked: jax.Array, layer: ArrayLike) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(stacked, layer, keepdims=False).swapaxes(1, 2)


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
    heads, size = config.num_stored_heads, config.head_size
    shape = (config.num_hidden_layers, batch_size, heads, max_length, size)
    # Two arrays: one could not be donated twice.
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((), jnp.int32))


def check_cache(cache: Cache, config: BertConfig, batch_size: int, tokens: int) -> None:
    """Refuse a cache that is not the model's and the batch's, or has no room for more tokens.

    Where `cache.length` is traced nobody knows it; then only more tokens than all the room are
    found.

    Raises:
      ValueError: with both numbers.
    """
    layers, rows, heads, room, size = cache.key.shape
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

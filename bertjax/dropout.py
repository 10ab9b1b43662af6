"""Dropout whose random bits are a hash of key and position, computed where they are used.

`jax.random` bits are good enough for anything, and with them a training step on a CPU took about a
tenth longer. A dropout mask needs less: bits from a counter that pass the statistical tests of
tests/test_dropout.py. They fuse into the loop that applies them, come out the same on any mesh, and
are computed again in the backward pass, which takes no longer than keeping them and no memory.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, UInt32

_GOLDEN = 0x9E3779B9  # 2**32 divided by the golden ratio


def _mix(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Hash 32 bits one to one; constants of Wellons' `lowbias32` (hash-prospector, 2018)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def hash_bits(words: UInt32[Array, " words"], shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """Return bits of `shape`, a pure function of the key's words and each element's index.

    Every row (all axes but the last) hashes the key and its index to a 64-bit state, and every
    element of it pays one round more. Not for cryptography.
    """
    row = jnp.zeros((1,) * len(shape), jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape) - 1)):
        along = tuple(size if i == axis else 1 for i, size in enumerate(shape))
        index = jax.lax.broadcasted_iota(jnp.uint32, along, axis)
        row += index * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    low = row
    for word in words:
        low = _mix(low + word)
    high = _mix(low ^ (row + words[-1]) ^ jnp.uint32(_GOLDEN))
    x = low
    if shape:
        along = (1,) * (len(shape) - 1) + shape[-1:]
        x += jax.lax.broadcasted_iota(jnp.uint32, along, len(shape) - 1) * jnp.uint32(_GOLDEN)
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15) ^ high) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _drop(
    words: UInt32[Array, " words"], x: Float[Array, "*shape"], rate: float
) -> Float[Array, "*shape"]:
    keep = hash_bits(words, x.shape) >= jnp.uint32(round(rate * 2**32))
    return jnp.where(keep, x * jnp.asarray(1.0 / (1.0 - rate), x.dtype), jnp.zeros((), x.dtype))


def _drop_forward(words: jax.Array, x: jax.Array, rate: float) -> tuple[jax.Array, jax.Array]:
    return _drop(words, x, rate), words


def _drop_backward(rate: float, words: jax.Array, grad: jax.Array) -> tuple[None, jax.Array]:
    return None, _drop(words, grad, rate)


_drop.defvjp(_drop_forward, _drop_backward)


def dropout(key: jax.Array, x: Float[Array, "*shape"], rate: float) -> Float[Array, "*shape"]:
    """Zero each element with probability `rate` and scale the others by 1 / (1 - rate).

    Args:
      key: a `jax.random` key; every element's decision is independent of every other's.
      x: any float array.
      rate: in [0, 1), kept to 2**-32.
    """
    return _drop(jax.random.key_data(key), x, rate)


class Dropout(nn.Module):
    """`dropout` with the key of the module's "dropout" stream.

    Attributes:
      rate: share of elements set to zero, in [0, 1).
    """

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "*shape"], *, deterministic: bool) -> Float[Array, "*shape"]:
        if deterministic or self.rate == 0.0:
            return x
        return dropout(self.make_rng("dropout"), x, self.rate)

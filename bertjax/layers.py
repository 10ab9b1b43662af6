"""Dense and LayerNorm as BERT has them, written for speed."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from bertjax.config import BertConfig


def kernel_init(config: BertConfig) -> nn.initializers.Initializer:
    """Return the initializer of every kernel and embedding, heads included."""
    make = {
        "normal": nn.initializers.normal,
        "truncated_normal": nn.initializers.truncated_normal,
    }[config.initializer]
    return make(stddev=config.initializer_range)


class Dense(nn.Module):
    """Dense layer over one or more input and output axes.

    Rows are flattened: with batch and tokens as two axes the kernel's gradient would contract over
    both, for which XLA on a CPU copies the activations and multiplies at half speed.

    Attributes:
      config: the architecture.
      features: size of the output, or of each of its axes.
      dtype: compute type.
      input_axes: number of the input's last axes that the kernel contracts.
    """

    config: BertConfig
    features: int | tuple[int, ...]
    dtype: DTypeLike
    input_axes: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        outputs = (self.features,) if isinstance(self.features, int) else self.features
        rows, inputs = x.shape[: -self.input_axes], x.shape[-self.input_axes :]
        kernel = self.param("kernel", kernel_init(self.config), (*inputs, *outputs))
        bias = self.param("bias", nn.initializers.zeros, outputs)
        flat = x.reshape(-1, math.prod(inputs)).astype(self.dtype)
        matrix = kernel.astype(self.dtype).reshape(flat.shape[1], -1)
        y = flat @ matrix + bias.astype(self.dtype).reshape(-1)
        return y.reshape(*rows, *outputs)


class LayerNorm(nn.Module):
    """Layer normalisation (Ba et al., arXiv 1607.06450) with float32 statistics.

    Attributes:
      config: the architecture.
      dtype: type of the result.
    """

    config: BertConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        normed = normalize(x.astype(jnp.float32), self.config.layer_norm_eps)
        return (normed * scale + bias).astype(self.dtype)


def _normalize(x: jax.Array, eps: float) -> tuple[jax.Array, jax.Array]:
    centred = x - x.mean(axis=-1, keepdims=True)
    # E[(x - mean)^2]: the one-pass E[x^2] - mean^2 loses digits.
    inverse = jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + eps)
    return centred * inverse, inverse


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def normalize(x: Float[Array, "*rows D"], eps: float) -> Float[Array, "*rows D"]:
    """Subtract the mean and divide by the deviation of each row.

    The derivative is written out, so that the backward pass keeps the normalised rows alone.
    """
    return _normalize(x, eps)[0]


@normalize.defjvp
def _normalize_jvp(
    eps: float, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    normed, inverse = _normalize(primals[0], eps)
    (dx,) = tangents
    along = (normed * dx).mean(axis=-1, keepdims=True)
    return normed, inverse * (dx - dx.mean(axis=-1, keepdims=True) - normed * along)

"""Dense and LayerNorm as BERT has them, written for speed."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from bertjax.config import BertConfig

TRANSPOSED_KERNEL = "transposed_kernel"

# Rows up to which a CPU multiplies faster with the kernel on the left.
_FEW_ROWS = 16


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

    In place of `kernel` [*inputs, *outputs] the parameters may have `transposed_kernel`
    [*outputs, *inputs], see `bertjax.unstacked`.

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
        init = kernel_init(self.config)
        flat = x.reshape(-1, math.prod(inputs)).astype(self.dtype)
        if self.has_variable("params", TRANSPOSED_KERNEL):
            kernel = self.param(TRANSPOSED_KERNEL, init, (*outputs, *inputs)).astype(self.dtype)
            y = transposed_product(flat, kernel.reshape(-1, flat.shape[1]))
        else:
            kernel = self.param("kernel", init, (*inputs, *outputs)).astype(self.dtype)
            y = _product(flat, kernel.reshape(flat.shape[1], -1))
        bias = self.param("bias", nn.initializers.zeros, outputs).astype(self.dtype)
        return (y + bias.reshape(-1)).reshape(*rows, *outputs)


def _product(x: Float[Array, "N D"], kernel: Float[Array, "D O"]) -> Float[Array, "N O"]:
    return _wide_product(x, kernel) if needs_wide_result(x.dtype) else x @ kernel


@jax.custom_jvp
def _wide_product(x: Float[Array, "N D"], kernel: Float[Array, "D O"]) -> Float[Array, "N O"]:
    # Where it is differentiated the product is the plain one: in the backward pass of this one
    # float32 would meet bfloat16.
    return jnp.matmul(x, kernel, preferred_element_type=jnp.float32).astype(x.dtype)


@_wide_product.defjvp
def _wide_product_jvp(
    primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array]:
    return jax.jvp(jnp.matmul, primals, tangents)


def needs_wide_result(dtype: DTypeLike) -> bool:
    """Tell whether products of this type should be asked for as float32 and rounded after.

    XLA on a CPU multiplies bfloat16 with the processor's units for it only where the result is
    float32, and else converts all to float32.
    """
    return dtype == jnp.bfloat16 and jax.default_backend() == "cpu"


def transposed_product(
    x: Float[Array, "N D"], kernel: Float[Array, "O D"], dtype: DTypeLike | None = None
) -> Float[Array, "N O"]:
    """Multiply rows by a kernel that has a row for each output; `dtype` is the result's."""
    wanted, wide = jnp.dtype(dtype or x.dtype), needs_wide_result(x.dtype)
    product = partial(jnp.einsum, preferred_element_type=jnp.float32 if wide else wanted)
    if len(x) > _FEW_ROWS or jax.default_backend() != "cpu":
        return product("nd,od->no", x, kernel).astype(wanted)
    # The other way round XLA on a CPU would rearrange the kernel for each product, as it does for
    # many rows, or for one row transpose it; without the barrier it would turn the product back.
    # The product of a bfloat16 matrix and one vector takes it longer than that of the vector twice.
    rows = jnp.repeat(x, 2, axis=0) if wide and len(x) == 1 else x
    y = jax.lax.optimization_barrier(product("od,nd->on", kernel, rows)).T
    if wide:
        # Were this transposed within the next product, XLA could not multiply bfloat16 there.
        y = jax.lax.optimization_barrier(y)[: len(x)]
    return y.astype(wanted)


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
        return layer_norm(x, scale, bias, self.config.layer_norm_eps).astype(self.dtype)


def _normalize(x: jax.Array, eps: float) -> tuple[jax.Array, jax.Array]:
    x = x.astype(jnp.float32)
    centred = x - x.mean(axis=-1, keepdims=True)
    # E[(x - mean)^2]: the one-pass E[x^2] - mean^2 loses digits.
    inverse = jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + eps)
    return centred * inverse, inverse


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def layer_norm(
    x: Float[Array, "*rows D"], scale: Float[Array, " D"], bias: Float[Array, " D"], eps: float
) -> Float[Array, "*rows D"]:
    """Normalise each row to mean 0 and deviation 1, then scale and shift; float32.

    The derivative is written out, so that all the backward pass keeps are the normalised rows, in
    the type of `x`, and one number a row.
    """
    return _normalize(x, eps)[0] * scale + bias


@layer_norm.defjvp
def _layer_norm_jvp(
    eps: float, primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array]:
    x, scale, bias = primals
    dx, dscale, dbias = tangents
    normed, inverse = _normalize(x, eps)
    kept = normed.astype(x.dtype).astype(jnp.float32)
    dx = dx.astype(jnp.float32)
    along = (kept * dx).mean(axis=-1, keepdims=True)
    dnormed = inverse * (dx - dx.mean(axis=-1, keepdims=True) - kept * along)
    return normed * scale + bias, dnormed * scale + kept * dscale + dbias

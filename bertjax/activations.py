"""The activations that `hidden_act` names, as in Hugging Face's tables."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from bertjax.errors import InputError


def _gelu_and_slope(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    bounded = jnp.clip(y, -20.0, 20.0)  # nothing changes beyond, and infinity times 0 is not met
    size = jnp.abs(bounded)
    tail = 0.5 - 0.5 * jax.lax.erf(size * math.sqrt(0.5))  # 1 - Phi(|y|), which keeps its digits
    density = jnp.exp(-0.5 * bounded * bounded) * (1.0 / math.sqrt(2.0 * math.pi))
    slope = jnp.where(y > 0, 1.0 - tail, tail) + bounded * density
    return (jnp.maximum(y, 0.0) - size * tail).astype(x.dtype), slope.astype(x.dtype)


@jax.custom_jvp
def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU, x * Phi(x) (Hendrycks & Gimpel, arXiv 1606.08415).

    `jax.nn.gelu` goes through erfc, which takes 2 to 3 times as long on a CPU. Phi is computed in
    float32 at least; the backward pass keeps the slope alone.
    """
    return _gelu_and_slope(x)[0]


@gelu.defjvp
def _gelu_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    y, slope = _gelu_and_slope(primals[0])
    return y, tangents[0] * slope


gelu_tanh = partial(jax.nn.gelu, approximate=True)
"""GELU by tanh, the form of google-research/bert's `modeling.py`."""


def quick_gelu(x: jax.Array) -> jax.Array:
    """x * sigmoid(1.702 x), the sigmoid approximation of GELU."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu_10(x: jax.Array) -> jax.Array:
    """GELU clipped to [-10, 10], for quantised models (arXiv 2004.09602)."""
    return jnp.clip(gelu(x), -10.0, 10.0)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_python": gelu,
    "gelu_10": gelu_10,
    "gelu_new": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "gelu_accurate": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "gelu_python_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "relu6": jax.nn.relu6,
    "leaky_relu": jax.nn.leaky_relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "mish": jax.nn.mish,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "linear": lambda x: x,
}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """Return the function that `hidden_act` names; InputError lists the names there are."""
    if name not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise InputError(f"hidden_act {name!r} is not known: choose one of {known}")
    return ACTIVATIONS[name]

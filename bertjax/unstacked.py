"""Parameters with their layers one by one, for programs that read them many times.

Layers that are stacked are sliced before each product, and the slice is a copy: in a loop over
tokens that is as much memory to move as the product reads, on a CPU a tenth of the time of a batch
of short texts; and a training step stacks their gradients too. Taken apart before, each under its
number as in `layer/0`, and put together in the program, they are read where they are: XLA undoes
the second.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bertjax.layers import TRANSPOSED_KERNEL

_STACK, _KERNEL = "layer", "kernel"


def one_by_one(tree: Any) -> Any:
    """Return parameters, or a training state on them, with the layers of each stack apart.

    The stacks are consumed.
    """

    def split(stacks: Any) -> Any:
        layers = _split(stacks)
        jax.tree.map(lambda stack: stack.delete(), stacks)
        return layers

    return _at_layers(tree, lambda layers: split(layers) if _is_stacked(layers) else layers)


@jax.jit
def _split(stacks: Any) -> Any:
    (layers,) = {len(stack) for stack in jax.tree.leaves(stacks)}
    return {str(i): jax.tree.map(lambda stack, i=i: stack[i], stacks) for i in range(layers)}


def together(tree: Any) -> Any:
    """Undo `one_by_one`; layers that are stacked stay as they are."""
    return _at_layers(tree, lambda layers: layers if _is_stacked(layers) else _stack(layers))


@jax.jit
def _stack(layers: Any) -> Any:
    in_order = (layers[str(i)] for i in range(len(layers)))
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *in_order)


def apart(params: Any, dtype: DTypeLike | None = None) -> Any:
    """Return a copy of parameters with the layers apart, for programs that only read them.

    On a CPU the layers' kernels are transposed as well, to one row for each output: a product then
    reads a kernel from end to end. A tree without stacks, as one that this has returned or of a
    model of another make, stays as it is.

    Args:
      params: the parameters.
      dtype: compute type of the model, to which the layers' kernels are rounded once instead of in
        each program; None leaves them as they are.
    """
    found: list[bool] = []
    _at_layers(params, lambda layers: found.append(_is_stacked(layers)))
    return _apart(params, dtype and jnp.dtype(dtype)) if any(found) else params


@functools.partial(jax.jit, static_argnums=1)
def _apart(params: Any, dtype: jnp.dtype | None) -> Any:
    transposed = jax.default_backend() == "cpu"

    def arranged(kernel: jax.Array, outputs: int) -> jax.Array:
        kernel = kernel.astype(dtype or kernel.dtype)
        return _to_the_front(kernel, outputs) if transposed else kernel

    new = TRANSPOSED_KERNEL if transposed else _KERNEL
    params = _at_layers(params, lambda layers: _kernels_changed(layers, _KERNEL, new, arranged))
    return _at_layers(params, _split)


@jax.jit
def restored(params: Any) -> Any:
    """Return what `apart` was given, as far as it did not round."""

    def as_given(kernel: jax.Array, outputs: int) -> jax.Array:
        return _to_the_front(kernel, kernel.ndim - 1 - outputs)

    return _at_layers(
        together(params),
        lambda layers: _kernels_changed(layers, TRANSPOSED_KERNEL, _KERNEL, as_given),
    )


def _kernels_changed(
    stacks: Any, old: str, new: str, change: Callable[[jax.Array, int], jax.Array]
) -> Any:
    """Replace the kernels of dense layers by what a function makes of one and its output axes."""
    if not isinstance(stacks, dict):
        return stacks
    if old not in stacks:
        return {name: _kernels_changed(x, old, new, change) for name, x in stacks.items()}
    others = {name: entry for name, entry in stacks.items() if name != old}
    return others | {new: change(stacks[old], stacks["bias"].ndim - 1)}


def _to_the_front(kernel: jax.Array, last: int) -> jax.Array:
    """Move the last axes behind the first, which counts the layers."""
    return jnp.moveaxis(kernel, range(-last, 0), range(1, last + 1))


def _is_stacked(layers: Any) -> bool:
    return not (isinstance(layers, dict) and "0" in layers)


def _at_layers(tree: Any, change: Callable[[Any], Any]) -> Any:
    """Change what lies under each name `layer` of the dictionaries in a tree."""

    def changed(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        return {
            name: change(entry) if name == _STACK else changed(entry)
            for name, entry in node.items()
        }

    return jax.tree.map(changed, tree, is_leaf=lambda node: isinstance(node, dict))

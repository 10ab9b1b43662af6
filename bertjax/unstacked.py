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

from bertjax.layers import TRANSPOSED_KERNEL

_STACK = "layer"


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


def apart(params: Any) -> Any:
    """Return a copy of parameters with the layers apart, for programs that only read them.

    On a CPU the layers' kernels are transposed as well, to one row for each output: a product then
    reads a kernel from end to end. A tree without stacks, as one that this has returned or of a
    model of another make, stays as it is.
    """
    found: list[bool] = []
    _at_layers(params, lambda layers: found.append(_is_stacked(layers)))
    return _apart(params) if any(found) else params


@jax.jit
def _apart(params: Any) -> Any:
    if jax.default_backend() == "cpu":
        params = _at_layers(params, _transposed)
    return _at_layers(params, _split)


@jax.jit
def restored(params: Any) -> Any:
    """Return what `apart` was given."""
    return _at_layers(together(params), functools.partial(_transposed, back=True))


def _transposed(stacks: Any, *, back: bool = False) -> Any:
    """Transpose the kernels [L, *inputs, *outputs] of dense layers, or the transposed ones back."""
    if not isinstance(stacks, dict):
        return stacks
    names = ["kernel", TRANSPOSED_KERNEL]
    old, new = reversed(names) if back else names
    if old not in stacks:
        return {name: _transposed(entry, back=back) for name, entry in stacks.items()}
    outputs = stacks["bias"].ndim - 1
    ahead, behind = range(1, outputs + 1), range(-outputs, 0)
    source, target = (ahead, behind) if back else (behind, ahead)
    others = {name: entry for name, entry in stacks.items() if name != old}
    return others | {new: jnp.moveaxis(stacks[old], source, target)}


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

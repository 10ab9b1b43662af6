"""Parameters in the form that programs on them read fastest, for those that read them many times.

Layers that are stacked are sliced before each product, and the slice is a copy: in a loop over
tokens that is as much memory to move as the product reads, and on a CPU a tenth of the time of a
batch of short texts. Taken apart before and put together in the program, they are read where they
are: XLA undoes the second.

On a CPU their kernels are transposed as well, to one row for each output: a product then reads a
kernel from end to end.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from bertjax.layers import TRANSPOSED_KERNEL

_STACK = "layer"


@struct.dataclass
class _Layers:
    """One parameter of all layers, an array for each."""

    arrays: tuple[jax.Array, ...]


def apart(params: Any) -> Any:
    """Return parameters with their layers one by one in place of each stack, which takes a copy.

    They are for `together` alone. A tree without stacks, as one that this has returned or of a
    model of another make, stays as it is.
    """
    if any(map(_is_layers, jax.tree.leaves(params, is_leaf=_is_layers))):
        return params
    return _apart(params)


@jax.jit
def _apart(params: Any) -> Any:
    transpose = jax.default_backend() == "cpu"

    def split(stacks: Any) -> Any:
        stacks = _transposed(stacks) if transpose else stacks
        return jax.tree.map(lambda stack: _Layers(tuple(stack)), stacks)

    return _at_layers(params, split)


def together(params: Any) -> Any:
    """Return what models take, in a program on parameters that `apart` has returned.

    Parameters that were never taken apart stay as they are.
    """
    stack = lambda x: jnp.stack(x.arrays) if _is_layers(x) else x  # noqa: E731
    return _at_layers(params, lambda tree: jax.tree.map(stack, tree, is_leaf=_is_layers))


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


def _is_layers(x: Any) -> bool:
    return isinstance(x, _Layers)


def _at_layers(tree: Any, change: Callable[[Any], Any]) -> Any:
    if not isinstance(tree, dict):
        return tree
    return {
        name: change(entry) if name == _STACK else _at_layers(entry, change)
        for name, entry in tree.items()
    }

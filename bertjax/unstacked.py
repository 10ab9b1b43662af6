"""Parameters whose layers lie apart, for programs that read them again and again.

Layers that are stacked are sliced before each product, and the slice is a copy: in a loop over
tokens that is as much memory to move as the product reads, and on a CPU a tenth of the time of a
batch of short texts. Taken apart before and put together in the program, they are read where they
are: XLA undoes the second.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

_STACK = "layer"


def apart(params: Any) -> Any:
    """Return parameters with a tuple of layers in place of each stack, which takes a copy.

    A tree without stacks, as one that this has returned, or of a model of another make, stays as it
    is.
    """
    leaves = jax.tree.leaves(params, is_leaf=_is_layers)
    return params if any(map(_is_layers, leaves)) else _apart(params)


@jax.jit
def _apart(params: Any) -> Any:
    return _at_layers(params, lambda stacks: jax.tree.map(tuple, stacks))


def together(params: Any) -> Any:
    """Return what `apart` was given; parameters that were never taken apart stay as they are."""
    stack = lambda x: jnp.stack(x) if _is_layers(x) else x  # noqa: E731
    return _at_layers(params, lambda tree: jax.tree.map(stack, tree, is_leaf=_is_layers))


def _is_layers(x: Any) -> bool:
    return isinstance(x, tuple)


def _at_layers(tree: Any, change: Callable[[Any], Any]) -> Any:
    if not isinstance(tree, dict):
        return tree
    return {
        name: change(entry) if name == _STACK else _at_layers(entry, change)
        for name, entry in tree.items()
    }

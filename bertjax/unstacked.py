"""Parameters whose layers lie apart, for loops that read them again and again.

Layers that are stacked are sliced before each product, and the slice is a copy: in a loop over
tokens that is as much memory to move as the product reads. Taken apart before the loop and put
together in it, they are read where they are: XLA undoes the second.
"""

from typing import Any

import jax
import jax.numpy as jnp

_PATH = ("bert", "encoder", "layer")


@jax.jit
def apart(params: Any) -> Any:
    """Return a decoder's parameters with a tuple of layers in place of each stack.

    A tree without them, as of a model of another make, stays as it is.
    """
    return _at_layers(params, lambda stacks: jax.tree.map(tuple, stacks))


def together(params: Any) -> Any:
    """Return what `apart` was given."""
    is_layers = lambda x: isinstance(x, tuple)  # noqa: E731
    return _at_layers(params, lambda tree: jax.tree.map(jnp.stack, tree, is_leaf=is_layers))


def _at_layers(params: Any, change: Any, path: tuple[str, ...] = _PATH) -> Any:
    if not path:
        return change(params)
    first, *rest = path
    if first not in params:
        return params
    return params | {first: _at_layers(params[first], change, tuple(rest))}

"""Parameters whose layers lie apart, for programs that read them again and again.

Layers that are stacked are sliced before each product, and the slice is a copy: in a loop over
tokens that is as much memory to move as the product reads, and on a CPU a tenth of the time of a
batch of short texts. Taken apart before and put together in the program, they are read where they
are: XLA undoes the second.

So it does with kernels that are transposed, to one row for each output. A product of some tokens
then reads a kernel from end to end, on a CPU in up to a third less time; of one token it does so
anyway, and there XLA would transpose them back for each product.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

_STACK = "layer"


@struct.dataclass
class _Layers:
    """One parameter of all layers.

    Attributes:
      arrays: of each layer.
      kernel_shape: [*inputs, *outputs] of kernels that are transposed: arrays are then [outputs,
        inputs], these axes flattened. None: they are as in the stack.
    """

    arrays: tuple[jax.Array, ...]
    kernel_shape: tuple[int, ...] | None = struct.field(pytree_node=False, default=None)

    def stack(self) -> jax.Array:
        if self.kernel_shape is None:
            return jnp.stack(self.arrays)
        return jnp.stack([array.T.reshape(self.kernel_shape) for array in self.arrays])


def apart(params: Any, *, rows: int = 1) -> Any:
    """Return parameters with their layers one by one in place of each stack, which takes a copy.

    A tree without stacks, as one that this has returned for as many rows, or of a model of another
    make, stays as it is.

    Args:
      params: the parameters, stacked or taken apart for any number of rows.
      rows: tokens that a step reads at a time, see `GenerationConfig.rows`; for more than one,
        kernels are transposed on a CPU.
    """
    transposed = rows > 1 and jax.default_backend() == "cpu"
    held = [x for x in jax.tree.leaves(params, is_leaf=_is_layers) if _is_layers(x)]
    if held and transposed == any(layers.kernel_shape for layers in held):
        return params
    return _apart(params, transposed)


@functools.partial(jax.jit, static_argnames="transposed")
def _apart(params: Any, transposed: bool) -> Any:
    return _at_layers(together(params), functools.partial(_layers_of, transposed=transposed))


def _layers_of(stacks: Any, transposed: bool, bias: jax.Array | None = None) -> Any:
    """Take a tree of stacks apart; `bias` is that of a kernel."""
    if isinstance(stacks, dict):
        biases = {"kernel": stacks.get("bias")}
        return {
            name: _layers_of(entry, transposed, biases.get(name)) for name, entry in stacks.items()
        }
    if bias is None or not transposed:
        return _Layers(tuple(stacks))
    outputs = math.prod(bias.shape[1:])
    transpose = lambda kernel: kernel.reshape(-1, outputs).T  # noqa: E731
    return _Layers(tuple(map(transpose, stacks)), stacks.shape[1:])


def together(params: Any) -> Any:
    """Return what `apart` was given; parameters that were never taken apart stay as they are."""
    stack = lambda x: x.stack() if _is_layers(x) else x  # noqa: E731
    return _at_layers(params, lambda tree: jax.tree.map(stack, tree, is_leaf=_is_layers))


def _is_layers(x: Any) -> bool:
    return isinstance(x, _Layers)


def _at_layers(tree: Any, change: Callable[[Any], Any]) -> Any:
    if not isinstance(tree, dict):
        return tree
    return {
        name: change(entry) if name == _STACK else _at_layers(entry, change)
        for name, entry in tree.items()
    }

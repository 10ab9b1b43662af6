"""The name table: each bertjax parameter and the Hugging Face tensors it is made of.

bertjax's paths are Hugging Face's names with three differences, which are all this module knows:
layers are stacked along a leading axis, attention kernels have their heads as an axis of their own,
and a leaf is called `kernel`, `scale` or `embedding` where torch calls each of them `weight`
(a torch weight being the transpose of a kernel).
"""

import math
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from bertjax.config import BertConfig
from bertjax.pruning import head_axis
from bertjax.sharding import path_of

# Name of a leaf -> name of the torch tensor that it is made of.
LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
_STACKED = "encoder/layer/"

DECODER = "cls.predictions.decoder.weight"
"""Of its own only where it is not tied to the word embeddings."""
DECODER_BIAS = "cls.predictions.decoder.bias"
"""Where the decoder is not tied, transformers 5 applies this bias and leaves the head's alone."""
BIAS = "cls.predictions.bias"


class HfTensor:
    """One Hugging Face tensor and its place in a bertjax parameter.

    Attributes:
      name: its name in a checkpoint.
      layer: index into the parameter's stacked axis, or None.
      shape: its shape in the checkpoint, pruned heads included.
      pruned_shape: its shape in a checkpoint of transformers 4, which leaves those out.
    """

    def __init__(
        self,
        path: str,
        shape: tuple[int, ...],
        layer: int | None,
        config: BertConfig | None = None,
    ) -> None:
        parent, _, self._leaf = path.rpartition("/")
        name = f"{parent}/{LEAVES[self._leaf]}".replace("/", ".")
        self.layer = layer
        if layer is not None:
            name = name.replace("encoder.layer.", f"encoder.layer.{layer}.", 1)
            shape = shape[1:]
        self.name = name
        self._own_shape = shape
        self._inputs = input_axes(path)
        self._heads: _PrunedHeads | None = None
        axis = head_axis(path)
        if config is not None and config.pruned_heads and axis is not None and layer is not None:
            kept = config.kept_heads[layer]
            self._heads = _PrunedHeads(axis, shape, kept, config.num_attention_heads)
        self.shape = self._torch_shape(self._heads.full_shape if self._heads else shape)
        self.pruned_shape = self._torch_shape(self._heads.pruned_shape if self._heads else shape)

    def encode(self, parameter: np.ndarray) -> np.ndarray:
        """Return the checkpoint's tensor for the whole bertjax parameter; pruned heads are zero.

        It is a view of the parameter wherever no head is pruned.
        """
        part = parameter if self.layer is None else parameter[self.layer]
        if self._heads is not None:
            part = self._heads.restore(part)
        if self._leaf == "kernel":
            return part.reshape(self.shape[::-1]).T
        return part.reshape(self.shape)

    def decode(self, tensor: np.ndarray) -> np.ndarray:
        """Return bertjax's part for the checkpoint's tensor, which may have the pruned shape."""
        array = tensor.T if self._leaf == "kernel" else tensor
        if self._heads is not None:
            return self._heads.cut(array, full=tensor.shape == self.shape)
        return array.reshape(self._own_shape)

    def _torch_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if self._leaf == "kernel":
            return math.prod(shape[self._inputs :]), math.prod(shape[: self._inputs])
        return shape if self._leaf == "embedding" else (math.prod(shape),)


class _PrunedHeads:
    """The heads of one layer's parameter, between the full model and a pruned one."""

    def __init__(self, axis: int, shape: tuple[int, ...], kept: tuple[int, ...], full: int) -> None:
        self._shape = shape

        def with_heads(count: int) -> tuple[int, ...]:
            return (*shape[:axis], count, *shape[axis + 1 :])

        def at(heads: tuple[int, ...]) -> tuple[Any, ...]:
            return (..., list(heads), *[slice(None)] * (-1 - axis))

        self.full_shape, self.pruned_shape = with_heads(full), with_heads(len(kept))
        self._kept, self._filled = at(kept), at(tuple(range(len(kept))))

    def restore(self, part: np.ndarray) -> np.ndarray:
        """Return the full array: zeros at the pruned heads."""
        array = np.zeros(self.full_shape, part.dtype)
        array[self._kept] = part[self._filled]
        return array

    def cut(self, array: np.ndarray, full: bool) -> np.ndarray:
        """Return the stored array, with zeros in the room that the layer has left."""
        part = np.zeros(self._shape, array.dtype)
        if full:
            part[self._filled] = array.reshape(self.full_shape)[self._kept]
        else:
            part[self._filled] = array.reshape(self.pruned_shape)
        return part


def input_axes(path: str) -> int:
    """Return how many axes of the kernel at `path`, of one layer, are its input."""
    return 2 if re.search(r"attention/output/dense/(lora_A/)?kernel$", path) else 1


def hf_tensors(
    path: str, shape: tuple[int, ...], config: BertConfig | None = None
) -> list[HfTensor]:
    """List the Hugging Face tensors that make up the parameter at `path`, in stacking order.

    Args:
      path: the parameter's.
      shape: the parameter's.
      config: the model's; needed where heads are pruned.
    """
    layers = range(shape[0]) if _STACKED in path else (None,)
    return [HfTensor(path, shape, layer, config) for layer in layers]


def parameters(params: Any) -> Iterator[tuple[str, Any]]:
    """Yield (path, leaf) of a parameter tree."""
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(params):
        yield path_of(key_path), leaf

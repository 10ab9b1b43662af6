"""The name table: each bertjax parameter and the Hugging Face tensors it is made of.

bertjax's paths are Hugging Face's names with three differences, which are all this module knows:
layers are stacked along a leading axis, attention kernels have their heads as an axis of their own,
and a leaf is called `kernel`, `scale` or `embedding` where torch calls each of them `weight`
(a torch weight being the transpose of a kernel).
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from bertjax.sharding import path_of

_LEAF_NAMES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
_STACKED = "encoder/layer/"

# What the names begin with of all that stands on top of the encoder.
HEADS = ("pooler.", "cls.", "classifier.", "qa_outputs.")

# Tensors of a torch checkpoint that hold nothing of their own.
_REDUNDANT = re.compile(
    r"(^|\.)(embeddings\.position_ids|cls\.predictions\.decoder\.(weight|bias))$"
)

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
      shape: its shape in the checkpoint.
    """

    def __init__(self, path: str, shape: tuple[int, ...], layer: int | None) -> None:
        parent, _, leaf = path.rpartition("/")
        name = f"{parent}/{_LEAF_NAMES[leaf]}".replace("/", ".")
        self.layer = layer
        if layer is not None:
            name = name.replace("encoder.layer.", f"encoder.layer.{layer}.", 1)
            shape = shape[1:]
        self.name = name
        self.shape: tuple[int, ...]
        self._own_shape = shape
        self._transposed = leaf == "kernel"
        if leaf == "kernel":
            inputs = 2 if path.endswith("attention/output/dense/kernel") else 1
            self.shape = (int(np.prod(shape[inputs:])), int(np.prod(shape[:inputs])))
        elif leaf == "embedding":
            self.shape = shape
        else:
            self.shape = (int(np.prod(shape)),)

    def encode(self, parameter: np.ndarray) -> np.ndarray:
        """Return the checkpoint's tensor for the whole bertjax parameter."""
        part = parameter if self.layer is None else parameter[self.layer]
        if self._transposed:
            return np.ascontiguousarray(part.reshape(self.shape[::-1]).T)
        return np.ascontiguousarray(part.reshape(self.shape))

    def decode(self, tensor: np.ndarray) -> np.ndarray:
        """Return bertjax's part for the checkpoint's tensor."""
        return (tensor.T if self._transposed else tensor).reshape(self._own_shape)


def hf_tensors(path: str, shape: tuple[int, ...]) -> list[HfTensor]:
    """List the Hugging Face tensors that make up the parameter at `path`, in stacking order."""
    stacked = _STACKED in path
    return [HfTensor(path, shape, i) for i in (range(shape[0]) if stacked else (None,))]


def parameters(params: Any) -> Iterator[tuple[str, Any]]:
    """Yield (path, leaf) of a parameter tree."""
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(params):
        yield path_of(key_path), leaf


def canonical(name: str) -> str:
    """Strip the prefixes of torch wrappers and bring old LayerNorm names up to date."""
    name = re.sub(r"^(module\.|_orig_mod\.)+", "", name)
    return re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))


def to_model_prefix(names: Mapping[str, Any], headless: bool) -> dict[str, str]:
    """Map a checkpoint's canonical names to those of the model that is loaded.

    The encoder's tensors carry `bert.` in a model with a head and no prefix in a bare one.

    Args:
      names: canonical names in the checkpoint.
      headless: the model loaded is a bare `BertModel`.
    """
    prefixed = any(name.startswith("bert.") for name in names)
    if headless and prefixed:
        return {n: n.removeprefix("bert.") if n.startswith("bert.") else n for n in names}
    if not headless and not prefixed:
        return {n: f"bert.{n}" for n in names}
    return {n: n for n in names}


def is_redundant(name: str) -> bool:
    """Whether a checkpoint's tensor only repeats another one (tied decoder, position buffer)."""
    return _REDUNDANT.search(name) is not None

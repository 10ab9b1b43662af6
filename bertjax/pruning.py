"""Attention heads cut out of a model: where they are stored, and what is left of the others.

Layers are stacked, so all store as many heads as the fullest one; the room that is left in a layer
holds zeros, adds nothing and learns nothing.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from bertjax.config import BertConfig, config_of
from bertjax.layers import TRANSPOSED_KERNEL
from bertjax.module import Input
from bertjax.sharding import path_of

ModelT = TypeVar("ModelT", bound=Any)

# (pattern of the end of a parameter's path, its axis of heads), a LoRA's factors included.
_HEAD_AXES = (
    (re.compile(r"(^|/)attention/self/(query|key|value)/(kernel|bias|lora_B/kernel)$"), -2),
    (re.compile(r"(^|/)attention/output/dense/(kernel|lora_A/kernel)$"), -3),
    (re.compile(rf"(^|/)attention/self/(query|key|value)/{TRANSPOSED_KERNEL}$"), -3),
    (re.compile(rf"(^|/)attention/output/dense/{TRANSPOSED_KERNEL}$"), -2),
)


def prune_heads(
    model: ModelT, params: Mapping[str, Any], heads: Mapping[int, Sequence[int]]
) -> tuple[ModelT, dict[str, Any]]:
    """Cut attention heads out of a model (Michel et al., arXiv 1905.10650).

    The outputs are those of the full model with the head mask of `pruned_head_mask`. Heads keep
    their numbers: pruning again names them as in the full model, and one that is gone already is
    passed over. Each layer stores as many heads as the fullest one, so only pruning all layers
    alike saves all the memory and time that it can; the room that a layer has left stays zero in
    training. An optimizer's state does not fit any more and starts anew.

    Args:
      model: any module with a `BertConfig`.
      params: its parameters.
      heads: layer -> heads to cut, both counted from 0.

    Returns:
      The module with the new config, and its parameters.

    Raises:
      InputError: a layer or head that the model has not, or an `EncoderDecoderModel`.
    """
    before: Any = config_of(model)  # takes a mapping of heads, too
    asked = dataclasses.replace(before, pruned_heads=heads)
    after = dataclasses.replace(before, pruned_heads=before.pruned_heads + asked.pruned_heads)
    # Where the heads that stay are stored now.
    places = [
        [stored.index(head) for head in kept]
        for stored, kept in zip(before.kept_heads, after.kept_heads, strict=True)
    ]

    def cut(key_path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        axis = head_axis(path_of(key_path))
        return leaf if axis is None else take_heads(leaf, axis, places, after.num_stored_heads)

    return model.clone(config=after), jax.tree_util.tree_map_with_path(cut, params)


def pruned_head_mask(config: BertConfig) -> np.ndarray:
    """Return the `head_mask` that makes a full model compute what a pruned one of `config` does.

    Returns:
      float32 [L, H]: 0 where a head is pruned, else 1.
    """
    mask = np.ones((config.num_hidden_layers, config.num_attention_heads), np.float32)
    for pair in config.pruned_heads:
        mask[pair] = 0.0
    return mask


def head_axis(path: str) -> int | None:
    """Return which axis of the parameter at `path` counts heads, from the end; None has none."""
    for pattern, axis in _HEAD_AXES:
        if pattern.search(path):
            return axis
    return None


def take_heads(
    stacked: Shaped[Input, "L ..."], axis: int, heads: Sequence[Sequence[int]], room: int
) -> Shaped[Array, "L ..."]:
    """Pick heads of every layer, in order; a layer that picks fewer than `room` ends in zeros.

    Args:
      stacked: an array of all layers.
      axis: its axis of heads.
      heads: for each layer the indices to pick.
      room: size of the axis in the result.
    """
    index = np.zeros((len(heads), room), np.int32)
    for layer, picked in enumerate(heads):
        index[layer, : len(picked)] = picked
    filled = _per_layer(_filled(heads, room), stacked.ndim, axis)
    taken = jnp.take_along_axis(jnp.asarray(stacked), _per_layer(index, stacked.ndim, axis), axis)
    return jnp.where(filled, taken, 0)


def zero_surplus_heads(layers: Any, config: BertConfig) -> Any:
    """Set to zero what a pruned model's stacked parameters hold beyond the heads of each layer.

    With a head's queries, keys, values and output all zero it adds nothing and has no gradient.
    """
    filled = _filled(config.kept_heads, config.num_stored_heads)

    def zero(key_path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        axis = head_axis(path_of(key_path))
        return leaf if axis is None else jnp.where(_per_layer(filled, leaf.ndim, axis), leaf, 0)

    return jax.tree_util.tree_map_with_path(zero, layers)


def _filled(heads: Sequence[Sequence[int]], room: int) -> np.ndarray:
    """Return [L, room]: whether the place is one of a layer's heads."""
    return np.arange(room) < np.array([len(picked) for picked in heads])[:, None]


def _per_layer(table: np.ndarray, ndim: int, axis: int) -> np.ndarray:
    """Bring [L, heads] to `ndim` axes, the heads at `axis`."""
    shape = [1] * ndim
    shape[0], shape[axis] = table.shape
    return table.reshape(shape)

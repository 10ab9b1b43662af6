"""Changing the size of a model's vocabulary, parameters and config together."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from bertjax.config import config_of
from bertjax.errors import InputError
from bertjax.layers import kernel_init
from bertjax.sharding import path_of

ModelT = TypeVar("ModelT", bound=Any)

# (pattern of the end of a parameter's path, its axis of the vocabulary).
_VOCAB_AXES = (
    (re.compile(r"(^|/)embeddings/word_embeddings/embedding$"), 0),
    (re.compile(r"(^|/)cls/predictions/decoder/kernel$"), 1),
    (re.compile(r"(^|/)cls/predictions/bias$"), 0),
)


def resize_token_embeddings(
    model: ModelT,
    params: Mapping[str, Any],
    vocab_size: int | None = None,
    *,
    key: jax.Array | None = None,
    pad_to_multiple_of: int | None = None,
    mean_resizing: bool = True,
) -> tuple[ModelT, dict[str, Any]]:
    """Cut or append rows of the vocabulary: word embeddings, and the MLM head's bias and decoder.

    What stays is bitwise the same. New entries are those of transformers 5: rows near the mean of
    the old ones (see `mean_resizing`), the bias zero, but in an untied head the mean of the old.

    Args:
      model: any module with a `BertConfig`.
      params: its parameters.
      vocab_size: the new size; None keeps it, but for the next argument.
      key: PRNG key of the new rows; needed where there are any.
      pad_to_multiple_of: round the size up to a multiple, for speed or to divide over devices.
      mean_resizing: draw new rows from a normal distribution with the mean of the old rows and 1e-9
        times their covariance (Hewitt 2021, "Initializing new word embeddings for pretrained
        language models"): hardly any probability goes to the new words. False draws them as at
        the initialisation, with mean 0 and deviation `initializer_range`.

    Returns:
      The module with the new config, whose `pad_token_id` is None if that row was cut off, and its
      parameters.

    Raises:
      InputError: sizes below 1, no key, parameters that are not of this config, or an
        `EncoderDecoderModel`.
    """
    config = config_of(model)
    old = config.vocab_size
    size = old if vocab_size is None else vocab_size
    multiple = 1 if pad_to_multiple_of is None else pad_to_multiple_of
    if size < 1 or multiple < 1:
        raise InputError(f"vocab_size {size} and pad_to_multiple_of {multiple} must be at least 1")
    size = -(-size // multiple) * multiple
    if size > old and key is None:
        raise InputError("key: new rows are drawn at random, give a jax.random.key")
    _check_vocabulary(params, old)
    pad = config.pad_token_id
    config = dataclasses.replace(
        config, vocab_size=size, pad_token_id=None if pad is not None and pad >= size else pad
    )
    keys = None if key is None else jax.random.split(key)  # for embeddings and decoder

    def resize(path: str, leaf: jax.Array) -> jax.Array:
        axis = _vocab_axis(path)
        if axis is None or size == old:
            return leaf
        if size < old:
            return jax.lax.slice_in_dim(jnp.asarray(leaf), 0, size, axis=axis)
        new_shape = (*leaf.shape[:axis], size - old, *leaf.shape[axis + 1 :])
        assert keys is not None
        if leaf.ndim == 1:
            zero = config.tie_word_embeddings or not mean_resizing
            new = jnp.full(new_shape, 0.0 if zero else jnp.mean(leaf))
        elif mean_resizing:
            new = _near_the_mean(keys[axis], jnp.asarray(leaf), size - old, axis)
        else:
            new = kernel_init(config)(keys[axis], new_shape)
        return jnp.concatenate([leaf, new.astype(leaf.dtype)], axis)

    return model.clone(config=config), _map_with_path(resize, params)


def _vocab_axis(path: str) -> int | None:
    return next((axis for pattern, axis in _VOCAB_AXES if pattern.search(path)), None)


def _check_vocabulary(params: Any, size: int) -> None:
    found = False
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(params):
        path = path_of(key_path)
        axis = _vocab_axis(path)
        found |= axis is not None
        if axis is not None and leaf.shape[axis] != size:
            raise InputError(
                f"{path} has room for {leaf.shape[axis]} words, the model's config says {size}"
            )
    if not found:
        raise InputError("the parameters hold no embeddings/word_embeddings/embedding")


def _near_the_mean(key: jax.Array, table: jax.Array, count: int, axis: int) -> jax.Array:
    """Draw rows with the mean and 1e-9 times the covariance of the table's rows.

    Random sums of the centred rows have their covariance exactly, also where it has no inverse.
    """
    rows = jnp.moveaxis(table, axis, 0).astype(jnp.float32)
    mean = rows.mean(axis=0)
    weights = jax.random.normal(key, (count, len(rows))) * (1e-9 / len(rows)) ** 0.5
    return jnp.moveaxis(mean + weights @ (rows - mean), 0, axis)


def _map_with_path(change: Callable[[str, Any], Any], params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, leaf: change(path_of(path), leaf), params)

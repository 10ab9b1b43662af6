"""Filling a model's parameters from the tensors of an open checkpoint, straight into place."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from bertjax.config import BertConfig
from bertjax.errors import InputError
from bertjax.pretrained import match, names
from bertjax.pretrained.reader import Renamed, TensorReader
from bertjax.sharding import path_of

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Filling:
    """How a model is filled; the fields are arguments of `load_pretrained`.

    Attributes:
      source: what to call the checkpoint in messages.
      shardings: of the parameters; None puts them on the default device.
      param_dtype: their type.
      key: of those that the checkpoint lacks.
      ignore_mismatched_sizes: initialise parameters whose shape is another in the checkpoint.
    """

    source: str
    shardings: Any = None
    param_dtype: DTypeLike = jnp.float32
    key: jax.Array | None = None
    ignore_mismatched_sizes: bool = False

    def part(self, name: str) -> "Filling":
        """Return how one entry of the parameter tree is filled."""
        shardings = None if self.shardings is None else self.shardings[name]
        return dataclasses.replace(self, shardings=shardings)


@dataclasses.dataclass(frozen=True)
class Portion:
    """Parameters that one model has from one checkpoint: all of it, or a half of a pair.

    Attributes:
      model: the module, which initialises what the checkpoint lacks.
      params: the parameters as shapes, those of the module or some of them.
      config: its architecture.
      tensors: the checkpoint.
      how: where to and in which type.
      keep: picks the part of `params` that is wanted, and that `how.shardings` are of.
    """

    model: Any
    params: dict[str, Any]
    config: BertConfig
    tensors: TensorReader
    how: Filling
    keep: Callable[[Any], Any] = lambda tree: tree

    @property
    def wanted(self) -> dict[str, Any]:
        """The parameters to fill, as shapes."""
        return self.keep(self.params)

    def origin(self, name: str) -> str:
        """Return the name of a tensor of `tensors` in the checkpoint's own files."""
        return self.tensors.originals[name] if isinstance(self.tensors, Renamed) else name

    def match(self) -> match.Match:
        """Find the parameters in the checkpoint, and log what is left out or new.

        Raises:
          InputError: see `match.match`; or a tensor is of no type of weights.
        """
        found = match.match(
            self.params,
            self.config,
            self.tensors.shapes(),
            self.how.source,
            ignore_mismatched_sizes=self.how.ignore_mismatched_sizes,
        )
        for name in found.sources.values():
            self.tensors.check_type(name)
        return found

    def fill(self, progress: Callable[[int], object] = lambda _: None) -> dict[str, Any]:
        """Return the parameters.

        Args:
          progress: told the bytes of each parameter when it is there.

        Raises:
          InputError: see `match.match`; or the checkpoint is damaged.
        """
        found = self.match()
        if found.decoder is not None:
            _check_tie(self.tensors, found.sources, found.decoder, self.how.source)
        fresh = initialised(self.model, found.fresh, self.how.key)
        dtype = self.how.param_dtype

        def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
            if name in fresh:
                array = np.asarray(fresh[name], dtype)
            else:
                parts = names.hf_tensors(name, shape, self.config)
                array = _read(self.tensors, found.sources, parts, shape, dtype)
            progress(array.nbytes)
            return array

        return placed(self.wanted, self.how.shardings, read)


def whole(
    model: Any,
    tensors: TensorReader,
    how: Filling,
    keep: Callable[[Any], Any] = lambda tree: tree,
) -> Portion:
    """Return the portion of all parameters of a model, or of those that `keep` picks.

    Raises:
      InputError: its config asks for what there is not.
    """
    try:
        params = abstract_params(model)
    except InputError as error:
        raise InputError(f"{how.source}: {error}") from error
    return Portion(model, params, model.config, tensors, how, keep)


def abstract_params(model: Any) -> dict[str, Any]:
    """Return the model's parameter tree as shapes, without computing anything."""
    return jax.eval_shape(model.init, jax.random.key(0), model.init_ids)["params"]


def _check_tie(tensors: TensorReader, sources: dict[str, str], decoder: str, source: str) -> None:
    """Warn of a decoder that is not the word embeddings though the config says so."""
    embeddings = sources.get("bert.embeddings.word_embeddings.weight")
    if embeddings and not np.array_equal(tensors.read(decoder), tensors.read(embeddings)):
        _LOG.warning(
            "%s: left out %s: it differs from the word embeddings, but tie_word_embeddings is set; "
            "unset it in the config to use it",
            source,
            decoder,
        )


def _read(
    tensors: TensorReader,
    sources: dict[str, str],
    parts: list[names.HfTensor],
    shape: tuple[int, ...],
    dtype: DTypeLike,
) -> np.ndarray:
    """Return one parameter, filled layer by layer so that it is in memory once."""
    array = _aligned(shape, np.dtype(dtype))
    for tensor in parts:
        place = ... if tensor.layer is None else tensor.layer
        array[place] = tensor.decode(tensors.read(sources[tensor.name]))
    return array


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an empty array that a CPU device takes over instead of copying it."""
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def placed(
    wanted: Any, shardings: Any, read: Callable[[str, tuple[int, ...]], np.ndarray]
) -> dict[str, Any]:
    """Return the tree of parameters, each read and put into its sharding, one after the other."""
    leaves, tree = jax.tree.flatten_with_path(wanted)
    targets = [None] * len(leaves)
    if shardings is not None:
        targets = jax.tree.leaves(shardings)
    placed = {}
    # The largest first: what reading it takes beside it is gone before the rest is there.
    for i in sorted(range(len(leaves)), key=lambda i: leaves[i][1].size, reverse=True):
        path, leaf = leaves[i]
        placed[i] = _on_devices(read(path_of(path), leaf.shape), targets[i])
    return jax.tree.unflatten(tree, [placed[i] for i in range(len(leaves))])


def _on_devices(array: np.ndarray, sharding: Any) -> jax.Array:
    if sharding is None:
        return jax.device_put(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def initialised(model: Any, paths: set[str], key: jax.Array | None) -> dict[str, jax.Array]:
    """Return the initial values of some parameters; no others are computed."""
    if not paths:
        return {}

    @jax.jit
    def init(key: jax.Array) -> dict[str, jax.Array]:
        params = model.init(key, model.init_ids)["params"]
        return {path: leaf for path, leaf in names.parameters(params) if path in paths}

    return init(jax.random.key(0) if key is None else key)

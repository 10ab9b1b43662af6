"""Reading a model: its class, its config, and its parameters straight into place."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

import bertjax
from bertjax.config import BertConfig
from bertjax.errors import InputError
from bertjax.module import PretrainedModule
from bertjax.pretrained import formats, match, names
from bertjax.pretrained.reader import TensorReader
from bertjax.sharding import path_of

_LOG = logging.getLogger(__name__)
ModelT = TypeVar("ModelT", bound=Any)


def load_pretrained(
    model_class: type[ModelT],
    source: str | Path,
    *,
    config: BertConfig | None = None,
    shardings: Any = None,
    param_dtype: DTypeLike = jnp.float32,
    key: jax.Array | None = None,
    ignore_mismatched_sizes: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    **attributes: Any,
) -> tuple[ModelT, dict[str, Any]]:
    """Build a model and its parameters from a checkpoint of any known format.

    Reads safetensors, Flax msgpack and torch .bin (each single or sharded), TensorFlow 1 and Orbax
    checkpoints. A head that the checkpoint lacks is initialised and named in a log line.

    Args:
      model_class: `BertModel` or one of the classes with a head.
      source: a directory, a weight file with its config.json beside it, a run directory, or a name
        on the Hugging Face hub.
      config: in place of the checkpoint's own.
      shardings: tree of `jax.sharding.Sharding`s to load the parameters into; None puts them on the
        default device. No array is ever whole on a device that holds a part of it.
      param_dtype: type of the parameters.
      key: PRNG key of parameters that the checkpoint lacks; None takes `jax.random.key(0)`.
      ignore_mismatched_sizes: initialise parameters whose shape is another in the checkpoint.
      revision: branch, tag or commit on the hub.
      token: for private models of the hub.
      cache_dir: the hub's cache; None takes its own.
      local_files_only: take the hub's cache, not the network.
      **attributes: attributes of the module (`dtype`, `add_pooling_layer`).

    Returns:
      The module and its parameters.

    Raises:
      InputError: no such model, damaged files, or tensors that are missing, unexpected or of
        another shape, all of them listed.
    """
    hub_options = {
        "revision": revision,
        "token": token,
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
    }
    path = formats.locate(source, **hub_options)
    model = model_class(config or formats.find_config(path), **attributes)
    kind, file = formats.find_weights(path)
    try:
        wanted = abstract_params(model)
    except InputError as error:  # the config asks for what there is not
        raise InputError(f"{source}: {error}") from error
    with kind.module.open_tensors(file) as tensors:
        found = match.match(
            wanted,
            model.config,
            tensors.shapes(),
            str(source),
            ignore_mismatched_sizes=ignore_mismatched_sizes,
        )
        if found.decoder is not None:
            _check_tie(tensors, found.sources, found.decoder, str(source))
        fresh = _initialised(model, found.fresh, key)

        def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
            if name in fresh:
                return np.asarray(fresh[name], param_dtype)
            parts = names.hf_tensors(name, shape, model.config)
            return _read(tensors, found.sources, parts, shape, param_dtype)

        params = _placed(wanted, shardings, read)
    return model, params


def from_pretrained(source: str | Path, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Load a model with the class, and so the head, that its checkpoint is of.

    Args:
      source: as in `load_pretrained`.
      **options: as in `load_pretrained`.
    """
    hub_names = ("revision", "token", "cache_dir", "local_files_only")
    path = formats.locate(source, **{n: options[n] for n in hub_names if n in options})
    name, attributes = find_class(path, options.get("config") or formats.find_config(path))
    return load_pretrained(model_classes()[name], path, **attributes | options)


def find_class(path: Path, config: BertConfig) -> tuple[str, dict[str, Any]]:
    """Return the class name of the checkpoint at `path`, and the attributes that it needs.

    Raises:
      InputError: see `class_of`; or there are no weights.
    """
    kind, file = formats.find_weights(path)
    with kind.module.open_tensors(file) as tensors:
        return class_of(config, tensors.shapes())


def model_classes() -> dict[str, type[Any]]:
    """Return the public model classes by name."""
    public = {name: getattr(bertjax, name) for name in bertjax.__all__}
    return {
        name: value
        for name, value in public.items()
        if isinstance(value, type) and issubclass(value, PretrainedModule)
    }


def class_of(config: BertConfig, tensor_names: Iterable[str]) -> tuple[str, dict[str, Any]]:
    """Return the class name of a checkpoint, and the attributes that it needs.

    The config's `architectures` say; where they do not (google's files), the tensors do.

    Raises:
      InputError: a class that is not in bertjax.
    """
    own = {match.canonical(name).removeprefix("bert.") for name in tensor_names}

    def has(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in own)

    given = formats.architectures(config)
    if given:
        name = given[0].removeprefix("Flax")
        name = {"BertForCausalLM": "BertLMHeadModel"}.get(name, name)  # as Flax called it
        if name not in model_classes():
            raise InputError(
                f"the checkpoint is of a {given[0]}, which bertjax has no class for; load the part "
                "that you need with one of its classes, such as BertModel.from_pretrained"
            )
    elif has("cls.predictions."):
        alone = "BertLMHeadModel" if config.is_decoder else "BertForMaskedLM"
        name = "BertForPreTraining" if has("cls.seq_relationship.") else alone
    elif has("cls.seq_relationship."):
        name = "BertForNextSentencePrediction"
    elif has("qa_outputs."):
        name = "BertForQuestionAnswering"
    else:
        name = "BertForSequenceClassification" if has("classifier.") else "BertModel"
    lacks_pooler = name == "BertModel" and not has("pooler.")
    return name, {"add_pooling_layer": False} if lacks_pooler else {}


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


def _placed(
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


def _initialised(model: Any, paths: set[str], key: jax.Array | None) -> dict[str, jax.Array]:
    """Return the initial values of some parameters; no others are computed."""
    if not paths:
        return {}

    @jax.jit
    def init(key: jax.Array) -> dict[str, jax.Array]:
        params = model.init(key, model.init_ids)["params"]
        return {path: leaf for path, leaf in names.parameters(params) if path in paths}

    return init(jax.random.key(0) if key is None else key)

"""Reading a model: its class, its config, and its parameters straight into place."""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

import bertjax
from bertjax.config import BertConfig
from bertjax.encoder_decoder_config import AnyConfig, EncoderDecoderConfig
from bertjax.errors import InputError
from bertjax.module import PretrainedModule
from bertjax.pretrained import formats, match, pairs
from bertjax.pretrained.fill import Filling, Portion, whole
from bertjax.pretrained.progress import bar
from bertjax.pretrained.reader import TensorReader

ModelT = TypeVar("ModelT", bound=Any)


def load_pretrained(
    model_class: type[ModelT],
    source: str | Path,
    *,
    config: AnyConfig | None = None,
    shardings: Any = None,
    param_dtype: DTypeLike = jnp.float32,
    key: jax.Array | None = None,
    ignore_mismatched_sizes: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    progress: bool = False,
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
      progress: show a bar in a terminal.
      **attributes: attributes of the module (`dtype`, `add_pooling_layer`).

    Returns:
      The module and its parameters.

    Raises:
      InputError: no such model, damaged files, or tensors that are missing, unexpected or of
        another shape, all of them listed.
    """
    hub_options: dict[str, Any] = {
        "revision": revision,
        "token": token,
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
    }
    path = formats.locate(source, **hub_options)
    config = config or formats.find_config(path)
    how = Filling(str(source), shardings, param_dtype, key, ignore_mismatched_sizes)
    with opened(model_class, path, config, how, **attributes) as opening:
        numbers = sum(leaf.size for leaf in jax.tree.leaves(opening.wanted))
        size = numbers * jnp.dtype(param_dtype).itemsize
        with bar("reading", size, shown=progress) as advance:
            filled = {name: part.fill(advance) for name, part in opening.portions.items()}
    return opening.model, joined(filled)


@dataclasses.dataclass(frozen=True)
class Opening:
    """A checkpoint whose weights are open, and what they are for.

    Attributes:
      model: the module.
      tensors: the checkpoint's.
      portions: what fills the entries of the parameter tree, by their names; "" the tree itself.
    """

    model: Any
    tensors: TensorReader
    portions: dict[str, Portion]

    @property
    def wanted(self) -> dict[str, Any]:
        """The parameter tree, as shapes."""
        return joined({name: portion.wanted for name, portion in self.portions.items()})


def joined(entries: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return a parameter tree out of its entries by name; "" is part of the tree itself."""
    return {name: tree for name, tree in entries.items() if name} | entries.get("", {})


@contextlib.contextmanager
def opened(
    model_class: type[Any], path: Path, config: AnyConfig, how: Filling, **attributes: Any
) -> Iterator[Opening]:
    """Open a checkpoint's weights for a model.

    Args:
      model_class: as in `load_pretrained`.
      path: what `formats.locate` returned.
      config: the architecture.
      how: what to call the checkpoint, and how it is read.
      **attributes: attributes of the module.

    Raises:
      InputError: as `load_pretrained`.
    """
    _check_kind(model_class, config, how.source)
    model = model_class(config, **attributes)
    kind, file = formats.find_weights(path)
    with kind.module.open_tensors(file) as tensors:
        if isinstance(config, EncoderDecoderConfig):
            portions = pairs.portions_of_pair(model, tensors, how)
        else:
            portions = {"": whole(model, tensors, how)}
        yield Opening(model, tensors, portions)


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


def find_class(path: Path, config: AnyConfig) -> tuple[str, dict[str, Any]]:
    """Return the class name of the checkpoint at `path`, and the attributes that it needs.

    Raises:
      InputError: see `class_of`; or there are no weights.
    """
    kind, file = formats.find_weights(path)
    with kind.module.open_tensors(file) as tensors:
        return class_of(config, tensors.shapes())


def _check_kind(model_class: Any, config: AnyConfig, source: str | Path) -> None:
    if isinstance(config, getattr(model_class, "config_class", BertConfig)):
        return
    if isinstance(config, EncoderDecoderConfig):
        raise InputError(f"{source}: is an encoder-decoder; load it with EncoderDecoderModel")
    raise InputError(
        f"{source}: is one BERT; EncoderDecoderModel.from_encoder_decoder_pretrained makes an "
        "encoder and a decoder of it"
    )


def model_classes() -> dict[str, type[Any]]:
    """Return the public model classes by name."""
    public = {name: getattr(bertjax, name) for name in bertjax.__all__}
    return {
        name: value
        for name, value in public.items()
        if isinstance(value, type) and issubclass(value, PretrainedModule)
    }


def class_of(config: AnyConfig, tensor_names: Iterable[str]) -> tuple[str, dict[str, Any]]:
    """Return the class name of a checkpoint, and the attributes that it needs.

    The config's `architectures` say; where they do not (google's files), the tensors do.

    Raises:
      InputError: a class that is not in bertjax.
    """
    own = {match.canonical(name).removeprefix("bert.") for name in tensor_names}

    def has(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in own)

    if isinstance(config, EncoderDecoderConfig):
        return "EncoderDecoderModel", {}
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

"""Directories of the sentence-transformers library: how a sentence's vector comes about."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bertjax.errors import InputError
from bertjax.pretrained import formats

MODULES = "modules.json"

# Names of poolings, in the order in which several are put side by side, and the keys that older
# files have for them.
POOLINGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
}
_OTHER_POOLINGS = ("pooling_mode_weightedmean_tokens", "pooling_mode_lasttoken")

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "Tanh": jnp.tanh,
    "Identity": lambda x: x,
    "ReLU": jax.nn.relu,
    "GELU": lambda x: jax.nn.gelu(x, approximate=False),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Dense:
    """A dense layer over vectors.

    Attributes:
      kernel: [from, to].
      bias: [to].
      activation: a name of `ACTIVATIONS`.
    """

    kernel: np.ndarray
    bias: np.ndarray
    activation: str


@dataclasses.dataclass(frozen=True, eq=False)
class SentenceSettings:
    """How the vector of a sentence is made of its tokens' vectors.

    Attributes:
      transformer: directory of the encoder.
      pooling: names of `POOLINGS`.
      dense: layers over the pooled vector.
      normalize: whether vectors get length 1.
      max_length: tokens of a sentence that count, or None.
      lowercase: whether texts are lower-cased before the tokenizer sees them.
      prompt: what stands before every sentence.
    """

    transformer: Path
    pooling: tuple[str, ...] = ("mean",)
    dense: tuple[Dense, ...] = ()
    normalize: bool = False
    max_length: int | None = None
    lowercase: bool = False
    prompt: str = ""


def read_settings(path: Path) -> SentenceSettings:
    """Read what a model's directory says; a plain BERT's says nothing: the mean, as it is.

    Raises:
      InputError: damaged files, or a module that this library does not have.
    """
    if not (path / MODULES).is_file():
        return SentenceSettings(path)
    settings = SentenceSettings(path)
    for module in _json(path / MODULES, list):
        kind, place = str(module.get("type")).rsplit(".", 1)[-1], path / str(module.get("path"))
        if settings.normalize and kind != "Dropout":
            raise InputError(f"{path / MODULES}: {kind} after Normalize is not supported")
        if kind == "Transformer":
            settings = _with_transformer(settings, place)
        elif kind == "Pooling":
            settings = dataclasses.replace(settings, pooling=_pooling(place / "config.json"))
        elif kind == "Dense":
            settings = dataclasses.replace(settings, dense=(*settings.dense, _dense(place)))
        elif kind == "Normalize":
            settings = dataclasses.replace(settings, normalize=True)
        elif kind != "Dropout":
            raise InputError(
                f"{path / MODULES}: the module {kind} is not supported (only Transformer, "
                "Pooling, Dense, Dropout and Normalize are)"
            )
    return dataclasses.replace(settings, prompt=_prompt(path / "config_sentence_transformers.json"))


def _prompt(file: Path) -> str:
    config = _json(file, dict)
    name = config.get("default_prompt_name")
    if name is None:
        return ""
    if name not in (config.get("prompts") or {}):
        raise InputError(f"{file}: has no prompt {name!r}, which is its default")
    return str(config["prompts"][name])


def _with_transformer(settings: SentenceSettings, place: Path) -> SentenceSettings:
    found = _json(place / "sentence_bert_config.json", dict)
    return dataclasses.replace(
        settings,
        transformer=place,
        max_length=found.get("max_seq_length"),
        lowercase=bool(found.get("do_lower_case")),
    )


def _pooling(file: Path) -> tuple[str, ...]:
    config = _json(file, dict)
    named = config.get("pooling_mode")
    if named is None:
        named = [name for name, key in POOLINGS.items() if config.get(key)]
        named += [key for key in _OTHER_POOLINGS if config.get(key)]
    names = (named,) if isinstance(named, str) else tuple(named or ["mean"])
    unknown = [name for name in names if name not in POOLINGS]
    if unknown or not config.get("include_prompt", True):
        what = unknown[0] if unknown else "include_prompt: false"
        raise InputError(f"{file}: {what} is not supported (only {', '.join(POOLINGS)} are)")
    return names


def _dense(place: Path) -> Dense:
    config = _json(place / "config.json", dict)
    activation = str(config.get("activation_function", "Tanh")).rsplit(".", 1)[-1]
    if activation not in ACTIVATIONS or config.get("use_residual"):
        what = "use_residual" if activation in ACTIVATIONS else activation
        raise InputError(f"{place / 'config.json'}: {what} is not supported")
    kind, file = formats.find_weights(place)
    with kind.module.open_tensors(file) as tensors:
        if not {"linear.weight"} <= tensors.shapes().keys():
            raise InputError(f"{file}: holds no linear.weight")
        kernel = np.asarray(tensors.read("linear.weight"), np.float32).T
        has_bias = "linear.bias" in tensors.shapes()
        bias = np.asarray(tensors.read("linear.bias"), np.float32) if has_bias else 0.0
    return Dense(kernel, np.broadcast_to(np.float32(bias), kernel.shape[1]), activation)


def _json(file: Path, kind: type) -> Any:
    """Return what a JSON file holds, of the given kind; nothing where there is no such file."""
    if not file.is_file():
        return kind()
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file}: is not JSON ({error})") from error
    if not isinstance(value, kind):
        raise InputError(f"{file}: must hold a JSON {'object' if kind is dict else 'list'}")
    return value

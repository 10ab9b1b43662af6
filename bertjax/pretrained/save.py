"""Writing a model directory that others load."""

import dataclasses
import json
import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from bertjax.config import BertConfig
from bertjax.encoder_decoder import EncoderDecoderModel
from bertjax.encoder_decoder_config import AnyConfig
from bertjax.errors import InputError
from bertjax.pretrained import formats, names
from bertjax.pretrained.model_card import model_card
from bertjax.pretrained.progress import watching
from bertjax.run_config import WriteFormat

_LOG = logging.getLogger(__name__)

CARD = "README.md"


def save_pretrained(
    directory: str | Path,
    model: Any,
    params: Mapping[str, Any],
    tokenizer: Any = None,
    *,
    to: WriteFormat = "hf",
    dtype: DTypeLike = jnp.float32,
    max_shard_size: str | int = "5GB",
    facts: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> None:
    """Write a model directory: config.json, weights, tokenizer files and a model card.

    With the default format it is one that transformers' Auto classes load. Everything is written
    beside and moved in when whole; other files of an existing directory stay.

    Args:
      directory: created where needed; files of the same names are replaced.
      model: the module.
      params: its parameters.
      tokenizer: a `BertTokenizer`, or anything with `save_pretrained(directory)`.
      to: hf (safetensors), flax (msgpack of transformers 4), tf1 (TensorFlow, google's names) or
        orbax (bertjax's own parameter tree).
      dtype: type of the weights in the file.
      max_shard_size: largest weight file, in bytes or such as "500MB"; larger models get several.
      facts: what the model card says of the model's making, by name; without them, a card that is
        there stays.
      progress: show a bar in a terminal.

    Raises:
      InputError: the directory cannot be written.
    """
    directory = Path(directory)
    check_format(to, model, params)
    _check_ids(directory, model.config, tokenizer)
    kind = formats.FORMATS[to]
    config = dataclasses.replace(model.config, other=_other(model, dtype))
    shard_bytes = formats.parse_size(max_shard_size)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as tmp:
            beside = Path(tmp) / "model"
            beside.mkdir()
            config.to_json(beside / "config.json")
            if to == "tf1":
                config.to_json(beside / "bert_config.json")
            if tokenizer is not None:
                tokenizer.save_pretrained(beside)
            if facts is not None or not (directory / CARD).exists():
                text = model_card(model, params, facts or {})
                (beside / CARD).write_text(text, encoding="utf-8")
            numbers = sum(leaf.size for leaf in jax.tree.leaves(params))
            with watching(beside, numbers * jnp.dtype(dtype).itemsize, shown=progress):
                if to == "orbax":
                    kind.module.write(
                        beside, jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
                    )
                else:
                    tensors = _tensors_of(model, params, dtype)
                    kind.module.write(beside, tensors, shard_bytes)
            for path in beside.rglob("*"):
                if path.is_file():  # the safetensors library leaves its files to their owner alone
                    path.chmod(0o644)
            _move_in(beside, directory, kind)
    except OSError as error:
        raise InputError(f"{directory}: cannot be written ({error.strerror or error})") from error


def check_format(to: str, model: Any, params: Mapping[str, Any]) -> None:
    """Check that a model can be written in a format.

    Args:
      to: the format.
      model: the module.
      params: its parameters, or anything with their shapes.

    Raises:
      InputError: no such format, or it has no place for some of the model.
    """
    if to not in formats.WRITERS:
        raise InputError(f"cannot write {to!r}: choose one of {', '.join(formats.WRITERS)}")
    if isinstance(model, EncoderDecoderModel):
        if to not in ("hf", "orbax"):
            raise InputError(f"an encoder-decoder is written as hf or orbax, not as {to}")
    elif to == "tf1":
        formats.FORMATS[to].module.check_names(
            tensor.name
            for path, leaf in names.parameters(params)
            for tensor in names.hf_tensors(path, leaf.shape, model.config)
        )


def _check_ids(directory: Path, config: AnyConfig, tokenizer: Any) -> None:
    """Warn of a tokenizer that gives ids which the model has no word embeddings for."""
    pieces: dict[str, int] = getattr(getattr(tokenizer, "backend", tokenizer), "get_vocab", dict)()
    halves = (config,) if isinstance(config, BertConfig) else (config.encoder, config.decoder)
    rows = min(half.vocab_size for half in halves)
    last = max(pieces.values(), default=0)
    if last >= rows:
        _LOG.warning(
            "%s: the tokenizer has ids up to %d, the model word embeddings for those below %d; "
            "enlarge it with bertjax.resizing.resize_token_embeddings",
            directory,
            last,
            rows,
        )


def _other(model: Any, dtype: DTypeLike) -> tuple[tuple[str, str], ...]:
    """Return the further keys of config.json, with the class and the type of the weights."""
    other = {k: v for k, v in model.config.other if k != "torch_dtype"}
    other["architectures"] = json.dumps([type(model).__name__])
    other["dtype"] = json.dumps(jnp.dtype(dtype).name)
    return tuple(sorted(other.items()))


def _tensors_of(model: Any, params: Mapping[str, Any], dtype: DTypeLike) -> dict[str, np.ndarray]:
    """Return a model's tensors; of a pair, each half's under its prefix, tied ones twice."""
    if not isinstance(model, EncoderDecoderModel):
        return _tensors(model.config, params, dtype)
    config = model.config
    encoder = _tensors(config.encoder, params["encoder"], dtype)
    decoder = _tensors(config.decoder, model.decoder_params(params), dtype)
    rest = {name: tree for name, tree in params.items() if name not in ("encoder", "decoder")}
    return (
        {f"encoder.{name}": tensor for name, tensor in encoder.items()}
        | {f"decoder.{name}": tensor for name, tensor in decoder.items()}
        | _tensors(config.decoder, rest, dtype)
    )


def _tensors(
    config: BertConfig, params: Mapping[str, Any], dtype: DTypeLike
) -> dict[str, np.ndarray]:
    """Return the tensors of Hugging Face's torch layout."""
    tensors = {
        tensor.name: np.ascontiguousarray(tensor.encode(array))
        for path, leaf in names.parameters(params)
        for array in (np.asarray(leaf, jnp.dtype(dtype)),)
        for tensor in names.hf_tensors(path, array.shape, config)
    }
    if names.DECODER in tensors:
        tensors[names.DECODER_BIAS] = tensors[names.BIAS]
    return tensors


def _move_in(beside: Path, directory: Path, kind: formats.Format) -> None:
    """Put the finished files in place; weights of before, in the same format, go."""
    if not directory.exists():
        beside.rename(directory)
        return
    if not directory.is_dir():
        raise NotADirectoryError(0, "is not a directory")
    new = {path.name for path in beside.iterdir()}
    for name in sorted(new):
        if (beside / name).is_dir() and (directory / name).exists():
            shutil.rmtree(directory / name)
        (beside / name).replace(directory / name)
    own_names = [pattern for pattern in kind.files if "*" not in pattern]
    for old in (path for pattern in (*own_names, *kind.parts) for path in directory.glob(pattern)):
        if old.parent == directory and old.name not in new:
            old.unlink()

"""Encoder-decoders: out of one checkpoint of both, or made of one or two BERTs.

In transformers' files the encoder's names begin with `encoder.`, the decoder's with `decoder.`. Of
tied ones, transformers 4 left out either copy of what both share; bertjax writes both.
"""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from bertjax import tying
from bertjax.encoder_decoder import EncoderDecoderModel
from bertjax.encoder_decoder_config import EncoderDecoderConfig
from bertjax.model import BertModel
from bertjax.pretrained import formats, names
from bertjax.pretrained.fill import Filling, Portion, abstract_params, initialised, placed, whole
from bertjax.pretrained.match import canonical
from bertjax.pretrained.reader import Renamed, TensorReader

_LOG = logging.getLogger(__name__)

ENCODER, DECODER, PROJECTION = "encoder", "decoder", "enc_to_dec_proj"


def portions_of_pair(
    model: EncoderDecoderModel, tensors: TensorReader, how: Filling
) -> dict[str, Portion]:
    """Return what fills an encoder-decoder from a checkpoint of both halves.

    Returns:
      A portion for each half by its name, and by "" one of what else there is.

    Raises:
      InputError: the config asks for what there is not.
    """
    config = model.config
    encoder: dict[str, str] = {}
    decoder: dict[str, str] = {}
    rest: dict[str, str] = {}
    for original in tensors.shapes():
        half, _, name = canonical(original).partition(".")
        if half in (ENCODER, DECODER):
            (encoder if half == ENCODER else decoder)[name] = original
        else:
            rest[canonical(original)] = original
    if config.tie_encoder_decoder:
        _share(tensors, encoder, decoder, how.source)
    of_encoder = BertModel(config.encoder, model.dtype)
    beside = {name: tree for name, tree in abstract_params(model).items() if name == PROJECTION}
    return {
        ENCODER: whole(of_encoder, Renamed(tensors, encoder), _named(how, ENCODER)),
        DECODER: _decoder(model, Renamed(tensors, decoder), _named(how, DECODER)),
        "": Portion(model, beside, config.decoder, Renamed(tensors, rest), how),
    }


def load_pair(
    encoder: str | Path,
    decoder: str | Path | None = None,
    *,
    tie: bool = False,
    decoder_start_token_id: int | None = None,
    pad_token_id: int | None = None,
    eos_token_id: int | None = None,
    config: EncoderDecoderConfig | None = None,
    shardings: Any = None,
    param_dtype: DTypeLike = jnp.float32,
    key: jax.Array | None = None,
    dtype: DTypeLike = jnp.float32,
    **hub_options: Any,
) -> tuple[EncoderDecoderModel, dict[str, Any]]:
    """Make an encoder-decoder of one checkpoint or two; log lines name what is new.

    New are the decoder's cross-attention, its head where the checkpoint has none, and the
    projection between two widths.

    Args:
      encoder: directory, weight file, run directory, or name on the hub, as in `load_pretrained`.
      decoder: likewise; None takes the encoder's.
      tie: both share embeddings and layers, which are the encoder's.
      decoder_start_token_id: see `EncoderDecoderConfig`, as for the next two.
      pad_token_id: likewise.
      eos_token_id: likewise.
      config: in place of the checkpoints' own and of all before.
      shardings: as in `load_pretrained`.
      param_dtype: type of the parameters.
      key: PRNG key of what is new; None takes `jax.random.key(0)`.
      dtype: compute type.
      **hub_options: `revision`, `token`, `cache_dir` and `local_files_only`.

    Returns:
      The module and its parameters.

    Raises:
      InputError: what `load_pretrained` raises; or two that do not fit.
    """
    paths = [formats.locate(source, **hub_options) for source in (encoder, decoder or encoder)]
    if config is None:
        config = EncoderDecoderConfig.from_encoder_decoder_configs(
            *map(formats.find_bert_config, paths),
            tie_encoder_decoder=tie,
            decoder_start_token_id=decoder_start_token_id,
            pad_token_id=pad_token_id,
            eos_token_id=eos_token_id,
        )
    model = EncoderDecoderModel(config, dtype=dtype)
    how = Filling(str(encoder), shardings, param_dtype, key)
    params = {}
    kind, file = formats.find_weights(paths[0])
    with kind.module.open_tensors(file) as tensors:
        params[ENCODER] = whole(BertModel(config.encoder), tensors, _named(how, ENCODER)).fill()
    kind, file = formats.find_weights(paths[1])
    how = Filling(str(decoder or encoder), shardings, param_dtype, key)
    with kind.module.open_tensors(file) as tensors:
        params[DECODER] = _decoder(model, tensors, _named(how, DECODER)).fill()
    if config.projects:
        params[PROJECTION] = _new_projection(model, how)
    return model, params


def _named(how: Filling, half: str) -> Filling:
    """Return how a half is filled; messages say which it is."""
    return dataclasses.replace(how.part(half), source=f"{how.source} ({half})")


def _decoder(model: EncoderDecoderModel, tensors: TensorReader, how: Filling) -> Portion:
    if model.config.tie_encoder_decoder:
        return whole(model.decoder_alone(), tensors, how, keep=tying.own)
    return whole(model.decoder_alone(), tensors, how)


def _share(
    tensors: TensorReader, encoder: dict[str, str], decoder: dict[str, str], source: str
) -> None:
    """Give either half what only the other one has; warn where both have it and differ."""
    shared = {name for name in encoder if not name.startswith("pooler.")}
    shared |= {
        name.removeprefix("bert.")
        for name in decoder
        if name.startswith("bert.") and f".{tying.CROSS}." not in name
    }
    differing = [
        decoder[f"bert.{name}"]
        for name in sorted(shared)
        if name in encoder
        and f"bert.{name}" in decoder
        and not np.array_equal(tensors.read(encoder[name]), tensors.read(decoder[f"bert.{name}"]))
    ]
    if differing:
        _LOG.warning(
            "%s: left out %d tensors of the decoder that differ from the encoder's, though "
            "tie_encoder_decoder is set: %s; unset it in the config to use them",
            source,
            len(differing),
            ", ".join(differing),
        )
    for name in shared:
        original = encoder.setdefault(name, decoder.get(f"bert.{name}", ""))
        decoder[f"bert.{name}"] = original


def _new_projection(model: EncoderDecoderModel, how: Filling) -> dict[str, Any]:
    wanted = {PROJECTION: abstract_params(model)[PROJECTION]}
    fresh = initialised(model, {path for path, _ in names.parameters(wanted)}, how.key)
    _LOG.warning("newly initialised, between the two widths: %s", ", ".join(sorted(fresh)))
    part = how.part(PROJECTION).shardings

    def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
        return np.asarray(fresh[name], how.param_dtype)

    return placed(wanted, None if part is None else {PROJECTION: part}, read)[PROJECTION]

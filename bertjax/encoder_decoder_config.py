"""`EncoderDecoderConfig`: the architectures of a pair, in transformers' config.json layout."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bertjax.config import BertConfig, read_json
from bertjax.errors import InputError

MODEL_TYPE = "encoder-decoder"

# What an encoder and a decoder must have in common to share their parameters.
_SHARED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
    "hidden_act",
    "layer_norm_eps",
    "position_embedding_type",
    "pruned_heads",
)


@dataclasses.dataclass(frozen=True)
class EncoderDecoderConfig:
    """What an encoder-decoder is: two `BertConfig`s, and how they work together.

    `from_encoder_decoder_configs` turns any two BERTs into a pair. Hashable, as `BertConfig` is.

    Raises:
      InputError: an encoder that is a decoder, a decoder that is none or lacks cross-attention, or
        two that do not fit.

    Example:
      >>> bert = BertConfig.preset("tiny", vocab_size=1000)
      >>> config = EncoderDecoderConfig.from_encoder_decoder_configs(bert, bert)
      >>> config.encoder.is_decoder, config.decoder.is_decoder, config.projects
      (False, True, False)
    """

    encoder: BertConfig
    """The encoder's architecture."""
    decoder: BertConfig
    """The decoder's, with `is_decoder` and `add_cross_attention`."""
    decoder_start_token_id: int | None = None
    """What every target begins with; None takes the decoder's, or its bos_token_id."""
    pad_token_id: int | None = None
    """Padding of targets; None takes the decoder's."""
    eos_token_id: int | None = None
    """Last token of a target; None takes the decoder's."""
    tie_encoder_decoder: bool = False
    """The decoder's embeddings and layers are the encoder's: its own parameters are those of the
    cross-attention and of the head alone. transformers 5 knows no such tie and reads copies."""
    other: tuple[tuple[str, str], ...] = ()
    """Further keys of a config.json, as in `BertConfig`."""

    def __post_init__(self) -> None:
        decoder = self.decoder
        if self.encoder.is_decoder or self.encoder.add_cross_attention:
            raise InputError(
                "the encoder's is_decoder or add_cross_attention is set: unset them, or take "
                "EncoderDecoderConfig.from_encoder_decoder_configs"
            )
        if not (decoder.is_decoder and decoder.add_cross_attention):
            raise InputError(
                "the decoder's is_decoder and add_cross_attention must be set: set them, or take "
                "EncoderDecoderConfig.from_encoder_decoder_configs"
            )
        wanted, width = decoder.cross_attention_hidden_size, self.encoder.hidden_size
        if wanted is not None and (wanted != width or wanted != decoder.hidden_size):
            raise InputError(
                f"the decoder's cross_attention_hidden_size is {wanted}, its hidden_size "
                f"{decoder.hidden_size} and the encoder's {width}: leave it out, and encoders of "
                "another width are projected"
            )
        fallbacks = {
            "decoder_start_token_id": (decoder.decoder_start_token_id, decoder.bos_token_id),
            "pad_token_id": (decoder.pad_token_id,),
            "eos_token_id": (decoder.eos_token_id,),
        }
        for name, values in fallbacks.items():
            found = [x for x in (getattr(self, name), *values) if x is not None]
            object.__setattr__(self, name, found[0] if found else None)
            if found and not 0 <= found[0] < decoder.vocab_size:
                raise InputError(
                    f"{name} {found[0]} is outside the decoder's vocabulary of {decoder.vocab_size}"
                )
        if self.tie_encoder_decoder:
            self._check_tie()

    def _check_tie(self) -> None:
        differences = [
            f"{name} {ours!r} and {theirs!r}"
            for name in _SHARED
            if (ours := getattr(self.encoder, name)) != (theirs := getattr(self.decoder, name))
        ]
        if differences:
            raise InputError(
                "tie_encoder_decoder: encoder and decoder cannot share their weights, they differ "
                f"in {', '.join(differences)}"
            )

    @property
    def projects(self) -> bool:
        """Whether a dense layer (`enc_to_dec_proj`) brings the encoder's output to the decoder."""
        return self.encoder.hidden_size != self.decoder.hidden_size

    @classmethod
    def from_encoder_decoder_configs(
        cls, encoder: BertConfig, decoder: BertConfig, **fields: Any
    ) -> "EncoderDecoderConfig":
        """Make a pair of any two BERTs: the first reads both ways, the second one writes."""
        return cls(
            dataclasses.replace(encoder, is_decoder=False, add_cross_attention=False),
            dataclasses.replace(decoder, is_decoder=True, add_cross_attention=True),
            **fields,
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "EncoderDecoderConfig":
        """Build a config from the keys of a config.json; `to_dict` is the way back."""
        values = dict(values)
        model_type = values.pop("model_type", None)
        if model_type != MODEL_TYPE:
            raise InputError(f"model_type {model_type!r} is not {MODEL_TYPE!r}")
        values.pop("is_encoder_decoder", None)
        halves: dict[str, Any] = {}
        for name in ("encoder", "decoder"):
            half = values.pop(name, None)
            if not isinstance(half, Mapping):
                raise InputError(f"{name} must hold the config of a BERT; got {half!r}")
            try:
                halves[name] = BertConfig.from_dict(half)
            except InputError as error:
                raise InputError(f"{name}: {error}") from error
        known = {f.name for f in dataclasses.fields(cls)} - {"other"}
        fields = {key: value for key, value in values.items() if key in known}
        for name, value in fields.items():
            is_flag = name == "tie_encoder_decoder"
            if not (isinstance(value, bool) if is_flag else _is_id(value)):
                raise InputError(
                    f"{name} must be {'a bool' if is_flag else 'an id'}; got {value!r}"
                )
        other = sorted((k, json.dumps(v)) for k, v in values.items() if k not in known)
        return cls(**halves | fields, other=tuple(other))

    @classmethod
    def from_json(cls, path: str | Path) -> "EncoderDecoderConfig":
        """Read a config.json of transformers.

        Raises:
          InputError: not readable, or no encoder-decoder.
        """
        return read_json(path, cls.from_dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the keys of a config.json that transformers reads."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del values["other"]
        values |= {"encoder": self.encoder.to_dict(), "decoder": self.decoder.to_dict()}
        values |= {"model_type": MODEL_TYPE, "is_encoder_decoder": True}
        return values | {key: json.loads(text) for key, text in self.other}

    def to_json(self, path: str | Path) -> None:
        """Write a config.json."""
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True, ensure_ascii=False)
        Path(path).write_text(text + "\n", encoding="utf-8")


AnyConfig = BertConfig | EncoderDecoderConfig


def config_at(config: AnyConfig | None, path: str) -> BertConfig | None:
    """Return the config of the half that the parameter at `path` belongs to."""
    if isinstance(config, EncoderDecoderConfig):
        return config.encoder if path.startswith("encoder/") else config.decoder
    return config


def _is_id(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool))


def config_from_directory(directory: str | Path) -> AnyConfig:
    """Read the config of a model directory, of either kind.

    Raises:
      InputError: there is none, or it is of no BERT.
    """
    path = Path(directory) / "config.json"
    if path.is_file() and read_json(path, dict).get("model_type") == MODEL_TYPE:
        return EncoderDecoderConfig.from_json(path)
    return BertConfig.from_directory(directory)

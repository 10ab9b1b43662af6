"""The encoder-decoder that a fine-tuning run starts from: a finished pair, or one BERT twice."""

import dataclasses
from typing import Any

import jax

from bertjax import pretrained
from bertjax.config import BertConfig
from bertjax.encoder_decoder import EncoderDecoderModel
from bertjax.encoder_decoder_config import EncoderDecoderConfig
from bertjax.errors import InputError
from bertjax.pretrained import formats, pairs
from bertjax.run_config import FinetuneConfig
from bertjax.tokenizer import BertTokenizer


def model_config(config: FinetuneConfig, tokenizer: BertTokenizer) -> EncoderDecoderConfig:
    """Return the architecture of the run: targets begin with [CLS] and end with [SEP].

    Raises:
      InputError: rows that are too long for it, or a pair that does not fit the run.
    """
    if config.lora.rank:
        raise InputError("lora: there are no adapters for seq2seq; leave --lora.rank out")
    found = formats.find_config(formats.locate(config.init_from))
    ids: dict[str, Any] = {"pad_token_id": tokenizer.pad_id, "eos_token_id": tokenizer.sep_id}
    if isinstance(found, EncoderDecoderConfig):
        pair = _of_pair(config, found, tokenizer.sep_id)
        start = pair.decoder_start_token_id
        ids["decoder_start_token_id"] = tokenizer.cls_id if start is None else start
        pair = dataclasses.replace(pair, **ids)
    else:
        pair = EncoderDecoderConfig.from_encoder_decoder_configs(
            found,
            found,
            tie_encoder_decoder=config.tie_encoder_decoder,
            decoder_start_token_id=tokenizer.cls_id,
            **ids,
        )
    _check_lengths(config, pair.encoder, pair.decoder)
    return pair


def _of_pair(config: FinetuneConfig, found: EncoderDecoderConfig, end: int) -> EncoderDecoderConfig:
    if config.tie_encoder_decoder and not found.tie_encoder_decoder:
        raise InputError(
            f"tie_encoder_decoder: the halves of {config.init_from} have weights of their own; "
            "leave it out, or start from one BERT"
        )
    if found.eos_token_id not in (None, end):
        raise InputError(
            f"{config.init_from}: ends targets with token {found.eos_token_id}, its tokenizer's "
            f"[SEP] is {end}; set eos_token_id in its config.json"
        )
    return found


def _check_lengths(config: FinetuneConfig, encoder: BertConfig, decoder: BertConfig) -> None:
    longest = {
        "sequence_length": encoder.max_position_embeddings,
        "target_length": decoder.max_position_embeddings - 1,  # the start token comes before
    }
    for name, most in longest.items():
        if (given := getattr(config.task, name)) > most:
            raise InputError(f"task.{name} {given} is over the model's {most}: lower it")


def load(
    config: FinetuneConfig, model: EncoderDecoderModel, shardings: Any, key: jax.Array
) -> dict[str, Any]:
    """Return the parameters that the run starts from.

    Raises:
      InputError: see `load_pretrained`.
    """
    found = formats.find_config(formats.locate(config.init_from))
    options = {"config": model.config, "shardings": shardings, "key": key}
    if isinstance(found, EncoderDecoderConfig):
        return pretrained.load_pretrained(type(model), config.init_from, **options)[1]
    return pairs.load_pair(config.init_from, **options)[1]

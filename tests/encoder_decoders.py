"""Small encoder-decoders, batches for them, and the same weights in transformers."""

import dataclasses
import functools

import numpy as np
import torch
import transformers

from bertjax import (
    BertConfig,
    BertModel,
    EncoderDecoderConfig,
    EncoderDecoderModel,
)
from tests.peers import (
    checkpoint,
    quick_params,
)

BERT = BertConfig(
    vocab_size=61,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=24,
    scan_unroll=1,
)
WIDE = dataclasses.replace(BERT, hidden_size=48, vocab_size=53, num_hidden_layers=1)
IDS = {"decoder_start_token_id": 2, "pad_token_id": 0, "eos_token_id": 3}
pair_of = EncoderDecoderConfig.from_encoder_decoder_configs
CONFIGS = {
    "plain": pair_of(BERT, BERT, **IDS),
    "projected": pair_of(WIDE, BERT, **IDS),
    "untied words": pair_of(BERT, dataclasses.replace(BERT, tie_word_embeddings=False), **IDS),
    "tied": pair_of(BERT, BERT, tie_encoder_decoder=True, **IDS),
}
BATCH, SOURCE, TARGET = 4, 11, 9


def batch_of(config):
    """Sources and targets of several lengths, and some labels that do not count."""
    rng = np.random.default_rng(0)
    lengths, target_lengths = np.array([SOURCE, 1, 6, 9]), np.array([TARGET, 4, 1, 7])
    labels = rng.integers(4, config.decoder.vocab_size, (BATCH, TARGET), dtype=np.int32)
    labels = np.where(np.arange(TARGET) < target_lengths[:, None], labels, -100)
    labels[0, 2:4] = -100
    return {
        "input_ids": rng.integers(4, config.encoder.vocab_size, (BATCH, SOURCE), dtype=np.int32),
        "attention_mask": (np.arange(SOURCE) < lengths[:, None]).astype(np.int32),
        "labels": labels,
    }


def own_decoder(config):
    """Decoder inputs and a mask that the labels alone would not give."""
    batch = batch_of(config)
    ids = np.random.default_rng(3).integers(4, config.decoder.vocab_size, (BATCH, TARGET))
    mask = (np.arange(TARGET) < np.array([3, TARGET, 8, 5])[:, None]).astype(np.int32)
    return batch | {"decoder_input_ids": ids.astype(np.int32), "decoder_attention_mask": mask}


def embedded(config):
    batch, rng = batch_of(config), np.random.default_rng(4)
    del batch["input_ids"]
    return batch | {
        "inputs_embeds": rng.normal(size=(BATCH, SOURCE, config.encoder.hidden_size)).astype("f"),
        "decoder_inputs_embeds": rng.normal(
            size=(BATCH, TARGET, config.decoder.hidden_size)
        ).astype("f"),
        "decoder_position_ids": rng.integers(0, 24, (BATCH, TARGET), dtype=np.int32),
    }


def halves(model, params):
    """The two models that the pair consists of, each with all parameters that it uses."""
    encoder = BertModel(model.config.encoder), params["encoder"]
    return encoder, (model.decoder_alone(), model.decoder_params(params))


def state_of(model, params):
    """transformers' tensors, put together without the code that writes files."""
    (encoder, decoder) = halves(model, params)
    tensors = {f"encoder.{n}": x for n, x in checkpoint(*encoder).items()}
    tensors |= {f"decoder.{n}": x for n, x in checkpoint(*decoder).items()}
    if "enc_to_dec_proj" in params:
        projection = params["enc_to_dec_proj"]
        tensors["enc_to_dec_proj.weight"] = np.asarray(projection["kernel"]).T
        tensors["enc_to_dec_proj.bias"] = np.asarray(projection["bias"])
    return {name: torch.tensor(tensor) for name, tensor in tensors.items()}


def peer_of(model, params):
    config = model.config.to_dict()
    peer = transformers.EncoderDecoderModel(
        transformers.EncoderDecoderConfig(
            encoder=config["encoder"],
            decoder=config["decoder"],
            attn_implementation="eager",
            **IDS,
        )
    ).eval()
    missing, unexpected = peer.load_state_dict(state_of(model, params), strict=False)
    assert {name.rpartition("predictions.")[2] for name in missing} <= {
        "decoder.weight",
        "decoder.bias",
    }
    assert not unexpected
    return peer


@functools.cache
def made(name):
    model = EncoderDecoderModel(CONFIGS[name])
    return model, quick_params(model)


def distance(ours, theirs):
    if isinstance(theirs, tuple):
        return max(distance(a, b) for a, b in zip(ours, theirs, strict=True))
    theirs = theirs.detach().numpy()
    assert ours.shape == theirs.shape
    return float(np.abs(np.asarray(ours) - theirs).max())

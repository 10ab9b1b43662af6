"""Encoder-decoders in and out of files: transformers' layout, ties, and pairs made of BERTs."""

import dataclasses
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import bertjax
from bertjax import (
    BertConfig,
    BertForPreTraining,
    BertModel,
    EncoderDecoderModel,
    InputError,
    from_pretrained,
    save_pretrained,
)
from bertjax.pretrained import abstract_params
from bertjax.pruning import prune_heads
from tests.encoder_decoders import (
    BERT,
    CONFIGS,
    IDS,
    WIDE,
    batch_of,
    distance,
    made,
    state_of,
)
from tests.models import assert_same_trees
from tests.peers import (
    OUTPUT,
    quick_jit,
    quick_params,
    torch_of,
)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("to", ["hf", "orbax"])
def test_round_trip_is_bitwise(name, to, tmp_path):
    model, params = made(name)
    save_pretrained(tmp_path / "out", model, params, to=to)
    for back, loaded in (
        from_pretrained(tmp_path / "out"),
        EncoderDecoderModel.from_pretrained(tmp_path / "out"),
    ):
        assert type(back) is EncoderDecoderModel
        unrolled = {
            half: dataclasses.replace(getattr(back.config, half), scan_unroll=1, other=())
            for half in ("encoder", "decoder")
        }
        assert dataclasses.replace(back.config, other=(), **unrolled) == model.config
        assert_same_trees(loaded, params)


def theirs_reads(directory):
    peer, report = transformers.EncoderDecoderModel.from_pretrained(
        directory, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report.values()), report
    return peer.eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_reads_ours_and_we_read_theirs(name, tmp_path):
    model, params = made(name)
    save_pretrained(tmp_path / "ours", model, params)
    peer = theirs_reads(tmp_path / "ours")
    batch = batch_of(model.config)
    with torch.no_grad():
        want = peer(**torch_of(batch))
    run = quick_jit(lambda m, p: m.apply({"params": p}, **batch), static_argnums=0)
    assert distance(run(model, params).logits, want.logits) <= OUTPUT
    config = peer.config
    assert (config.decoder_start_token_id, config.pad_token_id) == (2, 0)
    assert peer.generation_config.eos_token_id == 3

    peer.save_pretrained(tmp_path / "theirs")
    back, loaded = from_pretrained(tmp_path / "theirs")
    assert back.config.tie_encoder_decoder == model.config.tie_encoder_decoder
    assert_same_trees(loaded, params)
    assert distance(run(back, loaded).logits, want.logits) <= OUTPUT


@pytest.mark.parametrize("absent", ["decoder.bert.", "encoder."])
def test_either_copy_of_what_is_tied_may_be_absent(absent, tmp_path):
    """transformers 4 stored shared tensors once."""
    from safetensors.numpy import load_file, save_file

    model, params = made("tied")
    save_pretrained(tmp_path, model, params)
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith(absent) or "crossattention" in name or "pooler" in name
    }
    assert len(kept) < len(tensors)
    save_file(kept, tmp_path / "model.safetensors")
    assert_same_trees(EncoderDecoderModel.from_pretrained(tmp_path)[1], params)


def test_copies_that_differ_are_told(tmp_path, caplog):
    """What is saved untied and then tied loses the decoder's own trunk: that is told."""
    model, params = made("plain")
    save_pretrained(tmp_path, model, params)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_encoder_decoder": True}))
    with caplog.at_level(logging.WARNING):
        _, tied = EncoderDecoderModel.from_pretrained(tmp_path)
    assert "37 tensors of the decoder that differ" in caplog.text
    assert_same_trees(tied["encoder"], params["encoder"])


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A pretrained BERT with all its heads, and a narrower one without any."""
    directory = tmp_path_factory.mktemp("checkpoints")
    bert, small = BertForPreTraining(BERT), BertModel(WIDE)
    save_pretrained(directory / "bert", bert, quick_params(bert))
    save_pretrained(directory / "wide", small, quick_params(small))
    return directory


def test_pair_of_one_checkpoint(checkpoints, caplog):
    source = checkpoints / "bert"
    with caplog.at_level(logging.WARNING):
        model, params = EncoderDecoderModel.from_encoder_decoder_pretrained(source, **IDS)
    warnings = [r.message for r in caplog.records if "newly initialised" in r.message]
    assert len(warnings) == 1
    assert warnings[0].count("crossattention/") == 10
    assert "embeddings" not in warnings[0]
    assert "predictions" not in warnings[0]
    base = BertForPreTraining.from_pretrained(source)[1]
    assert_same_trees(params["encoder"], base["bert"])
    assert_same_trees(params["decoder"]["cls"]["predictions"], base["cls"]["predictions"])
    assert_same_trees(params["decoder"]["bert"]["embeddings"], base["bert"]["embeddings"])
    assert model.config.decoder.is_decoder
    assert model.config.decoder.add_cross_attention
    assert not model.config.encoder.is_decoder
    assert model.config.eos_token_id == 3


def test_tied_pair_of_one_checkpoint(checkpoints):
    source = checkpoints / "bert"
    model, tied = EncoderDecoderModel.from_encoder_decoder_pretrained(source, tie=True, **IDS)
    _, untied = EncoderDecoderModel.from_encoder_decoder_pretrained(source, **IDS)
    assert jax.tree.structure(tied) == jax.tree.structure(abstract_params(model))
    assert_same_trees(tied["encoder"], untied["encoder"])
    assert_same_trees(model.decoder_params(tied), untied["decoder"])


def test_pair_of_two_checkpoints(checkpoints, caplog):
    wide, bert = checkpoints / "wide", checkpoints / "bert"
    with caplog.at_level(logging.WARNING):
        model, params = EncoderDecoderModel.from_encoder_decoder_pretrained(wide, bert, **IDS)
    lines = [r.message for r in caplog.records if "newly initialised" in r.message]
    assert len(lines) == 2
    assert "enc_to_dec_proj/bias, enc_to_dec_proj/kernel" in lines[1]
    assert params["enc_to_dec_proj"]["kernel"].shape == (48, 32)
    assert float(jnp.std(params["enc_to_dec_proj"]["kernel"])) == pytest.approx(0.02, rel=0.1)
    assert_same_trees(params["encoder"], BertModel.from_pretrained(wide)[1])
    # A decoder without a head gets a new one.
    _, turned = EncoderDecoderModel.from_encoder_decoder_pretrained(bert, wide, **IDS)
    assert turned["decoder"]["cls"]["predictions"]["bias"].shape == (53,)
    # transformers makes the same of them, but for what is new.
    theirs = transformers.EncoderDecoderModel.from_encoder_decoder_pretrained(str(wide), str(bert))
    fresh = ("crossattention", "enc_to_dec_proj", "pooler")
    state = theirs.state_dict()
    for name, tensor in state_of(model, params).items():
        if not any(part in name for part in fresh):
            np.testing.assert_array_equal(tensor, state[name])


def test_halves_with_pruned_heads(tmp_path):
    model, params = made("plain")
    bare, smaller = prune_heads(BertModel(BERT), params["encoder"], {0: [1, 2], 1: [0]})
    pruned = EncoderDecoderModel(dataclasses.replace(model.config, encoder=bare.config))
    params = params | {"encoder": smaller}
    for to in ("hf", "orbax"):
        save_pretrained(tmp_path / to, pruned, params, to=to)
        back, loaded = from_pretrained(tmp_path / to)
        assert back.config.encoder.pruned_heads == ((0, 1), (0, 2), (1, 0))
        assert_same_trees(loaded, params)


def test_files_of_the_other_kind(checkpoints, tmp_path):
    model, params = made("plain")
    save_pretrained(tmp_path / "pair", model, params)
    with pytest.raises(InputError, match="is an encoder-decoder; load it with EncoderDecoderModel"):
        BertModel.from_pretrained(tmp_path / "pair")
    with pytest.raises(InputError, match=r"is one BERT; EncoderDecoderModel\.from_encoder_decoder"):
        EncoderDecoderModel.from_pretrained(checkpoints / "bert")
    with pytest.raises(InputError, match="is an encoder-decoder; name a model that is one BERT"):
        EncoderDecoderModel.from_encoder_decoder_pretrained(tmp_path / "pair")
    with pytest.raises(InputError, match="is an encoder-decoder; name a model that is one BERT"):
        BertConfig.from_pretrained(tmp_path / "pair")
    for to in ("tf1", "flax"):
        with pytest.raises(InputError, match=f"is written as hf or orbax, not as {to}"):
            save_pretrained(tmp_path / "out", model, params, to=to)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"encoder": None}, "encoder must hold the config of a BERT; got None"),
        ({"decoder": {"model_type": "gpt2"}}, "decoder: model_type 'gpt2' is not a BERT"),
        ({"pad_token_id": "0"}, "pad_token_id must be an id; got '0'"),
        ({"tie_encoder_decoder": 1}, "tie_encoder_decoder must be a bool; got 1"),
    ],
)
def test_damaged_configs(changes, told, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIGS["plain"].to_dict() | changes))
    with pytest.raises(InputError, match=f"{path}: {told}"):
        bertjax.from_pretrained(tmp_path)


def test_missing_and_unknown_tensors_are_listed(tmp_path, caplog):
    from safetensors.numpy import load_file, save_file

    model, params = made("projected")
    save_pretrained(tmp_path, model, params)
    tensors = load_file(tmp_path / "model.safetensors")
    lost = {name: x for name, x in tensors.items() if name != "enc_to_dec_proj.weight"}
    save_file(lost, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"missing enc_to_dec_proj.weight \[32, 48\]"):
        from_pretrained(tmp_path)
    lost = {n: x for n, x in tensors.items() if "encoder.layer.0.intermediate.dense.b" not in n}
    save_file(lost, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"\(encoder\): 1 tensors do not fit: missing"):
        from_pretrained(tmp_path)
    save_file(tensors | {"odd.weight": np.zeros(3)}, tmp_path / "model.safetensors")
    with caplog.at_level(logging.WARNING, logger="bertjax.pretrained"):
        from_pretrained(tmp_path)
    assert caplog.messages == [f"{tmp_path}: left out 1 tensors that no BERT has: odd.weight"]

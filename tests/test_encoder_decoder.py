"""The encoder-decoder against transformers (torch), live: outputs, losses, gradients, files."""

import dataclasses
import functools
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
    BertLMHeadModel,
    BertModel,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GenerationConfig,
    InputError,
    from_pretrained,
    generate,
    init_cache,
    save_pretrained,
)
from bertjax.encoder_decoder import shift_tokens_right
from bertjax.pretrained import abstract_params
from bertjax.pruning import prune_heads
from tests.models import assert_same_trees
from tests.peers import (
    GRADIENT,
    LOSS,
    OUTPUT,
    checkpoint,
    quick_jit,
    quick_params,
    torch_of,
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


FIELDS = [
    "logits",
    "decoder_hidden_states",
    "decoder_attentions",
    "cross_attentions",
    "encoder_last_hidden_state",
    "encoder_hidden_states",
    "encoder_attentions",
]


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("plain", batch_of),
        ("plain", own_decoder),
        ("projected", embedded),
        ("untied words", batch_of),
        ("tied", batch_of),
    ],
)
def test_outputs_losses_and_gradients_are_those_of_transformers(name, make):
    model, params = made(name)
    batch, peer = make(model.config), peer_of(model, params)

    @quick_jit
    def ours(params):
        def loss(params):
            output = model.apply(
                {"params": params}, **batch, output_attentions=True, output_hidden_states=True
            )
            return output.loss, output

        return jax.grad(loss, has_aux=True)(params)

    grads, output = ours(params)
    theirs = peer(**torch_of(batch), output_attentions=True, output_hidden_states=True)
    for field in FIELDS:
        assert distance(getattr(output, field), getattr(theirs, field)) <= OUTPUT, field
    assert abs(float(output.loss) - float(theirs.loss)) <= LOSS
    theirs.loss.backward()
    assert_same_gradients(model, grads, peer)


def assert_same_gradients(model, grads, peer):
    wanted = {name: p.grad for name, p in peer.named_parameters()}
    if not model.config.decoder.tie_word_embeddings:  # see tests.peers
        head = "decoder.cls.predictions"
        wanted[f"{head}.bias"] = wanted[f"{head}.decoder.bias"]
    found = state_of(model, grads)
    if model.config.tie_encoder_decoder:  # each copy has a part of the whole
        for name in [n for n in wanted if n.startswith("decoder.bert.")]:
            other = wanted.get(name.replace("decoder.bert.", "encoder.", 1))
            if other is not None:
                wanted[name] = wanted[name.replace("decoder.bert.", "encoder.", 1)] = (
                    wanted[name] + other
                )
    assert wanted.keys() - found.keys() <= {"decoder.cls.predictions.decoder.bias"}
    compared = 0
    for name, ours in found.items():
        want = wanted.get(name)
        if want is None:  # the pooler, or words where embeddings were given
            assert not ours.any(), name
            continue
        # A key's bias adds the same to all scores: zero but for rounding.
        like = wanted[name.replace("bias", "weight")] if name.endswith("key.bias") else want
        scale = float(like.abs().max())
        if not scale:  # attention to a single place
            assert not ours.any(), name
            continue
        assert float((ours - want).abs().max()) <= GRADIENT * scale, name
        compared += 1
    assert compared > 40


def test_shifts_labels_as_transformers_does():
    from transformers.models.encoder_decoder import modeling_encoder_decoder as theirs

    labels = batch_of(CONFIGS["plain"])["labels"]
    want = theirs.shift_tokens_right(torch.tensor(labels), 7, 5)
    np.testing.assert_array_equal(shift_tokens_right(labels, 7, 5), want.numpy())
    with pytest.raises(ValueError, match="labels need decoder_start_token_id"):
        shift_tokens_right(labels, 7, None)
    with pytest.raises(ValueError, match="labels need pad_token_id"):
        shift_tokens_right(labels, None, 5)


def test_no_label_counts():
    model, params = made("plain")
    batch = batch_of(model.config)
    batch["labels"] = np.full_like(batch["labels"], -100)
    assert float(quick_jit(model.apply)({"params": params}, **batch).loss) == 0


def test_source_is_read_once():
    """Given outputs of the encoder, or a cache that has them, the source need not come again."""
    model, params = made("projected")
    batch = batch_of(model.config)
    ids = np.random.default_rng(1).integers(4, 61, (BATCH, TARGET), dtype=np.int32)
    mask = batch["attention_mask"]
    call = functools.partial(quick_jit(model.apply), {"params": params})
    whole = call(batch["input_ids"], mask, ids)
    again = call(None, mask, ids, encoder_outputs=(whole.encoder_last_hidden_state,))
    np.testing.assert_allclose(again.logits, whole.logits, atol=1e-5)

    cache = init_cache(model.config.decoder, BATCH, TARGET)
    first = call(batch["input_ids"], mask, ids[:, :4], past_key_values=cache)
    rest = call(None, mask, ids[:, 4:], past_key_values=first.past_key_values)
    together = np.concatenate([first.logits, rest.logits], axis=1)
    np.testing.assert_allclose(together, whole.logits, atol=1e-5)
    assert rest.encoder_last_hidden_state is None


def test_tied_parameters_are_there_once():
    model, params = made("tied")
    assert set(params["decoder"]) == {"bert", "cls"}
    assert set(params["decoder"]["bert"]) == {"encoder"}
    assert set(params["decoder"]["bert"]["encoder"]["layer"]) == {"crossattention"}
    plain = sum(x.size for x in jax.tree.leaves(made("plain")[1]["decoder"]))
    encoder = sum(x.size for x in jax.tree.leaves(params["encoder"]))
    pooler = sum(x.size for x in jax.tree.leaves(params["encoder"]["pooler"]))
    assert sum(x.size for x in jax.tree.leaves(params["decoder"])) == plain - encoder + pooler
    # A freshly initialised one has the same tree, and runs.
    fresh = jax.jit(model.init)(jax.random.key(1), model.init_ids)["params"]
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, params)


def test_dropout_is_drawn_in_both_halves():
    batch = batch_of(CONFIGS["plain"])
    for name in ("plain", "tied"):
        model, params = made(name)

        def call(key, model=model, params=params):
            return model.apply(
                {"params": params}, **batch, deterministic=False, rngs={"dropout": key}
            )

        run = quick_jit(call)
        a, same, b = (run(jax.random.key(n)) for n in (0, 0, 1))
        np.testing.assert_array_equal(a.logits, same.logits)
        assert not np.allclose(a.encoder_last_hidden_state, b.encoder_last_hidden_state)
        still = run(jax.random.key(0)).encoder_last_hidden_state
        given = quick_jit(
            lambda key, model=model, params=params, still=still: model.apply(
                {"params": params},
                labels=batch["labels"],
                encoder_outputs=(still,),
                deterministic=False,
                rngs={"dropout": key},
            )
        )
        assert not np.allclose(given(jax.random.key(0)).logits, given(jax.random.key(1)).logits)


# Files.


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


# Generation.


def theirs_written(peer, batch, **settings):
    with torch.no_grad():
        return peer.generate(
            torch.tensor(batch["input_ids"], dtype=torch.long),
            attention_mask=torch.tensor(batch["attention_mask"]),
            generation_config=transformers.GenerationConfig(
                max_new_tokens=12, do_sample=False, **IDS, **settings
            ),
            return_dict_in_generate=True,
            output_scores=True,
        )


def assert_same_tokens(ours, want):
    """Equal up to the end of each row; behind it are zeros, where transformers' beams have ends."""
    want = np.pad(want.numpy(), ((0, 0), (0, ours.shape[1] - want.shape[1])))
    behind = np.cumsum(want == IDS["eos_token_id"], axis=1) - (want == IDS["eos_token_id"]) > 0
    np.testing.assert_array_equal(ours, np.where(behind, 0, want))


BEAMS = {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.7}


@pytest.mark.parametrize(
    ("name", "rules"),
    [
        ("projected", {}),
        ("projected", BEAMS),
        ("tied", BEAMS),
    ],
    ids=["greedy", "beams", "tied, beams"],
)
def test_writes_what_transformers_writes(name, rules):
    model, params = made(name)
    batch, peer = batch_of(model.config), peer_of(model, params)
    want = theirs_written(peer, batch, **rules)
    settings = GenerationConfig(max_new_tokens=12, **rules)
    written = generate(
        model, params, batch["input_ids"], batch["attention_mask"], settings=settings
    )
    assert_same_tokens(written.sequences, want.sequences)
    if "num_beams" in rules:
        np.testing.assert_allclose(
            written.sequences_scores, want.sequences_scores.numpy(), atol=OUTPUT
        )
    assert len(np.unique(written.sequences, axis=0)) > 2  # sources count


def test_targets_may_have_a_beginning():
    model, params = made("plain")
    batch = batch_of(model.config)
    begin = np.array([[2, 9], [2, 30], [2, 31], [2, 9]], np.int32)
    settings = GenerationConfig(max_new_tokens=4)
    written = generate(
        model,
        params,
        batch["input_ids"],
        batch["attention_mask"],
        settings=settings,
        decoder_input_ids=begin,
    ).sequences
    want = peer_of(model, params).generate(
        torch.tensor(batch["input_ids"], dtype=torch.long),
        attention_mask=torch.tensor(batch["attention_mask"]),
        decoder_input_ids=torch.tensor(begin, dtype=torch.long),
        generation_config=transformers.GenerationConfig(max_new_tokens=4, **IDS),
    )
    assert_same_tokens(written, want)


# Bad input.


def test_what_does_not_fit():
    tie = {"tie_encoder_decoder": True}
    with pytest.raises(InputError, match=r"vocab_size 53 and 61, hidden_size 48 and 32, num_hid"):
        pair_of(WIDE, BERT, **tie)
    asked = dataclasses.replace(BERT, cross_attention_hidden_size=40)
    with pytest.raises(InputError, match=r"cross_attention_hidden_size is 40.* 32 .*encoder's 48"):
        pair_of(WIDE, asked)
    with pytest.raises(InputError, match="decoder's is_decoder and add_cross_attention must"):
        EncoderDecoderConfig(BERT, BERT)
    decoder = CONFIGS["plain"].decoder
    with pytest.raises(InputError, match="encoder's is_decoder or add_cross_attention is set"):
        EncoderDecoderConfig(decoder, decoder)
    with pytest.raises(InputError, match="eos_token_id 61 is outside the decoder's vocabulary of"):
        pair_of(BERT, BERT, eos_token_id=61)


def test_what_a_call_lacks():
    model, params = made("plain")
    batch = batch_of(model.config)
    ids, labels = batch["input_ids"], batch["labels"]

    def call(*arguments, model=model, **options):
        return model.apply({"params": params}, *arguments, **options)

    with pytest.raises(ValueError, match="give the target: labels, decoder_input_ids or"):
        call(ids)
    with pytest.raises(ValueError, match="give the source: input_ids, inputs_embeds or"):
        call(labels=labels)
    with pytest.raises(ValueError, match="labels need the logits of all tokens"):
        call(ids, labels=labels, decoder_logits_to_keep=1)
    nameless = EncoderDecoderModel(pair_of(BERT, BERT))
    with pytest.raises(ValueError, match="labels need decoder_start_token_id: set it"):
        call(ids, labels=labels, model=nameless)
    with pytest.raises(InputError, match="decoder_start_token_id is not set"):
        generate(nameless, params, ids)
    with pytest.raises(InputError, match="encodes input_ids itself"):
        generate(model, params, ids, encoder_attention_mask=batch["attention_mask"])
    decoder = model.decoder_alone()
    with pytest.raises(InputError, match="decoder_input_ids and token_type_ids are for an"):
        generate(decoder, params["decoder"], ids, decoder_input_ids=ids)
    with pytest.raises(InputError, match=r"1 tokens of the prompts and 24 new ones are over .* 24"):
        generate(model, params, ids, settings=GenerationConfig(max_new_tokens=24))


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


def test_missing_and_unknown_tensors_are_listed(tmp_path):
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
    with pytest.raises(InputError, match=r"unexpected odd.weight \[3\]"):
        from_pretrained(tmp_path)


def test_lone_decoder_is_a_model_of_its_own():
    model, params = made("tied")
    batch = batch_of(model.config)
    ids = batch["labels"].clip(0)
    whole = quick_jit(model.apply)({"params": params}, batch["input_ids"], decoder_input_ids=ids)
    decoder = model.decoder_alone()
    assert isinstance(decoder, BertLMHeadModel)
    encode = quick_jit(functools.partial(model.apply, method="encode"))
    source = encode({"params": params}, batch["input_ids"])
    alone = quick_jit(decoder.apply)(
        {"params": model.decoder_params(params)}, ids, encoder_hidden_states=source
    )
    np.testing.assert_allclose(alone.logits, whole.logits, atol=1e-5)

"""The encoder-decoder against transformers (torch), live: outputs, losses, gradients, beams."""

import dataclasses
import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from bertjax import (
    BertLMHeadModel,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GenerationConfig,
    InputError,
    generate,
    init_cache,
)
from bertjax.encoder_decoder import shift_tokens_right
from bertjax.pruning import prune_heads
from bertjax.resizing import resize_token_embeddings
from bertjax.unstacked import apart
from tests.encoder_decoders import (
    BATCH,
    BERT,
    CONFIGS,
    IDS,
    TARGET,
    WIDE,
    batch_of,
    distance,
    embedded,
    made,
    own_decoder,
    pair_of,
    peer_of,
    state_of,
)
from tests.peers import (
    GRADIENT,
    LOSS,
    OUTPUT,
    quick_jit,
    torch_of,
)

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
    again = generate(
        model, apart(params), batch["input_ids"], batch["attention_mask"], settings=settings
    )
    np.testing.assert_array_equal(again.sequences, written.sequences)


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


def test_an_array_is_no_output_of_an_encoder():
    """In a process of its own, where nothing else checks the types."""
    code = """
import dataclasses, numpy as np
from bertjax import BertConfig, EncoderDecoderConfig, EncoderDecoderModel
bert = BertConfig.preset("tiny", vocab_size=50)
config = EncoderDecoderConfig.from_encoder_decoder_configs(bert, bert, decoder_start_token_id=2)
labels, states = np.ones((2, 3), np.int32), np.zeros((2, 4, 128), np.float32)
try:
    EncoderDecoderModel(config).apply({}, encoder_outputs=states, labels=labels)
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == (
        "encoder_outputs must be the encoder's output, or a tuple that begins with its last hidden "
        "state; got ndarray\n"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": np.arange(3)}, r"sources must be \[B, E\], .*; got \(3,\), \(0, 0\)"),
        ({"attention_mask": np.ones((1, 2))}, r"their attention_mask and .*; got .*, \(1, 2\)"),
        ({"input_ids": np.full((1, 41), 5)}, "sources of 41 tokens are over the encoder's .* 24"),
        ({"input_ids": np.array([[5, 61]])}, "sources: 61 is outside the encoder's 61"),
        ({"input_ids": np.array([[5, -1]])}, "sources: -1 is outside the encoder's 61"),
        ({"token_type_ids": np.full((2, 9), 2)}, "token_type_ids: 2 is outside the encoder's 2"),
    ],
)
def test_sources_that_the_encoder_cannot_read(change, message):
    model, params = made("plain")
    given = {"input_ids": np.full((2, 9), 5)} | change
    with pytest.raises(InputError, match=message):
        generate(model, params, **given)


def test_halves_are_changed_apart():
    model, params = made("plain")
    with pytest.raises(InputError, match="EncoderDecoderModel is made of two models: change"):
        prune_heads(model, params, {0: [1]})
    with pytest.raises(InputError, match="EncoderDecoderModel is made of two models: change"):
        resize_token_embeddings(model, params, 70, key=jax.random.key(0))


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

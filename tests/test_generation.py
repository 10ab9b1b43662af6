"""Generation against transformers' own, token for token; samples by their distribution."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from scipy import stats

from bertjax import BertLMHeadModel, GenerationConfig, InputError, decoding, generate, unstacked
from bertjax.next_token import next_scores
from tests.peers import OUTPUT, quick_params, torch_of, torch_peer
from tests.test_decoder import CROSS, DECODER, LEFT, SMALL, source

PROMPT = LEFT["input_ids"][:, -12:]
MASK = LEFT["attention_mask"][:, -12:]
NEW = 15

RULES = {
    "plain": {},
    "ends": {"eos_token_id": (3, 44, 62)},
    "no early end": {"eos_token_id": (3, 44, 62), "min_new_tokens": 6},
    "penalty": {"repetition_penalty": 1.7},
    "bigrams": {"no_repeat_ngram_size": 2},
    "all": {
        "repetition_penalty": 0.8,
        "no_repeat_ngram_size": 3,
        "eos_token_id": 24,
        "min_new_tokens": 3,
    },
}


def pair(config):
    model = BertLMHeadModel(config)
    params = quick_params(model)
    return model, params, torch_peer(model, params)


def theirs(peer, ids, mask, rules, given, **more):
    """What transformers writes, without its cache, which is not made for a lone decoder."""
    rules = {k: list(v) if isinstance(v, tuple) else v for k, v in rules.items()}
    settings = transformers.GenerationConfig(
        max_new_tokens=NEW, pad_token_id=0, use_cache=False, **{"do_sample": False} | rules | more
    )
    with torch.no_grad():
        return peer.generate(
            torch.tensor(ids, dtype=torch.long),
            attention_mask=torch.tensor(mask),
            generation_config=settings,
            return_dict_in_generate=True,
            output_scores=True,
            **torch_of(given),
        )


def assert_same_tokens(ours, want):
    """Equal as far as transformers goes; where it has stopped for all rows, padding."""
    ours, length = np.asarray(ours), want.shape[1]
    np.testing.assert_array_equal(ours[:, :length], want.numpy())
    assert not ours[:, length:].any()


@pytest.mark.parametrize(
    ("name", "config"),
    [
        *((name, DECODER) for name in ("plain", "no early end", "penalty", "all")),
        *((name, CROSS) for name in ("ends", "bigrams")),
    ],
)
def test_greedy_is_that_of_transformers(name, config):
    model, params, peer = pair(config)
    given = source() if config.add_cross_attention else {}
    settings = GenerationConfig(max_new_tokens=NEW, **RULES[name])
    # Padding is no part of an n-gram; in transformers it is.
    mask = np.ones_like(MASK) if "no_repeat_ngram_size" in RULES[name] else MASK
    ours = generate(model, params, PROMPT, mask, settings=settings, output_scores=True, **given)
    want = theirs(peer, PROMPT, mask, RULES[name], given)
    assert_same_tokens(ours.sequences, want.sequences)
    written = np.asarray(ours.sequences)[:, 12:]
    ends = np.isin(written, settings.eos_token_ids)
    first = np.where(ends.any(axis=1), ends.argmax(axis=1) + 1, NEW)
    np.testing.assert_array_equal(ours.lengths, first)
    for step, scores in enumerate(want.scores):
        alive = step < first
        np.testing.assert_allclose(
            ours.scores[:, step][alive], scores.numpy()[alive], rtol=0, atol=OUTPUT
        )


BEAMS = {
    "plain": {"num_beams": 3},
    "ends": {"num_beams": 4, "eos_token_id": (44, 62, 24), "num_return_sequences": 3},
    "short": {"num_beams": 2, "eos_token_id": tuple(range(20, 50)), "length_penalty": -0.5},
    "long, early": {
        "num_beams": 2,
        "eos_token_id": (44, 67),
        "length_penalty": 2.0,
        "early_stopping": True,
        "min_new_tokens": 3,
        "repetition_penalty": 1.3,
        "num_return_sequences": 2,
    },
    "more than positions": {"num_beams": 60, "eos_token_id": 44, "num_return_sequences": 3},
}


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("plain", DECODER),
        ("short", DECODER),
        ("more than positions", DECODER),
        ("ends", CROSS),
        ("long, early", CROSS),
    ],
)
def test_beams_are_those_of_transformers(name, config):
    model, params, peer = pair(config)
    given = source() if config.add_cross_attention else {}
    settings = GenerationConfig(max_new_tokens=NEW, **BEAMS[name])
    ours = generate(model, params, PROMPT, MASK, settings=settings, **given)
    want = theirs(peer, PROMPT, MASK, BEAMS[name], given)
    scores = ours.sequences_scores, want.sequences_scores
    np.testing.assert_allclose(*scores, rtol=1e-6, atol=OUTPUT)  # sums, some of them hundreds
    for tokens, their, length in zip(ours.sequences, want.sequences, ours.lengths, strict=True):
        written = slice(0, 12 + int(length))
        np.testing.assert_array_equal(tokens[written], their[written])
        assert not np.asarray(tokens[written.stop :]).any()  # transformers fills up with an end
    if "eos_token_id" in BEAMS[name]:
        assert len(set(np.asarray(ours.lengths).tolist())) > 1


@pytest.mark.slow
def test_sampled_beams_differ_by_seed_and_not_by_batch():
    model, params, _ = pair(DECODER)
    settings = GenerationConfig(
        max_new_tokens=6, num_beams=3, do_sample=True, temperature=5.0, num_return_sequences=2
    )
    run = lambda ids, seeds: generate(model, params, ids, settings=settings, seeds=seeds)  # noqa: E731
    ids = np.repeat(PROMPT[:1, -4:], 3, axis=0)
    found = np.asarray(run(ids, np.array([1, 2, 1])).sequences).reshape(3, 2, -1)
    np.testing.assert_array_equal(found[0], found[2])
    assert (found[0] != found[1]).any()
    np.testing.assert_array_equal(run(ids[:1], np.array([1])).sequences, found[0])


def test_rows_end_at_different_times():
    model, params, _ = pair(CROSS)
    settings = GenerationConfig(max_new_tokens=NEW, **RULES["ends"])
    ours = generate(model, params, PROMPT, MASK, settings=settings, **source())
    assert len(set(ours.lengths.tolist())) > 2


def test_a_prompt_of_one_token_without_a_mask():
    model, params, peer = pair(DECODER)
    ids = PROMPT[:, -1:]
    ours = generate(model, params, ids, settings=GenerationConfig(max_new_tokens=NEW))
    want = theirs(peer, ids, np.ones_like(ids), {}, {})
    assert_same_tokens(ours.sequences, want.sequences)


@pytest.mark.slow
@pytest.mark.parametrize("sample", [False, True])
def test_rows_do_not_depend_on_their_batch(sample):
    model, params, _ = pair(CROSS)
    settings = GenerationConfig(max_new_tokens=NEW, do_sample=sample, top_p=0.9)
    seeds = np.array([7, 11, 7, 5, 3])
    full = generate(model, params, PROMPT, MASK, settings=settings, seeds=seeds, **source())
    for row in (1, 3):
        real = MASK[row] != 0
        given = {k: v[row : row + 1] for k, v in source().items()}
        alone = generate(
            model,
            params,
            PROMPT[row : row + 1, real],
            settings=settings,
            seeds=seeds[row : row + 1],
            **given,
        )
        np.testing.assert_array_equal(alone.sequences[0, real.sum() :], full.sequences[row, 12:])


def test_the_first_token_can_be_forced():
    model, params, peer = pair(DECODER)
    rules = {"forced_bos_token_id": 17}
    ids = PROMPT[:, -1:]  # transformers forces it behind a single token alone
    ours = generate(model, params, ids, settings=GenerationConfig(max_new_tokens=NEW, **rules))
    assert_same_tokens(ours.sequences, theirs(peer, ids, np.ones_like(ids), rules, {}).sequences)
    assert (np.asarray(ours.sequences)[:, 1] == 17).all()


@pytest.mark.parametrize(
    "rules",
    [
        {"top_k": 0, "temperature": 0.3},
        {"top_k": 7},
        {"top_k": 0, "top_p": 0.7},
        {"top_k": 0, "min_p": 0.1},
        {"top_k": 20, "top_p": 0.6, "min_p": 0.03, "temperature": 1.6},
        {"top_k": 200, "repetition_penalty": 1.4, "no_repeat_ngram_size": 1},
    ],
    ids=str,
)
def test_what_a_sample_is_drawn_from_is_that_of_transformers(rules):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(6, 99)).astype("f") * 3
    tokens = rng.integers(0, 99, (6, 9))
    settings = GenerationConfig(do_sample=True, **rules)
    ours = next_scores(
        settings,
        jnp.asarray(scores),
        jnp.asarray(np.pad(tokens, ((0, 0), (0, 4)))),
        jnp.ones((6, 13), bool),
        jnp.int32(9),
        jnp.int32(2),
    )
    peer = transformers.BertLMHeadModel(transformers.BertConfig(vocab_size=99, hidden_size=12, num_hidden_layers=1, is_decoder=True))  # fmt: skip # noqa: E501
    their = transformers.GenerationConfig(do_sample=True, **rules)
    rules_of_theirs = peer._get_logits_processor(
        their, input_ids_seq_length=9, logits_processor=transformers.LogitsProcessorList()
    )
    want = rules_of_theirs(torch.tensor(tokens), torch.tensor(scores)).numpy()
    np.testing.assert_allclose(ours, want, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_samples_have_the_distribution():
    """Chi-squared over what 4,000 seeds draw as first and second token, from fixed scores."""
    model, params, _ = pair(DECODER)
    draws = 4000
    settings = GenerationConfig(max_new_tokens=2, do_sample=True, top_k=6, temperature=4.0)
    ids = np.repeat(PROMPT[:1, -3:], draws, axis=0)
    ours = np.asarray(generate(model, params, ids, settings=settings).sequences)
    scored = generate(model, params, ids[:1], settings=settings, output_scores=True).scores[0]
    probs = np.asarray(jax.nn.softmax(scored[0]), np.float64)
    kept = np.flatnonzero(probs)
    assert len(kept) == 6
    counts = np.bincount(ours[:, 3], minlength=99)
    assert counts.sum() == counts[kept].sum()
    assert stats.chisquare(counts[kept], draws * probs[kept] / probs[kept].sum()).pvalue > 1e-3
    # The second token's draw is not the first's: given the first, its numbers are spread anew.
    common = kept[probs[kept].argmax()]
    after = np.bincount(ours[ours[:, 3] == common, 4], minlength=99)
    prefix = np.concatenate([ids[:1], [[common]]], axis=1)
    again = generate(model, params, prefix, settings=settings, output_scores=True).scores[0, 0]
    probs = np.asarray(jax.nn.softmax(again), np.float64)
    kept = np.flatnonzero(probs)
    expected = after.sum() * probs[kept] / probs[kept].sum()
    assert stats.chisquare(after[kept], expected).pvalue > 1e-3


@pytest.mark.parametrize("rows", [1, len(PROMPT)])
def test_parameters_may_be_taken_apart_before(rows, monkeypatch):
    model, params, _ = pair(DECODER)
    prompt, mask = PROMPT[:rows], MASK[:rows]
    want = generate(model, params, prompt, mask)
    taken = unstacked.apart(params)
    monkeypatch.setattr(unstacked, "_apart", None)  # no copy any more
    found = generate(model, taken, prompt, mask)
    np.testing.assert_array_equal(found.sequences, want.sequences)


def test_prompts_of_one_shape_compile_once():
    model, params, _ = pair(DECODER)
    settings = GenerationConfig(max_new_tokens=3)
    generate(model, params, PROMPT, MASK, settings=settings)
    before = decoding.advance._cache_size()
    generate(model, params, PROMPT[::-1], MASK[::-1], settings=settings)
    assert decoding.advance._cache_size() == before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1; got 0"),
        ({"min_new_tokens": 21}, r"min_new_tokens must be in \[0, max_new_tokens 20\]; got 21"),
        (
            {"num_beams": 2, "num_return_sequences": 3},
            r"num_return_sequences must be in \[1, num_beams 2\]; got 3",
        ),
        ({"temperature": 0.0}, "temperature must be positive; got 0.0"),
        ({"top_p": 1.5}, r"top_p must be in \(0, 1\]; got 1.5"),
    ],
)
def test_settings_out_of_range(fields, message):
    with pytest.raises(InputError, match=message):
        GenerationConfig(**fields)


def test_bad_input():
    model, params, _ = pair(DECODER)

    def fails(message, ids=PROMPT, mask=None, model=model, **fields):
        with pytest.raises(InputError, match=message):
            generate(model, params, ids, mask, settings=GenerationConfig(**fields))

    fails("12 tokens of the prompts and 29 new ones are over .* 40", max_new_tokens=29)
    fails("num_beams 100 are more than the vocabulary of 99", num_beams=100)
    fails("row 1 ends in padding", mask=MASK[:, ::-1])
    fails(r"got \(5, 12\) and \(5, 11\)", mask=MASK[:, 1:])
    fails("eos_token_id 1: 99 is outside the vocabulary of 99", eos_token_id=(3, 99))
    fails("input_ids: 99 is outside", ids=np.full((1, 2), 99))
    encoder = BertLMHeadModel(dataclasses.replace(SMALL, num_hidden_layers=1))
    fails("only a decoder writes on", model=encoder)

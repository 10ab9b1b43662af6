"""Mask-predict against a plain loop over transformers' own model, token for token."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats

from bertjax import BertForMaskedLM, BertModel, InputError, MaskPredictConfig, mask_predict
from bertjax.infilling import _fill, append_masks
from tests.models import SMALL
from tests.peers import quick_params, torch_peer

MASK = 4
LENGTHS = np.array([23, 9, 23, 14, 3])
CONFIG = dataclasses.replace(SMALL, num_hidden_layers=1)


@pytest.fixture(scope="module")
def pair():
    model = BertForMaskedLM(CONFIG)
    params = quick_params(model)
    return model, params, torch_peer(model, params)


def rows(seed=0):
    """Rows with from none to twelve masked tokens each."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, SMALL.vocab_size, (5, 23))
    real = (np.arange(23) < LENGTHS[:, None]).astype(np.int32)
    for row, count in enumerate([12, 3, 0, 7, 1]):
        ids[row, rng.permutation(LENGTHS[row])[:count]] = MASK
    types = (np.arange(23) >= 6).astype(np.int32) * np.ones((5, 1), np.int32)
    return {"input_ids": ids, "attention_mask": real, "token_type_ids": types}


def predict(peer, row, suppressed):
    """The likeliest token at each place of a row, and its probability."""
    with torch.no_grad():
        logits = peer(**{name: torch.tensor(x)[None] for name, x in row.items()}).logits[0]
    logits[:, list(suppressed)] = -torch.inf
    probs, tokens = logits.softmax(-1).max(-1)
    return tokens.tolist(), probs.tolist()


def refine(peer, row, iterations, suppressed):
    """The algorithm of the paper's section 3, for one row."""
    ids, places = row["input_ids"].copy(), np.flatnonzero(row["input_ids"] == MASK).tolist()
    kept = dict.fromkeys(places, 0.0)
    again = places
    for step in range(iterations):
        ids[again] = MASK
        tokens, probs = predict(peer, row | {"input_ids": ids}, suppressed)
        for place in again:
            ids[place], kept[place] = tokens[place], probs[place]
        number = len(places) * (iterations - step - 1) // iterations
        again = sorted(places, key=kept.__getitem__)[:number]
    return ids, kept


def settle(peer, row, per_round, suppressed):
    """The most certain places first, for good."""
    ids, kept = row["input_ids"].copy(), {}
    while (ids == MASK).any():
        tokens, probs = predict(peer, row | {"input_ids": ids}, suppressed)
        places = np.flatnonzero(ids == MASK).tolist()
        for place in sorted(places, key=lambda p: -probs[p])[:per_round]:
            ids[place], kept[place] = tokens[place], probs[place]
    return ids, kept


@pytest.mark.parametrize(
    ("loop", "name", "number"),
    [(refine, "iterations", 4), (refine, "iterations", 10), (settle, "per_round", 5)],
)
def test_fills_in_what_a_plain_loop_does(pair, loop, name, number):
    model, params, peer = pair
    batch, suppressed = rows(), (MASK, 0, 33)
    settings = MaskPredictConfig(suppress_tokens=suppressed, **{name: number})
    ours = mask_predict(model, params, **batch, mask_token_id=MASK, settings=settings)
    first = (batch["input_ids"] == MASK) & (batch["attention_mask"] != 0)
    for number, length in enumerate(LENGTHS):
        row = {name: array[number, :length] for name, array in batch.items()}
        ids, probs = loop(peer, row, getattr(settings, name), suppressed)
        np.testing.assert_array_equal(ours.sequences[number, :length], ids)
        wanted = np.ones(23)
        wanted[list(probs)] = list(probs.values())
        np.testing.assert_allclose(ours.probs[number], wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(ours.sequences)[~first], batch["input_ids"][~first])


def test_rounds_change_what_was_filled_in(pair):
    model, params, _ = pair
    found = [
        mask_predict(
            model, params, **rows(), mask_token_id=MASK, settings=MaskPredictConfig(iterations=n)
        ).sequences
        for n in (1, 10)
    ]
    assert (np.asarray(found[0]) != np.asarray(found[1])).any()


def test_rows_of_one_bucket_share_a_program(pair):
    model, params, _ = pair
    settings = MaskPredictConfig(iterations=3)
    batch = rows()
    full = mask_predict(model, params, **batch, mask_token_id=MASK, settings=settings)
    before = _fill._cache_size()
    shorter = {name: array[:, :18] for name, array in batch.items()}  # 17 to 24 are one bucket
    mask_predict(model, params, **shorter, mask_token_id=MASK, settings=settings)
    assert _fill._cache_size() == before
    row = {name: array[1:2, :9] for name, array in batch.items()}
    alone = mask_predict(model, params, **row, mask_token_id=MASK, settings=settings)
    np.testing.assert_array_equal(alone.sequences[0], full.sequences[1, :9])


def test_a_sample_depends_on_its_seed_and_not_on_its_batch(pair):
    model, params, _ = pair
    settings = MaskPredictConfig(do_sample=True, temperature=4.0, per_round=2)
    options = {"mask_token_id": MASK, "settings": settings}
    same = {name: np.repeat(array[:1], 3, axis=0) for name, array in rows().items()}
    found = mask_predict(model, params, **same, **options, seeds=[5, 6, 5]).sequences
    np.testing.assert_array_equal(found[0], found[2])
    assert (np.asarray(found[0]) != np.asarray(found[1])).any()
    mixed = {name: np.concatenate([array[:2], same[name][:1]]) for name, array in rows().items()}
    beside = mask_predict(model, params, **mixed, **options, seeds=[1, 2, 5]).sequences
    np.testing.assert_array_equal(beside[2], found[0])


@pytest.mark.slow
def test_samples_have_the_distribution(pair):
    """Chi-squared over what 4,000 seeds fill in at two places, against transformers' scores."""
    model, params, peer = pair
    ids = rows()["input_ids"][:1, :9].copy()
    ids[ids == MASK] = 7
    ids[0, [2, 6]] = MASK
    with torch.no_grad():
        logits = peer(torch.tensor(ids)).logits[0].double() / 6.0
    settings = MaskPredictConfig(do_sample=True, temperature=6.0, top_k=5, iterations=1)
    found = mask_predict(
        model, params, np.repeat(ids, 4000, axis=0), mask_token_id=MASK, settings=settings
    )
    for place in (2, 6):
        best, tokens = logits[place].topk(5)
        counts = np.bincount(np.asarray(found.sequences)[:, place], minlength=99)
        assert counts.sum() == counts[tokens].sum()
        assert stats.chisquare(counts[tokens], 4000 * best.softmax(0).numpy()).pvalue > 1e-3


def test_masks_are_appended_before_the_last_token():
    ids = np.array([[2, 7, 3], [2, 3, 0]])
    found, mask = append_masks(ids, np.array([[1, 1, 1], [1, 1, 0]]), 2, MASK)
    np.testing.assert_array_equal(found, [[2, 7, MASK, MASK, 3], [2, MASK, MASK, 3, 0]])
    np.testing.assert_array_equal(mask, [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])


def test_bad_input(pair):
    model, params, _ = pair

    def fails(message, ids=None, model=model, settings=None, **more):
        ids = rows()["input_ids"] if ids is None else ids
        with pytest.raises(InputError, match=message):
            mask_predict(model, params, ids, mask_token_id=MASK, settings=settings, **more)

    fails("no row holds mask_token_id", np.full((2, 3), 7))
    fails("41 tokens are over max_position_embeddings 40", np.full((1, 41), MASK))
    fails("token 99 is outside the vocabulary of 99", np.array([[MASK, 99]]))
    fails("token -1 is outside", np.array([[MASK, 5]]), settings=MaskPredictConfig(suppress_tokens=(-1,)))  # fmt: skip # noqa: E501
    fails("the whole vocabulary", settings=MaskPredictConfig(suppress_tokens=tuple(range(99))))
    fails(r"attention_mask must be \(5, 23\)", attention_mask=np.ones((5, 22)))
    fails(r"seeds must be one for each of 5 rows; got shape \(4,\)", seeds=np.arange(4))
    fails("got a BertModel", model=BertModel(CONFIG))
    decoder = BertForMaskedLM(dataclasses.replace(CONFIG, is_decoder=True))
    fails("got a BertForMaskedLM with is_decoder", model=decoder)
    for fields in ({"iterations": 0}, {"per_round": 0}, {"temperature": 0.0}):
        with pytest.raises(InputError, match=f"{next(iter(fields))} must be"):
            MaskPredictConfig(**fields)

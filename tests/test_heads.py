"""Every class with a head against transformers (torch), live: outputs, losses, gradients."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

import bertjax
from tests.models import BATCH, LENGTH, SMALL, inputs
from tests.peers import assert_agreement, compare, quick_params, run_ours

RNG = np.random.default_rng(7)
NAMES = (
    "BertForMaskedLM",
    "BertForNextSentencePrediction",
    "BertForSequenceClassification",
    "BertForMultipleChoice",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
)


def build(name, **fields):
    return getattr(bertjax, name)(dataclasses.replace(SMALL, **fields))


def token_labels(classes, seed=1):
    """Classes of about a third of the real tokens, -100 elsewhere."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, (BATCH, LENGTH), dtype=np.int32)
    hidden = inputs(SMALL)["attention_mask"] == 0
    labels[hidden | (rng.random(labels.shape) > 0.3)] = -100
    return labels


def rows(*labels, kind=np.int32):
    return {"labels": np.array(labels, kind)}


def embedded(batch):
    """The batch with random embeddings in place of ids, at random positions."""
    shape, rng = batch["input_ids"].shape, np.random.default_rng(8)
    given = {
        "inputs_embeds": rng.normal(size=(*shape, SMALL.hidden_size)).astype(np.float32),
        "position_ids": rng.integers(0, SMALL.max_position_embeddings, shape, dtype=np.int32),
    }
    return {k: v for k, v in batch.items() if k != "input_ids"} | given


def choices(batch):
    """Two questions of five choices each from one batch of five rows."""
    return {k: np.stack([v, np.roll(v, 3, axis=-1)]) for k, v in batch.items()}


LM, NSP, ROWS, CHOICE, TOKENS, SPANS = NAMES
SPAN_ENDS = {
    "start_positions": np.array([0, 5, -3, 32, 33], np.int32),
    "end_positions": np.array([4, 40, 2, 32, 3], np.int32),
}
SCALED = RNG.normal(size=(BATCH, 3)).astype(np.float32)
SOFT = RNG.random((BATCH, 3)).astype(np.float32)
HARD = (SOFT > 0.5).astype(np.float32)

ONE = {"num_hidden_layers": 1}  # compiles faster
EPSILON = {"num_labels": 3, "layer_norm_eps": 1e-3}

# Class, config fields, labels.
CASES = {
    "lm": (LM, {}, {"labels": token_labels(99)}),
    "lm, untied": (
        LM,
        ONE | {"tie_word_embeddings": False, "hidden_act": "gelu_new"},
        {"labels": token_labels(99, 2)},
    ),
    "next sentence": (NSP, {}, rows(0, 1, 1, 0, -100)),
    "classes": (ROWS, {"num_labels": 3, "hidden_act": "relu"}, rows(2, 0, -100, 1, 2)),
    "two classes, named": (
        ROWS,
        ONE | {"problem_type": "single_label_classification", "classifier_dropout": 0.4},
        rows(1, 0, 0, 1, 1, kind=np.int64),
    ),
    "regression": (ROWS, ONE | {"num_labels": 1}, {"labels": SCALED[:, 0]}),
    "regression, named": (
        ROWS,
        ONE | {"num_labels": 3, "problem_type": "regression"},
        {"labels": SCALED},
    ),
    "several classes": (ROWS, ONE | EPSILON, {"labels": HARD}),
    "several classes, soft": (ROWS, ONE | EPSILON, {"labels": SOFT}),
    "choice": (CHOICE, {}, rows(4, 0)),
    "choice, one ignored": (CHOICE, {}, rows(-100, 3)),
    "tokens": (TOKENS, {"num_labels": 5, "hidden_act": "silu"}, {"labels": token_labels(5)}),
    "spans": (SPANS, {}, SPAN_ENDS),
    "spans, tanh": (SPANS, ONE | {"hidden_act": "tanh"}, SPAN_ENDS),
}


def case(name, **more):
    model_name, fields, labels = CASES[name]
    batch = inputs(SMALL)
    batch = choices(batch) if model_name == CHOICE else batch
    return build(model_name, **fields | more), batch, dict(labels)


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_transformers(name):
    model, batch, labels = case(name)
    assert_agreement(compare(model, quick_params(model), batch | labels))


@pytest.mark.parametrize("name", ["lm", "next sentence", "classes", "choice", "tokens", "spans"])
def test_embeddings_at_given_positions_agree_with_transformers(name):
    model, batch, labels = case(name, **ONE)
    found = compare(model, quick_params(model), embedded(batch) | labels)
    assert_agreement(found)
    assert "grad inputs_embeds" in found


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("lm", {"labels": np.full((BATCH, LENGTH), -100, np.int32)}),
        ("next sentence", rows(*[-100] * BATCH)),
        ("classes", rows(*[-100] * BATCH)),
        ("choice", rows(-100, -100)),
        ("tokens", {"labels": np.full((BATCH, LENGTH), -100, np.int32)}),
        ("spans", {k: np.full(BATCH, LENGTH, np.int32) for k in SPAN_ENDS}),
    ],
)
def test_all_labels_ignored_gives_zero_not_nan(name, labels):
    model, batch, _ = case(name)
    output, grads, _ = run_ours(model, quick_params(model), batch | labels)
    assert output.loss == 0
    assert all(np.all(np.asarray(g) == 0) for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("name", NAMES)
def test_arguments_and_fields_are_those_of_transformers(name):
    ours = inspect.signature(getattr(bertjax, name).__call__).parameters
    theirs = inspect.signature(getattr(transformers, name).forward).parameters
    later = {"encoder_hidden_states", "encoder_attention_mask", "kwargs"}
    assert set(theirs) - set(ours) - later == set()
    extra = {"head_mask", "output_attentions", "output_hidden_states", "deterministic"}
    assert set(ours) - set(theirs) - {"mlm_positions", "cls_positions"} == extra
    assert not {p.kind for p in ours.values()} & {
        inspect.Parameter.VAR_POSITIONAL,
        inspect.Parameter.VAR_KEYWORD,
    }
    assert ours["deterministic"].default is True


@pytest.mark.parametrize("by", ["argument", "config"])
def test_fields_are_there_when_asked_for(by):
    asked = {"output_hidden_states": True, "output_attentions": True}
    for name in NAMES:
        model = build(name, **(asked if by == "config" else {}))
        params = quick_params(model)
        batch = inputs(SMALL) if name != CHOICE else choices(inputs(SMALL))

        def run(params, model=model, batch=batch):
            given = asked if by == "argument" else {}
            return model.apply({"params": params}, **batch, **given)

        output = jax.eval_shape(run, params)
        assert output.loss is None
        many = 2 * BATCH if name == CHOICE else BATCH
        assert [h.shape for h in output.hidden_states] == [(many, LENGTH, 64)] * 4
        assert [a.shape for a in output.attentions] == [(many, 4, LENGTH, LENGTH)] * 3
        if by == "argument":
            plain = jax.eval_shape(lambda p, m=model, b=batch: m.apply({"params": p}, **b), params)
            assert plain.hidden_states is None
            assert plain.attentions is None


def test_masked_positions_alone_give_the_same_scores_and_loss():
    model = build(LM)
    params = quick_params(model)
    batch = inputs(SMALL)
    positions = np.array([[1, 4, 6], [0, 0, 0], [2, 3, 5], [1, 9, 19], [5, 6, 7]], np.int32)
    chosen = np.random.default_rng(2).integers(0, 99, positions.shape, dtype=np.int32)
    chosen[1, 1:] = -100
    labels = np.full((BATCH, LENGTH), -100, np.int32)
    counted = chosen != -100
    labels[np.nonzero(counted)[0], positions[counted]] = chosen[counted]
    full, full_grads, _ = run_ours(model, params, batch | {"labels": labels})
    few, few_grads, _ = run_ours(
        model, params, batch | {"labels": chosen, "mlm_positions": positions}
    )
    assert few.logits.shape == (BATCH, 3, SMALL.vocab_size)
    want = np.take_along_axis(np.asarray(full.logits), positions[:, :, None], axis=1)
    np.testing.assert_allclose(few.logits, want, atol=1e-5)
    np.testing.assert_allclose(few.loss, full.loss, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(few_grads), jax.tree.leaves(full_grads), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, float(jnp.abs(b).max())))


def test_choices_are_rows_of_their_own():
    """Each choice is scored as a row is alone, and the scores keep their places."""
    model, batch, labels = case("choice")
    params = quick_params(model)
    together, _, _ = run_ours(model, params, batch | labels)
    turned = {k: v[::-1, ::-1] for k, v in batch.items()}
    again, _, _ = run_ours(model, params, turned | labels)
    np.testing.assert_allclose(again.logits, together.logits[::-1, ::-1], atol=1e-5)
    assert np.ptp(np.asarray(together.logits)) > 0.1

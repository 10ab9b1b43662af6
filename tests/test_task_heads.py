"""What must hold of the heads without a peer: transformations, precision, dropout, bad labels."""

import dataclasses
import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import bertjax
from bertjax import sharding, task_heads
from bertjax.pretrained import names
from tests.models import BATCH, SMALL, inputs
from tests.peers import quick_jit, quick_params, run_ours
from tests.test_heads import CHOICE, LM, NAMES, NSP, ROWS, SPANS, TOKENS, build, case

KEY = jax.random.key(5)
FIRST = {LM: "lm", NSP: "next sentence", ROWS: "classes", CHOICE: "choice"}
FIRST |= {TOKENS: "tokens", SPANS: "spans"}


def scores(output):
    """All scores of an output, whatever they are called."""
    if isinstance(output, bertjax.QuestionAnsweringModelOutput):
        return jnp.stack([output.start_logits, output.end_logits])
    return output.logits


@pytest.mark.parametrize("name", NAMES)
def test_vmapped_seeds_and_donated_parameters(name):
    """Three seeds take a step of gradient descent at once, in their own memory."""
    model, batch, labels = case(FIRST[name], num_hidden_layers=1)
    seeds = [quick_params(model, seed) for seed in range(3)]
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds)
    ones = [run_ours(model, seed, batch | labels) for seed in seeds]

    def step(params):
        def loss(params):
            return model.apply({"params": params}, **batch, **labels).loss

        value, grads = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value

    new, losses = quick_jit(jax.vmap(step), donate_argnums=0)(params)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(params))
    for i, (seed, (output, grads, _)) in enumerate(zip(seeds, ones, strict=True)):
        np.testing.assert_allclose(losses[i], output.loss, rtol=1e-5)
        want = jax.tree.map(lambda p, g: p - 0.1 * g, seed, grads)
        for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a[i], b, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_close_and_scores_are_float32(name):
    model, batch, labels = case(FIRST[name])
    params = quick_params(model)
    want, _, _ = run_ours(model, params, batch | labels)
    half = dataclasses.replace(model, dtype=jnp.bfloat16)

    def run(params):
        return half.apply({"params": params}, **batch, **labels, output_hidden_states=True)

    got = quick_jit(run)(params)
    assert scores(got).dtype == got.loss.dtype == jnp.float32
    assert got.hidden_states[-1].dtype == jnp.bfloat16
    error = jnp.linalg.norm(scores(got) - scores(want)) / jnp.linalg.norm(scores(want))
    assert 0 < error < 0.03
    np.testing.assert_allclose(got.loss, want.loss, rtol=0.03)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_their_beginning(name):
    """Parameters do not depend on the shapes given to init; kernels N(0, 0.02), biases zero."""
    model = build(name, initializer_range=0.02)
    assert model.init_ids.shape == ((1, 1, 2) if name == CHOICE else (1, 2))

    def init(key, ids):
        return model.init(key, ids)["params"]

    smallest = jax.eval_shape(init, KEY, model.init_ids)
    larger = jax.eval_shape(init, KEY, np.zeros([n + 2 for n in model.init_ids.shape], np.int32))
    assert jax.tree.leaves_with_path(smallest) == jax.tree.leaves_with_path(larger)
    assert ("pooler" in smallest["bert"]) == (name in (NSP, ROWS, CHOICE))

    def init_head(key):
        return {k: v for k, v in init(key, model.init_ids).items() if k != "bert"}

    head = quick_jit(init_head)(KEY)
    for path, leaf in names.parameters(head):
        kind = path.rpartition("/")[2]
        if kind == "kernel":
            # The sample deviation of n normal draws deviates by 1 / sqrt(2 n) of itself.
            assert abs(float(leaf.std()) / 0.02 - 1) < 4 / np.sqrt(2 * leaf.size), path
        else:
            assert np.all(np.asarray(leaf) == (kind == "scale")), path


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_has_one_sharding_rule(name):
    model = build(name, tie_word_embeddings=False)
    shapes = jax.eval_shape(model.init, KEY, model.init_ids)["params"]
    for path, leaf in names.parameters(shapes):
        hits = [p for p, _ in sharding.PARAM_AXES if re.search(rf"(^|/){p}$", path)]
        assert len(hits) == 1, (path, hits)
        assert len(sharding.logical_axes(path, leaf.ndim)) == leaf.ndim


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("lm", {"labels": np.zeros((BATCH, 3), np.int32)}, r"\(5, 3\).*\(5, 33, 99\).*\(5, 33\)"),
        ("next sentence", {"labels": np.zeros(4, np.int32)}, r"\(4,\).*\(5, 2\).*\(5,\)"),
        ("classes", {"labels": np.zeros((BATCH, 3), np.int32)}, r"\(5, 3\).*\(5, 3\).*\(5,\)"),
        ("several classes", {"labels": np.zeros(BATCH, np.float32)}, r"\(5,\).*\(5, 3\)"),
        ("regression", {"labels": np.zeros((BATCH, 2), np.float32)}, r"\(5, 2\).*\(5, 1\)"),
        ("two classes, named", {"labels": np.zeros(BATCH, np.float32)}, "float32.*integers"),
        ("choice", {"labels": np.zeros((2, BATCH), np.int32)}, r"\(2, 5\).*\(2, 5\).*\(2,\)"),
        ("tokens", {"labels": np.zeros(BATCH, np.int32)}, r"\(5,\).*\(5, 33, 5\).*\(5, 33\)"),
        (
            "spans",
            {"start_positions": np.zeros(4, np.int32), "end_positions": np.zeros(5, np.int32)},
            r"\(4,\).*\(5, 33\).*\(5,\)",
        ),
    ],
)
def test_labels_of_another_shape_are_told(name, labels, message):
    model, batch, _ = case(name)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda p: model.apply({"params": p}, **batch, **labels), quick_params(model))


def test_spans_need_two_scores_a_token():
    model = build(SPANS, num_labels=3)
    with pytest.raises(bertjax.InputError, match="num_labels must be 2; got 3"):
        jax.eval_shape(model.init, KEY, model.init_ids)


def test_one_position_alone_gives_no_loss():
    model, batch, labels = case("spans")
    del labels["end_positions"]
    output = jax.eval_shape(
        lambda p: model.apply({"params": p}, **batch, **labels), quick_params(model)
    )
    assert output.loss is None


@pytest.mark.parametrize("name", NAMES)
def test_head_mask_and_dropout_reach_the_encoder(name):
    """Both masks and both keys of three runs make a difference to every row's scores."""
    model, batch, _ = case(FIRST[name], num_hidden_layers=1)
    params = quick_params(model)

    def run(mask, key):
        rngs = {"dropout": key}
        output = model.apply(
            {"params": params}, **batch, head_mask=mask, deterministic=False, rngs=rngs
        )
        return scores(output)

    masks = jnp.array([[1.0, 1, 1, 1], [1, 0, 0.5, 1], [1, 1, 1, 1]])
    plain, masked, other = quick_jit(jax.vmap(run))(
        masks, jax.random.split(KEY, 2)[jnp.array([0, 0, 1])]
    )
    assert np.all(np.asarray(plain) != np.asarray(masked))
    assert np.all(np.asarray(plain) != np.asarray(other))


SEEDS = 512


def dropped_features(name, **rates):
    """What a classifier reads, with many seeds of dropout and without, on four identical rows.

    The kernels pick features out: all of them for `num_labels` 64, one for each of 64 kernels for
    the single score of a choice. A bias of 8 tells a feature dropped from a score dropped.
    """
    config = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} | rates
    model = build(name, num_labels=64, num_hidden_layers=1, **config)
    params = quick_params(model)
    ids = np.tile(inputs(SMALL)["input_ids"][:1, :4], (4, 1))
    ids = ids[:, None] if name == CHOICE else ids
    eye = jnp.eye(64)

    def read(kernel, key):
        read_out = {"kernel": kernel, "bias": jnp.full(kernel.shape[1], 8.0)}
        logits = model.apply(
            {"params": params | {"classifier": read_out}},
            ids,
            deterministic=key is None,
            rngs={} if key is None else {"dropout": key},
        ).logits
        return logits - 8

    def features(key):
        if name != CHOICE:
            return read(eye, key)
        return jax.vmap(lambda column: read(column[:, None], key)[:, 0], out_axes=-1)(eye)

    noisy = quick_jit(jax.vmap(features))(jax.random.split(KEY, SEEDS))
    return np.asarray(noisy), np.asarray(quick_jit(features, static_argnums=0)(None))


@pytest.mark.parametrize(
    ("name", "rates", "rate"),
    [
        (ROWS, {"classifier_dropout": 0.3}, 0.3),
        (CHOICE, {"classifier_dropout": 0.3}, 0.3),
        (TOKENS, {"classifier_dropout": 0.3}, 0.3),
        (ROWS, {"classifier_dropout": None, "hidden_dropout_prob": 0.2}, 0.2),
        (ROWS, {"classifier_dropout": 0.0, "hidden_dropout_prob": 0.2}, 0.0),
    ],
)
def test_dropout_before_a_classifier(name, rates, rate):
    """Rate, scale and independence over rows, tokens, features and seeds; 5 deviations allowed."""
    noisy, plain = dropped_features(name, **rates)
    assert np.all(plain != 0)
    zeros = noisy == 0
    assert abs(zeros.sum() - zeros.size * rate) <= 5 * np.sqrt(zeros.size * rate * (1 - rate))
    if rate == 0:
        return
    if rates.get("hidden_dropout_prob", 0.0) == 0:
        want = np.broadcast_to(plain / (1 - rate), noisy.shape)
        np.testing.assert_allclose(noisy[~zeros], want[~zeros], rtol=1e-5, atol=4e-6)
    z = (zeros - rate) / np.sqrt(rate * (1 - rate))
    # Rows (and tokens) against each other, features against each other, seeds against each other.
    by_row = z.reshape(SEEDS, -1, 64)
    for columns in (
        by_row.transpose(0, 2, 1).reshape(-1, by_row.shape[1]),
        by_row.reshape(-1, 64),
        by_row[:64].reshape(64, -1).T,
    ):
        n, c = columns.shape
        pairs = (columns.T @ columns / np.sqrt(n))[np.triu_indices(c, 1)]
        assert stats.chi2.sf((pairs**2).sum(), len(pairs)) > 1e-4
        assert stats.chi2.cdf((pairs**2).sum(), len(pairs)) > 1e-4


@pytest.mark.parametrize("name", [LM, NSP, SPANS])
def test_heads_without_dropout(name):
    """As in transformers, `classifier_dropout` does not concern them."""
    model = build(
        name,
        classifier_dropout=0.5,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_hidden_layers=1,
    )
    params = quick_params(model)

    @quick_jit
    def both(params):
        return [
            scores(
                model.apply(
                    {"params": params},
                    **inputs(SMALL),
                    deterministic=deterministic,
                    rngs={"dropout": KEY},
                )
            )
            for deterministic in (True, False)
        ]

    np.testing.assert_array_equal(*both(params))


def test_choices_need_an_axis_of_their_own():
    # Under another name the module is imported without the tests' own check of shapes.
    spec = importlib.util.spec_from_file_location("unchecked_task_heads", task_heads.__file__)
    unchecked = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unchecked)
    model = unchecked.BertForMultipleChoice(SMALL)
    ids, embeds = np.zeros((2, 7), np.int32), np.zeros((2, 7, 64), np.float32)
    for given, message in (
        ({"input_ids": ids}, r"inputs must be \[B, choices, T, ...\]; got shape \(2, 7\)"),
        ({"inputs_embeds": embeds}, r"got shape \(2, 7, 64\)"),
        ({}, "either input_ids or inputs_embeds"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda given=given: model.init(KEY, **given))


def test_public_names():
    for name in (*NAMES, "BertForPreTraining", "BertModel"):
        assert issubclass(getattr(bertjax, name), bertjax.module.PretrainedModule)
    for name in ("MaskedLM", "SequenceClassifier", "TokenClassifier"):
        assert getattr(bertjax, f"{name}Output").__module__ == "bertjax.outputs"
    assert set(bertjax.__all__) == set(bertjax._PUBLIC)

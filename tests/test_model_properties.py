"""What must hold of the model without a peer: invariances, precision, initialisation, bad input."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertjax.config import BertConfig
from bertjax.heads import BertForPreTraining, gather_positions
from bertjax.model import BertModel
from bertjax.pretrained import names
from tests.models import BATCH, LENGTH, SMALL, apply, inputs, random_params


def test_input_ids_equal_their_embeddings():
    model = BertModel(SMALL)
    params = random_params(model)
    batch = inputs(SMALL)
    table = params["embeddings"]["word_embeddings"]["embedding"]
    by_ids = apply(model, params, **batch)
    by_embeds = apply(
        model,
        params,
        inputs_embeds=table[batch["input_ids"]],
        attention_mask=batch["attention_mask"],
        token_type_ids=batch["token_type_ids"],
    )
    np.testing.assert_array_equal(by_ids.last_hidden_state, by_embeds.last_hidden_state)


def test_no_masked_token_gives_loss_zero_not_nan():
    model = BertForPreTraining(SMALL)
    params = random_params(model)
    batch = inputs(SMALL)
    nothing = np.full((BATCH, LENGTH), -100, np.int32)
    sentence = np.full((BATCH,), -100, np.int32)

    def loss(params):
        output = apply(model, params, **batch, labels=nothing, next_sentence_label=sentence)
        return output.loss

    value, grads = jax.value_and_grad(loss)(params)
    assert value == 0.0
    assert all(np.all(np.asarray(g) == 0) for g in jax.tree.leaves(grads))


def test_fully_masked_row_is_finite():
    model = BertModel(SMALL)
    params = random_params(model)
    batch = inputs(SMALL)
    batch["attention_mask"][2] = 0

    def total(params):
        return jnp.sum(apply(model, params, **batch).last_hidden_state ** 2)

    value, grads = jax.value_and_grad(total)(params)
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))


def test_padding_and_batch_order_do_not_change_a_row():
    model = BertModel(SMALL)
    params = random_params(model)
    batch = inputs(SMALL)
    full = apply(model, params, **batch).last_hidden_state
    order = np.array([3, 0, 4, 1, 2])
    shuffled = apply(model, params, **{k: v[order] for k, v in batch.items()})
    np.testing.assert_allclose(shuffled.last_hidden_state, full[order], atol=1e-5)
    short = apply(model, params, **{k: v[3:4, :20] for k, v in batch.items()})
    np.testing.assert_allclose(short.last_hidden_state[0], full[3, :20], atol=1e-5)


@pytest.mark.parametrize("unroll", [0, 1, 2])
@pytest.mark.parametrize("remat", [False, True])
def test_remat_and_unrolling_change_nothing(remat, unroll):
    base = BertForPreTraining(dataclasses.replace(SMALL, num_hidden_layers=4, scan_unroll=1))
    model = BertForPreTraining(dataclasses.replace(base.config, scan_unroll=unroll, remat=remat))
    params = random_params(base)
    batch = inputs(SMALL)
    batch |= {"labels": batch["input_ids"], "next_sentence_label": np.zeros(BATCH, np.int32)}

    def loss(model, params):
        return apply(
            model, params, **batch, deterministic=False, rngs={"dropout": jax.random.key(4)}
        ).loss

    want, want_grads = jax.value_and_grad(loss, argnums=1)(base, params)
    value, grads = jax.value_and_grad(loss, argnums=1)(model, params)
    np.testing.assert_allclose(value, want, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), grads, want_grads)


def test_remat_recomputes():
    """The remat config really drops activations: its gradient program holds `remat` calls."""

    def jaxpr(remat):
        model = BertModel(dataclasses.replace(SMALL, remat=remat))
        params = random_params(model)

        def total(p):
            return apply(model, p, jnp.zeros((1, 4), jnp.int32)).last_hidden_state.sum()

        return str(jax.make_jaxpr(jax.grad(total))(params))

    assert "checkpoint" in jaxpr(True) or "remat" in jaxpr(True)
    assert "checkpoint" not in jaxpr(False)
    assert "remat" not in jaxpr(False)


def test_scan_equals_the_layers_one_by_one():
    model = BertModel(SMALL)
    params = random_params(model)
    batch = inputs(SMALL)
    full = apply(model, params, **batch, output_hidden_states=True)
    for depth in (1, 2):
        cut = BertModel(dataclasses.replace(SMALL, num_hidden_layers=depth))
        layers = jax.tree.map(lambda x, n=depth: x[:n], params["encoder"])
        out = apply(cut, {**params, "encoder": layers}, **batch)
        np.testing.assert_allclose(out.last_hidden_state, full.hidden_states[depth], atol=1e-6)


def test_bfloat16_is_close_to_float32_and_keeps_float32_parameters():
    model = BertForPreTraining(SMALL)
    half = BertForPreTraining(SMALL, dtype=jnp.bfloat16)
    params = half.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))
    batch = inputs(SMALL)
    batch |= {"labels": batch["input_ids"], "next_sentence_label": np.zeros(BATCH, np.int32)}
    want = apply(model, params, **batch)
    got = apply(half, params, **batch)
    assert got.loss.dtype == jnp.float32
    error = jnp.linalg.norm(got.prediction_logits - want.prediction_logits)
    assert error / jnp.linalg.norm(want.prediction_logits) < 0.03
    np.testing.assert_allclose(got.loss, want.loss, rtol=0.02)


def test_initialisation():
    config = BertConfig.preset("mini", vocab_size=2000)
    params = BertForPreTraining(config).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    for path, leaf in names.parameters(params["params"]):
        kind = path.rpartition("/")[2]
        if kind == "bias":
            assert np.all(leaf == 0), path
        elif kind == "scale":
            assert np.all(leaf == 1), path
        elif leaf.size > 2000:  # enough to see the deviation
            assert abs(float(leaf.std()) - 0.02) < 0.02 * 4 / np.sqrt(leaf.size), path
    words = params["params"]["bert"]["embeddings"]["word_embeddings"]["embedding"]
    assert np.all(words[0] == 0)
    assert np.all(np.abs(words[1:]).sum(-1) > 0)
    google = dataclasses.replace(config, initializer="truncated_normal")
    params = BertForPreTraining(google).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    kernel = params["params"]["bert"]["encoder"]["layer"]["intermediate"]["dense"]["kernel"]
    assert float(jnp.abs(kernel).max()) <= 0.04
    assert abs(float(kernel.std()) - 0.01759) < 1e-4


def test_vmapped_seeds_and_jit():
    model = BertModel(SMALL)
    ids = jnp.asarray(inputs(SMALL)["input_ids"])
    params = jax.vmap(lambda key: model.init(key, ids)["params"])(
        jax.random.split(jax.random.key(0), 3)
    )
    encode = jax.jit(lambda p: model.apply({"params": p}, ids).last_hidden_state)
    together = jax.vmap(encode)(params)
    for i in range(3):
        alone = encode(jax.tree.map(lambda x, i=i: x[i], params))
        np.testing.assert_allclose(together[i], alone, atol=1e-5)


def test_gather_positions_gradient_stays_at_the_positions():
    hidden = jnp.ones((2, 6, 3))
    positions = jnp.array([[0, 2], [5, 5]])
    grad = jax.grad(lambda h: gather_positions(h, positions).sum())(hidden)
    want = np.zeros((2, 6, 3))
    want[0, [0, 2]] = 1
    want[1, 5] = 2
    np.testing.assert_array_equal(grad, want)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": np.zeros((1, 41), np.int32)}, "41.*40"),
        ({}, "input_ids or inputs_embeds"),
        (
            {
                "input_ids": np.zeros((1, 4), np.int32),
                "head_mask": np.ones((2, 4), np.float32),
            },
            r"head_mask must be \[4\], \[3, 4\]",
        ),
    ],
)
def test_bad_arguments_name_the_numbers(arguments, message):
    model = BertModel(SMALL)
    params = random_params(model)
    with pytest.raises(ValueError, match=message):
        apply(model, params, **arguments)


def test_usable_from_nnx():
    from flax import nnx

    ids = jnp.asarray(inputs(SMALL)["input_ids"])
    model = nnx.bridge.ToNNX(BertModel(SMALL), rngs=nnx.Rngs(params=0, dropout=1))
    model = nnx.bridge.lazy_init(model, ids)
    out = model(ids).last_hidden_state
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    want = BertModel(SMALL).apply({"params": params}, ids).last_hidden_state
    np.testing.assert_allclose(out, want, atol=1e-6)
    noisy = model(ids, deterministic=False).last_hidden_state
    assert not np.allclose(noisy, out)

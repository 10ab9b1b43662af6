"""What must hold of the model without a peer: invariances, precision, initialisation, bad input."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertjax import unstacked
from bertjax.config import BertConfig
from bertjax.encoder import gather_positions
from bertjax.heads import BertForPreTraining
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


@pytest.mark.parametrize("form", [lambda params: params, unstacked.apart], ids=["stacks", "apart"])
def test_products_of_bfloat16_are_float32_on_a_cpu(form):
    """For XLA on a CPU does not use the processor's units for bfloat16 otherwise."""
    model = BertForPreTraining(SMALL, dtype=jnp.bfloat16)
    params = form(random_params(model))

    def run(params):
        return model.apply({"params": unstacked.together(params)}, **inputs(SMALL))

    lines = jax.jit(run).lower(params).as_text().splitlines()
    products = [line.rpartition("-> ")[2] for line in lines if "dot_general" in line]
    assert len(products) >= 8
    assert all(kind.endswith("xf32>") for kind in products), products


def test_derivatives_in_bfloat16_are_near_those_in_float32():
    """Backwards and forwards, along the gradient: both ways through its products."""
    batch = inputs(SMALL)
    batch |= {"labels": batch["input_ids"], "next_sentence_label": np.zeros(BATCH, np.int32)}
    params = random_params(BertForPreTraining(SMALL))

    def loss(dtype):
        model = BertForPreTraining(SMALL, dtype=dtype)
        return lambda params: model.apply({"params": params}, **batch).loss

    want, found = (jax.jit(jax.grad(loss(kind)))(params) for kind in (jnp.float32, jnp.bfloat16))
    flat, other = (jnp.concatenate([x.ravel() for x in jax.tree.leaves(g)]) for g in (want, found))
    assert jnp.linalg.norm(other - flat) < 0.05 * jnp.linalg.norm(flat)
    along = jax.jit(lambda p, t: jax.jvp(loss(jnp.bfloat16), (p,), (t,))[1])(params, want)
    np.testing.assert_allclose(along, flat @ flat, rtol=0.05)


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


ASKED = {
    "as it is": {},
    "one layer": {"num_hidden_layers": 1},
    "rolled": {"scan_unroll": 1},
    "recomputed": {"remat": True, "scan_unroll": 1},
    "pruned": {"pruned_heads": {0: (1,), 2: (0, 3)}},
    "relative": {"position_embedding_type": "relative_key_query"},
}


@pytest.mark.parametrize(
    ("kind", "mask"),
    [*((kind, "of queries") for kind in ASKED), ("as it is", "of keys"), ("one layer", "none")],
)
def test_the_last_layer_at_some_positions_is_the_whole_one_there(kind, mask):
    config = dataclasses.replace(SMALL, **ASKED[kind])
    model = BertModel(config)
    params = random_params(model)
    batch = inputs(config)
    rng = np.random.default_rng(5)
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    batch["head_mask"] = rng.random((layers, heads), np.float32)
    if mask == "of queries":
        batch["attention_mask"] = rng.integers(0, 2, (BATCH, LENGTH, LENGTH))
        batch["head_mask"] = rng.random((layers, BATCH, heads, LENGTH, LENGTH), np.float32)
    elif mask == "none":
        del batch["attention_mask"], batch["head_mask"]
    positions = np.concatenate(
        [np.zeros((BATCH, 1), np.int32), rng.integers(0, LENGTH, (BATCH, 4), np.int32)], axis=1
    )
    factors = jnp.asarray(rng.standard_normal((BATCH, 5, config.hidden_size)), jnp.float32)

    def total(params, asked):
        output = apply(model, params, **batch, output_positions=positions if asked else None)
        hidden = output.last_hidden_state
        hidden = hidden if asked else gather_positions(hidden, positions)
        return jnp.sum(hidden * factors) + output.pooler_output.sum(), (
            hidden,
            output.pooler_output,
        )

    run = jax.jit(jax.value_and_grad(total, has_aux=True), static_argnums=1)
    (_, got), got_grads = run(params, True)
    (_, want), want_grads = run(params, False)
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    for ours, theirs in zip(*map(jax.tree.leaves, (got_grads, want_grads)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * max(1.0, np.abs(theirs).max()))


def test_the_last_layer_at_some_positions_computes_no_others():
    config = dataclasses.replace(SMALL, scan_unroll=0)
    model = BertModel(config)
    params = random_params(model)
    first = jnp.zeros((BATCH, 1), jnp.int32)

    def flops(positions):
        run = jax.jit(lambda p, b: apply(model, p, **b, output_positions=positions))
        return run.lower(params, inputs(config)).compile().cost_analysis()["flops"]

    # Of queries, attention's output, and the feed-forward layer; keys and values stay.
    matrices = 2 * config.hidden_size * (config.hidden_size + config.intermediate_size)
    assert flops(None) - flops(first) > 0.95 * 2 * BATCH * (LENGTH - 1) * matrices


def test_dropout_of_the_last_layer_at_some_positions_is_its_own():
    config = dataclasses.replace(SMALL, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    model = BertModel(config)
    params = random_params(model)
    positions = jnp.zeros((BATCH, 2), jnp.int32)

    def run(seed):
        return apply(
            model,
            params,
            **inputs(config),
            output_positions=positions,
            deterministic=False,
            rngs={"dropout": jax.random.key(seed)},
        ).last_hidden_state

    np.testing.assert_array_equal(run(0), run(0))
    assert np.abs(run(0) - run(1)).max() > 0.1
    assert np.abs(run(0)[:, 0] - run(0)[:, 1]).max() > 0.1  # each position has a mask of its own


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

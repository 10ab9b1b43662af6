"""The encoder and the pretraining model against transformers (torch), live."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from bertjax.config import BertConfig
from bertjax.heads import BertForPreTraining, gather_positions
from bertjax.model import BertModel
from bertjax.pretrained import names, save_pretrained

SMALL = BertConfig(
    vocab_size=99,
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=112,
    max_position_embeddings=40,
    type_vocab_size=3,
    initializer_range=0.15,
)
CONFIGS = {
    "erf": SMALL,
    "tanh": dataclasses.replace(SMALL, hidden_act="gelu_new", num_attention_heads=1),
    "untied": dataclasses.replace(SMALL, tie_word_embeddings=False, num_hidden_layers=1),
    "relu, wide epsilon": dataclasses.replace(SMALL, hidden_act="relu", layer_norm_eps=1e-3),
}
BATCH, LENGTH = 5, 33
OUTPUT, LOSS, GRADIENT = 2e-5, 1e-5, 1e-4


def random_params(model, seed=0):
    """Parameters with nothing at its initial value, so that every bias and scale counts."""
    ids = jnp.zeros((1, 2), jnp.int32)
    params = jax.jit(model.init)(jax.random.key(seed), ids)["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: x + jnp.asarray(0.05 * rng.standard_normal(x.shape), jnp.float32), params
    )


def apply(model, params, *arguments, rngs=None, **options):
    """`model.apply`, compiled: arrays are traced, everything else is static."""
    arrays = {k: v for k, v in options.items() if isinstance(v, np.ndarray | jax.Array)}
    static = {k: v for k, v in options.items() if k not in arrays}

    @jax.jit
    def call(params, arguments, arrays, rngs):
        return model.apply({"params": params}, *arguments, **arrays, **static, rngs=rngs)

    return call(params, arguments, arrays, rngs)


def inputs(config, seed=0):
    rng = np.random.default_rng(seed)
    lengths = np.array([LENGTH, 1, 7, 20, LENGTH - 1])
    mask = (np.arange(LENGTH) < lengths[:, None]).astype(np.int32)
    return {
        "input_ids": rng.integers(0, config.vocab_size, (BATCH, LENGTH), dtype=np.int32),
        "attention_mask": mask,
        "token_type_ids": rng.integers(0, config.type_vocab_size, (BATCH, LENGTH), dtype=np.int32),
    }


def torch_of(arrays):
    return {
        name: torch.tensor(array, dtype=torch.float32 if array.dtype.kind == "f" else torch.long)
        for name, array in arrays.items()
    }


def pair(model_class, torch_class, config, directory):
    """The same random weights in both libraries, through the files that users exchange."""
    model = model_class(config)
    params = random_params(model)
    save_pretrained(directory, model, params)
    peer, report = torch_class.from_pretrained(
        directory, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values()), report
    return model, params, peer.eval()


def assert_close(ours, theirs, tolerance):
    np.testing.assert_allclose(np.asarray(ours), theirs.detach().numpy(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", CONFIGS)
def test_encoder_agrees_with_transformers(name, tmp_path):
    config = CONFIGS[name]
    model, params, peer = pair(BertModel, transformers.BertModel, config, tmp_path)
    batch = inputs(config)
    ours = apply(model, params, **batch, output_hidden_states=True, output_attentions=True)
    with torch.no_grad():
        theirs = peer(**torch_of(batch), output_hidden_states=True, output_attentions=True)
    assert_close(ours.last_hidden_state, theirs.last_hidden_state, OUTPUT)
    assert_close(ours.pooler_output, theirs.pooler_output, OUTPUT)
    assert len(ours.hidden_states) == len(theirs.hidden_states) == config.num_hidden_layers + 1
    assert len(ours.attentions) == len(theirs.attentions) == config.num_hidden_layers
    for our, their in zip(
        ours.hidden_states + ours.attentions,
        theirs.hidden_states + theirs.attentions,
        strict=True,
    ):
        assert_close(our, their, OUTPUT)


def test_encoder_without_pooler(tmp_path):
    model = BertModel(SMALL, add_pooling_layer=False)
    params = random_params(model)
    save_pretrained(tmp_path, model, params)
    peer = transformers.BertModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    batch = inputs(SMALL)
    ours = apply(model, params, **batch)
    assert "pooler" not in params
    assert ours.pooler_output is None
    assert ours.hidden_states is None
    assert ours.attentions is None
    assert_close(ours.last_hidden_state, peer(**torch_of(batch)).last_hidden_state, OUTPUT)


def test_positions_embeddings_and_3d_mask_agree_with_transformers(tmp_path):
    model, params, peer = pair(BertModel, transformers.BertModel, SMALL, tmp_path)
    rng = np.random.default_rng(3)
    positions = rng.permutation(SMALL.max_position_embeddings)[None, :LENGTH].astype(np.int32)
    embeds = rng.normal(size=(BATCH, LENGTH, SMALL.hidden_size)).astype(np.float32)
    mask = rng.integers(0, 2, (BATCH, LENGTH, LENGTH), dtype=np.int32)
    mask[:, :, 0] = 1
    ours = apply(model, params, inputs_embeds=embeds, position_ids=positions, attention_mask=mask)
    theirs = peer(
        inputs_embeds=torch.tensor(embeds),
        position_ids=torch.tensor(positions, dtype=torch.long),
        attention_mask=torch.tensor(mask[:, None] != 0),
    )
    assert_close(ours.last_hidden_state, theirs.last_hidden_state, OUTPUT)


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


@pytest.mark.parametrize("name", CONFIGS)
def test_pretraining_loss_and_gradients_agree_with_transformers(name, tmp_path):
    config = CONFIGS[name]
    model, params, peer = pair(
        BertForPreTraining, transformers.BertForPreTraining, config, tmp_path
    )
    batch = inputs(config)
    rng = np.random.default_rng(1)
    labels = rng.integers(0, config.vocab_size, (BATCH, LENGTH), dtype=np.int32)
    labels[(rng.random(labels.shape) > 0.3) | (batch["attention_mask"] == 0)] = -100
    batch |= {"labels": labels, "next_sentence_label": np.array([0, 1, 1, 0, -100], np.int32)}

    def loss(params):
        output = apply(model, params, **batch)
        return output.loss, output

    (value, ours), grads = jax.value_and_grad(loss, has_aux=True)(params)
    theirs = peer(**torch_of(batch))
    theirs.loss.backward()
    assert_close(ours.prediction_logits, theirs.prediction_logits, OUTPUT)
    assert_close(ours.seq_relationship_logits, theirs.seq_relationship_logits, OUTPUT)
    assert_close(value, theirs.loss, LOSS)
    peer_grads = {name: p.grad.numpy() for name, p in peer.named_parameters()}
    seen = set()
    for path, leaf in names.parameters(grads):
        for tensor in names.hf_tensors(path, leaf.shape):
            want = peer_grads[tensor.name]
            # The gradient of a key's bias is zero but for rounding: softmax does not see it.
            floor = 1e-3 if tensor.name.endswith("key.bias") else 0.0
            error = np.abs(tensor.encode(np.asarray(leaf)) - want).max()
            assert error <= GRADIENT * max(np.abs(want).max(), floor), tensor.name
            seen.add(tensor.name)
    assert seen == peer_grads.keys() - {"cls.predictions.decoder.bias"}


def test_gathered_positions_give_the_same_logits_and_loss():
    model = BertForPreTraining(SMALL)
    params = random_params(model)
    batch = inputs(SMALL)
    positions = np.array([[1, 4, 6], [0, 0, 0], [2, 3, 5], [1, 9, 19], [5, 6, 7]], np.int32)
    chosen = np.random.default_rng(2).integers(0, 99, positions.shape, dtype=np.int32)
    chosen[1, 1:] = -100
    labels = np.full((BATCH, LENGTH), -100, np.int32)
    for row in range(BATCH):
        for position, label in zip(positions[row], chosen[row], strict=True):
            if label != -100:
                labels[row, position] = label
    sentence = np.array([0, 1, 0, 1, 1], np.int32)
    full = apply(model, params, **batch, labels=labels, next_sentence_label=sentence)
    gathered = apply(
        model,
        params,
        **batch,
        mlm_positions=positions,
        labels=chosen,
        next_sentence_label=sentence,
    )
    assert gathered.prediction_logits.shape == (BATCH, 3, SMALL.vocab_size)
    np.testing.assert_allclose(
        gathered.prediction_logits,
        np.take_along_axis(np.asarray(full.prediction_logits), positions[:, :, None], axis=1),
        atol=1e-5,
    )
    np.testing.assert_allclose(gathered.loss, full.loss, rtol=1e-6)


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


def derived_attention(params, layer, x, *, kind, head_mask):
    """One self-attention in float64, position pair by position pair, from the papers' formulas."""
    attention = jax.tree.map(
        lambda leaf: np.asarray(leaf[layer], np.float64), params["encoder"]["layer"]["attention"]
    )["self"]
    q, k = (
        np.einsum("btd,dhk->bhtk", x, attention[n]["kernel"]) + attention[n]["bias"][:, None, :]
        for n in ("query", "key")
    )
    table = attention["distance_embedding"]["embedding"]
    reach = (table.shape[0] + 1) // 2
    batch, heads, length, size = q.shape
    scores = np.zeros((batch, heads, length, length))
    for i in range(length):
        for j in range(length):
            a = table[i - j + reach - 1]
            scores[:, :, i, j] = (q[:, :, i] * k[:, :, j]).sum(-1) + q[:, :, i] @ a
            if kind == "relative_key_query":
                scores[:, :, i, j] += k[:, :, j] @ a
    weights = np.exp(scores / np.sqrt(size))
    weights /= weights.sum(-1, keepdims=True)
    return weights * np.asarray(head_mask, np.float64)[layer][None, :, None, None]


@pytest.mark.parametrize("kind", ["relative_key", "relative_key_query"])
def test_relative_positions_and_head_mask_by_derivation(kind):
    config = dataclasses.replace(SMALL, position_embedding_type=kind)
    model = BertModel(config)
    params = random_params(model)
    assert "position_embeddings" not in params["embeddings"]
    ids = np.random.default_rng(5).integers(0, 99, (2, 9), dtype=np.int32)
    head_mask = jax.random.uniform(jax.random.key(2), (3, 4))
    output = apply(
        model,
        params,
        ids,
        head_mask=head_mask,
        output_attentions=True,
        output_hidden_states=True,
    )
    for layer in range(config.num_hidden_layers):
        want = derived_attention(
            params,
            layer,
            np.asarray(output.hidden_states[layer], np.float64),
            kind=kind,
            head_mask=head_mask,
        )
        np.testing.assert_allclose(output.attentions[layer], want, atol=OUTPUT)


def test_head_mask_is_soft_and_differentiable():
    model = BertModel(SMALL)
    params = random_params(model)
    batch = inputs(SMALL)

    def total(head_mask):
        output = apply(model, params, **batch, head_mask=head_mask)
        return jnp.sum(output.last_hidden_state[:, 0, 0] ** 2)

    ones = jnp.ones((3, 4))
    grad = jax.grad(total)(ones)
    assert np.all(np.asarray(grad) != 0)
    step = 1e-2 * jnp.zeros((3, 4)).at[1, 2].set(1.0)
    slope = (total(ones + step) - total(ones - step)) / 2e-2
    np.testing.assert_allclose(slope, grad[1, 2], rtol=2e-2)
    # One row for all layers, one for each, and the full form say the same.
    row = jnp.array([1.0, 0.5, 0.0, 0.25])
    by_layer = jnp.broadcast_to(row, (3, 4))
    full = jnp.broadcast_to(by_layer[:, None, :, None, None], (3, BATCH, 4, LENGTH, LENGTH))
    assert total(row) == total(by_layer)
    np.testing.assert_allclose(total(row), total(full), rtol=1e-6)
    assert total(row) != total(ones)
    pruned = apply(model, params, **batch, head_mask=row, output_attentions=True)
    assert all(np.all(np.asarray(a)[:, 2] == 0) for a in pruned.attentions)


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

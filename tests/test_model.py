"""The encoder and the pretraining model against transformers (torch), live."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from bertjax.heads import BertForPreTraining
from bertjax.model import BertModel
from bertjax.pretrained import names, save_pretrained
from tests.models import BATCH, LENGTH, SMALL, apply, inputs, random_params

CONFIGS = {
    "erf": SMALL,
    "tanh": dataclasses.replace(SMALL, hidden_act="gelu_new", num_attention_heads=1),
    "untied": dataclasses.replace(SMALL, tie_word_embeddings=False, num_hidden_layers=1),
    "relu, wide epsilon": dataclasses.replace(SMALL, hidden_act="relu", layer_norm_eps=1e-3),
}
OUTPUT, LOSS, GRADIENT = 2e-5, 1e-5, 1e-4


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
        # transformers' eager attention adds four-dimensional masks as they are.
        attention_mask=torch.where(
            torch.tensor(mask[:, None] != 0), 0.0, torch.finfo(torch.float32).min
        ),
    )
    assert_close(ours.last_hidden_state, theirs.last_hidden_state, OUTPUT)


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
    # Untied, transformers trains the bias under the decoder's name and leaves the other one alone.
    unused = names.DECODER_BIAS if config.tie_word_embeddings else names.BIAS
    peer_grads = {n: p.grad.numpy() for n, p in peer.named_parameters() if n != unused}
    if not config.tie_word_embeddings:
        peer_grads[names.BIAS] = peer_grads.pop(names.DECODER_BIAS)
    seen = set()
    for path, leaf in names.parameters(grads):
        for tensor in names.hf_tensors(path, leaf.shape):
            want = peer_grads[tensor.name]
            # The gradient of a key's bias is zero but for rounding: softmax does not see it.
            floor = 1e-3 if tensor.name.endswith("key.bias") else 0.0
            error = np.abs(tensor.encode(np.asarray(leaf)) - want).max()
            assert error <= GRADIENT * max(np.abs(want).max(), floor), tensor.name
            seen.add(tensor.name)
    assert seen == peer_grads.keys()


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

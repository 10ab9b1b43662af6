"""A small encoder to fine-tune, with a vocabulary of its own, and models with heads like it."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

import bertjax
from bertjax import BertConfig, BertModel, save_pretrained
from bertjax.data.tasks import find_task
from bertjax.data.vocab import build_vocab
from bertjax.pretrained import abstract_params
from bertjax.run_config import VocabConfig
from bertjax.sharding import path_of
from bertjax.tokenizer import BertTokenizer

DATA = Path(__file__).parent / "data"
CONFIG = BertConfig(
    vocab_size=1500,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=128,
    max_position_embeddings=96,
    initializer_range=0.1,
    scan_unroll=1,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)


def save_base(directory, **fields):
    """Write the encoder, with other fields of its config, to `directory`/model; return that."""
    words = directory / "words.txt"
    build_vocab(VocabConfig((str(DATA / "text" / "holmes.txt"),), str(words), 1500))
    model = BertModel(dataclasses.replace(CONFIG, **fields))
    tokenizer = BertTokenizer.from_vocab(words, model_max_length=96)
    params = jax.jit(model.init)(jax.random.key(0), model.init_ids)["params"]
    save_pretrained(directory / "model", model, params, tokenizer)
    return directory / "model"


def save_for_task(directory, base, name, **fields):
    """Write a model with the head of a task, all of it random; return `directory`."""
    task = find_task(name)
    count = {"regression": 1}.get(task.family, 2)
    fields = {"num_labels": count, "id2label": task.labels, **fields}
    if task.family == "multiple_choice":
        fields |= {"id2label": ()}
    config = dataclasses.replace(CONFIG, problem_type=task.problem_type, **fields)
    model = getattr(bertjax, task.head)(config)
    rng = np.random.default_rng(0)
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.float32(
            0.1 * rng.standard_normal(leaf.shape) + ("scale" in path_of(path))
        ),
        abstract_params(model),
    )
    save_pretrained(directory, model, params, BertTokenizer.from_pretrained(base))
    return directory

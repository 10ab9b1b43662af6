"""Makes the stored models of this directory with transformers 4, the last that had Flax models.

Run in an environment of its own, from this directory:

    pip install transformers==4.57.6 flax==0.10.6 jax==0.6.2 "numpy<2.3" torch==2.13.0
    python make.py

Each directory is what `save_pretrained` wrote for a small model with random parameters; NAME.npz
holds the inputs and what the model made of them. The generators of the random numbers are seeded,
so that running this again changes nothing but, perhaps, last digits in the .npz files.
"""

import json
import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
SIZES = {
    "vocab_size": 30,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 10,
    "initializer_range": 0.3,
}
FLAX = {
    "BertModel": {},
    "BertForPreTraining": {},
    "BertForMaskedLM": {},
    "BertForNextSentencePrediction": {},
    "BertForSequenceClassification": {"num_labels": 3},
    "BertForMultipleChoice": {},
    "BertForTokenClassification": {"num_labels": 5},
    "BertForQuestionAnswering": {},
}
TORCH = {
    "relative_key": {"position_embedding_type": "relative_key"},
    "relative_key_query": {"position_embedding_type": "relative_key_query"},
}


def inputs(name):
    """Ragged rows of three tokens and more; multiple choice has two choices a row."""
    rng = np.random.default_rng(len(name))
    rows = 4
    lengths = np.array([8, 5, 3, 7])
    arrays = {
        "input_ids": rng.integers(1, SIZES["vocab_size"], (rows, 8), dtype=np.int32),
        "attention_mask": (np.arange(8) < lengths[:, None]).astype(np.int32),
        "token_type_ids": rng.integers(0, 2, (rows, 8), dtype=np.int32),
    }
    if name == "BertForMultipleChoice":
        arrays = {key: value.reshape(2, 2, 8) for key, value in arrays.items()}
    return arrays


def save(directory, model, outputs, arrays, **options):
    model.save_pretrained(directory, **options)
    arrays |= {key: np.asarray(value) for key, value in outputs.items()}
    np.savez_compressed(f"{directory}.npz", **arrays)
    config = json.loads((directory / "config.json").read_text())
    print(directory.name, config["architectures"], {k: v.shape for k, v in arrays.items()})


def flax_model(name, directory, dtype="float32", **options):
    settings = FLAX[name] | options.pop("settings", {})
    config = transformers.BertConfig(**SIZES, **settings)
    model = getattr(transformers, f"Flax{name}")(config, seed=len(name))
    rng = np.random.default_rng(len(name))
    model.params = jax.tree.map(
        lambda x: (np.asarray(x) + 0.1 * rng.standard_normal(x.shape)).astype(dtype), model.params
    )
    # Computed in float32 whatever the type of the parameters, as a model that reads them does.
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), model.params)
    arrays = inputs(name)
    save(HERE / directory, model, model(**arrays, params=params), arrays, **options)


def torch_model(directory, settings, **options):
    torch.manual_seed(0)
    config = transformers.BertConfig(**SIZES, **settings)
    model = transformers.BertForMaskedLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        arrays = inputs(directory)
        outputs = model(**{key: torch.tensor(value) for key, value in arrays.items()})
    save(HERE / directory, model, outputs, arrays, safe_serialization=False, **options)


def main():
    for name in FLAX:
        flax_model(name, f"flax_{name}")
    untied = {"tie_word_embeddings": False}
    flax_model("BertForMaskedLM", "flax_untied", settings=untied)
    flax_model("BertForPreTraining", "flax_sharded", max_shard_size="5KB")
    flax_model("BertModel", "flax_bfloat16", dtype=jax.numpy.bfloat16)
    flax_model("BertModel", "flax_float16", dtype="float16")
    for name, settings in TORCH.items():
        torch_model(f"torch_{name}", settings)
    torch_model("torch_sharded", {}, max_shard_size="5KB")


if __name__ == "__main__":
    main()

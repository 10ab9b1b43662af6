"""Train a few steps on several meshes and print the losses as JSON.

Run with 8 virtual devices, as one process or as one of two (see test_train.py).
"""

import dataclasses
import json
import sys

import jax
import numpy as np

from bertjax import sharding, train
from bertjax.config import BertConfig
from bertjax.heads import BertForPreTraining
from bertjax.objectives import PretrainingObjective
from bertjax.optimizer import optimizer
from bertjax.run_config import MeshConfig, OptimizerConfig

STEPS = 5
BATCH, LENGTH, PREDICTIONS = 32, 24, 4
CONFIG = BertConfig(
    vocab_size=512,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=128,
    max_position_embeddings=32,
    scan_unroll=1,
)
ODD = dataclasses.replace(CONFIG, vocab_size=511)  # which no mesh divides


def batches(rows):
    """STEPS batches with very unequal numbers of masked tokens per row; `rows` of each."""
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        counts = rng.integers(0, PREDICTIONS + 1, BATCH)
        lengths = rng.integers(LENGTH // 3, LENGTH + 1, BATCH)
        batch = {
            "input_ids": rng.integers(0, CONFIG.vocab_size, (BATCH, LENGTH), dtype=np.int32),
            "token_type_ids": rng.integers(0, 2, (BATCH, LENGTH), dtype=np.int32),
            "attention_mask": (np.arange(LENGTH) < lengths[:, None]).astype(np.int32),
            "mlm_positions": np.sort(
                rng.integers(1, LENGTH // 3, (BATCH, PREDICTIONS), dtype=np.int32)
            ),
            "mlm_labels": rng.integers(0, CONFIG.vocab_size, (BATCH, PREDICTIONS), dtype=np.int32),
            "mlm_weights": (np.arange(PREDICTIONS) < counts[:, None]).astype(np.float32),
            "next_sentence_label": rng.integers(0, 2, BATCH, dtype=np.int32),
        }
        yield {name: array[slice(*rows)] for name, array in batch.items()}


def losses(
    mesh_config, *, config=CONFIG, devices=None, accumulation_steps=1, dropout=0.1, fingerprint=None
):
    """Train STEPS steps and return the loss and gradient norm of each."""
    config = dataclasses.replace(
        config, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout
    )
    mesh = sharding.make_mesh(mesh_config, devices)
    objective = PretrainingObjective(BertForPreTraining(config))
    tx = optimizer(OptimizerConfig(learning_rate=1e-2, warmup_steps=2), STEPS)
    state, shardings = train.init_state(objective, tx, mesh, seed=0)
    if fingerprint is not None:
        fingerprint(state, mesh)
    step = train.make_train_step(
        objective, tx, mesh, shardings, seed=1, accumulation_steps=accumulation_steps
    )
    values = []
    for batch in batches(sharding.host_rows(mesh, BATCH)):
        state, metrics = step(state, sharding.global_batch(batch, mesh, BATCH))
        values.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    return values


def placement(found):
    """Return a callback that notes how each parameter lies on the mesh."""

    def look(state, mesh):
        for key_path, leaf in jax.tree_util.tree_leaves_with_path(state):
            path = sharding.path_of(key_path)
            shard = leaf.addressable_shards[0].data.shape
            found[path] = [list(leaf.shape), list(shard)]

    return look


def main():
    if sys.argv[1] == "meshes":
        found = {}
        odd = {}
        result = {
            "1x1x1": losses(MeshConfig(1, 1, 1), devices=jax.devices()[:1]),
            "8x1x1": losses(MeshConfig(8, 1, 1)),
            "1x8x1": losses(MeshConfig(1, 8, 1)),
            "2x2x2": losses(MeshConfig(2, 2, 2), fingerprint=placement(found)),
            "odd 1x1x1": losses(MeshConfig(1, 1, 1), config=ODD, devices=jax.devices()[:1]),
            "odd 1x8x1": losses(MeshConfig(1, 8, 1), config=ODD, fingerprint=placement(odd)),
            "odd placement": odd,
            "accumulation 1": losses(MeshConfig(2, 2, 2), dropout=0.0),
            "accumulation 4": losses(MeshConfig(2, 2, 2), dropout=0.0, accumulation_steps=4),
            "placement": found,
        }
    else:
        process = int(sys.argv[2])
        if sys.argv[1] == "two":
            jax.distributed.initialize(sys.argv[3], num_processes=2, process_id=process)
        result = {
            "devices": len(jax.devices()),
            "local": len(jax.local_devices()),
            "4x2x1": losses(MeshConfig(4, 2, 1)),
            "2x2x2": losses(MeshConfig(2, 2, 2)),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""One step of a pruned, partly frozen model with adapters, on two meshes; prints norms as JSON.

Run with 8 virtual devices (see test_partition.py).
"""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from bertjax import lora, sharding
from bertjax.heads import BertForPreTraining
from bertjax.objectives import PretrainingObjective
from bertjax.optimizer import optimizer
from bertjax.pretrained import abstract_params, names
from bertjax.run_config import MeshConfig, OptimizerConfig
from tests.workers.meshes import BATCH, CONFIG, batches

# Three heads are left, which the model axis does not divide.
MODEL = BertForPreTraining(dataclasses.replace(CONFIG, pruned_heads={0: [1], 1: [2, 3]}))
LORA = lora.LoraConfig(targets=("query", "attention/output", "intermediate"))
OPTIMIZER = OptimizerConfig(
    schedule="constant", freeze=("embeddings", "layer/0", "pooler"), layer_decay=0.8
)


def random_like(tree):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: np.float32(0.05 * rng.standard_normal(x.shape)), tree)


def one_step(mesh):
    """Norms of the parameters' updates and of the adapters' gradient, and how moments lie."""
    params = random_like(abstract_params(MODEL))
    shapes = jax.eval_shape(lambda: lora.init(jax.random.key(1), params, LORA))
    adapters = random_like(shapes)  # on every device
    params = jax.device_put(params, sharding.state_shardings(params, mesh))
    tx = optimizer(OPTIMIZER, 3)
    lies = sharding.state_shardings(jax.eval_shape(tx.init, params), mesh)
    state = jax.jit(tx.init, out_shardings=lies)(params)
    objective = PretrainingObjective(MODEL)
    batch = next(batches(sharding.host_rows(mesh, BATCH)))

    @jax.jit
    def step(params, adapters, state, batch):
        def loss(params, adapters):
            sums = objective.sums(lora.merge(params, adapters, LORA), batch, None)
            return sums["mlm_loss"].mean() + sums["sentence_loss"].mean()

        gradients = jax.grad(loss, (0, 1))(params, adapters)
        updates, state = tx.update(gradients[0], state, params)
        return jax.tree.map(jnp.linalg.norm, {"updates": updates, "adapters": gradients[1]}), state

    with jax.set_mesh(mesh):
        batch = sharding.global_batch(batch, mesh, BATCH)
        norms, state = step(params, adapters, state, batch)
    return {
        "norms": {path: float(norm) for path, norm in names.parameters(norms)},
        "shards": {
            path: [leaf.shape, leaf.addressable_shards[0].data.shape]
            for path, leaf in names.parameters(state)
        },
    }


def main():
    found = {}
    for shape in ((1, 1, 1), (2, 2, 2)):
        mesh = sharding.make_mesh(MeshConfig(*shape), jax.devices()[: np.prod(shape)])
        found["x".join(map(str, shape))] = one_step(mesh)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()

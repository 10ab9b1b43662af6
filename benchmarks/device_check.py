"""Check the accelerator against the CPU: the same loss and gradients in float32 and bfloat16.

    python benchmarks/device_check.py

Exits with 1 where an error, relative to the norm of the CPU's float32 result, is over its bound.
"""

import argparse
import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
from pretrain_step import make_batch

from bertjax.config import BertConfig
from bertjax.heads import BertForPreTraining
from bertjax.objectives import PretrainingObjective
from bertjax.train import loss_and_grads

# float32 matrix products at "highest" precision, as on the CPU; bfloat16 has 8 bits of mantissa.
BOUNDS = {"float32": 1e-4, "bfloat16": 3e-2}


def run(device, config, batch, dtype, dropout):
    """Return (losses, gradients as one vector) on a device."""
    rate = 0.1 if dropout else 0.0
    config = dataclasses.replace(
        config, hidden_dropout_prob=rate, attention_probs_dropout_prob=rate
    )
    objective = PretrainingObjective(BertForPreTraining(config, dtype=jnp.dtype(dtype)))
    with jax.default_device(device), jax.default_matmul_precision("highest"):
        params = jax.jit(objective.init)(jax.random.key(0))
        sums, grads = jax.jit(lambda p, b, k: loss_and_grads(objective, p, b, k))(
            params, batch, jax.random.key(1)
        )
        vector = np.concatenate([np.asarray(g, np.float64).ravel() for g in jax.tree.leaves(grads)])
    return {name: float(pair.mean()) for name, pair in sums.items()}, vector


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="small")
    parser.add_argument("--batch-size", type=int, default=16)
    arguments = parser.parse_args()
    cpu, device = jax.devices("cpu")[0], jax.devices()[0]
    print(f"{device.device_kind} ({device.platform}) against the CPU, jax {jax.__version__}")
    failed = False
    for length in (128, 512):
        config = BertConfig.preset(arguments.size)
        batch = make_batch(config.vocab_size, arguments.batch_size, length)
        for dropout in (False, True):
            want, want_grads = run(cpu, config, batch, "float32", dropout)
            for dtype, bound in BOUNDS.items():
                got, got_grads = run(device, config, batch, dtype, dropout)
                error = np.linalg.norm(got_grads - want_grads) / np.linalg.norm(want_grads)
                loss_error = abs(got["mlm_loss"] - want["mlm_loss"]) / want["mlm_loss"]
                bad = not (error < bound and loss_error < bound)
                failed |= bad
                print(
                    f"T={length} {dtype:9} dropout {dropout!s:5}: MLM loss {got['mlm_loss']:.6f} "
                    f"(CPU {want['mlm_loss']:.6f}), gradients off by {error:.2e} of their norm"
                    + ("  OVER THE BOUND" if bad else "")
                )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

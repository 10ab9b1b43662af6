"""One pretraining step (MLM+NSP, dropout on, AdamW) of bertjax and of transformers on torch.

    python benchmarks/pretrain_step.py --size tiny --size small            # float32 on a CPU
    python benchmarks/pretrain_step.py --size base --size large --length 128 --length 512 \
        --batch-size 256 --dtype bfloat16                                  # on a GPU

Both sides get the same rows and the same clipping, decay and learning rate. torch runs eager and
compiled, each with the MLM head on all positions, as transformers ships it, and on the gathered
positions alone, which is the stronger variant and does the same work as bertjax. Every
side has a process of its own; rounds alternate. Printed are medians, ratios of medians, and the
spread of the rounds.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import time
from pathlib import Path

import numpy as np
from sides import Sides


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", action="append", help="preset; may be given again")
    parser.add_argument("--length", action="append", type=int, help="tokens a row (default 128)")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="time of one round of one side")
    parser.add_argument("--cores", type=int, default=0, help="pin to so many cores; 0: all")
    parser.add_argument("--no-compile", action="store_true", help="leave compiled torch out")
    parser.add_argument("--no-torch", action="store_true", help="bertjax alone")
    parser.add_argument("--scan-unroll", type=int, action="append", help="bertjax variants")
    parser.add_argument("--remat", action="store_true", help="bertjax with recomputed layers")
    parser.add_argument("--output", type=Path, help="append the results to this JSONL file")
    return parser.parse_args()


def make_batch(vocab_size, rows, length):
    """Rows of realistic padding: nine of ten full, the others of any length (google's 0.1)."""
    rng = np.random.default_rng(0)
    predictions = round(0.15 * length) + 1
    lengths = np.where(rng.random(rows) < 0.1, rng.integers(16, length + 1, rows), length)
    lengths[0] = length
    positions = np.stack(
        [np.sort(rng.choice(np.arange(1, 15), predictions, replace=predictions > 14))
         if n < predictions + 2 else np.sort(rng.choice(np.arange(1, n - 1), predictions, False))
         for n in lengths]
    )  # fmt: skip
    counts = np.minimum(np.maximum(1, np.round(lengths * 0.15)), predictions)
    return {
        "input_ids": rng.integers(5, vocab_size, (rows, length), dtype=np.int32),
        "token_type_ids": (np.arange(length) >= lengths[:, None] // 2).astype(np.int32),
        "attention_mask": (np.arange(length) < lengths[:, None]).astype(np.int32),
        "mlm_positions": positions.astype(np.int32),
        "mlm_labels": rng.integers(5, vocab_size, (rows, predictions), dtype=np.int32),
        "mlm_weights": (np.arange(predictions) < counts[:, None]).astype(np.float32),
        "next_sentence_label": rng.integers(0, 2, rows, dtype=np.int32),
    }


class Bertjax:
    """The library's own sharded step, on all devices JAX sees."""

    def __init__(self, config, batch, dtype):
        import jax
        import jax.numpy as jnp

        from bertjax import sharding, train
        from bertjax.devices import open_mesh
        from bertjax.heads import BertForPreTraining
        from bertjax.objectives import PretrainingObjective
        from bertjax.optimizer import optimizer
        from bertjax.run_config import MeshConfig, OptimizerConfig
        from bertjax.unstacked import one_by_one

        mesh = open_mesh(MeshConfig(), batch_size=len(batch["input_ids"]))  # as the commands do
        objective = PretrainingObjective(BertForPreTraining(config, dtype=jnp.dtype(dtype)))
        tx = optimizer(OptimizerConfig(schedule="constant", eps=1e-8), 1000)
        self.state, shardings = train.init_state(objective, tx, mesh, seed=0)
        if train.prefers_layers_apart(config, mesh):
            self.state = one_by_one(self.state)
        rows = len(batch["input_ids"])
        self.batch = sharding.global_batch(batch, mesh, rows)
        start = time.perf_counter()
        self.function = train.make_train_step(objective, tx, mesh, shardings, seed=1)
        self.loss = None
        self.step()
        self.finish()
        self.first_seconds = time.perf_counter() - start
        self.device = jax.devices()[0]

    def step(self):
        self.state, metrics = self.function(self.state, self.batch)
        self.loss = metrics["loss"]

    def finish(self):
        return float(self.loss)

    def device_memory(self):
        stats = self.device.memory_stats() or {}
        return stats.get("peak_bytes_in_use")


class Torch:
    """transformers' BertForPreTraining with AdamW; optionally gathered and compiled."""

    def __init__(self, config, batch, dtype, *, gathered, compiled):
        import torch
        import transformers

        self.torch = torch
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(0)
        peer = transformers.BertConfig(**{
            name: getattr(config, name)
            for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
                         "intermediate_size", "max_position_embeddings", "hidden_dropout_prob",
                         "attention_probs_dropout_prob")
        })  # fmt: skip
        self.model = transformers.BertForPreTraining._from_config(
            peer, attn_implementation="sdpa"
        ).to(self.device)
        decay, plain = [], []
        for name, p in self.model.named_parameters():
            (plain if name.endswith("bias") or "LayerNorm" in name else decay).append(p)
        self.optimizer = torch.optim.AdamW(
            [{"params": decay, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}],
            lr=1e-4,
            fused=self.device.type == "cuda",
        )
        arrays = {
            name: torch.tensor(
                array, dtype=torch.float32 if array.dtype.kind == "f" else torch.long
            )
            for name, array in batch.items()
        }
        self.batch = {name: tensor.to(self.device) for name, tensor in arrays.items()}
        labels = torch.where(self.batch["mlm_weights"] > 0, self.batch["mlm_labels"], -100)
        if gathered:
            self.labels = labels
        else:
            self.labels = torch.full_like(self.batch["input_ids"], -100)
            self.labels.scatter_(1, self.batch["mlm_positions"], labels)
        self.gathered = gathered
        self.autocast = dtype == "bfloat16"
        self.compute = torch.compile(self._loss) if compiled else self._loss
        start = time.perf_counter()
        self.step()
        self.finish()
        self.first_seconds = time.perf_counter() - start

    def _loss(self):
        torch, batch, model = self.torch, self.batch, self.model
        output = model.bert(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            token_type_ids=batch["token_type_ids"],
        )
        hidden = output.last_hidden_state
        if self.gathered:
            index = batch["mlm_positions"][:, :, None].expand(-1, -1, hidden.shape[-1])
            hidden = hidden.gather(1, index)
        scores, pairs = model.cls(hidden, output.pooler_output)
        loss = torch.nn.functional.cross_entropy
        return loss(scores.float().flatten(0, 1), self.labels.flatten()) + loss(
            pairs.float(), batch["next_sentence_label"]
        )

    def step(self):
        torch = self.torch
        self.model.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            self.loss = self.compute()
        self.loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def finish(self):
        return float(self.loss.detach())

    def device_memory(self):
        if self.device.type == "cuda":
            return self.torch.cuda.max_memory_allocated()
        return None


def time_round(side, seconds):
    """Return the seconds of one step, over a round of about the given time."""
    side.step()
    side.finish()
    start = time.perf_counter()
    steps = 0
    while not steps or time.perf_counter() - start < seconds:
        side.step()
        steps += 1
        side.finish()  # a training loop reads the loss of every step too
    return (time.perf_counter() - start) / steps


def serve(pipe, side_class, options):
    """Be one side in a process of its own: its idle threads cannot spin into another's rounds."""
    side = side_class(**options)
    pipe.send({"device": str(side.device), "first": side.first_seconds})
    while (seconds := pipe.recv()) is not None:
        pipe.send(time_round(side, seconds))
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    pipe.send({"device": side.device_memory(), "resident": resident})


def sides_of(arguments, size, batch):
    """Return name -> (class, arguments) of everything to compare."""
    from bertjax.config import BertConfig

    config = BertConfig.preset(size)
    common = {"batch": batch, "dtype": arguments.dtype}
    sides = {}
    for unroll in arguments.scan_unroll or [0]:
        name = "bertjax" + (f", scan_unroll={unroll}" if unroll else "")
        variant = dataclasses.replace(config, remat=arguments.remat, scan_unroll=unroll)
        sides[name] = (Bertjax, {"config": variant, **common})
    if not arguments.no_torch:
        for compiled in (False,) if arguments.no_compile else (False, True):
            for gathered in (True, False):
                name = f"torch {'compiled' if compiled else 'eager'}, " + (
                    "gathered head" if gathered else "head on all positions"
                )
                options = {"config": config, "gathered": gathered, "compiled": compiled}
                sides[name] = (Torch, options | common)
    return sides


def compare(arguments, size, length):
    """Measure all sides in alternating rounds; return a result of each."""
    from bertjax.config import BertConfig
    from bertjax.flops import train_flops

    config = BertConfig.preset(size)
    batch = make_batch(config.vocab_size, arguments.batch_size, length)
    predictions = batch["mlm_positions"].shape[1]
    sides = Sides(serve, sides_of(arguments, size, batch))
    rounds = sides.rounds(arguments.rounds, arguments.seconds)
    results = []
    for name, memory in sides.end().items():
        median = statistics.median(rounds[name])
        flops = arguments.batch_size * train_flops(config, length, predictions)
        results.append(
            {
                "size": size, "length": length, "predictions": predictions,
                "batch_size": arguments.batch_size, "dtype": arguments.dtype, "side": name,
                "seconds": median, "rounds": rounds[name], "tflops": flops / median / 1e12,
                "memory": memory, **sides.started[name],
            }
        )  # fmt: skip
    return results


def show(results):
    """Print the results of one size and length as a table."""
    first = results[0]
    print(
        f"\n{first['size']}, batch {first['batch_size']}, T={first['length']}, "
        f"M={first['predictions']}, {first['dtype']}, {first['device']}"
    )
    print(
        f"{'':38}{'ms/step':>10}{'spread':>16}{'seq/s':>9}{'TFLOP/s':>9}{'of ours':>9}"
        f"{'1st step s':>12}{'device MB':>11}{'resident MB':>13}"
    )
    for result in results:
        times, memory = result["rounds"], result["memory"]
        device = "" if memory["device"] is None else f"{memory['device'] / 2**20:.0f}"
        print(
            f"{result['side']:38}{1e3 * result['seconds']:10.1f}"
            f"{1e3 * min(times):9.1f}-{1e3 * max(times):<6.1f}"
            f"{result['batch_size'] / result['seconds']:9.1f}{result['tflops']:9.3f}"
            f"{result['seconds'] / first['seconds']:9.2f}{result['first']:12.1f}"
            f"{device:>11}{memory['resident'] / 2**20:13.0f}",
            flush=True,
        )


def main():
    arguments = parse_arguments()
    if arguments.cores:
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: arguments.cores]))
    packages = ["jax", "flax", "optax"] + ([] if arguments.no_torch else ["torch", "transformers"])
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    print(f"{len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}, {versions}")
    print("TFLOP/s count the gathered head for every side: the work that is asked for")
    for size in arguments.size or ["tiny", "small"]:
        for length in arguments.length or [128]:
            results = compare(arguments, size, length)
            show(results)
            if arguments.output:
                with arguments.output.open("a") as file:
                    file.writelines(json.dumps(result) + "\n" for result in results)


if __name__ == "__main__":
    main()

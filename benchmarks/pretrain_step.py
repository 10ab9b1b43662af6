"""One pretraining step (MLM+NSP, dropout on, AdamW) of bertjax and of transformers on torch.

    python benchmarks/pretrain_step.py --size tiny --size small            # float32 on a CPU
    python benchmarks/pretrain_step.py --size base --size large --length 128 --length 512 \
        --batch-size 256 --dtype bfloat16                                  # on a GPU

Both sides get the same rows and the same clipping, decay and learning rate. torch runs eager and
compiled, each with the MLM head on all positions, as transformers ships it, and on the gathered
positions alone, which is the stronger variant and does the same work as bertjax. Rounds alternate;
what is printed are medians, ratios of medians, and the spread of the rounds.
"""

import argparse
import gc
import json
import os
import platform
import resource
import statistics
import time
from pathlib import Path

import numpy as np


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
        from bertjax.heads import BertForPreTraining
        from bertjax.objectives import PretrainingObjective
        from bertjax.optimizer import optimizer
        from bertjax.run_config import MeshConfig, OptimizerConfig

        mesh = sharding.make_mesh(MeshConfig())
        objective = PretrainingObjective(BertForPreTraining(config, dtype=jnp.dtype(dtype)))
        tx = optimizer(OptimizerConfig(schedule="constant", eps=1e-8), 1000)
        self.state, shardings = train.init_state(objective, tx, mesh, seed=0)
        rows = len(batch["input_ids"])
        self.batch = sharding.global_batch(batch, mesh, rows)
        start = time.perf_counter()
        self.function = train.make_train_step(objective, tx, mesh, shardings, seed=1)
        self.loss = None
        self.step()
        self.finish()
        self.compile_seconds = time.perf_counter() - start
        self.device = jax.devices()[0]

    def step(self):
        self.state, metrics = self.function(self.state, self.batch)
        self.loss = metrics["loss"]

    def finish(self):
        return float(self.loss)

    def peak_memory(self):
        stats = self.device.memory_stats() or {}
        return stats.get("peak_bytes_in_use")


class Torch:
    """transformers' BertForPreTraining with AdamW; optionally gathered and compiled."""

    def __init__(self, config, batch, dtype, *, gathered, compiled):
        import torch
        import transformers

        self.torch = torch
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
        self.compile_seconds = time.perf_counter() - start

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

    def peak_memory(self):
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


def compare(arguments, size, length):
    from bertjax.config import BertConfig
    from bertjax.flops import train_flops

    config = BertConfig.preset(size, remat=arguments.remat)
    batch = make_batch(config.vocab_size, arguments.batch_size, length)
    sides = {}
    for unroll in arguments.scan_unroll or [0]:
        name = "bertjax" if unroll == 0 else f"bertjax, scan_unroll={unroll}"
        variant = BertConfig.preset(size, remat=arguments.remat, scan_unroll=unroll)
        sides[name] = Bertjax(variant, batch, arguments.dtype)
    if not arguments.no_torch:
        for compiled in (False,) if arguments.no_compile else (False, True):
            for gathered in (True, False):
                name = f"torch {'compiled' if compiled else 'eager'}, " + (
                    "gathered head" if gathered else "head on all positions"
                )
                sides[name] = Torch(
                    config, batch, arguments.dtype, gathered=gathered, compiled=compiled
                )
    rounds = {name: [] for name in sides}
    for _ in range(arguments.rounds):
        for name, side in sides.items():
            rounds[name].append(time_round(side, arguments.seconds))
    predictions = batch["mlm_positions"].shape[1]
    flops = arguments.batch_size * train_flops(config, length, predictions)
    ours = statistics.median(rounds["bertjax"])
    print(f"\n{size}, batch {arguments.batch_size}, T={length}, M={predictions}, {arguments.dtype}")
    print(
        f"{'':38}{'ms/step':>10}{'spread':>14}{'seq/s':>9}{'TFLOP/s':>9}{'of ours':>9}"
        f"{'1st step s':>12}{'peak MB':>9}"
    )
    results = []
    for name, times in rounds.items():
        median = statistics.median(times)
        memory = sides[name].peak_memory()
        tflops = flops / median / 1e12
        print(
            f"{name:38}{1e3 * median:10.1f}"
            f"{1e3 * min(times):7.1f}-{1e3 * max(times):<6.1f}"
            f"{arguments.batch_size / median:9.1f}{tflops:9.3f}{median / ours:9.2f}"
            f"{sides[name].compile_seconds:12.1f}"
            f"{'' if memory is None else f'{memory / 2**20:.0f}':>9}"
        )
        results.append(
            {
                "size": size, "length": length, "batch_size": arguments.batch_size,
                "dtype": arguments.dtype, "side": name, "seconds": median, "rounds": times,
                "tflops": tflops, "peak_bytes": memory,
            }
        )  # fmt: skip
    if arguments.output:
        with arguments.output.open("a") as file:
            file.writelines(json.dumps(result) + "\n" for result in results)
    sides.clear()
    gc.collect()


def main():
    arguments = parse_arguments()
    if arguments.cores:
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: arguments.cores]))
    import jax

    versions = {"python": platform.python_version(), "jax": jax.__version__}
    if not arguments.no_torch:
        import torch
        import transformers

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        versions |= {"torch": torch.__version__, "transformers": transformers.__version__}
    print(f"{jax.devices()[0].device_kind}, {len(os.sched_getaffinity(0))} cores,", versions)
    print("TFLOP/s count the gathered head for every side: the work that is asked for")
    for size in arguments.size or ["tiny", "small"]:
        for length in arguments.length or [128]:
            compare(arguments, size, length)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"\npeak resident memory of this process: {peak / 1024:.0f} MB")


if __name__ == "__main__":
    main()

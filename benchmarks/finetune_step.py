"""Fine-tuning steps (dropout on, AdamW, clipping) of bertjax and of transformers on torch.

    python benchmarks/finetune_step.py --data sst2=train.tsv --data squad=train-v1.1.json

Each side makes batches of the rows as it does best: bertjax of rows that hold several texts each
(`--pack`), and in another side of one bucket's width; torch sorted by length within pools and
padded to the longest. Of a whole epoch's batches, ordered by length, every
side trains on as many, evenly spaced. A round is a pass over these, read loss included; every side
has a process of its own, and rounds alternate. Printed are medians in examples a second, their
ratio, the spread of the rounds, and the first pass, which compiles a step for each bucket. Where
there are few rows, as in the excerpts taken by default, they are repeated until batches are full.
"""

import argparse
import dataclasses
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import time
from pathlib import Path

import numpy as np
from finetune_scores import make_optimizer, make_peer, shuffled_batches, tensors
from sides import Sides

EXCERPTS = Path(__file__).parent.parent / "tests" / "data" / "tasks"
DATA = [
    f"banking77={EXCERPTS / 'banking77/train.csv'}",
    f"snli={EXCERPTS / 'snli/dev.csv'}",
    f"squad={EXCERPTS / 'squad/new_wiki.json'}",
]


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", action="append", help="TASK=FILE; may be given again")
    parser.add_argument("--init-from", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--batches", type=int, default=16, help="batches of a round")
    parser.add_argument("--longest", type=int, default=384, help="tokens of the longest row")
    parser.add_argument("--max-widths", type=int, default=8, help="as of bertjax finetune")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cores", type=int, default=0, help="pin to so many cores; 0: all")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="count processor time instead: on a busy machine, with --cores 1",
    )
    parser.add_argument(
        "--compile", action="store_true", help="compiled torch too (dynamic shapes)"
    )
    parser.add_argument("--no-torch", action="store_true", help="bertjax alone")
    parser.add_argument("--output", type=Path, help="append the results to this JSONL file")
    return parser.parse_args()


def make_rows(arguments, data):
    """Return the rows of a data set, at least as many as the batches take."""
    from bertjax.data import features
    from bertjax.tokenizer import BertTokenizer

    examples = data.examples
    wanted = arguments.batches * arguments.batch_size
    if len(examples) < wanted:
        examples = tuple(itertools.islice(itertools.cycle(examples), wanted))
        if data.task.family == "question_answering":
            # The windows of a question belong to its name.
            named = enumerate(examples)
            examples = tuple(dataclasses.replace(example, id=str(n)) for n, example in named)
    tokenizer = BertTokenizer.from_pretrained(arguments.init_from)
    data = dataclasses.replace(data, examples=examples)
    return features.make_rows(data, tokenizer, arguments.longest)


def spaced(batches, count):
    """Return so many batches, evenly spaced from the narrowest to the widest."""
    batches = sorted(batches, key=lambda batch: int(shown(batch).sum()))
    return [batches[int((i + 0.5) * len(batches) / count)] for i in range(count)]


def bucketed(arguments, rows):
    """Return batches as `bertjax finetune` makes them."""
    from bertjax.data.bucketing import steps_per_epoch, training_batches

    size = arguments.batch_size
    epoch = training_batches(rows, size, seed=0, max_widths=arguments.max_widths)
    return spaced(itertools.islice(epoch, steps_per_epoch(rows, size)), arguments.batches)


def packed(arguments, rows):
    """Return batches as `bertjax finetune --pack` makes them."""
    from bertjax.data.packing import pack, packed_batches

    packing = pack(rows.lengths, arguments.batch_size, arguments.longest)
    epoch = packed_batches(rows, packing, seed=0)
    return spaced(itertools.islice(epoch, packing.steps_per_epoch), arguments.batches)


def shown(batch):
    """Return where a batch has tokens, as 1 and 0."""
    return (
        batch["attention_mask"] if "attention_mask" in batch else (batch["texts"] > 0).astype(int)
    )


def padded_to_longest(arguments, rows):
    """Return batches sorted by length within pools, as for transformers."""
    lengths = rows.lengths
    epoch = shuffled_batches(lengths, arguments.batch_size, np.random.default_rng(0))
    batches = (rows.batch(picked, int(lengths[picked].max())) for picked in epoch)
    return spaced(batches, arguments.batches)


class Bertjax:
    """The library's own sharded step, on all devices JAX sees."""

    def __init__(self, init_from, data, batches, rule):
        import jax

        import bertjax
        from bertjax import sharding, train
        from bertjax.devices import open_mesh
        from bertjax.objectives import FinetuningObjective
        from bertjax.optimizer import optimizer
        from bertjax.run_config import MeshConfig
        from bertjax.unstacked import one_by_one

        # First of all, as in the commands.
        mesh = open_mesh(MeshConfig(), batch_size=len(batches[0]["weights"]))
        task = data.task
        base = bertjax.BertModel.from_pretrained(init_from)[0].config
        fixed = {"regression": 1, "question_answering": 2, "multiple_choice": 2}
        config = dataclasses.replace(
            base,
            id2label=() if task.family in fixed else data.labels,
            num_labels=fixed.get(task.family, len(data.labels)),
            problem_type=task.problem_type,
        )
        model, params = getattr(bertjax, task.head).from_pretrained(init_from, config=config)
        objective = FinetuningObjective(model)
        tx = optimizer(rule, 10_000)
        shardings = sharding.state_shardings(train.abstract_state(objective, tx), mesh)
        with jax.set_mesh(mesh):
            new_state = jax.jit(lambda p: train.new_state(p, tx), out_shardings=shardings)
            self.state = new_state(params)
        if train.prefers_layers_apart(config, mesh):
            self.state = one_by_one(self.state)
        self.step = train.make_train_step(objective, tx, mesh, shardings, seed=1)
        self.batches = batches
        self.put = lambda batch: sharding.global_batch(batch, mesh, len(batch["weights"]))

    def run(self):
        """Take a step on every batch."""
        for batch in self.batches:
            self.state, metrics = self.step(self.state, self.put(batch))
            float(metrics["loss"])


class Torch:
    """transformers' model, eager or compiled."""

    def __init__(self, init_from, data, batches, rule, *, compiled=False):
        import torch

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        torch.manual_seed(0)
        self.model = make_peer(init_from, data)
        self.optimizer = make_optimizer(self.model, rule)
        self.clip = torch.nn.utils.clip_grad_norm_
        self.clip_norm = rule.clip_norm
        self.compute = torch.compile(self.model, dynamic=True) if compiled else self.model
        self.batches = [tensors(batch) for batch in batches]

    def run(self):
        """Take a step on every batch."""
        self.model.train()
        for batch in self.batches:
            loss = self.compute(**batch).loss
            loss.backward()
            self.clip(self.model.parameters(), self.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            float(loss.detach())


def timed(side, clock):
    """Return the seconds of a pass over the batches."""
    start = clock()
    side.run()
    return clock() - start


def serve(pipe, side_class, options, clock):
    """Be one side in a process of its own: its idle threads cannot spin into another's rounds."""
    side = side_class(**options)
    pipe.send(timed(side, clock))
    while pipe.recv():
        pipe.send(timed(side, clock))


def compare(arguments, name, path):
    """Measure all sides on a data set in alternating rounds; return a result of each."""
    from bertjax.data.task_data import read_task
    from bertjax.run_config import OptimizerConfig

    data = read_task(name, path, "train")
    rows = make_rows(arguments, data)
    batches = {"bertjax packed": packed(arguments, rows), "bertjax": bucketed(arguments, rows)}
    common = {"init_from": arguments.init_from, "data": data}
    common["rule"] = OptimizerConfig(schedule="constant")
    sides = {"bertjax packed": (Bertjax, common), "bertjax": (Bertjax, common)}
    if not arguments.no_torch:
        sides["torch eager"] = (Torch, common)
        if arguments.compile:
            sides["torch compiled"] = (Torch, common | {"compiled": True})
        batches |= dict.fromkeys(list(sides)[2:], padded_to_longest(arguments, rows))
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    given = {
        side: (side_class, options | {"batches": batches[side]}, clock)
        for side, (side_class, options) in sides.items()
    }
    running = Sides(serve, given)
    rounds = running.rounds(arguments.rounds)
    running.end()
    results = []
    for side, times in rounds.items():
        masks = [shown(batch) for batch in batches[side]]
        # Rows of weight 0 fill up a batch of bertjax's.
        weights = [batch["weights"].sum() for batch in batches[side] if "weights" in batch]
        examples = float(sum(weights)) or float(sum(len(mask) for mask in masks))
        tokens, padded = (int(sum(f(m) for m in masks)) for f in (np.sum, np.size))
        results.append(
            {
                "task": name, "side": side, "rows": len(rows), "examples": examples,
                "tokens": tokens, "padded": padded, "seconds": times,
                "first": running.started[side],
                "widths": sorted({mask.shape[-1] for mask in masks}),
                "rate": examples / statistics.median(times),
            }
        )  # fmt: skip
    return results


def show(results):
    """Print the results on a data set as a table."""
    ours = results[0]
    widths = {result["side"]: result["widths"] for result in results[:2]}
    print(f"\n{ours['task']}: {ours['rows']:,} rows; widths {widths}")
    print(
        f"{'':16}{'tokens a row':>13}{'padded':>8}{'examples/s':>12}{'spread':>16}"
        f"{'ours / it':>11}{'1st pass s':>12}"
    )
    for result in results:
        examples = result["examples"]
        rates = sorted(examples / seconds for seconds in result["seconds"])
        print(
            f"{result['side']:16}{result['tokens'] / examples:13.1f}"
            f"{result['padded'] / examples:8.1f}{result['rate']:12.1f}"
            f"{rates[0]:9.1f}-{rates[-1]:<6.1f}{ours['rate'] / result['rate']:11.2f}"
            f"{result['first']:12.1f}",
            flush=True,
        )


def main():
    arguments = parse_arguments()
    if arguments.cores:
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: arguments.cores]))
    packages = ["jax", "flax", "optax"] + ([] if arguments.no_torch else ["torch", "transformers"])
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    print(f"{len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}, {versions}")
    for data in arguments.data or DATA:
        name, _, path = data.partition("=")
        results = compare(arguments, name, path)
        show(results)
        if arguments.output:
            with arguments.output.open("a") as file:
                file.writelines(json.dumps(result) + "\n" for result in results)


if __name__ == "__main__":
    main()

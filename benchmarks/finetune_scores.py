"""Scores of a fine-tuning recipe over several seeds: bertjax, and transformers on torch.

    python benchmarks/finetune_scores.py experiments/finetune_regression.py --seeds 3 \
        --task.train sts-train.csv --task.validation sts-dev.csv

Takes an experiment and its fields as `bertjax finetune` does. That command makes the runs of
bertjax, all seeds at once; torch runs the same recipe seed by seed, in a loop of its own: the same
initial weights, rows, epochs, batch size, learning rate and schedule, decay and what is left out of
it, clipping, dropout, and the best evaluation counts. Its batches are of rows of like length too,
padded to the longest. Seeds draw the new head, the order and dropout. Tokens, labels and metrics
are made by the same functions for both. Printed are the mean and the standard deviation of each
score, and the time.
"""

import argparse
import functools
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bertjax.cli import load_experiment, parse
from bertjax.report import read_metrics
from bertjax.run_config import FinetuneConfig
from bertjax.scoring import score
from bertjax.splits import configured_task, read_split
from bertjax.tokenizer import BertTokenizer

# Batches that are sorted by length together, as in bertjax and in transformers' own sampler.
POOL = 50


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("experiment", help="experiments/finetune_*.py")
    parser.add_argument("--side", choices=("bertjax", "torch"), action="append")
    parser.add_argument("--output", type=Path, help="append every run to this JSONL file")
    return parser.parse_known_args()


def run_bertjax(experiment, overrides, config):
    """Return for each seed the scores of every evaluation of `bertjax finetune`."""
    with tempfile.TemporaryDirectory() as directory:
        options = [*overrides, "--run-dir", directory]
        command = [sys.executable, "-m", "bertjax.cli", "finetune", experiment, *options]
        subprocess.run(command, check=True)
        lines = [line for line in read_metrics(Path(directory)) if line["split"] == "eval"]
    evaluations = [
        {k: v for k, v in line.items() if k not in ("step", "split", "time")} for line in lines
    ]
    if config.seeds == 1:
        return [evaluations]
    ends = [f"_seed{seed}" for seed in config.all_seeds]
    return [
        [
            {k.removesuffix(end): v for k, v in of_all.items() if k.endswith(end)}
            for of_all in evaluations
        ]
        for end in ends
    ]


def tensors(batch):
    """Return a batch of numpy arrays for torch."""
    import torch

    return {
        name: torch.from_numpy(array if array.dtype.kind == "f" else array.astype(np.int64))
        for name, array in batch.items()
    }


def shuffled_batches(lengths, size, random):
    """Return an epoch's batches: rows of like length together, in any order."""
    order = random.permutation(len(lengths))
    batches = []
    for first in range(0, len(order), POOL * size):
        pool = order[first : first + POOL * size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[i : i + size] for i in range(0, len(pool), size)]
    return [batches[i] for i in random.permutation(len(batches))]


def evaluate(model, split, size):
    """Return the metrics of torch's model on a split."""
    import torch

    rows = split.rows
    order = np.argsort(-rows.lengths, kind="stable")
    found = {}
    model.eval()
    with torch.no_grad():
        for first in range(0, len(order), size):
            picked = order[first : first + size]
            batch = tensors(rows.batch(picked, int(rows.lengths[picked].max())))
            outputs = model(**batch)
            for name in ("logits", "start_logits", "end_logits"):
                if name not in outputs:
                    continue
                values = outputs[name].numpy()
                of_tokens = name != "logits" or values.ndim == 3
                for row, scores in zip(picked, values, strict=True):
                    kept = scores[: rows.lengths[row]] if of_tokens else scores
                    found.setdefault(name, {})[row] = kept
    model.train()
    logits = tuple([by_row[i] for i in range(len(rows))] for by_row in found.values())
    return score(split.data, rows, logits).scores


def make_peer(init_from, data):
    """Return transformers' model of a task, with a new head."""
    import transformers

    task = data.task
    fixed = {"regression": 1, "question_answering": 2}
    settings = {"num_labels": fixed.get(task.family, len(data.labels))}
    if task.problem_type:
        settings["problem_type"] = task.problem_type
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return getattr(transformers, task.head).from_pretrained(init_from, **settings)


def make_optimizer(model, rule):
    """Return torch's fastest AdamW, which is the default of transformers' trainer too."""
    import torch

    decay, plain = [], []
    for name, parameter in model.named_parameters():
        (plain if name.endswith("bias") or "LayerNorm" in name else decay).append(parameter)
    groups = [
        {"params": decay, "weight_decay": rule.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    betas = (rule.b1, rule.b2)
    return torch.optim.AdamW(groups, rule.learning_rate, betas, eps=rule.eps, fused=True)


def run_torch(config, seed, train, held_out):
    """Return the scores after each epoch of the recipe in plain torch."""
    import torch
    import transformers

    torch.manual_seed(seed)
    model = make_peer(config.init_from, train.data)
    rule = config.optimizer
    optimizer = make_optimizer(model, rule)
    steps = round(config.epochs * -(-len(train.rows) // config.batch_size))
    warmup = rule.warmup_steps or round(config.warmup_share * steps)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, warmup, steps)
    random = np.random.default_rng(seed)
    evaluations, done = [], 0
    model.train()
    while done < steps:
        for picked in shuffled_batches(train.rows.lengths, config.batch_size, random)[
            : steps - done
        ]:
            batch = tensors(train.rows.batch(picked, int(train.rows.lengths[picked].max())))
            loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), rule.clip_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            done += 1
        evaluations.append(evaluate(model, held_out, config.batch_size))
        line = f"torch, seed {seed}, step {done}: {told(evaluations[-1:])}"
        print(line, file=sys.stderr, flush=True)
    return evaluations


def told(runs):
    """Return the first two scores of some runs, in hundredths: means and deviations."""
    whole = [name for name in runs[0] if name not in ("precision", "recall", "support")]
    parts = []
    for name in whole[:2]:
        values = [100 * scores[name] for scores in runs]
        deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        parts.append(f"{name} {statistics.mean(values):.2f}{deviation}")
    return ", ".join(parts)


def main():
    arguments, overrides = parse_arguments()
    experiment = load_experiment(arguments.experiment, FinetuneConfig)
    config = parse(FinetuneConfig, overrides, "finetune_scores.py", experiment)
    rule = config.optimizer
    if rule.freeze or rule.layer_decay < 1 or (rule.name, rule.schedule) != ("adamw", "linear"):
        sys.exit("torch's side knows AdamW and the linear schedule only")
    names = ("jax", "flax", "optax", "torch", "transformers")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    print(f"{len(os.sched_getaffinity(0))} cores, {versions}")
    task = configured_task(config.task)
    read = functools.partial(
        read_split,
        task,
        config.task,
        tokenizer=BertTokenizer.from_pretrained(config.init_from),
        skip_bad=config.skip_bad,
    )
    train = read(config.task.train, "train", most=config.max_train_examples)
    held_out = read(config.task.validation, "validation", labels=train.data.labels)
    print(
        f"{task.name}: {len(train.data.examples):,} examples, {len(train.rows):,} rows, "
        f"{config.epochs:g} epochs, batch {config.batch_size}, learning rate "
        f"{rule.learning_rate:g}; scored on {len(held_out.data.examples):,}",
        flush=True,
    )
    for side in arguments.side or ("bertjax", "torch"):
        start = time.perf_counter()
        if side == "bertjax":
            runs = run_bertjax(arguments.experiment, overrides, config)
        else:
            runs = [run_torch(config, seed, train, held_out) for seed in config.all_seeds]
        seconds = time.perf_counter() - start
        bests = [max(run, key=lambda scores: next(iter(scores.values()))) for run in runs]
        if arguments.output:
            line = {"task": task.name, "side": side, "seconds": seconds, "runs": runs}
            with arguments.output.open("a") as file:
                file.write(json.dumps(line) + "\n")
        print(f"{side:8} {told(bests)} ({len(bests)} seeds, {seconds:.0f} s)", flush=True)


if __name__ == "__main__":
    main()

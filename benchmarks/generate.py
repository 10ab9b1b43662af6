"""Tokens a second of bertjax's and of transformers' `generate` on the same weights and prompts.

    python benchmarks/generate.py                          # 4 layers of 512
    python benchmarks/generate.py --size base --batch-size 8 --beams 4
    python benchmarks/generate.py --cores 1 --cpu-time     # on a busy machine

Weights are random, and the same on both sides; so are the prompts, of one length, and both write to
the last token. How many rows got the same tokens is counted and printed: where two continuations
are as good as equal, rounding chooses. torch runs in inference mode with its cache, on all cores
given. Every side has a process of its own; rounds alternate. Printed are medians, their ratio, the
spread of the rounds, and what the first call took longer, which is compilation.
"""

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from sides import Sides


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("mini", "small", "base"), default="small")
    parser.add_argument("--batch-size", type=int, action="append", help="default 1 and 8")
    parser.add_argument("--beams", type=int, action="append", help="default 1 and 4")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cores", type=int, default=0, help="pin to so many cores; 0: all")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="count processor time instead: on a busy machine, with --cores 1",
    )
    parser.add_argument("--output", type=Path, help="append the results to this JSONL file")
    return parser.parse_args()


class Bertjax:
    """The library's own loop."""

    def __init__(self, directory, dtype, settings):
        import jax

        import bertjax

        self.generate = bertjax.generate
        self.model, params = bertjax.BertLMHeadModel.from_pretrained(directory, dtype=dtype)
        self.params = bertjax.unstacked.apart(params)  # as `bertjax generate` does at its start
        self.settings = bertjax.GenerationConfig(**settings)
        self.device = jax.devices()[0]

    def run(self, prompts):
        output = self.generate(self.model, self.params, prompts, settings=self.settings)
        return np.asarray(output.sequences)


class Torch:
    """transformers' generate."""

    def __init__(self, directory, dtype, settings):
        import torch
        import transformers

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.torch = torch
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = transformers.BertLMHeadModel.from_pretrained(directory, dtype=getattr(torch, dtype))
        self.model = model.eval().to(self.device)
        self.settings = transformers.GenerationConfig(**settings, do_sample=False, use_cache=True)

    def run(self, prompts):
        ids = self.torch.tensor(prompts, dtype=self.torch.long, device=self.device)
        with self.torch.inference_mode():
            found = self.model.generate(
                ids,
                attention_mask=self.torch.ones_like(ids),
                generation_config=self.settings,
            )
        return found.cpu().numpy()


def serve(pipe, side_class, options, prompts, clock):
    """Be one side in a process of its own: its idle threads cannot spin into another's rounds."""
    side = side_class(**options)

    def timed():
        start = clock()
        tokens = side.run(prompts)
        return clock() - start, tokens

    first, tokens = timed()
    pipe.send({"device": str(side.device), "first": first, "tokens": tokens})
    while pipe.recv():
        pipe.send(timed()[0])


def compare(arguments, directory, batch_size, beams):
    """Measure both sides on one kind of job in alternating rounds; return a result of each."""
    settings = {"max_new_tokens": arguments.new_tokens, "num_beams": beams, "pad_token_id": 0}
    options = {"directory": directory, "dtype": arguments.dtype, "settings": settings}
    prompts = np.random.default_rng(batch_size).integers(
        1000, 30000, (batch_size, arguments.prompt), dtype=np.int32
    )
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    given = {kind.__name__.lower(): (kind, options, prompts, clock) for kind in (Bertjax, Torch)}
    sides = Sides(serve, given)
    tokens = [started.pop("tokens") for started in sides.started.values()]
    same = int((tokens[0] == tokens[1]).all(axis=1).sum())
    rounds = sides.rounds(arguments.rounds)
    sides.end()
    written = batch_size * arguments.new_tokens
    return [
        {
            "size": arguments.size, "dtype": arguments.dtype, "batch_size": batch_size,
            "beams": beams, "prompt": arguments.prompt, "new_tokens": arguments.new_tokens,
            "side": name, "seconds": times, "rate": written / statistics.median(times),
            "same_rows": same, **sides.started[name],
        }
        for name, times in rounds.items()
    ]  # fmt: skip


def show(results):
    """Print the results of one kind of job as lines of the table."""
    ours = results[0]
    for result in results:
        times = result["seconds"]
        median = statistics.median(times)
        written = result["batch_size"] * result["new_tokens"]
        same = f"{result['same_rows']} of {result['batch_size']}"
        print(
            f"{result['batch_size']:5}{result['beams']:7}  {result['side']:9}"
            f"{result['rate']:12.1f}{written / max(times):9.1f}-{written / min(times):<8.1f}"
            f"{ours['rate'] / result['rate']:9.2f}{result['first'] - median:12.1f}{same:>12}",
            flush=True,
        )


def write_model(directory, size):
    """Save a decoder of this size, with random weights that say nothing but cost the same."""
    import jax

    import bertjax

    config = bertjax.BertConfig.preset(size, is_decoder=True)
    model = bertjax.BertLMHeadModel(config)
    params = jax.jit(model.init)(jax.random.key(0), model.init_ids)["params"]
    bertjax.save_pretrained(directory, model, params)


def main():
    arguments = parse_arguments()
    if arguments.cores:
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: arguments.cores]))
    packages = ["jax", "flax", "torch", "transformers"]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    print(f"{len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}, {versions}")
    print(
        f"{arguments.size}, {arguments.dtype}, prompts of {arguments.prompt} tokens, "
        f"{arguments.new_tokens} new ones{', processor time' if arguments.cpu_time else ''}\n"
        f"{'batch':>5}{'beams':>7}  {'':9}{'tokens/s':>12}{'spread':>17}{'ours / it':>10}"
        f"{'compile s':>12}{'equal rows':>12}"
    )
    with tempfile.TemporaryDirectory() as directory:
        # In a process that has not started JAX, so that no thread of it runs beside the sides.
        maker = multiprocessing.get_context("spawn").Process(
            target=write_model, args=(directory, arguments.size)
        )
        maker.start()
        maker.join()
        for beams in arguments.beams or (1, 4):
            for batch_size in arguments.batch_size or (1, 8):
                results = compare(arguments, directory, batch_size, beams)
                show(results)
                if arguments.output:
                    with arguments.output.open("a") as file:
                        file.writelines(json.dumps(result) + "\n" for result in results)


if __name__ == "__main__":
    main()

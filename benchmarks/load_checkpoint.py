"""Time and memory of loading a checkpoint, by format.

    python benchmarks/load_checkpoint.py [--size base] [--rounds 3] [--param-dtype bfloat16]

Writes a random BertForPreTraining in float32 in every format, a torch file where torch is
installed, and loads each in a process of its own, in turn, several times. Prints medians: seconds
of `from_pretrained`, and the largest resident memory meanwhile, over what the process held before,
as a multiple of the parameters in the type that they are loaded in.
"""

import argparse
import importlib.util
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

WRITTEN = ("hf", "flax", "tf1", "orbax")


def resident() -> int:
    """Return this process's resident memory in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def load(directory: str, param_dtype: str) -> dict[str, float]:
    """Load one model in this process, and measure."""
    import jax
    import jax.numpy as jnp

    import bertjax
    from bertjax.pretrained import formats

    jax.block_until_ready(jax.jit(lambda x: x + 1)(jnp.zeros(3)))
    for kind in formats.FORMATS.values():
        _ = kind.module  # imported before, so that only the loading is measured
    before, peak = resident(), 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start = time.perf_counter()
    _, params = bertjax.from_pretrained(directory, param_dtype=param_dtype)
    jax.block_until_ready(params)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    return {"seconds": seconds, "peak": (max(peak, resident()) - before) / size, "bytes": size}


def write(root: Path, size: str) -> list[str]:
    """Write a random model in every format; return their names, which are those of directories."""
    import jax
    import numpy as np

    import bertjax
    from bertjax.pretrained import abstract_params

    model = bertjax.BertForPreTraining(bertjax.BertConfig.preset(size))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape, np.float32), abstract_params(model)
    )
    for to in WRITTEN:
        bertjax.save_pretrained(root / to, model, params, to=to)
    if importlib.util.find_spec("torch") is None:
        return list(WRITTEN)
    import torch
    from safetensors.torch import load_file

    (root / "torch").mkdir()
    shutil.copy(root / "hf" / "config.json", root / "torch")
    torch.save(load_file(root / "hf" / "model.safetensors"), root / "torch" / "pytorch_model.bin")
    return [*WRITTEN, "torch"]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="base", help="preset of the model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--param-dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--load", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        print(json.dumps(load(arguments.load, arguments.param_dtype)))
        return
    with tempfile.TemporaryDirectory() as root:
        kinds = write(Path(root), arguments.size)
        found: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
        for _ in range(arguments.rounds):
            for kind in kinds:
                command = [sys.executable, __file__, "--load", str(Path(root) / kind)]
                command += ["--param-dtype", arguments.param_dtype]
                out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found[kind].append(json.loads(out.splitlines()[-1]))
    size = f"{found['hf'][0]['bytes'] / 1e6:.0f} MB of {arguments.param_dtype} parameters"
    print(f"{arguments.size}: {size}")
    for kind, rounds in found.items():
        seconds, peak = (statistics.median(r[key] for r in rounds) for key in ("seconds", "peak"))
        print(f"{kind:6} {seconds:5.2f} s, peak {peak:.2f}x the parameters")


if __name__ == "__main__":
    main()

"""What a job does first, and that it does what it is for."""

import subprocess
import sys

import pytest

from bertjax.devices import open_mesh
from bertjax.errors import InputError
from bertjax.run_config import MeshConfig

# Page faults of a step with temporary arrays of 34 MB, the median of 31 steps: the heap may still
# grow in a few, where what is small and stays was put into the hole that an array had left.
PROGRAM = """
import resource, statistics, sys
import jax, jax.numpy as jnp
from bertjax.devices import keep_freed_memory, open_mesh
from bertjax.run_config import MeshConfig
if sys.argv[1] == "keep":
    open_mesh(MeshConfig(), batch_size=1)  # starts JAX
    assert keep_freed_memory()
# A loop, which JAX runs in a thread of its own.
step = jax.jit(lambda x: jax.lax.fori_loop(0, 3, lambda _, y: jnp.roll(y, 1, 0) + 1, x).sum())
x = jnp.ones((2900, 2900))
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(statistics.median(faults() for _ in range(31)))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_not_mapped_anew():
    faults = {}
    for setting in ("default", "keep"):
        command = [sys.executable, "-c", PROGRAM, setting]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        faults[setting] = int(done.stdout)
    assert faults["keep"] < faults["default"] / 10


def test_a_batch_that_the_mesh_does_not_divide():
    with pytest.raises(InputError, match="batch_size 6 is not divisible"):
        open_mesh(MeshConfig(), batch_size=6, accumulation_steps=4)

"""Batches are computed ahead, and on one CPU by two threads, but yielded in order."""

import threading

import jax.numpy as jnp
import numpy as np
import pytest

from bertjax.overlap import Overlap

BATCHES = [np.full(n, i) for i, n in enumerate([3, 3, 2, 3, 2, 3])]


@pytest.mark.parametrize("on_one_cpu", [False, True])
def test_results_are_those_of_their_batches_in_order(on_one_cpu):
    begun = []

    def compute(batch):
        begun.append((int(batch[0]), threading.current_thread() is threading.main_thread()))
        return {"doubled": jnp.asarray(batch) * 2}

    overlap = Overlap(on_one_cpu=on_one_cpu)
    ahead = []
    for i, (batch, results) in enumerate(overlap(iter(BATCHES), compute, np.shape)):
        assert batch is BATCHES[i]
        assert isinstance(results["doubled"], np.ndarray)
        np.testing.assert_array_equal(results["doubled"], batch * 2)
        ahead.append(len(begun) - i - 1)
    by_caller = {number for number, caller in begun if caller}
    # The first of each shape, and so its program, is the caller's.
    assert by_caller == ({0, 2} if on_one_cpu else set(range(6)))
    if not on_one_cpu:
        assert ahead == [2, 2, 2, 2, 1, 0]


def test_one_after_the_other():
    begun = []

    def compute(batch):
        begun.append(batch)
        return jnp.asarray(batch)

    overlap = Overlap(on_one_cpu=False, ahead=False)
    for i, _ in enumerate(overlap(BATCHES, compute, np.shape)):
        assert len(begun) == i + 1

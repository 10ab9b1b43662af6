"""Batches of like length: every row once an epoch, a pure function of seed and number."""

import itertools

import numpy as np
import pytest

from bertjax.data.bucket_widths import bucket_width
from bertjax.data.bucketing import (
    best_widths,
    evaluation_batches,
    steps_per_epoch,
    training_batches,
)


class Numbered:
    """Rows that hold their own number."""

    def __init__(self, lengths):
        self.lengths = np.array(lengths, np.int32)

    def __len__(self):
        return len(self.lengths)

    def batch(self, rows, width):
        assert width >= self.lengths[rows].max()
        return {"input_ids": np.repeat(rows[:, None], width, 1), "labels": rows}


def rows_of(count, seed=0):
    return Numbered(np.random.default_rng(seed).integers(3, 129, count))


def take(batches, count):
    return [next(batches) for _ in range(count)]


def test_widths():
    assert [bucket_width(n, 512) for n in (1, 16, 17, 24, 25, 33, 49, 65, 97, 129, 385, 512)] == [
        16, 16, 24, 24, 32, 48, 64, 96, 128, 192, 512, 512,
    ]  # fmt: skip
    assert bucket_width(100, 100) == 100
    assert len({bucket_width(n, 512) for n in range(1, 513)}) == 11
    finer = sorted({bucket_width(n, 512, 4) for n in range(1, 513)})
    assert finer[:10] == [16, 20, 24, 28, 32, 40, 48, 56, 64, 80]
    assert len(finer) == 21


@pytest.mark.parametrize("count", [1, 31, 32, 33, 7000])
def test_every_row_once_an_epoch(count):
    rows = rows_of(count)
    steps = steps_per_epoch(rows, 32)
    batches = training_batches(rows, 32, seed=1, max_widths=8)
    orders = []
    for _ in range(2):
        seen = []
        for batch in take(batches, steps):
            assert batch["labels"].shape == (32,)
            seen += batch["labels"][batch["weights"] > 0].tolist()
        assert sorted(seen) == list(range(count))
        orders.append(seen)
    assert count < 7000 or orders[0] != orders[1]


def test_a_batch_depends_on_seed_and_number_alone():
    rows = rows_of(500)
    whole = take(training_batches(rows, 8, seed=3, max_widths=8), 150)
    for start in (0, 1, 62, 63, 100):
        for batch, want in zip(
            training_batches(rows, 8, seed=3, max_widths=8, start=start),
            whole[start:],
            strict=False,
        ):
            np.testing.assert_array_equal(batch["input_ids"], want["input_ids"])
    other = next(training_batches(rows, 8, seed=4, max_widths=8))
    assert not np.array_equal(other["labels"], whole[0]["labels"])


def test_batches_of_one_number_are_equally_wide_whatever_the_seed():
    rows = rows_of(1000)
    steps = 2 * steps_per_epoch(rows, 8)
    of_seeds = [
        take(training_batches(rows, 8, seed=seed, max_widths=8), steps) for seed in range(4)
    ]
    orders = set()
    for batches in zip(*of_seeds, strict=True):
        assert len({batch["input_ids"].shape for batch in batches}) == 1
        assert len({float(batch["weights"].sum()) for batch in batches}) == 1
        orders.add(len({tuple(sorted(batch["labels"])) for batch in batches}))
    assert max(orders) == 4
    widths = [batch["input_ids"].shape[1] for batch in of_seeds[0]]
    assert widths[: steps // 2] != widths[steps // 2 :]


def padding_of(lengths, widths):
    return sum(min(w for w in widths if w >= n) - n for n in lengths.tolist())


@pytest.mark.parametrize("most", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(4))
def test_widths_leave_least_padding(most, seed):
    lengths = np.random.default_rng(seed).integers(3, 42, 60).astype(np.int32)
    candidates = [*range(4, lengths.max(), 4), lengths.max()]
    tried = [
        padding_of(lengths, [*some, lengths.max()])
        for some in itertools.combinations(candidates[:-1], most - 1)
    ]
    widths = best_widths(lengths, most)
    assert len(widths) == most
    assert set(widths) <= set(candidates)
    assert padding_of(lengths, widths) == min(tried)


def test_few_lengths_need_few_widths():
    assert best_widths(np.array([7] * 5), 8).tolist() == [7]
    assert best_widths(np.array([3, 4, 9, 30, 30]), 8).tolist() == [4, 12, 30]


def test_rows_of_a_small_split_meet_others_in_every_epoch():
    rows = rows_of(40)
    epochs = iter(training_batches(rows, 8, seed=0, max_widths=8))
    fellows = [set() for _ in range(40)]
    for batch in take(epochs, 20 * 5):
        for row in batch["labels"].tolist():
            fellows[row] |= set(batch["labels"].tolist())
    assert min(map(len, fellows)) > 16


def test_little_is_padding():
    rows = rows_of(8000)
    batches = take(training_batches(rows, 32, seed=0, max_widths=8), steps_per_epoch(rows, 32))
    columns = sum(batch["input_ids"].size for batch in batches)
    assert rows.lengths.sum() > 0.88 * columns
    assert len({batch["input_ids"].shape[1] for batch in batches}) == 8


@pytest.mark.parametrize("most", [1, 3])
def test_no_more_widths_than_are_allowed(most):
    rows = rows_of(800)
    batches = take(training_batches(rows, 8, seed=0, max_widths=most), 100)
    assert len({batch["input_ids"].shape[1] for batch in batches}) == most
    shapes = {batch["input_ids"].shape[1] for _, batch in evaluation_batches(rows, 8, most)}
    assert len(shapes) == most
    shapes = {batch["input_ids"].shape[1] for _, batch in evaluation_batches(rows, 100, 8)}
    assert len(shapes) == 2  # for eight batches


@pytest.mark.parametrize("count", [1, 8, 100])
def test_evaluation_has_every_row_once(count):
    rows = rows_of(count)
    seen = []
    for picked, batch in evaluation_batches(rows, 8, 8):
        assert batch["labels"].shape == (8,)
        np.testing.assert_array_equal(batch["labels"][: len(picked)], picked)
        np.testing.assert_array_equal(batch["weights"], np.arange(8) < len(picked))
        seen += picked.tolist()
    assert sorted(seen) == list(range(count))

"""Rows of several texts: each gets what it would get in a row of its own, once an epoch."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bertjax
from bertjax import BertForTokenClassification, finetune, from_pretrained, packing
from bertjax.data.features import QuestionRows, TextRows
from bertjax.data.packing import pack, packed_batches
from bertjax.errors import InputError
from bertjax.objectives import FinetuningObjective
from bertjax.run_config import CheckpointConfig
from tests import processes
from tests.models import SMALL, assert_same_trees
from tests.peers import quick_jit, quick_params
from tests.small_base import save_base
from tests.small_runs import TASKS, CutError, config_of, cut_at, lines_of

RNG = np.random.default_rng(0)


def rows_of(lengths, labels, words=None):
    """Rows of random tokens."""
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    ids, types = (RNG.integers(0, most, bounds[-1]).astype(np.int32) for most in (90, 2))
    cut = np.zeros(len(lengths), bool)
    return TextRows(ids + 1, types, bounds, 0, labels, words, cut, pad_id=0)


@dataclasses.dataclass(frozen=True, eq=False)
class Windows:
    """What `QuestionRows` needs of windows."""

    texts: TextRows
    special_ids: tuple[int, int, int] = (0, 1, 2)

    def __len__(self):
        return len(self.texts)

    @property
    def lengths(self):
        return self.texts.lengths

    def rows(self, picked, width):
        return self.texts.batch(picked, width)


LENGTHS = RNG.choice([3, 7, 12], 23)  # each compiles
TOKENS = int(LENGTHS.sum())
TAGS = RNG.integers(0, 3, TOKENS).astype(np.int32)
TAGS[::4] = -100
ENDS = tuple(RNG.integers(0, LENGTHS).astype(np.int32) for _ in range(2))
# Class, rows, labels of the head.
FAMILIES = {
    "classes": (
        "BertForSequenceClassification",
        rows_of(LENGTHS, np.arange(23, dtype=np.int32) % 3),
        {"num_labels": 3},
    ),
    "numbers": (
        "BertForSequenceClassification",
        rows_of(LENGTHS, RNG.random(23).astype(np.float32)),
        {"num_labels": 1, "problem_type": "regression"},
    ),
    "several": (
        "BertForSequenceClassification",
        rows_of(LENGTHS, RNG.integers(0, 2, (23, 4)).astype(np.float32)),
        {"num_labels": 4, "problem_type": "multi_label_classification"},
    ),
    "tags": (
        "BertForTokenClassification",
        rows_of(LENGTHS, TAGS, np.zeros(TOKENS, np.int32)),
        {"num_labels": 3},
    ),
    "answers": (
        "BertForQuestionAnswering",
        QuestionRows(Windows(rows_of(LENGTHS, None)), ENDS),
        {},
    ),
}


@pytest.mark.parametrize(
    ("family", "relative"), [*((family, False) for family in FAMILIES), ("answers", True)]
)
def test_losses_and_gradients_are_those_of_texts_alone(family, relative):
    head, rows, settings = FAMILIES[family]
    if relative:
        settings = settings | {"position_embedding_type": "relative_key_query"}
    objective = FinetuningObjective(getattr(bertjax, head)(dataclasses.replace(SMALL, **settings)))
    params = quick_params(objective.model)
    packed = pack(rows.lengths, 23, 32)
    assert packed.most_texts > 1
    batch = next(packed_batches(rows, dataclasses.replace(packed, batch_rows=16), seed=0))
    # Rows of one text and no padding, one after the other.
    alone = [
        rows.batch(np.array([i]), int(length)) | {"weights": np.ones(1, np.float32)}
        for i, length in enumerate(rows.lengths)
    ]

    def loss(params, batch):
        sums = objective.sums(params, batch, None)
        return sum(pair.total for pair in sums.values()), sums

    value = quick_jit(jax.value_and_grad(loss, has_aux=True))
    (got, sums), grads = value(params, batch)
    singles = [value(params, one) for one in alone]
    assert float(got) == pytest.approx(sum(float(one[0][0]) for one in singles), rel=1e-5)
    weights = objective.weights(batch)
    for name, weight in weights.items():
        want = sum(float(one[0][1][name].weight) for one in singles)
        assert float(sums[name].weight) == float(weight) == want
    wanted = jax.tree.map(lambda *leaves: sum(leaves), *(one[1] for one in singles))
    for path, leaf in jax.tree_util.tree_leaves_with_path(wanted):
        found = grads
        for key in path:
            found = found[key.key]
        # Some biases add the same to all scores of a softmax: their gradients are rounding.
        scale = max(float(jnp.abs(leaf).max()), 1e-2)
        np.testing.assert_allclose(found, leaf, atol=1e-4 * scale, rtol=0, err_msg=str(path))


def test_masks_and_positions():
    texts = jnp.array([[1, 1, 2, 2, 2, 0], [1, 2, 3, 0, 0, 0]])
    np.testing.assert_array_equal(packing.positions(texts)[0, :5], [0, 1, 0, 1, 2])
    np.testing.assert_array_equal(packing.positions(texts)[1, :3], [0, 0, 0])
    seen = packing.mask(texts)[0].astype(int)
    np.testing.assert_array_equal(
        seen,
        [
            [1, 1, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [0, 0, 1, 1, 1, 0],
            [0, 0, 1, 1, 1, 0],
            [0, 0, 1, 1, 1, 0],
            [0, 0, 0, 0, 0, 0],
        ],
    )


def test_heads_on_all_tokens_take_no_cls_positions():
    model = BertForTokenClassification(SMALL)
    with pytest.raises(ValueError, match="BertForTokenClassification reads all tokens"):
        model.apply(
            {"params": quick_params(model)},
            jnp.ones((1, 4), jnp.int32),
            cls_positions=jnp.zeros((1, 1), jnp.int32),
        )


@pytest.mark.parametrize("longest", [16, 66, 128, 512])
@pytest.mark.parametrize("count", [1, 7, 3000])
def test_rows_are_full_and_hold_every_length_once(count, longest):
    rng = np.random.default_rng(count)
    lengths = np.minimum(rng.geometric(0.07, count) + 2, longest)
    lengths[0] = min(longest, 66)
    for batch_size in (8, 32, 256):
        packed = pack(lengths, batch_size, longest)
        sums = np.add.reduceat(packed.bins.lengths, packed.bins.bounds[:-1])
        assert sums.max() <= packed.width <= longest
        assert sorted(packed.bins.lengths) == sorted(lengths)
        assert packed.batch_rows in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
        least = -(-lengths.sum() // packed.width)
        assert len(packed.bins) <= 1.02 * least + 1
        if count == 3000 and batch_size < 256:
            assert 0.74 * batch_size <= packed.texts_per_batch <= 1.26 * batch_size
            assert packed.padding < 0.03


def test_widths_of_a_few_known_splits():
    """Of texts like SST-2's: 6 rows of 72 tokens, the longest's 66 rounded up, hold 33 of them."""
    lengths = np.full(10_000, 13)
    lengths[:10] = 66
    packed = pack(lengths, 32, 128)
    assert (packed.batch_rows, packed.width) == (6, 72)
    assert packed.texts_per_batch == pytest.approx(32, rel=0.07)


def test_rows_are_wider_where_one_text_would_leave_half_a_row():
    lengths = np.full(1_000, 45)
    lengths[0] = 66
    packed = pack(lengths, 32, 512)
    assert packed.width >= 90
    assert packed.padding < 0.1  # one to a row, it were 0.37
    assert packed.texts_per_batch == pytest.approx(32, rel=0.26)


def texts_of(batch):
    """Return the tokens of each text of a batch, by its label."""
    found = {}
    for row, slot in zip(*np.nonzero(batch["weights"]), strict=True):
        here = batch["texts"][row] == slot + 1
        assert np.argmax(here) == batch["cls_positions"][row, slot]
        found[int(batch["labels"][row, slot])] = batch["input_ids"][row][here].tolist()
    return found


def test_every_text_once_an_epoch_in_other_company():
    count = 500
    lengths = np.random.default_rng(1).integers(3, 40, count)
    rows = rows_of(lengths, np.arange(count, dtype=np.int32))
    packed = pack(rows.lengths, 16, 64)
    batches = list(
        itertools.islice(packed_batches(rows, packed, seed=3), 2 * packed.steps_per_epoch)
    )
    companies = []
    for epoch in (batches[: packed.steps_per_epoch], batches[packed.steps_per_epoch :]):
        seen = {}
        for batch in epoch:
            assert batch["input_ids"].shape == (packed.batch_rows, packed.width)
            found = texts_of(batch)
            assert not seen.keys() & found.keys()
            seen |= found
        assert len(seen) == count
        for number, ids in seen.items():
            assert ids == rows.ids[rows.bounds[number] : rows.bounds[number + 1]].tolist()
        companies.append(
            {
                tuple(sorted(labels[weights > 0]))
                for batch in epoch
                for labels, weights in zip(batch["labels"], batch["weights"], strict=True)
            }
        )
    assert len(companies[0] & companies[1]) < 0.1 * len(companies[0])
    for start in (1, packed.steps_per_epoch, packed.steps_per_epoch + 2):
        again = next(packed_batches(rows, packed, seed=3, start=start))
        for name, array in batches[start].items():
            np.testing.assert_array_equal(again[name], array)
    other = next(packed_batches(rows, packed, seed=4))
    assert texts_of(other).keys() != texts_of(batches[0]).keys()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


RUNS = {
    "snli": ("snli/dev.csv", "accuracy", 1.0, {"epochs": 60, "rows": 96}),
    "wnut17": ("wnut17/wnut17train.conll", "f1", 0.8, {"epochs": 80, "rows": 96}),
    "squad": ("squad/new_wiki.json", "f1", 0.75, {"epochs": 60, "rows": 96}),
}


@pytest.mark.slow
@pytest.mark.parametrize("task", RUNS)
def test_packed_runs_learn_their_rows(task, base, tmp_path):
    file, score, wanted, options = RUNS[task]
    config = config_of(base, tmp_path / "run", task, TASKS / file, pack=True, **options)
    finetune.run(config)
    scores = [line[score] for line in lines_of(tmp_path / "run", "eval")]
    assert max(scores) >= wanted > scores[0]


def test_a_packed_run_that_was_cut_goes_on_to_the_same_end(base, tmp_path, monkeypatch, capsys):
    def config(name):
        return config_of(
            base, tmp_path / name, "snli", TASKS / "snli/dev.csv", rows=96, batch_size=2, epochs=3,
            eval_every=3, log_every=1, pack=True, checkpoint=CheckpointConfig(every=4, keep=1),
        )  # fmt: skip

    finetune.run(config("whole"))
    assert "train: packed into rows of " in capsys.readouterr().err
    with monkeypatch.context() as patch:
        cut_at(patch, finetune, 7)
        with pytest.raises(CutError):
            finetune.run(config("cut"))
    finetune.run(config("cut"))
    whole, cut = (from_pretrained(tmp_path / name / "model")[1] for name in ("whole", "cut"))
    assert_same_trees(cut, whole)
    assert lines_of(tmp_path / "cut") == lines_of(tmp_path / "whole")


@pytest.mark.slow
def test_a_packed_run_is_the_same_on_any_devices(base, tmp_path):
    experiment = tmp_path / "experiment.py"
    experiment.write_text(
        "from bertjax.run_config import *\n"
        f"CONFIG = FinetuneConfig('run', {str(base)!r}, batch_size=16, epochs=4, pack=True,\n"
        "    log_every=1, task=TaskConfig('snli', sequence_length=96))\n"
    )
    file, found = TASKS / "snli/dev.csv", []
    for devices in (1, 8):
        run = tmp_path / f"run{devices}"
        code, _, err = processes.bertjax(
            *("finetune", experiment, "--run-dir", run, "--task.train", file),
            *("--task.validation", file),
            devices=devices,
        )
        assert code == 0, err
        found.append([line["loss"] for line in lines_of(run, "train")])
    assert "8 rows a step" in err
    assert len(found[0]) == 4
    np.testing.assert_allclose(*found, rtol=1e-5)


def test_what_cannot_be_packed(base, tmp_path):
    config = config_of(base, tmp_path / "run", "csqa", TASKS / "csqa/dev_rand_split.jsonl")
    with pytest.raises(InputError, match=r"pack: rows of csqa \(multiple_choice\) cannot be shar"):
        finetune.run(dataclasses.replace(config, pack=True))
    file = TASKS / "snli/dev.csv"
    config = config_of(base, tmp_path / "run", "snli", file, rows=96, batch_size=2, pack=True)
    with pytest.raises(InputError, match="max_widths: packed rows have one width"):
        dataclasses.replace(config, max_widths=4)
    config = dataclasses.replace(config, accumulation_steps=2)
    with pytest.raises(InputError, match=r"pack: about 2 texts take 1 rows .* Raise batch_size"):
        finetune.run(config)

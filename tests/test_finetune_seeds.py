"""Several seeds in one run: each as if it were alone, together with means and deviations."""

import dataclasses
import math
import statistics
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from bertjax import finetune, from_pretrained, keeper, sharding
from bertjax.errors import InputError
from bertjax.keeper import Best, Keeper
from bertjax.objectives import FinetuningObjective
from bertjax.pretrained import names
from bertjax.run_config import CheckpointConfig, OptimizerConfig
from bertjax.seeds import over_seeds
from tests import processes
from tests.models import assert_same_trees
from tests.small_base import save_base
from tests.small_runs import TASKS, CutError, config_of, cut_at, lines_of

SEEDS = (5, 6)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """An encoder with dropout, which must differ from seed to seed."""
    return save_base(
        tmp_path_factory.mktemp("base"), hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1
    )


def settings(base, run, **options):
    fields = {"seed": SEEDS[0], "epochs": 2, "eval_every": 3, "log_every": 1, **options}
    config = config_of(base, run, "stsb", TASKS / "stsb/sts-dev.csv", rows=64, **fields)
    # With Adam's usual eps the least gradients, which are rounding, would move as far as any other.
    rule = dataclasses.replace(config.optimizer, eps=1e-2)
    return dataclasses.replace(config, batch_size=2, optimizer=rule)


@pytest.fixture(scope="module")
def together(base, tmp_path_factory):
    """The run of all seeds, on batches of several widths: else their order would not matter."""
    run = tmp_path_factory.mktemp("seeds") / "together"
    widths = set()

    def spied(batch, *arguments):
        widths.add(batch["input_ids"].shape[-1])
        return sharding.global_batch(batch, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, "global_batch", spied)
        finetune.run(settings(base, run, seeds=len(SEEDS)))
    assert len(widths) > 1
    return run


@pytest.fixture(scope="module")
def alone(base, tmp_path_factory):
    """A run of each seed."""
    runs = {seed: tmp_path_factory.mktemp("seeds") / f"alone{seed}" for seed in SEEDS}
    for seed, run in runs.items():
        finetune.run(settings(base, run, seed=seed))
    return runs


@pytest.mark.slow
def test_each_seed_is_the_run_of_that_seed(together, alone):
    # Losses of 1 to 10 and correlations, which are sums of terms that cancel, agree to 1e-5.
    near = partial(pytest.approx, rel=1e-5, abs=1e-5)
    columns = zip(lines_of(together), *(lines_of(run) for run in alone.values()), strict=True)
    splits = set()
    for line, *of_one in columns:
        splits.add(line["split"])
        assert {(one["step"], one["split"]) for one in of_one} == {(line["step"], line["split"])}
        training = line["split"] == "train"
        for name in ("loss",) if training else ("pearson", "spearman"):
            values = [one[name] for one in of_one]
            assert len(set(values)) == len(SEEDS)
            assert line[name] == near(statistics.fmean(values))
            assert line[f"{name}_std"] == near(statistics.stdev(values))
            for seed, value in zip(SEEDS, values, strict=True):
                assert training or line[f"{name}_seed{seed}"] == near(value)
    assert splits == {"train", "eval"}


@pytest.mark.slow
def test_the_model_is_the_best_of_all(together, alone):
    bests = {
        seed: max(line["pearson"] for line in lines_of(run, "eval")) for seed, run in alone.items()
    }
    winner = max(bests, key=bests.get)
    (_, ours), (_, theirs) = (from_pretrained(run / "model") for run in (together, alone[winner]))
    theirs = dict(names.parameters(theirs))
    for path, leaf in names.parameters(ours):
        np.testing.assert_allclose(leaf, theirs[path], rtol=0, atol=1e-5, err_msg=path)
    card = (together / "model" / "README.md").read_text()
    assert f"| Seed | {winner} |" in card


@pytest.mark.slow
def test_a_run_that_was_cut_goes_on_to_the_same_end(base, together, tmp_path, monkeypatch, capsys):
    config = settings(
        base, tmp_path / "cut", seeds=len(SEEDS), checkpoint=CheckpointConfig(every=4, keep=1)
    )
    with monkeypatch.context() as patch:
        cut_at(patch, finetune, 7)
        with pytest.raises(CutError):
            finetune.run(config)
    capsys.readouterr()
    finetune.run(config)
    told = capsys.readouterr().err
    assert "going on from step 4" in told
    (_, cut), (_, whole) = (from_pretrained(run / "model") for run in (tmp_path / "cut", together))
    assert_same_trees(cut, whole)
    lines = lines_of(together, "eval")
    assert lines_of(tmp_path / "cut") == lines_of(together)
    best = [max(line[f"pearson_seed{seed}"] for line in lines) for seed in SEEDS]
    mean, deviation = statistics.fmean(best), statistics.stdev(best)
    assert (
        f"stsb: pearson {mean:.4f} +- {deviation:.4f} over 2 seeds; the best {max(best):.4f}"
        in (told)
    )


def test_figures_over_seeds():
    found = over_seeds([{"f1": 0.5, "em": 0.1}, {"f1": 0.7, "em": 0.1}], (3, 4))
    assert list(found) == [
        *("f1", "em", "f1_std", "em_std"),
        *("f1_seed3", "f1_seed4", "em_seed3", "em_seed4"),
    ]
    assert found["f1"] == pytest.approx(0.6)
    assert found["f1_std"] == pytest.approx(0.1 * math.sqrt(2))  # of a sample
    assert found["em_std"] == 0.0
    assert found["f1_seed4"] == 0.7


def test_the_result_names_the_first_of_equal_ones():
    assert finetune._result("f1", [Best(20, 0.9), Best(10, 0.9), Best(5, 0.6)], (7, 8, 9)) == (
        "f1 0.8000 +- 0.1732 over 3 seeds; the best 0.9000, of seed 8 at step 10"
    )
    assert finetune._result("f1", [Best(20, 0.9)], (7,)) == "best f1 0.9000 at step 20"


def test_each_seed_has_its_own_patience(base, tmp_path, monkeypatch):
    """A seed whose run would have ended alone has no part in what comes after."""
    scripted = {0: iter([0.5, 0.4, 0.3, 0.9, 0.9]), 1: iter([0.1, 0.2, 0.6, 0.5, 0.4])}
    exported = []
    config = settings(base, tmp_path, seeds=2, patience=2)
    bests = [Best(), Best()]
    objective = FinetuningObjective(model=None)
    split = SimpleNamespace(data=None, rows=None)
    scorer = SimpleNamespace(logits=lambda seed, _: seed)
    monkeypatch.setattr(keeper, "make_scorer", lambda *_: scorer)
    monkeypatch.setattr(
        keeper,
        "score",
        lambda data, rows, seed: SimpleNamespace(scores={"f1": next(scripted[int(seed)])}),
    )
    monkeypatch.setattr(
        keeper.pretrained,
        "save_pretrained",
        lambda *_, facts: exported.append((facts["Seed"], facts["f1"])),
    )
    kept = Keeper(config, objective, None, split, None, None, bests)
    enough = []
    for step in range(1, 6):
        kept.evaluate(SimpleNamespace(params=np.arange(2), step=np.array([step, step])))
        enough.append(kept.enough())
    assert bests == [Best(1, 0.5, 2), Best(3, 0.6, 2)]
    assert exported == [(5, "0.5000"), (6, "0.6000")]
    assert enough == [False, False, False, False, True]


def test_seeds_need_a_split_to_choose_by(base, tmp_path):
    config = settings(base, tmp_path / "run", seeds=2)
    task = dataclasses.replace(config.task, validation=())
    with pytest.raises(InputError, match=r"seeds 2: name task\.validation"):
        finetune.run(dataclasses.replace(config, task=task))
    with pytest.raises(InputError, match="seeds must be at least 1; got 0"):
        dataclasses.replace(config, seeds=0)


def test_seeds_need_one_device(base, tmp_path):
    experiment = tmp_path / "experiment.py"
    experiment.write_text(
        "from bertjax.run_config import *\n"
        f"CONFIG = FinetuneConfig({str(tmp_path / 'run')!r}, {str(base)!r}, batch_size=8)\n"
    )
    code, _, err = processes.bertjax(
        *("finetune", experiment, "--seeds", 3, "--mesh.fsdp", 8, "--task.validation", "x"),
        devices=8,
    )
    assert code == 2
    assert "seeds 3: several seeds learn at once on one device, and here are 8" in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_no_step_is_taken_once_patience_is_spent(base, tmp_path, monkeypatch):
    """A run that ended, saved, and was cut before it said so, just says so."""
    config = settings(base, tmp_path / "run", epochs=50, eval_every=2, patience=1)
    config = dataclasses.replace(config, optimizer=OptimizerConfig(learning_rate=1e-12))
    with monkeypatch.context() as patch:

        def die(*_):
            raise CutError

        patch.setattr(finetune, "_finish", die)
        with pytest.raises(CutError):
            finetune.run(config)
    lines = lines_of(tmp_path / "run")
    finetune.run(config)
    assert lines_of(tmp_path / "run") == lines
    assert lines[-1]["step"] == 4
    assert (tmp_path / "run" / "DONE").is_file()

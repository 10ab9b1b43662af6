"""Small fine-tuning runs from `small_base`: settings, cutting them short, and what they logged."""

from pathlib import Path

from bertjax.checkpoint import Checkpoints
from bertjax.report import read_metrics
from bertjax.run_config import FinetuneConfig, OptimizerConfig, TaskConfig

TASKS = Path(__file__).parent / "data" / "tasks"


def config_of(base, run, task, file, *, rows=32, **options):
    """Settings of a run whose training rows are its held-out rows."""
    settings = {"sequence_length": rows, "train": (str(file),), "validation": (str(file),)}
    return FinetuneConfig(
        run_dir=str(run),
        init_from=str(base),
        task=TaskConfig(name=task, **settings),
        optimizer=OptimizerConfig(learning_rate=1e-3, weight_decay=0.0),
        **{"batch_size": 8, "epochs": 20, "eval_every": 20, **options},
    )


def lines_of(run, *splits):
    """What a run logged, without times."""
    drop = ("time", "sequences_per_second")
    return [
        {name: value for name, value in line.items() if name not in drop}
        for line in read_metrics(Path(run))
        if not splits or line["split"] in splits
    ]


class CutError(Exception):
    """What a run dies of."""


def cut_at(patch, job, step):
    """Have the runs of `job` die after that many steps, what they saved being on the disk."""
    save = Checkpoints.save

    def save_now(self, *arguments):
        save(self, *arguments)
        self.wait()

    patch.setattr(Checkpoints, "save", save_now)
    steps = iter(range(1, step + 1))

    def advance(self):
        if next(steps) == step:
            raise CutError

    patch.setattr(job.Report, "advance", advance)

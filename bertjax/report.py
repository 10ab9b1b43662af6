"""What a person sees of a run: progress bar, metrics.jsonl, TensorBoard events, curves.png."""

import contextlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from tqdm import tqdm

METRICS = "metrics.jsonl"

# What a score of one seed of several is called at the end; it is written, but not printed.
OF_ONE_SEED = re.compile(r"_seed\d+$")


def say(text: str) -> None:
    """Print a line of news on stderr, above the progress bar if there is one."""
    tqdm.write(text, file=sys.stderr)


class Report:
    """Writes the metrics of a run; on all processes but the first it does nothing.

    Args:
      directory: the run directory.
      steps: total steps of the run.
      first_step: step that the run goes on from; later lines of an interrupted run are cut off.
      enabled: whether this process writes.
    """

    def __init__(self, directory: Path, *, steps: int, first_step: int, enabled: bool) -> None:
        self._enabled = enabled
        self._steps = steps
        if not enabled:
            return
        directory.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_metrics(directory) if line["step"] <= first_step]
        _write_lines(directory / METRICS, kept)
        self._file = (directory / METRICS).open("a", encoding="utf-8")
        (directory / "tensorboard").mkdir(exist_ok=True)
        # The plain writer: TensorBoard's usual one hands over to a thread, whose errors are lost.
        name = f"events.out.tfevents.{time.time():.6f}.{os.getpid()}"
        self._events = RecordWriter((directory / "tensorboard" / name).open("wb"))
        self._write_event(file_version="brain.Event:2")
        # TensorBoard is to forget what an interrupted run wrote after its last checkpoint.
        self._write_event(step=first_step + 1, session_log=SessionLog(status=SessionLog.START))
        self._bar = tqdm(
            total=steps, initial=first_step, unit="step", dynamic_ncols=True, file=sys.stderr
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._enabled:
            self._bar.close()
            with contextlib.suppress(OSError):  # a full disk was reported where it was met
                self._events.close()
                self._file.close()

    def advance(self) -> None:
        """Move the bar on by one step."""
        if self._enabled:
            self._bar.update()

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """Record the values of a step.

        Args:
          step: optimizer steps done.
          split: "train" or "eval".
          values: names and numbers.
        """
        if not self._enabled:
            return
        # JSON has no infinity and no NaN: null, so that every reader can read the file.
        finite = {name: v if math.isfinite(v) else None for name, v in values.items()}
        line = {"step": step, "split": split, "time": round(time.time(), 3)} | finite
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        scalars = [Summary.Value(tag=f"{split}/{k}", simple_value=v) for k, v in values.items()]
        self._write_event(step=step, summary=Summary(value=scalars))
        if split == "train":
            self._bar.set_postfix_str(progress_text(values), refresh=True)
        else:
            told = [f"{k} {v:.4g}" for k, v in values.items() if not OF_ONE_SEED.search(k)]
            say(f"step {step}: held-out " + ", ".join(told))

    def _write_event(self, **fields: Any) -> None:
        self._events.write(Event(wall_time=time.time(), **fields).SerializeToString())
        self._events.flush()


_ACCURACIES = (("mlm_accuracy", "mlm"), ("sentence_accuracy", "nsp"), ("lm_accuracy", "next"))


def progress_text(values: dict[str, float]) -> str:
    """Return what the progress bar shows of a training step."""
    parts = [f"loss {values['loss']:.3f}"]
    for name, text in _ACCURACIES:
        if name in values:
            parts.append(f"{text} {100 * values[name]:.1f}%")
    parts.append(f"{values['sequences_per_second']:.0f} seq/s")
    if "tokens_per_second" in values:
        parts.append(f"{values['tokens_per_second']:.0f} tok/s")
    parts.append(f"lr {values['learning_rate']:.2e}")
    if "mfu" in values:
        parts.append(f"MFU {100 * values['mfu']:.1f}%")
    return " ".join(parts)


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl; a last line cut off by a kill is left out."""
    path = directory / METRICS
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def _write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    beside = path.with_suffix(".tmp")
    beside.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    beside.replace(path)


def draw_curves(directory: Path, scores: Sequence[str] = ()) -> Path:
    """Draw curves.png from metrics.jsonl.

    Args:
      directory: the run directory.
      scores: further metrics to draw.
    """
    from matplotlib.figure import Figure  # slow to import, needed once

    lines = read_metrics(directory)
    panels = [
        ("loss", "loss"),
        ("mlm_accuracy", "MLM accuracy"),
        ("sentence_accuracy", "sentence-pair accuracy"),
        ("lm_accuracy", "next-token accuracy"),
        *((score, score) for score in scores),
        ("learning_rate", "learning rate"),
    ]
    panels = [p for p in panels if any(line.get(p[0]) is not None for line in lines)]
    figure = Figure(figsize=(4.5 * len(panels), 3.6), layout="constrained")
    for axes, (name, title) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        for split, style in (
            ("train", {"lw": 1, "alpha": 0.7}),
            ("eval", {"marker": "o", "ms": 4}),
        ):
            points = [
                (line["step"], line[name])
                for line in lines
                if line["split"] == split and line.get(name) is not None
            ]
            if points:
                axes.plot(*zip(*points, strict=True), label=split, **style)
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend()
    path = directory / "curves.png"
    figure.savefig(path, dpi=120)
    return path

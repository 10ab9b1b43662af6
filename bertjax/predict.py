"""The prediction job: write down what a fine-tuned model says of examples."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast, get_args

import numpy as np

from bertjax import submissions
from bertjax.data.features import TextRows
from bertjax.data.tasks import Task
from bertjax.errors import InputError
from bertjax.finetuned import Finetuned, task_of
from bertjax.model_commands import PredictConfig, PredictionFormat
from bertjax.output_files import check_free, written_beside
from bertjax.report import say
from bertjax.scoring import probabilities, score
from bertjax.splits import Split, takes_lines


def run(config: PredictConfig) -> None:
    """Write the predictions, or print them.

    Raises:
      InputError: bad input, see the messages.
    """
    task = task_of(config)
    if not config.data:
        raise InputError("data: name the examples to predict (files, a directory, or tfds)")
    if config.task.layout is None:
        task = _reading_lines(task, config.data)
    format = _format(config)
    paths = []
    if config.output:
        paths = submissions.output_files(format, task, config.split, Path(config.output))
        check_free(paths, config.overwrite)
    model = Finetuned(config, task)
    threshold = model.null_threshold()
    split = model.read(config.data, with_labels=False)
    logits = model.logits(split.rows)
    scored = score(split.data, split.rows, logits, threshold)
    if not model.writes:
        return
    likely = _probabilities(split, logits)
    if not paths:
        rows = submissions.records(split.data, scored, likely, config.with_inputs)
        sys.stdout.write(submissions.jsonl_text(rows))
        return
    with written_beside(paths) as places:
        submissions.write(
            format,
            split.data,
            scored,
            likely,
            places,
            with_inputs=config.with_inputs,
            null_threshold=threshold,
        )
    say(f"predictions: {', '.join(map(str, paths))}")


def _reading_lines(task: Task, files: Sequence[str]) -> Task:
    """Return the task for plain text, one example a line, where that is what the files are."""
    plain = all(file.removesuffix(".gz").endswith(".txt") for file in files)
    if plain and takes_lines(task):
        return dataclasses.replace(task, layout="lines")
    return task


def _format(config: PredictConfig) -> PredictionFormat:
    if not config.output:
        if config.format not in (None, "jsonl"):
            raise InputError(f"format: {config.format} needs an output; only jsonl is printed")
        return "jsonl"
    if config.format:
        return config.format
    suffix = Path(config.output).suffix.removeprefix(".")
    if suffix not in ("csv", "jsonl", "conll"):
        raise InputError(
            f"{config.output}: ends in none of .csv, .jsonl and .conll; give --format "
            f"({', '.join(get_args(PredictionFormat))})"
        )
    return cast(PredictionFormat, suffix)


def _probabilities(split: Split, logits: tuple[list[np.ndarray], ...]) -> list[np.ndarray] | None:
    if not isinstance(split.rows, TextRows):
        return None
    return probabilities(split.data, split.rows, logits[0])

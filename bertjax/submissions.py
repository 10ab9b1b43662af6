"""Predictions as files: csv, JSON lines, CoNLL columns, and what GLUE and SQuAD take."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bertjax.data.examples import ChoiceExample, QuestionExample, TaggedExample
from bertjax.data.task_data import TaskData
from bertjax.data.task_examples import Example
from bertjax.data.tasks import Task
from bertjax.errors import InputError
from bertjax.model_commands import PredictionFormat
from bertjax.scoring import Scored

# The names that GLUE wants, and the tasks whose labels it wants as names; of the others it wants
# the number of the label, of stsb a number from 0 to 5.
GLUE_FILES = {
    "cola": "CoLA.tsv",
    "sst2": "SST-2.tsv",
    "mrpc": "MRPC.tsv",
    "stsb": "STS-B.tsv",
    "mnli": "MNLI-m.tsv",
    "qnli": "QNLI.tsv",
    "qqp": "QQP.tsv",
    "rte": "RTE.tsv",
    "wnli": "WNLI.tsv",
}
GLUE_NAMED = ("mnli", "qnli", "rte")
# Digits after the point of probabilities and scores: what float32 holds.
_DIGITS = 6

Record = dict[str, Any]


def output_files(format: PredictionFormat, task: Task, split: str, output: Path) -> list[Path]:
    """Return the files that predictions will be written to.

    Args:
      format: the format.
      task: the task.
      split: its split; mnli has a file for its mismatched one.
      output: file, or directory for the formats glue and squad.

    Raises:
      InputError: the format is not one for the task.
    """
    if format == "glue":
        if task.name not in GLUE_FILES:
            raise InputError(
                f"format: {task.name} is not in GLUE, whose tasks are {', '.join(GLUE_FILES)}: "
                "take csv or jsonl"
            )
        mismatched = task.name == "mnli" and "mismatched" in split
        return [output / ("MNLI-mm.tsv" if mismatched else GLUE_FILES[task.name])]
    if format == "squad":
        if task.family != "question_answering":
            raise InputError(f"format: squad is for questions; {task.name} is {task.family}")
        names = ["predictions", "nbest_predictions", *["null_odds"] * task.unanswerable]
        return [output / f"{name}.json" for name in names]
    if format == "conll" and task.family != "token_classification":
        raise InputError(f"format: conll is for tagged words; {task.name} is {task.family}")
    return [output]


def write(
    format: PredictionFormat,
    data: TaskData,
    scored: Scored,
    probabilities: list[np.ndarray] | None,
    places: list[Path],
    *,
    with_inputs: bool,
    null_threshold: float,
) -> None:
    """Write predictions.

    Args:
      format: the format.
      data: the examples.
      scored: the predictions.
      probabilities: of `scoring.probabilities`.
      places: where to write the files of `output_files`.
      with_inputs: csv and jsonl: repeat the texts.
      null_threshold: squad: odds above which a question has no answer.

    Raises:
      InputError: glue: an example was left out, or has no number.
    """
    if format == "squad":
        assert scored.answers is not None
        scored.answers.save(places[0].parent, null_threshold)
        return
    if format == "glue":
        text = glue_text(data, scored.predictions)
    elif format == "conll":
        text = conll_text(data, scored.predictions)
    else:
        rows = records(data, scored, probabilities, with_inputs)
        text = csv_text(data, rows) if format == "csv" else jsonl_text(rows)
    places[0].write_text(text, encoding="utf-8", newline="")


def records(
    data: TaskData, scored: Scored, probabilities: list[np.ndarray] | None, with_inputs: bool
) -> Iterator[Record]:
    """Yield what is known of each example: id, inputs if wanted, prediction, how likely it is."""
    for number, (example, prediction) in enumerate(
        zip(data.examples, scored.predictions, strict=True)
    ):
        record: Record = {"id": example.id} | (_inputs(example) if with_inputs else {})
        if isinstance(example, QuestionExample):
            yield record | _answer_fields(example.id, prediction, scored)
        elif isinstance(example, TaggedExample):
            assert probabilities is not None
            tags = [data.labels[tag] for tag in prediction]
            likely = np.take_along_axis(probabilities[number], prediction[:, None], 1)[:, 0]
            yield record | {"prediction": tags, "probabilities": [_number(p) for p in likely]}
        elif isinstance(prediction, str):
            yield record | {"prediction": prediction}
        elif probabilities is None:
            yield record | {"prediction": _number(prediction)}
        else:
            likely = probabilities[number]
            names = data.labels
            if data.task.family == "multi_label":
                held = [name for name, p in zip(names, likely, strict=True) if p > 0.5]
                record["prediction"] = held
            else:
                record["prediction"] = names[prediction]
            shown = {name: _number(p) for name, p in zip(names, likely, strict=True)}
            yield record | {"probabilities": shown}


def jsonl_text(rows: Iterator[Record]) -> str:
    """Write records as JSON, one a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def csv_text(data: TaskData, rows: Iterator[Record]) -> str:
    """Write records as a table, in cells that `read_task` reads where they are labels.

    Several labels have commas between them, words and tags spaces; of answers the best one stays.
    """
    separator = "," if data.task.family == "multi_label" else " "
    flat = [_flat(row, separator) for row in rows]
    stream = io.StringIO()
    table = csv.DictWriter(stream, list(flat[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(flat)
    return stream.getvalue()


def conll_text(data: TaskData, predictions: list[np.ndarray]) -> str:
    """Write a word and its tag a line, with a tab between, and a blank line after a sentence."""
    lines = []
    for example, tags in zip(data.examples, predictions, strict=True):
        assert isinstance(example, TaggedExample)
        lines += [f"{w}\t{data.labels[tag]}" for w, tag in zip(example.words, tags, strict=True)]
        lines.append("")
    return "\n".join(lines) + "\n"


def glue_text(data: TaskData, predictions: list[Any]) -> str:
    """Write the file that GLUE's server takes: the number of each example, and its label.

    Raises:
      InputError: an example was left out, or has no number.
    """
    if data.skipped:
        raise InputError(f"{data.skipped[0]}: GLUE wants a prediction for every example")
    task = data.task
    lines = ["index\tprediction"]
    for example, prediction in zip(data.examples, predictions, strict=True):
        if not example.id.isdecimal():
            raise InputError(
                f"format glue: example {example.id!r} has no number; take GLUE's files"
            )
        if task.family == "regression":
            shown = f"{min(max(prediction, 0.0), 5.0):.3f}"
        elif task.name in GLUE_NAMED:
            shown = data.labels[prediction]
        else:
            shown = str(task.labels.index(data.labels[prediction]))
        lines.append(f"{example.id}\t{shown}")
    return "\n".join(lines) + "\n"


def _inputs(example: Example) -> Record:
    if isinstance(example, QuestionExample):
        return {"question": example.question, "context": example.context}
    if isinstance(example, TaggedExample):
        return {"words": list(example.words)}
    if isinstance(example, ChoiceExample):
        return {
            "text": example.pairs[0][0],
            **{f"choice {n}": second for n, (_, second) in enumerate(example.pairs)},
        }
    pair = {} if example.text_pair is None else {"text_pair": example.text_pair}
    return {"text": example.text} | pair


def _answer_fields(name: str, text: str, scored: Scored) -> Record:
    """Return the chosen answer of a question, its place in the context, and the other answers."""
    assert scored.answers is not None
    candidates = scored.answers.n_best[name]
    chosen = next((c for c in candidates if c.text == text), candidates[0])
    fields: Record = {"prediction": text, "start": chosen.start, "end": chosen.end}
    fields["probability"] = _number(chosen.probability)
    if name in scored.answers.null_odds:
        fields["null_odds"] = _number(scored.answers.null_odds[name])
    best = [
        {"text": c.text, "start": c.start, "end": c.end, "probability": _number(c.probability)}
        for c in candidates
    ]
    return fields | {"n_best": best}


def _flat(row: Record, separator: str) -> Mapping[str, Any]:
    """Return a record as cells of a table."""
    cells: Record = {}
    for name, value in row.items():
        if isinstance(value, dict):
            cells |= {f"p({label})": p for label, p in value.items()}
        elif name != "n_best":
            is_list = isinstance(value, list)
            cells[name] = separator.join(map(str, value)) if is_list else value
    return cells


def _number(value: float) -> float | None:
    """Return a number as short as its precision allows; None where it is unknown."""
    return None if np.isnan(value) else round(float(value), _DIGITS)

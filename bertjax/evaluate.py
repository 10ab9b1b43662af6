"""The evaluation job: score a fine-tuned model on labelled examples, each of them once."""

import json
from pathlib import Path

from bertjax.errors import InputError
from bertjax.finetuned import Finetuned, task_of
from bertjax.model_commands import EvaluateConfig
from bertjax.output_files import check_free, written_beside
from bertjax.scoring import score


def run(config: EvaluateConfig) -> None:
    """Print the task's scores, and write them to a file if one is named.

    Raises:
      InputError: bad input, see the messages.
    """
    task = task_of(config)
    files = config.data or config.task.validation
    if not files:
        raise InputError("data: name the examples to score (files, a directory, or tfds)")
    output = Path(config.output) if config.output else None
    if output:
        check_free([output], config.overwrite)
    model = Finetuned(config, task)
    threshold = model.null_threshold()
    split = model.read(files, with_labels=True)
    scores = score(split.data, split.rows, model.logits(split.rows), threshold).scores
    if not scores:
        raise InputError(
            f"{', '.join(files)}: the examples have no labels to compare with; "
            "bertjax predict tells what the model says of them"
        )
    if not model.writes:
        return
    for name, value in scores.items():
        print(f"{name:<{max(map(len, scores))}}  {_shown(name, value)}")
    if output:
        facts = {
            "model": config.model,
            "task": task.name,
            "data": files,
            "split": config.split,
            "examples": len(split.data.examples),
            "left_out": len(split.data.skipped),
            **({"null_threshold": threshold} if task.unanswerable else {}),
            "scores": scores,
        }
        with written_beside([output]) as (path,):
            path.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _shown(name: str, value: float) -> str:
    """Return a count as it is, a share with four digits."""
    return f"{value:.0f}" if name.endswith(("support", "total")) else f"{value:.4f}"

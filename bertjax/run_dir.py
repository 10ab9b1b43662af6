"""The run directory: what lies where, and whether it belongs to this configuration."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from bertjax.config import BertConfig
from bertjax.errors import InputError
from bertjax.run_config import FinetuneConfig, PretrainConfig, TaskConfig

CONFIG = "config.json"
VOCAB = "vocab.txt"
CHECKPOINTS = "checkpoints"
DATASET = "dataset"
MODEL = "model"
ADAPTER = "adapter"
LEFT_OUT = "left_out.txt"
DONE = "DONE"

RunConfig = PretrainConfig | FinetuneConfig

# Fields that may change when a run goes on: where and how it runs, not what it computes.
_FREE = re.compile(
    r"run_dir|mesh\..*|checkpoint\..*|data\.(workers|dataset|vocab|text|validation_text)"
    r"|model\.(remat|scan_unroll)|log_every|eval_every|eval_examples|skip_nonfinite|distributed"
    r"|init_from|task\.(train|validation)"
)


def check(config: RunConfig) -> Path:
    """Return the run directory if it is new or belongs to this configuration.

    Raises:
      InputError: not a run directory, or of another configuration (all differences are named).
    """
    directory = Path(config.run_dir)
    path = directory / CONFIG
    if not path.is_file():
        if directory.exists() and not directory.is_dir():
            raise InputError(f"{directory}: is not a directory")
        strangers = {p.name for p in directory.glob("*")} - {VOCAB, DATASET, CHECKPOINTS}
        if strangers:
            raise InputError(
                f"{directory}: holds {min(strangers)} but no {CONFIG} of a run; choose another "
                "--run-dir"
            )
        return directory
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error})") from error
    if not isinstance(found, dict) or "run_dir" not in found:
        raise InputError(f"{path}: is not the {CONFIG} of a run; choose another --run-dir")
    # Settings that came after the run was begun were what they are by default.
    found = _filled(found, _as_json(type(config)(config.run_dir)))
    differences = [
        f"{name} is {before!r} there and {now!r} here"
        for name, before, now in _differences(found, _as_json(config))
        if not _FREE.fullmatch(name)
    ]
    if differences:
        raise InputError(
            f"{directory}: belongs to another configuration: {'; '.join(differences)}. "
            "Choose another --run-dir or give the same values"
        )
    return directory


def model_config(directory: Path) -> BertConfig:
    """Return the architecture of the run in `directory`.

    Raises:
      InputError: its config.json is damaged, or is that of a fine-tuning run, which has no model
        before its first evaluation.
    """
    path = directory / CONFIG
    if task_config(directory) is not None:
        raise InputError(
            f"{directory}: this fine-tuning run has no {MODEL}/ yet: it is written at the first "
            "evaluation; let the run go on until then"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))["model"]
        known = {field.name for field in dataclasses.fields(BertConfig)}
        return BertConfig(
            **{k: _as_tuple(v) for k, v in values.items() if k in known},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: is not the {CONFIG} of a run ({error})") from error


def task_config(directory: Path) -> TaskConfig | None:
    """Return the task of the fine-tuning run in `directory`; None where there is no such run.

    Raises:
      InputError: the settings of the task are impossible.
    """
    try:
        values = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        settings = values["task"] if "run_dir" in values else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not isinstance(settings, dict):
        return None
    known = {field.name for field in dataclasses.fields(TaskConfig)}
    return TaskConfig(**{k: _as_tuple(v) for k, v in settings.items() if k in known})


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def claim(config: RunConfig) -> None:
    """Write config.json into the run directory, unless it is there.

    Raises:
      InputError: not writable.
    """
    path = Path(config.run_dir) / CONFIG
    if path.is_file():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".tmp")
        beside.write_text(json.dumps(_as_json(config), indent=2) + "\n", encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be written ({error.strerror})") from error


def _as_json(config: RunConfig) -> Any:
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _filled(found: Any, defaults: Any) -> Any:
    """Return JSON values with what is missing taken from the defaults."""
    if not isinstance(found, dict) or not isinstance(defaults, dict):
        return found
    return defaults | {name: _filled(value, defaults.get(name)) for name, value in found.items()}


def _differences(old: Any, new: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """List (dotted name, old, new) wherever two JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            difference
            for key in sorted(old.keys() | new.keys())
            for difference in _differences(
                old.get(key), new.get(key), f"{name}.{key}" if name else key
            )
        ]
    return [] if old == new else [(name, old, new)]

"""Read data sets of TFDS as rows, without TensorFlow: what is prepared, else what can be."""

import contextlib
import logging
import os
import sys
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from bertjax.data.task_files import SQUAD_FIELDS, choose_columns
from bertjax.data.task_rows import NO_LABEL, Row
from bertjax.data.tasks import Columns, Task
from bertjax.errors import InputError

_BATCH = 1000


def read_dataset(
    task: Task, name: str, split: str, needs_label: bool, data_dir: str = ""
) -> tuple[Columns, list[Row | None]]:
    """Read a split of a data set; download and prepare it, if that is not done.

    Args:
      task: says which features are needed.
      name: as in "glue/sst2" or "squad/v1.1:3.0.0", or a directory with a prepared data set.
      split: our name of the split, or TFDS's.
      needs_label: whether the data set must have the features of the label.
      data_dir: where data sets lie; empty: TFDS's own choice.

    Returns:
      The columns that it has, and its rows in stored order.

    Raises:
      InputError: there is no such data set, split or feature; it is not prepared and cannot be; or
        it is stored in a format that needs TensorFlow.
    """
    builder = _prepared(name, data_dir)
    features = builder.info.features
    if not isinstance(features, tfds.features.FeaturesDict):
        raise InputError(f"{name} has no named features; choose another data set")
    if task.family == "question_answering":
        columns = Columns(())
        used = [field for field in SQUAD_FIELDS if field in features]
        lacking = [field for field in SQUAD_FIELDS[:4] if field not in features]
        if lacking:
            raise InputError(f"{name} has no feature {lacking[0]!r}; give questions as in squad")
    else:
        columns = choose_columns(task, tuple(features), name, needs_label)
        used = [
            column
            for column in (*columns.inputs, *columns.labels, *columns.id)
            if column in features
        ]
    stored_split = task.splits.get(split, split) if name == task.dataset else split
    if builder.info.splits and stored_split.split("[")[0].strip() not in builder.info.splits:
        raise InputError(
            f"{name} has no split {stored_split!r}; it has {', '.join(builder.info.splits)}"
        )
    try:
        source = builder.as_data_source(stored_split)
    except (NotImplementedError, ValueError) as error:
        raise InputError(
            f"{name} in {builder.data_path} cannot be read: {_first_line(error)} (array_record is "
            "the format that needs no TensorFlow; prepare it with file_format array_record)"
        ) from None
    rows: list[Row | None] = []
    for start in range(0, len(source), _BATCH):
        numbers = range(start, min(start + _BATCH, len(source)))
        for number, record in zip(numbers, source.__getitems__(numbers), strict=True):
            values = {column: _plain(features[column], record[column]) for column in used}
            rows.append(Row(f"tfds:{name}", f"example {number} of {stored_split}", values))
    return columns, rows


def _prepared(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """Find a data set on disk, or prepare it."""
    if os.path.isfile(os.path.join(name, "dataset_info.json")):
        return tfds.builder_from_directory(name)
    options = {"data_dir": data_dir} if data_dir else {}
    # Datasets of these packages are not known before they are imported.
    import tensorflow_datasets.question_answering
    import tensorflow_datasets.text  # noqa: F401

    try:
        # What is prepared needs no code, which may want TensorFlow or another version.
        with contextlib.suppress(tfds.core.DatasetNotFoundError):
            return tfds.core.read_only_builder.builder_from_files(name, **options)
        builder = tfds.builder(name, file_format="array_record", **options)
    except tfds.core.DatasetNotFoundError:
        raise InputError(
            f"TFDS has no data set {name!r}, nor one prepared in {data_dir or 'its directory'}; "
            "look up its name, or give files"
        ) from None
    except (ImportError, ValueError) as error:
        raise InputError(_not_prepared(name, data_dir, error)) from None
    # Without a network each of many attempts would be told; the last one is told below.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            builder.download_and_prepare()
    except Exception as error:
        raise InputError(_not_prepared(name, os.fspath(builder.data_path), error)) from error
    return builder


def _not_prepared(name: str, where: str, error: Exception) -> str:
    """Say what came between us and a data set."""
    return (
        f"{name} is not prepared in {where or 'the directory of TFDS'}, and cannot be: "
        f"{type(error).__name__}: {_first_line(error)}; prepare it elsewhere, with file_format "
        "array_record, and give its directory, or give files"
    )


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason")


def _plain(feature: Any, value: Any) -> Any:
    """Turn a value of a feature into strings, numbers, lists and dicts; classes into names."""
    if isinstance(feature, tfds.features.Sequence):
        feature = feature.feature
        if isinstance(value, dict):
            return {key: _plain_list(feature[key], value[key]) for key in value}
        return _plain_list(feature, value)
    if isinstance(feature, tfds.features.ClassLabel):
        return NO_LABEL if value < 0 else feature.int2str(int(value))
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return value.item() if isinstance(value, np.generic | np.ndarray) else value


def _plain_list(feature: Any, values: Any) -> list[Any]:
    return [_plain(feature, value) for value in values]

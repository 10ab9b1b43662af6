"""Checkpoints in several files with a JSON index, as Hugging Face lays them out."""

import glob
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from bertjax.errors import InputError

# Stem, number of shards, suffix.
_SHARD = re.compile(r"(.+)-[0-9]{5}-of-([0-9]{5})(\.[a-z]+)")


def read_index(index: Path) -> dict[str, Path]:
    """Return the file of every tensor that an index names.

    Raises:
      InputError: the index is damaged, names files that are not there, or does not name all.
    """
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {str(name): index.parent / file for name, file in weight_map.items()}
        if any(file.parent != index.parent for file in files.values()):
            raise ValueError("files in other directories")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index}: is not an index of shards ({error!r})") from error
    missing = sorted({file.name for file in files.values() if not file.is_file()})
    if missing:
        raise InputError(f"{index}: names shards that are not there: {', '.join(missing)}")
    _check_all_named(index, {file.name for file in files.values()})
    return files


def _check_all_named(index: Path, named: set[str]) -> None:
    """Check that an index names as many shards as they say they are, and all beside it."""
    for stem, count, suffix in {found.groups() for found in map(_SHARD.fullmatch, named) if found}:
        there = {path.name for path in index.parent.glob(f"{glob.escape(stem)}-*-of-*{suffix}")}
        beside = sorted(name for name in there - named if _SHARD.fullmatch(name))
        if beside:
            raise InputError(
                f"{index}: does not name shards that lie beside it: {', '.join(beside)}; take "
                "those of another model away, or make the index anew"
            )
        whole = {f"{stem}-{i:05d}-of-{count}{suffix}" for i in range(1, int(count) + 1)}
        lacking = sorted(whole - named)
        if lacking:
            raise InputError(
                f"{index}: names {len(whole & named)} of {len(whole)} shards, and not "
                + ", ".join(lacking)
            )


def check_no_shard(path: Path) -> None:
    """Check that a file is not a part of a model alone.

    Raises:
      InputError: it is one of several shards.
    """
    found = _SHARD.fullmatch(path.name)
    if found and int(found[2]) > 1:
        raise InputError(
            f"{path}: is one of {int(found[2])} shards; give their index or their directory"
        )


def write_index(index: Path, weight_map: Mapping[str, str], total_size: int) -> None:
    """Write the index of a sharded checkpoint.

    Args:
      index: the file to write.
      weight_map: tensor name -> file name.
      total_size: bytes of all tensors.
    """
    content = {"metadata": {"total_size": total_size}, "weight_map": dict(weight_map)}
    index.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def split(
    tensors: Mapping[str, np.ndarray], file: str, max_shard_bytes: int
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield (file name, its tensors), each file of at most `max_shard_bytes`, or of one tensor.

    Args:
      tensors: by name; their order is kept.
      file: name of the file where one is enough; shards are called `STEM-00001-of-0000N.SUFFIX`.
      max_shard_bytes: bytes of tensors in one file.
    """
    groups: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if groups[-1] and size + tensor.nbytes > max_shard_bytes:
            groups.append({})
            size = 0
        groups[-1][name] = tensor
        size += tensor.nbytes
    stem, _, suffix = file.rpartition(".")
    for i, group in enumerate(groups, 1):
        yield file if len(groups) == 1 else f"{stem}-{i:05d}-of-{len(groups):05d}.{suffix}", group

"""Files that a command writes: never half there, and never in the place of others unasked."""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from bertjax.errors import InputError


def check_free(paths: Sequence[Path], overwrite: bool) -> None:
    """Check, before the work, that files can be written.

    Args:
      paths: the files.
      overwrite: whether files may be there already.

    Raises:
      InputError: one is there already, or is or lies in what is no place for a file.
    """
    for path in paths:
        if path.is_dir():
            raise InputError(f"{path}: is a directory; name a file")
        if path.exists() and not overwrite:
            raise InputError(f"{path}: is there already; name another output, or give --overwrite")
        _check_directory(path.parent)


def _check_directory(directory: Path) -> None:
    """Check that files can be made in a directory, or that it can be made."""
    there = next(parent for parent in (directory, *directory.parents) if parent.exists())
    if not there.is_dir():
        raise InputError(f"{directory}: cannot be written ({there} is a file)")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise InputError(f"{directory}: cannot be written ({error.strerror})") from error


@contextlib.contextmanager
def written_beside(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Yield where to write files of one directory; they are moved to their place at the end.

    After an exception none is.

    Raises:
      InputError: a file cannot be written.
    """
    directory = paths[0].parent
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory, prefix=".bertjax-") as beside:
            places = [Path(beside) / path.name for path in paths]
            yield places
            for place, path in zip(places, paths, strict=True):
                place.replace(path)
    except OSError as error:
        raise InputError(f"{directory}: cannot be written ({error.strerror or error})") from error


def as_os_error(error: Exception) -> OSError:
    """Return the error of the operating system that a library's own exception tells of in words."""
    code = re.search(r"os[ _]error(?:_code=')? ?(\d+)", str(error))
    if code:
        return OSError(int(code[1]), os.strerror(int(code[1])))
    return OSError(f"{type(error).__name__}: {' '.join(str(error).split())}")

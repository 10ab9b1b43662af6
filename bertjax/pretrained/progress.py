"""Bars of weights that are read and written, on stderr, where somebody looks at a terminal."""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

_INTERVAL = 0.1  # seconds


@contextlib.contextmanager
def bar(what: str, size: int, *, shown: bool) -> Iterator[Callable[[int], object]]:
    """Show a bar while the block runs; yield what moves it on by some bytes.

    Args:
      what: is being done.
      size: bytes in all.
      shown: False shows nothing.
    """
    with _bar(what, size, shown) as progress:
        yield progress.update


@contextlib.contextmanager
def watching(directory: Path, size: int, *, shown: bool) -> Iterator[None]:
    """Show how the files below a directory grow while the block runs, whatever writes them.

    Args:
      directory: where the files are written.
      size: bytes that they will have, more or less.
      shown: False shows nothing.
    """
    with _bar("writing", size, shown) as progress:
        if progress.disable:
            yield
            return
        done = threading.Event()

        def poll() -> None:
            finished = False
            while not finished:
                finished = done.wait(_INTERVAL)
                progress.n = min(_size(directory), size)
                progress.refresh()

        thread = threading.Thread(target=poll)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def _bar(what: str, size: int, shown: bool) -> "tqdm[Any]":
    return tqdm(
        desc=what,
        total=size,
        unit="B",
        unit_scale=True,
        dynamic_ncols=True,
        file=sys.stderr,
        disable=None if shown else True,  # None: where stderr is no terminal
    )


def _size(directory: Path) -> int:
    total = 0
    for path in directory.rglob("*"):
        with contextlib.suppress(OSError):  # renamed meanwhile
            total += path.stat().st_size
    return total

"""Batches that are computed while the results of others are read."""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import jax

_Batch = TypeVar("_Batch")

# Batches that are computed while the results of one are read.
_AHEAD = 2

# Batches that a CPU computes at the same time: while some threads wait for the slowest of a
# product, they have another batch's work. JAX runs what one thread asks for in turn.
_AT_ONCE = 2


class Overlap:
    """Computes batches, some ahead of the one whose results are read.

    Args:
      on_one_cpu: whether one CPU computes, which then has two batches at the same time: a second
        thread asks for them.
      ahead: whether batches are started before the results of those before are there. Where
        several processes compute together, no: their exchanges could cross.
    """

    def __init__(self, *, on_one_cpu: bool, ahead: bool = True) -> None:
        self._ahead = _AHEAD if ahead else 0
        self._pool = ThreadPoolExecutor(_AT_ONCE) if on_one_cpu else None
        self._compiled: set[Hashable] = set()

    def __call__(
        self,
        batches: Iterable[_Batch],
        compute: Callable[[_Batch], Any],
        shape: Callable[[_Batch], Hashable],
    ) -> Iterator[tuple[_Batch, Any]]:
        """Yield each batch with its results as numpy arrays, in order.

        Args:
          batches: the batches.
          compute: returns the arrays of a batch's results; need not wait for them.
          shape: tells batches apart that other programs compute. The first of each is computed by
            the caller's thread, so that each program is compiled once.
        """
        pending: deque[tuple[_Batch, Callable[[], Any]]] = deque()
        for batch in batches:
            pending.append((batch, self._started(partial(compute, batch), shape(batch))))
            if len(pending) > self._ahead:
                begun, results = pending.popleft()
                yield begun, results()
        for begun, results in pending:
            yield begun, results()

    def _started(self, compute: Callable[[], Any], shape: Hashable) -> Callable[[], Any]:
        """Start a computation; return what waits for its results."""
        if self._pool is not None and shape in self._compiled:
            return self._pool.submit(lambda: jax.device_get(compute())).result
        self._compiled.add(shape)
        return partial(jax.device_get, compute())

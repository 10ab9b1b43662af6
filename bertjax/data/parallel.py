"""Tokenize chunks on several processes of this machine, in order and in bounded memory."""

import collections
import concurrent.futures
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterable, Iterator

from bertjax.data.encoding import EncodedChunk, EncoderSettings, encode_chunk
from bertjax.data.text import TextChunk


def encode_in_order(
    chunks: Iterable[TextChunk], settings: EncoderSettings, workers: int
) -> Iterator[tuple[int, EncodedChunk]]:
    """Yield the stored bytes and the records of each chunk, in the order of the chunks.

    At most two chunks a worker are under way. With one worker the work is done in this process.

    Raises:
        InputError: a chunk holds a bad line.
        RuntimeError: a worker died.
    """
    if workers == 1:
        for chunk in chunks:
            yield chunk.stored_bytes, encode_chunk(settings, chunk)
        return
    pending: collections.deque[tuple[int, concurrent.futures.Future[EncodedChunk]]]
    pending = collections.deque()
    # Not fork: the process that calls may have threads of JAX, which do not survive it.
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start_worker
    )
    try:
        for chunk in chunks:
            pending.append((chunk.stored_bytes, pool.submit(encode_chunk, settings, chunk)))
            if len(pending) > 2 * workers:
                stored_bytes, future = pending.popleft()
                yield stored_bytes, future.result()
        for stored_bytes, future in pending:
            yield stored_bytes, future.result()
    except concurrent.futures.process.BrokenProcessPool:
        raise RuntimeError(
            "a process that tokenizes died: memory may have run out (take fewer workers), or the "
            "script that calls this lacks `if __name__ == '__main__':`"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Set up a worker: one core, left alone by Ctrl-C, and gone when its parent is."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

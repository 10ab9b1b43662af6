"""How many pretraining examples one core makes: bertjax against transformers' collator.

`DataCollatorForLanguageModeling` masks ready-made lists of token ids into torch tensors. bertjax
reads records, pairs segments and masks them, into numpy arrays. Both make batches of 32 in the same
run, in alternating rounds; the figures are medians over the rounds, in examples a second and core.

    python benchmarks/examples.py TEXT_DIR [--vocab vocab.txt]
    python benchmarks/examples.py --dataset DATASET_DIR

"cached": all records decoded already, as in any corpus of up to 16 million tokens; "reading": every
record is read and decoded again, as in a corpus far larger than the cache. Of packed rows
(`--data.pack`), which hold several examples each, it is the rows that are counted.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bertjax.data.corpus import build_corpus
from bertjax.data.documents import Documents, open_documents
from bertjax.data.packed_pretraining import PackedExamples
from bertjax.data.pretraining import PretrainingExamples, Source, pretraining_batches
from bertjax.data.vocab import build_vocab, read_vocab, special_ids
from bertjax.run_config import CorpusConfig, DataConfig, VocabConfig

BATCH = 32
SHAPES = ((128, 20), (512, 77))
BOOKS = Path(__file__).parent.parent / "experiments" / "data"


def main() -> None:
    """Build the dataset if need be, measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("text", nargs="?", default=str(BOOKS), help="directory of .txt files")
    parser.add_argument("--vocab", default="", help="vocab.txt; learned from the text if left out")
    parser.add_argument("--dataset", default="", help="a dataset that is built already")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        dataset = arguments.dataset or build(arguments.text, arguments.vocab, scratch)
        for length, predictions in SHAPES:
            measure(dataset, length, predictions, arguments.rounds, arguments.seconds)


def build(text: str, vocab: str, scratch: str) -> str:
    """Build a dataset of all books in a directory; return where it is."""
    files = (f"{text}/*.txt",)
    vocab = vocab or str(build_vocab(VocabConfig(files, f"{scratch}/vocab.txt")))
    return str(build_corpus(CorpusConfig(files, vocab, f"{scratch}/dataset", layout="book")))


def measure(dataset: str, length: int, predictions: int, rounds: int, seconds: float) -> None:
    """Print examples per second and core of every contestant at one sequence length."""
    cores = sorted(os.sched_getaffinity(0))
    cached = open_documents(dataset)
    cached.read(cached.record_starts[:-1], cached.record_starts[1:])
    reading = open_documents(dataset, cached_records=0)
    of_cached = examples(dataset, cached, length, predictions)
    of_reading = examples(dataset, reading, length, predictions)
    begin = time.process_time()
    packed = PackedExamples(of_cached)
    shared = packed.epoch_size(0)
    laid_out = time.process_time() - begin
    # Threads run where the thread that made them did.
    os.sched_setaffinity(0, cores[:1])
    contestants: dict[str, tuple[Iterator[Any], list[int]]] = {
        "transformers collator": (collator_batches(dataset, length), cores[:1]),
        "bertjax, cached": (direct_batches(of_cached), cores[:1]),
        "bertjax, packed rows, cached": (direct_batches(packed), cores[:1]),
        "bertjax, reading": (direct_batches(of_reading), cores[:1]),
        "bertjax, threads, cached": (pretraining_batches(of_cached, BATCH), cores[:1]),
    }
    os.sched_setaffinity(0, cores)
    for name, source in (("cached", of_cached), ("reading", of_reading)):
        batches = pretraining_batches(source, BATCH, workers=2)
        contestants[f"bertjax, processes, {name}"] = (batches, cores)
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, (batches, used) in contestants.items():
            os.sched_setaffinity(0, used)
            found = rate(batches.__next__, seconds) / len(used)
            # The first round starts threads and processes and fills their caches.
            if number:
                rates[name].append(found)
    os.sched_setaffinity(0, cores)
    baseline = statistics.median(rates["transformers collator"])
    print(f"T={length}, batches of {BATCH}, 2 processes on {len(cores)} cores")
    for name, of_rounds in rates.items():
        median = statistics.median(of_rounds)
        print(
            f"  {name:30s} {median:8,.0f} /s/core  {median / baseline:5.2f}x   "
            f"({min(of_rounds):,.0f} to {max(of_rounds):,.0f})"
        )
    count = of_cached.epoch_size(0)
    alone = of_cached.lengths(np.arange(count)).sum() / length
    print(
        f"  {count:,} examples fill {alone / count:.1%} of rows of their own and "
        f"{alone / shared:.1%} of packed ones, {count / shared:.2f} a row; "
        f"laid out in {laid_out:.1f} s of a core"
    )


def examples(
    dataset: str, documents: Documents, length: int, predictions: int
) -> PretrainingExamples:
    """Return bertjax's examples with google's settings."""
    pieces = read_vocab(f"{dataset}/vocab.txt")
    config = DataConfig(sequence_length=length, max_predictions_per_seq=predictions)
    return PretrainingExamples(documents, config, special_ids(pieces), len(pieces), 0)


def direct_batches(source: Source) -> Iterator[Any]:
    """Make batches in the calling thread."""
    start = 0
    while True:
        yield source.batch(np.arange(start, start + BATCH))
        start += BATCH


def collator_batches(dataset: str, length: int) -> Iterator[Any]:
    """Mask id lists of half to full length, ready made from the corpus, with transformers."""
    import torch
    from transformers import BertTokenizerFast, DataCollatorForLanguageModeling

    torch.set_num_threads(1)
    tokenizer = BertTokenizerFast(vocab=f"{dataset}/vocab.txt")
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=True, return_tensors="pt")
    rng = np.random.default_rng(0)
    documents = open_documents(dataset)
    lists = []
    for start in rng.integers(0, len(documents.sentence_lengths) - length, 50 * BATCH):
        inner = int(rng.integers(length // 2, length + 1)) - 2
        tokens = documents.tokens(int(start), int(start) + inner)[:inner].tolist()
        lists.append([tokenizer.cls_token_id, *tokens, tokenizer.sep_token_id])
    while True:
        for start in range(0, len(lists), BATCH):
            yield collator([{"input_ids": ids} for ids in lists[start : start + BATCH]])


def rate(make_batch: Callable[[], Any], seconds: float) -> float:
    """Return examples per second over about `seconds`, after using up what was made ahead."""
    for _ in range(24):
        make_batch()
    count, begin = 0, time.perf_counter()
    while (spent := time.perf_counter() - begin) < seconds:
        make_batch()
        count += BATCH
    return count / spent


if __name__ == "__main__":
    main()

"""Speed of `build_corpus` against the bare `tokenizers` library on the same text and cores.

    python benchmarks/build_corpus.py --vocab vocab.txt books/*.txt

Both read the files, in alternating rounds. The library encodes their lines on all cores and throws
the tokens away; build_corpus splits sentences, tokenizes, writes and indexes the dataset, and its
time includes starting its processes. The processor time tells on a machine that others use too.
"""

import argparse
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

from bertjax.data.corpus import build_corpus
from bertjax.data.documents import read_corpus_json
from bertjax.data.text import find_files, read_lines
from bertjax.run_config import CorpusConfig
from bertjax.tokenizer_backend import bert_tokenizer

_BATCH = 1000


def cpu_seconds() -> float:
    """Return the processor time of this process and of those it has ended."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def bare_library(files: list[str], vocab: str) -> int:
    """Encode the lines of the files; return the number of tokens."""
    tokenizer = bert_tokenizer(vocab)
    lines = [line for line in read_lines(find_files(files)) if line.strip()]
    tokens = 0
    for start in range(0, len(lines), _BATCH):
        batch = tokenizer.encode_batch_fast(lines[start : start + _BATCH], add_special_tokens=False)
        tokens += sum(map(len, batch))
    return tokens


def whole_build(files: list[str], vocab: str, workers: int) -> int:
    """Build a dataset of the files and remove it; return the number of tokens."""
    with tempfile.TemporaryDirectory() as directory:
        output = str(Path(directory) / "corpus")
        build_corpus(
            CorpusConfig(
                files=tuple(files), vocab=vocab, output=output, layout="book", workers=workers
            )
        )
        return int(read_corpus_json(output)["splits"]["train"]["tokens"])


def main() -> None:
    """Print tokens per second and core of both, round by round, their medians and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+")
    parser.add_argument("--vocab", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0)
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    jobs = {
        "tokenizers": lambda: bare_library(arguments.files, arguments.vocab),
        "build_corpus": lambda: whole_build(arguments.files, arguments.vocab, arguments.workers),
    }
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
    for number in range(1, arguments.rounds + 1):
        for name, job in jobs.items():
            begin, cpu_begin = time.perf_counter(), cpu_seconds()
            tokens = job()
            seconds, cpu = time.perf_counter() - begin, cpu_seconds() - cpu_begin
            rates[name].append((tokens / seconds / cores, tokens / cpu))
            print(
                f"round {number}: {name:12} {tokens:,} tokens in {seconds:.1f} s, {cpu:.1f} s of "
                f"processor time: {rates[name][-1][0]:,.0f} tokens/s/core"
            )
    for index, unit in enumerate(("tokens/s/core", "tokens per second of processor time")):
        bare, build = (statistics.median(rate[index] for rate in rates[name]) for name in jobs)
        print(
            f"medians, {unit}: tokenizers {bare:,.0f}, build_corpus {build:,.0f}, "
            f"ratio {build / bare:.2f}"
        )


if __name__ == "__main__":
    main()

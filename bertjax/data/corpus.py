"""`bertjax build-corpus`: tokenize raw text into a dataset directory.

The directory is built beside its final name and renamed when it is whole, so one that exists is
finished. It holds the TFDS dataset, the index of its sentences, the vocabulary, and corpus.json,
which says what it was made from.
"""

import contextlib
import errno
import fcntl
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow_datasets as tfds

from bertjax.data.corpus_builder import BertCorpus, ShardIndex
from bertjax.data.documents import FORMAT, read_corpus_json
from bertjax.data.encoding import RECORD_TOKENS, EncoderSettings
from bertjax.data.text import TextFile, find_files
from bertjax.data.vocab import read_vocab
from bertjax.errors import InputError
from bertjax.run_config import CorpusConfig

_SAMPLES = 256
_SAMPLE_BYTES = 1 << 16


def build_corpus(config: CorpusConfig) -> Path:
    """Build the dataset directory, or find that it is there already.

    The records, their order and the index depend on the text and the vocabulary alone, not on
    workers or engine.

    Returns:
        `config.output`.

    Raises:
        InputError: bad text, vocabulary or option; or the output exists with another content.
        OSError: the disk is full.
    """
    output = Path(config.output)
    splits = _find_splits(config)
    pieces = read_vocab(config.vocab)
    request = {
        "format": FORMAT,
        "vocab_sha256": hashlib.sha256(Path(config.vocab).read_bytes()).hexdigest(),
        "lowercase": config.lowercase,
        "layout": config.layout,
        "skip_bad": config.skip_bad,
        "sources": {split: list(map(_source, files)) for split, files in splits.items()},
    }
    if _is_built(output, request):
        print(
            f"{output} was built from the same input already; it is used as it is", file=sys.stderr
        )
        return output
    settings = EncoderSettings(
        os.path.abspath(config.vocab), len(pieces), config.lowercase, config.skip_bad
    )
    with _directory(output) as directory:
        builder = BertCorpus(
            data_dir=str(directory),
            splits=splits,
            settings=settings,
            workers=_workers(config),
            use_beam=bool(config.beam_runner),
        )
        _run(builder, _download_config(config))
        shutil.rmtree(directory / "downloads", ignore_errors=True)
        counts = {split: _finish_split(directory, builder, split) for split in splits}
        _write_skipped(directory, builder)
        shutil.copyfile(config.vocab, directory / "vocab.txt")
        corpus = json.dumps({**request, "splits": counts}, indent=2, ensure_ascii=False)
        (directory / "corpus.json").write_text(corpus + "\n", "utf-8")
    for split, values in counts.items():
        _tell(output, split, values)
    return output


def _find_splits(config: CorpusConfig) -> dict[str, list[TextFile]]:
    """Return the files of each split; a file may not be in both."""
    if not config.files:
        raise InputError("files is empty: name the text files of the training split")
    splits = {"train": find_files(config.files, config.layout)}
    if config.validation_files:
        splits["validation"] = find_files(config.validation_files, config.layout)
        train = {os.path.realpath(file.path) for file in splits["train"]}
        for file in splits["validation"]:
            if os.path.realpath(file.path) in train:
                raise InputError(f"{file.path} is in files and in validation_files; keep it in one")
    return splits


def _source(file: TextFile) -> dict[str, Any]:
    """Describe a file by its name, layout, size and a digest of evenly spread samples.

    Files up to 16 MiB are sampled whole, so that only an edit that keeps the size of a larger file
    can be missed.
    """
    size = os.path.getsize(file.path)
    digest = hashlib.sha256()
    try:
        with open(file.path, "rb") as stream:
            if size <= _SAMPLES * _SAMPLE_BYTES:
                digest.update(stream.read())
            else:
                for index in range(_SAMPLES):
                    stream.seek(index * (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
                    digest.update(stream.read(_SAMPLE_BYTES))
    except OSError as error:
        raise InputError(f"cannot read {file.path}: {error.strerror}") from None
    name = os.path.basename(file.path)
    return {"name": name, "layout": file.layout, "bytes": size, "digest": digest.hexdigest()}


def _is_built(output: Path, request: dict[str, Any]) -> bool:
    """Whether `output` is what `request` would build.

    Raises:
        InputError: it is something else.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    if not output.is_dir():
        raise InputError(f"{output} is a file; name a directory to create")
    if not (output / "corpus.json").exists():
        raise InputError(f"{output} exists and is no dataset; name another output or remove it")
    built = read_corpus_json(output)
    different = [name for name, value in request.items() if built.get(name) != value]
    if different:
        raise InputError(
            f"{output} exists and was built with other {', '.join(different)}; name another output "
            "or remove it"
        )
    return True


def _workers(config: CorpusConfig) -> int:
    if config.workers < 0:
        raise InputError(f"workers must be 0 (all cores) or more; got {config.workers}")
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return config.workers or cores


def _download_config(config: CorpusConfig) -> tfds.download.DownloadConfig:
    """Return how TFDS is to build: on which Beam runner, if any.

    Raises:
        InputError: Beam is not installed, there is no such runner, or an option is malformed.
    """
    if not config.beam_runner:
        if config.beam_options:
            raise InputError("beam_options are given without beam_runner; name the runner too")
        return tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
        from apache_beam.runners import create_runner
    except ImportError:
        raise InputError("Apache Beam is missing: pip install 'bertjax[beam]'") from None
    options: dict[str, Any] = {}
    for option in config.beam_options:
        key, equals, value = option.partition("=")
        if not key or not equals:
            raise InputError(f"beam_options: {option!r} is not KEY=VALUE")
        options[key.removeprefix("--")] = True if value.lower() == "true" else value
    try:
        create_runner(config.beam_runner)
    except (ValueError, AttributeError, ImportError) as error:
        raise InputError(f"beam_runner {config.beam_runner!r} cannot be used: {error}") from None
    return tfds.download.DownloadConfig(
        try_download_gcs=False,
        beam_runner=config.beam_runner,
        beam_options=PipelineOptions.from_dictionary(options),
    )


def _run(builder: BertCorpus, download_config: tfds.download.DownloadConfig) -> None:
    """Run the build; an InputError of a Beam worker comes out of it as one."""
    try:
        # TFDS prints its own account of the build, with the name of the unfinished directory.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(download_config=download_config)
    except InputError:
        raise
    except Exception as error:
        if told := re.search(r"InputError: (.*?)(?: \[while running |\\n|\n|$)", str(error)):
            raise InputError(told[1]) from None
        raise


@contextlib.contextmanager
def _directory(output: Path) -> Iterator[Path]:
    """Give a directory beside `output` to build in, which is renamed to it at the end.

    What a killed build has left there is removed first. If the build fails, everything is.
    """
    directory = output.absolute().with_name(f".{output.name}.unfinished")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"cannot write {output}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"another process is building {output}; wait for it") from None
        for left in directory.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        try:
            yield directory
            os.replace(directory, output)
        except BaseException as error:
            shutil.rmtree(directory, ignore_errors=True)
            if _is_disk_full(error):
                raise OSError(
                    errno.ENOSPC, f"the disk is full: no room to build {output}; nothing was kept"
                ) from error
            raise
    finally:
        os.close(lock)


def _is_disk_full(error: BaseException) -> bool:
    """Whether the disk is full, which native code tells in words only."""
    return getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error)


def _finish_split(directory: Path, builder: BertCorpus, split: str) -> dict[str, int]:
    """Write the index of a split from those of its shards, and return its counts."""
    template = builder.info.splits[split].filename_template
    number = builder.info.splits[split].num_shards
    shards = [Path(os.fspath(path)) for path in template.sharded_filepaths(number)]
    records = sentences = tokens = documents = 0
    for shard in map(ShardIndex.read, shards):
        records += len(shard.documents)
        sentences += len(shard.sentence_lengths)
        tokens += int(shard.sentence_lengths.sum(dtype=np.int64))
        documents = int(shard.documents[-1]) + 1
    index = directory / "index" / split
    index.mkdir(parents=True)
    lengths = (shard.sentence_lengths for shard in map(ShardIndex.read, shards))
    _write_npy(index / "sentence_lengths.npy", np.dtype(np.uint16), sentences, lengths)
    end = [np.array([sentences])]
    starts = itertools.chain((record for record, _ in _starts(shards)), end)
    _write_npy(index / "record_starts.npy", np.dtype(np.int64), records + 1, starts)
    starts = itertools.chain((document for _, document in _starts(shards)), end)
    _write_npy(index / "document_starts.npy", np.dtype(np.int64), documents + 1, starts)
    for path in shards:
        ShardIndex.remove(path)
    report = builder.reports[split]
    document_starts = np.load(index / "document_starts.npy", mmap_mode="r")
    return {
        "documents": documents,
        "sentences": sentences,
        "tokens": tokens,
        "skipped_lines": len(report.bad),
        "cut_sentences": report.cut_sentences,
        "single_sentence_documents": int((np.diff(document_starts) == 1).sum()),
    }


def _starts(
    shards: list[Path],
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Yield the sentences at which the records and the documents of each shard begin."""
    sentences, document = 0, -1
    for shard in map(ShardIndex.read, shards):
        ends = sentences + np.cumsum(shard.record_sentences)
        starts = ends - shard.record_sentences
        yield starts, starts[np.diff(shard.documents, prepend=document) > 0]
        sentences, document = int(ends[-1]), int(shard.documents[-1])


def _write_npy(
    path: Path, dtype: np.dtype[Any], length: int, arrays: Iterable[npt.NDArray[Any]]
) -> None:
    """Write a 1-D .npy file of `length` numbers that come in pieces."""
    header = {"descr": dtype.str, "fortran_order": False, "shape": (length,)}
    with open(path, "wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for array in arrays:
            stream.write(array.astype(dtype, copy=False).tobytes())


def _write_skipped(directory: Path, builder: BertCorpus) -> None:
    """List the lines that were skipped, if any, in skipped_lines.txt."""
    bad = [line for report in builder.reports.values() for line in report.bad]
    if bad:
        text = "".join(f"{line}\n" for line in bad)
        (directory / "skipped_lines.txt").write_text(text, "utf-8", errors="surrogateescape")


def _tell(output: Path, split: str, counts: dict[str, int]) -> None:
    """Say on stderr what a split holds, and what was not taken as it was."""
    notes = [
        f"{split}: {counts['documents']:,} documents, {counts['sentences']:,} sentences, "
        f"{counts['tokens']:,} tokens"
    ]
    if counts["single_sentence_documents"]:
        notes.append(f"{counts['single_sentence_documents']:,} documents have one sentence only")
    if counts["cut_sentences"]:
        notes.append(
            f"{counts['cut_sentences']:,} sentences of more than {RECORD_TOKENS} tokens were cut"
        )
    if counts["skipped_lines"]:
        notes.append(
            f"{counts['skipped_lines']:,} bad lines were skipped, see {output}/skipped_lines.txt"
        )
    print("; ".join(notes), file=sys.stderr)

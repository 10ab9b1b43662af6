"""The dataset on disk: one content whatever builds it, the contract of its parts, and bad input."""

import errno
import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import writer as tfds_writer

from bertjax.data import corpus_builder, text
from bertjax.data.corpus import build_corpus
from bertjax.data.encoding import RECORD_TOKENS, ChunkCounts, Numbering
from bertjax.data.text import find_files, read_documents
from bertjax.data.vocab import build_vocab
from bertjax.errors import InputError
from bertjax.run_config import CorpusConfig, VocabConfig
from bertjax.tokenizer_backend import bert_tokenizer

ROOT = Path(__file__).parent.parent
DATA = Path(__file__).parent / "data" / "text"
BOOKS = (str(DATA / "alice.txt"), str(DATA / "holmes.txt"))


@pytest.fixture(scope="module")
def vocab(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    return str(build_vocab(VocabConfig(BOOKS, str(path), 1500)))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr(text, "CHUNK_BYTES", 1 << 16)
    # Beam leaves empty directories wherever temporary files go.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("beam")))


@pytest.fixture(scope="module")
def long_text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Several chunks of text with documents of all sizes, some of them over chunk borders."""
    path = tmp_path_factory.mktemp("text") / "long.txt"
    paragraphs = [line for book in BOOKS for line in Path(book).read_text("utf-8").split("\n\n")]
    rng = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as stream:
        while stream.tell() < 5 << 16:
            size = int(rng.choice([1, 3, 150], p=[0.5, 0.45, 0.05]))
            stream.write(
                "\n".join(rng.choice(paragraphs, size)).strip() + "\n" * int(rng.integers(2, 4))
            )
    return str(path)


def build(output: Path, vocab: str, **options: Any) -> Path:
    options = {"files": BOOKS, "layout": "book", "workers": 1} | options
    return build_corpus(CorpusConfig(vocab=vocab, output=str(output), **options))


def records(directory: Path, split: str = "train") -> list[dict[str, Any]]:
    builder = tfds.builder_from_directory(str(directory / "bert_corpus" / "1.0.0"))
    source = builder.as_data_source(split)
    return [source[index] for index in range(len(source))]


def content(directory: Path) -> dict[str, str]:
    """Digests of all that a dataset holds, apart from how records are spread over shards."""
    digests = {}
    for split in json.loads((directory / "corpus.json").read_text())["splits"]:
        digest = hashlib.sha256()
        for record in records(directory, split):
            for name in sorted(record):
                value = np.asarray(record[name])
                digest.update(f"{name}{value.dtype}{value.shape}".encode() + value.tobytes())
        digests[split] = digest.hexdigest()
    for path in [*sorted(directory.glob("index/*/*")), directory / "corpus.json"]:
        digests[path.name + path.parent.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    digests.pop(f"corpus.json{directory.name}")
    digests["corpus.json"] = (directory / "corpus.json").read_text()
    return digests


def check_contract(directory: Path, vocab: str, files: tuple[str, ...], layout: str) -> None:
    """Compare a dataset with its text, tokenized sentence by sentence in the plainest way."""
    tokenizer = bert_tokenizer(vocab)
    tokenizer.encode_special_tokens = True
    documents = [
        lengths_and_ids
        for document in read_documents(find_files(files, layout))  # type: ignore[arg-type]
        if (
            lengths_and_ids := [
                ids
                for sentence in document
                if (ids := tokenizer.encode(sentence, add_special_tokens=False).ids)
            ]
        )
    ]
    index = {path.stem: np.load(path) for path in (directory / "index" / "train").glob("*.npy")}
    found: list[list[list[int]]] = []
    starts, document_starts = [0], [0]
    for record in records(directory):
        assert record["tokens"].dtype == record["sentence_lengths"].dtype == np.uint16
        assert 0 < len(record["tokens"]) <= RECORD_TOKENS
        assert record["sentence_lengths"].sum() == len(record["tokens"])
        if record["document"] == len(found):
            document_starts.append(document_starts[-1])
            found.append([])
        assert record["document"] == len(found) - 1
        ends = np.cumsum(record["sentence_lengths"])[:-1]
        found[-1] += [part.tolist() for part in np.split(record["tokens"], ends)]
        starts.append(starts[-1] + len(record["sentence_lengths"]))
        document_starts[-1] = starts[-1]
    assert found == documents
    assert index["record_starts"].tolist() == starts
    assert index["document_starts"].tolist() == document_starts
    lengths = [len(sentence) for document in documents for sentence in document]
    assert index["sentence_lengths"].tolist() == lengths
    assert [index[name].dtype for name in sorted(index)] == [np.int64, np.int64, np.uint16]
    corpus = json.loads((directory / "corpus.json").read_text())
    assert corpus["format"] == 1
    assert corpus["lowercase"] is True
    assert corpus["layout"] == layout
    copied = (directory / "vocab.txt").read_bytes()
    assert corpus["vocab_sha256"] == hashlib.sha256(copied).hexdigest()
    assert copied == Path(vocab).read_bytes()
    assert corpus["splits"]["train"] == {
        "documents": len(documents),
        "sentences": len(lengths),
        "tokens": sum(lengths),
        "skipped_lines": 0,
        "cut_sentences": 0,
        "single_sentence_documents": sum(len(document) == 1 for document in documents),
    }


@pytest.mark.parametrize("layout", ["sentences", "paragraphs", "book"])
def test_the_records_are_the_text(tmp_path: Path, vocab: str, long_text: str, layout: str) -> None:
    directory = build(tmp_path / "d", vocab, files=(*BOOKS, long_text), layout=layout)
    check_contract(directory, vocab, (*BOOKS, long_text), layout)
    assert sorted(path.name for path in directory.iterdir()) == [
        "bert_corpus", "corpus.json", "index", "vocab.txt",
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


ENGINES: dict[str, dict[str, Any]] = {
    "two": {"workers": 2},
    "three": {"workers": 3},
    "beam": {"beam_runner": "DirectRunner"},
    "beam_threads": {
        "beam_runner": "DirectRunner",
        "beam_options": ("direct_num_workers=2", "direct_running_mode=multi_threading"),
    },
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "engines"), [("paragraphs", ["two", "beam_threads"]), ("book", ["three", "beam"])]
)
def test_workers_engines_and_packing_change_nothing(
    tmp_path: Path, vocab: str, long_text: str, layout: str, engines: list[str]
) -> None:
    options = {"layout": layout, "validation_files": (BOOKS[1],)}
    files = (long_text, BOOKS[0])
    reference = content(build(tmp_path / "one", vocab, files=files, **options))
    assert set(reference) > {"train", "validation"}
    for name in engines:
        built = build(tmp_path / name, vocab, files=files, **options | ENGINES[name])
        assert content(built) == reference
    packed = tmp_path / "long.txt.gz"
    packed.write_bytes(gzip.compress(Path(long_text).read_bytes()))
    from_packed = content(
        build(tmp_path / "packed", vocab, files=(str(packed), BOOKS[0]), workers=2, **options)
    )
    assert {**from_packed, "corpus.json": ""} == {**reference, "corpus.json": ""}


def test_shards(
    tmp_path: Path, vocab: str, long_text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = build(tmp_path / "whole", vocab, files=(long_text,))
    monkeypatch.setattr(corpus_builder, "RECORDS_PER_SHARD", 20)
    parts = build(tmp_path / "parts", vocab, files=(long_text,))
    assert content(parts) == content(whole)
    number = -(-len(records(whole)) // 20)
    assert number > 2
    shards = sorted(path.name for path in (parts / "bert_corpus" / "1.0.0").glob("*array_record*"))
    assert shards == [
        f"bert_corpus-train.array_record-{i:05d}-of-{number:05d}" for i in range(number)
    ]


def test_jsonl(tmp_path: Path, vocab: str) -> None:
    path = tmp_path / "a.jsonl"
    paragraphs = Path(BOOKS[0]).read_text("utf-8").split("\n\n")
    texts = ["\n".join(paragraphs[:9]), "", "\u200b", paragraphs[9]]
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    directory = build(tmp_path / "d", vocab, files=(str(path),))
    check_contract(directory, vocab, (str(path),), "book")
    assert records(directory)[-1]["document"] == 1


def test_numbering_of_documents_that_span_chunks() -> None:
    numbering = Numbering()
    chunks = [
        (False, [2, 0, 1], 0, [0, 0, 1]),
        (True, [3], 3, [1, 1, 1]),  # the middle of document 1
        (True, [0, 1], 6, [2]),  # its end has no token
        (True, [], 7, []),  # all lines were bad
        (True, [1], 7, [2]),
        (False, [0], 8, []),  # begins a document without a token yet
        (True, [1, 1], 8, [3, 4]),
    ]
    for continues, counts, first, documents in chunks:
        place = numbering.place(ChunkCounts(continues, np.array(counts, np.int32), 0, []))
        assert place[0] == first
        assert place[1].tolist() == documents
    assert (numbering.records, numbering.documents) == (10, 5)


def test_long_sentences_are_cut_and_counted(
    tmp_path: Path, vocab: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("the " * 5000 + "\n" + "a " * 2048 + "\nthe the\nthe\n" + "a " * 2045 + "\n")
    directory = build(tmp_path / "d", vocab, files=(str(path),), layout="sentences")
    lengths = np.load(directory / "index" / "train" / "sentence_lengths.npy")
    assert lengths.tolist() == [2048, 2048, 904, 2048, 2, 1, 2045]
    starts = np.load(directory / "index" / "train" / "record_starts.npy")
    assert starts.tolist() == [0, 1, 2, 3, 4, 7]  # the last is full to the token
    assert (
        json.loads((directory / "corpus.json").read_text())["splits"]["train"]["cut_sentences"] == 1
    )
    assert "1 sentences of more than 2048 tokens were cut" in capsys.readouterr().err


def test_special_tokens_in_the_text_are_text(tmp_path: Path, vocab: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text("the [MASK] and [SEP] of [PAD]\n")
    (record,) = records(build(tmp_path / "d", vocab, files=(str(path),)))
    assert not {0, 101, 102, 103} & set(record["tokens"].tolist())


def test_large_vocabularies_take_wider_tokens(tmp_path: Path, vocab: str) -> None:
    pieces = Path(vocab).read_text("utf-8") + "".join(f"q{i}\n" for i in range(70_000)) + "zq\n"
    tmp_path.joinpath("vocab.txt").write_text(pieces, "utf-8")
    tmp_path.joinpath("a.txt").write_text("the zq\n")
    directory = build(tmp_path / "d", str(tmp_path / "vocab.txt"), files=(str(tmp_path / "a.txt"),))
    (record,) = records(directory)
    assert record["tokens"].dtype == np.uint32
    assert record["tokens"][-1] == 1500 + 70_000


@pytest.mark.parametrize("engine", [{"workers": 2}, {"beam_runner": "DirectRunner"}])
def test_bad_lines_are_told_or_skipped_and_listed(
    tmp_path: Path,
    vocab: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    engine: dict[str, Any],
) -> None:
    good = tmp_path / "good.txt"
    good.write_bytes((b"the " + b"x" * 120 + b"\n") * 3000)
    bad = tmp_path / "bad.txt"
    bad.write_bytes(good.read_bytes() + b"the \xff\nthe end\n")
    line, offset = 3_001, good.stat().st_size + 4
    message = f"{bad}, line {line}: invalid UTF-8 at byte {offset}"
    with pytest.raises(InputError) as caught:
        build(tmp_path / "d", vocab, files=(str(bad),), layout="sentences", **engine)
    assert str(caught.value).startswith(message + ";")
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.txt", "good.txt"]
    directory = build(
        tmp_path / "d", vocab, files=(str(bad),), layout="sentences", skip_bad=True, **engine
    )
    assert (directory / "skipped_lines.txt").read_text() == message + "\n"
    counts = json.loads((directory / "corpus.json").read_text())["splits"]["train"]
    assert counts["skipped_lines"] == 1
    assert counts["sentences"] == 3_001
    assert "1 bad lines were skipped" in capsys.readouterr().err


@pytest.mark.parametrize("engine", [{}, {"beam_runner": "DirectRunner"}])
@pytest.mark.parametrize("text", [b"", b"\n \n", "\u200b\n\u00ad\n".encode()])
def test_an_empty_corpus(tmp_path: Path, vocab: str, engine: dict[str, Any], text: bytes) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(text)
    with pytest.raises(InputError, match="no sentence in the input files"):
        build(tmp_path / "d", vocab, files=(str(path),), **engine)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"files": ()}, "files is empty"),
        ({"files": ("none*.txt",)}, "no file matches none"),
        ({"validation_files": ("none.txt",)}, "no file matches none.txt"),
        ({"validation_files": (BOOKS[1],)}, "holmes.txt is in files and in validation_files"),
        ({"workers": -1}, "workers must be 0"),
        ({"beam_options": ("a=b",)}, "without beam_runner"),
        ({"beam_runner": "DirectRunner", "beam_options": ("ab",)}, "'ab' is not KEY=VALUE"),
        ({"beam_runner": "NoRunner"}, "beam_runner 'NoRunner' cannot be used"),
    ],
)
def test_bad_requests(tmp_path: Path, vocab: str, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        build(tmp_path / "d", vocab, **options)
    assert not list(tmp_path.iterdir())


def test_bad_vocabularies(tmp_path: Path) -> None:
    for content, problem in {"": "is empty", "a\nb\n": "lacks"}.items():
        tmp_path.joinpath("vocab.txt").write_text(content)
        with pytest.raises(InputError, match=problem):
            build(tmp_path / "d", str(tmp_path / "vocab.txt"))


def test_beam_missing(tmp_path: Path, vocab: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apache_beam.options.pipeline_options", None)
    with pytest.raises(InputError, match=r"pip install 'bertjax\[beam\]'"):
        build(tmp_path / "d", vocab, beam_runner="DirectRunner")


def test_the_same_request_again(
    tmp_path: Path, vocab: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "a.txt"
    source.write_bytes(Path(BOOKS[0]).read_bytes())
    directory = build(tmp_path / "d", vocab, files=(str(source),))
    before = (directory / "corpus.json").stat().st_mtime_ns
    os.utime(source)
    capsys.readouterr()
    assert build(tmp_path / "d", vocab, files=(str(source),), workers=3) == directory
    assert "used as it is" in capsys.readouterr().err
    assert (directory / "corpus.json").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="was built with other layout, sources;"):
        build(tmp_path / "d", vocab, files=(str(source),), layout="paragraphs")
    data = bytearray(source.read_bytes())
    data[len(data) // 2] = ord("#")
    source.write_bytes(data)
    with pytest.raises(InputError, match="was built with other sources;"):
        build(tmp_path / "d", vocab, files=(str(source),))


def test_an_output_that_cannot_be(tmp_path: Path, vocab: str) -> None:
    tmp_path.joinpath("file").write_text("x")
    tmp_path.joinpath("full").mkdir()
    tmp_path.joinpath("full", "x").write_text("x")
    tmp_path.joinpath("empty").mkdir()
    for name, problem in {
        "file": "is a file",
        "file/d": "cannot write",
        "full": "is no dataset",
    }.items():
        with pytest.raises(InputError, match=problem):
            build(tmp_path / name, vocab)
    assert (build(tmp_path / "empty", vocab) / "corpus.json").exists()


def test_a_full_disk(tmp_path: Path, vocab: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(self: object, path: object, examples: Any) -> None:
        next(iter(examples))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tfds_writer.ExampleWriter, "write", write)
    with pytest.raises(OSError, match="the disk is full: no room to build") as caught:
        build(tmp_path / "d", vocab)
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_killed_build_leaves_nothing_that_looks_finished(
    tmp_path: Path, vocab: str, long_text: str
) -> None:
    code = (
        "import sys; from bertjax.data.corpus import build_corpus; "
        "from bertjax.run_config import CorpusConfig\n"
        "if __name__ == '__main__':\n"
        "  build_corpus(CorpusConfig((sys.argv[1],) * 60, sys.argv[2], sys.argv[3], workers=2))"
    )
    script = tmp_path / "build.py"
    script.write_text(code)
    command = [sys.executable, str(script), long_text, vocab, str(tmp_path / "d")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    unfinished = tmp_path / ".d.unfinished"
    while not list(unfinished.glob("bert_corpus/*/*shard*")):
        assert process.poll() is None
        time.sleep(0.01)
    with pytest.raises(InputError, match="another process is building"):
        build(tmp_path / "d", vocab)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "d").exists()
    assert unfinished.exists()
    assert len(children) >= 2
    for _ in range(1000):  # the workers end with their parent
        if not any(Path(f"/proc/{child}").exists() for child in children):
            break
        time.sleep(0.01)
    else:
        pytest.fail("workers outlived the build")
    assert build(tmp_path / "d", vocab).exists()
    assert not unfinished.exists()


def test_reading_text_needs_no_jax() -> None:
    code = (
        "import sys, bertjax.data.corpus, bertjax.data.vocab, bertjax.tokenizer; "
        "sys.exit(bool({'jax', 'tensorflow', 'torch', 'apache_beam'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0

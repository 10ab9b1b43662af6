"""TFDS's own builders, run on tiny files: what they prepare reads like the files themselves."""

import contextlib
import csv
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tensorflow_datasets.question_answering
import tensorflow_datasets.text
from tensorflow_datasets.datasets.snli import snli_dataset_builder
from tensorflow_datasets.datasets.squad import squad_dataset_builder
from tensorflow_datasets.question_answering import cosmos_qa
from tensorflow_datasets.text import glue as tfds_glue
from tensorflow_datasets.text import goemotions
from tensorflow_datasets.text.conll2003 import conll2003

from bertjax.data.examples import TaggedExample, TextExample
from bertjax.data.task_data import read_task
from bertjax.data.tasks import TASKS, find_task
from bertjax.errors import InputError
from tests.glue_files import Fact, write_glue
from tests.test_task_files import DIRECTORIES, facts

DATA = Path(__file__).parent / "data" / "tasks"

REFUSE = """
from tensorflow_datasets.core import dataset_builder
def refuse(self, **options):
    raise ConnectionError("no network")
dataset_builder.DatasetBuilder.download_and_prepare = refuse
"""


@contextlib.contextmanager
def downloads(builder_class: Any, result: Any) -> Iterator[None]:
    """Let a builder's downloads be files that are here, which have no checksums."""
    builder_class.url_infos = None
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("download", "download_and_extract"):
                patch.setattr(tfds.download.DownloadManager, name, lambda self, urls: result)
            yield
    finally:
        del builder_class.url_infos


def prepare(data_dir: Path, name: str, builder_class: Any, result: Any, **options: Any) -> None:
    with downloads(builder_class, result):
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record", **options)
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tfds")


@pytest.fixture(scope="module")
def glue(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, list[Fact]]]]:
    root = tmp_path_factory.mktemp("glue")
    return root, write_glue(root)


def in_order(found: list[Fact]) -> list[Fact]:
    return sorted(found, key=lambda fact: int(fact.id))


@pytest.mark.parametrize("name", DIRECTORIES)
def test_glue(
    name: str, glue: tuple[Path, dict[str, dict[str, list[Fact]]]], data_dir: Path
) -> None:
    root, expected = glue
    source: Any = root
    if name == "mrpc":
        lines = (root / "MRPC" / "dev.tsv").read_text("utf-8-sig").split("\n")
        ids = root / "dev_ids.tsv"
        ids.write_text("".join("\t".join(line.split("\t")[1:3]) + "\n" for line in lines[1:3]))
        source = {
            "dev_ids": ids,
            "train": root / "MRPC" / "msr_paraphrase_train.txt",
            "test": root / "MRPC" / "test.tsv",
        }
    prepare(data_dir, f"glue/{name}", tfds_glue.Glue, source)
    for split, rows in expected[name].items():
        data = read_task(name, "tfds", split, data_dir=str(data_dir))
        assert data.labels == TASKS[name].labels
        assert data.skipped == ()
        found = in_order(facts(data))
        if name == "mrpc" and split != "test":
            # TFDS makes the splits by ids of sentences; its numbers have gaps.
            assert len(found) == {"train": 8, "validation": 4}[split]
            assert {fact[1:] for fact in found} <= {fact[1:] for fact in rows}
        else:
            assert found == rows


def test_a_slice_and_other_data_sets(
    glue: tuple[Path, dict[str, dict[str, list[Fact]]]], data_dir: Path, tmp_path: Path
) -> None:
    prepare(data_dir, "glue/sst2", tfds_glue.Glue, glue[0])
    assert len(read_task("sst2", "tfds", "train[:2]", data_dir=str(data_dir)).examples) == 2
    whole = read_task("sst2", "tfds", data_dir=str(data_dir))
    own = find_task("classification").with_columns("sentence", id="idx")
    data = read_task(own, "tfds:glue/sst2", data_dir=str(data_dir))
    assert data.labels == ("negative", "positive")
    assert data.examples == whole.examples
    directory = data_dir / "glue" / "sst2" / "2.0.0"
    assert read_task("sst2", f"tfds:{directory}").examples == whole.examples
    assert read_task("sst2", "tfds:glue/sst2:2.0.0", data_dir=str(data_dir)) == whole
    reversed_labels = read_task(
        "sst2", "tfds", data_dir=str(data_dir), labels=("positive", "negative")
    )
    assert [fact.label for fact in facts(reversed_labels)] == [
        1 - fact.label for fact in facts(whole)
    ]


def test_snli(tmp_path: Path, data_dir: Path) -> None:
    rows = ["gold_label\tsentence1\tsentence2\tpairID", "-\ta\tb\t1", 'neutral\tsaid "c\td\t2']
    directory = tmp_path / "snli_1.0"
    directory.mkdir()
    for split in ("train", "dev", "test"):
        (directory / f"snli_1.0_{split}.txt").write_text("\n".join(rows) + "\n")
    prepare(data_dir, "snli", snli_dataset_builder.Builder, tmp_path)
    for split in ("train", "test"):
        data = read_task("snli", "tfds", split, data_dir=str(data_dir))
        (example,) = data.examples
        assert dataclasses.replace(example, id="") == TextExample("", 'said "c', "d", 1)
        (skipped,) = data.skipped
        assert str(skipped).startswith("tfds:snli, example ")
        assert str(skipped).endswith(f" of {split}: the data set gives it no label")


@pytest.mark.parametrize(
    ("task", "name", "file"),
    [("squad", "squad/v1.1", "new_wiki.json"), ("squad_v2", "squad/v2.0", "squad2.json")],
)
def test_squad(data_dir: Path, task: str, name: str, file: str) -> None:
    path = DATA / "squad" / file
    files = {"train": path, "dev": path}
    prepare(data_dir, name, squad_dataset_builder.Builder, files)
    data = read_task(task, "tfds", "validation", data_dir=str(data_dir))
    expected = read_task(task, str(path), "validation")
    by_id = {example.id: example for example in expected.examples}
    assert len(data.examples) == len(by_id) > 5
    assert {example.id: example for example in data.examples} == by_id


def test_conll_2003(tmp_path: Path, data_dir: Path) -> None:
    text = (
        "-DOCSTART- -X- -X- O\n\nAda NNP B-NP B-PER\nBob NNP I-NP B-PER\n. . O O\n\nx NN B-NP O\n"
    )
    for name in ("train.txt", "valid.txt", "test.txt"):
        (tmp_path / name).write_text(text)
    prepare(data_dir, "conll2003", conll2003.Conll2003, tmp_path)
    data = read_task("conll2003", "tfds", "validation", data_dir=str(data_dir))
    expected = read_task("conll2003", str(tmp_path), "validation")
    found = {(example.words, example.tags) for example in data.examples}  # type: ignore[union-attr]
    assert found == {(example.words, example.tags) for example in expected.examples}  # type: ignore[union-attr]
    assert (("Ada", "Bob", "."), (1, 1, 0)) in found
    pos = find_task("token_classification").with_columns("tokens", "pos")
    data = read_task(pos, "tfds:conll2003", data_dir=str(data_dir))
    assert set(data.labels) == {"NNP", ".", "NN"}
    example = next(example for example in data.examples if len(example.words) == 3)  # type: ignore[union-attr]
    assert isinstance(example, TaggedExample)
    assert example.tags is not None
    assert [data.labels[tag] for tag in example.tags] == ["NNP", "NNP", "."]


def test_goemotions(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its builder asks TensorFlow for the name of a type; once prepared, nothing does."""
    path = DATA / "goemotions" / "dev.tsv"
    files = dict.fromkeys(("train", "dev", "test"), path)
    if not importlib.util.find_spec("tensorflow"):
        with pytest.raises(InputError, match=r"goemotions is not prepared .*'tensorflow'"):
            read_task("goemotions", "tfds", data_dir=str(data_dir))
    with monkeypatch.context() as patch:
        patch.setattr(goemotions, "tf", types.SimpleNamespace(bool=np.bool_))
        prepare(data_dir, "goemotions", goemotions.Goemotions, files)
    data = read_task("goemotions", "tfds", "validation", data_dir=str(data_dir))
    expected = read_task("goemotions", str(path), "validation")
    assert data.labels == expected.labels
    assert {fact[1:] for fact in facts(data)} == {fact[1:] for fact in facts(expected)}
    assert len(data.examples) == 12


def test_cosmos_qa(data_dir: Path, tmp_path: Path) -> None:
    path = DATA / "cosmos_qa" / "valid.csv"
    with path.open(newline="", encoding="utf-8") as stream:
        rows = [dict(row) for row in csv.DictReader(stream)]
    unlabelled = [{key: row[key] for key in row if key != "label"} for row in rows]
    test = tmp_path / "test.jsonl"
    test.write_text("".join(json.dumps(row) + "\n" for row in unlabelled))
    files = {"train": path, "validation": path, "test": test}
    prepare(data_dir, "cosmos_qa", cosmos_qa.CosmosQA, files)
    for split, file in files.items():
        data = read_task("cosmos_qa", "tfds", split, data_dir=str(data_dir))
        expected = read_task("cosmos_qa", str(file), split)
        assert {example.id: example for example in data.examples} == {
            example.id: example for example in expected.examples
        }
        assert len(data.examples) == 5


def test_data_sets_that_cannot_be_had(
    glue: tuple[Path, dict[str, dict[str, list[Fact]]]],
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepare(data_dir, "glue/rte", tfds_glue.Glue, glue[0])
    place = str(data_dir)
    with pytest.raises(InputError, match=r"glue/rte has no split 'dev'; it has train, validation,"):
        read_task("rte", "tfds", "dev", data_dir=place)
    message = r"glue/rte: no column 'gold_label'; it has .*'sentence1'"
    with pytest.raises(InputError, match=message):
        read_task("mnli", "tfds:glue/rte", data_dir=place)
    with pytest.raises(
        InputError, match=r"glue/rte has no feature 'id'; give questions as in squad"
    ):
        read_task("squad", "tfds:glue/rte", data_dir=place)
    with pytest.raises(InputError, match="swag is not in TFDS; give its files, or tfds:NAME"):
        read_task("swag", "tfds", data_dir=place)
    with pytest.raises(InputError, match="TFDS has no data set 'nowhere', nor one prepared in"):
        read_task("swag", "tfds:nowhere", data_dir=place)
    with pytest.raises(InputError, match=r"/nowhere is not prepared in .* ValueError: Parsing"):
        read_task("swag", "tfds:/nowhere", data_dir=place)

    def refuse(self: Any, urls: Any) -> Any:
        raise ConnectionError("no network\nat all")

    with downloads(tfds_glue.Glue, None):
        for name in ("download", "download_and_extract"):
            monkeypatch.setattr(tfds.download.DownloadManager, name, refuse)
        with pytest.raises(InputError) as caught:
            read_task("sst2", "tfds", data_dir=str(tmp_path))
    assert str(caught.value) == (
        f"glue/sst2 is not prepared in {tmp_path}/glue/sst2/2.0.0, and cannot be: ConnectionError: "
        "no network; prepare it elsewhere, with file_format array_record, and give its directory, "
        "or give files"
    )


def test_data_sets_that_tfds_does_not_list_by_itself(tmp_path: Path) -> None:
    """Its older builders are unknown until their packages are imported, as this file does."""
    code = (
        "import sys; from bertjax.data.task_data import read_task\n"
        "read_task('conll2003', 'tfds', data_dir=sys.argv[1])"
    )
    command = [sys.executable, "-c", f"{REFUSE}{code}", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert f"conll2003 is not prepared in {tmp_path}/conll2003" in done.stderr


def test_a_format_that_needs_tensorflow(
    glue: tuple[Path, dict[str, dict[str, list[Fact]]]], tmp_path: Path
) -> None:
    prepare(tmp_path, "glue/rte", tfds_glue.Glue, glue[0])
    info = tmp_path / "glue" / "rte" / "2.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(InputError, match=r"glue/rte in .* cannot be read: .* needs no TensorFlow"):
        read_task("rte", "tfds", data_dir=str(tmp_path))


def test_it_is_prepared_where_it_can_be(
    glue: tuple[Path, dict[str, dict[str, list[Fact]]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with downloads(tfds_glue.Glue, glue[0]):
        data = read_task("rte", "tfds", data_dir=str(tmp_path))
    assert in_order(facts(data)) == glue[1]["rte"]["train"]
    assert (tmp_path / "glue" / "rte" / "2.0.0" / "dataset_info.json").is_file()
    assert capsys.readouterr().out == ""

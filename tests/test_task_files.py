"""Local files of labelled data: every published layout, your own columns, and bad input."""

import csv
import dataclasses
import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from bertjax.data.examples import (
    Answer,
    ChoiceExample,
    QuestionExample,
    TaggedExample,
    TextExample,
)
from bertjax.data.task_data import TaskData, read_task
from bertjax.data.task_files import read_label_names
from bertjax.data.tasks import TASKS, find_task
from bertjax.errors import InputError
from tests.glue_files import Fact, write_glue

DATA = Path(__file__).parent / "data" / "tasks"
SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
DIRECTORIES = {
    "cola": "CoLA", "sst2": "SST-2", "mrpc": "MRPC", "stsb": "STS-B", "qqp": "QQP", "mnli": "MNLI",
    "qnli": "QNLI", "rte": "RTE", "wnli": "WNLI",
}  # fmt: skip


@pytest.fixture(scope="module")
def glue(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, list[Fact]]]]:
    root = tmp_path_factory.mktemp("glue")
    return root, write_glue(root)


def facts(data: TaskData) -> list[Fact]:
    found = []
    for example in data.examples:
        assert isinstance(example, TextExample)
        texts = (example.text,) if example.text_pair is None else (example.text, example.text_pair)
        found.append(Fact(example.id, texts, example.label))
    return found


def write(path: Path, text: str | bytes) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


@pytest.mark.parametrize("name", DIRECTORIES)
def test_glue(name: str, glue: tuple[Path, dict[str, dict[str, list[Fact]]]]) -> None:
    root, expected = glue
    for split, rows in expected[name].items():
        data = read_task(name, str(root / DIRECTORIES[name]), split)
        assert facts(data) == rows
        assert data.labels == TASKS[name].labels
        assert data.skipped == ()
        assert {type(row.label) for row in facts(data)} == {type(row.label) for row in rows}


def test_single_sentence_and_inference_excerpts() -> None:
    data = read_task("banking77", str(DATA / "banking77" / "train.csv"))
    assert len(data.examples) == 14
    assert data.labels == (
        "card_arrival", "card_not_working", "extra_charge_on_statement", "getting_virtual_card",
        "pending_card_payment", "pin_blocked",
    )  # fmt: skip
    assert facts(data)[5] == Fact(
        "5", ("\nI can't seem to be able to use my card\n\n\n",), 1
    )  # a field of several lines
    assert facts(data)[7].texts[0].count('"') == 2
    assert [fact.label for fact in facts(data)][-1] == 3

    data = read_task("qnli", str(DATA / "qnli"), "validation")
    assert len(data.examples) == 12
    assert facts(data)[0].id == "19"
    assert facts(data)[1].label == 0
    assert sum(fact.texts[1].count('"') % 2 for fact in facts(data)) == 3

    data = read_task("snli", str(DATA / "snli" / "dev.csv"), "validation")
    assert [fact.label for fact in facts(data)[:3]] == [0, 1, 2]
    assert facts(data)[0].texts[0].startswith("Two young children in blue jerseys, one with")

    data = read_task("stsb", str(DATA / "stsb"), "validation")
    assert [fact.label for fact in facts(data)[:3]] == [0.0, 1.4, 2.2]
    assert len(data.examples) == 12
    assert data.labels == ()
    assert all("newsbrief" not in text for fact in facts(data) for text in fact.texts)
    assert 'a "Going Places" bus.' in facts(data)[-1].texts[0]


def test_snli_as_it_is_published(tmp_path: Path) -> None:
    header = "gold_label\tsentence1_binary_parse\tsentence1\tsentence2\tcaptionID\tpairID\tlabel1\n"
    rows = (
        "neutral\t( x )\tA b.\tC.\t1#0\t1#0r1n\tneutral\n-\t( x )\tD.\tE.\t1#1\t1#1r1n\tneutral\n"
    )
    write(tmp_path / "snli_1.0_dev.txt", header + rows)
    data = read_task("snli", str(tmp_path), "validation")
    assert facts(data) == [Fact("1#0r1n", ("A b.", "C."), 1)]
    (skipped,) = data.skipped
    assert str(skipped) == (f"{tmp_path}/snli_1.0_dev.txt, line 3: the data set gives it no label")
    records = [dict(zip(header[:-1].split("\t"), row.split("\t"), strict=True)) for row in
               rows[:-1].split("\n")]  # fmt: skip
    path = write(tmp_path / "x.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    assert facts(read_task("snli", path, "validation")) == facts(data)


def test_multi_label(tmp_path: Path) -> None:
    data = read_task("goemotions", str(DATA / "goemotions"), "validation")
    assert data.labels == read_label_names(str(DATA / "goemotions" / "labels.txt"))
    named = {fact.id: fact for fact in facts(data)}
    assert named["edx11pt"].texts == (
        "Isn't that the \"help me, I'm being hunned\" distress signal?",
    )
    assert named["ef4hd8o"].label == (5, 27)
    assert named["ede4v0m"].label == (27,)
    assert len(named) == 12

    path = write(tmp_path / "a.jsonl", '{"text": "x", "labels": ["joy", "grief"], "id": "1"}')
    assert facts(read_task("goemotions", path)) == [Fact("1", ("x",), (16, 17))]

    task = find_task("multi_label")
    path = write(tmp_path / "a.csv", 'text,labels\nx,"b, a"\ny,very good\nz,\n')
    data = read_task(task, path)
    assert data.labels == ("a", "b", "very good")
    assert [fact.label for fact in facts(data)] == [(0, 1), (2,), ()]
    path = write(tmp_path / "b.csv", "text,labels\nx,2 10\ny,1\n")
    data = read_task(task, path)
    assert data.labels == ("1", "2", "10")
    assert [fact.label for fact in facts(data)] == [(1, 2), (0,)]
    path = write(tmp_path / "c.jsonl", '{"text": "x", "labels": ["b", "a"]}\n'
                 '{"text": "y", "labels": []}\n')  # fmt: skip
    assert [fact.label for fact in facts(read_task(task, path))] == [(0, 1), ()]
    path = write(tmp_path / "d.csv", "text,mean,rude\nx,1,0\ny,0,0\nz,true,True\n")
    data = read_task(task.with_columns("text", ("rude", "mean")), path)
    assert data.labels == ("rude", "mean")
    assert [fact.label for fact in facts(data)] == [(1,), (), (0, 1)]


def test_emotions_as_they_were_collected(tmp_path: Path) -> None:
    """A column for each emotion, commas between them, and a row for each rater of a text."""
    names = find_task("goemotions").labels
    rows = [("a, b", {"joy", "love"}), ("a, b", set()), ("c", {"neutral"})]
    path = tmp_path / "goemotions_1.csv"
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "id", "rater_id", *names])
        for text, felt in rows:
            table.writerow([text, text, 1, *(int(name in felt) for name in names)])
    found = read_task("goemotions", str(path)).examples
    assert [(e.text, {names[i] for i in e.label}) for e in found] == rows
    assert [e.id for e in found] == ["0", "1", "2"]


def test_multiple_choice(tmp_path: Path) -> None:
    data = read_task("csqa", str(DATA / "csqa"), "validation")
    first = data.examples[0]
    assert isinstance(first, ChoiceExample)
    stem = (
        "A revolving door is convenient for two direction travel, but it also serves as a security "
        "measure at a what?"
    )
    assert first.pairs == tuple(
        (stem, choice) for choice in ("bank", "library", "department store", "mall", "new york")
    )
    assert (first.id, first.label) == ("1afa02df02c908a558b4036e80242fac", 0)
    assert data.examples[2].label == 2  # type: ignore[union-attr]

    data = read_task("swag", str(DATA / "swag" / "sample.json"))
    assert len(data.examples) == 10
    assert data.examples[1] == ChoiceExample(
        "1",
        tuple(
            (
                "A drum line passes by walking down the street playing their instruments.",
                f"Members of the procession {ending}",
            )
            for ending in (
                "are playing ping pong and celebrating one left each in quick.",
                "wait slowly towards the cadets.",
                "continues to play as well along the crowd along with the band being interviewed.",
                "continue to play marching, interspersed.",
            )
        ),
        3,
    )
    published = (
        ",video-id,fold-ind,startphrase,sent1,sent2,gold-source,ending0,ending1,ending2,ending3"
    )
    row = 'lsmdc-9,17,A b. She,A b.,She,gold,"runs, then sits.",falls.,sleeps.,waits.'
    write(tmp_path / "val.csv", f"{published},label\n0,{row},2\n")
    write(tmp_path / "test.csv", f"{published}\n0,{row}\n")
    (example,) = read_task("swag", str(tmp_path), "validation").examples
    assert isinstance(example, ChoiceExample)
    assert example.label == 2
    assert example.pairs[0] == ("A b.", "She runs, then sits.")
    (unlabelled,) = read_task("swag", str(tmp_path), "test").examples
    assert unlabelled == ChoiceExample("0", example.pairs, None)

    data = read_task("cosmos_qa", str(DATA / "cosmos_qa"), "validation")
    with (DATA / "cosmos_qa" / "valid.csv").open(newline="", encoding="utf-8") as stream:
        for record, example in zip(csv.DictReader(stream), data.examples, strict=True):
            assert isinstance(example, ChoiceExample)
            assert (example.id, example.label) == (record["id"], int(record["label"]))
            assert example.pairs == tuple(
                (record["context"], f"{record['question']} {record[f'answer{i}']}")
                for i in range(4)
            )


def test_multiple_choice_of_your_own(tmp_path: Path) -> None:
    task = find_task("multiple_choice")
    listed = '{"question": "q", "choices": ["x", "y", "z"], "label": 2}\n'
    data = read_task(task, write(tmp_path / "a.jsonl", listed))
    assert data.examples == (ChoiceExample("0", (("q", "x"), ("q", "y"), ("q", "z")), 2),)
    assert data.labels == ("0", "1", "2")
    columns = task.with_columns(("c", "q"), "right", choices=("x", "y"))
    data = read_task(columns, write(tmp_path / "a.csv", "c,q,x,y,right\nC,Q,X,Y,1\n"))
    assert data.examples == (ChoiceExample("0", (("C", "Q X"), ("C", "Q Y")), 1),)


def entities(data: TaskData) -> Counter[tuple[str, str]]:
    """Count the entities by words and type; a tag I- that continues nothing is an error."""
    found: Counter[tuple[str, str]] = Counter()
    for example in data.examples:
        assert isinstance(example, TaggedExample)
        assert example.tags is not None
        entity: list[str] = []
        kind = ""
        for word, tag in [*zip(example.words, example.tags, strict=True), ("", 0)]:
            name = data.labels[tag]
            if name.startswith("I-"):
                assert kind == name[2:]
                entity.append(word)
                continue
            if entity:
                found[" ".join(entity), kind] += 1
            entity, kind = ([word], name[2:]) if name != "O" else ([], "")
    return found


def test_conll_excerpts() -> None:
    data = read_task("wnut17", str(DATA / "wnut17"))
    assert len(data.examples) == 11
    assert entities(data) == {
        ("Empire State Building", "location"): 1, ("ESB", "location"): 1, ("AHFA", "group"): 1,
        ("Pxleyes", "corporation"): 1, ("4Dbling", "person"): 1, ("VMA", "creative-work"): 1,
        ("vodka", "product"): 1,
    }  # fmt: skip
    path = str(DATA / "wikigold" / "wikigold_dev.conll")
    data = read_task("wikigold", path, "validation")
    assert entities(data)["Attiko Metro", "ORG"] == 1
    assert entities(data)["Athens", "LOC"] == 1
    assert data.examples[0].id == "0"
    assert not any("DOCSTART" in " ".join(e.words) for e in data.examples)  # type: ignore[union-attr]
    own = read_task("token_classification", path)
    assert set(own.labels) == set(data.labels)
    assert own.labels[0] == "O"
    assert entities(own) == entities(data)
    reordered = read_task("wikigold", path, "validation", labels=own.labels)
    assert reordered.labels == own.labels
    assert reordered.examples == own.examples


def test_conll_2003(tmp_path: Path) -> None:
    iob1 = "-DOCSTART- -X- -X- O\n\nAda NNP B-NP I-PER\nBob NNP I-NP B-PER\n\nx y z O\n"
    iob2 = iob1.replace("I-PER", "B-PER").replace(" ", "\t").replace("\n", "\r\n")
    for number, text in enumerate((iob1, iob2, iob1.rstrip("\n"), "\ufeff" + iob1)):
        data = read_task("conll2003", write(tmp_path / f"{number}.txt", text))
        assert data.examples == (
            TaggedExample("0", ("Ada", "Bob"), (1, 1)),
            TaggedExample("1", ("x",), (0,)),
        )
    path = write(tmp_path / "words.txt", "Ada\nBob\n\nx\n")
    data = read_task("conll2003", path, "test")
    assert data.examples[0] == TaggedExample("0", ("Ada", "Bob"), None)
    with pytest.raises(InputError, match=r"words.txt, line 1: one column only, and no tags"):
        read_task("conll2003", path)


def test_tags_of_your_own(tmp_path: Path) -> None:
    task = find_task("token_classification")
    path = write(tmp_path / "pos.conll", "1\tIt\t_\tPRON\n2\tis\t_\tVERB\n\n1\tso\t_\tADV\n")
    other = dataclasses.replace(task, word_column=1, tag_column=-1)
    data = read_task(other, path)
    assert data.labels == ("ADV", "PRON", "VERB")
    assert data.examples[0] == TaggedExample("0", ("It", "is"), (1, 2))
    with pytest.raises(InputError, match=r"line 1: no column 4 of words; the line has 4, counted"):
        read_task(dataclasses.replace(task, word_column=4), path)
    records = [{"tokens": ["Ada", "x"], "ner_tags": [1, 0]}, {"tokens": ["y"], "ner_tags": [0]}]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    data = read_task("conll2003", path)
    assert data.examples[0] == TaggedExample("0", ("Ada", "x"), (1, 0))


def test_squad(tmp_path: Path) -> None:
    data = read_task("squad", str(DATA / "squad" / "new_wiki.json"), "validation")
    first = data.examples[0]
    assert isinstance(first, QuestionExample)
    assert first.id == "5d65c5572b22cd4dfcfbcc78"
    assert first.question == "Has the Baltic Sea always existed as it is today?"
    assert first.answers[0] == Answer(
        "before the Pleistocene, instead of the Baltic Sea, there was a wide plain around a great "
        "river", 138,
    )  # fmt: skip
    assert first.context.endswith("\n")
    for example in data.examples:
        assert isinstance(example, QuestionExample)
        for answer in example.answers:
            assert example.context[answer.start :].startswith(answer.text)
    assert data.labels == ()

    data = read_task("squad_v2", str(DATA / "squad" / "squad2.json"), "validation")
    raw = json.loads((DATA / "squad" / "squad2.json").read_text("utf-8"))
    questions = [q for article in raw["data"] for p in article["paragraphs"] for q in p["qas"]]
    assert [(e.id, e.is_impossible, len(e.answers)) for e in data.examples] == [  # type: ignore[union-attr]
        (q["id"], q["is_impossible"], len(q["answers"])) for q in questions
    ]
    assert sum(q["is_impossible"] for q in questions) > 3
    for question in questions:
        del question["answers"], question["is_impossible"]
    path = write(tmp_path / "test.json", json.dumps(raw))
    unlabelled = read_task("squad_v2", path, "test").examples
    assert [e.question for e in unlabelled] == [e.question for e in data.examples]  # type: ignore[union-attr]
    packed = write(tmp_path / "p.json.gz", gzip.compress(b"\xef\xbb\xbf" + Path(path).read_bytes()))
    assert read_task("squad_v2", packed, "test").examples == unlabelled


def test_answers_that_are_elsewhere_in_cmrc() -> None:
    path = str(DATA / "squad" / "cmrc2018.json")
    message = (
        r"cmrc2018.json, data\[1\].paragraphs\[0\].qas\[0\] \(question TRIAL_210_QUERY_0\): answer "
        r"'俗名龙尖' is not at character 14, where the context has '名龙尖，'; it is at 13; "
        r"correct 'answer_start', or have such examples skipped \(--skip-bad\)$"
    )
    with pytest.raises(InputError, match=message):
        read_task("squad", path)
    data = read_task("squad", path, skip_bad=True)
    assert [skipped.place[-19:-1] for skipped in data.skipped] == [
        f" TRIAL_210_QUERY_{i}" for i in range(5)
    ]
    total = sum(
        len(paragraph["qas"])
        for article in json.loads(Path(path).read_text("utf-8"))["data"]
        for paragraph in article["paragraphs"]
    )
    assert len(data.examples) == total - 5 > 0


def test_named_columns_in_every_kind_of_file(tmp_path: Path) -> None:
    task = find_task("classification").with_columns(("q", "a"), "class", id="key")
    records = [
        {"key": "k1", "class": "yes", "other": "-", "q": 'say "hi", x', "a": "b"},
        {"key": "k2", "class": "no", "other": "-", "q": "Grün", "a": ""},
    ]
    table = "\n".join(["\t".join(records[0]), *("\t".join(r.values()) for r in records)]) + "\n"
    quoted = 'key,class,other,q,a\nk1,yes,-,"say ""hi"", x",b\nk2,no,-,Grün,\n'
    lines = "".join(json.dumps(record) + "\n\n" for record in records)
    texts = {"a.tsv": table, "a.txt": table, "a.csv": quoted, "a.jsonl": lines, "a.json": lines}
    for name, text in texts.items():
        path = write(tmp_path / name, text)
        packed = write(tmp_path / f"{name}.gz", gzip.compress(text.encode()))
        for source in (path, packed, str(tmp_path / f"{name[:-1]}?")):
            data = read_task(task, source)
            assert data.labels == ("no", "yes")
            assert facts(data) == [
                Fact("k1", ('say "hi", x', "b"), 1), Fact("k2", ("Grün", ""), 0)
            ]  # fmt: skip


def test_packed_files_in_a_directory(tmp_path: Path) -> None:
    write(tmp_path / "train.tsv.gz", gzip.compress(b"sentence\tlabel\nx\t1\n"))
    assert facts(read_task("sst2", str(tmp_path))) == [Fact("0", ("x",), 1)]
    write(tmp_path / "train.tsv", "sentence\tlabel\ny\t0\n")
    assert facts(read_task("sst2", str(tmp_path))) == [Fact("0", ("y",), 0)]


def test_labels_in_order(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\nx,10\ny,9\nz,-1\n")
    data = read_task("classification", path)
    assert data.labels == ("-1", "9", "10")
    assert [fact.label for fact in facts(data)] == [2, 1, 0]
    message = "its labels are those of the training split; read that first"
    with pytest.raises(InputError, match=message):
        read_task("classification", path, "validation")
    data = read_task("classification", path, "validation", labels=("9", "10", "-1"))
    assert [fact.label for fact in facts(data)] == [1, 0, 2]
    path = write(
        tmp_path / "a.jsonl", '{"text": "x", "label": true}\n{"text": "y", "label": false}'
    )
    data = read_task("classification", path)
    assert data.labels == ("false", "true")
    assert [fact.label for fact in facts(data)] == [1, 0]
    with pytest.raises(InputError, match="label 'a' is there twice"):
        read_task("classification", path, labels=("a", "b", "a"))


def test_ids_in_files_are_the_data_sets_and_ids_in_examples_the_models(tmp_path: Path) -> None:
    order = ("positive", "negative")
    path = write(tmp_path / "a.tsv", "sentence\tlabel\nbad\t0\ngood\t1\n")
    data = read_task("sst2", path, labels=order)
    assert data.labels == order
    assert [fact.label for fact in facts(data)] == [1, 0]
    path = write(tmp_path / "b.tsv", "sentence\tlabel\nbad\tnegative\ngood\tpositive\n")
    assert [fact.label for fact in facts(read_task("sst2", path, labels=order))] == [1, 0]
    names = write(tmp_path / "names.txt", "negative\npositive\n")
    own = find_task("classification").with_columns("sentence")
    data = read_task(own, str(tmp_path / "a.tsv"), labels=read_label_names(names))
    assert [fact.label for fact in facts(data)] == [0, 1]


def test_test_splits_may_be_without_labels(tmp_path: Path) -> None:
    bare = write(tmp_path / "bare.csv", "text\nx\ny\n")
    assert facts(read_task("classification", bare, "test")) == [
        Fact("0", ("x",), None), Fact("1", ("y",), None)
    ]  # fmt: skip
    for text in ("text,label\nx,\ny, \n", "label,text\n,x\n,y\n"):
        path = write(tmp_path / "empty.csv", text)
        assert [fact.label for fact in facts(read_task("classification", path, "test"))] == [
            None
        ] * 2
    with pytest.raises(InputError, match=r"empty.csv, line 2: no label in 'label'"):
        read_task("classification", path, "validation")
    with pytest.raises(InputError, match=r"bare.csv, line 1: no column 'label'; it has 'text'"):
        read_task("classification", bare)


def test_several_files_are_numbered_through(tmp_path: Path) -> None:
    for name, text in (("a.csv", "text,label\nx,p\n"), ("b.csv", "text,label\n,\ny,q\n")):
        write(tmp_path / name, text)
    data = read_task("classification", [str(tmp_path / "*.csv")], skip_bad=True)
    assert [(fact.id, fact.label) for fact in facts(data)] == [("0", 0), ("2", 1)]
    write(tmp_path / "c.tsv", "sentence\nx\n")
    write(tmp_path / "d.tsv", "source\t1\t\tx\n")
    with pytest.raises(InputError, match=r"c.tsv and .*d.tsv have different columns"):
        read_task("cola", [str(tmp_path / "c.tsv"), str(tmp_path / "d.tsv")], "test")


def test_long_fields(tmp_path: Path) -> None:
    text = "x " * 200_000
    path = write(tmp_path / "a.csv", f"text,label\n{text},p\n")
    assert facts(read_task("classification", path)) == [Fact("0", (text,), 0)]


# What ../shared/data/README.md counts: task, source, split, examples, labels that hold.
COUNTS = [
    ("cola", "cola", "train", 8551, None),
    ("cola", "cola", "validation", 527, None),
    ("sst2", "sst2", "train", 10_000, None),
    ("sst2", "sst2", "validation", 872, Counter({1: 444, 0: 428})),
    ("stsb", "stsb", "train", 2832, None),
    ("stsb", "stsb", "validation", 589, None),
    ("qnli", "qnli", "train", 3992, None),
    ("qnli", "qnli", "validation", 811, None),
    ("snli", "snli", "train", 7801, Counter({0: 2621, 1: 2583, 2: 2597})),
    ("snli", "snli", "validation", 925, Counter({0: 319, 1: 294, 2: 312})),
    ("banking77", "banking77", "train", 9978, None),
    ("goemotions", "multilabel", "train", 10_000, None),
    ("goemotions", "multilabel", "validation", 2000, None),
    ("csqa", "multiple_choice", "train", 8000,
     Counter({0: 1591, 1: 1618, 2: 1584, 3: 1613, 4: 1594})),
    ("csqa", "multiple_choice", "validation", 642, None),
    ("cosmos_qa", "multiple_choice", "train", 1921, Counter({0: 483, 1: 490, 2: 481, 3: 467})),
    ("cosmos_qa", "multiple_choice", "validation", 466, None),
    ("wnut17", "ner", "train", 3394, None),
    ("wnut17", "ner", "validation", 1009, None),
    ("wikigold", "ner", "train", 926, None),
    ("wikigold", "ner", "validation", 451, None),
    ("squad", "squad/new_wiki_train.json", "train", 4645, None),
    ("squad", "squad/new_wiki_dev.json", "validation", 1055, None),
    ("squad_v2", "squad/squad2_train.json", "train", 3070, None),
    ("squad_v2", "squad/squad2_dev.json", "validation", 1110, None),
]  # fmt: skip


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not there")
@pytest.mark.parametrize(("task", "source", "split", "count", "labels"), COUNTS)
def test_counts(task: str, source: str, split: str, count: int, labels: Counter | None) -> None:
    data = read_task(task, str(SHARED / source), split)
    assert len(data.examples) == count
    assert data.skipped == ()
    if labels:
        assert Counter(example.label for example in data.examples) == labels  # type: ignore[union-attr]
    if task == "wnut17" and split == "train":
        # B- tags of the file, counted by grep.
        kinds = Counter(kind for (_, kind), n in entities(data).items() for _ in range(n))
        assert kinds == {
            "person": 660, "location": 548, "group": 264, "corporation": 221, "product": 142,
            "creative-work": 140,
        }  # fmt: skip
    if task == "squad_v2":
        impossible = sum(example.is_impossible for example in data.examples)  # type: ignore[union-attr]
        assert impossible == {"train": 1596, "validation": 584}[split]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not there")
def test_the_labels_of_banking77() -> None:
    train = read_task("banking77", str(SHARED / "banking77"))
    assert len(train.labels) == 77
    data = read_task("banking77", str(SHARED / "banking77"), "validation", labels=train.labels)
    assert len(data.examples) == 1516
    assert data.labels == train.labels == tuple(sorted(train.labels))

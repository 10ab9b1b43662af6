"""Bad input: every kind of it is told in one line, or skipped, counted and listed."""

import gzip
import json
from pathlib import Path

import pytest

from bertjax.data.task_data import read_task
from bertjax.data.task_files import read_label_names
from bertjax.errors import InputError
from tests.test_task_files import facts, write

DATA = Path(__file__).parent / "data" / "tasks"

GOOD = (
    '{"id": "g", "question": "q", "context": "c a", "answers": [{"text": "a", "answer_start": 2}]}'
)


def squad(*questions: str) -> str:
    return '{"data": [{"paragraphs": [{"context": "c a", "qas": [' + ", ".join(questions) + "]}]}]}"


# task, file, text, how many examples are left, where it is bad, what is told
BAD: dict[str, tuple[str, str, str | bytes, int, str, str]] = {
    "ragged tsv": (
        "sst2", "a.tsv", "sentence\tlabel\nx\t0\ny\nz\t1\n", 2,
        "line 3", "1 columns where 2 are expected",
    ),
    "a tab too many": (
        "cola", "a.tsv", "s\t1\t\tx\ns\t1\t\ty\tz\n", 1,
        "line 2", "5 columns where 4 are expected",
    ),
    "ragged csv after a long field": (
        "banking77", "a.csv", 'text,category\n"x\n\ny",p\n\nz\n', 1,
        "line 6", "1 columns where 2 are expected",
    ),
    "broken quotes": (
        "banking77", "a.csv", 'text,category\n"x" y,p\nz,p\n', 1,
        "line 2", "broken row: ',' expected after '\"'",
    ),
    "label not in the list": (
        "sst2", "a.tsv", "sentence\tlabel\nx\t0\ny\t2\n", 1,
        "line 3", "label '2' is not in the list ['negative', 'positive']",
    ),
    "unknown name": (
        "mnli", "a.jsonl",
        '{"premise": "x", "hypothesis": "y", "label": "entails"}\n'
        '{"premise": "x", "hypothesis": "y", "label": 2}\n', 1,
        "line 1", "label 'entails' is not in the list ['entailment', 'neutral', 'contradiction']",
    ),
    "names among ids": (
        "sst2", "a.tsv", "sentence\tlabel\nx\t0\ny\tpositive\nz\t1\n", 2,
        "line 3", "label types are mixed: 'positive' here, '0' before",
    ),
    "numbers among names": (
        "classification", "a.jsonl",
        '{"text": "x", "label": "p"}\n{"text": "y", "label": 1}\n{"text": "y", "label": "q"}\n', 2,
        "line 2", "label types are mixed: '1' here, 'p' before",
    ),
    "names among numbers": (
        "classification", "a.csv", "text,label\nx,1\ny,p\nz,2\n", 2,
        "line 3", "label types are mixed: 'p' here, '1' before",
    ),
    "a fraction as class": (
        "classification", "a.jsonl", '{"text": "x", "label": 1}\n{"text": "x", "label": 1.5}\n', 1,
        "line 2", "label 1.5 is a fraction, not a class",
    ),
    "a list as class": (
        "classification", "a.jsonl", '{"text": "x", "label": 1}\n{"text": "x", "label": [1]}\n', 1,
        "line 2", "label [1] is neither a name nor a number",
    ),
    "no label": (
        "classification", "a.csv", "text,label\nx,p\ny,\n", 1, "line 3", "no label in 'label'",
    ),
    "null label": (
        "classification", "a.jsonl", '{"text": "x", "label": null}\n{"text": "x", "label": "p"}', 1,
        "line 1", "no label in 'label'",
    ),
    "no number": (
        "stsb", "a.tsv", "sentence1\tsentence2\tscore\na\tb\thigh\na\tb\t1\n", 1,
        "line 2", "label 'high' is not a finite number",
    ),
    "not finite": (
        "regression", "a.jsonl", '{"text": "a", "label": NaN}\n{"text": "a", "label": 1}\n', 1,
        "line 1", "label nan is not a finite number",
    ),
    "truth as score": (
        "regression", "a.jsonl", '{"text": "a", "label": true}\n{"text": "a", "label": 1}\n', 1,
        "line 1", "label True is not a finite number",
    ),
    "corrupt JSON line": (
        "classification", "a.jsonl", '{"text": "x", "label": "p"}\n{"text": "x" "label": "p"}\n', 1,
        "line 2, column 14", "invalid JSON: Expecting ',' delimiter",
    ),
    "JSON, but no object": (
        "classification", "a.jsonl", '["x"]\n{"text": "x", "label": "p"}\n', 1,
        "line 1", "no JSON object",
    ),
    "deep JSON": (
        "classification", "a.jsonl", "[" * 200_000 + '\n{"text": "x", "label": "p"}\n', 1,
        "line 1", "invalid JSON: a number is too long, or nested too deeply",
    ),
    "a field is missing": (
        "classification", "a.jsonl", '{"text": "x", "label": "p"}\n{"label": "p"}\n', 1,
        "line 2", "no field 'text'",
    ),
    "no text": (
        "classification", "a.jsonl", '{"text": 5, "label": "p"}\n{"text": "x", "label": "p"}\n', 1,
        "line 1", "field 'text' is 5, not a text",
    ),
    "invalid UTF-8": (
        "sst2", "a.tsv", b"sentence\tlabel\nx\xff\t1\ny\t1\n", 1,
        "line 2", "field 'sentence' is not valid UTF-8",
    ),
    "invalid UTF-8 in quotes": (
        "banking77", "a.csv", b'text,category\n"x\n\xe9",p\ny,p\n', 1,
        "line 2", "field 'text' is not valid UTF-8",
    ),
    "half a surrogate pair": (
        "classification", "a.jsonl",
        '{"text": "\\ud800", "label": "p"}\n{"text": "x", "label": "p"}', 1,
        "line 1", "field 'text' is not valid UTF-8",
    ),
    "an id twice": (
        "qnli", "a.tsv",
        "index\tquestion\tsentence\tlabel\n7\ta\tb\tentailment\n7\ta\tb\tentailment\n", 1,
        "line 3", "id '7' is in {path}, line 2 already",
    ),
    "an empty id": (
        "qnli", "a.tsv",
        "index\tquestion\tsentence\tlabel\n7\ta\tb\tentailment\n\ta\tb\tentailment\n", 1,
        "line 3", "the 'index' is empty",
    ),
    "unknown emotion": (
        "goemotions", "a.tsv", "x\t1,28\ta\ny\t3\tb\n", 1,
        "line 1", "label '28' is not in the list",
    ),
    "an empty label": (
        "goemotions", "a.tsv", "x\t1,\ta\ny\t3\tb\n", 1, "line 1", "an empty label in '1,'",
    ),
    "a label twice": (
        "goemotions", "a.tsv", "x\t1,1\ta\ny\t3\tb\n", 1, "line 1", "a label is there twice in",
    ),
    "too few choices": (
        "multiple_choice", "a.jsonl",
        '{"question": "q", "choices": ["a", "b"], "label": 0}\n'
        '{"question": "q", "choices": ["a"], "label": 0}\n', 1,
        "line 2", "1 choices where 2 are expected",
    ),
    "a choice that is no text": (
        "multiple_choice", "a.jsonl",
        '{"question": "q", "choices": ["a", "b"], "label": 0}\n'
        '{"question": "q", "choices": ["a", 1], "label": 0}\n', 1,
        "line 2", "choice 1 is not a text",
    ),
    "a right choice that is none": (
        "multiple_choice", "a.jsonl",
        '{"question": "q", "choices": ["a", "b"], "label": 2}\n'
        '{"question": "q", "choices": ["a", "b"], "label": 0}\n', 1,
        "line 1", "label '2' is not in the list ['0', '1']",
    ),
    "choices in disorder": (
        "csqa", "a.jsonl",
        json.dumps({"answerKey": "A", "id": "1", "question": {"stem": "s", "choices": [
            {"label": "B", "text": "x"}, {"label": "A", "text": "y"}]}}) + "\n"
        + (DATA / "csqa" / "dev_rand_split.jsonl").read_text("utf-8").split("\n")[0], 1,
        "line 1", "the choices are labelled ['B', 'A'], not A, B, C, ...",
    ),
    "no question": (
        "csqa", "a.jsonl", '{"answerKey": "A"}\n'
        + (DATA / "csqa" / "dev_rand_split.jsonl").read_text("utf-8").split("\n")[0], 1,
        "line 1", "no object 'question'",
    ),
    "ragged CoNLL line": (
        "wnut17", "a.conll", "a\tO\n\nb\tO\nc\nd\tO\n\ne\tO\n", 2,
        "line 4", "1 columns where the lines before have 2",
    ),
    "a CoNLL line without word": (
        "wnut17", "a.conll", "a\tO\n\n\tO\n", 1, "line 3", "no word",
    ),
    "invalid UTF-8 in CoNLL": (
        "wnut17", "a.conll", b"a\tO\n\n\xff\tO\n", 1, "line 3", "invalid UTF-8",
    ),
    "an unknown tag": (
        "wnut17", "a.conll", "a\tO\n\nb\tB-animal\n", 1,
        "line 3", "label 'B-animal' is not in the list",
    ),
    "no tag": (
        "wnut17", "a.conll", "a\tO\n\nb\tO\nc\tPER\n", 1,
        "line 3", "tag 'PER' of word 2 is neither O nor B-... nor I-...",
    ),
    "IOB1 in IOB2": (
        "wnut17", "a.conll", "a\tO\n\nb\tO\nc\tI-person\n", 1,
        "line 3", "I-person of word 2 begins an entity, which is B-person in IOB2",
    ),
    "fewer tags than words": (
        "conll2003", "a.jsonl",
        '{"tokens": ["a", "b"], "tags": ["O"]}\n{"tokens": ["a"], "tags": ["O"]}\n', 1,
        "line 1", "2 words and 1 tags",
    ),
    "no words": (
        "conll2003", "a.jsonl",
        '{"tokens": [], "tags": []}\n{"tokens": ["a"], "tags": ["O"]}\n', 1, "line 1", "no words",
    ),
    "an empty word": (
        "conll2003", "a.jsonl",
        '{"tokens": [""], "tags": ["O"]}\n{"tokens": ["a"], "tags": ["O"]}\n', 1,
        "line 1", "an empty word",
    ),
    "answer elsewhere": (
        "squad", "a.json",
        squad(GOOD, GOOD.replace('"g"', '"h"').replace(": 2", ": 1")), 1,
        "data[0].paragraphs[0].qas[1] (question h)",
        "answer 'a' is not at character 1, where the context has ' '; it is at 2",
    ),
    "answer nowhere": (
        "squad", "a.json",
        squad(GOOD, GOOD.replace('"g"', '"h"').replace('"text": "a"', '"text": "b"')), 1,
        "data[0].paragraphs[0].qas[1] (question h)",
        "answer 'b' is not at character 2, where the context has 'a'; it is nowhere",
    ),
    "a negative start": (
        "squad", "a.json", squad(GOOD, GOOD.replace('"g"', '"h"').replace(": 2", ": -1")), 1,
        "data[0].paragraphs[0].qas[1] (question h)", "'answer_start' is -1, not a number from 0",
    ),
    "an empty answer": (
        "squad", "a.json",
        squad(GOOD, GOOD.replace('"g"', '"h"').replace('"text": "a"', '"text": ""')), 1,
        "data[0].paragraphs[0].qas[1] (question h)", "answer '' is not a text",
    ),
    "an id twice in SQuAD": (
        "squad", "a.json", squad(GOOD, GOOD), 1,
        "data[0].paragraphs[0].qas[1] (question g)",
        "id 'g' is in {path}, data[0].paragraphs[0].qas[0] (question g) already",
    ),
    "no id": (
        "squad", "a.json", squad(GOOD, '{"question": "q", "answers": []}'), 1,
        "data[0].paragraphs[0].qas[1]", "no field 'id'",
    ),
    "no answer": (
        "squad_v2", "a.json", squad(GOOD, '{"id": "h", "question": "q", "answers": []}'), 1,
        "data[0].paragraphs[0].qas[1] (question h)",
        "the question has no answer, and is not is_impossible",
    ),
    "an impossible answer": (
        "squad_v2", "a.json", squad(GOOD, GOOD.replace('"g"', '"h", "is_impossible": true')), 1,
        "data[0].paragraphs[0].qas[1] (question h)", "the question is_impossible, and has answers",
    ),
    "impossible in v1.1": (
        "squad", "a.json",
        squad(GOOD, '{"id": "h", "question": "q", "answers": [], "is_impossible": true}'), 1,
        "data[0].paragraphs[0].qas[1] (question h)",
        "the question is_impossible; take task squad_v2",
    ),
    "an odd flag": (
        "squad_v2", "a.json", squad(GOOD, GOOD.replace('"g"', '"h", "is_impossible": "no"')), 1,
        "data[0].paragraphs[0].qas[1] (question h)", "'is_impossible' is 'no', not true or false",
    ),
    "odd answers": (
        "squad", "a.json", squad(GOOD, '{"id": "h", "question": "q", "answers": ["a"]}'), 1,
        "data[0].paragraphs[0].qas[1] (question h)", "'answers' is no list of objects with 'text'",
    ),
    "no context": (
        "squad", "a.json",
        squad(GOOD)[:-2] + ', {"paragraphs": [{"qas": [{"id": "h", "question": "q"}]}]}]}', 1,
        "data[1].paragraphs[0].qas[0] (question h)", "no field 'context'",
    ),
    "an article of another form": (
        "squad", "a.json", squad(GOOD).replace('"data": [', '"data": [{}, 5, '), 1,
        "data[0]", "no list 'paragraphs'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_examples_are_told_or_skipped(tmp_path: Path, case: str) -> None:
    task, name, text, left, place, problem = BAD[case]
    path = write(tmp_path / name, text)
    with pytest.raises(InputError) as caught:
        read_task(task, path)
    told = str(caught.value)
    assert told.startswith(f"{path}, {place}: {problem.replace('{path}', path)}")
    assert told.endswith("or have such examples skipped (--skip-bad)")
    assert "\n" not in told
    data = read_task(task, path, skip_bad=True)
    assert len(data.examples) == left
    assert str(data.skipped[0]).startswith(
        f"{path}, {place}: {problem.replace('{path}', path)}"[:99]
    )
    assert len(data.skipped) == (2 if case == "an article of another form" else 1)
    if case in ("ragged tsv", "names among ids"):
        assert [fact.id for fact in facts(data)] == ["0", "2"]


FATAL: dict[str, tuple[str, str, str | bytes, str]] = {
    "missing column": (
        "sst2", "a.tsv", "text\tlabel\nx\t1\n",
        "{path}, line 1: no column 'sentence'; it has 'text', 'label': name the columns of",
    ),
    "missing label column": (
        "mnli", "a.tsv", "sentence1\tsentence2\tlabel1\nx\ty\tz\n",
        "{path}, line 1: no column 'gold_label'; it has 'sentence1', 'sentence2', 'label1': name",
    ),
    "missing field": (
        "csqa", "a.jsonl", '{"question": {"stem": "s", "choices": []}}\n',
        "{path}: no column 'answerKey'; it has 'question', 'choices', 'stem': name the columns",
    ),
    "two columns of one name": (
        "classification", "a.csv", "text,text,label\nx,y,p\n",
        "{path}, line 1: two columns are named 'text'; rename one",
    ),
    "an open quote": (
        "banking77", "a.csv", 'text,category\nx,p\n"y,p\nz,p\n',
        "{path}, line 3: a quote opens here, or further on, that is never closed; close it",
    ),
    "a header in disorder": (
        "banking77", "a.csv", '"text" x,category\nx,p\n',
        "{path}, line 1: broken row: ",
    ),
    "a header alone": (
        "sst2", "a.tsv", "sentence\tlabel\n",
        "{path}: no example in the train split; give data with examples",
    ),
    "nothing": ("sst2", "a.tsv", "", "{path}: no example in the train split; give data"),
    "blank lines": ("wnut17", "a.conll", "\n\t\n \n", "{path}: no example in the train split"),
    "document starts": ("wikigold", "a.conll", "-DOCSTART- O\n\n", "{path}: no example in the"),
    "no line": ("classification", "a.jsonl", "\n", "{path}: no example in the train split"),
    "no question": ("squad", "a.json", '{"data": []}', "{path}: no example in the train split"),
    "corrupt JSON": (
        "squad", "a.json", '{"data":\n [{]}',
        "{path}, line 2, column 4: invalid JSON: Expecting property name enclosed in double quotes",
    ),
    "cut JSON": (
        "squad", "a.json", squad(GOOD)[:-1],
        "{path}, line 1, column 152: invalid JSON: Expecting ',' delimiter",
    ),
    "deep JSON": ("squad", "a.json", "[" * 200_000, "{path}, line 1: invalid JSON: a number"),
    "another JSON": (
        "squad", "a.json", '{"version": "1.1"}', "{path}: no list 'data'; give a file in SQuAD's",
    ),
    "SQuAD not in UTF-8": (
        "squad", "a.json", b'{"data":\n["\xff"]}', "{path}, line 2: invalid UTF-8 at byte 11; save",
    ),
    "two schemes": (
        "token_classification", "a.conll", "a\tO\nb\tI-x\n\nc\tO\nd\tB-x\n",
        "entities begin with I- ({path}, line 1) and with B- ({path}, line 4); say which is meant",
    ),
    "a kind of file": (
        "sst2", "a.parquet", "", "{path}: unknown kind of file; give .csv, .tsv or .jsonl, or .gz",
    ),
    "cut gzip": (
        "sst2", "a.tsv.gz", gzip.compress(b"sentence\tlabel\nx\t1\n")[:-9],
        "{path} ends in the middle of its gzip stream",
    ),
    "cut gzip of SQuAD": (
        "squad", "a.json.gz", gzip.compress(squad(GOOD).encode())[:-9],
        "{path} ends in the middle of its gzip stream",
    ),
}  # fmt: skip


@pytest.mark.parametrize("skip_bad", [False, True])
@pytest.mark.parametrize("case", FATAL)
def test_files_that_cannot_be_used(tmp_path: Path, case: str, skip_bad: bool) -> None:
    task, name, text, problem = FATAL[case]
    path = write(tmp_path / name, text)
    with pytest.raises(InputError) as caught:
        read_task(task, path, skip_bad=skip_bad)
    assert str(caught.value).startswith(problem.replace("{path}", path))
    assert "\n" not in str(caught.value)


def test_when_all_examples_are_bad(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "sentence\tlabel\nx\t5\ny\t6\n")
    with pytest.raises(InputError) as caught:
        read_task("sst2", path, "validation", skip_bad=True)
    assert str(caught.value) == (
        f"{path}: no example in the validation split; all of 2 were left out, as {path}, line 2: "
        "label '5' is not in the list ['negative', 'positive']; give data with examples"
    )


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file matches"):
        read_task("sst2", str(tmp_path / "none.tsv"))
    with pytest.raises(InputError, match=r"holds no train.tsv; name the file itself"):
        read_task("sst2", str(tmp_path))
    with pytest.raises(InputError, match=r"is a directory \(train split\); name the file itself"):
        read_task("classification", str(tmp_path))
    with pytest.raises(InputError, match="no file is given for the train split of sst2"):
        read_task("sst2", [])
    with pytest.raises(InputError, match="no task 'sst3'; did you mean sst2"):
        read_task("sst3", str(tmp_path))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a\n\nb\n", "line 2: no name"),
        ("a\nb\na\n", "line 3: 'a' is in line 1 already"),
        ("", "no name|is empty"),
        (b"a\n\xff\n", "line 2: no name"),
    ],
)
def test_label_names_that_are_bad(tmp_path: Path, text: str | bytes, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        read_label_names(write(tmp_path / "labels.txt", text))

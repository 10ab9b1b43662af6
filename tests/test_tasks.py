"""The table of tasks: its entries are consistent, and tags of entities become IOB2."""

import random
from typing import get_args

import pytest

import bertjax
from bertjax.config import BertConfig
from bertjax.data.task_rows import BadRowError, Row
from bertjax.data.task_tags import find_scheme, tag_types, to_iob2
from bertjax.data.tasks import HEADS, TASKS, Columns, Family, Task, find_task, iob2_labels
from bertjax.errors import InputError

GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
METRICS = {
    "accuracy", "f1", "matthews", "pearson", "spearman", "multi_label_f1", "entity_f1", "squad",
    "squad_v2", "chrf", "exact_match",
}  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_consistent(name: str) -> None:
    task = TASKS[name]
    assert task.name == name
    assert task.head in bertjax.__all__
    assert task.metrics
    assert set(task.metrics) <= METRICS
    assert len(set(task.labels)) == len(task.labels)
    if task.labels and task.family in ("classification", "multi_label", "token_classification"):
        config = BertConfig(id2label=task.labels, problem_type=task.problem_type)  # type: ignore[arg-type]
        assert config.num_labels == len(task.labels)
    for columns in task.columns:
        assert len(set(columns.inputs)) == len(columns.inputs)
        assert bool(columns.choices) == (task.family == "multiple_choice")
        if columns.header:
            assert {*columns.inputs, *columns.labels} <= set(columns.header)
        if not isinstance(columns.label, str):
            assert columns.label == task.labels
    assert bool(task.columns) != (task.layout == "squad")


def test_the_families_and_their_tasks() -> None:
    assert set(HEADS) == set(get_args(Family)) == {task.family for task in TASKS.values()}
    assert set(GLUE) <= set(TASKS)
    assert all(TASKS[name].dataset == f"glue/{name}" for name in GLUE)
    assert TASKS["mnli"].labels == ("entailment", "neutral", "contradiction")
    assert TASKS["wnli"].labels == TASKS["rte"].labels[::-1]
    assert TASKS["conll2003"].labels == (
        "O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC",
    )  # fmt: skip
    assert len(TASKS["goemotions"].labels) == 28
    assert TASKS["stsb"].problem_type == "regression"
    assert TASKS["squad"].problem_type is None
    assert not TASKS["squad"].unanswerable
    assert TASKS["squad_v2"].unanswerable


def test_a_task_is_found_by_its_name() -> None:
    assert find_task("sst2") is TASKS["sst2"]
    with pytest.raises(InputError, match=r"no task 'sst-2'; did you mean sst2\? tasks are cola, "):
        find_task("sst-2")
    with pytest.raises(InputError, match=r"no task 'zzz'; tasks are"):
        find_task("zzz")


def test_columns_of_your_own() -> None:
    task = find_task("classification").with_columns(("q", "a"), "class", id="key")
    assert task.columns == (Columns(("q", "a"), "class", ("key",)),)
    assert find_task("multi_label").with_columns("t", ("x", "y")).labels == ("x", "y")
    choices = find_task("multiple_choice").with_columns("q", choices=("a", "b"))
    assert choices.columns[0].inputs == ("q", "a", "b")


@pytest.mark.parametrize(
    ("name", "arguments", "problem"),
    [
        ("classification", {"text": ("a", "b", "c")}, "name 1 to 2 text columns"),
        ("classification", {"text": ()}, "name 1 to 2 text columns"),
        ("classification", {"text": ("a", "")}, "name 1 to 2 text columns"),
        ("token_classification", {"text": ("a", "b")}, "name 1 to 1 text columns"),
        ("classification", {"text": "a", "choices": ("b",)}, "choices are named for multiple"),
        ("multiple_choice", {"text": "a"}, "choices are named for multiple choice"),
        ("classification", {"text": "a", "label": ("b", "c")}, "one column holds the label"),
        ("squad", {"text": "a"}, "fields of SQuAD files have fixed names"),
    ],
)
def test_columns_that_cannot_be(name: str, arguments: dict, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        find_task(name).with_columns(**arguments)


def spans_and_tags(rng: random.Random) -> tuple[list[str], list[str]]:
    """Make a sentence of entities and gaps; write it in IOB1 and in IOB2 from the spans."""
    iob1: list[str] = []
    iob2: list[str] = []
    before = None
    for _ in range(rng.randrange(1, 7)):
        kind, length = rng.choice([None, "PER", "LOC", "B-x"]), rng.randrange(1, 4)
        if kind is None:
            iob1 += ["O"] * length
            iob2 += ["O"] * length
        else:
            iob1 += ["B-" + kind if before == kind else "I-" + kind] + ["I-" + kind] * (length - 1)
            iob2 += ["B-" + kind] + ["I-" + kind] * (length - 1)
        before = kind
    return iob1, iob2


def rows(sentences: list[list[str]]) -> list[Row]:
    return [Row("f", f"line {i}", {"tags": tags}) for i, tags in enumerate(sentences)]


def test_iob1_becomes_iob2() -> None:
    rng = random.Random(0)
    pairs = [spans_and_tags(rng) for _ in range(500)]
    assert sum(iob1 != iob2 for iob1, iob2 in pairs) > 300
    assert any("B-PER" in iob1 for iob1, _ in pairs)
    for iob1, iob2 in pairs:
        assert to_iob2(iob1, "iob1") == iob2
        assert to_iob2(iob2, "iob1") == iob2
        assert to_iob2(iob2, "iob2") == iob2
    assert find_scheme(rows([iob1 for iob1, _ in pairs]), "tags") == "iob1"
    assert find_scheme(rows([iob2 for _, iob2 in pairs]), "tags") == "iob2"


def test_the_scheme_of_tags() -> None:
    assert find_scheme(rows([["O"], ["O", "O"]]), "tags") == "iob2"
    assert find_scheme(rows([["NOUN", "VERB"], ["DET"]]), "tags") == "plain"
    assert find_scheme(rows([["B-X", "B-X"]]), "tags") == "iob2"
    assert find_scheme(rows([["I-X", "B-X"]]), "tags") == "iob1"
    assert find_scheme([Row("f", "line 1", {}), *rows([["I-X"]])], "tags") == "iob1"
    message = r"begin with I- \(f, line 2\) and with B- \(f, line 1\); say which is meant"
    with pytest.raises(InputError, match=message):
        find_scheme(rows([["O"], ["O", "B-X"], ["O", "I-X"]]), "tags")
    assert to_iob2(["NOUN", "I-X"], "plain") == ["NOUN", "I-X"]
    assert tag_types(["O", "I-b", "B-a", "I-a", "junk"]) == ("a", "b")
    assert iob2_labels(("a", "b")) == ("O", "B-a", "I-a", "B-b", "I-b")


@pytest.mark.parametrize(
    ("tags", "scheme", "problem"),
    [
        (["O", "PER"], "iob2", "tag 'PER' of word 2 is neither O nor B-... nor I-..."),
        (["O", "S-PER"], "iob1", "tag 'S-PER' of word 2 is neither"),
        (["B-"], "iob2", "tag 'B-' of word 1 is neither"),
        (["B-PER", "I-LOC"], "iob2", "I-LOC of word 2 begins an entity, which is B-LOC in IOB2"),
    ],
)
def test_tags_that_are_none(tags: list[str], scheme: str, problem: str) -> None:
    with pytest.raises(BadRowError, match=problem):
        to_iob2(tags, scheme)  # type: ignore[arg-type]


def test_a_task_is_a_value() -> None:
    task = Task("own", "regression", ("pearson",), (Columns(("a",)),))
    assert task == Task("own", "regression", ("pearson",), (Columns(("a",)),))
    assert task.head == "BertForSequenceClassification"

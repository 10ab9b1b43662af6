"""Settings of a task from the command line: columns, layouts and tags of the user's own files."""

import pytest

from bertjax.data.task_data import read_task
from bertjax.data.tasks import TASKS, find_task
from bertjax.errors import InputError
from bertjax.metrics import FITTING, METRICS
from bertjax.run_config import TaskConfig
from bertjax.splits import configured_task


@pytest.fixture
def read(tmp_path):
    """Read a file's examples as settings say."""

    def call(task, text, suffix="csv", **settings):
        file = tmp_path / f"own.{suffix}"
        file.write_text(text)
        return read_task(configured_task(TaskConfig(task, **settings)), str(file))

    return call


def test_without_settings_it_is_the_task_itself():
    for name in ("sst2", "wnut17", "squad", "multi_label"):
        assert configured_task(TaskConfig(name)) == find_task(name)


def test_columns_of_a_table(read):
    table = "nr,q,a,topic\n7,who?,he,x\n8,why?,so,y\n"
    named = {"text_columns": ("q", "a"), "label_column": "topic", "id_column": "nr"}
    data = read("classification", table, **named)
    assert data.labels == ("x", "y")
    first = data.examples[0]
    assert (first.id, first.text, first.text_pair, first.label) == ("7", "who?", "he", 0)


def test_what_is_not_named_is_called_as_in_the_task(read):
    data = read("classification", "text,topic\nhello,x\n", label_column="topic")
    assert (data.examples[0].text, data.labels) == ("hello", ("x",))
    data = read("banking77", "query,category\nhello,x\n", text_columns=("query",))
    assert (data.examples[0].text, data.labels) == ("hello", ("x",))
    data = read("multi_label", 'comment,labels\nhello,"x,y"\n', text_columns=("comment",))
    assert data.examples[0].label == (0, 1)


def test_a_column_for_each_label(read):
    table = "comment,toxic,rude\nhello,0,0\nyou,1,1\n"
    named = {"text_columns": ("comment",), "label_columns": ("toxic", "rude")}
    data = read("multi_label", table, **named)
    assert data.labels == ("toxic", "rude")
    assert [example.label for example in data.examples] == [(), (0, 1)]


def test_columns_of_choices(read):
    table = "q,one,two,right\nwho?,he,she,1\n"
    named = {"text_columns": ("q",), "choice_columns": ("one", "two"), "label_column": "right"}
    (example,) = read("multiple_choice", table, **named).examples
    assert (example.pairs, example.label) == ((("who?", "he"), ("who?", "she")), 1)


def test_columns_and_tags_of_words(read):
    text = "1 He B-PER x\n2 ran O x\n\n1 She B-PER x\n"
    columns = {"word_column": 1, "tag_column": -2}
    data = read("token_classification", text, "conll", **columns)
    assert data.labels == ("O", "B-PER", "I-PER")
    assert [(e.words, e.tags) for e in data.examples] == [(("He", "ran"), (1, 0)), (("She",), (1,))]
    text = "He I-PER\nJoe B-PER\n"
    data = read("token_classification", text, "conll", scheme="iob1")
    assert [data.labels[tag] for tag in data.examples[0].tags] == ["B-PER", "B-PER"]
    data = read("token_classification", text, "conll", scheme="plain")
    assert data.labels == ("B-PER", "I-PER")


def test_layouts(read, tmp_path):
    data = read("classification", 'text,label\n"a, b",x\n', "txt", layout="csv")
    assert data.examples[0].text == "a, b"
    file = tmp_path / "lines.txt"
    file.write_text("a, b\n \t\nc\n")
    task = configured_task(TaskConfig("sst2", layout="lines"))
    examples = read_task(task, str(file), "test").examples
    assert [(e.id, e.text, e.label) for e in examples] == [("0", "a, b", None), ("2", "c", None)]


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("sst2", {"scheme": "iob2"}, "task.scheme: is for token_classification only; sst2 is"),
        ("squad", {"word_column": 1}, "task.word_column: is for token_classification only"),
        ("stsb", {"tag_column": 1}, "task.tag_column: is for token_classification only"),
        ("sst2", {"layout": "squad"}, "the files of sst2 .* cannot be laid out as squad"),
        ("squad", {"layout": "csv"}, "the files of squad .* cannot be laid out as csv"),
        ("csqa", {"layout": "conll"}, "the files of csqa .* cannot be laid out as conll"),
        ("swag", {"layout": "lines"}, "the files of swag .* cannot be laid out as lines"),
        ("snli", {"layout": "lines"}, "the files of snli .* cannot be laid out as lines"),
        ("squad", {"text_columns": ("a",)}, "the fields of SQuAD files have fixed names"),
        ("sst2", {"choice_columns": ("a", "b")}, "columns of choices are named for multiple"),
        ("sst2", {"label_columns": ("a", "b")}, "sst2: one column holds the label"),
        ("sst2", {"text_columns": ("a", "b", "c")}, "name 1 to 2 text columns"),
        (
            "multi_label",
            {"label_column": "a", "label_columns": ("b",)},
            "task.label_column, task.label_columns: name one or the other",
        ),
    ],
)
def test_settings_that_do_not_fit(name, settings, told):
    with pytest.raises(InputError, match=told):
        configured_task(TaskConfig(name, **settings))


def test_metrics_are_the_tasks_or_those_named():
    assert configured_task(TaskConfig("mrpc")).metrics == ("f1", "accuracy")
    named = configured_task(TaskConfig("mrpc", metrics=("matthews", "macro_f1")))
    assert named.metrics == ("matthews", "macro_f1")
    told = "task.metrics: 'acuracy' does not score snli .classification.; choose from accuracy, f1"
    with pytest.raises(InputError, match=told):
        configured_task(TaskConfig("snli", metrics=("accuracy", "acuracy")))
    told = "'squad' does not score squad_v2 .question_answering.; choose from squad_v2"
    with pytest.raises(InputError, match=told):
        configured_task(TaskConfig("squad_v2", metrics=("squad",)))


def test_every_metric_fits_some_task():
    assert set().union(*FITTING.values()) | {"squad", "squad_v2"} == set(METRICS)
    for task in TASKS.values():
        assert set(task.metrics) <= set(FITTING.get(task.family, task.metrics))

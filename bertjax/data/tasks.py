"""The table of tasks: what each data set looks like, its labels, its model's head and its metrics.

A task is one value; nothing about a single data set stands anywhere else. Your own data is read
with one of the six general tasks, which are named like the families, and `Task.with_columns`; any
file in SQuAD's layout with `squad` or `squad_v2`.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Literal

from bertjax.config import ProblemType
from bertjax.errors import InputError

Family = Literal[
    "classification",
    "regression",
    "multi_label",
    "multiple_choice",
    "token_classification",
    "question_answering",
    "seq2seq",
]
FileLayout = Literal[
    "by_name", "tsv", "quoted_tsv", "csv", "jsonl", "lines", "csqa", "conll", "squad"
]
Scheme = Literal["auto", "iob1", "iob2", "plain"]

HEADS: Mapping[Family, str] = {
    "classification": "BertForSequenceClassification",
    "regression": "BertForSequenceClassification",
    "multi_label": "BertForSequenceClassification",
    "multiple_choice": "BertForMultipleChoice",
    "token_classification": "BertForTokenClassification",
    "question_answering": "BertForQuestionAnswering",
    "seq2seq": "EncoderDecoderModel",
}


_PROBLEM_TYPES: Mapping[Family, ProblemType] = {
    "classification": "single_label_classification",
    "regression": "regression",
    "multi_label": "multi_label_classification",
}


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which columns of a table, or fields of a record, hold what.

    Attributes:
      text: the text, or the two of a pair. Of a multiple choice: the first text, then, where there
        is one, the text that every choice continues.
      label: column of the label, or of the text to be written; or one column for each label, in
        order, each 0 or 1.
      id: columns that may name the example; the first that is there does, else its number.
      choices: column of each choice, or one that holds a list of them.
      header: names of the columns where the file does not begin with them.
      surplus: further columns may follow those of `header`.
      no_label: what stands for a label where the data set's annotators found none.
    """

    text: tuple[str, ...]
    label: str | tuple[str, ...] = "label"
    id: tuple[str, ...] = ("index", "idx", "id")
    choices: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    surplus: bool = False
    no_label: str | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns that an example cannot do without."""
        return (*self.text, *self.choices)

    @property
    def labels(self) -> tuple[str, ...]:
        """The columns that hold its label."""
        return (self.label,) if isinstance(self.label, str) else self.label


@dataclasses.dataclass(frozen=True)
class Task:
    """A data set, or a kind of data sets, and what is done with it.

    Attributes:
      name: what it is called on the command line.
      family: kind of input and output; decides the model's head.
      metrics: names of its scores; the first one selects the best checkpoint.
      columns: its known sets of columns; the first that fits a file is taken.
      labels: names of the labels in order of their ids; empty: those of the training split, sorted.
        Labels in files may be names or ids.
      layout: layout of its files; `by_name` goes by the suffix: .csv with quotes, .tsv and .txt
        tab separated without (a quote is text), .jsonl and .json one JSON object a line; `lines`
        has one text a line. A .jsonl file is read as that whatever the layout, `squad` and
        `lines` apart, and a .csv file where the layout is `quoted_tsv`.
      files: names that each split may have in a directory.
      dataset: its name in TFDS, if it has one.
      splits: names of its splits in TFDS that differ from ours.
      scheme: how tags mark entities; all become IOB2. `auto` looks; `plain` takes tags as they are.
      word_column: column of the words in CoNLL files, counted from 0, or from -1 at the end.
      tag_column: column of the tags, likewise.
      unanswerable: questions may have no answer (SQuAD 2.0).
    """

    name: str
    family: Family
    metrics: tuple[str, ...]
    columns: tuple[Columns, ...] = ()
    labels: tuple[str, ...] = ()
    layout: FileLayout = "by_name"
    files: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    dataset: str = ""
    splits: Mapping[str, str] = dataclasses.field(default_factory=dict)
    scheme: Scheme = "auto"
    word_column: int = 0
    tag_column: int = -1
    unanswerable: bool = False

    @property
    def head(self) -> str:
        """Name of the model class."""
        return HEADS[self.family]

    @property
    def problem_type(self) -> ProblemType | None:
        """`problem_type` of the model's config, where its head has several."""
        return _PROBLEM_TYPES.get(self.family)

    def with_columns(
        self,
        text: tuple[str, ...] | str,
        label: str | tuple[str, ...] = "label",
        *,
        id: str = "",
        choices: tuple[str, ...] = (),
    ) -> "Task":
        """Return this task for tables with columns of these names; see `Columns`.

        Raises:
            InputError: there are too many texts for the family, or choices where there are none.
        """
        text = (text,) if isinstance(text, str) else tuple(text)
        most = 1 if self.family == "token_classification" else 2
        if not 1 <= len(text) <= most or not all(text):
            raise InputError(f"{self.name}: name 1 to {most} text columns; got {list(text)}")
        if bool(choices) != (self.family == "multiple_choice"):
            raise InputError(
                f"{self.name}: columns of choices are named for multiple choice, and only there"
            )
        if not isinstance(label, str) and self.family != "multi_label":
            raise InputError(f"{self.name}: one column holds the label; got {list(label)}")
        if self.layout == "squad":
            raise InputError(f"{self.name}: the fields of SQuAD files have fixed names")
        default = Columns(text).id
        columns = Columns(text, label, (id,) if id else default, tuple(choices))
        labels = self.labels if isinstance(label, str) else tuple(label)
        return dataclasses.replace(self, columns=(columns,), labels=labels)


def find_task(name: str) -> Task:
    """Return the task of this name.

    Raises:
        InputError: there is none.
    """
    if name in TASKS:
        return TASKS[name]
    similar = difflib.get_close_matches(name, TASKS, 1, 0.5)
    hint = f"did you mean {similar[0]}? " if similar else ""
    raise InputError(f"no task {name!r}; {hint}tasks are {', '.join(TASKS)}")


def iob2_labels(types: tuple[str, ...]) -> tuple[str, ...]:
    """Return the tags of entities of these types: O, then B- and I- of each."""
    return ("O", *(f"{prefix}-{name}" for name in types for prefix in "BI"))


def _names(train: str, validation: str, test: str, **others: str) -> Mapping[str, tuple[str, ...]]:
    """Split the names of each split's file at spaces."""
    splits = {"train": train, "validation": validation, "test": test, **others}
    return {split: tuple(names.split()) for split, names in splits.items() if names}


_GLUE_FILES = _names("train.tsv", "dev.tsv", "test.tsv")
_CONLL_FILES = _names(
    "train.conll train.txt eng.train",
    "dev.conll valid.txt dev.txt eng.testa",
    "test.conll test.txt eng.testb",
)
_SENTENCE = Columns(("sentence",))
_SENTENCES = Columns(("sentence1", "sentence2"))
_PREMISE = Columns(("premise", "hypothesis"))
_GOLD = Columns(("sentence1", "sentence2"), "gold_label", ("index", "pairID"), no_label="-")
_TAGGED = (Columns(("tokens",), "tags"), Columns(("tokens",), "ner_tags"))
# The names and the order of TFDS and of the published checkpoints.
_ENTAILMENT = ("entailment", "not_entailment")
_ENTAILMENT3 = ("entailment", "neutral", "contradiction")
# Line n of the data set's list of emotions has id n - 1.
_EMOTIONS = (
    "admiration amusement anger annoyance approval caring confusion curiosity desire "
    "disappointment disapproval disgust embarrassment excitement fear gratitude grief joy love "
    "nervousness optimism pride realization relief remorse sadness surprise neutral"
)


def _glue(
    name: str,
    metrics: tuple[str, ...],
    columns: tuple[Columns, ...],
    labels: tuple[str, ...],
    files: Mapping[str, tuple[str, ...]] = _GLUE_FILES,
    splits: Mapping[str, str] | None = None,
) -> Task:
    """A classification of GLUE: `columns` as in its tsv files, and as in TFDS."""
    return Task(
        name,
        "classification",
        metrics,
        columns,
        labels,
        files=files,
        dataset=f"glue/{name}",
        splits=splits or {},
    )


_TASKS: tuple[Task, ...] = (
    _glue(
        "cola",
        ("matthews",),
        (
            _SENTENCE,
            Columns(("sentence",), header=("source", "label", "original_label", "sentence")),
        ),
        ("unacceptable", "acceptable"),
    ),
    _glue("sst2", ("accuracy",), (_SENTENCE,), ("negative", "positive")),
    _glue(
        "mrpc",
        ("f1", "accuracy"),
        (Columns(("#1 String", "#2 String"), "Quality"), _SENTENCES),
        ("not_equivalent", "equivalent"),
        _names("train.tsv msr_paraphrase_train.txt", "dev.tsv", "test.tsv msr_paraphrase_test.txt"),
    ),
    Task(
        "stsb",
        "regression",
        ("pearson", "spearman"),
        (
            Columns(("sentence1", "sentence2"), "score"),
            # TFDS has -1 where the test split has no score.
            Columns(("sentence1", "sentence2"), no_label="-1.0"),
            Columns(
                ("sentence1", "sentence2"),
                "score",
                id=(),
                header=("genre", "file", "year", "old_index", "score", "sentence1", "sentence2"),
                surplus=True,
            ),
        ),
        layout="tsv",
        files=_names("train.tsv sts-train.csv", "dev.tsv sts-dev.csv", "test.tsv sts-test.csv"),
        dataset="glue/stsb",
    ),
    _glue(
        "qqp",
        ("f1", "accuracy"),
        (Columns(("question1", "question2"), "is_duplicate"), Columns(("question1", "question2"))),
        ("not_duplicate", "duplicate"),
    ),
    _glue(
        "mnli",
        ("accuracy",),
        (_GOLD, _PREMISE),
        _ENTAILMENT3,
        _names(
            "train.tsv",
            "dev_matched.tsv",
            "test_matched.tsv",
            validation_mismatched="dev_mismatched.tsv",
            test_mismatched="test_mismatched.tsv",
        ),
        {"validation": "validation_matched", "test": "test_matched"},
    ),
    _glue("qnli", ("accuracy",), (Columns(("question", "sentence")),), _ENTAILMENT),
    _glue("rte", ("accuracy",), (_SENTENCES,), _ENTAILMENT),
    _glue("wnli", ("accuracy",), (_SENTENCES,), _ENTAILMENT[::-1]),
    Task(
        "snli",
        "classification",
        ("accuracy",),
        (_PREMISE, _GOLD),
        _ENTAILMENT3,
        files=_names(
            "train.csv snli_1.0_train.jsonl snli_1.0_train.txt",
            "dev.csv snli_1.0_dev.jsonl snli_1.0_dev.txt",
            "test.csv snli_1.0_test.jsonl snli_1.0_test.txt",
        ),
        dataset="snli",
    ),
    Task(
        "banking77",
        "classification",
        ("accuracy",),
        (Columns(("text",), "category"),),
        files=_names("train.csv", "dev.csv", "test.csv"),
    ),
    Task(
        "goemotions",
        "multi_label",
        ("multi_label_f1",),
        (
            Columns(("comment_text",), tuple(_EMOTIONS.split())),
            # As collected: a row for each rater, so that ids come several times.
            Columns(("text",), tuple(_EMOTIONS.split()), id=()),
            Columns(("text",), "labels"),
            Columns(("text",), "labels", header=("text", "labels", "id")),
        ),
        tuple(_EMOTIONS.split()),
        layout="quoted_tsv",
        files=_names(
            "train.tsv goemotions_train.tsv",
            "dev.tsv goemotions_dev.tsv",
            "test.tsv goemotions_test.tsv",
        ),
        dataset="goemotions",
    ),
    Task(
        "csqa",
        "multiple_choice",
        ("accuracy",),
        (Columns(("stem",), "answerKey", choices=("choices",)),),
        tuple("ABCDE"),
        layout="csqa",
        files=_names(
            "train_rand_split.jsonl csqa_train.jsonl",
            "dev_rand_split.jsonl csqa_dev.jsonl",
            "test_rand_split_no_answers.jsonl",
        ),
    ),
    Task(
        "cosmos_qa",
        "multiple_choice",
        ("accuracy",),
        (Columns(("context", "question"), choices=("answer0", "answer1", "answer2", "answer3")),),
        tuple("0123"),
        files=_names(
            "train.csv cosmosqa_train.csv", "valid.csv cosmosqa_dev.csv", "test.jsonl test.csv"
        ),
        dataset="cosmos_qa",
    ),
    Task(
        "swag",
        "multiple_choice",
        ("accuracy",),
        (Columns(("sent1", "sent2"), choices=("ending0", "ending1", "ending2", "ending3")),),
        tuple("0123"),
        files=_names("train.csv", "val.csv", "test.csv"),
    ),
    Task(
        "conll2003",
        "token_classification",
        ("entity_f1",),
        (*_TAGGED, Columns(("tokens",), "ner")),
        iob2_labels(("PER", "ORG", "LOC", "MISC")),
        layout="conll",
        files=_CONLL_FILES,
        dataset="conll2003",
        splits={"validation": "dev"},
    ),
    Task(
        "wnut17",
        "token_classification",
        ("entity_f1",),
        _TAGGED,
        iob2_labels(("corporation", "creative-work", "group", "location", "person", "product")),
        layout="conll",
        files=_names(
            "wnut17train.conll wnut17_train.conll",
            "emerging.dev.conll wnut17_dev.conll",
            "emerging.test.annotated",
        ),
        scheme="iob2",
    ),
    Task(
        "wikigold",
        "token_classification",
        ("entity_f1",),
        _TAGGED,
        iob2_labels(("PER", "ORG", "LOC", "MISC")),
        layout="conll",
        files=_names("wikigold_train.conll wikigold.conll.txt", "wikigold_dev.conll", ""),
        scheme="iob1",
    ),
    Task(
        "squad",
        "question_answering",
        ("squad",),
        layout="squad",
        files=_names("train-v1.1.json", "dev-v1.1.json", "test-v1.1.json"),
        dataset="squad/v1.1",
    ),
    Task(
        "squad_v2",
        "question_answering",
        ("squad_v2",),
        layout="squad",
        files=_names("train-v2.0.json", "dev-v2.0.json", "test-v2.0.json"),
        dataset="squad/v2.0",
        unanswerable=True,
    ),
    # Your own data.
    Task("classification", "classification", ("accuracy",), (Columns(("text",)),)),
    Task("regression", "regression", ("pearson", "spearman"), (Columns(("text",)),)),
    Task("multi_label", "multi_label", ("multi_label_f1",), (Columns(("text",), "labels"),)),
    Task(
        "multiple_choice",
        "multiple_choice",
        ("accuracy",),
        (Columns(("question",), choices=("choices",)),),
    ),
    Task(
        "token_classification",
        "token_classification",
        ("entity_f1",),
        _TAGGED,
        layout="conll",
        files=_CONLL_FILES,
    ),
    Task("seq2seq", "seq2seq", ("chrf", "exact_match"), (Columns(("source",), "target"),)),
)

TASKS: Mapping[str, Task] = {task.name: task for task in _TASKS}

"""Turn rows into the examples of a task, and check them: fields, labels, ids, answers' places."""

from collections.abc import Sequence
from typing import Any

from bertjax.data.examples import (
    Answer,
    ChoiceExample,
    QuestionExample,
    TaggedExample,
    TextExample,
)
from bertjax.data.task_labels import LabelList, infer_labels, score
from bertjax.data.task_rows import (
    NO_LABEL,
    BadRowError,
    Rejects,
    Row,
    is_text,
    shorten,
    text_field,
)
from bertjax.data.task_tags import find_scheme, to_iob2
from bertjax.data.tasks import Columns, Scheme, Task
from bertjax.errors import InputError

Example = TextExample | ChoiceExample | TaggedExample | QuestionExample


class ExampleMaker:
    """Makes the examples of a task out of its rows.

    Attributes:
      task: the task.
      columns: where in a row things are.
      labels: names of the labels in order of their ids; empty where labels have no names.
      scheme: how tags mark entities.
    """

    def __init__(
        self,
        task: Task,
        columns: Columns,
        rows: Sequence[Row],
        labels: Sequence[str] = (),
        infer: bool = True,
    ) -> None:
        """Find out what labels the rows have.

        Args:
          task: the task.
          columns: where in a row things are.
          rows: all rows of the split.
          labels: names of a model's labels in order of its ids, if they are known.
          infer: take the labels from the rows, where neither `labels` nor the task names them.

        Raises:
          InputError: labels are neither known nor to be inferred, or tags contradict each other.
        """
        self.task = task
        self.columns = columns
        self.has_labels = task.family == "question_answering" or any(
            self._raw_label(row) not in (None, NO_LABEL) for row in rows
        )
        self.scheme: Scheme = task.scheme
        if task.family == "token_classification" and task.scheme == "auto":
            self.scheme = find_scheme(rows, columns.labels[0])
        known = tuple(labels or task.labels)
        if not known and task.family == "multiple_choice":
            known = tuple(map(str, range(self._most_choices(rows))))
        names_labels = task.family not in ("regression", "question_answering", "seq2seq")
        if not known and names_labels and self.has_labels:
            if not infer:
                raise InputError(
                    f"{task.name}: its labels are those of the training split; read that first, "
                    "and give its labels"
                )
            known = infer_labels(task, [self._raw_label(row) for row in rows], self.scheme)
        self.labels = known if names_labels else ()
        self._label_list = LabelList(task.labels or known, known)

    def make(self, row: Row, number: int, needs_label: bool) -> Example | None:
        """Return the example of a row, or None where the data set gives it no label.

        Args:
          row: the row.
          number: its number; names the example where nothing else does.
          needs_label: whether an example without label is bad.

        Raises:
          BadRowError: something is wrong with it.
        """
        name = self._name(row, number)
        if self.task.family == "question_answering":
            return self._question(row, name, needs_label)
        raw = self._raw_label(row)
        if raw is NO_LABEL and self.has_labels:
            return None
        if raw is NO_LABEL:
            raw = None
        if raw is None and (needs_label or self.has_labels):
            raise BadRowError(f"no label in {', '.join(map(repr, self.columns.labels))}")
        if self.task.family == "multiple_choice":
            return self._choice(row, name, raw)
        if self.task.family == "token_classification":
            return self._tagged(row, name, raw)
        texts = [text_field(row, column) for column in self.columns.text]
        label = None if raw is None else self._label(raw)
        return TextExample(name, texts[0], texts[1] if len(texts) > 1 else None, label)

    def _name(self, row: Row, number: int) -> str:
        column = next((column for column in self.columns.id if column in row.values), None)
        if column is None:
            if self.task.family == "question_answering":
                raise BadRowError("no field 'id'")
            return str(number)
        value = row.values[column]
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        name = text_field(row, column)
        if not name:
            raise BadRowError(f"the {column!r} is empty")
        return name

    def _raw_label(self, row: Row) -> Any:
        """Return the label as it was read: None if it is missing, NO_LABEL if it is unknown."""
        if not isinstance(self.columns.label, str):
            cells = {column: row.values.get(column) for column in self.columns.label}
            return None if all(cell is None for cell in cells.values()) else cells
        raw = row.values.get(self.columns.label)
        if isinstance(raw, str):
            raw = raw.strip()
            if not raw and self.task.family != "multi_label":
                return None
        if self.columns.no_label is not None and str(raw) == self.columns.no_label:
            return NO_LABEL
        return raw

    def _label(self, raw: Any) -> int | float | str | tuple[int, ...]:
        if self.task.family == "seq2seq":
            if not is_text(raw):
                raise BadRowError(f"target {shorten(raw)} is not a text")
            return str(raw)
        if self.task.family == "regression":
            return score(raw)
        if self.task.family == "multi_label":
            return self._label_list.encode_all(raw)
        return self._label_list.encode(raw)

    def _choices(self, row: Row) -> list[Any]:
        first = row.values.get(self.columns.choices[0])
        if len(self.columns.choices) == 1 and isinstance(first, list):
            return first
        return [text_field(row, column) for column in self.columns.choices]

    def _most_choices(self, rows: Sequence[Row]) -> int:
        listed = (row.values.get(self.columns.choices[0]) for row in rows)
        return max(
            (len(choices) for choices in listed if isinstance(choices, list)),
            default=len(self.columns.choices),
        )

    def _choice(self, row: Row, name: str, raw: Any) -> ChoiceExample:
        first, *lead = [text_field(row, column) for column in self.columns.text]
        choices = self._choices(row)
        if len(choices) != len(self.labels):
            raise BadRowError(f"{len(choices)} choices where {len(self.labels)} are expected")
        for choice in choices:
            if not isinstance(choice, str):
                raise BadRowError(f"choice {shorten(choice)} is not a text")
        seconds = [" ".join([*lead, choice]) for choice in choices]
        label = None if raw is None else self._label_list.encode(raw)
        return ChoiceExample(name, tuple((first, second) for second in seconds), label)

    def _tagged(self, row: Row, name: str, raw: Any) -> TaggedExample:
        column = self.columns.text[0]
        words = row.values.get(column)
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise BadRowError(f"no list of words in {column!r}")
        if not words or not all(words):
            raise BadRowError("no words" if not words else "an empty word")
        if raw is None:
            return TaggedExample(name, tuple(words))
        if not isinstance(raw, list):
            raise BadRowError(f"no list of tags in {self.columns.labels[0]!r}")
        if len(raw) != len(words):
            raise BadRowError(f"{len(words)} words and {len(raw)} tags")
        tags = to_iob2(raw, self.scheme)
        return TaggedExample(name, tuple(words), tuple(map(self._label_list.encode, tags)))

    def _question(self, row: Row, name: str, needs_label: bool) -> QuestionExample:
        question, context = text_field(row, "question"), text_field(row, "context")
        answers = tuple(_answer(text, start, context) for text, start in _answer_fields(row.values))
        impossible = row.values.get("is_impossible", False)
        if not isinstance(impossible, bool):
            raise BadRowError(f"'is_impossible' is {shorten(impossible)}, not true or false")
        if impossible and not self.task.unanswerable:
            raise BadRowError("the question is_impossible", "take task squad_v2")
        if impossible and answers:
            raise BadRowError("the question is_impossible, and has answers")
        if needs_label and not (answers or impossible):
            raise BadRowError("the question has no answer, and is not is_impossible")
        return QuestionExample(name, question, context, answers, impossible)


def make_examples(
    maker: ExampleMaker, rows: Sequence[Row | None], needs_label: bool, rejects: Rejects
) -> tuple[list[Example], list[tuple[str, str]]]:
    """Return the examples of all rows that can be read, and the source and place of each.

    Raises:
        InputError: a row is bad and may not be skipped, or has the id of another.
    """
    examples: list[Example] = []
    places: dict[str, tuple[str, str]] = {}
    for number, row in enumerate(rows):
        if row is None:
            continue
        try:
            example = maker.make(row, number, needs_label)
            if example is not None and example.id in places:
                there = ", ".join(places[example.id])
                raise BadRowError(f"id {shorten(example.id)} is in {there} already")
        except BadRowError as bad:
            rejects.reject(row.source, row.place, bad)
            continue
        if example is None:
            rejects.leave_out(row.source, row.place, "the data set gives it no label")
            continue
        places[example.id] = row.source, row.place
        examples.append(example)
    return examples, list(places.values())


def _answer_fields(values: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Return text and start of each answer, from a list of both or from two lists."""
    answers = values.get("answers") or []
    if isinstance(answers, dict):
        texts, starts = answers.get("text"), answers.get("answer_start")
        if isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts):
            return list(zip(texts, starts, strict=True))
    elif isinstance(answers, list) and all(isinstance(answer, dict) for answer in answers):
        return [(answer.get("text"), answer.get("answer_start")) for answer in answers]
    raise BadRowError("'answers' is no list of objects with 'text' and 'answer_start'")


def _answer(text: Any, start: Any, context: str) -> Answer:
    """Check that an answer is where it says."""
    if not isinstance(text, str) or not text:
        raise BadRowError(f"answer {shorten(text)} is not a text")
    if not isinstance(start, int) or isinstance(start, bool) or start < 0:
        raise BadRowError(f"'answer_start' is {shorten(start)}, not a number from 0")
    there = context[start : start + len(text)]
    if there != text:
        found = context.find(text)
        hint = f"it is at {found}" if found >= 0 else "it is nowhere in the context"
        raise BadRowError(
            f"answer {shorten(text)} is not at character {start}, where the context has "
            f"{shorten(there)}; {hint}",
            "correct 'answer_start'",
        )
    return Answer(text, start)

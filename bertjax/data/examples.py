"""Labelled examples of the fine-tuning families, as they are read: text, not yet tokens."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class TextExample:
    """One text or a pair, to be classified or scored.

    Attributes:
      id: names the example in predictions.
      text: first text.
      text_pair: second text of a pair.
      label: class id; a score; the ids of all labels that hold; or the text to be written. None
        where it is unknown.
    """

    id: str
    text: str
    text_pair: str | None = None
    label: int | float | str | tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class ChoiceExample:
    """Several pairs of texts, one of which is right.

    Attributes:
      id: names the example in predictions.
      pairs: first and second text of each choice.
      label: index of the right one, or None.
    """

    id: str
    pairs: tuple[tuple[str, str], ...]
    label: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class TaggedExample:
    """A sentence of words, each with a tag.

    Attributes:
      id: names the example in predictions.
      words: the words.
      tags: their label ids, or None.
    """

    id: str
    words: tuple[str, ...]
    tags: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """A reference answer: its text, and the character of the context that it starts at."""

    text: str
    start: int


@dataclasses.dataclass(frozen=True, slots=True)
class QuestionExample:
    """A question, and the text that may hold its answer.

    Attributes:
      id: names the example in predictions.
      question: the question.
      context: the text.
      answers: reference answers; several people's, or none.
      is_impossible: the context does not answer it (SQuAD 2.0).
    """

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...] = ()
    is_impossible: bool = False

"""Examples of the fine-tuning families as rows of tokens, padded when they are asked for."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from bertjax.data.examples import ChoiceExample, QuestionExample, TaggedExample, TextExample
from bertjax.data.task_data import TaskData
from bertjax.data.windows import Windows, make_windows
from bertjax.losses import IGNORE_INDEX
from bertjax.tokenizer import BertTokenizer

Ints = npt.NDArray[np.int32]


class Rows(Protocol):
    """What a model reads of a split, in the order of its examples."""

    @property
    def lengths(self) -> Ints:
        """Tokens of each row; of a multiple choice, of its longest choice, [N]."""
        ...

    def __len__(self) -> int: ...

    def batch(self, rows: npt.NDArray[np.int64], width: int) -> dict[str, np.ndarray]:
        """Return inputs, and labels where the examples have them.

        Args:
          rows: numbers of the rows, [B].
          width: columns, T; at least the rows' lengths.
        """
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class TextRows:
    """Rows of texts, pairs, choices or tagged words.

    Attributes:
      ids: tokens of all rows, end to end.
      types: their segments.
      bounds: first token of each row, and the end, [N * choices + 1].
      choices: rows of one example, 0 where an example is a row.
      labels: of the examples, [N] or [N, L]; or, beside `words`, of each token, -100 where a token
        has none. None where they are unknown.
      words: number, within its row, of the word that each token begins, else -1; None where words
        are not tagged.
      cut: whether each example lost tokens, [N].
      pad_id: token of the padding.
    """

    ids: Ints
    types: Ints
    bounds: npt.NDArray[np.int64]
    choices: int
    labels: np.ndarray | None
    words: Ints | None
    cut: npt.NDArray[np.bool_]
    pad_id: int

    @property
    def truncated(self) -> int:
        """Examples that lost tokens."""
        return int(self.cut.sum())

    @functools.cached_property
    def lengths(self) -> Ints:
        """Tokens of each row; of a multiple choice, of its longest choice, [N]."""
        lengths = np.diff(self.bounds)
        return (lengths.reshape(-1, self.choices).max(1) if self.choices else lengths).astype(
            np.int32
        )

    def __len__(self) -> int:
        return (len(self.bounds) - 1) // (self.choices or 1)

    def batch(self, rows: npt.NDArray[np.int64], width: int) -> dict[str, np.ndarray]:
        """See `Rows.batch`; a multiple choice has inputs [B, choices, T]."""
        shape: tuple[int, ...] = (len(rows), width)
        picked = rows
        if self.choices:
            shape = (len(rows), self.choices, width)
            picked = (rows[:, None] * self.choices + np.arange(self.choices)).ravel()
        lengths = np.diff(self.bounds)[picked]
        mask = np.arange(width) < lengths[:, None]
        places = np.where(mask, self.bounds[picked][:, None] + np.arange(width), 0)

        def pad(values: np.ndarray, filler: int) -> np.ndarray:
            return np.where(mask, values[places], filler).astype(np.int32).reshape(shape)

        batch = {
            "input_ids": pad(self.ids, self.pad_id),
            "token_type_ids": pad(self.types, 0),
            "attention_mask": mask.astype(np.int32).reshape(shape),
        }
        if self.labels is not None:
            batch["labels"] = (
                self.labels[rows] if self.words is None else pad(self.labels, IGNORE_INDEX)
            )
        return batch


@dataclasses.dataclass(frozen=True, eq=False)
class QuestionRows:
    """Rows of questions: the windows of their contexts.

    Attributes:
      windows: the windows.
      positions: first and last column of each window's answer; None where answers are unknown.
    """

    windows: Windows
    positions: tuple[Ints, Ints] | None

    @property
    def lengths(self) -> Ints:
        """Tokens of each row, [N]."""
        return self.windows.lengths

    @property
    def pad_id(self) -> int:
        """Token of the padding."""
        return self.windows.special_ids[0]

    def __len__(self) -> int:
        return len(self.windows)

    def batch(self, rows: npt.NDArray[np.int64], width: int) -> dict[str, np.ndarray]:
        """See `Rows.batch`."""
        batch: dict[str, np.ndarray] = dict(self.windows.rows(rows, width))
        if self.positions is not None:
            batch["start_positions"] = self.positions[0][rows]
            batch["end_positions"] = self.positions[1][rows]
        return batch


def make_rows(
    data: TaskData, tokenizer: BertTokenizer, max_length: int, doc_stride: int = 128
) -> TextRows | QuestionRows:
    """Tokenize a split of a task.

    Tags stand on the first token of their word and nowhere else. Multi-label targets are one number
    a label, 1 where it holds.

    Args:
      data: the split.
      tokenizer: of the model.
      max_length: longest row; longer texts are cut, questions' contexts cut into windows.
      doc_stride: tokens between the starts of two windows.
    """
    family = data.task.family
    if family == "question_answering":
        questions = cast(Sequence[QuestionExample], data.examples)
        windows = make_windows(tokenizer, questions, max_length=max_length, doc_stride=doc_stride)
        known = all(example.answers or example.is_impossible for example in questions)
        return QuestionRows(windows, windows.labels() if known else None)
    if family == "token_classification":
        return _tagged_rows(cast(Sequence[TaggedExample], data.examples), tokenizer, max_length)
    if family == "multiple_choice":
        choices = cast(Sequence[ChoiceExample], data.examples)
        count = max(len(example.pairs) for example in choices)
        pairs = [pair for example in choices for pair in example.pairs]
        return text_rows(
            pairs, _labels([e.label for e in choices], np.int32), tokenizer, max_length, count
        )
    texts = cast(Sequence[TextExample], data.examples)
    inputs = [e.text if e.text_pair is None else (e.text, e.text_pair) for e in texts]
    if family == "multi_label":
        labels = _multi_hot([e.label for e in texts], len(data.labels))
    else:
        kind = np.float32 if family == "regression" else np.int32
        labels = _labels([e.label for e in texts], kind)
    return text_rows(inputs, labels, tokenizer, max_length, 0)


def _labels(labels: Sequence[Any], kind: type) -> np.ndarray | None:
    return None if any(label is None for label in labels) else np.array(labels, kind)


def _multi_hot(labels: Sequence[Any], count: int) -> np.ndarray | None:
    if any(label is None for label in labels):
        return None
    targets = np.zeros((len(labels), count), np.float32)
    for row, held in zip(targets, labels, strict=True):
        row[list(held)] = 1.0
    return targets


def text_rows(
    inputs: Sequence[Any],
    labels: np.ndarray | None,
    tokenizer: BertTokenizer,
    max_length: int,
    choices: int,
) -> TextRows:
    """Tokenize texts or pairs; `choices` of them are one example, 0 for one each."""
    encodings = tokenizer.truncated_to(max_length).encode_batch(inputs)
    return _ragged(tokenizer, encodings, choices, labels, None)


def _tagged_rows(
    examples: Sequence[TaggedExample], tokenizer: BertTokenizer, max_length: int
) -> TextRows:
    encodings = tokenizer.truncated_to(max_length).encode_batch(
        [list(example.words) for example in examples], is_pretokenized=True
    )
    words = [_words_begun(encoding.word_ids) for encoding in encodings]
    labels: np.ndarray | None = None
    if all(example.tags is not None for example in examples):
        labels = np.concatenate(
            [
                np.where(begun < 0, IGNORE_INDEX, np.array(example.tags, np.int32)[begun])
                for begun, example in zip(words, examples, strict=True)
            ]
        )
    return _ragged(tokenizer, encodings, 0, labels, np.concatenate(words))


def _words_begun(word_ids: Sequence[int | None]) -> Ints:
    """Return the word that each token begins, or -1."""
    before = [None, *word_ids[:-1]]
    return np.array(
        [
            -1 if word is None or word == last else word
            for word, last in zip(word_ids, before, strict=True)
        ],
        np.int32,
    )


def _ragged(
    tokenizer: BertTokenizer,
    encodings: Sequence[Any],
    choices: int,
    labels: np.ndarray | None,
    words: Ints | None,
) -> TextRows:
    cut = np.array([bool(encoding.overflowing) for encoding in encodings])
    sizes = np.array([len(encoding.ids) for encoding in encodings], np.int64)
    return TextRows(
        ids=np.concatenate([np.array(encoding.ids, np.int32) for encoding in encodings]),
        types=np.concatenate([np.array(encoding.type_ids, np.int32) for encoding in encodings]),
        bounds=np.concatenate([[0], np.cumsum(sizes)]),
        choices=choices,
        labels=labels,
        words=words,
        cut=np.logical_or.reduce(cut.reshape(-1, choices or 1), axis=1),
        pad_id=tokenizer.pad_id,
    )

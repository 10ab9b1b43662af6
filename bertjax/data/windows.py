"""Questions over long contexts, cut into windows: rows of `[CLS] question [SEP] piece [SEP]`.

A window is kept as a few numbers and made into a row when it is asked for, because neighbouring
windows, and questions about one context, share most of their tokens.
"""

import dataclasses
import functools
import itertools
import unicodedata
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from bertjax.data.examples import Answer, QuestionExample
from bertjax.errors import InputError
from bertjax.tokenizer import BertTokenizer

Ints = npt.NDArray[np.int32]
Numbers = npt.NDArray[np.int64]

_SPECIAL_TOKENS = 3
# Texts whose encodings, which are large, are held at a time.
_BATCH = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of some texts, end to end.

    Attributes:
      ids: what the model reads, [N].
      starts: character of its text that each token starts at, [N].
      ends: the character after its last; marks that the tokenizer drops count to it, [N].
      begins_word: whether it is the first token of a word, [N].
      bounds: the first token of each text, and N at the end, [texts + 1].
    """

    ids: Ints
    starts: Ints
    ends: Ints
    begins_word: npt.NDArray[np.bool_]
    bounds: Numbers

    @functools.cached_property
    def word_firsts(self) -> Numbers:
        """The first token of the word that each token is in, [N]."""
        return np.flatnonzero(self.begins_word)[np.cumsum(self.begins_word) - 1]

    @functools.cached_property
    def word_lasts(self) -> Numbers:
        """The last token of the word that each token is in, [N]."""
        nexts = np.append(np.flatnonzero(self.begins_word), len(self.ids))
        return nexts[np.cumsum(self.begins_word)] - 1


@dataclasses.dataclass(frozen=True, eq=False)
class Windows:
    """Rows that cover the contexts of questions; a question's are next to each other, in order.

    Attributes:
      examples: the questions, [E].
      example: which of them each window is of; each has at least one, [W].
      lengths: tokens of each row, [W].
      context_column: column at which its piece of the context starts, [W].
      start_columns: first column, and the one after the last, at which an answer may start by
        the max-context rule: where several windows hold a token, it may start an answer only in
        the one that gives it most context (google's run_squad.py), [W, 2].
      first_token: the first token of its piece, in `contexts`, [W].
      contexts: tokens of the distinct contexts.
      context: which of them is each question's, [E].
      questions: tokens of the distinct questions, whole.
      question: which of them is each question, [E].
      special_ids: ids of [PAD], [CLS] and [SEP].
    """

    examples: tuple[QuestionExample, ...]
    example: Ints
    lengths: Ints
    context_column: Ints
    start_columns: Ints
    first_token: Numbers
    contexts: Tokens
    context: Ints
    questions: Tokens
    question: Ints
    special_ids: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.example)

    def rows(self, windows: npt.ArrayLike, width: int | None = None) -> dict[str, Ints]:
        """Return the padded rows of some windows.

        Args:
          windows: their numbers, [B].
          width: columns, T; None takes the longest row's.

        Returns:
          `input_ids`, `token_type_ids` and `attention_mask`, [B, T].

        Raises:
          ValueError: a row is longer than `width`.
        """
        picked = np.asarray(windows, np.int64)
        lengths = self.lengths[picked, None]
        longest = int(lengths.max(initial=0))
        width = longest if width is None else width
        if longest > width:
            raise ValueError(f"a row of {longest} tokens does not fit into {width} columns")
        pad, cls, sep = self.special_ids
        context_column = self.context_column[picked, None]
        columns = np.arange(width, dtype=np.int32)
        ids = np.full((len(picked), width), pad, np.int32)
        ids[:, :1] = cls
        ids[(columns == context_column - 1) | (columns == lengths - 1)] = sep
        row, column = np.nonzero((columns >= 1) & (columns < context_column - 1))
        question = self.question[self.example[picked]]
        ids[row, column] = self.questions.ids[self.questions.bounds[question][row] + column - 1]
        row, column = np.nonzero((columns >= context_column) & (columns < lengths - 1))
        ids[row, column] = self.contexts.ids[self.token(picked[row], column)]
        mask = columns < lengths
        types = mask & (columns >= context_column)
        return {
            "input_ids": ids,
            "token_type_ids": types.astype(np.int32),
            "attention_mask": mask.astype(np.int32),
        }

    def token(self, window: Numbers, column: Numbers) -> Numbers:
        """Return which of `contexts` is at a column of a window; the two broadcast."""
        return self.first_token[window] + column - self.context_column[window]

    def labels(self) -> tuple[Ints, Ints]:
        """Return the columns of the first and the last token of each window's answer, [W] each.

        The answer is the first reference, and the tokens those that hold any character of it. Both
        columns are 0, [CLS], where the window does not hold all of it, or there is none.

        Raises:
          InputError: an answer holds no token of its context.
        """
        first, last = (token[self.example] for token in self._answer_tokens())
        end = self.first_token + self.lengths - 1 - self.context_column
        inside = (first >= self.first_token) & (last < end)
        shift = self.context_column - self.first_token
        starts, ends = (np.where(inside, token + shift, 0) for token in (first, last))
        return starts.astype(np.int32), ends.astype(np.int32)

    def _answer_tokens(self) -> tuple[Numbers, Numbers]:
        """Return the first and the last token of each question's answer, -1 if none, [E] each."""
        answered = np.array([bool(e.answers) and not e.is_impossible for e in self.examples], bool)
        answers = [e.answers[0] if e.answers else Answer("", 0) for e in self.examples]
        begins = np.array([answer.start for answer in answers], np.int64)
        lengths = np.array([len(answer.text) for answer in answers], np.int64)
        # The contexts laid end to end, so that one search finds the characters of all.
        bounds = self.contexts.bounds
        origins = np.zeros(len(bounds), np.int64)
        origins[1 + self.context] = [len(example.context) + 1 for example in self.examples]
        origins = np.cumsum(origins)
        shift = np.repeat(origins[:-1], np.diff(bounds))
        begins += origins[self.context]
        first = np.searchsorted(self.contexts.ends + shift, begins, side="right")
        last = np.searchsorted(self.contexts.starts + shift, begins + lengths) - 1
        held = (first <= last) & (first >= bounds[self.context]) & (last < bounds[self.context + 1])
        for index in np.flatnonzero(answered & ~held)[:1]:
            raise InputError(
                f"question {self.examples[index].id!r}: the answer {answers[index].text!r} at "
                f"character {answers[index].start} holds no token of the context; correct it or "
                "leave the question out"
            )
        return np.where(answered, first, -1), np.where(answered, last, -1)


def make_windows(
    tokenizer: BertTokenizer,
    examples: Sequence[QuestionExample],
    *,
    max_length: int = 384,
    doc_stride: int = 128,
    overlap: int | None = None,
    max_question_length: int = 64,
) -> Windows:
    """Tokenize questions and their contexts, and cut the contexts into windows.

    Args:
      tokenizer: of the model that will read the windows.
      examples: the questions.
      max_length: tokens of a row at most.
      doc_stride: tokens from the start of a window to that of the next, as in google's code; less
        where a window holds less.
      overlap: tokens that neighbouring windows share, which is how transformers' pipeline counts;
        takes the place of `doc_stride`. Where a window does not hold more than that, they share
        half of it.
      max_question_length: tokens of a question that are kept.

    Raises:
      InputError: a question leaves no room for the context, or a setting makes no sense.
    """
    for name, value, least in (("doc_stride", doc_stride, 1), ("overlap", overlap or 0, 0)):
        if value < least:
            raise InputError(f"{name} is {value}; it must be {least} or more")
    vocab = tokenizer.backend.get_vocab()
    questions, question = _tokenize(tokenizer.backend, [example.question for example in examples])
    contexts, context = _tokenize(tokenizer.backend, [example.context for example in examples])
    kept = np.minimum(np.diff(questions.bounds)[question], max_question_length)
    room = max_length - kept - _SPECIAL_TOKENS
    for index in np.flatnonzero(room < 1)[:1]:
        raise InputError(
            f"question {examples[index].id!r}: rows of {max_length} tokens leave no room for its "
            f"context beside {kept[index]} of the question and {_SPECIAL_TOKENS} special ones; "
            "use longer rows or cut questions shorter"
        )
    if overlap is None:
        step = np.minimum(room, doc_stride)
    else:
        step = np.where(overlap < room, room - overlap, (room + 1) // 2)
    sizes = np.diff(contexts.bounds)[context]
    counts = 1 + np.maximum(0, -(-(sizes - room) // step))
    example = np.repeat(np.arange(len(examples)), counts)
    number = np.arange(len(example)) - np.repeat(np.cumsum(counts) - counts, counts)
    first = number * step[example]
    pieces = np.minimum(room[example], sizes[example] - first)
    context_column = kept[example] + _SPECIAL_TOKENS - 1
    starts = _max_context(example, first, first + pieces) - first[:, None]
    return Windows(
        examples=tuple(examples),
        example=example.astype(np.int32),
        lengths=(kept[example] + pieces + _SPECIAL_TOKENS).astype(np.int32),
        context_column=context_column.astype(np.int32),
        start_columns=(starts + context_column[:, None]).astype(np.int32),
        first_token=contexts.bounds[context[example]] + first,
        contexts=contexts,
        context=context,
        questions=questions,
        question=question,
        special_ids=(vocab["[PAD]"], vocab["[CLS]"], vocab["[SEP]"]),
    )


def _max_context(example: Numbers, first: Numbers, end: Numbers) -> Numbers:
    """Return the tokens, from and to, that have most context in each window, [W, 2].

    google's measure of a token's context is min(tokens to its left, tokens to its right) + 0.01 *
    tokens of the window, and the earlier window wins a tie. It grows by one a token up to the
    middle of a window and falls after it, so from one window to the next the lead changes hands
    once. Reckoned in hundredths, because 0.01 is no binary fraction.
    """
    spans = np.stack([first, end], axis=1)
    before = np.flatnonzero(example[1:] == example[:-1])
    after = before + 1
    shorter = (end - first)[before] - (end - first)[after]
    # Right of its middle the later window leads by what it reaches further; if that does not make
    # up for its shortness, it leads nowhere that the earlier one reaches.
    leads = 100 * (end[after] - end[before]) > shorter
    crossing = (100 * (end[before] - 1 + first[after]) + shorter) // 200 + 1
    change = np.where(leads, np.minimum(crossing, end[before]), end[before])
    spans[before, 1] = change
    spans[after, 0] = change
    return spans


def _tokenize(backend: Tokenizer, texts: list[str]) -> tuple[Tokens, Ints]:
    """Return the tokens of the distinct texts, and which of these each text is."""
    numbers: dict[str, int] = {}
    index = np.array([numbers.setdefault(text, len(numbers)) for text in texts], np.int32)
    distinct = list(numbers)
    ids, starts, ends = [np.empty(0, np.int32)], [np.empty(0, np.int32)], [np.empty(0, np.int32)]
    lengths = np.zeros(len(distinct) + 1, np.int64)
    for begin in range(0, len(distinct), _BATCH):
        batch = distinct[begin : begin + _BATCH]
        encodings = backend.encode_batch(batch, add_special_tokens=False)
        tokens = [encoding.ids for encoding in encodings]
        lengths[begin + 1 : begin + 1 + len(batch)] = list(map(len, tokens))
        ids.append(np.fromiter(itertools.chain.from_iterable(tokens), np.int32))
        for text, encoding in zip(batch, encodings, strict=True):
            offsets = np.array(encoding.offsets, np.int32).reshape(-1, 2)
            starts.append(offsets[:, 0])
            ends.append(offsets[:, 1] if text.isascii() else _past_marks(text, offsets))
    prefix = getattr(backend.model, "continuing_subword_prefix", "##")
    continuing = [i for piece, i in backend.get_vocab().items() if piece.startswith(prefix)]
    all_ids = np.concatenate(ids)
    return Tokens(
        all_ids,
        np.concatenate(starts),
        np.concatenate(ends),
        ~np.isin(all_ids, continuing),
        np.cumsum(lengths),
    ), index


def _past_marks(text: str, offsets: Ints) -> Ints:
    """Return where tokens end, moved past combining marks that the tokenizer dropped, [N].

    An uncased model reads no accents; an answer has to keep those that follow its last letter.
    """
    ends = offsets[:, 1].copy()
    nexts = [*offsets[1:, 0].tolist(), len(text)]
    for index, (end, following) in enumerate(zip(ends.tolist(), nexts, strict=False)):
        while end < following and unicodedata.category(text[end]).startswith("M"):
            end += 1
            ends[index] = end
    return ends

"""From a chunk of text to the tokens of its records: the unit of work of every build engine.

Nothing here depends on what other chunks hold, so chunks can be encoded anywhere in any order; what
their records are numbered is worked out afterwards, by `Numbering`, from counts alone.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from bertjax.data.text import TextChunk, chunk_documents
from bertjax.tokenizer_backend import bert_tokenizer

RECORD_TOKENS = 2048
# Enough sentences to keep the tokenizer busy, few enough that their encodings stay small.
_BATCH = 512

Tokens = npt.NDArray[np.unsignedinteger[Any]]


@dataclasses.dataclass(frozen=True)
class EncoderSettings:
    """What the tokens of a chunk depend on, besides its text."""

    vocab: str
    """Path of the vocab.txt."""
    vocab_size: int
    lowercase: bool
    skip_bad: bool

    @property
    def token_type(self) -> np.dtype[Any]:
        """The smallest type that holds every id."""
        return np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)


@dataclasses.dataclass(frozen=True)
class ChunkCounts:
    """What the rest of the corpus has to know about a chunk."""

    continues: bool
    """Whether the first document part goes on with the document of the chunk before."""
    records: npt.NDArray[np.int32]
    """Records of each document part, [P]; may be 0."""
    cut_sentences: int
    """Sentences that were longer than a record and were cut."""
    bad: list[str]
    """The bad lines that were skipped."""


@dataclasses.dataclass(frozen=True)
class EncodedChunk:
    """The records of a chunk, end to end."""

    counts: ChunkCounts
    tokens: Tokens
    """[T]"""
    sentence_lengths: npt.NDArray[np.uint16]
    """Tokens of each sentence, [S]."""
    record_sentences: npt.NDArray[np.int64]
    """Sentences of each record, [R]."""

    def records(self) -> Iterator[tuple[Tokens, npt.NDArray[np.uint16]]]:
        """Yield the tokens and the sentence lengths of each record."""
        ends = np.cumsum(self.record_sentences)
        token_ends = np.concatenate([[0], np.cumsum(self.sentence_lengths, dtype=np.int64)])
        for start, end in zip(ends - self.record_sentences, ends, strict=True):
            tokens = self.tokens[token_ends[start] : token_ends[end]]
            yield tokens, self.sentence_lengths[start:end]


def encode_chunk(settings: EncoderSettings, chunk: TextChunk) -> EncodedChunk:
    """Tokenize a chunk and cut it into records.

    A record is at most 2,048 tokens of one document, cut at sentence ends and at the end of the
    chunk. Sentences without any token are left out.

    Raises:
        InputError: a line of the chunk is bad and `settings.skip_bad` is off.
    """
    documents, bad = chunk_documents(chunk, settings.skip_bad)
    sentences = [sentence for document in documents for sentence in document]
    tokens, lengths = _tokenize(settings, sentences)
    cut_sentences = 0
    records: list[int] = []
    record_sentences: list[int] = []
    kept: list[int] = []
    position = 0
    for document in documents:
        first = len(record_sentences)
        room = 0
        for length in lengths[position : position + len(document)]:
            cut_sentences += length > RECORD_TOKENS
            for piece in _pieces(length):
                if piece > room:
                    record_sentences.append(0)
                    room = RECORD_TOKENS
                record_sentences[-1] += 1
                room -= piece
                kept.append(piece)
        records.append(len(record_sentences) - first)
        position += len(document)
    return EncodedChunk(
        ChunkCounts(chunk.continues, np.array(records, np.int32), cut_sentences, bad),
        tokens,
        np.array(kept, np.uint16),
        np.array(record_sentences, np.int64),
    )


@dataclasses.dataclass
class Numbering:
    """Numbers the documents and records of a split, chunk after chunk in the order of the text."""

    records: int = 0
    """Records numbered so far."""
    documents: int = 0
    """Documents numbered so far."""
    is_open: bool = False
    """Whether the last document numbered may go on in the next chunk."""

    def place(self, counts: ChunkCounts) -> tuple[int, npt.NDArray[np.int64]]:
        """Return the number of the chunk's first record, and the document of each record, [R]."""
        first = self.records
        documents = []
        for index, records in enumerate(counts.records):
            if index or not counts.continues:
                self.is_open = False
            # A document is numbered when it turns out to hold a token.
            if records and not self.is_open:
                self.documents += 1
                self.is_open = True
            documents.append(self.documents - 1)
        self.records += int(counts.records.sum())
        return first, np.repeat(np.array(documents, np.int64), counts.records)


@functools.cache
def _tokenizer(vocab: str, lowercase: bool) -> Tokenizer:
    """One tokenizer a process; `[MASK]` and the like in raw text are text, not special tokens."""
    tokenizer = bert_tokenizer(vocab, lowercase)
    tokenizer.encode_special_tokens = True
    return tokenizer


def _tokenize(settings: EncoderSettings, sentences: list[str]) -> tuple[Tokens, list[int]]:
    """Return the ids of all sentences, end to end, and the length of each."""
    tokenizer = _tokenizer(settings.vocab, settings.lowercase)
    tokens = [np.empty(0, settings.token_type)]
    lengths: list[int] = []
    for start in range(0, len(sentences), _BATCH):
        batch = sentences[start : start + _BATCH]
        ids = [e.ids for e in tokenizer.encode_batch_fast(batch, add_special_tokens=False)]
        tokens.append(np.fromiter(itertools.chain.from_iterable(ids), settings.token_type))
        lengths += map(len, ids)
    return np.concatenate(tokens), lengths


def _pieces(length: int) -> list[int]:
    """Cut a sentence's length at the length of a record; none for an empty sentence."""
    whole, rest = divmod(length, RECORD_TOKENS)
    return [RECORD_TOKENS] * whole + ([rest] if rest else [])

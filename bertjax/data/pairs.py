"""Segment pairs as in google-research/bert (create_pretraining_data.py), planned and put together.

An epoch is planned from sentence lengths alone: where each chunk of sentences begins and how it is
split. Tokens are only read for the pairs of the batch at hand.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bertjax.data.counter_random import Bits, below, binomial_half, fraction, random_bits
from bertjax.data.documents import Documents, Tokens
from bertjax.data.vocab import SpecialIds
from bertjax.run_config import SentenceTask

Integers = npt.NDArray[np.int64]

# Sentences after which a document draws its target length anew. The original draws once a document;
# this is the same for documents up to this length, and keeps a short target from cutting up a whole
# book.
TARGET_STRETCH = 256
# Sentences planned at a time: bounds the memory and keeps the arrays in the cache.
_GROUP_SENTENCES = 1 << 18

_SHORT, _SHORT_LENGTH, _SPLIT = range(3)
_OTHER_DOCUMENT, _OTHER_START, _SWAP, _CUT_A, _CUT_B = range(5)


@dataclasses.dataclass(frozen=True)
class PairRules:
    """How chunks are cut and paired; the fields are those of `DataConfig`."""

    sequence_length: int
    sentence_task: SentenceTask
    short_seq_prob: float

    @property
    def max_tokens(self) -> int:
        """Tokens of a row beside [CLS] and one or two [SEP]."""
        return self.sequence_length - (2 if self.sentence_task == "none" else 3)


class Chunks(NamedTuple):
    """Runs of sentences that become one row each: the plan of an epoch, or a selection of it."""

    start: npt.NDArray[np.int64]  # first sentence
    sentences: npt.NDArray[np.int16]  # how many
    split: npt.NDArray[np.int16]  # sentences of segment A; negative where B is a random one
    target: npt.NDArray[np.int16]  # tokens that the chunk aims at

    def take(self, rows: Integers) -> "Chunks":
        """Return a selection, in the order of `rows`."""
        return Chunks(self.start[rows], self.sentences[rows], self.split[rows], self.target[rows])

    @classmethod
    def concatenate(cls, parts: Sequence["Chunks"]) -> "Chunks":
        """Join plans end to end."""
        return cls(
            np.concatenate([part.start for part in parts]),
            np.concatenate([part.sentences for part in parts]),
            np.concatenate([part.split for part in parts]),
            np.concatenate([part.target for part in parts]),
        )


class Segments(NamedTuple):
    """Sentence ranges of the two segments of each row; B is empty where there is one segment."""

    a_start: Integers
    a_stop: Integers
    b_start: Integers
    b_stop: Integers
    label: npt.NDArray[np.int32]  # 0: B follows A; 1: B is random (nsp) or comes before A (sop)


class Rows(NamedTuple):
    """Token rows [B, T] before masking, with the token count of each, [B]."""

    input_ids: npt.NDArray[np.int32]
    token_type_ids: npt.NDArray[np.int32]
    lengths: Integers


def plan_epoch(
    sentence_lengths: npt.NDArray[np.uint16],
    document_starts: Integers,
    rules: PairRules,
    key: npt.ArrayLike,
) -> Chunks:
    """Cut all documents into chunks, as the walk of create_instances_from_document does.

    Sentences are added until the chunk reaches its target length or the document ends. With "nsp",
    B is random for half of the chunks and for all of one sentence; the sentences that A leaves over
    are then put back. With "sop" a chunk has at least two sentences, so that a last sentence which
    would remain alone joins the chunk before it; documents of one sentence yield none.

    Returns:
      The chunks in the order of the sentences: a pure function of the arguments.
    """
    groups = []
    first = 0
    while first < len(document_starts) - 1:
        limit = document_starts[first] + _GROUP_SENTENCES
        last = max(int(np.searchsorted(document_starts, limit, "right")) - 1, first + 1)
        begin, end = document_starts[first], document_starts[last]
        starts = document_starts[first : last + 1]
        groups.append(_plan_group(sentence_lengths[begin:end], starts, rules, key))
        first = last
    return Chunks.concatenate(groups)


def _plan_group(
    lengths: npt.NDArray[np.uint16],
    document_starts: Integers,
    rules: PairRules,
    key: npt.ArrayLike,
) -> Chunks:
    """Plan a few documents: first what a chunk would be at every sentence, then which are met."""
    origin = int(document_starts[0])
    sizes = np.diff(document_starts)
    document_end = np.repeat(document_starts[1:] - origin, sizes)
    place = np.arange(len(lengths)) - np.repeat(document_starts[:-1] - origin, sizes)
    sentence = np.arange(len(lengths))

    target = _targets(sentence + origin, place, rules, key)
    tokens_before = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    stop = np.searchsorted(tokens_before, tokens_before[:-1] + target, "left")
    stop = np.minimum(stop, document_end)
    if rules.sentence_task == "sop":
        stop = np.minimum(np.maximum(stop, sentence + 2), document_end)
        stop = np.where(document_end - stop == 1, document_end, stop)
    count = stop - sentence

    split, following = count, stop
    if rules.sentence_task != "none":
        bits = random_bits(random_bits(key, _SPLIT), sentence + origin)
        split = 1 + below(bits, count - 1)
        if rules.sentence_task == "nsp":
            # The lowest bit: `split` is drawn from the upper ones.
            random_next = (count == 1) | (bits & np.uint64(1)).astype(bool)
            following = np.where(random_next, sentence + split, stop)
            split = np.where(random_next, -split, split)

    met = np.array(_walk(following.tolist()), np.int64)
    if rules.sentence_task == "sop":
        met = met[count[met] > 1]
    return Chunks(
        met + origin,
        count[met].astype(np.int16),
        split[met].astype(np.int16),
        target[met].astype(np.int16),
    )


def _targets(sentence: Integers, place: Integers, rules: PairRules, key: npt.ArrayLike) -> Integers:
    """Return the target length that holds at each sentence, given its place in the document."""
    heads = np.flatnonzero(place % TARGET_STRETCH == 0)
    short = fraction(random_bits(random_bits(key, _SHORT), sentence[heads])) < rules.short_seq_prob
    short_length = random_bits(random_bits(key, _SHORT_LENGTH), sentence[heads])
    target = np.where(short, 2 + below(short_length, rules.max_tokens - 1), rules.max_tokens)
    return np.repeat(target, np.diff(heads, append=len(sentence)))


def _walk(following: list[int]) -> list[int]:
    # Documents follow each other without a gap, so one walk meets the chunks of all.
    met = []
    sentence = 0
    while sentence < len(following):
        met.append(sentence)
        sentence = following[sentence]
    return met


def choose_segments(chunks: Chunks, documents: Documents, rules: PairRules, keys: Bits) -> Segments:
    """Return the segments of `chunks`; random ones are drawn with one key a chunk."""
    split = np.abs(chunks.split.astype(np.int64))
    middle, stop = chunks.start + split, chunks.start + chunks.sentences
    label = (chunks.split < 0).astype(np.int32)
    segments = Segments(chunks.start, middle, middle, stop, label)
    if rules.sentence_task == "nsp":
        rows = np.flatnonzero(label)
        if len(rows):
            target = chunks.target[rows].astype(np.int64)
            begin, end = _random_segments(
                chunks.start[rows], middle[rows], target, documents, keys[rows]
            )
            segments = segments._replace(b_start=middle.copy(), b_stop=stop)
            segments.b_start[rows] = begin
            segments.b_stop[rows] = end
    elif rules.sentence_task == "sop":
        swap = (random_bits(keys, _SWAP) & np.uint64(1)).astype(bool)
        segments = Segments(
            np.where(swap, middle, chunks.start),
            np.where(swap, stop, middle),
            np.where(swap, chunks.start, middle),
            np.where(swap, middle, stop),
            swap.astype(np.int32),
        )
    return segments


def _random_segments(
    a_start: Integers, a_stop: Integers, target: Integers, documents: Documents, keys: Bits
) -> tuple[Integers, Integers]:
    """Return sentence ranges from a random place of another document that fill up to `target`.

    The original tries ten times to draw another document; drawing among the others comes to the
    same up to 10^-3 with two documents and less with more.
    """
    starts = documents.document_starts
    own = np.searchsorted(starts, a_start, "right") - 1
    other = below(random_bits(keys, _OTHER_DOCUMENT), documents.document_count - 1)
    other += other >= own
    document_end = starts[other + 1]
    begin = starts[other] + below(random_bits(keys, _OTHER_START), document_end - starts[other])
    a_tokens = _running_lengths(documents, a_start, a_stop)[:, -1]
    # One sentence at least, and no more than there are tokens to fill, as none is empty.
    missing = np.maximum(target - a_tokens, 1)
    most = np.minimum(begin + missing, document_end)
    running = _running_lengths(documents, begin, most)
    end = begin + 1 + (running[:, :-1] < missing[:, None]).sum(axis=1)
    return begin, np.minimum(end, most)


def _running_lengths(documents: Documents, start: Integers, stop: Integers) -> Integers:
    """Return the tokens of sentences [start, start + 1 + column), constant from `stop` on."""
    sentence = start[:, None] + np.arange((stop - start).max())
    inside = sentence < stop[:, None]
    lengths = documents.sentence_lengths[np.where(inside, sentence, 0)]
    return np.cumsum(np.where(inside, lengths, 0), axis=1, dtype=np.int64)


def row_lengths(segments: Segments, documents: Documents, rules: PairRules) -> Integers:
    """Return the tokens of the rows that `assemble` makes of `segments`, [B], reading none."""
    found_a = _running_lengths(documents, segments.a_start, segments.a_stop)[:, -1]
    if rules.sentence_task == "none":
        return 2 + kept_lengths(found_a, np.zeros_like(found_a), rules.max_tokens)[0]
    found_b = _running_lengths(documents, segments.b_start, segments.b_stop)[:, -1]
    return 3 + np.add(*kept_lengths(found_a, found_b, rules.max_tokens))


def assemble(
    segments: Segments, documents: Documents, rules: PairRules, special: SpecialIds, keys: Bits
) -> Rows:
    """Read the tokens of `segments` and lay them out as [CLS] A [SEP] B [SEP], or [CLS] A [SEP].

    A pair that is too long loses tokens of its longer segment, each from the front or the back at
    random (truncate_seq_pair of the original).
    """
    batch, paired = len(keys), rules.sentence_task != "none"
    starts, stops = segments.a_start, segments.a_stop
    if paired:
        starts = np.concatenate([starts, segments.b_start])
        stops = np.concatenate([stops, segments.b_stop])
    tokens = documents.read(starts, stops)
    found = np.array([len(part) for part in tokens], np.int64)
    found_b = found[batch:] if paired else np.zeros(batch, np.int64)
    keep_a, keep_b = kept_lengths(found[:batch], found_b, rules.max_tokens)
    cut_a = binomial_half(random_bits(keys, _CUT_A), found[:batch] - keep_a)
    cut_b = binomial_half(random_bits(keys, _CUT_B), found_b - keep_b)

    input_ids = np.full((batch, rules.sequence_length), special.pad, np.int32)
    input_ids[:, 0] = special.cls
    row = np.arange(batch)
    input_ids[row, 1 + keep_a] = special.sep
    lengths = 2 + keep_a
    _copy(tokens[:batch], cut_a, keep_a, input_ids, np.ones_like(keep_a))
    if paired:
        lengths = 3 + keep_a + keep_b
        input_ids[row, lengths - 1] = special.sep
        _copy(tokens[batch:], cut_b, keep_b, input_ids, 2 + keep_a)

    column = np.arange(rules.sequence_length)
    in_b = (column >= (2 + keep_a)[:, None]) & (column < lengths[:, None])
    return Rows(input_ids, in_b.astype(np.int32), lengths)


def _copy(
    tokens: list[Tokens],
    cut: Integers,
    keep: Integers,
    input_ids: npt.NDArray[np.int32],
    columns: Integers,
) -> None:
    for part, begin, size, row, column in zip(
        tokens, cut.tolist(), keep.tolist(), input_ids, columns.tolist(), strict=True
    ):
        row[column : column + size] = part[begin : begin + size]


def kept_lengths(a: Integers, b: Integers, max_tokens: int) -> tuple[Integers, Integers]:
    """Return what truncate_seq_pair leaves of segments of `a` and `b` tokens.

    The longer one loses tokens until both are equal, then they lose them in turn, B first.
    """
    excess = np.maximum(a + b - max_tokens, 0)
    to_equal = np.minimum(excess, np.abs(a - b))
    rest = excess - to_equal
    keep_a = a - np.where(a > b, to_equal, 0) - rest // 2
    keep_b = b - np.where(a > b, 0, to_equal) - (rest + 1) // 2
    return keep_a, keep_b

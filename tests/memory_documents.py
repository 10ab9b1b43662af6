"""Documents in memory whose tokens tell where they come from, for the tests of the examples."""

import itertools
from collections.abc import Sequence

import numpy as np

from bertjax.data.documents import Documents
from bertjax.data.vocab import SpecialIds

SPECIAL = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4)
# Token of sentence s at position p: FIRST + s * STRIDE + p.
FIRST, STRIDE = 10, 4096


class ListRecords:
    """Records in a list; notes which ones were read."""

    def __init__(self, records: Sequence[np.ndarray]) -> None:
        self.records = records
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int) -> np.ndarray:
        self.read.append(key)
        return self.records[key]


def make_documents(
    documents: Sequence[Sequence[int]], record_tokens: int = 300, cached_records: int = 8192
) -> Documents:
    """Build documents from the sentence lengths of each."""
    lengths = np.array([length for document in documents for length in document], np.uint16)
    document_starts = np.cumsum([0, *map(len, documents)])
    record_starts, records, size = [0], [], 0
    starts = set(document_starts.tolist())
    for sentence, length in enumerate(lengths.tolist()):
        if sentence and (sentence in starts or size + length > record_tokens):
            record_starts.append(sentence)
            size = 0
        size += length
    record_starts.append(len(lengths))
    for begin, end in itertools.pairwise(record_starts):
        parts = [
            FIRST + sentence * STRIDE + np.arange(lengths[sentence])
            for sentence in range(begin, end)
        ]
        records.append(np.concatenate(parts).astype(np.uint32))
    return Documents(
        ListRecords(records),
        lengths,
        document_starts.astype(np.int64),
        np.array(record_starts, np.int64),
        name="memory",
        cached_records=cached_records,
    )


def vocab_size(documents: Documents) -> int:
    return FIRST + len(documents.sentence_lengths) * STRIDE


def realistic_lengths(
    seed: int, documents: int, longest: int = 120, mean_sentences: float = 12
) -> list[list[int]]:
    """Draw documents of geometric numbers of sentences (some of one) with skewed lengths."""
    rng = np.random.default_rng(seed)
    counts = np.minimum(rng.geometric(1 / mean_sentences, documents), longest)
    return [
        np.clip(rng.gamma(2, 11, count).astype(int), 1, 250).tolist() for count in counts.tolist()
    ]


def unmasked(batch: dict[str, np.ndarray]) -> np.ndarray:
    """Return input_ids with the masked tokens put back."""
    ids = batch["input_ids"].copy()
    for row, positions, labels, weights in zip(
        ids, batch["mlm_positions"], batch["mlm_labels"], batch["mlm_weights"], strict=True
    ):
        for position, label, weight in zip(positions, labels, weights, strict=True):
            if weight:
                row[position] = label
    return ids


def split_row(
    ids: np.ndarray, types: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of segments A and B of one unmasked row, checking its layout."""
    length = int(mask.sum())
    assert mask[:length].all()
    assert (ids[length:] == SPECIAL.pad).all()
    assert ids[0] == SPECIAL.cls
    assert ids[length - 1] == SPECIAL.sep
    separators = np.flatnonzero(ids == SPECIAL.sep)
    a = ids[1 : separators[0]]
    b = ids[separators[0] + 1 : length - 1]
    expected = np.zeros(len(ids), int)
    if len(separators) == 2:
        expected[separators[0] + 1 : length] = 1
    else:
        assert len(separators) == 1
    assert (types == expected).all()
    for segment in (a, b):
        assert (segment >= FIRST).all()
    return a, b


def sentences_of(tokens: np.ndarray) -> np.ndarray:
    """Return the sentence of every token, checking that they are a gapless run of the corpus."""
    sentence, place = np.divmod(tokens - FIRST, STRIDE)
    steps = np.diff(sentence)
    assert ((steps == 0) | (steps == 1)).all()
    assert (np.diff(place)[steps == 0] == 1).all()
    assert (place[1:][steps == 1] == 0).all()
    return sentence

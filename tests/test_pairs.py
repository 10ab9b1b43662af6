import collections
import random

import numpy as np
import pytest
from scipy import stats

from bertjax.data import pairs
from bertjax.data.counter_random import random_bits
from bertjax.data.pairs import PairRules, assemble, choose_segments, kept_lengths, plan_epoch
from tests.memory_documents import (
    FIRST,
    SPECIAL,
    STRIDE,
    make_documents,
    realistic_lengths,
    sentences_of,
    split_row,
)

# A correct program fails a statistical check this often, would its seed be another.
ALPHA = 1e-4
T = 64
Row = collections.namedtuple("Row", "document a b label len_a len_b own_tokens")


def original_rows(corpus, rules, rng):
    """The procedure of create_pretraining_data.py, on lists of sentence lengths.

    Returns, for every document, its rows: the sentences of A and B as (document, sentence), the
    label, the lengths after truncation, and how many of the tokens are the document's own.
    """
    result = []
    room = rules.sequence_length - 3
    for number, document in enumerate(corpus):
        target = room
        if rng.random() < rules.short_seq_prob:
            target = rng.randint(2, room)
        rows, chunk, length, i = [], [], 0, 0
        while i < len(document):
            chunk.append(i)
            length += document[i]
            if i == len(document) - 1 or length >= target:
                a_end = rng.randint(1, len(chunk) - 1) if len(chunk) >= 2 else 1
                a = chunk[:a_end]
                len_a = sum(document[s] for s in a)
                if len(chunk) == 1 or rng.random() < 0.5:
                    other = number
                    for _ in range(10):
                        other = rng.randint(0, len(corpus) - 1)
                        if other != number:
                            break
                    b, len_b = [], 0
                    for s in range(rng.randint(0, len(corpus[other]) - 1), len(corpus[other])):
                        b.append((other, s))
                        len_b += corpus[other][s]
                        if len_b >= target - len_a:
                            break
                    label = 1
                    i -= len(chunk) - a_end
                else:
                    b = [(number, s) for s in chunk[a_end:]]
                    len_b = sum(document[s] for _, s in b)
                    label = 0
                while len_a + len_b > room:
                    if len_a > len_b:
                        len_a -= 1
                    else:
                        len_b -= 1
                own = len_a + (0 if label else len_b)
                rows.append(Row(number, [(number, s) for s in a], b, label, len_a, len_b, own))
                chunk, length = [], 0
            i += 1
        result.append(rows)
    return result


def our_rows(documents, rules, epoch):
    """The same from plan_epoch, choose_segments and assemble."""
    starts = documents.document_starts
    chunks = plan_epoch(documents.sentence_lengths, starts, rules, random_bits(1, epoch))
    keys = random_bits(random_bits(2, epoch), np.arange(len(chunks.start)))
    segments = choose_segments(chunks, documents, rules, keys)
    rows = assemble(segments, documents, rules, SPECIAL, keys)
    mask = np.arange(rules.sequence_length) < rows.lengths[:, None]
    result = [[] for _ in range(documents.document_count)]
    for row, (ids, types) in enumerate(zip(rows.input_ids, rows.token_type_ids, strict=True)):
        a, b = split_row(ids, types, mask[row])
        places = []
        for begin, end, tokens in (
            (segments.a_start[row], segments.a_stop[row], a),
            (segments.b_start[row], segments.b_stop[row], b),
        ):
            if len(tokens):
                sentences = sentences_of(tokens)
                assert begin <= sentences[0]
                assert sentences[-1] < end
            owner = int(np.searchsorted(starts, min(begin, end - 1), "right")) - 1
            assert end <= starts[owner + 1]
            places.append([(owner, int(s - starts[owner])) for s in range(begin, end)])
        label = int(segments.label[row])
        own = len(a) + (0 if label else len(b))
        document = places[0][0][0]
        result[document].append(Row(document, *places, label, len(a), len(b), own))
    return result


def same_distribution(ours, theirs, bins=12):
    """Two-sample chi-square test over bins of about equal content; returns its p-value."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    edges = np.unique(
        np.quantile(np.concatenate([ours, theirs]), np.linspace(0, 1, bins + 1)[1:-1])
    )
    table = np.stack([np.bincount(np.searchsorted(edges, x), minlength=len(edges) + 1)
                      for x in (ours, theirs)])  # fmt: skip
    table = table[:, table.sum(axis=0) > 10]
    return stats.chi2_contingency(table).pvalue


@pytest.fixture(scope="module")
def corpus():
    """Documents of 1 to 120 sentences, a tenth of one sentence, and one of 250."""
    lengths = realistic_lengths(3, 60, mean_sentences=10)
    assert sum(len(document) == 1 for document in lengths) >= 4
    return [*lengths, realistic_lengths(4, 1, 250, 1e9)[0]]


@pytest.mark.parametrize("short_seq_prob", [0.0, 0.1, 1.0])
def test_rows_are_distributed_as_in_the_original(corpus, short_seq_prob):
    rules = PairRules(T, "nsp", short_seq_prob)
    documents = make_documents(corpus)
    rng = random.Random(0)
    picks = {"ours": [], "theirs": []}
    counts = {"ours": [], "theirs": []}
    for epoch in range(40):
        for who, rows in (
            ("ours", our_rows(documents, rules, epoch)),
            ("theirs", original_rows(corpus, rules, rng)),
        ):
            counts[who].append([len(of_document) for of_document in rows])
            # One row of each document: rows of one document share its target length.
            picks[who].extend(rng.choice(of_document) for of_document in rows)
    features = {
        "length": lambda row: row.len_a + row.len_b,
        "A": lambda row: row.len_a,
        "B": lambda row: row.len_b,
        "label": lambda row: row.label,
        "label of chunks that had a choice": lambda row: row.label if len(row.a) > 1 else -1,
        "balance": lambda row: row.len_a - row.len_b,
        "sentences of A": lambda row: len(row.a),
        "sentences of B": lambda row: len(row.b),
        "B of next": lambda row: -1 if row.label else row.len_b,
        "document of random B": lambda row: row.b[0][0] if row.label else -1,
        "place of random B": lambda row: row.b[0][1] if row.label else -1,
        "own tokens": lambda row: row.own_tokens,
    }
    for name, feature in features.items():
        p = same_distribution(*([feature(row) for row in picks[who]] for who in ("ours", "theirs")))
        assert p > ALPHA / len(features), name
    ours, theirs = (np.array(counts[who], float) for who in ("ours", "theirs"))
    error = np.sqrt(ours.var(axis=0) / len(ours) + theirs.var(axis=0) / len(theirs))
    z = (ours.mean(axis=0) - theirs.mean(axis=0)) / np.maximum(error, 1e-9)
    assert np.abs(z[error > 0]).max() < 4.9  # 61 documents
    assert (ours.mean(axis=0) == theirs.mean(axis=0))[error == 0].all()


def test_own_tokens_covered_as_in_the_original(corpus):
    rules = PairRules(T, "nsp", 0.1)
    documents = make_documents(corpus)
    rng = random.Random(1)
    share = {"ours": [], "theirs": []}
    total = int(documents.sentence_lengths.sum(dtype=np.int64))
    for epoch in range(30):
        for who, rows in (
            ("ours", our_rows(documents, rules, epoch)),
            ("theirs", original_rows(corpus, rules, rng)),
        ):
            share[who].append(sum(row.own_tokens for of in rows for row in of) / total)
    assert 0.5 < np.mean(share["ours"]) < 1
    assert stats.ttest_ind(share["ours"], share["theirs"], equal_var=False).pvalue > ALPHA


@pytest.mark.parametrize("task", ["nsp", "sop", "none"])
def test_every_sentence_is_used_once_an_epoch(corpus, task):
    documents = make_documents(corpus)
    rules = PairRules(T, task, 0.1)
    for epoch in range(3):
        used = collections.Counter()
        for of_document in our_rows(documents, rules, epoch):
            for row in of_document:
                used.update(row.a)
                if task != "nsp" or not row.label:
                    used.update(row.b)
        expected = {
            (d, s)
            for d, document in enumerate(corpus)
            for s in range(len(document))
            if task != "sop" or len(document) > 1
        }
        assert set(used) == expected
        assert set(used.values()) == {1}


def test_negatives_come_from_other_documents(corpus):
    documents = make_documents(corpus)
    rows = [r for of in our_rows(documents, PairRules(T, "nsp", 0.1), 0) for r in of if r.label]
    assert len(rows) > 100
    assert all(row.b[0][0] != row.document for row in rows)


def test_two_documents_of_one_sentence():
    documents = make_documents([[5], [9]])
    rows = our_rows(documents, PairRules(T, "nsp", 0.1), 0)
    assert [(r.a, r.b, r.label, r.len_a, r.len_b) for of in rows for r in of] == [
        ([(0, 0)], [(1, 0)], 1, 5, 9),
        ([(1, 0)], [(0, 0)], 1, 9, 5),
    ]


def test_sentences_longer_than_a_row():
    documents = make_documents([[500, 300, 1], [2048], [3, 3]], record_tokens=2048)
    for task, room in (("nsp", T - 3), ("none", T - 2)):
        for epoch in range(20):
            rows = [r for of in our_rows(documents, PairRules(T, task, 0.0), epoch) for r in of]
            assert any(r.len_a + r.len_b == room for r in rows)
            assert all(r.len_a >= 1 and r.len_a + r.len_b <= room for r in rows)
            if task == "nsp":
                assert all(r.len_b >= 1 for r in rows)


def test_order_pairs(corpus):
    documents = make_documents(corpus)
    rules = PairRules(T, "sop", 0.1)
    swapped = []
    for epoch in range(4):
        for of_document in our_rows(documents, rules, epoch):
            for row in of_document:
                first, second = (row.b, row.a) if row.label else (row.a, row.b)
                assert first[-1][0] == second[0][0]
                assert first[-1][1] + 1 == second[0][1]
                swapped.append(row.label)
    assert stats.binomtest(sum(swapped), len(swapped)).pvalue > ALPHA


def test_single_segments(corpus):
    documents = make_documents(corpus)
    rows = [r for of in our_rows(documents, PairRules(T, "none", 0.0), 0) for r in of]
    full = T - 2
    assert all(row.label == 0 and not row.b for row in rows)
    for row in rows:
        size = sum(corpus[d][s] for d, s in row.a)
        at_end = row.a[-1][1] == len(corpus[row.document]) - 1
        assert row.len_a == min(size, full)
        assert size >= full or at_end
        assert size - corpus[row.document][row.a[-1][1]] < full


def test_kept_lengths_against_popping():
    room = 20
    a, b = (x.ravel() for x in np.meshgrid(np.arange(1, 70), np.arange(0, 70)))
    keep_a, keep_b = kept_lengths(a, b, room)
    for row in range(len(a)):
        x, y = int(a[row]), int(b[row])
        while x + y > room:
            if x > y:
                x -= 1
            else:
                y -= 1
        assert (keep_a[row], keep_b[row]) == (x, y)


@pytest.mark.parametrize("excess", [3, 70])
def test_tokens_are_cut_from_both_ends(excess):
    """The number of tokens that the longer segment loses in front is binomial(excess, 1/2)."""
    rules = PairRules(T, "nsp", 0.0)
    short = 15
    long = rules.max_tokens - short + excess
    documents = make_documents([[long, short], [short, long]], 2048)
    n = 4000
    keys = random_bits(9, np.arange(n))
    for document in (0, 1):
        first = np.full(n, 2 * document)
        segments = pairs.Segments(first, first + 1, first + 1, first + 2, np.zeros(n, np.int32))
        rows = assemble(segments, documents, rules, SPECIAL, keys)
        column = 1 if document == 0 else 2 + short
        cut = (rows.input_ids[:, column] - FIRST) % STRIDE
        expected = stats.binom(excess, 0.5)
        assert abs(cut.mean() - expected.mean()) < 4 * expected.std() / np.sqrt(n)
        assert abs(cut.var() / expected.var() - 1) < 4 * np.sqrt(2 / n)
        assert cut.max() <= excess


def test_plan_does_not_depend_on_the_grouping(corpus, monkeypatch):
    documents = make_documents(corpus)
    for task in ("nsp", "sop", "none"):
        arguments = (
            documents.sentence_lengths, documents.document_starts, PairRules(T, task, 0.3), 5
        )  # fmt: skip
        whole = plan_epoch(*arguments)
        monkeypatch.setattr(pairs, "_GROUP_SENTENCES", 40)
        parts = plan_epoch(*arguments)
        monkeypatch.undo()
        assert len(whole.start) > 100
        for a, b in zip(whole, parts, strict=True):
            assert a.dtype == b.dtype
            assert (a == b).all()


def test_a_long_document_draws_its_target_more_than_once():
    """A tenth of a book's stretches aims at a shorter length, rather than all or nothing."""
    stretches = 2000
    documents = make_documents([[4] * (pairs.TARGET_STRETCH * stretches), [4]], 2048)
    plan = plan_epoch(
        documents.sentence_lengths, documents.document_starts, PairRules(T, "nsp", 0.1), 3
    )
    stretch = plan.start[:-1] // pairs.TARGET_STRETCH
    targets = [set(plan.target[:-1][stretch == s].tolist()) for s in range(stretches)]
    assert all(len(of_stretch) == 1 for of_stretch in targets)
    targets = np.array([of_stretch.pop() for of_stretch in targets])
    short = targets[targets < T - 3]
    assert stats.binomtest(len(short), stretches, 0.1 * 59 / 60).pvalue > ALPHA
    assert short.min() >= 2
    edges = np.linspace(2, T - 3, 7)
    even = np.histogram(np.arange(2, T - 3), edges)[0] / (T - 5)
    assert stats.chisquare(np.histogram(short, edges)[0], even * len(short)).pvalue > ALPHA


# 20 tokens of A leave 30, 35, 36 and none to fill with sentences of seven; one is taken at least.
@pytest.mark.parametrize(("target", "sentences"), [(50, 5), (55, 5), (56, 6), (10, 1)])
def test_random_segments_fill_up_to_the_target(target, sentences):
    documents = make_documents([[10] * 3, [7] * 40])
    chunks = pairs.Chunks(
        np.zeros(300, np.int64),
        np.full(300, 3, np.int16),
        np.full(300, -2, np.int16),
        np.full(300, target, np.int16),
    )
    keys = random_bits(0, np.arange(300))
    segments = choose_segments(chunks, documents, PairRules(T, "nsp", 0.0), keys)
    assert (segments.a_stop == 2).all()
    assert (segments.b_stop == np.minimum(segments.b_start + sentences, 43)).all()
    assert set(segments.b_start.tolist()) == set(range(3, 43))

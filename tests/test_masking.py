import numpy as np
import pytest
from scipy import stats

from bertjax.data.counter_random import binomial_half, permuted, random_bits
from bertjax.data.masking import (
    _random_order,
    continuation_pieces,
    mask_tokens,
    prediction_counts,
)

MASK, VOCAB, FIRST_ORDINARY = 4, 1000, 5
# A correct program fails a statistical check this often, would its seed be another.
ALPHA = 1e-4


def make_rows(rng, batch, length):
    """Rows of [CLS]=2, ordinary tokens, [SEP]=3 in the middle and at the end, padding 0."""
    lengths = rng.integers(8, length + 1, batch)
    ids = rng.integers(FIRST_ORDINARY, VOCAB, (batch, length)).astype(np.int32)
    ids[:, 0] = 2
    ids[np.arange(batch), lengths // 2] = 3
    ids[np.arange(batch), lengths - 1] = 3
    ids[np.arange(length) >= lengths[:, None]] = 0
    return ids, lengths, ids >= FIRST_ORDINARY


def run(ids, lengths, maskable, keys, probability=0.15, max_predictions=20, continuations=None):
    counts = prediction_counts(lengths, probability, max_predictions)
    return counts, mask_tokens(
        ids,
        maskable,
        counts,
        keys,
        mask_id=MASK,
        vocab_size=VOCAB,
        max_predictions=max_predictions,
        continuations=continuations,
    )


def test_random_bits_are_splitmix64():
    # First outputs for state 1234567, as published with the reference implementation.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert random_bits(1234567, np.arange(3)).tolist() == expected
    assert int(random_bits(1234567, 2)) == expected[2]


@pytest.mark.parametrize("size", [1, 2, 3, 10, 97, 1000, 4096])
def test_permuted_is_a_permutation(size):
    order = permuted(np.arange(size), size, key=3)
    assert sorted(order.tolist()) == list(range(size))
    assert permuted(order[:0], size, key=3).tolist() == []
    if size >= 97:
        assert (order != permuted(np.arange(size), size, key=4)).mean() > 0.9


def test_permuted_is_even():
    # Where index 0, and the pair (0, 1), go under many keys.
    size = 7
    images = np.array([permuted(np.arange(2), size, key) for key in range(8400)])
    assert stats.chisquare(np.bincount(images[:, 0], minlength=size)).pvalue > ALPHA
    pairs = np.bincount(images[:, 0] * size + images[:, 1], minlength=size * size)
    off_diagonal = pairs.reshape(size, size)[~np.eye(size, dtype=bool)]
    assert stats.chisquare(off_diagonal).pvalue > ALPHA


@pytest.mark.parametrize("trials", [1, 5, 64, 65, 200])
def test_binomial_half(trials):
    draws = binomial_half(random_bits(trials, np.arange(20000)), np.full(20000, trials))
    cdf = stats.binom(trials, 0.5)
    low, high = int(cdf.ppf(0.02)), int(cdf.ppf(0.98))
    edges = np.arange(low, high + 1)
    observed = np.bincount(np.clip(draws, low, high) - low, minlength=len(edges))
    expected = cdf.pmf(edges)
    expected[0], expected[-1] = cdf.cdf(low), cdf.sf(high - 1)
    if len(edges) > 1:
        assert stats.chisquare(observed, expected * len(draws)).pvalue > ALPHA
    assert binomial_half(random_bits(0, np.arange(3)), np.array([0, 0, 0])).tolist() == [0, 0, 0]


@pytest.mark.parametrize("probability", [0.15, 0.3, 0.02])
def test_counts_are_those_of_the_original(probability):
    lengths = np.arange(3, 513)
    expected = [min(20, max(1, round(n * probability))) for n in lengths.tolist()]
    assert prediction_counts(lengths, probability, 20).tolist() == expected


@pytest.mark.parametrize("whole_words", [False, True])
def test_masked_rows_are_consistent(whole_words):
    rng = np.random.default_rng(0)
    ids, lengths, maskable = make_rows(rng, 500, 128)
    before = ids.copy()
    continuations = rng.random(VOCAB) < 0.3 if whole_words else None
    counts, out = run(
        ids, lengths, maskable, random_bits(1, np.arange(500)), 0.15, 20, continuations
    )
    assert (ids == before).all()
    assert out.input_ids.dtype == out.positions.dtype == out.labels.dtype == np.int32
    assert out.weights.dtype == np.float32
    assert out.positions.shape == out.labels.shape == out.weights.shape == (500, 20)
    found = out.weights.sum(axis=1).astype(int)
    if whole_words:
        assert (found <= counts).all()
        assert found.mean() > 0.97 * counts.mean()
    else:
        assert (found == counts).all()
    for row in range(500):
        n = found[row]
        positions = out.positions[row, :n]
        assert (np.diff(positions) > 0).all()
        assert maskable[row, positions].all()
        assert (out.labels[row, :n] == ids[row, positions]).all()
        assert (out.weights[row] == (np.arange(20) < n)).all()
        assert not out.positions[row, n:].any()
        assert not out.labels[row, n:].any()
        untouched = np.ones(128, bool)
        untouched[positions] = False
        assert (out.input_ids[row, untouched] == ids[row, untouched]).all()


@pytest.mark.parametrize("whole_words", [False, True])
def test_80_10_10_and_even_choice(whole_words):
    batch, length = 20000, 16
    rng = np.random.default_rng(0)
    ids = np.broadcast_to(np.arange(100, 100 + length, dtype=np.int32), (batch, length)).copy()
    maskable = np.ones_like(ids, bool)
    maskable[:, [0, 9, 15]] = False
    continuations = np.zeros(VOCAB, bool) if whole_words else None
    counts = rng.integers(1, 6, batch)
    out = mask_tokens(
        ids, maskable, counts, random_bits(7, np.arange(batch)), mask_id=MASK, vocab_size=VOCAB,
        max_predictions=6, continuations=continuations,
    )  # fmt: skip
    real = out.weights > 0
    assert (real.sum(axis=1) == counts).all()
    chosen = np.bincount(out.positions[real], minlength=length)
    assert not chosen[[0, 9, 15]].any()
    # Without replacement within a row the counts vary less than chi-square allows for.
    even = chosen[maskable[0]]
    assert stats.chisquare(even).pvalue > ALPHA
    replaced = np.take_along_axis(out.input_ids, out.positions, axis=1)[real]
    original = out.labels[real]
    # A random token is [MASK] or the original one time in VOCAB each.
    other = 0.1 * (1 - 2 / VOCAB)
    kinds = np.array(
        [(replaced == MASK).sum(), (replaced == original).sum(),
         ((replaced != MASK) & (replaced != original)).sum()]
    )  # fmt: skip
    expected = np.array([0.8 + 0.1 / VOCAB, 0.1 + 0.1 / VOCAB, other]) * len(replaced)
    assert stats.chisquare(kinds, expected).pvalue > ALPHA
    substitutes = replaced[(replaced != MASK) & (replaced != original)]
    histogram = np.histogram(substitutes, bins=50, range=(0, VOCAB))[0]
    assert stats.chisquare(histogram).pvalue > ALPHA
    assert substitutes.min() < 5  # special ids are substitutes too, as in the original
    assert substitutes.max() == VOCAB - 1


def slow_whole_words(ids, maskable, count, order, continuations):
    """create_masked_lm_predictions for one row, given the order in which words are tried."""
    words = []
    for position in range(len(ids)):
        if not maskable[position]:
            continue
        if continuations[ids[position]] and words and words[-1][-1] == position - 1:
            words[-1].append(position)
        else:
            words.append([position])
    words.sort(key=lambda word: order[word[0]])
    chosen = []
    for word in words:
        if len(chosen) >= count:
            break
        if len(chosen) + len(word) <= count:
            chosen.extend(word)
    return sorted(chosen)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_whole_words_against_a_loop(share):
    rng = np.random.default_rng(5)
    ids, lengths, maskable = make_rows(rng, 300, 96)
    maskable &= rng.random(maskable.shape) > 0.02  # words also end at other tokens left out
    continuations = rng.random(VOCAB) < share
    keys = random_bits(11, np.arange(300))
    counts, out = run(ids, lengths, maskable, keys, 0.15, 12, continuations)
    order = _random_order(np.ones_like(maskable), keys)
    for row in range(300):
        expected = slow_whole_words(ids[row], maskable[row], counts[row], order[row], continuations)
        found = out.positions[row, out.weights[row] > 0].tolist()
        assert found == expected


def test_a_row_does_not_depend_on_its_batch():
    rng = np.random.default_rng(2)
    ids, lengths, maskable = make_rows(rng, 64, 96)
    continuations = rng.random(VOCAB) < 0.3
    keys = random_bits(3, np.arange(64))
    for table in (None, continuations):
        _, whole = run(ids, lengths, maskable, keys, continuations=table)
        for rows in (slice(5, 6), slice(40, 64), slice(63, 3, -7)):
            _, part = run(ids[rows], lengths[rows], maskable[rows], keys[rows], continuations=table)
            for a, b in zip(whole, part, strict=True):
                assert (a[rows] == b).all()


@pytest.mark.parametrize("whole_words", [False, True])
def test_fewer_maskable_tokens_than_counts(whole_words):
    ids = np.array([[2, 7, 3, 0], [2, 3, 3, 0], [2, 8, 9, 3]], np.int32)
    counts = np.array([3, 2, 4])
    out = mask_tokens(
        ids, ids > 4, counts, random_bits(0, np.arange(3)), mask_id=MASK, vocab_size=VOCAB,
        max_predictions=4, continuations=np.zeros(VOCAB, bool) if whole_words else None,
    )  # fmt: skip
    assert out.weights.sum(axis=1).tolist() == [1, 0, 2]
    assert out.positions.tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [1, 2, 0, 0]]
    empty = mask_tokens(
        ids[:0], ids[:0] > 4, counts[:0], random_bits(0, np.arange(0)), mask_id=MASK,
        vocab_size=VOCAB, max_predictions=4,
    )  # fmt: skip
    assert empty.positions.shape == (0, 4)


def test_continuation_pieces():
    assert continuation_pieces(["a", "##a", "#", "##"]).tolist() == [False, True, False, True]

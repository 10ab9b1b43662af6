"""Dropout masks: their rate, their independence in every direction, their gradient.

Seeds are fixed. With N independent draws the share of zeros deviates by sqrt(p (1 - p) / N), and
the correlation of two independent columns of N draws by 1 / sqrt(N); thresholds are 5 of these
where hundreds of numbers are looked at, which random bits pass with a probability over 0.999.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from bertjax.config import BertConfig
from bertjax.dropout import Dropout, dropout, hash_bits
from bertjax.model import BertModel

KEY = jax.random.key(1234)


def bits_of(key, shape):
    return np.asarray(jax.jit(hash_bits, static_argnums=1)(jax.random.key_data(key), shape))


def zeros_of(key, shape, rate):
    """Where dropout puts zeros, as floats of mean 0 and variance 1."""
    dropped = jax.jit(dropout, static_argnums=2)(key, jnp.ones(shape), rate) == 0
    return (np.asarray(dropped, np.float32) - rate) / np.sqrt(rate * (1 - rate))


def assert_uncorrelated(columns):
    """No two of [N, C] standardised columns are correlated, one by one and all together."""
    n, c = columns.shape
    z = (columns.T @ columns / np.sqrt(n))[np.triu_indices(c, 1)]
    assert np.abs(z).max() < 5.5
    assert stats.chi2.sf((z**2).sum(), len(z)) > 1e-4
    assert stats.chi2.cdf((z**2).sum(), len(z)) > 1e-4


def assert_uniform(counts, expected):
    """Counts of equally likely outcomes are neither too uneven nor too even."""
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert stats.chi2.sf(statistic, counts.size - 1) > 1e-4
    assert stats.chi2.cdf(statistic, counts.size - 1) > 1e-4


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(1 << 22,), (1 << 14, 256), (16, 8, 128, 256), (1 << 21, 2)])
def test_rate(rate, shape):
    count = int((zeros_of(KEY, shape, rate) > 0).sum())
    n = int(np.prod(shape))
    assert abs(count - n * rate) < 5 * np.sqrt(n * rate * (1 - rate))


def test_bits_are_uniform():
    bits = bits_of(KEY, (1 << 11, 1 << 11))
    for shift in (0, 8, 16, 24):
        counts = np.bincount((bits.ravel() >> shift) & 255, minlength=256)
        assert_uniform(counts, bits.size / 256)
    ones = np.array([((bits >> np.uint32(i)) & 1).mean() for i in range(32)])
    assert np.abs(ones - 0.5).max() < 5 * 0.5 / np.sqrt(bits.size)


@pytest.mark.parametrize("step", [(0, 1), (1, 0), (1, 1), (0, 2), (0, 64), (64, 0), (1, -1)])
def test_neighbours_are_jointly_uniform(step):
    """Pairs of elements some way apart, as 64 x 64 cells of their top bits: no serial structure."""
    high = (bits_of(KEY, (1 << 11, 1 << 11)) >> 26).astype(np.int64)
    moved = np.roll(high, step, axis=(0, 1))
    counts = np.bincount((high * 64 + moved).ravel(), minlength=4096)
    assert_uniform(counts, high.size / 4096)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_rows_columns_and_heads_are_independent(rate):
    mask = zeros_of(KEY, (64, 1 << 16), rate)
    assert_uncorrelated(mask.T)  # rows
    assert_uncorrelated(zeros_of(KEY, (1 << 16, 64), rate))  # columns
    heads = zeros_of(KEY, (8, 12, 128, 128), rate)
    assert_uncorrelated(heads.reshape(8, 12, -1).transpose(0, 2, 1).reshape(-1, 12))
    assert_uncorrelated(heads.reshape(8, -1).T)  # batch rows
    # How many are dropped together is binomial too: of a row, and of a column.
    for axis in (0, 1):
        z = mask.sum(axis) / np.sqrt(mask.shape[axis])
        assert stats.chi2.sf((z**2).sum(), z.size) > 1e-4
        assert stats.chi2.cdf((z**2).sum(), z.size) > 1e-4


def test_keys_of_layers_and_steps_are_independent():
    draw = jax.jit(lambda key: dropout(key, jnp.ones((256, 256)), 0.1) == 0)

    def columns(keys):
        masks = np.stack([np.asarray(draw(key), np.float32).ravel() for key in keys], axis=1)
        return (masks - 0.1) / np.sqrt(0.1 * 0.9)

    assert_uncorrelated(columns(list(jax.random.split(KEY, 32))))
    assert_uncorrelated(columns([jax.random.fold_in(KEY, step) for step in range(32)]))
    # Keys whose words are small numbers, or differ in one bit.
    words = [jax.random.wrap_key_data(jnp.array([i // 8, i % 8], jnp.uint32)) for i in range(32)]
    assert_uncorrelated(columns(words))
    words = [jnp.array([5 ^ (1 << i), 7], jnp.uint32) for i in range(16)]
    words += [jnp.array([5, 7 ^ (1 << i)], jnp.uint32) for i in range(16)]
    assert_uncorrelated(columns([jax.random.wrap_key_data(w) for w in words]))


@pytest.mark.parametrize("word", [0, 1])
def test_neighbouring_keys_do_not_draw_each_others_rows(word):
    """A key and the next number, one row apart: a counter added to the key would repeat itself."""
    keys = [np.array([9, 9], np.uint32) for _ in range(8)]
    for i, key in enumerate(keys):
        key[word] += i
    masks = [zeros_of(jax.random.wrap_key_data(k), (256, 256), 0.1) for k in keys]
    shifted = [mask[7 - i : 248 - i].ravel() for i, mask in enumerate(masks)]
    assert_uncorrelated(np.stack(shifted, axis=1))


def test_no_value_repeats_more_often_than_chance():
    """Collisions of 32 bits among N draws are Poisson with mean N**2 / 2**33; rows never repeat."""
    bits = bits_of(KEY, (1 << 11, 1 << 10))
    repeats = bits.size - len(np.unique(bits))
    expected = bits.size**2 / 2**33
    assert abs(repeats - expected) < 5 * np.sqrt(expected)
    assert len(np.unique(bits[:, :2], axis=0)) == len(bits)


def test_kept_elements_are_scaled_and_the_key_decides():
    x = jax.random.normal(KEY, (64, 33))
    y = np.asarray(dropout(KEY, x, 0.25))
    kept = y != 0
    np.testing.assert_array_equal(y[kept], (np.asarray(x) * np.float32(1 / 0.75))[kept])
    np.testing.assert_array_equal(y, dropout(KEY, x, 0.25))
    np.testing.assert_array_equal(y, jax.jit(dropout, static_argnums=2)(KEY, x, 0.25))
    assert not np.array_equal(kept, dropout(jax.random.key(7), x, 0.25) != 0)
    # A higher rate drops what a lower one drops, and more.
    assert not np.any(kept & ~(np.asarray(dropout(KEY, x, 0.2)) != 0))


def test_under_vmap_every_key_has_its_own_mask():
    keys = jax.random.split(KEY, 5)
    x = jax.random.normal(KEY, (5, 7, 9))
    one = jax.jit(lambda key, x: dropout(key, x, 0.5))
    together = jax.jit(jax.vmap(one))(keys, x)
    for i in range(5):
        np.testing.assert_array_equal(together[i], one(keys[i], x[i]))
    masks = {np.asarray(one(key, jnp.ones((7, 9)))).tobytes() for key in keys}
    assert len(masks) == 5


@pytest.mark.parametrize("kind", [jnp.float32, jnp.bfloat16])
def test_gradient_is_the_same_mask(kind):
    x = jax.random.normal(KEY, (128, 65)).astype(kind)
    weights = jax.random.normal(jax.random.key(2), x.shape).astype(kind)

    @jax.jit
    def value_and_grad(x, weights):
        y, back = jax.vjp(lambda x: dropout(KEY, x, 0.3), x)
        return y, back(weights)[0]

    y, grad = value_and_grad(x, weights)
    scale = np.asarray(1 / 0.7, dtype=y.dtype)
    want = jnp.where(y != 0, weights * scale, 0)
    np.testing.assert_array_equal(grad, want)
    assert grad.dtype == y.dtype == kind


def test_bfloat16_has_the_mask_of_float32():
    x = jnp.ones((256, 256))
    half = dropout(KEY, x.astype(jnp.bfloat16), 0.1)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half == 0, dropout(KEY, x, 0.1) == 0)
    assert np.unique(np.asarray(half, np.float32)).tolist() == [0, float(jnp.bfloat16(1 / 0.9))]


def test_dropped_elements_are_zero_whatever_they_were():
    bad = jnp.full((4096,), jnp.nan)
    y = dropout(KEY, bad, 0.5)
    zero = np.asarray(dropout(KEY, jnp.ones(4096), 0.5)) == 0
    np.testing.assert_array_equal(np.asarray(y)[zero], 0)
    assert np.isnan(np.asarray(y)[~zero]).all()


def test_module():
    x = jax.random.normal(KEY, (32, 32))
    rngs = {"dropout": KEY}
    same = Dropout(0.5).apply({}, x, deterministic=True)
    np.testing.assert_array_equal(same, x)
    none = Dropout(0.0).apply({}, x, deterministic=False)  # no key needed
    np.testing.assert_array_equal(none, x)
    one = Dropout(0.5).apply({}, x, deterministic=False, rngs=rngs)
    assert 0.3 < float(jnp.mean(one == 0)) < 0.7
    with pytest.raises(Exception, match="dropout"):
        Dropout(0.5).apply({}, x, deterministic=False)


SEEDS = 256


def draw(layers, hidden_rate, attention_rate):
    """A model's output without dropout and with many seeds of it, on two identical rows."""
    config = BertConfig(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=16,
        hidden_dropout_prob=hidden_rate,
        attention_probs_dropout_prob=attention_rate,
        scan_unroll=1,
    )
    model = BertModel(config)
    ids = jnp.tile(jax.random.randint(KEY, (1, 16), 1, 40), (2, 1))
    params = jax.jit(model.init)(KEY, ids)["params"]

    def call(key, deterministic):
        return model.apply(
            {"params": params},
            ids,
            deterministic=deterministic,
            rngs={"dropout": key},
            output_attentions=True,
            output_hidden_states=True,
        )

    plain = jax.jit(call, static_argnums=1)(KEY, True)
    noisy = jax.jit(jax.vmap(lambda key: call(key, False)))(jax.random.split(KEY, SEEDS))
    return plain, noisy


@pytest.fixture(scope="module")
def three_layers():
    return draw(3, 0.1, 0.2)


def test_rows_heads_layers_and_seeds_of_a_model_differ(three_layers):
    _, noisy = three_layers
    last = np.asarray(noisy.last_hidden_state)
    assert all(not np.array_equal(last[i, 0], last[i, 1]) for i in range(SEEDS))
    dropped = np.stack(noisy.attentions, axis=1) == 0  # [seeds, layers, rows, heads, T, T]
    z = (dropped - 0.2) / np.sqrt(0.2 * 0.8)
    assert abs(z.sum() / np.sqrt(z.size)) < 5
    cells = z.reshape(SEEDS, 3 * 2 * 4, -1).transpose(0, 2, 1).reshape(-1, 24)
    assert_uncorrelated(cells)  # layers, rows and heads against each other
    assert_uncorrelated(z[:64].reshape(64, -1).T)  # seeds
    # The outputs of a layer's two other dropouts have zeros nowhere to be seen; the embeddings do.
    embedded = np.asarray(noisy.hidden_states[0]) == 0
    z = (embedded - 0.1) / np.sqrt(0.1 * 0.9)
    assert_uncorrelated(z.reshape(SEEDS, 2, -1).transpose(0, 2, 1).reshape(-1, 2))


@pytest.mark.parametrize(("part", "rate"), [("embeddings", 0.1), ("attention", 0.2)])
def test_mean_over_seeds_is_the_deterministic_output(part, rate, three_layers):
    """True where dropout comes last: each element's kept count is binomial, around its share."""
    plain, noisy = three_layers if part == "embeddings" else draw(1, 0.0, rate)
    name = "hidden_states" if part == "embeddings" else "attentions"
    want, values = (np.asarray(getattr(output, name)[0], np.float64) for output in (plain, noisy))
    deviation = values.mean(0) / want - 1
    variance = rate / (1 - rate) / SEEDS
    statistic = (deviation**2).sum() / variance
    assert stats.chi2.sf(statistic, deviation.size) > 1e-4
    assert stats.chi2.cdf(statistic, deviation.size) > 1e-4
    assert abs(deviation.sum()) < 5 * np.sqrt(variance * deviation.size)

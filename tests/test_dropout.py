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
    ones = ((bits.ravel()[:, None] >> np.arange(32, dtype=np.uint32)) & 1).mean(0)
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


def test_no_value_repeats_more_often_than_chance():
    """Collisions of 32 bits among N draws are Poisson with mean N**2 / 2**33; rows never repeat."""
    bits = bits_of(KEY, (1 << 12, 1 << 10))
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
    together = jax.vmap(lambda key, x: dropout(key, x, 0.5))(keys, x)
    for i in range(5):
        np.testing.assert_array_equal(together[i], dropout(keys[i], x[i], 0.5))


@pytest.mark.parametrize("kind", [jnp.float32, jnp.bfloat16])
def test_gradient_is_the_same_mask(kind):
    x = jax.random.normal(KEY, (128, 65)).astype(kind)
    weights = jax.random.normal(jax.random.key(2), x.shape).astype(kind)
    y, back = jax.vjp(lambda x: dropout(KEY, x, 0.3), x)
    (grad,) = back(weights)
    scale = np.asarray(1 / 0.7, dtype=y.dtype)
    want = jnp.where(y != 0, weights * scale, 0)
    np.testing.assert_array_equal(grad, want)
    assert grad.dtype == y.dtype == kind
    np.testing.assert_array_equal(
        jax.jit(jax.grad(lambda x: dropout(KEY, x, 0.3).sum()))(x) == 0, y == 0
    )


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
    np.testing.assert_array_equal(
        Dropout(0.0).apply({}, x, deterministic=False), x
    )  # no key needed
    one = Dropout(0.5).apply({}, x, deterministic=False, rngs=rngs)
    assert 0.3 < float(jnp.mean(one == 0)) < 0.7
    with pytest.raises(Exception, match="dropout"):
        Dropout(0.5).apply({}, x, deterministic=False)


CONFIG = BertConfig(
    vocab_size=40,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=32,
    max_position_embeddings=32,
    hidden_dropout_prob=0.1,
    attention_probs_dropout_prob=0.2,
)
SEEDS = 256


@pytest.fixture(scope="module")
def draws():
    """A model without dropout and with many seeds of it, on a batch of two identical rows."""
    model = BertModel(CONFIG)
    ids = jnp.tile(jax.random.randint(KEY, (1, 16), 1, 40), (2, 1))
    params = jax.jit(model.init)(KEY, ids)["params"]

    def call(key):
        return model.apply(
            {"params": params},
            ids,
            deterministic=key is None,
            rngs={} if key is None else {"dropout": key},
            output_attentions=True,
            output_hidden_states=True,
        )

    plain = jax.jit(lambda: call(None))()
    noisy = jax.jit(jax.vmap(call))(jax.random.split(KEY, SEEDS))
    return jax.device_get((plain, noisy))


def test_rows_heads_layers_and_seeds_of_a_model_differ(draws):
    _, noisy = draws
    assert not np.array_equal(noisy.last_hidden_state[:, 0], noisy.last_hidden_state[:, 1])
    dropped = np.stack(noisy.attentions, axis=1) == 0  # [seeds, layers, rows, heads, T, T]
    z = (dropped - 0.2) / np.sqrt(0.2 * 0.8)
    n = z.size
    assert abs(z.sum() / np.sqrt(n)) < 5
    cells = z.reshape(SEEDS, 3 * 2 * 4, -1).transpose(0, 2, 1).reshape(-1, 24)
    assert_uncorrelated(cells)  # layers, rows and heads against each other
    assert_uncorrelated(z[:64].reshape(64, -1).T)  # seeds


def test_mean_over_seeds_is_the_deterministic_output(draws):
    """True where dropout comes last: each element's kept count is binomial, around its share."""
    plain, noisy = draws
    for name, rate, values, want in (
        ("embeddings", 0.1, noisy.hidden_states[0], plain.hidden_states[0]),
        ("attention", 0.2, noisy.attentions[0], None),
    ):
        if want is None:  # kept probabilities times (1 - rate) are those before dropout
            kept = values != 0
            want = np.where(kept, values, 0).max(0) * (1 - rate)
            np.testing.assert_allclose(want.sum(-1), 1, atol=0.7)
        deviation = values.mean(0) / want - 1
        variance = rate / (1 - rate) / SEEDS
        statistic = (deviation**2).sum() / variance
        assert stats.chi2.sf(statistic, deviation.size) > 1e-4, name
        assert stats.chi2.cdf(statistic, deviation.size) > 1e-4, name

"""Every activation and its gradient against those of transformers, in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.special import erf
from transformers.activations import ACT2FN

from bertjax.activations import ACTIVATIONS, activation, gelu
from bertjax.errors import InputError

# Dense around 0, where the curves bend, and away from the kinks of the piecewise ones.
RNG = np.random.default_rng(0)
X = np.concatenate(
    [np.linspace(-20, 20, 20_000), RNG.normal(size=20_000), 10.0 ** RNG.uniform(-12, 0, 1000)]
).astype(np.float32)
# Names of one approximation whose versions in torch differ in rounding; all are tanh.
TANH = ("gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh")


def theirs(name):
    x = torch.tensor(X, dtype=torch.float64, requires_grad=True)
    y = ACT2FN[name](x)
    y.sum().backward()
    return y.detach().numpy(), x.grad.numpy()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values_and_gradients_agree_with_transformers(name):
    want, want_slope = theirs(name)
    ours = activation(name)
    y, slope = jax.jit(lambda x: (ours(x), jax.grad(lambda x: ours(x).sum())(x)))(X)
    # 1e-6 absolute where the values are small, a few roundings of float32 where they are large.
    tolerance = 1e-6 + 2.5e-7 * np.abs(want)
    assert y.dtype == slope.dtype == jnp.float32
    assert np.all(np.abs(y - want) < tolerance), np.abs(y - want).max()
    # 1 - tanh(u)**2 of float32 is a multiple of 2**-24, and enters times x u'(x) / 2 < 32 for the
    # GELUs, times x sigmoid(x) < 9 for mish, before it vanishes: two such roundings at most.
    slack = 2 * 32 * 2.0**-24 if name in (*TANH, "mish") else 1e-6
    assert np.all(np.abs(slope - want_slope) < slack + 5e-7 * np.abs(want_slope))


def test_exact_gelu_is_within_a_millionth():
    x = np.linspace(-20, 20, 400_001, dtype=np.float32)
    exact = x.astype(np.float64)
    exact = exact * 0.5 * (1 + erf(exact / np.sqrt(2)))
    assert np.abs(jax.jit(gelu)(x) - exact).max() < 1e-6
    y = np.asarray(jax.jit(gelu)(x))
    assert np.all(y[x > 6] == x[x > 6])
    assert y[x == 0].tolist() == [0.0]


def test_tanh_gelu_is_the_formula_of_google_and_not_the_exact_one():
    x = X.astype(np.float64)
    want = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    exact = np.asarray(jax.jit(gelu)(X))
    for name in TANH:
        y = np.asarray(jax.jit(ACTIVATIONS[name])(X))
        assert np.abs(y - want).max() < 2e-6, name
        assert np.abs(y - exact).max() > 1e-4, name
    assert set(TANH) == {n for n, f in ACTIVATIONS.items() if f is ACTIVATIONS["gelu_new"]}


def test_gelu_in_bfloat16_rounds_only_once():
    x = jnp.asarray(X, jnp.bfloat16)
    y = jax.jit(gelu)(x)
    assert y.dtype == jnp.bfloat16
    wide = jax.jit(gelu)(x.astype(jnp.float32))
    np.testing.assert_array_equal(y, wide.astype(jnp.bfloat16))
    slope = jax.jit(jax.grad(lambda x: gelu(x).astype(jnp.float32).sum()))(x)
    wide_slope = jax.jit(jax.grad(lambda x: gelu(x).sum()))(x.astype(jnp.float32))
    assert slope.dtype == jnp.bfloat16
    np.testing.assert_array_equal(slope, wide_slope.astype(jnp.bfloat16))


def test_gelu_far_out_is_finite():
    x = jnp.array([-3e38, -1e20, -40.0, 40.0, 1e20, 3e38])
    y, slope = jax.jit(lambda x: (gelu(x), jax.grad(lambda x: gelu(x).sum())(x)))(x)
    np.testing.assert_allclose(y, np.maximum(x, 0), atol=1e-6)
    np.testing.assert_array_equal(slope, [0, 0, 0, 1, 1, 1])


def test_second_derivative_of_gelu():
    x = np.linspace(-5, 5, 1000, dtype=np.float32)  # even: without 0
    want = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi) * (2 - x**2)
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(jax.grad(gelu))))(x), want, atol=1e-6)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(InputError, match=r"hidden_act 'gleu' is not known.*gelu, .*linear$"):
        activation("gleu")

"""Counted operations against published arithmetic, and against the matrix products of the model."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.interpreters.partial_eval import dce_jaxpr

from bertjax.config import BertConfig
from bertjax.flops import forward_flops, peak_flops, train_flops
from bertjax.heads import BertForPreTraining
from bertjax.pretrained import abstract_params

# (preset, tokens, scored positions, GFLOP of one row's training step), derived by hand from the
# sizes: S (24 H^2 + 4 S H) for each layer but the last, S 4 H^2 + Q (20 H^2 + 4 S H) for the last
# with Q = min(P + 1, S), P (2 H^2 + 2 H V) + 2 H^2 + 4 H for the heads; three times, V = 30,522.
TABLE = [
    ("base", 128, 20, 66.02),
    ("base", 128, 26, 67.1),
    ("base", 128, 128, 85.5),
    ("base", 128, 0, 62.4),
    ("base", 512, 77, 283.6),
    ("base", 512, 103, 288.4),
    ("base", 512, 512, 363.7),
    ("large", 128, 20, 233.7),
    ("large", 128, 26, 235.3),
    ("large", 128, 128, 261.6),
    ("large", 512, 77, 989.9),
    ("large", 512, 103, 996.8),
    ("large", 512, 512, 1104.3),
]


@pytest.mark.parametrize(("preset", "length", "predictions", "gflop"), TABLE)
def test_published_sizes(preset, length, predictions, gflop):
    config = BertConfig.preset(preset)
    digits = 2 if gflop < 100 else 1
    assert round(train_flops(config, length, predictions) / 1e9, digits) == gflop
    assert train_flops(config, length, predictions) == 3 * forward_flops(
        config, length, predictions
    )


def matrix_products(jaxpr, times=1):
    """Add up 2 m n k over every matrix product of a program, loops counted as often as they run."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            inner = math.prod(shape[axis] for axis in contracted)
            total += times * 2 * inner * math.prod(eqn.outvars[0].aval.shape)
        repeats = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        for value in eqn.params.values():
            inside = getattr(value, "jaxpr", value)
            if hasattr(inside, "eqns"):
                total += matrix_products(inside, times * repeats)
    return total


def test_they_are_the_matrix_products_of_the_model():
    config = BertConfig(
        vocab_size=77,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=52,
        max_position_embeddings=20,
        scan_unroll=1,
    )
    model = BertForPreTraining(config)
    rows, length, predictions = 4, 18, 5

    def forward(params, ids, positions):
        output = model.apply({"params": params}, ids, mlm_positions=positions)
        return output.prediction_logits, output.seq_relationship_logits

    program = jax.make_jaxpr(forward)(
        abstract_params(model),
        jax.ShapeDtypeStruct((rows, length), jnp.int32),
        jax.ShapeDtypeStruct((rows, predictions), jnp.int32),
    )
    # As compiled: probabilities that nobody reads are not computed.
    used, _ = dce_jaxpr(program.jaxpr, [True] * len(program.out_avals))
    assert matrix_products(used) == rows * forward_flops(config, length, predictions)


@pytest.mark.parametrize(
    ("kind", "tflops"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("Tesla V100-SXM2-16GB", 125),
        ("NVIDIA L4", 121),
        ("TPU v2", 22.5),
        ("TPU v3", 61.5),
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5p", 459),
        ("TPU v5", 459),
        ("TPU v6 lite", 918),
    ],
)
def test_peaks(kind, tflops):
    device = SimpleNamespace(device_kind=kind)
    assert peak_flops([device]) == tflops * 1e12
    assert peak_flops([device] * 8) == 8 * tflops * 1e12


def test_no_peak_is_made_up():
    for kind in ("cpu", "NVIDIA GeForce RTX 4090", "NVIDIA L40S"):
        assert peak_flops([SimpleNamespace(device_kind=kind)]) is None, kind
    assert peak_flops(jax.devices("cpu")) is None

"""Floating-point operations of a training step, and the peak rates of the chips it may run on."""

import re

import jax

from bertjax.config import BertConfig

# Dense bfloat16 peak of one device in TFLOP/s, from the makers' data sheets; the first name that
# occurs in `device_kind` counts. A device of JAX is one core of a TPU v2 or v3, a whole chip from
# v4 on.
_PEAK_TFLOPS = (
    ("TPU v6", 918.0),
    ("TPU v5p", 459.0),
    ("TPU v5 lite", 197.0),
    ("TPU v5e", 197.0),
    ("TPU v5", 459.0),
    ("TPU v4", 275.0),
    ("TPU v3", 61.5),
    ("TPU v2", 22.5),
    ("H200", 989.0),
    ("H100 PCIe", 756.0),
    ("H100", 989.0),
    ("A100", 312.0),
    ("L4", 121.0),
    ("V100", 125.0),
)


def forward_flops(config: BertConfig, length: int, predictions: int) -> int:
    """Return the operations of one row's forward pass: matrix products, 2 for a multiply-add.

    The last layer is counted as `BertForPreTraining` computes it: keys and values of all tokens,
    the rest at the scored positions and [CLS] alone.

    Args:
      config: the architecture.
      length: tokens of the row, padding included.
      predictions: positions that the MLM head scores.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    keys_and_values = 4 * hidden**2
    queries = 4 * hidden**2 + 4 * hidden * inner + 4 * length * hidden
    before_last = (config.num_hidden_layers - 1) * length * (keys_and_values + queries)
    last = length * keys_and_values + min(predictions + 1, length) * queries
    mlm_head = predictions * (2 * hidden**2 + 2 * hidden * config.vocab_size)
    return before_last + last + mlm_head + 2 * hidden**2 + 4 * hidden


def train_flops(config: BertConfig, length: int, predictions: int) -> int:
    """Return the operations of one row's training step: the backward pass is twice the forward.

    Recomputation (`remat`) is not counted, so that a utilisation compares across settings.
    """
    return 3 * forward_flops(config, length, predictions)


def peak_flops(devices: list[jax.Device]) -> float | None:
    """Return the bfloat16 peak of all devices together in FLOP/s, or None where it is not known."""
    kind = devices[0].device_kind
    for name, tflops in _PEAK_TFLOPS:
        if re.search(rf"{name}(?!\d)", kind):  # an L40S is no L4
            return tflops * 1e12 * len(devices)
    return None

"""What the tests of TensorFlow's checkpoints share."""

from pathlib import Path

import numpy as np

from bertjax.pretrained.tf_bundle import open_bundle

DATA = Path(__file__).parent / "data" / "tf1"
WHOLE = 10**12
"""A size that no file comes to."""


def bits(array):
    """An array as bytes and what they are, so that NaN and -0 count."""
    return array.dtype.name, array.shape, np.ascontiguousarray(array).tobytes()


def read_all(index):
    with open_bundle(index) as bundle:
        return {name: bundle.read(name) for name in bundle.entries}

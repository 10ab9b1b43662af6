"""What every reader of a checkpoint format gives: tensors by Hugging Face's torch names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from bertjax.errors import InputError

FLOATS = ("float32", "float16", "bfloat16", "float64")
"""The types of weights that are read. Smaller ones are codes that need a scale to be numbers."""


def check_float(file: str | Path, name: str, kind: str) -> None:
    """Check the type of a tensor.

    Args:
      file: the file that it is in.
      name: the tensor.
      kind: its type, as numpy or the file calls it.

    Raises:
      InputError: none of `FLOATS`.
    """
    if kind not in FLOATS:
        raise InputError(
            f"{file}: tensor {name} is of type {kind}, but weights are read as {', '.join(FLOATS)} "
            "alone: write the model as one of these (a quantized one with the library that made it)"
        )


class TensorReader(Protocol):
    """The tensors of one checkpoint, named and laid out as in Hugging Face's torch files."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor, by name, without reading any."""
        ...

    def check_type(self, name: str) -> None:
        """Check that a tensor's numbers are weights, without reading it.

        Raises:
          InputError: they are of another type than `FLOATS`.
        """
        ...

    def read(self, name: str) -> np.ndarray:
        """Return one tensor in the type of the file; it is not kept.

        Raises:
          InputError: the file is damaged there.
        """
        ...


class Renamed:
    """Some tensors of a checkpoint under other names; a `TensorReader`.

    Attributes:
      originals: new name -> the checkpoint's own.
    """

    def __init__(self, tensors: TensorReader, originals: Mapping[str, str]) -> None:
        self._tensors, self.originals = tensors, originals

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor, by its new name."""
        shapes = self._tensors.shapes()
        return {name: shapes[original] for name, original in self.originals.items()}

    def check_type(self, name: str) -> None:
        """Check that a tensor's numbers are weights."""
        self._tensors.check_type(self.originals[name])

    def read(self, name: str) -> np.ndarray:
        """Return one tensor."""
        return self._tensors.read(self.originals[name])

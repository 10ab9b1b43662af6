"""What every reader of a checkpoint format gives: tensors by Hugging Face's torch names."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np


class TensorReader(Protocol):
    """The tensors of one checkpoint, named and laid out as in Hugging Face's torch files."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor, by name, without reading any."""
        ...

    def read(self, name: str) -> np.ndarray:
        """Return one tensor in the float type of the file; it is not kept.

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

    def read(self, name: str) -> np.ndarray:
        """Return one tensor."""
        return self._tensors.read(self.originals[name])

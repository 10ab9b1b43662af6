"""What every reader of a checkpoint format gives: tensors by Hugging Face's torch names."""

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

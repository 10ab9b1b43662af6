"""What every model class shares: its attributes, `from_pretrained`, and the arrays it takes."""

from pathlib import Path
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from bertjax.config import BertConfig

Input = jax.Array | np.ndarray
"""The arrays that public calls take, for jaxtyping annotations."""


class PretrainedModule(nn.Module):
    """A module that is built from a `BertConfig` and loads published weights.

    Attributes:
      config: the architecture.
      dtype: compute type; parameters stay float32.
    """

    config: BertConfig
    dtype: DTypeLike = jnp.float32

    config_class: ClassVar[type[Any]] = BertConfig
    _init_shape: ClassVar[tuple[int, ...]] = (1, 2)

    @property
    def init_ids(self) -> np.ndarray:
        """The smallest `input_ids` that `init` takes; parameters do not depend on their shape."""
        return np.zeros(self._init_shape, np.int32)

    @classmethod
    def from_pretrained(cls, source: str | Path, **options: Any) -> tuple[Self, dict[str, Any]]:
        """Return the module and its parameters; see `bertjax.pretrained.load_pretrained`."""
        from bertjax.pretrained import load_pretrained  # it builds modules, so it imports this one

        return load_pretrained(cls, source, **options)

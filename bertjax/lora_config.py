"""The settings of LoRA's adapters; nothing here imports JAX, see `bertjax.run_config`."""

import dataclasses
import math

from bertjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Where adapters sit and how strong they are (Hu et al., arXiv 2106.09685).

    Raises:
      InputError: a negative rank, or an alpha that is not positive.
    """

    rank: int = 8
    """Columns of the first factor and rows of the second; 0 where there are no adapters."""
    alpha: float = 8.0
    """The factors' product counts alpha / rank times."""
    targets: tuple[str, ...] = ("query", "value")
    """Patterns of the kernels that get adapters, see `bertjax.partition`."""
    full: tuple[str, ...] = ()
    """Patterns of parameters that are trained as a whole, such as a new classifier."""
    rank_stabilized: bool = False
    """Count alpha / sqrt(rank) times (Kalajdzievski, arXiv 2312.03732)."""

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise InputError(f"lora: rank must be positive, or 0 for no adapters; got {self.rank}")
        if not 0 < self.alpha < math.inf:
            raise InputError(f"lora: alpha must be positive; got {self.alpha}")

    @property
    def scale(self) -> float:
        """Factor of the product."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)

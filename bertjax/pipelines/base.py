"""What the pipelines share: a model, its tokenizer, and how both are loaded."""

import abc
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bertjax.errors import InputError
from bertjax.packing import model_inputs
from bertjax.pipelines.runner import Runner, SharedRows
from bertjax.pretrained import formats, hub, match
from bertjax.pretrained.load import load_pretrained
from bertjax.tokenizer import BertTokenizer

_HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only")


class Pipeline(abc.ABC):
    """Strings in, answers out.

    Args:
      model: a module of the task's class.
      params: its parameters; sharded ones stay as they are.
      tokenizer: of the model.
      batch_size: rows that are computed together.
      max_length: tokens of a row at most; None takes all that model and tokenizer allow.

    Raises:
      InputError: a model of another class, or sizes that make no sense.
    """

    model_class: ClassVar[type[Any]]
    # What is computed of each text, where several may share a row: see `Runner`.
    shared_rows: ClassVar[SharedRows | None] = None
    # What the checkpoint must hold, by the beginnings of its tensors' names.
    head: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        model: Any,
        params: Any,
        tokenizer: BertTokenizer,
        *,
        batch_size: int = 32,
        max_length: int | None = None,
    ) -> None:
        if not isinstance(model, self.model_class):
            raise InputError(
                f"{type(self).__name__} needs a {self.model_class.__name__}; "
                f"got {type(model).__name__}"
            )
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1; got {batch_size}")
        limit = model.config.max_position_embeddings
        if max_length is not None and not 3 <= max_length <= limit:
            raise InputError(f"max_length must be from 3 to the model's {limit}; got {max_length}")
        if tokenizer.backend.get_vocab_size() > model.config.vocab_size:
            raise InputError(
                f"the tokenizer has {tokenizer.backend.get_vocab_size()} pieces, the model "
                f"embeddings for {model.config.vocab_size}; they do not belong together"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.max_length = max_length or min(limit, tokenizer.model_max_length)
        self._run = Runner(
            self._compute,
            params,
            dtype=model.dtype,
            batch_size=batch_size,
            longest=self.max_length,
            shared_rows=self.shared_rows,
        )

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        dtype: DTypeLike = jnp.float32,
        batch_size: int = 32,
        max_length: int | None = None,
        **options: Any,
    ) -> Self:
        """Load model and tokenizer from one place.

        Args:
          source: a model directory, a run directory, or a name on the Hugging Face hub.
          dtype: compute type of the model.
          batch_size: see the class.
          max_length: see the class.
          **options: of `bertjax.pretrained.load_pretrained`, such as `revision` or `shardings`.

        Raises:
          InputError: no such model, or one without the head of this task.
        """
        path, options = located(source, options)
        cls._check_head(source, path)
        model, params = load_pretrained(cls.model_class, path, dtype=dtype, **options)
        tokenizer = BertTokenizer.from_pretrained(path)
        return cls(model, params, tokenizer, batch_size=batch_size, max_length=max_length)

    @property
    def params(self) -> Any:
        """The model's parameters."""
        return self._run.params

    @property
    def compilations(self) -> int:
        """Programs compiled so far: one for each shape of a batch."""
        return self._run.compilations

    @abc.abstractmethod
    def _compute(self, params: Any, batch: Mapping[str, Any], static: Any) -> Any:
        """Return what is needed of the model's output for a batch; traced."""

    def _apply(self, params: Any, batch: Mapping[str, Any], **options: Any) -> Any:
        """Run the model on a batch, padding masked."""
        inputs = model_inputs(batch, of_cls=getattr(self.model, "reads_pooler", False))
        return self.model.apply({"params": params}, **inputs, **options)

    @classmethod
    def _check_head(cls, source: str | Path, path: Path) -> None:
        """Refuse a checkpoint that lacks the head: answers of an untrained one mean nothing."""
        kind, file = formats.find_weights(path)
        with kind.module.open_tensors(file) as tensors:
            own = {match.canonical(name).removeprefix("bert.") for name in tensors.shapes()}
        absent = [part for part in cls.head if not any(name.startswith(part) for name in own)]
        if absent:
            raise InputError(
                f"{source}: holds no {' and no '.join(part.strip('.') for part in absent)}, which "
                f"{cls.model_class.__name__} needs; fine-tune it first"
            )


def located(
    source: str | Path, options: dict[str, Any], also: Sequence[str] = ()
) -> tuple[Path, dict[str, Any]]:
    """Return where a model and its tokenizer lie on this machine, and the options not of the hub.

    Args:
      source: see `Pipeline.from_pretrained`.
      options: see there.
      also: see `formats.locate`.
    """
    of_hub = {name: options[name] for name in _HUB_OPTIONS if name in options}
    rest = {name: value for name, value in options.items() if name not in of_hub}
    return formats.locate(os.fspath(source), also=(*hub.TOKENIZER, *also), **of_hub), rest


def label_names(config: Any) -> list[str]:
    """Return the names of a classifier's labels, in order."""
    return list(config.to_dict()["id2label"].values())


def softmax(logits: jax.Array) -> jax.Array:
    """Return probabilities in float32."""
    return jax.nn.softmax(logits.astype(jnp.float32), axis=-1)

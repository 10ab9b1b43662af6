"""Sentence embeddings: one vector for a text, such that near meanings are near."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from bertjax.errors import InputError
from bertjax.model import BertModel
from bertjax.packing import members
from bertjax.pipelines.base import Pipeline, located
from bertjax.pipelines.rows import as_list, check_text, text_rows
from bertjax.pipelines.runner import SharedRows
from bertjax.pipelines.sentence_transformers import ACTIVATIONS, POOLINGS, Dense, read_settings
from bertjax.pretrained import hub
from bertjax.pretrained.load import load_pretrained
from bertjax.tokenizer import BertTokenizer


class SentenceEmbeddingPipeline(Pipeline):
    """Vectors of texts, of the encoder's last layer.

    Args:
      model: the encoder.
      params: its parameters.
      tokenizer: of the model.
      pooling: "mean" of the tokens, the token "cls", the "max" over the tokens, or
        "mean_sqrt_len_tokens", their sum over the root of their number; several are put side by
        side.
      dense: layers over the pooled vector.
      normalize: whether vectors get length 1, so that a scalar product is a cosine.
      lowercase: whether texts are lower-cased before the tokenizer sees them.
      prompt: what stands before every text.
      **sizes: `batch_size` and `max_length` of `Pipeline`.

    Example:
      embed = SentenceEmbeddingPipeline.from_pretrained("sentence-transformers/all-MiniLM-L6-v2")
      vectors = embed(["A man plays a guitar.", "Someone makes music."])  # [2, 384]
    """

    model_class: ClassVar[type[Any]] = BertModel
    shared_rows: ClassVar[SharedRows | None] = "texts"

    def __init__(
        self,
        model: BertModel,
        params: Any,
        tokenizer: BertTokenizer,
        *,
        pooling: str | Sequence[str] = "mean",
        dense: Sequence[Dense] = (),
        normalize: bool = False,
        lowercase: bool = False,
        prompt: str = "",
        **sizes: Any,
    ) -> None:
        self._pooling = (pooling,) if isinstance(pooling, str) else tuple(pooling)
        for name in self._pooling:
            if name not in POOLINGS:
                raise InputError(f"pooling must be of {', '.join(POOLINGS)}; got {name!r}")
        self._activations = [layer.activation for layer in dense]
        self._normalize = normalize
        self._lowercase = lowercase
        self._prompt = prompt
        self._layers = [(layer.kernel, layer.bias) for layer in dense]
        super().__init__(model, {"encoder": params, "dense": self._layers}, tokenizer, **sizes)

    @property
    def params(self) -> Any:
        """The model's parameters, without the dense layers behind the pooling."""
        return super().params["encoder"]

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        dtype: DTypeLike = jnp.float32,
        batch_size: int = 32,
        max_length: int | None = None,
        pooling: str | Sequence[str] | None = None,
        normalize: bool | None = None,
        prompt: str | None = None,
        **options: Any,
    ) -> Self:
        """Load an encoder; a directory of sentence-transformers says how to make vectors.

        Args:
          source: see `Pipeline.from_pretrained`.
          dtype: see there.
          batch_size: see there.
          max_length: see there; None takes the directory's, which may be less than all.
          pooling: None takes the directory's, or the mean.
          normalize: None takes the directory's, or does not.
          prompt: None takes the directory's, or none.
          **options: see `Pipeline.from_pretrained`.
        """
        path, options = located(source, options, hub.SENTENCES)
        found = read_settings(path)
        model, params = load_pretrained(
            cls.model_class, found.transformer, dtype=dtype, add_pooling_layer=False, **options
        )
        limit = model.config.max_position_embeddings
        shorter = None if found.max_length is None else min(found.max_length, limit)
        return cls(
            model,
            params,
            BertTokenizer.from_pretrained(found.transformer),
            pooling=found.pooling if pooling is None else pooling,
            dense=found.dense,
            normalize=found.normalize if normalize is None else normalize,
            lowercase=found.lowercase,
            prompt=found.prompt if prompt is None else prompt,
            batch_size=batch_size,
            max_length=max_length or shorter,
        )

    def __call__(self, sentences: str | Sequence[str]) -> np.ndarray:
        """Return the vectors of one text or of several.

        Texts longer than `max_length` tokens lose their end, as in sentence-transformers; the log
        tells how many.

        Args:
          sentences: the texts.

        Returns:
          float32 [N, D], or [D] for a single text.

        Raises:
          InputError: not texts.
        """
        texts, single = as_list(sentences, (str,), "text")
        texts = [self._prompt + check_text(text, number) for number, text in enumerate(texts)]
        if self._lowercase:
            texts = [text.lower() for text in texts]
        rows = text_rows(self.tokenizer, texts, self.max_length, truncation=True)
        vectors = np.empty((len(texts), self.size), np.float32)
        for picked, found in self._run(rows):
            vectors[picked] = found
        return vectors[0] if single else vectors

    @property
    def size(self) -> int:
        """Numbers in a vector."""
        if self._layers:
            return int(self._layers[-1][0].shape[1])
        return self.model.config.hidden_size * len(self._pooling)

    def _compute(self, params: Any, batch: Mapping[str, Any], static: Any) -> Any:
        hidden = self._apply(params["encoder"], batch).last_hidden_state.astype(jnp.float32)
        if "texts" in batch:
            own = members(batch["texts"], batch["cls_positions"].shape[1])
        else:
            own = (batch["attention_mask"] > 0)[:, None, :]
        pooled = [_pool(name, hidden, own) for name in self._pooling]
        vectors = jnp.concatenate(pooled, axis=-1)
        for (kernel, bias), name in zip(params["dense"], self._activations, strict=True):
            vectors = ACTIVATIONS[name](vectors @ kernel + bias)
        if self._normalize:
            length = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
            vectors /= jnp.maximum(length, 1e-12)  # torch's least
        return vectors if "texts" in batch else vectors[:, 0]


def _pool(name: str, hidden: jax.Array, own: jax.Array) -> jax.Array:
    """Make a vector of each text, [B, S, D], of tokens [B, T, D] and of which it owns [B, S, T]."""
    if name == "cls":
        return jnp.take_along_axis(hidden, own.argmax(axis=2)[:, :, None], axis=1)
    if name == "max":
        least = jnp.finfo(jnp.float32).min
        return jnp.max(jnp.where(own[..., None], hidden[:, None], least), axis=2)
    total = jnp.einsum("bst,btd->bsd", own.astype(jnp.float32), hidden, precision="highest")
    # Not 0 where a row holds fewer texts than S: what comes of no text is read by nobody.
    count = jnp.maximum(own.sum(axis=2), 1).astype(jnp.float32)[:, :, None]
    return total / (count if name == "mean" else jnp.sqrt(count))

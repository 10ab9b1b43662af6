"""Prompts, and a model that reads them and what is written behind them, through its cache.

Axis letters as in `bertjax.generation`; T counts the tokens of a row that are read at once.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from bertjax.cache import Cache, init_cache
from bertjax.module import Input
from bertjax.unstacked import together


class Prompt(NamedTuple):
    """What there is before anything is written; `mask` is [B, P], all else as in a call."""

    input_ids: Input
    mask: Input
    encoder_hidden_states: Input | None
    encoder_attention_mask: Input | None

    @property
    def length(self) -> int:
        """Tokens of each row, padding included."""
        return self.input_ids.shape[1]

    def repeat(self, times: int) -> "Prompt":
        """Return each row so many times, one after the other."""
        if times == 1:
            return self
        return jax.tree.map(lambda x: jnp.repeat(jnp.asarray(x), times, axis=0), self)

    def resize(self, length: int, pad: int) -> "Prompt":
        """Return prompts of another length, by padding on the left or taking some away."""
        more = ((0, 0), (max(0, length - self.length), 0))
        ids = np.pad(np.asarray(self.input_ids), more, constant_values=pad)[:, -length:]
        mask = np.pad(np.asarray(self.mask), more)[:, -length:]
        return self._replace(input_ids=ids.astype(np.int32), mask=mask)


class Job(NamedTuple):
    """What is to be written, as arrays.

    Attributes:
      params: the model's, as `bertjax.unstacked.apart` returns them.
      prompt: prompts of a bucket's width.
      seeds: [B, 2], a row's seed and the number of its copy.
      least: scalar, no end before so many tokens; None: there is no such rule.
      most: scalar, tokens to write at most.
    """

    params: Any
    prompt: Prompt
    seeds: Input
    least: ArrayLike | None
    most: ArrayLike

    def keys(self) -> jax.Array:
        """Return the key of each row."""
        make = lambda seed: jax.random.fold_in(jax.random.key(seed[0]), seed[1])  # noqa: E731
        return jax.vmap(make)(jnp.asarray(self.seeds))


class PromptReader:
    """A model that reads prompts and then, token by token, what is written behind them.

    Attributes:
      mask: bool [B, P + N], False at padding.
    """

    def __init__(self, model: Any, job: Job, new_tokens: int) -> None:
        self._model, self._params, self._prompt = model, job.params, job.prompt
        self.mask = jnp.pad(job.prompt.mask, ((0, 0), (0, new_tokens)), constant_values=True)

    @functools.cached_property
    def _positions(self) -> jax.Array:
        # As in transformers, padding has position 0.
        return jnp.maximum(jnp.cumsum(self.mask, axis=1, dtype=jnp.int32) - 1, 0)

    def read_prompt(self) -> tuple[Cache, jax.Array]:
        """Return the cache of the prompts, full, and the scores [B, V] of the next token."""
        prompt = self._prompt
        batch, length = prompt.input_ids.shape
        cache, logits = self._apply(
            init_cache(self._model.config, batch, length, self._model.dtype),
            prompt.input_ids,
            prompt.mask,
            self._positions[:, :length],
            encoder_hidden_states=prompt.encoder_hidden_states,
            logits_to_keep=1,
        )
        return cache, logits[:, 0]

    def read(
        self, cache: Cache, tokens: jax.Array, written: jax.Array, mask: jax.Array | None = None
    ) -> tuple[Cache, jax.Array]:
        """Return the cache and the scores [B, T, V] after tokens [B, T] of such a number.

        Args:
          cache: of all that was read before.
          tokens: those that may come at one place, each of which sees what `mask` shows.
          written: scalar, tokens that are written before.
          mask: [B, T, all there is room for]; None is `self.mask`.
        """
        place = self._prompt.length + written
        positions = jax.lax.dynamic_slice_in_dim(self._positions, place, 1, axis=1)
        mask = self.mask if mask is None else mask
        return self._apply(cache, tokens, mask, jnp.broadcast_to(positions, tokens.shape))

    def _apply(
        self,
        cache: Cache,
        tokens: Input,
        mask: Input,
        positions: jax.Array,
        **given: Any,
    ) -> tuple[Cache, jax.Array]:
        output = self._model.apply(
            {"params": together(self._params)},
            jnp.asarray(tokens),
            mask,
            position_ids=positions,
            past_key_values=cache,
            encoder_attention_mask=self._prompt.encoder_attention_mask,
            **given,
        )
        return output.past_key_values, output.logits

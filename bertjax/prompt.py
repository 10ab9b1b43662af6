"""Prompts, and a model that reads them and what is written behind them, through its cache.

Axis letters as in `bertjax.generation`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bertjax.cache import Cache, init_cache
from bertjax.module import Input


class Prompt(NamedTuple):
    """What there is before anything is written; `mask` is [B, P], all else as in a call."""

    input_ids: jax.Array
    mask: Input
    encoder_hidden_states: Input | None
    encoder_attention_mask: Input | None

    def repeat(self, times: int) -> "Prompt":
        """Return each row so many times, one after the other."""
        return jax.tree.map(lambda x: jnp.repeat(jnp.asarray(x), times, axis=0), self)


class PromptReader:
    """A model that reads prompts and then, token by token, what is written behind them."""

    def __init__(self, model: Any, params: Any, prompt: Prompt, new_tokens: int) -> None:
        self._model, self._params, self._prompt = model, params, prompt
        self.mask = jnp.pad(prompt.mask, ((0, 0), (0, new_tokens)), constant_values=True)
        # As in transformers, padding has position 0.
        self._positions = jnp.maximum(jnp.cumsum(self.mask, axis=1, dtype=jnp.int32) - 1, 0)

    def read_prompt(self) -> tuple[Cache, jax.Array]:
        """Return the cache of the prompts and the scores [B, V] of the next token."""
        batch, length = self._prompt.input_ids.shape
        room = self.mask.shape[1]
        cache = init_cache(self._model.config, batch, room, self._model.dtype)
        return self._apply(
            cache,
            self._prompt.input_ids,
            self._positions[:, :length],
            encoder_hidden_states=self._prompt.encoder_hidden_states,
        )

    def read(self, cache: Cache, tokens: jax.Array, written: jax.Array) -> tuple[Cache, jax.Array]:
        """Return the cache and the scores after one more token a row, of such a number."""
        place = self._prompt.input_ids.shape[1] + written
        positions = jax.lax.dynamic_slice_in_dim(self._positions, place, 1, axis=1)
        return self._apply(cache, tokens, positions)

    def _apply(
        self, cache: Cache, tokens: jax.Array, positions: jax.Array, **given: Any
    ) -> tuple[Cache, jax.Array]:
        output = self._model.apply(
            {"params": self._params},
            tokens,
            self.mask,
            position_ids=positions,
            past_key_values=cache,
            encoder_attention_mask=self._prompt.encoder_attention_mask,
            logits_to_keep=1,
            **given,
        )
        return output.past_key_values, output.logits[:, 0]

"""Greedy decoding and samples over the cache, in two compiled parts: the prompts, and what follows.

Axis letters as in `bertjax.generation`.
"""

import dataclasses
import functools
from collections.abc import Callable
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bertjax.cache import Cache
from bertjax.generation_config import GenerationConfig
from bertjax.next_token import next_scores
from bertjax.prompt import Job, PromptReader


class State(NamedTuple):
    """Between two tokens.

    Attributes:
      written: scalar, tokens written so far; the cache lacks the last of them.
      tokens: int32 [B, P + N].
      ended: bool [B].
      lengths: int32 [B], tokens written of each row, the one that ends it included.
      cache: of what was read.
      scores: float32 [B, N, V], or None where nobody asks for them.
    """

    written: jax.Array
    tokens: jax.Array
    ended: jax.Array
    lengths: jax.Array
    cache: Cache
    scores: jax.Array | None


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def start(model: Any, settings: GenerationConfig, keep_scores: bool, job: Job) -> State:
    """Read the prompts and write the first token of each row."""
    room, prompt = _room(settings), job.prompt
    cache, logits = PromptReader(model, job, room).read_prompt()
    batch = logits.shape[0]
    state = State(
        written=jnp.int32(0),
        tokens=jnp.pad(
            prompt.input_ids, ((0, 0), (0, room)), constant_values=settings.pad_token_id or 0
        ),
        ended=jnp.zeros(batch, bool),
        lengths=jnp.zeros(batch, jnp.int32),
        cache=cache.resize(prompt.length + room),
        scores=jnp.zeros((batch, room, logits.shape[-1])) if keep_scores else None,
    )
    return _write(settings, job, state, logits)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnames="state")
def advance(
    model: Any, settings: GenerationConfig, job: Job, state: State, until: jax.Array
) -> State:
    """Write on until there are so many tokens, or all rows have ended."""
    length = job.prompt.length
    reader = PromptReader(model, job, _room(settings))

    def read_and_write(state: State) -> State:
        state = _unsqueezed(state)
        last = jax.lax.dynamic_slice_in_dim(state.tokens, length + state.written - 1, 1, axis=1)
        cache, logits = reader.read(state.cache, last, state.written - 1)
        return _squeezed(_write(settings, job, state._replace(cache=cache), logits[:, 0]))

    def goes_on(state: State) -> jax.Array:
        return (state.written < until) & ~state.ended.all()

    return _unsqueezed(jax.lax.while_loop(goes_on, read_and_write, _squeezed(state)))


def _squeezed(state: State) -> State:
    """Drop the axis of one row from the cache's arrays.

    XLA multiplies without it: with it the loop would keep arrays of both shapes, copies of each
    other, for every token.
    """
    return _of_one_row(state, itemgetter(0))


def _unsqueezed(state: State) -> State:
    return _of_one_row(state, itemgetter(None))


def _of_one_row(state: State, change: Callable[[jax.Array], jax.Array]) -> State:
    """Change the cache's arrays if there is one row."""
    if len(state.tokens) > 1:
        return state
    layers = jax.tree.map(change, state.cache.layers)
    return state._replace(cache=dataclasses.replace(state.cache, layers=layers))


def _room(settings: GenerationConfig) -> int:
    assert settings.max_new_tokens is not None  # `generate` has filled it in
    return settings.max_new_tokens


def _write(settings: GenerationConfig, job: Job, state: State, logits: jax.Array) -> State:
    """Choose a token of each row and write it down."""
    length, room = job.prompt.length, _room(settings)
    real = jnp.pad(job.prompt.mask, ((0, 0), (0, room)), constant_values=True)
    scores = next_scores(
        settings, logits, state.tokens, real, length + state.written, state.written, job.least
    )
    chosen = _choose(settings, scores, job, state.written)
    chosen = jnp.where(state.ended, settings.pad_token_id or 0, chosen)
    ends = jnp.array(settings.eos_token_ids, jnp.int32)
    kept = state.scores
    if kept is not None:
        kept = jax.lax.dynamic_update_slice(kept, scores[:, None], (0, state.written, 0))
    return state._replace(
        written=state.written + 1,
        tokens=jax.lax.dynamic_update_slice(
            state.tokens, chosen[:, None], (0, length + state.written)
        ),
        ended=state.ended | (chosen[:, None] == ends).any(axis=1),
        lengths=state.lengths + ~state.ended,
        scores=kept,
    )


def _choose(
    settings: GenerationConfig, scores: jax.Array, job: Job, written: jax.Array
) -> jax.Array:
    """Return a token of each row [B]; one drawn depends on the row's key and its number alone."""
    if not settings.do_sample:
        # The same as argmax, which takes XLA on a CPU twice as long.
        return jax.lax.top_k(scores, 1)[1][:, 0]

    def draw(key: jax.Array, row: jax.Array) -> jax.Array:
        return jax.random.categorical(jax.random.fold_in(key, written), row)

    return jax.vmap(draw)(job.keys(), scores).astype(jnp.int32)

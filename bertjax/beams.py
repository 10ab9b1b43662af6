"""Beam search over the cache, by the rules of transformers.

Axis letters: B rows, K beams, C continuations that are looked at, S places for tokens.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bertjax.cache import Cache
from bertjax.next_token import GenerationConfig, next_scores
from bertjax.prompt import Prompt, PromptReader

_NEVER = -1e9
"""Added to the score of what is not to be taken, as in transformers."""


class Found(NamedTuple):
    """The best sequences [B x R, S] of all rows, tokens written, and length-penalised scores."""

    sequences: jax.Array
    lengths: jax.Array
    scores: jax.Array


class _Beams(NamedTuple):
    """Sequences of each row: tokens [B, K, S], tokens written, scores and ends [B, K]."""

    tokens: jax.Array
    lengths: jax.Array
    scores: jax.Array
    ended: jax.Array

    def take(self, places: jax.Array) -> "_Beams":
        """Pick sequences of each row, [B, any number]."""
        return _Beams(
            jnp.take_along_axis(self.tokens, places[:, :, None], axis=1),
            *(jnp.take_along_axis(x, places, axis=1) for x in self[1:]),
        )

    def best(self, count: int) -> "_Beams":
        """Pick those of the highest scores, in their order."""
        return self.take(jax.lax.top_k(self.scores, count)[1])


class _State(NamedTuple):
    """Between two tokens; `open` [B] says whether a row's finished sequences may still change."""

    written: jax.Array
    running: _Beams
    finished: _Beams
    open: jax.Array
    all_ended: jax.Array
    logits: jax.Array
    cache: Cache


def search(
    model: Any, settings: GenerationConfig, params: Any, prompt: Prompt, seeds: jax.Array
) -> Found:
    """Write on from prompts with several beams a row; see `bertjax.generate`."""
    (batch, length), beams = prompt.input_ids.shape, settings.num_beams
    cache, logits = PromptReader(model, params, prompt, settings.max_new_tokens).read_prompt()
    # All beams of a row read the same prompt: once is enough.
    rows = jnp.repeat(jnp.arange(batch), beams)
    reader = PromptReader(model, params, prompt.repeat(beams), settings.max_new_tokens)
    keys = jax.vmap(jax.random.key)(seeds)

    def write(state: _State) -> _State:
        """Go on with the best continuations, and keep the best of those that end."""
        flat = state.running.tokens.reshape(batch * beams, -1)
        scores = next_scores(
            settings,
            jax.nn.log_softmax(state.logits),
            flat,
            reader.mask,
            length + state.written,
            state.written,
        )
        totals = scores.reshape(batch, beams, -1) + state.running.scores[:, :, None]
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, state.written)
        new, origin = _continuations(settings, state, totals, length, step_keys)
        running, places = _go_on(new, beams)
        origin = jnp.take_along_axis(origin, places, axis=1)
        finished = _finished(settings, state, new)
        written = state.written + 1
        cache = _follow(state.cache, (origin + jnp.arange(batch)[:, None] * beams).reshape(-1))
        best = running.scores[:, 0] / written.astype(jnp.float32) ** settings.length_penalty
        worst = jnp.where(finished.ended, finished.scores.min(axis=1, keepdims=True), _NEVER)
        return _State(
            written,
            running,
            finished,
            state.open & (best[:, None] > worst).any(axis=1),
            new.ended.all(),
            state.logits,
            cache,
        )

    def read_and_write(state: _State) -> _State:
        tokens = state.running.tokens.reshape(batch * beams, -1)
        last = jax.lax.dynamic_slice_in_dim(tokens, length + state.written - 1, 1, axis=1)
        cache, logits = reader.read(state.cache, last, state.written - 1)
        return write(state._replace(cache=cache, logits=logits))

    def goes_on(state: _State) -> jax.Array:
        full = settings.early_stopping & state.finished.ended.all()
        return state.open.any() & ~full & ~state.all_ended

    start = _start(settings, prompt, logits[rows], cache.reorder(rows))
    end = jax.lax.while_loop(goes_on, read_and_write, write(start))
    count = settings.num_return_sequences
    kept = jax.tree.map(lambda x: x[:, :count].reshape(batch * count, *x.shape[2:]), end.finished)
    return Found(kept.tokens, kept.lengths, kept.scores)


def _start(settings: GenerationConfig, prompt: Prompt, logits: jax.Array, cache: Cache) -> _State:
    batch, beams = prompt.input_ids.shape[0], settings.num_beams
    pad = settings.pad_token_id
    assert pad is not None  # `generate` has filled it in
    room = ((0, 0), (0, settings.max_new_tokens))
    tokens = jnp.pad(prompt.input_ids, room, constant_values=pad)
    tokens = jnp.repeat(tokens[:, None], beams, axis=1)
    none = jnp.zeros((batch, beams), jnp.int32)
    # All beams are alike so far: only the first may be gone on with.
    first = jnp.full((batch, beams), _NEVER).at[:, 0].set(0.0)
    return _State(
        written=jnp.int32(0),
        running=_Beams(tokens, none, first, none > 0),
        finished=_Beams(tokens, none, jnp.full((batch, beams), _NEVER), none > 0),
        open=jnp.ones(batch, bool),
        all_ended=jnp.zeros((), bool),
        logits=logits,
        cache=cache,
    )


def _continuations(
    settings: GenerationConfig, state: _State, totals: jax.Array, length: int, keys: jax.Array
) -> tuple[_Beams, jax.Array]:
    """Return the best continuations of each row [B, C], or a sample, and the beams they are of.

    There are enough of them that, however many end, as many as there are beams go on.
    """
    batch, beams, vocabulary = totals.shape
    ends = jnp.array(settings.eos_token_ids, jnp.int32)
    count = max(2, 1 + len(settings.eos_token_ids)) * beams
    totals = totals.reshape(batch, -1)
    if settings.do_sample:  # without replacement (Kool et al., arXiv 1903.06059)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, totals.shape[1:]))(keys)
        places = jax.lax.top_k(totals + noise, count)[1]
        scores = jnp.take_along_axis(totals, places, axis=1)
    else:
        scores, places = jax.lax.top_k(totals, count)
    origin, chosen = places // vocabulary, (places % vocabulary).astype(jnp.int32)
    tokens = jnp.take_along_axis(state.running.tokens, origin[:, :, None], axis=1)
    at = (0, 0, length + state.written)
    tokens = jax.lax.dynamic_update_slice(tokens, chosen[:, :, None], at)
    ended = (chosen[:, :, None] == ends).any(axis=-1)
    ended |= state.written + 1 >= settings.max_new_tokens
    lengths = jnp.full(chosen.shape, state.written + 1)
    return _Beams(tokens, lengths, scores, ended), origin


def _go_on(new: _Beams, beams: int) -> tuple[_Beams, jax.Array]:
    """Return the best beams that have not ended, and their places among the continuations."""
    scores = new.scores + new.ended * _NEVER
    places = jax.lax.top_k(scores, beams)[1]
    return new._replace(scores=scores).take(places), places


def _finished(settings: GenerationConfig, state: _State, new: _Beams) -> _Beams:
    """Return the best finished sequences of each row, with those that have just ended."""
    old, beams = state.finished, settings.num_beams
    counts = new.ended & (jnp.arange(new.ended.shape[1]) < beams)
    written = (state.written + 1).astype(jnp.float32)
    scores = new.scores / written**settings.length_penalty
    closed = ~state.open | (settings.early_stopping & old.ended.all(axis=1))
    scores += closed[:, None] * _NEVER + ~counts * _NEVER
    new = new._replace(scores=scores, ended=counts)
    return _Beams(*(jnp.concatenate(x, axis=1) for x in zip(old, new, strict=True))).best(beams)


def _follow(cache: Cache, rows: jax.Array) -> Cache:
    """Let the cache follow its beams; those of a row share what they know of the encoder."""
    moved = cache.reorder(rows)
    return dataclasses.replace(moved, cross_key=cache.cross_key, cross_value=cache.cross_value)

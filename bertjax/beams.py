"""Beam search over the cache, by the rules of transformers.

The beams of a row share one row of the cache: each token is kept once, in the order of writing,
and a beam sees its own path alone. Nothing moves when a beam is left or forks.

Axis letters: B rows, K beams, C continuations that are looked at, P tokens of the prompts, N
tokens to write, S = P + N, V vocabulary.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bertjax.cache import Cache
from bertjax.generation_config import GenerationConfig
from bertjax.next_token import next_scores
from bertjax.prompt import Job, PromptReader

_NEVER = -1e9
"""Added to the score of what is not to be taken, as in transformers."""


class Found(NamedTuple):
    """The best sequences of all rows.

    Attributes:
      sequences: [B x R, S].
      lengths: [B x R], tokens written.
      scores: [B x R], length-penalised.
      path: [B x R, N], the beam [0, B x K) that each token was written behind, -1 after the end.
      token_scores: [B x K, N, V] of each beam's next tokens, or None.
    """

    sequences: jax.Array
    lengths: jax.Array
    scores: jax.Array
    path: jax.Array
    token_scores: jax.Array | None


class _Beams(NamedTuple):
    """Sequences of each row.

    Tokens [B, K, S]; [B, K, N], the beam of the row that each token was written behind; tokens
    written, scores and ends [B, K].
    """

    tokens: jax.Array
    path: jax.Array
    lengths: jax.Array
    scores: jax.Array
    ended: jax.Array

    def take(self, places: jax.Array) -> "_Beams":
        """Pick sequences of each row, [B, any number]."""

        def pick(x: jax.Array) -> jax.Array:
            wanted = places[:, :, None] if x.ndim == 3 else places
            return jnp.take_along_axis(x, wanted, axis=1)

        return _Beams(*map(pick, self))

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
    cache: Cache
    token_scores: jax.Array | None


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def search(model: Any, settings: GenerationConfig, keep_scores: bool, job: Job) -> Found:
    """Write on from prompts with several beams a row; see `bertjax.generate`."""
    beams, length = settings.num_beams, job.prompt.length
    room = settings.max_new_tokens
    assert room is not None  # `generate` has filled it in
    reader = PromptReader(model, job, room)
    cache, logits = reader.read_prompt()

    def read_and_write(state: _State) -> _State:
        at = length + state.written - 1
        last = jax.lax.dynamic_slice_in_dim(state.running.tokens, at, 1, axis=2)[:, :, 0]
        mask = _visible(job, state)
        cache, logits = reader.read(state.cache, last, state.written - 1, mask)
        return _write(settings, job, state._replace(cache=cache), logits)

    def goes_on(state: _State) -> jax.Array:
        full = jnp.array(settings.early_stopping is True) & state.finished.ended.all()
        return state.open.any() & ~full & ~state.all_ended

    # All beams of a row are alike so far.
    logits = jnp.repeat(logits[:, None], beams, axis=1)
    begin = _start(settings, keep_scores, job, cache, logits.shape[-1])
    end = jax.lax.while_loop(goes_on, read_and_write, _write(settings, job, begin, logits))
    count, batch = settings.num_return_sequences, logits.shape[0]
    kept = jax.tree.map(lambda x: x[:, :count].reshape(batch * count, *x.shape[2:]), end.finished)
    first = jnp.repeat(jnp.arange(batch), count)[:, None] * beams
    path = jnp.where(jnp.arange(room) < kept.lengths[:, None], kept.path + first, -1)
    return Found(kept.tokens, kept.lengths, kept.scores, path, end.token_scores)


def _start(
    settings: GenerationConfig, keep_scores: bool, job: Job, cache: Cache, vocabulary: int
) -> _State:
    (batch, length), beams = job.prompt.input_ids.shape, settings.num_beams
    room = settings.max_new_tokens
    assert room is not None  # `generate` has filled it in
    pad = settings.pad_token_id or 0
    tokens = jnp.pad(job.prompt.input_ids, ((0, 0), (0, room)), constant_values=pad)
    tokens = jnp.repeat(tokens[:, None], beams, axis=1)
    path = jnp.zeros((batch, beams, room), jnp.int32)
    none = jnp.zeros((batch, beams), jnp.int32)
    never = jnp.full((batch, beams), _NEVER)
    # All beams are alike so far: only the first may be gone on with.
    first = never.at[:, 0].set(0.0)
    places = length + jnp.arange(room * beams) // beams
    return _State(
        written=jnp.int32(0),
        running=_Beams(tokens, path, none, first, none > 0),
        finished=_Beams(tokens, path, none, never, none > 0),
        open=jnp.ones(batch, bool),
        all_ended=jnp.zeros((), bool),
        cache=cache.resize(length + room * beams, jnp.append(jnp.arange(length), places)),
        token_scores=jnp.zeros((batch * beams, room, vocabulary)) if keep_scores else None,
    )


def _visible(job: Job, state: _State) -> jax.Array:
    """Return what each beam may see, bool [B, K, P + N x K]: the prompt, and its own path.

    A token lies where the beam was that had just taken it, which is the beam that the next token
    was written behind.
    """
    batch, beams, room = state.running.path.shape
    own, step = jnp.arange(beams)[:, None], jnp.arange(room)
    after = jnp.pad(state.running.path[:, :, 1:], ((0, 0), (0, 0), (0, 1)))
    after = jnp.where(step < state.written - 1, after, own)
    seen = after[..., None] == jnp.arange(beams)
    shape = (batch, beams, job.prompt.length)
    prompt = jnp.broadcast_to(jnp.asarray(job.prompt.mask)[:, None], shape)
    return jnp.concatenate([prompt, seen.reshape(batch, beams, -1)], axis=2)


def _write(settings: GenerationConfig, job: Job, state: _State, logits: jax.Array) -> _State:
    """Go on with the best continuations, and keep the best of those that end."""
    batch, beams, vocabulary = logits.shape
    length, room = job.prompt.length, state.running.path.shape[2]
    real = jnp.pad(job.prompt.mask, ((0, 0), (0, room)), constant_values=True)
    scores = next_scores(
        settings,
        jax.nn.log_softmax(logits).reshape(-1, vocabulary),
        state.running.tokens.reshape(batch * beams, -1),
        jnp.repeat(real, beams, axis=0),
        length + state.written,
        state.written,
        job.least,
    )
    kept = state.token_scores
    if kept is not None:
        kept = jax.lax.dynamic_update_slice(kept, scores[:, None], (0, state.written, 0))
    totals = scores.reshape(batch, beams, -1) + state.running.scores[:, :, None]
    new = _continuations(settings, job, state, totals)
    running = _go_on(new, beams)
    finished = _finished(settings, state, new)
    written = state.written + 1
    # The length at which what goes on is compared with what has ended.
    hoped = written
    if settings.early_stopping == "never" and settings.length_penalty > 0:
        hoped = jnp.asarray(job.most)
    best = running.scores[:, 0] / hoped.astype(jnp.float32) ** settings.length_penalty
    worst = jnp.where(finished.ended, finished.scores.min(axis=1, keepdims=True), _NEVER)
    return _State(
        written,
        running,
        finished,
        state.open & (best[:, None] > worst).any(axis=1),
        new.ended.all(),
        state.cache,
        kept,
    )


def _continuations(
    settings: GenerationConfig, job: Job, state: _State, totals: jax.Array
) -> _Beams:
    """Return the best continuations of each row [B, C], or a sample.

    There are enough of them that, however many end, as many as there are beams go on.
    """
    batch, beams, vocabulary = totals.shape
    ends = jnp.array(settings.eos_token_ids, jnp.int32)
    count = max(2, 1 + len(settings.eos_token_ids)) * beams
    totals = totals.reshape(batch, -1)
    if settings.do_sample:  # without replacement (Kool et al., arXiv 1903.06059)
        keys = jax.vmap(jax.random.fold_in, (0, None))(job.keys(), state.written)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, totals.shape[1:]))(keys)
        places = jax.lax.top_k(totals + noise, count)[1]
        scores = jnp.take_along_axis(totals, places, axis=1)
    else:
        scores, places = jax.lax.top_k(totals, count)
    origin, chosen = places // vocabulary, (places % vocabulary).astype(jnp.int32)
    new = state.running.take(origin)
    ended = (chosen[:, :, None] == ends).any(axis=-1) | (state.written + 1 >= job.most)
    at = (0, 0, job.prompt.length + state.written)
    return _Beams(
        tokens=jax.lax.dynamic_update_slice(new.tokens, chosen[:, :, None], at),
        path=jax.lax.dynamic_update_slice(new.path, origin[:, :, None], (0, 0, state.written)),
        lengths=jnp.full(chosen.shape, state.written + 1),
        scores=scores,
        ended=ended,
    )


def _go_on(new: _Beams, beams: int) -> _Beams:
    """Return the best beams that have not ended."""
    return new._replace(scores=new.scores + new.ended * _NEVER).best(beams)


def _finished(settings: GenerationConfig, state: _State, new: _Beams) -> _Beams:
    """Return the best finished sequences of each row, with those that have just ended."""
    old, beams = state.finished, settings.num_beams
    counts = new.ended & (jnp.arange(new.ended.shape[1]) < beams)
    written = (state.written + 1).astype(jnp.float32)
    scores = new.scores / written**settings.length_penalty
    closed = ~state.open
    if settings.early_stopping is True:
        closed |= old.ended.all(axis=1)
    scores += closed[:, None] * _NEVER + ~counts * _NEVER
    new = new._replace(scores=scores, ended=counts)
    return _Beams(*(jnp.concatenate(x, axis=1) for x in zip(old, new, strict=True))).best(beams)

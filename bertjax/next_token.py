"""Rules on the scores of the next token: what may not follow, and what a sample is drawn from.

Axis letters: B rows, S places for tokens, V vocabulary. Formulas and their order are those of
transformers, so that the same scores choose the same tokens.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bertjax.generation_config import GenerationConfig, SamplingConfig


def next_scores(
    settings: GenerationConfig,
    scores: jax.Array,
    tokens: jax.Array,
    real: jax.Array,
    length: jax.Array,
    written: jax.Array,
    least: ArrayLike | None = None,
) -> jax.Array:
    """Apply all rules to the scores of the next token.

    Args:
      settings: the rules.
      scores: float32 [B, V].
      tokens: [B, S], of which the first `length` are there.
      real: bool [B, S], False at padding.
      length: scalar.
      written: scalar, how many of them are no prompt.
      least: scalar, how many of these there are to be before an end; None is 0.

    Returns:
      float32 [B, V], -inf where a token may not follow.
    """
    there = real & (jnp.arange(tokens.shape[1]) < length)
    if settings.repetition_penalty != 1.0:
        scores = _penalize(scores, tokens, there, settings.repetition_penalty)
    if settings.no_repeat_ngram_size:
        repeats = _repeats(tokens, there, length, settings.no_repeat_ngram_size, scores.shape[1])
        scores = jnp.where(repeats, -jnp.inf, scores)
    ends = settings.eos_token_ids
    if least is not None and ends:
        early = written < least
        scores = jnp.where(early, scores.at[:, jnp.array(ends)].set(-jnp.inf), scores)
    if settings.forced_bos_token_id is not None:
        forced = jnp.full_like(scores, -jnp.inf).at[:, settings.forced_bos_token_id].set(0.0)
        scores = jnp.where(written == 0, forced, scores)
    if not settings.do_sample:
        return scores
    # A beam needs more to go on with than may end it.
    some = 1 if settings.num_beams == 1 else max(2, 1 + len(ends))
    return warped(settings, scores, some)


def _penalize(scores: jax.Array, tokens: jax.Array, there: jax.Array, penalty: float) -> jax.Array:
    seen = _marked(tokens, there, scores.shape[1])
    return jnp.where(seen, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)


def _repeats(
    tokens: jax.Array, there: jax.Array, length: jax.Array, size: int, vocabulary: int
) -> jax.Array:
    """Mark the tokens [B, V] that would make the last `size` a repetition of others before."""
    starts = tokens.shape[1] - size + 1
    if starts < 1:
        return jnp.zeros((tokens.shape[0], vocabulary), bool)
    same = jnp.ones((tokens.shape[0], starts), bool)
    for i in range(size - 1):
        last = jax.lax.dynamic_slice_in_dim(tokens, length - (size - 1) + i, 1, axis=1)
        same &= (tokens[:, i : i + starts] == last) & there[:, i : i + starts]
    return _marked(tokens[:, size - 1 :], same & there[:, size - 1 :], vocabulary)


def _marked(tokens: jax.Array, which: jax.Array, vocabulary: int) -> jax.Array:
    """Return bool [B, V]: the tokens of each row that are marked."""
    rows = jnp.arange(tokens.shape[0])[:, None]
    nowhere = jnp.where(which, tokens, vocabulary)
    return jnp.zeros((tokens.shape[0], vocabulary), bool).at[rows, nowhere].set(True, mode="drop")


def warped(settings: SamplingConfig, scores: jax.Array, some: int = 1) -> jax.Array:
    """Leave what a sample may be drawn from.

    Args:
      settings: the rules.
      scores: float32 [B, V].
      some: tokens to leave at least.

    Returns:
      float32 [B, V], -inf where nothing may be drawn.
    """
    scores = scores / settings.temperature
    if 0 < settings.top_k < scores.shape[1]:
        least = jax.lax.top_k(scores, max(some, settings.top_k))[0][:, -1:]
        scores = jnp.where(scores < least, -jnp.inf, scores)
    if settings.top_p < 1.0:
        order = jnp.argsort(scores, axis=-1)
        rising = jnp.cumsum(jax.nn.softmax(jnp.take_along_axis(scores, order, -1)), axis=-1)
        dropped = (rising <= 1 - settings.top_p).at[:, -some:].set(False)
        back = jnp.argsort(order, axis=-1)
        scores = jnp.where(jnp.take_along_axis(dropped, back, -1), -jnp.inf, scores)
    if settings.min_p > 0.0:
        probs = jax.nn.softmax(scores)
        few = probs < settings.min_p * probs.max(axis=-1, keepdims=True)
        few &= scores < jax.lax.top_k(scores, some)[0][:, -1:]
        scores = jnp.where(few, -jnp.inf, scores)
    return scores

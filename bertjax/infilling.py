"""Mask-predict: a masked-language model fills many masked tokens in a few rounds.

Ghazvininejad et al., arXiv 1904.09324, and the greedy variant that never takes a token back.

Axis letters: B rows, T tokens, M masked tokens of a row, V vocabulary.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from bertjax.data.bucket_widths import bucket_width
from bertjax.errors import InputError
from bertjax.generation_config import MaskPredictConfig
from bertjax.heads import BertForMaskedLM
from bertjax.module import Input
from bertjax.next_token import warped
from bertjax.unstacked import apart, together


@struct.dataclass
class MaskPredictOutput:
    """What was filled in.

    Attributes:
      sequences: int32 [B, T], the rows with their masked tokens filled in.
      probs: float32 [B, T], what probability the model gave each of these when it chose it, among
        the tokens that were allowed; 1 for all other tokens.
    """

    sequences: jax.Array
    probs: jax.Array


def mask_predict(
    model: BertForMaskedLM,
    params: Any,
    input_ids: Input,
    attention_mask: Input | None = None,
    token_type_ids: Input | None = None,
    *,
    mask_token_id: int,
    settings: MaskPredictConfig | None = None,
    seeds: Input | None = None,
) -> MaskPredictOutput:
    """Fill in the masked tokens of rows, all rounds in one compiled loop.

    Compiled once for each bucket of T, each power of two of M, each number of rows and each
    `settings`.

    Args:
      model: a masked-language model.
      params: its parameters. Their layers are taken apart first, which takes a copy, unless
        `bertjax.unstacked.apart` has done that.
      input_ids: [B, T].
      attention_mask: [B, T], 0 at padding; None: there is none.
      token_type_ids: [B, T], segments, 0 by default.
      mask_token_id: the token to be filled in.
      settings: how; None takes the defaults.
      seeds: [B], what a row's sample depends on beside its own tokens; None numbers the rows.

    Raises:
      InputError: another model, no masked token, tokens over the model's maximum or outside its
        vocabulary, a vocabulary of which nothing is left.
    """
    settings = settings or MaskPredictConfig()
    ids = np.asarray(input_ids)
    mask = np.ones_like(ids) if attention_mask is None else np.asarray(attention_mask)
    types = np.zeros_like(ids) if token_type_ids is None else np.asarray(token_type_ids)
    seeds = np.arange(len(ids)) if seeds is None else np.asarray(seeds)
    _check(model, settings, ids, {"attention_mask": mask, "token_type_ids": types}, seeds)
    masked = (ids == mask_token_id) & (mask != 0)
    if not masked.any():
        raise InputError("no row holds mask_token_id: there is nothing to fill in")
    longest = model.config.max_position_embeddings
    width, room = bucket_width(ids.shape[1], longest), int(masked.sum(axis=1).max())
    beyond = ((0, 0), (0, width - ids.shape[1]))
    padded = [np.pad(x, beyond).astype(np.int32) for x in (ids, mask, types)]
    # The columns of the masked tokens in their order, and then others.
    columns = np.argsort(~np.pad(masked, beyond), axis=1, kind="stable")
    columns = columns[:, : min(width, 1 << (room - 1).bit_length())]
    own = apart(params, model.dtype)
    job = _Job(own, padded[0], padded[1], padded[2], columns, masked.sum(axis=1), seeds)
    tokens, probs = _fill(model, settings, mask_token_id, job)
    length = ids.shape[1]
    return MaskPredictOutput(*(jnp.asarray(np.asarray(x)[:, :length]) for x in (tokens, probs)))


def append_masks(
    input_ids: Input, attention_mask: Input, count: int, mask_token_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Put masked tokens before the last token, [SEP], of each row.

    Args:
      input_ids: [B, T], padded on the right.
      attention_mask: [B, T].
      count: so many.
      mask_token_id: the token.

    Returns:
      Ids and mask [B, T + count].
    """
    ids, mask = (np.pad(np.asarray(x), ((0, 0), (0, count))) for x in (input_ids, attention_mask))
    last = mask.sum(axis=1, keepdims=True) - 1
    column = np.arange(ids.shape[1])
    ends = np.take_along_axis(ids, last, axis=1)
    ids = np.where((column >= last) & (column < last + count), mask_token_id, ids)
    return np.where(column == last + count, ends, ids), (column <= last + count).astype(mask.dtype)


def _check(
    model: Any,
    settings: MaskPredictConfig,
    ids: np.ndarray,
    likewise: dict[str, np.ndarray],
    seeds: np.ndarray,
) -> None:
    if not isinstance(model, BertForMaskedLM) or model.config.is_decoder:
        raise InputError(
            "mask-predict is for a BertForMaskedLM that sees both sides; got a "
            f"{type(model).__name__}{' with is_decoder' if model.config.is_decoder else ''}"
        )
    if ids.ndim != 2:
        raise InputError(f"input_ids must be [B, T]; got shape {ids.shape}")
    for name, array in likewise.items():
        if array.shape != ids.shape:
            raise InputError(f"{name} must be {ids.shape} as input_ids are; got {array.shape}")
    if seeds.shape != ids.shape[:1]:
        raise InputError(f"seeds must be one for each of {len(ids)} rows; got shape {seeds.shape}")
    longest, vocabulary = model.config.max_position_embeddings, model.config.vocab_size
    if ids.shape[1] > longest:
        raise InputError(f"{ids.shape[1]} tokens are over max_position_embeddings {longest}")
    for token in (int(ids.min()), int(ids.max()), *settings.suppress_tokens):
        if not 0 <= token < vocabulary:
            raise InputError(f"token {token} is outside the vocabulary of {vocabulary}")
    if len(set(settings.suppress_tokens)) == vocabulary:
        raise InputError(f"suppress_tokens are the whole vocabulary of {vocabulary}")


class _Job(NamedTuple):
    """Rows of a bucket's width; the first `counts` [B] of `columns` [B, M] are the masked ones.

    The parameters are as `bertjax.unstacked.apart` returns them.
    """

    params: Any
    input_ids: Input
    attention_mask: Input
    token_type_ids: Input
    columns: Input
    counts: Input
    seeds: Input


class _State(NamedTuple):
    """Between two rounds: tokens and log probabilities of the places [B, M], and which are open."""

    step: jax.Array
    tokens: jax.Array
    scores: jax.Array
    open: jax.Array


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _fill(
    model: Any, settings: MaskPredictConfig, mask_token_id: int, job: _Job
) -> tuple[jax.Array, jax.Array]:
    """Return the rows and the probabilities, [B, T] each."""
    columns = jnp.asarray(job.columns, jnp.int32)
    rows = jnp.arange(columns.shape[0])[:, None]
    exists = jnp.arange(columns.shape[1]) < job.counts[:, None]
    places = jnp.where(exists, columns, job.input_ids.shape[1])  # beyond the row: dropped

    def put(row: Input, values: jax.Array) -> jax.Array:
        return jnp.asarray(row).at[rows, places].set(values, mode="drop")

    def fill(state: _State) -> _State:
        ids = put(job.input_ids, jnp.where(state.open, mask_token_id, state.tokens))
        logits = model.apply(
            {"params": together(job.params)},
            ids,
            job.attention_mask,
            job.token_type_ids,
            mlm_positions=columns,
        ).logits
        logits = logits.at[..., jnp.array(settings.suppress_tokens, jnp.int32)].set(-jnp.inf)
        tokens = _choose(settings, logits, job, state.step)
        scores = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)[..., 0]
        return _settle(settings, job, state, exists, tokens, scores)

    def goes_on(state: _State) -> jax.Array:
        return state.open.any()

    start = _State(jnp.int32(0), jnp.zeros_like(columns), jnp.zeros(columns.shape), exists)
    end = jax.lax.while_loop(goes_on, fill, start)
    probs = put(jnp.ones(job.input_ids.shape), jnp.exp(end.scores))
    return put(job.input_ids, end.tokens), probs


def _settle(
    settings: MaskPredictConfig,
    job: _Job,
    state: _State,
    exists: jax.Array,
    tokens: jax.Array,
    scores: jax.Array,
) -> _State:
    """Take over what was filled in, and open what the next round is to fill."""
    if settings.per_round is None:
        taken = state.open
    else:
        taken = state.open & (_rank(jnp.where(state.open, -scores, jnp.inf)) < settings.per_round)
    tokens = jnp.where(taken, tokens, state.tokens)
    scores = jnp.where(taken, scores, state.scores)
    step = state.step + 1
    if settings.per_round is None:
        left = job.counts * jnp.maximum(settings.iterations - step, 0) // settings.iterations
        still = exists & (_rank(jnp.where(exists, scores, jnp.inf)) < left[:, None])
    else:
        still = state.open & ~taken
    return _State(step, tokens, scores, still)


def _rank(values: jax.Array) -> jax.Array:
    """Return the place of each value in the order of its row, equal ones as they come."""
    return jnp.argsort(jnp.argsort(values, axis=1, stable=True), axis=1)


def _choose(
    settings: MaskPredictConfig, logits: jax.Array, job: _Job, step: jax.Array
) -> jax.Array:
    """Return a token of each place [B, M]; one drawn depends on row, column and round alone."""
    if not settings.do_sample:
        return jax.lax.top_k(logits, 1)[1][..., 0]
    allowed = warped(settings, logits.reshape(-1, logits.shape[-1])).reshape(logits.shape)

    def draw(seed: jax.Array, columns: jax.Array, scores: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(seed), step)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, columns)
        return jax.vmap(jax.random.categorical)(keys, scores)

    seeds, columns = jnp.asarray(job.seeds), jnp.asarray(job.columns)
    return jax.vmap(draw)(seeds, columns, allowed).astype(jnp.int32)

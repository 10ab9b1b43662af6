"""Writing on from prompts: greedy, samples and beams, one compiled loop over the cache.

Axis letters: B rows, P tokens of the prompts, N tokens to write, V vocabulary, E tokens of an
encoder.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from bertjax import beams
from bertjax.cache import Cache
from bertjax.config import BertConfig
from bertjax.errors import InputError
from bertjax.module import Input
from bertjax.next_token import GenerationConfig, next_scores
from bertjax.prompt import Prompt, PromptReader


@struct.dataclass
class GenerateOutput:
    """What was written.

    Attributes:
      sequences: int32 [B, P + N], prompts included; padding after the end of a row. With several
        sequences of a prompt, [B x R, P + N], those of a prompt one after the other, best first.
      lengths: int32 [B], tokens written, the one that ends a row included.
      scores: float32 [B, N, V] that each token was chosen by, where they were asked for; 0 where
        all rows had ended. Beams have none.
      sequences_scores: float32 [B x R], of beams: the sum of the tokens' log probabilities over
        their number to the power of length_penalty.
    """

    sequences: jax.Array
    lengths: jax.Array
    scores: jax.Array | None = None
    sequences_scores: jax.Array | None = None


def generate(
    model: Any,
    params: Any,
    input_ids: Input,
    attention_mask: Input | None = None,
    *,
    settings: GenerationConfig | None = None,
    encoder_hidden_states: Input | None = None,
    encoder_attention_mask: Input | None = None,
    seeds: Input | None = None,
    output_scores: bool = False,
) -> GenerateOutput:
    """Write on from prompts with a `BertLMHeadModel`.

    Compiled once for each shape of prompts and each `settings`.

    Args:
      model: a decoder with scores of the next token.
      params: its parameters.
      input_ids: [B, P], prompts of one length or padded on the left.
      attention_mask: [B, P], 0 at padding; None: there is none. Positions count real tokens.
      settings: how; None takes the defaults.
      encoder_hidden_states: [B, E, D], of a model with cross-attention.
      encoder_attention_mask: [B, E].
      seeds: [B], what a row's sample depends on beside its own prompt; None numbers the rows.
      output_scores: return the scores, too.

    Raises:
      InputError: a model that is no decoder, prompts padded on the right, tokens over the model's
        maximum or outside its vocabulary.
    """
    settings = _completed(settings or GenerationConfig(), model.config)
    input_ids = np.asarray(input_ids)
    if attention_mask is None:
        attention_mask = np.ones_like(input_ids)
    mask = np.asarray(attention_mask) != 0
    _check(model.config, settings, input_ids, mask)
    seeds = np.arange(len(input_ids)) if seeds is None else np.asarray(seeds)
    prompt = Prompt(
        jnp.asarray(input_ids, jnp.int32), mask, encoder_hidden_states, encoder_attention_mask
    )
    if settings.num_beams > 1:
        found = _search(model, settings, params, prompt, seeds)
        return GenerateOutput(found.sequences, found.lengths, sequences_scores=found.scores)
    return _generate(model, settings, output_scores, params, prompt, seeds)


def _completed(settings: GenerationConfig, config: BertConfig) -> GenerationConfig:
    """Fill in the ids that the model's config has."""
    if settings.eos_token_id is None:
        settings = dataclasses.replace(settings, eos_token_id=config.eos_token_id)
    ends, pad = settings.eos_token_ids, settings.pad_token_id
    if pad is None:
        pad = config.pad_token_id
    if pad is None:
        pad = ends[0] if ends else 0
    return dataclasses.replace(settings, eos_token_id=ends or None, pad_token_id=pad)


def _check(
    config: BertConfig, settings: GenerationConfig, input_ids: np.ndarray, mask: np.ndarray
) -> None:
    if not config.is_decoder:
        raise InputError("only a decoder writes on: set is_decoder in the config")
    if mask.shape != input_ids.shape or input_ids.ndim != 2 or not input_ids.size:
        raise InputError(
            f"prompts must be [B, P], and the attention_mask like them; got {input_ids.shape} and "
            f"{mask.shape}"
        )
    if not mask[:, -1].all():
        row = int(np.argmin(mask[:, -1]))
        raise InputError(f"prompts must be padded on the left; row {row} ends in padding")
    length, new, most = input_ids.shape[1], settings.max_new_tokens, config.max_position_embeddings
    if length + new > most:
        raise InputError(
            f"{length} tokens of the prompts and {new} new ones are over max_position_embeddings "
            f"{most}"
        )
    if settings.num_beams > config.vocab_size:
        raise InputError(
            f"num_beams {settings.num_beams} are more than the vocabulary of {config.vocab_size}"
        )
    named = {"pad_token_id": settings.pad_token_id, "forced": settings.forced_bos_token_id}
    named |= {f"eos_token_id {i}": token for i, token in enumerate(settings.eos_token_ids)}
    ids = {"input_ids": int(input_ids.max()), "least of input_ids": int(input_ids.min())} | named
    for name, token in ids.items():
        if token is not None and not 0 <= token < config.vocab_size:
            raise InputError(f"{name}: {token} is outside the vocabulary of {config.vocab_size}")


_search = functools.partial(jax.jit, static_argnums=(0, 1))(beams.search)


class _State(NamedTuple):
    """Between two tokens: `written` of them are in `tokens`, `logits` are those of the next."""

    written: jax.Array
    tokens: jax.Array
    ended: jax.Array
    lengths: jax.Array
    logits: jax.Array
    cache: Cache
    scores: jax.Array | None


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _generate(
    model: Any,
    settings: GenerationConfig,
    output_scores: bool,
    params: Any,
    prompt: Prompt,
    seeds: jax.Array,
) -> GenerateOutput:
    batch, length = prompt.input_ids.shape
    reader = PromptReader(model, params, prompt, settings.max_new_tokens)
    cache, logits = reader.read_prompt()
    room = ((0, 0), (0, settings.max_new_tokens))
    keys, pad = jax.vmap(jax.random.key)(seeds), settings.pad_token_id
    assert pad is not None  # `generate` has filled it in
    ends = jnp.array(settings.eos_token_ids, jnp.int32)
    kept = jnp.zeros((batch, settings.max_new_tokens, logits.shape[-1])) if output_scores else None

    def write(state: _State) -> _State:
        """Choose a token of each row and write it down."""
        scores = next_scores(
            settings, state.logits, state.tokens, reader.mask, length + state.written, state.written
        )
        chosen = _choose(settings, scores, keys, state.written)
        chosen = jnp.where(state.ended, pad, chosen)
        at = (0, length + state.written)
        return state._replace(
            written=state.written + 1,
            tokens=jax.lax.dynamic_update_slice(state.tokens, chosen[:, None], at),
            ended=state.ended | (chosen[:, None] == ends).any(axis=1),
            lengths=state.lengths + ~state.ended,
            scores=None
            if state.scores is None
            else jax.lax.dynamic_update_slice(state.scores, scores[:, None], (0, state.written, 0)),
        )

    def read_and_write(state: _State) -> _State:
        last = jax.lax.dynamic_slice_in_dim(state.tokens, length + state.written - 1, 1, axis=1)
        cache, logits = reader.read(state.cache, last, state.written - 1)
        return write(state._replace(cache=cache, logits=logits))

    def goes_on(state: _State) -> jax.Array:
        return (state.written < settings.max_new_tokens) & ~state.ended.all()

    start = _State(
        written=jnp.int32(0),
        tokens=jnp.pad(prompt.input_ids, room, constant_values=pad),
        ended=jnp.zeros(batch, bool),
        lengths=jnp.zeros(batch, jnp.int32),
        logits=logits,
        cache=cache,
        scores=kept,
    )
    end = jax.lax.while_loop(goes_on, read_and_write, write(start))
    return GenerateOutput(end.tokens, end.lengths, end.scores)


def _choose(
    settings: GenerationConfig, scores: jax.Array, keys: jax.Array, written: jax.Array
) -> jax.Array:
    """Return a token of each row [B]; one drawn depends on the row's key and its number alone."""
    if not settings.do_sample:
        # The same as argmax, which takes XLA on a CPU twice as long.
        return jax.lax.top_k(scores, 1)[1][:, 0]

    def draw(key: jax.Array, row: jax.Array) -> jax.Array:
        return jax.random.categorical(jax.random.fold_in(key, written), row)

    return jax.vmap(draw)(keys, scores).astype(jnp.int32)

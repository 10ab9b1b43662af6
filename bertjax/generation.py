"""Writing on from prompts: greedy, samples and beams, in compiled loops over the cache.

Axis letters: B rows, P tokens of the prompts, N tokens to write, R sequences of each prompt, V
vocabulary, E tokens of an encoder.
"""

import dataclasses
import functools
import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from bertjax import beams, decoding
from bertjax.config import BertConfig
from bertjax.data.bucket_widths import bucket_width
from bertjax.encoder_decoder import EncoderDecoderModel
from bertjax.encoder_decoder_config import AnyConfig
from bertjax.errors import InputError
from bertjax.generation_config import GenerationConfig
from bertjax.module import Input
from bertjax.prompt import Job, Prompt
from bertjax.unstacked import apart, together

_LOG = logging.getLogger(__name__)


@struct.dataclass
class GenerateOutput:
    """What was written.

    Attributes:
      sequences: int32 [B, P + N], prompts included; padding after the end of a row. With several
        sequences of a prompt, [B x R, P + N], those of a prompt one after the other, of beams the
        best first.
      lengths: int32 [B x R], tokens written, the one that ends a row included.
      scores: float32 [B x R, N, V] that each token was chosen by, where they were asked for; 0
        where all rows had ended. Of beams [B x num_beams, N, V], the log probabilities of each
        beam's next token.
      sequences_scores: float32 [B x R], of beams: the sum of the tokens' log probabilities over
        their number to the power of length_penalty.
      beam_indices: int32 [B x R, N], of beams: the row of `scores` that each token was chosen by,
        -1 after the end.
    """

    sequences: jax.Array
    lengths: jax.Array
    scores: jax.Array | None = None
    sequences_scores: jax.Array | None = None
    beam_indices: jax.Array | None = None


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
    decoder_input_ids: Input | None = None,
    token_type_ids: Input | None = None,
) -> GenerateOutput:
    """Write on from prompts with a `BertLMHeadModel`, or targets with an `EncoderDecoderModel`.

    Prompts are padded to the width of a bucket (`bertjax.data.bucket_widths`), and programs
    are compiled once for each of these, each number of rows and each `settings`.

    Args:
      model: a decoder with scores of the next token.
      params: its parameters. Their layers are taken apart first, which takes a copy, unless
        `bertjax.unstacked.apart` has done that.
      input_ids: [B, P], prompts of one length or padded on the left.
      attention_mask: [B, P], 0 at padding; None: there is none. Positions count real tokens.
        With an `EncoderDecoderModel` both are those of the sources, padded on any side.
      settings: how; None takes the defaults.
      encoder_hidden_states: [B, E, D], of a model with cross-attention.
      encoder_attention_mask: [B, E].
      seeds: [B], what a row's sample depends on beside its own prompt; None numbers the rows.
      output_scores: return the scores, too.
      decoder_input_ids: [B, P], what the targets of an `EncoderDecoderModel` begin with, of one
        length; None: decoder_start_token_id alone.
      token_type_ids: [B, P], segments of its sources, 0 by default.

    Raises:
      InputError: a model that is no decoder, prompts padded on the right, prompts or sources over
        the model's maximum or outside its vocabulary.
    """
    given = _Given(
        input_ids, attention_mask, encoder_hidden_states, encoder_attention_mask, seeds,
        decoder_input_ids, token_type_ids,
    )  # fmt: skip
    task = _prepare(model, params, given, settings)
    options = task.model, task.settings, output_scores, task.job
    if task.settings.num_beams > 1:
        found = beams.search(*options)
        return GenerateOutput(
            task.sequences(found.sequences),
            found.lengths,
            task.cut(found.token_scores),
            found.scores,
            task.cut(found.path),
        )
    state = decoding.start(*options)
    state = decoding.advance(task.model, task.settings, task.job, state, np.int32(task.most))
    return GenerateOutput(task.sequences(state.tokens), state.lengths, task.cut(state.scores))


def stream(
    model: Any,
    params: Any,
    input_ids: Input,
    attention_mask: Input | None = None,
    *,
    settings: GenerationConfig | None = None,
    encoder_hidden_states: Input | None = None,
    encoder_attention_mask: Input | None = None,
    seeds: Input | None = None,
    decoder_input_ids: Input | None = None,
    token_type_ids: Input | None = None,
    every: int = 1,
) -> Iterator[np.ndarray]:
    """Write on as `generate` does, by the same programs, and yield the tokens while they come.

    Args:
      model: see `generate` for this and the others.
      params: its parameters.
      input_ids: [B, P].
      attention_mask: [B, P].
      settings: without beams, which know their tokens at the end alone.
      encoder_hidden_states: [B, E, D].
      encoder_attention_mask: [B, E].
      seeds: [B].
      decoder_input_ids: [B, P].
      token_type_ids: [B, P].
      every: tokens at a time; after the first, which comes alone.

    Yields:
      int32 [B x R, up to `every`], the next tokens, until all rows have ended; together what
      `generate` writes behind the prompts, as far as it is no padding of all rows.

    Raises:
      InputError: as in `generate`; beams.
    """
    if settings is not None and settings.num_beams > 1:
        raise InputError(
            f"num_beams {settings.num_beams}: beams know their tokens at the end alone and cannot "
            "be streamed; leave out one or the other"
        )
    given = _Given(
        input_ids, attention_mask, encoder_hidden_states, encoder_attention_mask, seeds,
        decoder_input_ids, token_type_ids,
    )  # fmt: skip
    return _stream(_prepare(model, params, given, settings), every)


def _stream(task: "_Task", every: int) -> Iterator[np.ndarray]:
    state, shown = decoding.start(task.model, task.settings, False, task.job), 0
    while True:
        written, first = int(state.written), task.job.prompt.length
        yield np.asarray(state.tokens)[:, first + shown : first + written]
        if written >= task.most or bool(state.ended.all()):
            return
        shown, until = written, np.int32(min(written + every, task.most))
        state = decoding.advance(task.model, task.settings, task.job, state, until)


class _Task(NamedTuple):
    """A checked job, and how its result goes back to the caller's shapes.

    Attributes:
      model: the decoder.
      settings: complete; `max_new_tokens` is what there is room for.
      job: of a bucket's width.
      prompts: [B x R, P], as they were given.
      most: tokens to write at most.
    """

    model: Any
    settings: GenerationConfig
    job: Job
    prompts: np.ndarray
    most: int

    def sequences(self, tokens: jax.Array) -> jax.Array:
        """Return the prompts as given, and what is written behind them."""
        first = self.job.prompt.length
        xp, tokens = _at_hand(tokens)
        new = tokens[:, first : first + self.most]
        times = len(new) // len(self.prompts)
        return jnp.asarray(xp.concatenate([np.repeat(self.prompts, times, axis=0), new], axis=1))

    def cut(self, array: jax.Array | None) -> jax.Array | None:
        """Return [any, N, ...] without the steps that there was room for but no call."""
        if array is None or array.shape[1] == self.most:
            return array
        return jnp.asarray(_at_hand(array)[1][:, : self.most])


def _at_hand(array: jax.Array) -> tuple[Any, Any]:
    """Return numpy and numpy's array, for which no shape compiles anything.

    An array of several hosts stays JAX's.
    """
    return (np, np.asarray(array)) if array.is_fully_addressable else (jnp, array)


class _Given(NamedTuple):
    """What `generate` is given beside the model and the settings."""

    input_ids: Input
    attention_mask: Input | None = None
    encoder_hidden_states: Input | None = None
    encoder_attention_mask: Input | None = None
    seeds: Input | None = None
    decoder_input_ids: Input | None = None
    token_type_ids: Input | None = None


def _prepare(model: Any, params: Any, given: _Given, settings: GenerationConfig | None) -> _Task:
    settings = _with_ids(settings or GenerationConfig(), model.config)
    if isinstance(model, EncoderDecoderModel):
        model, params, given = _encoded(model, params, given)
    elif given.decoder_input_ids is not None or given.token_type_ids is not None:
        raise InputError(
            "decoder_input_ids and token_type_ids are for an EncoderDecoderModel: prompts are "
            "input_ids"
        )
    ids = np.asarray(given.input_ids)
    mask = np.ones(ids.shape, bool)
    if given.attention_mask is not None:
        mask = np.asarray(given.attention_mask) != 0
    _check(model.config, settings, ids, mask)
    if settings.max_new_tokens and settings.max_length:
        _LOG.warning(
            "max_new_tokens %d goes before max_length %d",
            settings.max_new_tokens,
            settings.max_length,
        )
    # Columns that are padding in all rows take up no positions.
    real = ids.shape[1] - int(mask.argmax(axis=1).min())
    longest = model.config.max_position_embeddings
    least, most = settings.new_tokens(ids.shape[1], longest - real)
    if real + most > longest:
        raise InputError(
            f"{real} tokens of the prompts and {most} new ones are over max_position_embeddings "
            f"{longest}"
        )
    # What follows from max_length differs from prompt to prompt; the programs shall not.
    room = most if settings.max_new_tokens == most else bucket_width(most, longest - real)
    prompt = Prompt(ids, mask, given.encoder_hidden_states, given.encoder_attention_mask)
    prompt = prompt.resize(bucket_width(real, longest - room), settings.pad_token_id or 0)
    copies = settings.num_return_sequences if settings.num_beams == 1 else 1
    job = Job(
        apart(params, model.dtype),
        prompt.repeat(copies),
        _numbered(given.seeds, len(ids), copies),
        np.int32(least) if settings.min_new_tokens or settings.min_length else None,
        np.int32(most),
    )
    # The arrays say how long rows are: where only that differs, nothing is compiled anew.
    settings = dataclasses.replace(
        settings, max_new_tokens=room, max_length=None, min_new_tokens=None, min_length=0
    )
    return _Task(model, settings, job, np.repeat(ids, copies, axis=0), most)


def _encoded(model: EncoderDecoderModel, params: Any, given: _Given) -> tuple[Any, Any, _Given]:
    """Return the decoder, its parameters, and what it is given once the sources are encoded."""
    if given.encoder_hidden_states is not None or given.encoder_attention_mask is not None:
        raise InputError("an EncoderDecoderModel encodes input_ids itself: give nothing else")
    ids, mask, types = given.input_ids, given.attention_mask, given.token_type_ids
    batch, length = np.shape(ids) if np.ndim(ids) == 2 else (0, 0)
    mask = np.ones((batch, length), np.int32) if mask is None else mask
    types = np.zeros((batch, length), np.int32) if types is None else types
    _check_sources(model.config.encoder, ids, mask, types)
    width = bucket_width(length, model.config.encoder.max_position_embeddings)
    pad = ((0, 0), (0, width - length))
    ids, mask, types = (
        # Arrays of several hosts cannot be had as numpy's.
        (jnp.pad if isinstance(x, jax.Array) else np.pad)(x, pad)
        for x in (ids, mask, types)
    )
    begin = given.decoder_input_ids
    decoder = _Given(
        model.begin(batch) if begin is None else begin,
        encoder_hidden_states=_encode(model, params, ids, mask, types),
        encoder_attention_mask=mask,
        seeds=given.seeds,
    )
    return model.decoder_alone(), model.decoder_params(params), decoder


def _check_sources(config: BertConfig, ids: Input, mask: Input, types: Input) -> None:
    shapes = [np.shape(array) for array in (ids, mask, types)]
    if len(shapes[0]) != 2 or 0 in shapes[0] or len(set(shapes)) > 1:
        raise InputError(
            "sources must be [B, E], and their attention_mask and token_type_ids like them; got "
            + ", ".join(map(str, shapes))
        )
    if shapes[0][1] > config.max_position_embeddings:
        raise InputError(
            f"sources of {shapes[0][1]} tokens are over the encoder's max_position_embeddings "
            f"{config.max_position_embeddings}"
        )
    for name, array, most in (
        ("sources", ids, config.vocab_size),
        ("token_type_ids", types, config.type_vocab_size),
    ):
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            continue  # of several hosts: no one of them has all
        for value in (int(np.min(array)), int(np.max(array))):
            if not 0 <= value < most:
                raise InputError(f"{name}: {value} is outside the encoder's {most}")


@functools.partial(jax.jit, static_argnums=0)
def _encode(model: EncoderDecoderModel, params: Any, *source: Input | None) -> jax.Array:
    states: Any = model.apply({"params": together(params)}, *source, method="encode")
    return states


def _numbered(seeds: Input | None, rows: int, copies: int) -> np.ndarray:
    """Return [B x R, 2]: a row's seed, and the number of its copy."""
    given = np.arange(rows) if seeds is None else np.asarray(seeds)
    if given.shape != (rows,):
        raise InputError(f"seeds must be one for each of {rows} rows; got shape {given.shape}")
    return np.stack([np.repeat(given, copies), np.tile(np.arange(copies), rows)], axis=1)


def _with_ids(settings: GenerationConfig, config: AnyConfig) -> GenerationConfig:
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

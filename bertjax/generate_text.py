"""`bertjax generate`: texts in, texts out, of every kind of model that can write.

A kind is a class that is built from the command's settings and the model's place, and turns texts
into pieces of what is printed; `_KINDS` names it for the classes of checkpoints that it is for.
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np

from bertjax import generation, infilling
from bertjax.causal_lm import BertLMHeadModel
from bertjax.data.vocab import SPECIAL_TOKENS
from bertjax.encoder_decoder import EncoderDecoderModel
from bertjax.errors import InputError
from bertjax.generation_config import GenerationConfig, MaskPredictConfig, SamplingConfig
from bertjax.heads import BertForMaskedLM
from bertjax.model_commands import GenerateConfig
from bertjax.pretrained import formats, hub, load_pretrained
from bertjax.pretrained.load import find_class
from bertjax.tokenizer import BertTokenizer
from bertjax.unstacked import apart


class Writer(Protocol):
    """One kind of model."""

    def pieces(self, texts: Sequence[str], first: int) -> Iterator[str]:
        """Yield what is printed of texts, of which the first has this number, newlines included."""
        ...


def run(config: GenerateConfig) -> None:
    """Print what the model writes, a line for each sequence.

    Raises:
      InputError: no such model, or none that can write in this way.
    """
    path = formats.locate(config.model, also=hub.TOKENIZER)
    name, _ = find_class(path, formats.find_config(path))
    if name not in _KINDS:
        raise InputError(
            f"{config.model}: is a {name}, which writes no text; give one of {', '.join(_KINDS)}"
        )
    writer = _KINDS[name](config, path)
    for first in range(0, len(config.text), config.batch_size):
        for piece in writer.pieces(config.text[first : first + config.batch_size], first):
            sys.stdout.write(piece)
            sys.stdout.flush()


class _Begun(NamedTuple):
    """What a model is given of some texts.

    Attributes:
      inputs: arguments of `generation.generate`, by name.
      shown: tokens that each text begins with, where it is printed.
      hidden: columns of what is written that are shown already, or never.
    """

    inputs: dict[str, np.ndarray]
    shown: list[np.ndarray]
    hidden: int


class _Decoder:
    """A `BertLMHeadModel` that writes on."""

    _head: type[Any] = BertLMHeadModel

    def __init__(self, config: GenerateConfig, path: Path) -> None:
        if config.mask_predict:
            raise InputError(
                f"{config.model}: is a decoder, which writes token after token: leave out "
                "--mask-predict"
            )
        self._tokenizer = BertTokenizer.from_pretrained(path)
        self._model, params = load_pretrained(self._head, path, dtype=jnp.dtype(config.dtype))
        if not getattr(self._model.config, "is_decoder", True):
            raise InputError(
                f"{config.model}: is a BertLMHeadModel, but its config has is_decoder off; set it "
                "to write on"
            )
        self._params = apart(params, config.dtype)
        self._config = config
        self._settings = self._complete(config.settings)

    def _complete(self, settings: GenerationConfig) -> GenerationConfig:
        """Fill in what neither the command nor the model says: [SEP] ends a text."""
        own = self._model.config
        ends, pad = settings.eos_token_id, settings.pad_token_id
        if ends is None and own.eos_token_id is None:
            ends = self._tokenizer.sep_id
        if pad is None and own.pad_token_id is None:
            pad = self._tokenizer.pad_id
        ends = own.eos_token_id if ends is None else ends
        return dataclasses.replace(settings, eos_token_id=ends, pad_token_id=pad)

    def pieces(self, texts: Sequence[str], first: int) -> Iterator[str]:
        """See `Writer`."""
        begun = self._begin(texts)
        seeds = self._config.seed + first + np.arange(len(texts))
        given: dict[str, Any] = {"settings": self._settings, "seeds": seeds, **begun.inputs}
        copies = self._settings.num_return_sequences
        prompts = [row for row in begun.shown for _ in range(copies)]
        if self._config.stream:
            steps = generation.stream(self._model, self._params, **given)
            yield from self._stream(prompts, steps)
            return
        output = generation.generate(self._model, self._params, **given)
        new = np.asarray(output.sequences)[:, begun.hidden :]
        for prompt, row, length in zip(prompts, new, output.lengths.tolist(), strict=True):
            yield self._tokenizer.decode([*prompt, *row[:length]]) + "\n"

    def _begin(self, texts: Sequence[str]) -> _Begun:
        """Return texts that are not over yet, padded on the left."""
        batch = self._tokenizer(list(texts))
        end = self._tokenizer.sep_id
        rows = []
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            row = ids[mask != 0]
            rows.append(row[:-1] if row[-1] == end else row)
        width = max(map(len, rows))
        ids = np.full((len(rows), width), self._tokenizer.pad_id, np.int32)
        mask = np.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, width - len(row) :] = row
            mask[number, width - len(row) :] = 1
        return _Begun({"input_ids": ids, "attention_mask": mask}, rows, width)

    def _stream(self, prompts: list[np.ndarray], steps: Iterator[np.ndarray]) -> Iterator[str]:
        """Yield the texts one after the other, as far as they are there.

        The decoder of word pieces only ever adds to a text, so what is printed stays right.
        """
        rows = [list(prompt) for prompt in prompts]
        ended, current, shown = [False] * len(rows), 0, 0
        for step in steps:
            for number, tokens in enumerate(step):
                for token in tokens.tolist():
                    if not ended[number]:
                        rows[number].append(token)
                        ended[number] = token in self._settings.eos_token_ids
            while current < len(rows):
                text = self._tokenizer.decode(rows[current])
                yield text[shown:]
                shown = len(text)
                if not ended[current]:
                    break
                yield "\n"
                current, shown = current + 1, 0
        for row in rows[current:]:
            yield self._tokenizer.decode(row)[shown:] + "\n"
            shown = 0


class _EncoderDecoder(_Decoder):
    """An `EncoderDecoderModel` that reads each text whole and writes another."""

    _head = EncoderDecoderModel

    def _begin(self, texts: Sequence[str]) -> _Begun:
        batch = self._tokenizer(list(texts))
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
        return _Begun(inputs, [np.zeros(0, np.int32)] * len(texts), self._model.begin(1).shape[1])


class _MaskedModel:
    """A masked-language model that fills in [MASK]s."""

    def __init__(self, config: GenerateConfig, path: Path) -> None:
        if not config.mask_predict:
            raise InputError(
                f"{config.model}: is a masked-language model, which cannot write on from a prompt; "
                "add --mask-predict and [MASK]s, or --append-masks, for it to fill in"
            )
        sampling = {field.name for field in dataclasses.fields(SamplingConfig)}
        given = dataclasses.asdict(config.settings)
        for name, value in dataclasses.asdict(GenerationConfig()).items():
            if name not in sampling and given[name] != value:
                raise InputError(f"--{name.replace('_', '-')} is not for --mask-predict")
        self._tokenizer = BertTokenizer.from_pretrained(path)
        self._model, params = load_pretrained(BertForMaskedLM, path, dtype=jnp.dtype(config.dtype))
        self._params = apart(params, config.dtype)
        vocabulary = self._tokenizer.backend.get_vocab()
        self._mask_id = vocabulary["[MASK]"]
        self._config = config
        self._settings = MaskPredictConfig(
            **{name: given[name] for name in sampling},
            iterations=config.iterations,
            per_round=config.per_round,
            suppress_tokens=tuple(vocabulary[token] for token in SPECIAL_TOKENS),
        )

    def pieces(self, texts: Sequence[str], first: int) -> Iterator[str]:
        """See `Writer`."""
        batch = self._tokenizer(list(texts))
        ids, mask = batch["input_ids"], batch["attention_mask"]
        more = self._config.append_masks
        if more:
            ids, mask = infilling.append_masks(ids, mask, more, self._mask_id)
        for number in np.flatnonzero(~(ids == self._mask_id).any(axis=1))[:1].tolist():
            raise InputError(
                f"text {first + number}: has no [MASK]; write it where a word is to be filled in, "
                "or give --append-masks"
            )
        output = infilling.mask_predict(
            self._model,
            self._params,
            ids,
            mask,
            mask_token_id=self._mask_id,
            settings=self._settings,
            seeds=self._config.seed + first + np.arange(len(texts)),
        )
        for row, real in zip(np.asarray(output.sequences), mask != 0, strict=True):
            yield self._tokenizer.decode(row[real]) + "\n"


_KINDS: dict[str, Any] = {
    "BertLMHeadModel": _Decoder,
    "EncoderDecoderModel": _EncoderDecoder,
    "BertForMaskedLM": _MaskedModel,
    "BertForPreTraining": _MaskedModel,
}

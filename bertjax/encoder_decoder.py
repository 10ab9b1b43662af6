"""`EncoderDecoderModel`: one BERT that reads, and another that writes with an eye on it.

Axis letters as in `bertjax.model`; T counts the decoder's tokens, E those of the encoder.
"""

from pathlib import Path
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int, Shaped

from bertjax import tying
from bertjax.cache import Cache
from bertjax.causal_lm import BertLMHeadModel
from bertjax.encoder_decoder_config import EncoderDecoderConfig
from bertjax.errors import InputError
from bertjax.layers import Dense
from bertjax.losses import IGNORE_INDEX, cross_entropy
from bertjax.model import BertModel
from bertjax.module import Input, PretrainedModule
from bertjax.outputs import BertModelOutput, CausalLMOutputWithCrossAttentions, Seq2SeqLMOutput


class EncoderDecoderModel(PretrainedModule):
    """An encoder whose output a decoder with the head of `BertLMHeadModel` attends to.

    Its parameters are those of both, `encoder` and `decoder`, and `enc_to_dec_proj` where their
    widths differ. With `config.tie_encoder_decoder` the decoder uses the encoder's embeddings and
    layers, and `decoder` holds nothing but cross-attention and head.

    Attributes:
      config: the architectures.
      dtype: compute type; parameters stay float32.

    Example:
      >>> import jax
      >>> from bertjax import BertConfig
      >>> bert = BertConfig.preset("tiny", vocab_size=100, pad_token_id=0, bos_token_id=1)
      >>> config = EncoderDecoderConfig.from_encoder_decoder_configs(bert, bert)
      >>> model = EncoderDecoderModel(config)
      >>> params = model.init(jax.random.key(0), model.init_ids)["params"]
      >>> source, target = jnp.ones((2, 8), jnp.int32), jnp.ones((2, 5), jnp.int32)
      >>> model.apply({"params": params}, source, labels=target).logits.shape
      (2, 5, 100)
    """

    config: EncoderDecoderConfig  # type: ignore[assignment]

    config_class: ClassVar[type[Any]] = EncoderDecoderConfig

    def setup(self) -> None:
        config = self.config
        self.encoder = BertModel(config.encoder, self.dtype)
        self.decoder = BertLMHeadModel(config.decoder, self.dtype)
        if config.projects:
            self.enc_to_dec_proj = Dense(config.decoder, config.decoder.hidden_size, self.dtype)

    def __call__(
        self,
        input_ids: Int[Input, "B E"] | None = None,
        attention_mask: Shaped[Input, "B E"] | None = None,
        decoder_input_ids: Int[Input, "B T"] | None = None,
        decoder_attention_mask: Shaped[Input, "B _"] | Shaped[Input, "B T _"] | None = None,
        encoder_outputs: BertModelOutput | tuple[Any, ...] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Input, "B E _"] | None = None,
        decoder_inputs_embeds: Float[Input, "B T _"] | None = None,
        labels: Int[Input, "B T"] | None = None,
        *,
        token_type_ids: Int[Input, "B E"] | None = None,
        position_ids: Int[Input, "#B E"] | None = None,
        decoder_token_type_ids: Int[Input, "B T"] | None = None,
        decoder_position_ids: Int[Input, "#B T"] | None = None,
        decoder_logits_to_keep: int | Int[Input, " N"] = 0,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        deterministic: bool = True,
    ) -> Seq2SeqLMOutput:
        """Read a source and score the tokens of a target; `decoder_` arguments are the decoder's.

        Args:
          input_ids: source, [B, E]; or `inputs_embeds`, or `encoder_outputs`. None of them where
            `past_key_values` have the encoder's keys and values already.
          attention_mask: 0 hides a token of the source, [B, E], in every call.
          decoder_input_ids: what the decoder reads, [B, T]: the start token and all of the target
            but its last. By default made of `labels`, by `shift_tokens_right`.
          decoder_attention_mask: as the `attention_mask` of `BertModel`; made of `labels`, it hides
            padding.
          encoder_outputs: what the encoder has made of the source, so that it is not read again: a
            `BertModelOutput`, or a tuple with the last hidden state first. It is projected here.
          past_key_values: the decoder's cache.
          labels: the target, [B, T]: logits at a place are scored by the label there, so that
            nothing is shifted again. -100 does not count. The loss is 0 where nothing does.

        Raises:
          ValueError: neither labels nor decoder inputs, no source, an id that labels need and the
            config lacks, or what `BertModel` and `BertLMHeadModel` refuse.
        """
        outputs: dict[str, Any] = {
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
            "deterministic": deterministic,
        }
        encoded = self._source(
            past_key_values,
            encoder_outputs,
            (input_ids, attention_mask, token_type_ids, position_ids, None, inputs_embeds),
            outputs,
        )
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids, not_padding = self._decoder_inputs(labels)
            if decoder_attention_mask is None:
                decoder_attention_mask = not_padding
        if labels is not None and not _is_zero(decoder_logits_to_keep):
            raise ValueError("labels need the logits of all tokens: leave out logits_to_keep")
        output = self._decode(
            decoder_input_ids,
            decoder_attention_mask,
            token_type_ids=decoder_token_type_ids,
            position_ids=decoder_position_ids,
            inputs_embeds=decoder_inputs_embeds,
            encoder_hidden_states=None if encoded is None else self._projected(encoded[0]),
            encoder_attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            logits_to_keep=decoder_logits_to_keep,
            **outputs,
        )
        loss = None
        if labels is not None:
            assert output.logits is not None  # the decoder has a head
            loss = cross_entropy(output.logits, labels).mean()
        states, attentions = (None, None) if encoded is None else encoded[1:]
        return Seq2SeqLMOutput(
            loss=loss,
            logits=output.logits,
            past_key_values=output.past_key_values,
            decoder_hidden_states=output.hidden_states,
            decoder_attentions=output.attentions,
            cross_attentions=output.cross_attentions,
            encoder_last_hidden_state=None if encoded is None else encoded[0],
            encoder_hidden_states=states,
            encoder_attentions=attentions,
        )

    def encode(
        self,
        input_ids: Int[Input, "B E"],
        attention_mask: Shaped[Input, "B E"] | None = None,
        token_type_ids: Int[Input, "B E"] | None = None,
    ) -> Float[Array, "B E _"]:
        """Return the source as the decoder attends to it: what its `encoder_hidden_states` are."""
        output = self.encoder(input_ids, attention_mask, token_type_ids)
        return self._projected(output.last_hidden_state)

    @nn.nowrap
    def decoder_alone(self) -> BertLMHeadModel:
        """Return the decoder as a model of its own, for `decoder_params`."""
        return BertLMHeadModel(self.config.decoder, self.dtype, parent=None)

    @nn.nowrap
    def decoder_params(self, params: Any) -> Any:
        """Return all that the decoder uses of this model's parameters."""
        if not self.config.tie_encoder_decoder:
            return params["decoder"]
        return tying.completed(params["decoder"], params["encoder"])

    @nn.nowrap
    def begin(self, batch_size: int) -> np.ndarray:
        """Return what targets begin with, [B, 1].

        Raises:
          InputError: the config does not say.
        """
        if self.config.decoder_start_token_id is None:
            raise InputError("decoder_start_token_id is not set: set it in the config")
        return np.full((batch_size, 1), self.config.decoder_start_token_id, np.int32)

    @classmethod
    def from_encoder_decoder_pretrained(
        cls, encoder: str | Path, decoder: str | Path | None = None, **options: Any
    ) -> tuple["EncoderDecoderModel", dict[str, Any]]:
        """Make a model of one or two checkpoints; see `bertjax.pretrained.pairs.load_pair`."""
        from bertjax.pretrained.pairs import load_pair  # it builds modules, so it imports this one

        return load_pair(encoder, decoder, **options)

    def _source(
        self,
        past: Cache | None,
        given: BertModelOutput | tuple[Any, ...] | None,
        inputs: tuple[Input | None, ...],
        outputs: dict[str, Any],
    ) -> tuple[Any, Any, Any] | None:
        """Return the encoder's last hidden state, all of them, and attentions, as far as known."""
        if given is not None:
            if isinstance(given, tuple):
                return (*given, None, None)[:3]
            if not isinstance(given, BertModelOutput):
                raise ValueError(
                    "encoder_outputs must be the encoder's output, or a tuple that begins with its "
                    f"last hidden state; got {type(given).__name__}"
                )
            return given.last_hidden_state, given.hidden_states, given.attentions
        if inputs[0] is None and inputs[-1] is None:
            if past is not None and past.cross_length is not None:
                return None
            raise ValueError("give the source: input_ids, inputs_embeds or encoder_outputs")
        found = self.encoder(*inputs, **outputs)
        return found.last_hidden_state, found.hidden_states, found.attentions

    def _projected(self, states: Float[Input, "B E _"]) -> Float[Array, "B E _"]:
        states = jnp.asarray(states)
        return self.enc_to_dec_proj(states) if self.config.projects else states

    def _decoder_inputs(
        self, labels: Int[Input, "B T"] | None
    ) -> tuple[Int[Array, "B T"], Shaped[Array, "B T"] | None]:
        """Return what the decoder reads, and its mask; `init` needs something."""
        pad = self.config.pad_token_id
        if labels is not None:
            shifted = shift_tokens_right(labels, pad, self.config.decoder_start_token_id)
            return shifted, jnp.not_equal(shifted, jnp.int32(pad))
        if self.is_initializing():
            return jnp.zeros((1, 1), jnp.int32), None
        raise ValueError("give the target: labels, decoder_input_ids or decoder_inputs_embeds")

    def _decode(self, *inputs: Any, **options: Any) -> CausalLMOutputWithCrossAttentions:
        """Run the decoder, tied on the encoder's parameters."""
        if not self.config.tie_encoder_decoder:
            return self.decoder(*inputs, **options)
        encoder = self.variables["params"]["encoder"]
        run = nn.map_variables(
            lambda decoder: decoder(*inputs, **options),
            "params",
            trans_in_fn=lambda own: {"params": tying.completed(own["params"], encoder)},
            trans_out_fn=lambda whole: {"params": tying.own(whole["params"])},
            init=self.is_initializing(),
        )
        return run(self.decoder)


def shift_tokens_right(
    labels: Int[Input, "B T"], pad_token_id: int | None, decoder_start_token_id: int | None
) -> Int[Array, "B T"]:
    """Return what a decoder reads to say `labels`: the start token, then all of them but the last.

    -100 becomes padding.

    Raises:
      ValueError: an id is None.
    """
    if decoder_start_token_id is None or pad_token_id is None:
        missing = "decoder_start" if decoder_start_token_id is None else "pad"
        raise ValueError(f"labels need {missing}_token_id: set it in the config")
    first = ((0, 0), (1, 0))
    shifted = jnp.pad(labels[:, :-1], first, constant_values=decoder_start_token_id)
    return jnp.where(shifted == IGNORE_INDEX, pad_token_id, shifted).astype(jnp.int32)


def _is_zero(keep: int | Input) -> bool:
    return isinstance(keep, int) and keep == 0

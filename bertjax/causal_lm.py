"""`BertLMHeadModel`: BERT as a decoder that predicts the next token."""

import functools
import logging

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from bertjax.cache import Cache
from bertjax.heads import BertOnlyMLMHead
from bertjax.losses import IGNORE_INDEX, cross_entropy
from bertjax.model import BertModel
from bertjax.module import Input, PretrainedModule
from bertjax.outputs import CausalLMOutputWithCrossAttentions

_LOG = logging.getLogger(__name__)


class BertLMHeadModel(PretrainedModule):
    """BERT with the head that predicts the next token; `config.is_decoder` is to be set.

    What transformers' `prepare_inputs_for_generation` picks, a cached step takes as arguments:
    the new tokens alone as `input_ids`, the `past_key_values` that the step before returned, an
    `attention_mask` of all tokens so far where some are padding, then `position_ids` of the new
    ones too, and with cross-attention the `encoder_attention_mask`. `reorder_cache` is
    `Cache.reorder`. `bertjax.generate` does all that.

    Attributes:
      config: the architecture.
      dtype: compute type; parameters stay float32.

    Example:
      >>> import jax
      >>> from bertjax import BertConfig, init_cache
      >>> config = BertConfig.preset("tiny", vocab_size=100, is_decoder=True)
      >>> model = BertLMHeadModel(config)
      >>> params = model.init(jax.random.key(0), model.init_ids)["params"]
      >>> ids, cache = jnp.ones((2, 8), jnp.int32), init_cache(config, 2, max_length=16)
      >>> output = model.apply({"params": params}, ids, past_key_values=cache, logits_to_keep=1)
      >>> output.logits.shape, int(output.past_key_values.length)
      ((2, 1, 100), 8)
    """

    def setup(self) -> None:
        if not self.config.is_decoder:
            _warn_of_encoder()
        self.bert = BertModel(self.config, self.dtype, add_pooling_layer=False)
        self.cls = BertOnlyMLMHead(self.config, self.dtype)

    def __call__(
        self,
        input_ids: Int[Input, "B T"] | None = None,
        attention_mask: Shaped[Input, "B _"] | Shaped[Input, "B T _"] | None = None,
        token_type_ids: Int[Input, "B T"] | None = None,
        position_ids: Int[Input, "#B T"] | None = None,
        head_mask: Float[Input, "..."] | None = None,
        inputs_embeds: Float[Input, "B T D"] | None = None,
        *,
        encoder_hidden_states: Float[Input, "B E _"] | None = None,
        encoder_attention_mask: Shaped[Input, "B _"] | None = None,
        labels: Int[Input, "B T"] | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Int[Input, " N"] = 0,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        deterministic: bool = True,
    ) -> CausalLMOutputWithCrossAttentions:
        """Score the token after each; the other arguments are those of `BertModel`.

        Args:
          labels: the tokens themselves, [B, T]: those before a token predict it, so that the first
            is none that counts. -100 does not count. The loss is 0 where nothing does. With
            padding on the left, give the first real token -100 too: a padded place predicts it.
          logits_to_keep: score the last so many tokens, or those at the given places of every row;
            0 scores all.

        Raises:
          ValueError: labels of another shape, or beside logits of some tokens alone; see
            `BertModel` for the rest.
        """
        rows = inputs_embeds if input_ids is None else input_ids
        positions = None if rows is None else _kept_positions(rows, logits_to_keep)
        if labels is not None and positions is not None:
            raise ValueError("labels need the logits of all tokens: leave out logits_to_keep")
        output = self.bert(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            head_mask,
            inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_positions=positions,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            deterministic=deterministic,
        )
        logits = self.cls(output.last_hidden_state, self.bert.word_embedding_table())
        loss = None
        if labels is not None:
            loss = cross_entropy(logits, next_tokens(labels)).mean()
        return CausalLMOutputWithCrossAttentions(
            loss=loss,
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            cross_attentions=output.cross_attentions,
        )


def next_tokens(labels: Int[Input, "B T"]) -> Int[Array, "B T"]:
    """Return the label of the next token at each token; the last one has none."""
    return jnp.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=IGNORE_INDEX)


def _kept_positions(rows: Input, keep: int | Input) -> Int[Array, "B N"] | None:
    """Return the positions to score, or None for all."""
    batch, length = rows.shape[:2]
    if isinstance(keep, int):
        if not 0 <= keep <= length:
            raise ValueError(f"logits_to_keep is {keep} of {length} tokens")
        if keep == 0:
            return None
        keep = jnp.arange(length - keep, length)
    return jnp.broadcast_to(keep, (batch, keep.shape[0]))


@functools.cache
def _warn_of_encoder() -> None:
    """Say so once: what it predicts, the model has seen."""
    _LOG.warning(
        "BertLMHeadModel without is_decoder: every token sees those after it, which it is to "
        "predict; set is_decoder in the config"
    )

"""BERT without a head as Linen modules: embeddings, pooler, `BertModel`, encoder or decoder.

Axis letters, here and in every annotation: B batch, T tokens of a row, S keys, D hidden size,
H heads, K head size, F feed-forward size, V vocabulary, M masked positions, L layers, E tokens of
an encoder that a decoder attends to.
Parameters carry Hugging Face's names; those of the layers are stacked, `[L, ...]`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Shaped

from bertjax.attention import attention_bias, causal_mask
from bertjax.cache import Cache, check_cache, concrete, init_cache
from bertjax.config import BertConfig
from bertjax.dropout import Dropout
from bertjax.encoder import BertEncoder, gather_positions
from bertjax.errors import InputError
from bertjax.layers import Dense, LayerNorm, kernel_init
from bertjax.module import Input, PretrainedModule
from bertjax.outputs import BertModelOutput
from bertjax.pruning import take_heads
from bertjax.sharding import constrain


class BertEmbeddings(nn.Module):
    """Sum of word, segment and position embeddings, normalised."""

    config: BertConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        config, init = self.config, kernel_init(self.config)

        def word_init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
            table = init(key, shape, dtype)
            pad = config.pad_token_id
            return table if pad is None else table.at[pad].set(0.0)

        def embed(rows: int, init: nn.initializers.Initializer = init) -> nn.Embed:
            return nn.Embed(rows, config.hidden_size, dtype=self.dtype, embedding_init=init)

        self.word_embeddings = embed(config.vocab_size, word_init)
        self.token_type_embeddings = embed(config.type_vocab_size)
        if config.position_embedding_type == "absolute":
            self.position_embeddings = embed(config.max_position_embeddings)
        self.LayerNorm = LayerNorm(config, self.dtype)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def __call__(
        self,
        input_ids: Int[Input, "B T"] | None,
        token_type_ids: Int[Input, "B T"] | None,
        position_ids: Int[Input, "#B T"] | None,
        inputs_embeds: Float[Input, "B T D"] | None,
        *,
        deterministic: bool,
    ) -> Float[Array, "B T D"]:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if input_ids is not None:
            hidden = self._look_up(input_ids)
        else:
            hidden = jnp.asarray(inputs_embeds, self.dtype)
        batch, length = hidden.shape[:2]
        if token_type_ids is None:
            token_type_ids = jnp.zeros((batch, length), jnp.int32)
        hidden += self.token_type_embeddings(token_type_ids)
        if self.config.position_embedding_type == "absolute":
            if position_ids is None:
                position_ids = jnp.arange(length)[None, :]
            hidden += self.position_embeddings(position_ids)
        return self.dropout(self.LayerNorm(hidden), deterministic=deterministic)

    def _look_up(self, input_ids: Int[Input, "B T"]) -> Float[Array, "B T D"]:
        """Look up words; as in torch, a pad token does not train its embedding."""
        hidden = self.word_embeddings(input_ids)
        if self.config.pad_token_id is None:
            return hidden
        is_pad = (input_ids == self.config.pad_token_id)[:, :, None]
        return jnp.where(is_pad, jax.lax.stop_gradient(hidden), hidden)


class BertPooler(nn.Module):
    """tanh of a dense layer over the hidden state of [CLS]."""

    config: BertConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, first: Float[Array, "B ... D"]) -> Float[Array, "B ... D"]:
        return jnp.tanh(
            Dense(self.config, self.config.hidden_size, self.dtype, name="dense")(first)
        )


class BertModel(PretrainedModule):
    """BERT without a head (Devlin et al., arXiv 1810.04805): an encoder, or a decoder.

    With `config.is_decoder` a token attends to those before it alone, and the model reads on from
    a cache where it is given one. With `config.add_cross_attention` it also attends to the output
    of an encoder, whenever it is given that; without, those layers are passed over.

    Attributes:
      config: the architecture.
      dtype: compute type; parameters stay float32.
      add_pooling_layer: also return `pooler_output`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = BertModel(BertConfig.preset("tiny", vocab_size=100))
      >>> ids = jnp.ones((2, 8), jnp.int32)
      >>> params = model.init(jax.random.key(0), ids)["params"]
      >>> model.apply({"params": params}, ids).last_hidden_state.shape
      (2, 8, 128)
    """

    add_pooling_layer: bool = True

    def setup(self) -> None:
        if self.config.add_cross_attention and not self.config.is_decoder:
            raise InputError("add_cross_attention is for decoders: set is_decoder, too")
        self.embeddings = BertEmbeddings(self.config, self.dtype)
        self.encoder = BertEncoder(self.config, self.dtype)
        if self.add_pooling_layer:
            self.pooler = BertPooler(self.config, self.dtype)

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
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_positions: Int[Input, "B Q"] | None = None,
        cls_positions: Int[Input, "B S"] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        deterministic: bool = True,
    ) -> BertModelOutput:
        """Encode a batch of token rows, or read on in them.

        Args:
          input_ids: ids in [0, vocab_size); or give `inputs_embeds`.
          attention_mask: 0 hides a token; [B, T], or [B, T, T] with a row for each query. With
            a cache, its last axis counts all tokens from the first on, up to T new ones behind
            those written, or any number up to the cache's room.
          token_type_ids: segments, 0 by default.
          position_ids: positions, by default 0 to T - 1, or those after the tokens written.
          head_mask: factors of the attention probabilities: [H], [L, H], or [L, B, H, T, T] with
            B or T 1. Any float: gradients reach it. H counts the heads of the full model where
            some are pruned, as `config.pruned_heads` does. Cross-attention has none.
          inputs_embeds: word embeddings in place of `input_ids`.
          encoder_hidden_states: what a decoder with cross-attention attends to, [B, E, D]. A cache
            keeps its keys and values: once there, they are what counts, and this may be None.
          encoder_attention_mask: 0 hides a token of it; [B, E], in every call.
          past_key_values: cache of the tokens before these, see `bertjax.init_cache`.
          use_cache: return the cache with these tokens. None does where one is given; True makes
            one with room for max_position_embeddings tokens where none is.
          output_positions: positions of each row that `last_hidden_state` is wanted of, [B, Q, D];
            the last layer computes no other. The pooler reads the first of them: let it be 0, or
            the first S be `cls_positions`.
          cls_positions: where several texts share a row (see `bertjax.packing`), the position of
            each one's [CLS]: `pooler_output` is that of each, [B, S, D].
          output_attentions: return the attention probabilities.
          output_hidden_states: return the hidden states of every layer.
          deterministic: no dropout; False needs `rngs={"dropout": key}`.

        Raises:
          ValueError: T over max_position_embeddings (but for a cache with places), both or neither
            of the two inputs, a mask of another rank, an argument of decoders for an encoder, or
            one that does not fit; more tokens than the cache has room for, as far as its `length`
            is not traced.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        rows = inputs_embeds if input_ids is None else input_ids
        past = self._cache(rows, past_key_values, use_cache)
        if past is not None and rows is not None and position_ids is None:
            position_ids = (past.length + jnp.arange(rows.shape[1]))[None, :]
        hidden = self.embeddings(
            input_ids, token_type_ids, position_ids, inputs_embeds, deterministic=deterministic
        )
        if self.config.is_decoder:
            attention_mask = _causal_mask(attention_mask, hidden.shape[1], past)
        source, source_mask = self._source(
            hidden, encoder_hidden_states, encoder_attention_mask, past
        )
        output = self.encoder(
            constrain(hidden, "batch"),
            None if attention_mask is None else attention_bias(attention_mask),
            None if head_mask is None else self._layer_head_mask(head_mask),
            output_positions,
            source,
            None if source_mask is None else attention_bias(source_mask),
            past,
            deterministic=deterministic,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        if use_cache is False:
            output = dataclasses.replace(output, past_key_values=None)
        if not self.add_pooling_layer:
            return output
        states = output.last_hidden_state
        if cls_positions is None:
            first = states[:, 0]
        elif output_positions is None:
            first = gather_positions(states, cls_positions)
        else:
            first = states[:, : cls_positions.shape[1]]
        return dataclasses.replace(output, pooler_output=self.pooler(first))

    def _cache(
        self, rows: Input | None, past: Cache | None, use_cache: bool | None
    ) -> Cache | None:
        """Return the cache to write to, an empty one where it is asked for but not given.

        The tokens are checked against the positions, or the room of the cache.
        """
        if (use_cache or past is not None) and not self.config.is_decoder:
            raise ValueError("past_key_values and use_cache are for decoders: is_decoder is off")
        if rows is None:
            return None  # the embeddings refuse that
        if past is not None:  # its tokens may be several at one place
            check_cache(past, self.config, *rows.shape[:2])
            return past
        longest = self.config.max_position_embeddings
        if rows.shape[1] > longest:
            raise ValueError(
                f"sequences of {rows.shape[1]} tokens are over max_position_embeddings {longest}"
            )
        return init_cache(self.config, rows.shape[0], longest, self.dtype) if use_cache else None

    def _source(
        self,
        hidden: jax.Array,
        source: Input | None,
        mask: Input | None,
        past: Cache | None,
    ) -> tuple[jax.Array | None, Input | None]:
        """Check what there is to cross-attend to, and its mask; `init` needs something."""
        config, batch = self.config, hidden.shape[0]
        if not config.add_cross_attention:
            if source is not None or mask is not None:
                raise ValueError(
                    "encoder_hidden_states and encoder_attention_mask are for decoders with "
                    f"cross-attention: is_decoder is {config.is_decoder}, add_cross_attention False"
                )
            return None, None
        if source is None and self.is_initializing():
            source = jnp.zeros((batch, 1, config.hidden_size))
        length = None if source is None else source.shape[1]
        if source is not None and source.shape != (batch, length, config.hidden_size):
            raise ValueError(
                f"encoder_hidden_states of shape {source.shape} do not fit {batch} rows and "
                f"hidden_size {config.hidden_size}"
            )
        if past is not None and past.cross_length is not None:
            kept = past.cross_length
            if source is not None and length != kept:
                raise ValueError(
                    f"encoder_hidden_states of {length} tokens are not those of the cache, which "
                    f"are {kept}"
                )
            source, length = None, kept
        if mask is not None and mask.shape != (batch, length):
            raise ValueError(
                f"encoder_attention_mask of shape {mask.shape} does not fit {batch} rows and "
                f"{length or 'no'} tokens of encoder_hidden_states"
            )
        return None if source is None else constrain(jnp.asarray(source), "batch"), mask

    def _layer_head_mask(self, head_mask: Input) -> Input:
        """Bring a head mask to [L, B or 1, H, T or 1, T or 1]."""
        layers, heads = self.config.num_hidden_layers, self.config.num_attention_heads
        if head_mask.ndim == 1:
            head_mask = jnp.broadcast_to(head_mask, (layers, *head_mask.shape))
        if head_mask.ndim == 2:
            head_mask = head_mask[:, None, :, None, None]
        if head_mask.ndim != 5 or head_mask.shape[0] != layers or head_mask.shape[2] != heads:
            raise ValueError(
                f"head_mask must be [{heads}], [{layers}, {heads}] or [{layers}, B, {heads}, T, T]"
                f"; got shape {head_mask.shape}"
            )
        if self.config.pruned_heads:
            kept, room = self.config.kept_heads, self.config.num_stored_heads
            head_mask = take_heads(head_mask, 2, kept, room)
        return head_mask

    def word_embedding_table(self) -> Float[Array, "V D"]:
        """Return the word embeddings, which a tied decoder shares."""
        return self.embeddings.word_embeddings.embedding


def _causal_mask(mask: Input | None, tokens: int, past: Cache | None) -> jax.Array:
    """Return the mask of a decoder that reads some tokens behind those of the cache."""
    if past is None:
        return causal_mask(mask, tokens, tokens)
    written = concrete(past.length)
    if mask is not None and written is not None and mask.shape[-1] < written + tokens:
        raise ValueError(
            f"attention_mask of {mask.shape[-1]} tokens is short of the {written} in the cache and "
            f"{tokens} new ones"
        )
    return causal_mask(mask, tokens, past.max_length, past.length)

"""The BERT encoder as Linen modules: embeddings, layers under one scan, pooler, `BertModel`.

Axis letters, here and in every annotation: B batch, T tokens of a row, S keys, D hidden size,
H heads, K head size, F feed-forward size, V vocabulary, M masked positions, L layers.
Parameters carry Hugging Face's names; those of the layers are stacked, `[L, ...]`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Shaped

from bertjax.activations import activation
from bertjax.attention import (
    attention_bias,
    dot_product_attention,
    relative_scores,
)
from bertjax.config import BertConfig
from bertjax.dropout import Dropout
from bertjax.layers import Dense, LayerNorm, kernel_init
from bertjax.module import Input, PretrainedModule
from bertjax.outputs import BertModelOutput
from bertjax.pruning import take_heads, zero_surplus_heads
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
        if length > self.config.max_position_embeddings:
            raise ValueError(
                f"sequences of {length} tokens are over max_position_embeddings "
                f"{self.config.max_position_embeddings}"
            )
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


class BertSelfAttention(nn.Module):
    """Queries, keys and values of one layer, and attention over them."""

    config: BertConfig
    dtype: DTypeLike
    deterministic: bool

    @nn.compact
    def __call__(
        self,
        asking: Float[Array, "B Q D"],
        hidden: Float[Array, "B T D"],
        bias: Float[Array, "B 1 _ T"] | None,
        head_mask: Float[Input, "..."] | None,
    ) -> tuple[Float[Array, "B Q H K"], Float[Array, "B H Q T"]]:
        config = self.config
        features = (config.num_stored_heads, config.head_size)
        query, key, value = (
            Dense(config, features, self.dtype, name=name)(x)
            for name, x in (("query", asking), ("key", hidden), ("value", hidden))
        )
        extra_scores = None
        if config.position_embedding_type != "absolute":
            distances = 2 * config.max_position_embeddings - 1
            table = nn.Embed(
                distances,
                config.head_size,
                dtype=self.dtype,
                embedding_init=kernel_init(config),
                name="distance_embedding",
            ).embedding
            with_key = config.position_embedding_type == "relative_key_query"
            extra_scores = relative_scores(query, key, table.astype(self.dtype), with_key=with_key)
        rate = 0.0 if self.deterministic else config.attention_probs_dropout_prob
        return dot_product_attention(
            query,
            key,
            value,
            bias,
            extra_scores=extra_scores,
            head_mask=head_mask,
            dropout_rate=rate,
            dropout_key=self.make_rng("dropout") if rate > 0.0 else None,
        )


class BertOutput(nn.Module):
    """Dense layer back to the hidden size, dropout, residual and LayerNorm."""

    config: BertConfig
    dtype: DTypeLike
    deterministic: bool
    input_axes: int = 1

    @nn.compact
    def __call__(
        self, x: Float[Array, "B Q ..."], residual: Float[Array, "B Q D"]
    ) -> Float[Array, "B Q D"]:
        config = self.config
        x = Dense(config, config.hidden_size, self.dtype, self.input_axes, name="dense")(x)
        x = Dropout(config.hidden_dropout_prob)(x, deterministic=self.deterministic)
        return LayerNorm(config, self.dtype, name="LayerNorm")(x + residual)


class BertAttention(nn.Module):
    """Self-attention with its output layer."""

    config: BertConfig
    dtype: DTypeLike
    deterministic: bool

    @nn.compact
    def __call__(
        self,
        asking: Float[Array, "B Q D"],
        hidden: Float[Array, "B T D"],
        bias: Float[Array, "B 1 _ T"] | None,
        head_mask: Float[Input, "..."] | None,
    ) -> tuple[Float[Array, "B Q D"], Float[Array, "B H Q T"]]:
        args = self.config, self.dtype, self.deterministic
        context, probs = BertSelfAttention(*args, name="self")(asking, hidden, bias, head_mask)
        return BertOutput(*args, input_axes=2, name="output")(context, asking), probs


class BertIntermediate(nn.Module):
    """First half of the feed-forward layer, with its activation."""

    config: BertConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, hidden: Float[Array, "B Q D"]) -> Float[Array, "B Q F"]:
        x = Dense(self.config, self.config.intermediate_size, self.dtype, name="dense")(hidden)
        return activation(self.config.hidden_act)(x)


class BertLayer(nn.Module):
    """One post-LayerNorm transformer layer, in the form that `nn.scan` runs over.

    Given positions, it computes its output there alone: attention still reads all tokens.
    """

    config: BertConfig
    dtype: DTypeLike
    deterministic: bool
    output_hidden_states: bool
    output_attentions: bool

    @nn.compact
    def __call__(
        self,
        hidden: Float[Array, "B T D"],
        head_mask: Float[Input, "..."] | None,
        bias: Float[Array, "B 1 _ T"] | None,
        positions: Int[Input, "B Q"] | None,
    ) -> tuple[jax.Array, tuple[jax.Array | None, jax.Array | None]]:
        args = self.config, self.dtype, self.deterministic
        asking = hidden
        if positions is not None:
            asking = gather_positions(hidden, positions)
            bias = None if bias is None else _rows_of(bias, positions)
            head_mask = None if head_mask is None else _rows_of(head_mask, positions)
        attended, probs = BertAttention(*args, name="attention")(asking, hidden, bias, head_mask)
        x = BertIntermediate(self.config, self.dtype, name="intermediate")(attended)
        hidden = constrain(BertOutput(*args, name="output")(x, attended), "batch")
        return hidden, (
            hidden if self.output_hidden_states else None,
            probs if self.output_attentions else None,
        )


class BertEncoder(nn.Module):
    """The layers, as one scan over stacked parameters."""

    config: BertConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        hidden: Float[Array, "B T D"],
        bias: Float[Array, "B 1 _ T"] | None,
        head_mask: Float[Input, "L ..."] | None,
        positions: Int[Input, "B Q"] | None,
        *,
        deterministic: bool,
        output_hidden_states: bool,
        output_attentions: bool,
    ) -> BertModelOutput:
        """Run the layers; given positions, `last_hidden_state` is that of these, [B, Q, D]."""
        config, flags = self.config, (output_hidden_states, output_attentions)
        # Inside a loop nothing can undo the recomputation; unrolled layers need the barrier.
        layer_class = (
            nn.remat(BertLayer, prevent_cse=config.scan_unroll != 1) if config.remat else BertLayer
        )
        layer = layer_class(config, self.dtype, deterministic, *flags, name="layer")
        relative = config.position_embedding_type != "absolute"
        if positions is None or any(flags) or relative or self.is_initializing():
            last, (states, probs) = self._scan(layer, hidden, head_mask, bias)
            return BertModelOutput(
                last_hidden_state=last if positions is None else gather_positions(last, positions),
                hidden_states=None if states is None else (hidden, *states),
                attentions=None if probs is None else tuple(probs),
            )
        before_last = config.num_hidden_layers - 1
        if before_last:
            mask = None if head_mask is None else head_mask[:before_last]
            hidden, _ = self._scan(layer, hidden, mask, bias, before_last)
        mask = None if head_mask is None else head_mask[-1]
        last, _ = self._with_layers(_call, lambda stacked: stacked[-1])(
            layer, hidden, mask, bias, positions
        )
        return BertModelOutput(last_hidden_state=last)

    def _scan(
        self,
        layer: nn.Module,
        hidden: Float[Array, "B T D"],
        head_mask: Float[Input, "N ..."] | None,
        bias: Float[Array, "B 1 _ T"] | None,
        count: int | None = None,
    ) -> tuple[jax.Array, tuple[jax.Array | None, jax.Array | None]]:
        """Run the first `count` layers, or all."""
        layers = count or self.config.num_hidden_layers
        scan = nn.scan(
            _call,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=layers,
            unroll=self.config.scan_unroll or layers,
        )
        pick = None if count is None else lambda stacked: stacked[:count]
        return self._with_layers(scan, pick)(layer, hidden, head_mask, bias, None)

    def _with_layers(
        self, function: Callable[..., Any], pick: Callable[[jax.Array], jax.Array] | None
    ) -> Callable[..., Any]:
        """Return `function` of a module, for some of the layers that its parameters are stacked of.

        Where a layer keeps fewer heads than are stored, nothing but zeros may act.
        """
        config = self.config
        surplus = min(map(len, config.kept_heads)) < config.num_stored_heads
        if pick is None and not surplus:
            return function

        def view(layers: Any) -> Any:
            layers = zero_surplus_heads(layers, config) if surplus else layers
            return layers if pick is None else jax.tree.map(pick, layers)

        return nn.map_variables(function, "params", view, init=self.is_initializing())


def _call(layer: nn.Module, *inputs: Any) -> Any:
    return layer(*inputs)


def gather_positions(
    hidden: Float[Array, "B T D"], positions: Int[Input, "B Q"]
) -> Float[Array, "B Q D"]:
    """Pick the hidden states at the given positions of each row."""
    return jnp.take_along_axis(hidden, positions[:, :, None], axis=1)


def _rows_of(table: Float[Input, "... T"], positions: Int[Input, "B Q"]) -> Float[Array, "... T"]:
    """Pick the queries' rows of a bias or a head mask, where it has one for each query."""
    if table.shape[-2] == 1:
        return jnp.asarray(table)
    return jnp.take_along_axis(table, positions[:, None, :, None], axis=-2)


class BertPooler(nn.Module):
    """tanh of a dense layer over the first token."""

    config: BertConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B D"]:
        first = hidden[:, 0]
        return jnp.tanh(
            Dense(self.config, self.config.hidden_size, self.dtype, name="dense")(first)
        )


class BertModel(PretrainedModule):
    """The encoder without a head (Devlin et al., arXiv 1810.04805).

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
        if self.config.is_decoder or self.config.add_cross_attention:
            raise ValueError(
                "BertModel only encodes: is_decoder and add_cross_attention must be off"
            )
        self.embeddings = BertEmbeddings(self.config, self.dtype)
        self.encoder = BertEncoder(self.config, self.dtype)
        if self.add_pooling_layer:
            self.pooler = BertPooler(self.config, self.dtype)

    def __call__(
        self,
        input_ids: Int[Input, "B T"] | None = None,
        attention_mask: Shaped[Input, "B T"] | Shaped[Input, "B T T"] | None = None,
        token_type_ids: Int[Input, "B T"] | None = None,
        position_ids: Int[Input, "#B T"] | None = None,
        head_mask: Float[Input, "..."] | None = None,
        inputs_embeds: Float[Input, "B T D"] | None = None,
        *,
        output_positions: Int[Input, "B Q"] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        deterministic: bool = True,
    ) -> BertModelOutput:
        """Encode a batch of token rows.

        Args:
          input_ids: ids in [0, vocab_size); or give `inputs_embeds`.
          attention_mask: 0 hides a token; [B, T], or [B, T, T] with a row for each query.
          token_type_ids: segments, 0 by default.
          position_ids: positions, 0 to T - 1 by default.
          head_mask: factors of the attention probabilities: [H], [L, H], or [L, B, H, T, T] with
            B or T 1. Any float: gradients reach it. H counts the heads of the full model where
            some are pruned, as `config.pruned_heads` does.
          inputs_embeds: word embeddings in place of `input_ids`.
          output_positions: positions of each row that `last_hidden_state` is wanted of, [B, Q, D];
            the last layer computes no other. The pooler reads the first of them: let it be 0.
          output_attentions: return the attention probabilities.
          output_hidden_states: return the hidden states of every layer.
          deterministic: no dropout; False needs `rngs={"dropout": key}`.

        Raises:
          ValueError: T over max_position_embeddings, both or neither of the two inputs, a mask of
            another rank.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        hidden = self.embeddings(
            input_ids, token_type_ids, position_ids, inputs_embeds, deterministic=deterministic
        )
        output = self.encoder(
            constrain(hidden, "batch"),
            None if attention_mask is None else attention_bias(attention_mask),
            None if head_mask is None else self._layer_head_mask(head_mask),
            output_positions,
            deterministic=deterministic,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        if not self.add_pooling_layer:
            return output
        pooled = self.pooler(output.last_hidden_state)
        return dataclasses.replace(output, pooler_output=pooled)

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

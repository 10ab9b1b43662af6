"""The layers of BERT and the scan over them: attention, feed-forward layer, encoder.

Axis letters as in `bertjax.model`; E counts the tokens of an encoder that a decoder attends to.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from bertjax.activations import activation
from bertjax.attention import dot_product_attention, relative_scores
from bertjax.cache import Cache
from bertjax.config import BertConfig
from bertjax.dropout import Dropout
from bertjax.layers import Dense, LayerNorm, kernel_init
from bertjax.module import Input
from bertjax.outputs import BertModelOutput
from bertjax.pruning import zero_surplus_heads
from bertjax.sharding import constrain


class BertSelfAttention(nn.Module):
    """Queries, keys and values of one layer, and attention over them.

    Given a cache it adds its keys and values there, and attends to all that there is room for.
    """

    config: BertConfig
    dtype: DTypeLike
    deterministic: bool

    @nn.compact
    def __call__(
        self,
        asking: Float[Array, "B Q D"],
        hidden: Float[Array, "B T D"],
        bias: Float[Array, "#B 1 _ S"] | None,
        head_mask: Float[Input, "..."] | None,
        past: Cache | None = None,
        layer: Int[Array, ""] | int | None = None,
    ) -> tuple[Float[Array, "B Q H K"], Float[Array, "B H Q S"], Cache | None]:
        config = self.config
        features = (config.num_stored_heads, config.head_size)
        query, key, value = (
            Dense(config, features, self.dtype, name=name)(x)
            for name, x in (("query", asking), ("key", hidden), ("value", hidden))
        )
        first, places = None, None
        if past is not None:
            assert layer is not None  # a cache is one of all layers
            first, places, past = past.length, past.places, past.write(layer, key, value)
            key, value = (kept.astype(self.dtype) for kept in past.read(layer))
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
            extra_scores = relative_scores(
                query, key, table.astype(self.dtype), with_key=with_key, first=first, places=places
            )
        context, probs = dot_product_attention(
            query,
            key,
            value,
            bias,
            extra_scores=extra_scores,
            head_mask=head_mask,
            **_probs_dropout(self),
        )
        return context, probs, past


class BertCrossAttention(nn.Module):
    """Queries of one layer of a decoder, and attention over an encoder's output."""

    config: BertConfig
    dtype: DTypeLike
    deterministic: bool

    @nn.compact
    def __call__(
        self,
        asking: Float[Array, "B Q D"],
        source: Float[Array, "B E D"] | None,
        bias: Float[Array, "B 1 1 E"] | None,
        past: Cache | None = None,
        layer: Int[Array, ""] | int | None = None,
    ) -> tuple[
        Float[Array, "B Q H K"],
        Float[Array, "B H Q E"],
        tuple[Float[Array, "B E H K"], Float[Array, "B E H K"]],
    ]:
        """Attend to `source`, or to the keys and values of it that the cache has; return those."""
        config = self.config

        def heads_of(name: str, x: jax.Array) -> jax.Array:
            features = (config.num_attention_heads, config.head_size)
            return Dense(config, features, self.dtype, name=name)(x)

        query = heads_of("query", asking)
        if past is not None and past.cross_key is not None:
            assert layer is not None  # a cache is one of all layers
            key, value = (kept.astype(self.dtype) for kept in past.read_cross(layer))
        else:
            assert source is not None  # or else this layer is not called
            key, value = heads_of("key", source), heads_of("value", source)
        context, probs = dot_product_attention(query, key, value, bias, **_probs_dropout(self))
        return context, probs, (key, value)


def _probs_dropout(attention: BertSelfAttention | BertCrossAttention) -> dict[str, Any]:
    """Return the arguments of `dot_product_attention` for dropout of the probabilities."""
    rate = 0.0 if attention.deterministic else attention.config.attention_probs_dropout_prob
    return {
        "dropout_rate": rate,
        "dropout_key": attention.make_rng("dropout") if rate > 0.0 else None,
    }


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
    """Attention of either kind, with its output layer."""

    config: BertConfig
    dtype: DTypeLike
    deterministic: bool
    kind: type[BertSelfAttention] | type[BertCrossAttention] = BertSelfAttention

    @nn.compact
    def __call__(
        self, asking: Float[Array, "B Q D"], *inputs: Any
    ) -> tuple[Float[Array, "B Q D"], Float[Array, "B H Q S"], Any]:
        """Return the output, the probabilities, and what the kind of attention hands on."""
        args = self.config, self.dtype, self.deterministic
        context, probs, kept = self.kind(*args, name="self")(asking, *inputs)
        return BertOutput(*args, input_axes=2, name="output")(context, asking), probs, kept


class BertIntermediate(nn.Module):
    """First half of the feed-forward layer, with its activation."""

    config: BertConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, hidden: Float[Array, "B Q D"]) -> Float[Array, "B Q F"]:
        x = Dense(self.config, self.config.intermediate_size, self.dtype, name="dense")(hidden)
        return activation(self.config.hidden_act)(x)


LayerOutput = tuple[jax.Array | None, jax.Array | None, jax.Array | None, Any]
"""Hidden states, probabilities, those of the cross-attention, and its new keys and values."""


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
        carry: tuple[Float[Array, "B T D"], Cache | None],
        head_mask: Float[Input, "..."] | None,
        layer: Int[Array, ""] | int | None,
        positions: Int[Input, "B Q"] | None,
        bias: Float[Array, "#B 1 _ S"] | None,
        source: Float[Array, "B E D"] | None,
        source_bias: Float[Array, "B 1 1 E"] | None,
    ) -> tuple[tuple[jax.Array, Cache | None], LayerOutput]:
        args = self.config, self.dtype, self.deterministic
        hidden, past = carry
        asking = hidden
        if positions is not None:
            asking = gather_positions(hidden, positions)
            bias = None if bias is None else _rows_of(bias, positions)
            head_mask = None if head_mask is None else _rows_of(head_mask, positions)
        attended, probs, past = BertAttention(*args, name="attention")(
            asking, hidden, bias, head_mask, past, layer
        )
        cross_probs, cross = None, None
        crossed = past is not None and past.cross_key is not None
        if source is not None or crossed:
            attended, cross_probs, cross = BertAttention(
                *args, BertCrossAttention, name="crossattention"
            )(attended, source, source_bias, past, layer)
        x = BertIntermediate(self.config, self.dtype, name="intermediate")(attended)
        hidden = constrain(BertOutput(*args, name="output")(x, attended), "batch")
        return (hidden, past), (
            hidden if self.output_hidden_states else None,
            probs if self.output_attentions else None,
            cross_probs if self.output_attentions else None,
            cross if past is not None and not crossed else None,
        )


class BertEncoder(nn.Module):
    """The layers, as one scan over stacked parameters: those of an encoder or of a decoder."""

    config: BertConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        hidden: Float[Array, "B T D"],
        bias: Float[Array, "#B 1 _ S"] | None,
        head_mask: Float[Input, "L ..."] | None,
        positions: Int[Input, "B Q"] | None,
        source: Float[Array, "B E D"] | None = None,
        source_bias: Float[Array, "B 1 1 E"] | None = None,
        past: Cache | None = None,
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
        shared, tokens = (bias, source, source_bias), hidden.shape[1]
        if positions is None or any(flags) or relative or self.is_initializing():
            (last, past), output = self._scan(layer, (hidden, past), head_mask, shared)
            states, probs, cross_probs, cross = output
            return BertModelOutput(
                last_hidden_state=last if positions is None else gather_positions(last, positions),
                hidden_states=None if states is None else (hidden, *states),
                past_key_values=_advanced(past, tokens, cross),
                attentions=None if probs is None else tuple(probs),
                cross_attentions=None if cross_probs is None else tuple(cross_probs),
            )
        before_last, cross = config.num_hidden_layers - 1, None
        if before_last:
            mask = None if head_mask is None else head_mask[:before_last]
            (hidden, past), (*_, cross) = self._scan(
                layer, (hidden, past), mask, shared, before_last
            )
        mask = None if head_mask is None else head_mask[-1]
        (last, past), (*_, last_cross) = self._with_layers(_call, lambda stacked: stacked[-1])(
            layer, (hidden, past), mask, before_last, positions, *shared
        )
        last_cross = jax.tree.map(lambda x: x[None], last_cross)
        if cross is not None:
            last_cross = jax.tree.map(lambda *x: jnp.concatenate(x), cross, last_cross)
        return BertModelOutput(
            last_hidden_state=last, past_key_values=_advanced(past, tokens, last_cross)
        )

    def _scan(
        self,
        layer: nn.Module,
        carry: tuple[Float[Array, "B T D"], Cache | None],
        head_mask: Float[Input, "N ..."] | None,
        shared: tuple[jax.Array | None, ...],
        count: int | None = None,
    ) -> tuple[tuple[jax.Array, Cache | None], LayerOutput]:
        """Run the first `count` layers, or all."""
        layers = count or self.config.num_hidden_layers
        scan = nn.scan(
            _call,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, 0, *[nn.broadcast] * (1 + len(shared))),
            length=layers,
            unroll=self.config.scan_unroll or layers,
        )
        pick = None if count is None else lambda stacked: stacked[:count]
        numbers = None if carry[1] is None else jnp.arange(layers)
        return self._with_layers(scan, pick)(layer, carry, head_mask, numbers, None, *shared)

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


def _advanced(
    past: Cache | None, tokens: int, cross: tuple[jax.Array, jax.Array] | None
) -> Cache | None:
    """Return the cache with the tokens counted that all layers have written, and what is new."""
    if past is None:
        return None
    past = dataclasses.replace(past, length=past.length + tokens)
    if cross is None:
        return past
    key, value = (stacked.swapaxes(2, 3).astype(past.key.dtype) for stacked in cross)
    return dataclasses.replace(past, cross_key=key, cross_value=value)


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

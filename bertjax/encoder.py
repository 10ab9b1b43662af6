"""The layers of BERT and the scan over them: attention, feed-forward layer, encoder.

Axis letters as in `bertjax.model`; E counts the tokens of an encoder that a decoder attends to.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from bertjax.activations import activation
from bertjax.attention import dot_product_attention, relative_scores
from bertjax.cache import Cache, LayerCache
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
        past: LayerCache | None = None,
        first: Int[Array, ""] | None = None,
        places: Int[Array, " S"] | None = None,
    ) -> tuple[Float[Array, "B Q H K"], Float[Array, "B H Q S"], LayerCache | None]:
        config = self.config
        features = (config.num_stored_heads, config.head_size)
        query, key, value = (
            Dense(config, features, self.dtype, name=name)(x)
            for name, x in (("query", asking), ("key", hidden), ("value", hidden))
        )
        if past is not None:
            assert first is not None  # a cache says how long it is
            past = past.write(first, key, value)
            key, value = past.read(self.dtype)
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
        past: LayerCache | None = None,
    ) -> tuple[Float[Array, "B Q H K"], Float[Array, "B H Q E"], LayerCache | None]:
        """Attend to `source`, or to the keys and values of it that the cache has."""
        config = self.config

        def heads_of(name: str, x: jax.Array) -> jax.Array:
            features = (config.num_attention_heads, config.head_size)
            return Dense(config, features, self.dtype, name=name)(x)

        query = heads_of("query", asking)
        kept = None if past is None else past.read_cross(self.dtype)
        if kept is None:
            assert source is not None  # or else this layer is not called
            kept = heads_of("key", source), heads_of("value", source)
            past = None if past is None else past.write_cross(*kept)
        context, probs = dot_product_attention(query, *kept, bias, **_probs_dropout(self))
        return context, probs, past


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
    ) -> tuple[Float[Array, "B Q D"], Float[Array, "B H Q S"], LayerCache | None]:
        """Return the output, the probabilities, and the cache with what is new."""
        args = self.config, self.dtype, self.deterministic
        context, probs, past = self.kind(*args, name="self")(asking, *inputs)
        return BertOutput(*args, input_axes=2, name="output")(context, asking), probs, past


class BertIntermediate(nn.Module):
    """First half of the feed-forward layer, with its activation."""

    config: BertConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, hidden: Float[Array, "B Q D"]) -> Float[Array, "B Q F"]:
        x = Dense(self.config, self.config.intermediate_size, self.dtype, name="dense")(hidden)
        return activation(self.config.hidden_act)(x)


LayerOutput = tuple[Any, Any, Any, Any]
"""Hidden states, probabilities, those of the cross-attention, and the cache; None: not wanted."""


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
        past: LayerCache | None,
        positions: Int[Input, "B Q"] | None,
        bias: Float[Array, "#B 1 _ S"] | None,
        source: Float[Array, "B E D"] | None,
        source_bias: Float[Array, "B 1 1 E"] | None,
        *place: jax.Array | None,
    ) -> tuple[jax.Array, LayerOutput]:
        """Run the layer; `place` is the cache's length and its places, of all layers alike."""
        args = self.config, self.dtype, self.deterministic
        asking = hidden
        if positions is not None:
            asking = gather_positions(hidden, positions)
            bias = None if bias is None else _rows_of(bias, positions)
            head_mask = None if head_mask is None else _rows_of(head_mask, positions)
        attended, probs, past = BertAttention(*args, name="attention")(
            asking, hidden, bias, head_mask, past, *place
        )
        cross_probs = None
        if source is not None or (past is not None and past.cross_key is not None):
            attended, cross_probs, past = BertAttention(
                *args, BertCrossAttention, name="crossattention"
            )(attended, source, source_bias, past)
        x = BertIntermediate(self.config, self.dtype, name="intermediate")(attended)
        hidden = constrain(BertOutput(*args, name="output")(x, attended), "batch")
        return hidden, (
            hidden if self.output_hidden_states else None,
            probs if self.output_attentions else None,
            cross_probs if self.output_attentions else None,
            past,
        )


class BertEncoder(nn.Module):
    """The layers, of an encoder or of a decoder, as one scan over stacked parameters.

    With a cache they are run one by one: each has arrays of its own there.
    """

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
        shared = bias, source, source_bias
        relative = config.position_embedding_type != "absolute"
        # Where nobody asks for more, the last layer computes the positions alone.
        alone = not (any(flags) or relative or self.is_initializing())
        at_last = positions if alone else None
        if past is None:
            last, outputs = self._scan_all(layer, hidden, head_mask, at_last, shared)
        else:
            if self.is_initializing():  # only the scan can make stacked parameters
                self._scan_all(layer, hidden, None, None, (None, source, None))
            last, outputs = self._one_by_one(layer, hidden, head_mask, at_last, shared, past)
        states, probs, cross_probs, caches = outputs
        if positions is not None and not alone:
            last = gather_positions(last, positions)
        if past is not None:
            written = past.length + hidden.shape[1]
            past = dataclasses.replace(past, layers=caches, length=written)
        return BertModelOutput(
            last_hidden_state=last,
            hidden_states=None if states is None else (hidden, *states),
            past_key_values=past,
            attentions=None if probs is None else tuple(probs),
            cross_attentions=None if cross_probs is None else tuple(cross_probs),
        )

    def _one_by_one(
        self,
        layer: nn.Module,
        hidden: Float[Array, "B T D"],
        head_mask: Float[Input, "L ..."] | None,
        positions: Int[Input, "B Q"] | None,
        shared: tuple[jax.Array | None, ...],
        past: Cache,
    ) -> tuple[jax.Array, LayerOutput]:
        """Run all layers with a cache, the last at some positions alone where they are given."""
        outputs = []
        for number, kept in enumerate(past.layers):
            own = self._with_layers(_call, itemgetter(number))
            mask = None if head_mask is None else head_mask[number]
            at = positions if number == len(past.layers) - 1 else None
            hidden, output = own(layer, hidden, mask, kept, at, *shared, past.length, past.places)
            outputs.append(output)
        states, probs, cross_probs, caches = (
            None if of_layers[0] is None else of_layers for of_layers in zip(*outputs, strict=True)
        )
        return hidden, (states, probs, cross_probs, caches)

    def _scan_all(
        self,
        layer: nn.Module,
        hidden: Float[Array, "B T D"],
        head_mask: Float[Input, "L ..."] | None,
        positions: Int[Input, "B Q"] | None,
        shared: tuple[jax.Array | None, ...],
    ) -> tuple[jax.Array, LayerOutput]:
        """Run all layers, the last at some positions alone where they are given."""
        layers = self.config.num_hidden_layers
        outputs: tuple[jax.Array, LayerOutput]
        if positions is None:
            run = self._with_layers(self._scan(layers), None)
            outputs = run(layer, hidden, head_mask, None, None, *shared)
            return outputs

        def run_last_apart(layer: nn.Module, hidden: jax.Array) -> Any:
            first_masks, mask = (
                (None, None) if head_mask is None else (head_mask[:-1], head_mask[-1])
            )
            if layers > 1:
                scan = _on_part(self._scan(layers - 1), itemgetter(0))
                hidden, _ = scan(layer, hidden, first_masks, None, None, *shared)
            last = _on_part(_call, lambda parts: parts[1][0])
            return last(layer, hidden, mask, None, positions, *shared)

        # One split in place of two slices, whose gradients would be padded and added.
        split = partial(jax.lax.split, sizes=(layers - 1, 1))
        outputs = self._with_layers(run_last_apart, split)(layer, hidden)
        return outputs

    def _scan(self, layers: int) -> Callable[..., Any]:
        """Return what runs a layer so many times, each with parameters of its own."""
        of_all_layers = 5  # inputs: all but the hidden states and the head masks
        return nn.scan(
            _call,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, *[nn.broadcast] * of_all_layers),
            length=layers,
            unroll=self.config.scan_unroll or layers,
        )

    def _with_layers(
        self, function: Callable[..., Any], pick: Callable[[jax.Array], Any] | None
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

        made_here = self.is_initializing() and pick is None
        return nn.map_variables(function, "params", view, init=made_here)


def _call(layer: nn.Module, *inputs: Any) -> Any:
    return layer(*inputs)


def _on_part(
    function: Callable[..., Any], pick: Callable[[list[jax.Array]], jax.Array]
) -> Callable[..., Any]:
    """Return `function` of a module, for one of the parts that its parameters are split into."""

    def view(parts: Any) -> Any:
        return jax.tree.map(pick, parts, is_leaf=lambda node: isinstance(node, list))

    return nn.map_variables(function, "params", view)


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

"""The heads on top of `BertModel`, with Hugging Face's names, arguments and outputs."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Shaped

from bertjax.activations import activation
from bertjax.config import BertConfig
from bertjax.layers import Dense, LayerNorm, kernel_init
from bertjax.losses import pretraining_loss
from bertjax.model import BertModel
from bertjax.module import Input, PretrainedModule


@struct.dataclass
class BertForPreTrainingOutput:
    """Output of `BertForPreTraining`; what was not asked for is None.

    Attributes:
      loss: scalar, where both kinds of labels were given.
      prediction_logits: [B, T, V], or [B, M, V] for `mlm_positions`.
      seq_relationship_logits: [B, 2]: next sentence, random sentence.
      hidden_states: see `BertModelOutput`.
      attentions: see `BertModelOutput`.
    """

    loss: jax.Array | None = None
    prediction_logits: jax.Array | None = None
    seq_relationship_logits: jax.Array | None = None
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None


def gather_positions(
    hidden: Float[Array, "B T D"], positions: Int[Input, "B M"]
) -> Float[Array, "B M D"]:
    """Pick the hidden states at the given positions of each row."""
    return jnp.take_along_axis(hidden, positions[:, :, None], axis=1)


class BertPredictionHeadTransform(nn.Module):
    """Dense layer, activation and LayerNorm before the MLM decoder."""

    config: BertConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, hidden: Float[Array, "B M D"]) -> Float[Array, "B M D"]:
        x = Dense(self.config, self.config.hidden_size, self.dtype, name="dense")(hidden)
        x = activation(self.config.hidden_act)(x)
        return LayerNorm(self.config, self.dtype, name="LayerNorm")(x)


class BertPredictions(nn.Module):
    """The MLM head: transform, then scores of the vocabulary in float32."""

    config: BertConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "B M D"], embedding: Float[Array, "V D"]
    ) -> Float[Array, "B M V"]:
        config = self.config
        hidden = BertPredictionHeadTransform(config, self.dtype, name="transform")(hidden)
        if config.tie_word_embeddings:
            logits = jnp.einsum(
                "bmd,vd->bmv",
                hidden,
                embedding.astype(self.dtype),
                preferred_element_type=jnp.float32,
            )
        else:
            logits = nn.Dense(
                config.vocab_size,
                use_bias=False,
                dtype=self.dtype,
                kernel_init=kernel_init(config),
                name="decoder",
            )(hidden).astype(jnp.float32)
        return logits + self.param("bias", nn.initializers.zeros, (config.vocab_size,))


class BertPreTrainingHeads(nn.Module):
    """MLM head and next-sentence classifier."""

    config: BertConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        hidden: Float[Array, "B M D"],
        pooled: Float[Array, "B D"],
        embedding: Float[Array, "V D"],
    ) -> tuple[Float[Array, "B M V"], Float[Array, "B 2"]]:
        prediction_logits = BertPredictions(self.config, self.dtype, name="predictions")(
            hidden, embedding
        )
        seq_relationship_logits = Dense(self.config, 2, self.dtype, name="seq_relationship")(pooled)
        return prediction_logits, seq_relationship_logits


class BertForPreTraining(PretrainedModule):
    """BERT with its two pretraining heads: masked tokens and next sentence.

    Attributes:
      config: the architecture.
      dtype: compute type; parameters stay float32.

    Example:
      >>> model = BertForPreTraining(BertConfig.preset("tiny", vocab_size=100))
      >>> ids = jnp.ones((2, 8), jnp.int32)
      >>> params = model.init(jax.random.key(0), ids)["params"]
      >>> model.apply({"params": params}, ids).prediction_logits.shape
      (2, 8, 100)
    """

    def setup(self) -> None:
        self.bert = BertModel(self.config, self.dtype)
        self.cls = BertPreTrainingHeads(self.config, self.dtype)

    def __call__(
        self,
        input_ids: Int[Input, "B T"] | None = None,
        attention_mask: Shaped[Input, "B T"] | Shaped[Input, "B T T"] | None = None,
        token_type_ids: Int[Input, "B T"] | None = None,
        position_ids: Int[Input, "#B T"] | None = None,
        head_mask: Float[Input, "..."] | None = None,
        inputs_embeds: Float[Input, "B T D"] | None = None,
        *,
        mlm_positions: Int[Input, "B M"] | None = None,
        labels: Int[Input, "B _"] | None = None,
        next_sentence_label: Int[Input, " B"] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        deterministic: bool = True,
    ) -> BertForPreTrainingOutput:
        """Score masked tokens and sentence pairs; the other arguments are those of `BertModel`.

        Args:
          mlm_positions: positions to score; None scores all. Training never needs [B, T, V].
          labels: ids at the scored positions, [B, T] or [B, M]; -100 does not count.
          next_sentence_label: 0 where B follows A, 1 where it is random; -100 does not count.
            The loss is there when both labels are, each part 0 where nothing counts.
        """
        output = self.bert(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            head_mask,
            inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            deterministic=deterministic,
        )
        hidden, pooled = output.last_hidden_state, output.pooler_output
        assert pooled is not None  # the model above has a pooler
        if mlm_positions is not None:
            hidden = gather_positions(hidden, mlm_positions)
        prediction_logits, seq_relationship_logits = self.cls(
            hidden, pooled, self.bert.word_embedding_table()
        )
        loss = None
        if labels is not None and next_sentence_label is not None:
            loss = pretraining_loss(
                prediction_logits, labels, seq_relationship_logits, next_sentence_label
            )
        return BertForPreTrainingOutput(
            loss=loss,
            prediction_logits=prediction_logits,
            seq_relationship_logits=seq_relationship_logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

"""The pretraining heads on top of `BertModel`, together and alone, with Hugging Face's names.

Scores are float32 whatever the compute type. The heads of tasks are in `bertjax.task_heads`.
"""

import abc
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Shaped

from bertjax.activations import activation
from bertjax.config import BertConfig
from bertjax.layers import Dense, LayerNorm, kernel_init, transposed_product
from bertjax.losses import LossSum, cross_entropy, pretraining_loss
from bertjax.model import BertModel
from bertjax.module import Input, PretrainedModule
from bertjax.outputs import (
    BertForPreTrainingOutput,
    HeadOutput,
    MaskedLMOutput,
    NextSentencePredictorOutput,
)


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
            flat = hidden.reshape(-1, hidden.shape[-1])
            logits = transposed_product(flat, embedding.astype(self.dtype), jnp.float32)
            logits = logits.reshape(*hidden.shape[:-1], -1)
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
        pooled: Float[Array, "B ... D"],
        embedding: Float[Array, "V D"],
    ) -> tuple[Float[Array, "B M V"], Float[Array, "B ... 2"]]:
        prediction_logits = BertPredictions(self.config, self.dtype, name="predictions")(
            hidden, embedding
        )
        classify = Dense(self.config, 2, jnp.float32, name="seq_relationship")
        return prediction_logits, classify(pooled)


class BertOnlyMLMHead(nn.Module):
    """MLM head alone, at the parameter paths that it has beside the other."""

    config: BertConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "B M D"], embedding: Float[Array, "V D"]
    ) -> Float[Array, "B M V"]:
        return BertPredictions(self.config, self.dtype, name="predictions")(hidden, embedding)


class BertOnlyNSPHead(nn.Module):
    """Next-sentence classifier alone, at the parameter paths that it has beside the other."""

    config: BertConfig

    @nn.compact
    def __call__(self, pooled: Float[Array, "B ... D"]) -> Float[Array, "B ... 2"]:
        return Dense(self.config, 2, jnp.float32, name="seq_relationship")(pooled)


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
        cls_positions: Int[Input, "B S"] | None = None,
        labels: Int[Input, "..."] | None = None,
        next_sentence_label: Int[Input, "..."] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        deterministic: bool = True,
    ) -> BertForPreTrainingOutput:
        """Score masked tokens and sentence pairs; the other arguments are those of `BertModel`.

        Args:
          mlm_positions: positions to score; None scores all. Training never needs [B, T, V].
          cls_positions: where several texts share a row, the position of each one's [CLS];
            `seq_relationship_logits` and `next_sentence_label` are then of each, [B, S].
          labels: ids at the scored positions, [B, T] or [B, M]; -100 does not count.
          next_sentence_label: [B], 0 where B follows A, 1 where it is random; -100 does not count.
            The loss is there when both labels are, each part 0 where nothing counts.

        Raises:
          ValueError: labels of another shape; see `BertModel` for the rest.
        """
        first: Input | None = cls_positions
        if first is None:
            first = first_positions(input_ids, inputs_embeds)
        output = self.bert(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            head_mask,
            inputs_embeds,
            output_positions=None if mlm_positions is None else _behind(first, mlm_positions),
            cls_positions=cls_positions,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            deterministic=deterministic,
        )
        hidden, pooled = output.last_hidden_state, output.pooler_output
        assert pooled is not None  # the model above has a pooler
        if mlm_positions is not None:
            hidden = hidden[:, hidden.shape[1] - mlm_positions.shape[1] :]
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


class BertForMaskedLM(PretrainedModule):
    """BERT with the head that names masked tokens.

    Attributes:
      config: the architecture.
      dtype: compute type; parameters stay float32.

    Example:
      >>> model = BertForMaskedLM(BertConfig.preset("tiny", vocab_size=100))
      >>> params = model.init(jax.random.key(0), model.init_ids)["params"]
      >>> ids, masked = jnp.ones((2, 8), jnp.int32), jnp.array([[3], [5]])
      >>> model.apply({"params": params}, ids, mlm_positions=masked).logits.shape
      (2, 1, 100)
    """

    def setup(self) -> None:
        self.bert = BertModel(self.config, self.dtype, add_pooling_layer=False)
        self.cls = BertOnlyMLMHead(self.config, self.dtype)

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
        labels: Int[Input, "..."] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        deterministic: bool = True,
    ) -> MaskedLMOutput:
        """Score tokens; the other arguments are those of `BertModel`.

        Args:
          mlm_positions: positions to score; None scores all. Training never needs [B, T, V].
          labels: ids at the scored positions, [B, T] or [B, M]; -100 does not count. The loss is 0
            where nothing counts.

        Raises:
          ValueError: labels of another shape; see `BertModel` for the rest.
        """
        output = self.bert(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            head_mask,
            inputs_embeds,
            output_positions=mlm_positions,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            deterministic=deterministic,
        )
        logits = self.cls(output.last_hidden_state, self.bert.word_embedding_table())
        return MaskedLMOutput(
            loss=None if labels is None else cross_entropy(logits, labels).mean(),
            logits=logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )


def first_positions(
    input_ids: Int[Input, "B T"] | None, inputs_embeds: Float[Input, "B T D"] | None
) -> Int[Array, "B 1"] | None:
    """Return the position of [CLS] in each row: all that a head on the pooler needs."""
    rows = inputs_embeds if input_ids is None else input_ids
    return None if rows is None else jnp.zeros((rows.shape[0], 1), jnp.int32)


def _behind(first: Int[Input, "B S"] | None, positions: Int[Input, "B M"]) -> Int[Array, "B N"]:
    """Put the positions of [CLS], for the pooler, before those of tokens."""
    return jnp.concatenate([positions[:, :0] if first is None else first, positions], axis=1)


class LabelledHead(PretrainedModule):
    """The models of one head on rows [B, T] and one kind of labels: all that they share.

    A class says what it returns, what it reads, how it scores that, and its loss where that is not
    the cross entropy.

    Attributes:
      config: the architecture.
      dtype: compute type; parameters stay float32.
    """

    output_class: ClassVar[type[HeadOutput]]
    reads_pooler: ClassVar[bool] = True

    def setup(self) -> None:
        self.bert = BertModel(self.config, self.dtype, add_pooling_layer=self.reads_pooler)

    @abc.abstractmethod
    def score(self, features: jax.Array, *, deterministic: bool) -> jax.Array:
        """Return the logits of pooled rows [B, D] or texts [B, S, D], or of tokens [B, T, D]."""

    def loss_sum(self, logits: jax.Array, labels: Input) -> LossSum:
        """Return the loss as a sum and its weight."""
        return cross_entropy(logits, labels)

    def __call__(
        self,
        input_ids: Int[Input, "B T"] | None = None,
        attention_mask: Shaped[Input, "B T"] | Shaped[Input, "B T T"] | None = None,
        token_type_ids: Int[Input, "B T"] | None = None,
        position_ids: Int[Input, "#B T"] | None = None,
        head_mask: Float[Input, "..."] | None = None,
        inputs_embeds: Float[Input, "B T D"] | None = None,
        *,
        labels: Shaped[Input, "..."] | None = None,
        cls_positions: Int[Input, "B S"] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        deterministic: bool = True,
    ) -> HeadOutput:
        """Score a batch of rows; the other arguments are those of `BertModel`.

        Args:
          labels: see the class. The loss is there when they are, 0 where no label counts.
          cls_positions: where several texts share a row, the position of each one's [CLS]; logits
            and labels then have axes [B, S] in place of [B]. For heads on the pooler.

        Raises:
          ValueError: labels of another shape; see `BertModel` for the rest.
        """
        if cls_positions is not None and not self.reads_pooler:
            raise ValueError(
                f"cls_positions are for heads on the pooler; {type(self).__name__} reads all tokens"
            )
        positions: Input | None = cls_positions
        if positions is None and self.reads_pooler:
            positions = first_positions(input_ids, inputs_embeds)
        output = self.bert(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            head_mask,
            inputs_embeds,
            output_positions=positions,
            cls_positions=cls_positions,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            deterministic=deterministic,
        )
        features = output.pooler_output if self.reads_pooler else output.last_hidden_state
        assert features is not None  # the model above has a pooler where it is read
        logits = self.score(features, deterministic=deterministic)
        return self.output_class(
            loss=None if labels is None else self.loss_sum(logits, labels).mean(),
            logits=logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )


class BertForNextSentencePrediction(LabelledHead):
    """BERT with the head that tells whether segment B follows segment A.

    Labels are [B]: 0 where it follows, 1 where it is random; -100 does not count.

    Attributes:
      config: the architecture.
      dtype: compute type; parameters stay float32.

    Example:
      >>> model = BertForNextSentencePrediction(BertConfig.preset("tiny", vocab_size=100))
      >>> params = model.init(jax.random.key(0), model.init_ids)["params"]
      >>> ids, follows = jnp.ones((3, 8), jnp.int32), jnp.array([0, 1, 0])
      >>> model.apply({"params": params}, ids, labels=follows).logits.shape
      (3, 2)
    """

    output_class: ClassVar[type[HeadOutput]] = NextSentencePredictorOutput

    def setup(self) -> None:
        super().setup()
        self.cls = BertOnlyNSPHead(self.config)

    def score(self, features: jax.Array, *, deterministic: bool) -> jax.Array:
        """Return the scores [B, 2]: next sentence, random sentence."""
        return self.cls(features)

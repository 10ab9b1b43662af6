"""The heads of tasks on top of `BertModel`: classifiers, choices and answers, with HF's names.

Scores are float32 whatever the compute type: a classifier costs next to nothing, and sums of two
scores, as of an answer's start and end, need the digits.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Shaped

from bertjax.config import BertConfig
from bertjax.dropout import Dropout
from bertjax.errors import InputError
from bertjax.heads import LabelledHead, first_positions
from bertjax.layers import Dense
from bertjax.losses import LossSum, cross_entropy, sequence_classification_loss, span_loss
from bertjax.model import BertModel
from bertjax.module import Input, PretrainedModule
from bertjax.outputs import (
    HeadOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)


def classifier_dropout(config: BertConfig) -> Dropout:
    """Return the dropout before a classifier."""
    rate = config.classifier_dropout
    return Dropout(config.hidden_dropout_prob if rate is None else rate)


class Classifier(LabelledHead):
    """What the classifiers of rows and of tokens share: dropout and one dense layer.

    Attributes:
      config: the architecture; `num_labels` scores each.
      dtype: compute type; parameters stay float32.
    """

    def setup(self) -> None:
        super().setup()
        self.dropout = classifier_dropout(self.config)
        self.classifier = Dense(self.config, self.config.num_labels, jnp.float32)

    def score(self, features: jax.Array, *, deterministic: bool) -> jax.Array:
        """Return `num_labels` scores for each row or token."""
        return self.classifier(self.dropout(features, deterministic=deterministic))


class BertForSequenceClassification(Classifier):
    """BERT with a classifier, or a regression, of whole rows.

    The loss depends on the kind of labels, which `config.problem_type` names or each call infers
    anew (see `bertjax.losses.infer_problem_type`):

    - "single_label_classification": class ids [B], -100 does not count; cross entropy.
    - "multi_label_classification": [B, num_labels] of 0 to 1; binary cross entropy.
    - "regression": numbers [B, num_labels], or [B] for one; mean squared error.

    Attributes:
      config: the architecture; `num_labels` scores a row.
      dtype: compute type; parameters stay float32.

    Example:
      >>> config = BertConfig.preset("tiny", vocab_size=100, num_labels=3)
      >>> model = BertForSequenceClassification(config)
      >>> params = model.init(jax.random.key(0), model.init_ids)["params"]
      >>> ids, classes = jnp.ones((2, 8), jnp.int32), jnp.array([2, 0])
      >>> model.apply({"params": params}, ids, labels=classes).logits.shape
      (2, 3)
    """

    output_class: ClassVar[type[HeadOutput]] = SequenceClassifierOutput

    def loss_sum(self, logits: jax.Array, labels: Input) -> LossSum:
        """Return the loss that the problem type names."""
        return sequence_classification_loss(logits, labels, self.config.problem_type)


class BertForTokenClassification(Classifier):
    """BERT with a classifier of every token.

    Labels are class ids [B, T]; -100 does not count.

    Attributes:
      config: the architecture; `num_labels` scores a token.
      dtype: compute type; parameters stay float32.

    Example:
      >>> config = BertConfig.preset("tiny", vocab_size=100, num_labels=9)
      >>> model = BertForTokenClassification(config)
      >>> params = model.init(jax.random.key(0), model.init_ids)["params"]
      >>> model.apply({"params": params}, jnp.ones((2, 8), jnp.int32)).logits.shape
      (2, 8, 9)
    """

    output_class: ClassVar[type[HeadOutput]] = TokenClassifierOutput
    reads_pooler: ClassVar[bool] = False


class BertForMultipleChoice(PretrainedModule):
    """BERT with one score for each of several rows, of which one is right.

    Attributes:
      config: the architecture.
      dtype: compute type; parameters stay float32.

    Example:
      >>> model = BertForMultipleChoice(BertConfig.preset("tiny", vocab_size=100))
      >>> params = model.init(jax.random.key(0), model.init_ids)["params"]
      >>> ids, right = jnp.ones((2, 4, 8), jnp.int32), jnp.array([3, 0])
      >>> model.apply({"params": params}, ids, labels=right).logits.shape
      (2, 4)
    """

    _init_shape: ClassVar[tuple[int, ...]] = (1, 1, 2)

    def setup(self) -> None:
        self.bert = BertModel(self.config, self.dtype)
        self.dropout = classifier_dropout(self.config)
        self.classifier = Dense(self.config, 1, jnp.float32)

    def __call__(
        self,
        input_ids: Int[Input, "B choices T"] | None = None,
        attention_mask: Shaped[Input, "B choices T"] | Shaped[Input, "B choices T T"] | None = None,
        token_type_ids: Int[Input, "B choices T"] | None = None,
        position_ids: Int[Input, "B choices T"] | None = None,
        head_mask: Float[Input, "..."] | None = None,
        inputs_embeds: Float[Input, "B choices T D"] | None = None,
        *,
        labels: Int[Input, "..."] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        deterministic: bool = True,
    ) -> MultipleChoiceModelOutput:
        """Score the choices; the arguments are those of `BertModel` with an axis of choices.

        Args:
          labels: numbers of the right choices, [B]; -100 does not count. The loss is 0 where
            nothing counts.

        Raises:
          ValueError: inputs without an axis of choices, or labels of another shape; see `BertModel`
            for the rest.
        """

        def rows(x: Input | None) -> Input | None:
            return None if x is None else x.reshape(-1, *x.shape[2:])

        for given, axes in ((input_ids, 3), (inputs_embeds, 4)):
            if given is not None and given.ndim != axes:
                raise ValueError(f"inputs must be [B, choices, T, ...]; got shape {given.shape}")
        output = self.bert(
            rows(input_ids),
            rows(attention_mask),
            rows(token_type_ids),
            rows(position_ids),
            head_mask,
            rows(inputs_embeds),
            output_positions=first_positions(rows(input_ids), rows(inputs_embeds)),
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            deterministic=deterministic,
        )
        pooled, inputs = output.pooler_output, inputs_embeds if input_ids is None else input_ids
        assert pooled is not None  # the model above has a pooler
        assert inputs is not None  # and takes nothing else
        scores = self.classifier(self.dropout(pooled, deterministic=deterministic))
        logits = scores.reshape(inputs.shape[:2])
        return MultipleChoiceModelOutput(
            loss=None if labels is None else cross_entropy(logits, labels).mean(),
            logits=logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )


class BertForQuestionAnswering(PretrainedModule):
    """BERT with scores of every token as the first and as the last of an answer.

    Attributes:
      config: the architecture; `num_labels` is 2.
      dtype: compute type; parameters stay float32.

    Example:
      >>> model = BertForQuestionAnswering(BertConfig.preset("tiny", vocab_size=100))
      >>> params = model.init(jax.random.key(0), model.init_ids)["params"]
      >>> model.apply({"params": params}, jnp.ones((2, 8), jnp.int32)).start_logits.shape
      (2, 8)
    """

    def setup(self) -> None:
        if self.config.num_labels != 2:
            raise InputError(
                "BertForQuestionAnswering scores starts and ends: num_labels must be 2; got "
                f"{self.config.num_labels}"
            )
        self.bert = BertModel(self.config, self.dtype, add_pooling_layer=False)
        self.qa_outputs = Dense(self.config, 2, jnp.float32)

    def __call__(
        self,
        input_ids: Int[Input, "B T"] | None = None,
        attention_mask: Shaped[Input, "B T"] | Shaped[Input, "B T T"] | None = None,
        token_type_ids: Int[Input, "B T"] | None = None,
        position_ids: Int[Input, "#B T"] | None = None,
        head_mask: Float[Input, "..."] | None = None,
        inputs_embeds: Float[Input, "B T D"] | None = None,
        *,
        start_positions: Int[Input, "..."] | None = None,
        end_positions: Int[Input, "..."] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        deterministic: bool = True,
    ) -> QuestionAnsweringModelOutput:
        """Score starts and ends of answers; the other arguments are those of `BertModel`.

        Padding is scored too: who picks an answer leaves it out.

        Args:
          start_positions: [B], the answer's first token. As in transformers, T or more does not
            count and a negative number means 0.
          end_positions: [B], the answer's last token, likewise. The loss is there when both are:
            the mean of the starts' and the ends', each 0 where nothing counts.

        Raises:
          ValueError: positions of another shape; see `BertModel` for the rest.
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
        logits = self.qa_outputs(output.last_hidden_state)
        start_logits, end_logits = logits[:, :, 0], logits[:, :, 1]
        loss = None
        if start_positions is not None and end_positions is not None:
            start, end = span_loss(start_logits, end_logits, start_positions, end_positions)
            loss = (start.mean() + end.mean()) / 2
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

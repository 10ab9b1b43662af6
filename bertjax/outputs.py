"""What the models return, under Hugging Face's class and field names.

Fields that were not asked for are None. Axis letters as in `bertjax.model`.
"""

import jax
from flax import struct

from bertjax.cache import Cache


@struct.dataclass
class BertModelOutput:
    """Output of `BertModel`.

    Attributes:
      last_hidden_state: [B, T, D].
      pooler_output: [B, D], tanh of a dense layer over the first token; [B, S, D] where
        `cls_positions` name those of several texts in a row.
      hidden_states: L + 1 arrays [B, T, D]: the embeddings, then each layer's output.
      past_key_values: the cache for the next tokens, of a decoder that was given or asked for one.
      attentions: L arrays [B, H, T, T]: probabilities after dropout and head mask, of the heads
        that are stored where some are pruned; over all S places of a cache.
      cross_attentions: L arrays [B, H, T, E], of a decoder that attends to an encoder.
    """

    last_hidden_state: jax.Array
    pooler_output: jax.Array | None = None
    hidden_states: tuple[jax.Array, ...] | None = None
    past_key_values: Cache | None = None
    attentions: tuple[jax.Array, ...] | None = None
    cross_attentions: tuple[jax.Array, ...] | None = None


@struct.dataclass
class BertForPreTrainingOutput:
    """Output of `BertForPreTraining`.

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


@struct.dataclass
class HeadOutput:
    """Output of a model with one head and one kind of labels; its classes say which.

    Attributes:
      loss: float32 scalar, where labels were given.
      logits: float32 scores before softmax or sigmoid.
      hidden_states: see `BertModelOutput`.
      attentions: see `BertModelOutput`.
    """

    loss: jax.Array | None = None
    logits: jax.Array | None = None
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None


@struct.dataclass
class MaskedLMOutput(HeadOutput):
    """Output of `BertForMaskedLM`; logits [B, T, V], or [B, M, V] for `mlm_positions`."""


@struct.dataclass
class CausalLMOutputWithCrossAttentions:
    """Output of `BertLMHeadModel`.

    Attributes:
      loss: float32 scalar, where labels were given.
      logits: float32 [B, T, V], or [B, N, V] for the N tokens of `logits_to_keep`.
      past_key_values: see `BertModelOutput`.
      hidden_states: see `BertModelOutput`.
      attentions: see `BertModelOutput`.
      cross_attentions: see `BertModelOutput`.
    """

    loss: jax.Array | None = None
    logits: jax.Array | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None
    cross_attentions: tuple[jax.Array, ...] | None = None


@struct.dataclass
class Seq2SeqLMOutput:
    """Output of `EncoderDecoderModel`; T tokens of the decoder, E of the encoder.

    Attributes:
      loss: float32 scalar, where labels were given.
      logits: float32 [B, T, V], or [B, N, V] for the N tokens of `decoder_logits_to_keep`.
      past_key_values: the decoder's; see `BertModelOutput`.
      decoder_hidden_states: its `hidden_states`.
      decoder_attentions: its `attentions`.
      cross_attentions: L arrays [B, H, T, E].
      encoder_last_hidden_state: [B, E, D], where the source was read or given; before projection.
      encoder_hidden_states: the encoder's `hidden_states`.
      encoder_attentions: its `attentions`.
    """

    loss: jax.Array | None = None
    logits: jax.Array | None = None
    past_key_values: Cache | None = None
    decoder_hidden_states: tuple[jax.Array, ...] | None = None
    decoder_attentions: tuple[jax.Array, ...] | None = None
    cross_attentions: tuple[jax.Array, ...] | None = None
    encoder_last_hidden_state: jax.Array | None = None
    encoder_hidden_states: tuple[jax.Array, ...] | None = None
    encoder_attentions: tuple[jax.Array, ...] | None = None


@struct.dataclass
class NextSentencePredictorOutput(HeadOutput):
    """Output of `BertForNextSentencePrediction`; logits [B, 2]: next sentence, random sentence."""


@struct.dataclass
class SequenceClassifierOutput(HeadOutput):
    """Output of `BertForSequenceClassification`; logits [B, num_labels]."""


@struct.dataclass
class MultipleChoiceModelOutput(HeadOutput):
    """Output of `BertForMultipleChoice`; logits [B, choices].

    Hidden states and attentions are those of the B x choices rows, as in transformers.
    """


@struct.dataclass
class TokenClassifierOutput(HeadOutput):
    """Output of `BertForTokenClassification`; logits [B, T, num_labels]."""


@struct.dataclass
class QuestionAnsweringModelOutput:
    """Output of `BertForQuestionAnswering`.

    Attributes:
      loss: float32 scalar, where both positions were given.
      start_logits: float32 [B, T], scores of each token as the answer's first.
      end_logits: float32 [B, T], scores of each token as the answer's last.
      hidden_states: see `BertModelOutput`.
      attentions: see `BertModelOutput`.
    """

    loss: jax.Array | None = None
    start_logits: jax.Array | None = None
    end_logits: jax.Array | None = None
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None

"""What a training step minimises: a model, its losses, and what is counted beside them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bertjax import lora, packing
from bertjax.causal_lm import BertLMHeadModel, next_tokens
from bertjax.heads import BertForPreTraining
from bertjax.lora_config import LoraConfig
from bertjax.losses import (
    IGNORE_INDEX,
    LossSum,
    accuracy,
    cross_entropy,
    sequence_classification_loss,
    span_loss,
)
from bertjax.task_heads import BertForSequenceClassification, BertForTokenClassification
from bertjax.train import Batch, Sums


@dataclasses.dataclass(frozen=True)
class PretrainingObjective:
    """Masked tokens and sentence pairs, on batches of `data.pretraining`, packed or not.

    Attributes:
      model: the module.
      sentence_pairs: whether the rows hold labelled pairs (nsp, sop).
      common_token: what a guesser without a model would always name. Given, as in evaluations, the
        sums hold how often that is right, and the share of pairs labelled 1. None leaves both out.
    """

    model: BertForPreTraining
    sentence_pairs: bool = True
    common_token: int | None = None

    def init(self, key: jax.Array) -> Any:
        """Return fresh parameters."""
        return self.model.init(key, jnp.zeros((1, 2), jnp.int32))["params"]

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Return the number of masked tokens and of labelled pairs."""
        weights = {"mlm_loss": jnp.sum(batch["mlm_weights"])}
        if self.sentence_pairs:
            weights["sentence_loss"] = jnp.sum(
                batch["next_sentence_label"] != IGNORE_INDEX, dtype=jnp.float32
            )
        return weights

    def sums(self, params: Any, batch: Batch, dropout_key: jax.Array | None) -> Sums:
        """Return the sums of losses and of hits."""
        output: Any = self.model.apply(
            {"params": params},
            **packing.model_inputs(batch, of_cls=True),
            mlm_positions=batch["mlm_positions"],
            deterministic=dropout_key is None,
            rngs={} if dropout_key is None else {"dropout": dropout_key},
        )
        labels, weights = batch["mlm_labels"], batch["mlm_weights"]
        sums = {
            "mlm_loss": cross_entropy(output.prediction_logits, labels, weights),
            "mlm_accuracy": accuracy(output.prediction_logits, labels, weights),
        }
        if self.sentence_pairs:
            pairs = batch["next_sentence_label"]
            kept = (pairs != IGNORE_INDEX).astype(jnp.float32)
            logits = output.seq_relationship_logits
            sums["sentence_loss"] = cross_entropy(logits, pairs)
            sums["sentence_accuracy"] = accuracy(logits, pairs)
            if self.common_token is not None:
                sums["second_label"] = LossSum(jnp.sum((pairs == 1) * kept), jnp.sum(kept))
        if self.common_token is not None:
            hits = (labels == self.common_token) * weights
            sums["common_token_accuracy"] = LossSum(jnp.sum(hits), jnp.sum(weights))
        return sums


@dataclasses.dataclass(frozen=True)
class CausalObjective:
    """The next token, on batches of `data.pretraining` without masks.

    Attributes:
      model: the module, a decoder.
      common_token: as in `PretrainingObjective`.
    """

    model: BertLMHeadModel
    common_token: int | None = None

    def init(self, key: jax.Array) -> Any:
        """Return fresh parameters."""
        return self.model.init(key, jnp.zeros((1, 2), jnp.int32))["params"]

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Return the number of tokens that follow another."""
        return {"lm_loss": jnp.sum(batch["attention_mask"][:, 1:], dtype=jnp.float32)}

    def sums(self, params: Any, batch: Batch, dropout_key: jax.Array | None) -> Sums:
        """Return the sums of losses and of hits."""
        output: Any = self.model.apply(
            {"params": params},
            batch["input_ids"],
            batch["attention_mask"],
            batch["token_type_ids"],
            deterministic=dropout_key is None,
            rngs={} if dropout_key is None else {"dropout": dropout_key},
        )
        labels = next_tokens(batch["input_ids"])
        weights = jnp.pad(batch["attention_mask"][:, 1:].astype(jnp.float32), ((0, 0), (0, 1)))
        sums = {
            "lm_loss": cross_entropy(output.logits, labels, weights),
            "lm_accuracy": accuracy(output.logits, labels, weights),
        }
        if self.common_token is not None:
            hits = (labels == self.common_token) * weights
            sums["common_token_accuracy"] = LossSum(jnp.sum(hits), jnp.sum(weights))
        return sums


@dataclasses.dataclass(frozen=True)
class FinetuningObjective:
    """The loss of a head with labels, on batches of `data.bucketing` or of `data.packing`.

    Rows of weight 0 count nothing, whatever they hold.

    Attributes:
      model: any of the classes with a head and labels.
      lora: where adapters sit; None without any. With them the parameters are two trees, `base`,
        which should be frozen, and `adapters`.
    """

    model: Any
    lora: LoraConfig | None = None

    def init(self, key: jax.Array) -> Any:
        """Return fresh parameters."""
        return self.adapted(self.model.init(key, self.model.init_ids)["params"], key)

    def adapted(self, params: Any, key: jax.Array) -> Any:
        """Return the parameters that a model's own become: with new adapters, or as they are."""
        if self.lora is None:
            return params
        # Another stream than that of a new head.
        adapters = lora.init(jax.random.fold_in(key, 1), params, self.lora)
        return {"base": params, "adapters": adapters}

    def merged(self, params: Any) -> Any:
        """Return the model's own parameters: with the adapters added, or as they are."""
        if self.lora is None:
            return params
        return lora.merge(params["base"], params["adapters"], self.lora)

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Return the number of rows, or of texts that share them, or of tagged words."""
        if "start_positions" in batch:
            rows = jnp.sum(batch["weights"])
            return {"start_loss": rows, "end_loss": rows}
        return {"loss": jnp.sum(self._label_weights(batch))}

    def sums(self, params: Any, batch: Batch, dropout_key: jax.Array | None) -> Sums:
        """Return the sums of the losses; those of an answer's ends count half each."""
        output = self.outputs(params, batch, dropout_key)
        if "start_positions" in batch:
            starts, ends = output.start_logits, output.end_logits
            if "texts" in batch:
                starts, ends = (
                    packing.of_each_text(scores, batch["texts"], batch["weights"].shape[1])
                    for scores in (starts, ends)
                )
            start, end = span_loss(
                starts,
                ends,
                batch["start_positions"],
                batch["end_positions"],
                batch["weights"],
            )
            return {
                "start_loss": LossSum(start.total / 2, start.weight),
                "end_loss": LossSum(end.total / 2, end.weight),
            }
        labels, weights = batch["labels"], self._label_weights(batch)
        if isinstance(self.model, BertForSequenceClassification):
            kind = self.model.config.problem_type
            loss = sequence_classification_loss(output.logits, labels, kind, weights)
        else:
            loss = cross_entropy(output.logits, labels, weights)
        return {"loss": loss}

    def _label_weights(self, batch: Batch) -> jax.Array:
        """Return the weight of every label: of a row, or of a tagged token [B, T]."""
        # Not told by the labels' shape: a row may have as many labels as columns.
        tagged = isinstance(self.model, BertForTokenClassification)
        return _token_weights(batch) if tagged else batch["weights"]

    def outputs(self, params: Any, batch: Batch, dropout_key: jax.Array | None) -> Any:
        """Return the model's output for a batch."""
        return self.model.apply(
            {"params": self.merged(params)},
            **packing.model_inputs(batch, of_cls=getattr(self.model, "reads_pooler", False)),
            deterministic=dropout_key is None,
            rngs={} if dropout_key is None else {"dropout": dropout_key},
        )


@dataclasses.dataclass(frozen=True)
class Seq2SeqObjective(FinetuningObjective):
    """The loss of an `EncoderDecoderModel` for every token of its targets."""

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Return the number of target tokens."""
        return {"loss": jnp.sum(_token_weights(batch))}

    def sums(self, params: Any, batch: Batch, dropout_key: jax.Array | None) -> Sums:
        """Return the sums of losses and of hits."""
        logits = self.outputs(params, batch, dropout_key).logits
        weights = _token_weights(batch)
        return {
            "loss": cross_entropy(logits, batch["labels"], weights),
            "token_accuracy": accuracy(logits, batch["labels"], weights),
        }

    def outputs(self, params: Any, batch: Batch, dropout_key: jax.Array | None) -> Any:
        """Return the model's output for the targets of a batch."""
        return self.model.apply(
            {"params": self.merged(params)},
            batch["input_ids"],
            batch["attention_mask"],
            token_type_ids=batch["token_type_ids"],
            labels=batch["labels"],
            deterministic=dropout_key is None,
            rngs={} if dropout_key is None else {"dropout": dropout_key},
        )


def _token_weights(batch: Batch) -> jax.Array:
    """Return the weight of every token's label, [B, T]."""
    rows = 1.0 if "texts" in batch else batch["weights"][:, None]
    return jnp.where(batch["labels"] == IGNORE_INDEX, 0.0, rows)

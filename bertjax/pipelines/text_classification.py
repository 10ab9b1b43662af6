"""Text classification: the labels of texts or of pairs."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from bertjax.errors import InputError
from bertjax.pipelines.base import Pipeline, label_names
from bertjax.pipelines.rows import as_list, as_pair, text_rows
from bertjax.pipelines.runner import SharedRows
from bertjax.task_heads import BertForSequenceClassification

_ALL: Any = object()
"""Stands for a `top_k` that was not given: None means all labels."""


class TextClassificationPipeline(Pipeline):
    """The label of a text or of a pair, or the scores of all labels.

    Example:
      classify = TextClassificationPipeline.from_pretrained("runs/sst2")
      classify(["A joy.", ("A man eats.", "Nobody eats.")], top_k=None)
    """

    model_class: ClassVar[type[Any]] = BertForSequenceClassification
    shared_rows: ClassVar[SharedRows | None] = "texts"
    head: ClassVar[tuple[str, ...]] = ("pooler.", "classifier.")

    def __call__(
        self,
        inputs: Any,
        *,
        top_k: int | None = _ALL,
        function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None,
        truncation: bool = False,
    ) -> Any:
        """Classify one text or several.

        Args:
          inputs: a text, a pair as a tuple or as `{"text": ..., "text_pair": ...}`, or a list of
            these.
          top_k: labels to return, best first; None returns all.
          function_to_apply: what makes scores of the model's outputs. None: nothing for a
            regression, the sigmoid for one label or a `multi_label_classification`, else softmax.
          truncation: whether longer texts are cut, with a line in the log; else they are an error.

        Returns:
          `{"label", "score"}` of the best label of each input, or a list of them where `top_k` is
          given. For a list of inputs a list of these; for a single text, as in transformers, a
          list also where `top_k` is not given.

        Raises:
          InputError: an input that is none of the above or too long; bad arguments.
        """
        given, single = as_list(inputs, (str, tuple, dict), "text or pair")
        if top_k is not _ALL and top_k is not None and top_k < 1:
            raise InputError(f"top_k must be at least 1, or None for all labels; got {top_k}")
        scores = self._scores(self._checked(given), function_to_apply, truncation)
        names = self._labels()
        order = np.argsort(-scores, axis=1, kind="stable")
        results: list[Any] = []
        for row, ranked in zip(scores, order, strict=True):
            kept = 1 if top_k is _ALL else top_k
            best = [{"label": names[i], "score": float(row[i])} for i in ranked[:kept]]
            results.append(best[0] if top_k is _ALL else best)
        if not single:
            return results
        return results if isinstance(inputs, str) and top_k is _ALL else results[0]

    def _compute(self, params: Any, batch: Mapping[str, Any], static: Any) -> Any:
        return self._apply(params, batch).logits

    def _checked(self, given: Sequence[Any]) -> list[Any]:
        """Return the inputs as texts and tuples of two."""
        return [as_pair(value, number) for number, value in enumerate(given)]

    def _labels(self) -> list[str]:
        return label_names(self.model.config)

    def _default_function(self) -> str:
        config = self.model.config
        if config.problem_type == "regression":
            return "none"
        several = config.problem_type == "multi_label_classification"
        return "sigmoid" if several or config.num_labels == 1 else "softmax"

    def _scores(self, inputs: list[Any], function: str | None, truncation: bool) -> np.ndarray:
        """Return the scores of the labels, [N, num_labels]."""
        function = self._default_function() if function is None else function.lower()
        if function not in ("sigmoid", "softmax", "none"):
            raise InputError(
                f"function_to_apply must be sigmoid, softmax or none; got {function!r}"
            )
        rows = text_rows(self.tokenizer, inputs, self.max_length, truncation=truncation)
        logits = np.zeros((len(inputs), len(self._labels())), np.float32)
        for picked, found in self._run(rows):
            logits[picked] = found
        # So few numbers that the host's arithmetic costs nothing, and compiles nothing either.
        if function == "sigmoid":
            return 1 / (1 + np.exp(-logits))
        if function == "softmax":
            weights = np.exp(logits - logits.max(axis=1, keepdims=True))
            return weights / weights.sum(axis=1, keepdims=True)
        return logits

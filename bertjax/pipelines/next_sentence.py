"""Next-sentence prediction: whether the second text of a pair follows the first."""

from collections.abc import Sequence
from typing import Any, ClassVar

from bertjax.errors import InputError
from bertjax.heads import BertForNextSentencePrediction
from bertjax.pipelines.rows import as_pair
from bertjax.pipelines.text_classification import TextClassificationPipeline


class NextSentencePipeline(TextClassificationPipeline):
    """Whether the second text of a pair follows the first: the labels are "next" and "random".

    Arguments and results are those of `TextClassificationPipeline`; every input is a pair.

    Example:
      follows = NextSentencePipeline.from_pretrained("bert-base-uncased")
      follows(("It rained all day.", "We stayed at home."))  # {"label": "next", "score": ...}
    """

    model_class: ClassVar[type[Any]] = BertForNextSentencePrediction
    head: ClassVar[tuple[str, ...]] = ("pooler.", "cls.seq_relationship.")

    def _checked(self, given: Sequence[Any]) -> list[Any]:
        """Return the inputs as tuples of two.

        Raises:
          InputError: an input that is no pair.
        """
        pairs = [as_pair(value, number) for number, value in enumerate(given)]
        for number, pair in enumerate(pairs):
            if isinstance(pair, str):
                raise InputError(
                    f"text {number}: next-sentence prediction needs pairs, as (first, second)"
                )
        return pairs

    def _labels(self) -> list[str]:
        return ["next", "random"]

    def _default_function(self) -> str:
        return "softmax"

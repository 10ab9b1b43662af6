"""Pipelines: strings in, answers out, for every task that a BERT does."""

import difflib
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertjax.errors import InputError

# Class -> module, loaded when first used, and transformers' task names -> class.
_CLASSES = {
    "FillMaskPipeline": "fill_mask",
    "NextSentencePipeline": "next_sentence",
    "Pipeline": "base",
    "QuestionAnsweringPipeline": "question_answering",
    "SentenceEmbeddingPipeline": "sentence_embeddings",
    "TextClassificationPipeline": "text_classification",
    "TokenClassificationPipeline": "token_classification",
}
TASKS = {
    "fill-mask": "FillMaskPipeline",
    "ner": "TokenClassificationPipeline",
    "next-sentence-prediction": "NextSentencePipeline",
    "question-answering": "QuestionAnsweringPipeline",
    "sentence-embeddings": "SentenceEmbeddingPipeline",
    "sentiment-analysis": "TextClassificationPipeline",
    "text-classification": "TextClassificationPipeline",
    "token-classification": "TokenClassificationPipeline",
}

if TYPE_CHECKING:
    from bertjax.pipelines.base import Pipeline
    from bertjax.pipelines.fill_mask import FillMaskPipeline
    from bertjax.pipelines.next_sentence import NextSentencePipeline
    from bertjax.pipelines.question_answering import QuestionAnsweringPipeline
    from bertjax.pipelines.sentence_embeddings import SentenceEmbeddingPipeline
    from bertjax.pipelines.text_classification import TextClassificationPipeline
    from bertjax.pipelines.token_classification import TokenClassificationPipeline

__all__ = [
    "TASKS",
    "FillMaskPipeline",
    "NextSentencePipeline",
    "Pipeline",
    "QuestionAnsweringPipeline",
    "SentenceEmbeddingPipeline",
    "TextClassificationPipeline",
    "TokenClassificationPipeline",
    "pipeline",
]


def pipeline(task: str, model: str | Path, **options: Any) -> Any:
    """Load a model as the pipeline of a task.

    Args:
      task: a key of `TASKS`: transformers' names, "sentence-embeddings" and
        "next-sentence-prediction".
      model: a model directory, a run directory, or a name on the Hugging Face hub.
      **options: of `from_pretrained` of the task's class.

    Raises:
      InputError: no such task, or what `from_pretrained` raises.

    Example:
      fill = bertjax.pipeline("fill-mask", "bert-base-uncased")
      fill("Paris is the [MASK] of France.", top_k=3)
    """
    if task not in TASKS:
        near = difflib.get_close_matches(task, TASKS, 1) if isinstance(task, str) else []
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"no task {task!r}: {hint}choose one of {', '.join(TASKS)}")
    found: Any = __getattr__(TASKS[task])
    return found.from_pretrained(model, **options)


def __getattr__(name: str) -> Any:
    if name not in _CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_CLASSES[name]}"), name)

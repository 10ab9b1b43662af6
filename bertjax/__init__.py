"""bertjax, the JAX home of BERT."""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> module. Loaded when first used, as are the modules themselves, so that
# `import bertjax` costs nothing.
_PUBLIC = {
    "BertConfig": "config",
    "BertForMaskedLM": "heads",
    "BertForMultipleChoice": "task_heads",
    "BertForNextSentencePrediction": "heads",
    "BertForPreTraining": "heads",
    "BertForPreTrainingOutput": "outputs",
    "BertForQuestionAnswering": "task_heads",
    "BertForSequenceClassification": "task_heads",
    "BertForTokenClassification": "task_heads",
    "BertLMHeadModel": "causal_lm",
    "BertModel": "model",
    "BertModelOutput": "outputs",
    "BertTokenizer": "tokenizer",
    "Cache": "cache",
    "CausalLMOutputWithCrossAttentions": "outputs",
    "EncoderDecoderConfig": "encoder_decoder_config",
    "EncoderDecoderModel": "encoder_decoder",
    "FinetuneConfig": "run_config",
    "GenerateOutput": "generation",
    "GenerationConfig": "generation_config",
    "InputError": "errors",
    "MaskPredictConfig": "generation_config",
    "MaskPredictOutput": "infilling",
    "MaskedLMOutput": "outputs",
    "MultipleChoiceModelOutput": "outputs",
    "NextSentencePredictorOutput": "outputs",
    "PretrainConfig": "run_config",
    "QuestionAnsweringModelOutput": "outputs",
    "Seq2SeqLMOutput": "outputs",
    "SequenceClassifierOutput": "outputs",
    "TokenClassifierOutput": "outputs",
    "from_pretrained": "pretrained",
    "generate": "generation",
    "init_cache": "cache",
    "load_pretrained": "pretrained",
    "mask_predict": "infilling",
    "pipeline": "pipelines",
    "save_pretrained": "pretrained",
    "stream": "generation",
}

if TYPE_CHECKING:
    from bertjax.cache import Cache, init_cache
    from bertjax.causal_lm import BertLMHeadModel
    from bertjax.config import BertConfig
    from bertjax.encoder_decoder import EncoderDecoderModel
    from bertjax.encoder_decoder_config import EncoderDecoderConfig
    from bertjax.errors import InputError
    from bertjax.generation import GenerateOutput, generate, stream
    from bertjax.generation_config import GenerationConfig, MaskPredictConfig
    from bertjax.heads import BertForMaskedLM, BertForNextSentencePrediction, BertForPreTraining
    from bertjax.infilling import MaskPredictOutput, mask_predict
    from bertjax.model import BertModel
    from bertjax.outputs import (
        BertForPreTrainingOutput,
        BertModelOutput,
        CausalLMOutputWithCrossAttentions,
        MaskedLMOutput,
        MultipleChoiceModelOutput,
        NextSentencePredictorOutput,
        QuestionAnsweringModelOutput,
        Seq2SeqLMOutput,
        SequenceClassifierOutput,
        TokenClassifierOutput,
    )
    from bertjax.pipelines import pipeline
    from bertjax.pretrained import from_pretrained, load_pretrained, save_pretrained
    from bertjax.run_config import FinetuneConfig, PretrainConfig
    from bertjax.task_heads import (
        BertForMultipleChoice,
        BertForQuestionAnswering,
        BertForSequenceClassification,
        BertForTokenClassification,
    )
    from bertjax.tokenizer import BertTokenizer

__all__ = [
    "BertConfig",
    "BertForMaskedLM",
    "BertForMultipleChoice",
    "BertForNextSentencePrediction",
    "BertForPreTraining",
    "BertForPreTrainingOutput",
    "BertForQuestionAnswering",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertLMHeadModel",
    "BertModel",
    "BertModelOutput",
    "BertTokenizer",
    "Cache",
    "CausalLMOutputWithCrossAttentions",
    "EncoderDecoderConfig",
    "EncoderDecoderModel",
    "FinetuneConfig",
    "GenerateOutput",
    "GenerationConfig",
    "InputError",
    "MaskPredictConfig",
    "MaskPredictOutput",
    "MaskedLMOutput",
    "MultipleChoiceModelOutput",
    "NextSentencePredictorOutput",
    "PretrainConfig",
    "QuestionAnsweringModelOutput",
    "Seq2SeqLMOutput",
    "SequenceClassifierOutput",
    "TokenClassifierOutput",
    "from_pretrained",
    "generate",
    "init_cache",
    "load_pretrained",
    "mask_predict",
    "pipeline",
    "save_pretrained",
    "stream",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"bertjax.{_PUBLIC[name]}"), name)
    module = f"bertjax.{name}"
    if name.startswith("_") or importlib.util.find_spec(module) is None:
        raise AttributeError(f"module 'bertjax' has no attribute {name!r}")
    return importlib.import_module(module)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])

"""bertjax, the JAX home of BERT."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> module. Loaded when first used, so that `import bertjax` costs nothing.
_PUBLIC = {
    "BertConfig": "config",
    "BertForPreTraining": "heads",
    "BertForPreTrainingOutput": "heads",
    "BertModel": "model",
    "BertModelOutput": "model",
    "InputError": "errors",
    "PretrainConfig": "run_config",
    "load_pretrained": "pretrained",
    "save_pretrained": "pretrained",
}

if TYPE_CHECKING:
    from bertjax.config import BertConfig
    from bertjax.errors import InputError
    from bertjax.heads import BertForPreTraining, BertForPreTrainingOutput
    from bertjax.model import BertModel, BertModelOutput
    from bertjax.pretrained import load_pretrained, save_pretrained
    from bertjax.run_config import PretrainConfig

__all__ = [
    "BertConfig",
    "BertForPreTraining",
    "BertForPreTrainingOutput",
    "BertModel",
    "BertModelOutput",
    "InputError",
    "PretrainConfig",
    "load_pretrained",
    "save_pretrained",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'bertjax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"bertjax.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])

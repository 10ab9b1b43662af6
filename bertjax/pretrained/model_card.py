"""The model card (README.md) that is written beside a model's weights."""

from collections.abc import Mapping
from typing import Any

import jax

from bertjax.encoder_decoder_config import AnyConfig, EncoderDecoderConfig

_PIPELINE_TAGS = {
    "BertForPreTraining": "fill-mask",
    "BertForMaskedLM": "fill-mask",
    "BertLMHeadModel": "text-generation",
    "BertForSequenceClassification": "text-classification",
    "BertForTokenClassification": "token-classification",
    "BertForQuestionAnswering": "question-answering",
    "BertModel": "feature-extraction",
}


def model_card(model: Any, params: Any, facts: Mapping[str, Any]) -> str:
    """Return a card in Markdown with the hub's metadata at its head.

    Args:
      model: the module.
      params: its parameters.
      facts: what is to be said of its making (data, steps, scores), by name; nothing is made up.
    """
    name, config = type(model).__name__, model.config
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    tag = f"pipeline_tag: {_PIPELINE_TAGS[name]}\n" if name in _PIPELINE_TAGS else ""
    rows: dict[str, Any] = {
        "Architecture": name,
        **_sizes(config),
        "Parameters": f"{count:,}",
        **facts,
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return f"""\
---
library_name: transformers
{tag}tags:
- bert
- jax
- bertjax
---

# {name}

Written by bertjax.

| | |
|---|---|
{table}

```python
import bertjax, transformers

model, params = bertjax.{name}.from_pretrained("path/of/this/directory")
model = transformers.{name}.from_pretrained("path/of/this/directory")
```
"""


def _sizes(config: AnyConfig) -> dict[str, Any]:
    if isinstance(config, EncoderDecoderConfig):
        halves = {"Encoder": config.encoder, "Decoder": config.decoder}
        sizes = {
            f"{half}, {name.lower()}": value
            for half, one in halves.items()
            for name, value in _sizes(one).items()
        }
        return sizes | {"Halves share weights": "yes" if config.tie_encoder_decoder else "no"}
    return {
        "Layers": config.num_hidden_layers,
        "Hidden size": config.hidden_size,
        "Attention heads": config.num_attention_heads,
        "Vocabulary": f"{config.vocab_size:,} word pieces",
        "Longest sequence": config.max_position_embeddings,
    }

"""Which parameters a decoder has of its own where it shares its encoder's, and how both join."""

from collections.abc import Mapping
from typing import Any

CROSS = "crossattention"


def own(decoder: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a `BertLMHeadModel`'s parameters that no encoder has."""
    layer = decoder["bert"]["encoder"]["layer"]
    return {"bert": {"encoder": {"layer": {CROSS: layer[CROSS]}}}, "cls": decoder["cls"]}


def completed(decoder: Mapping[str, Any], encoder: Mapping[str, Any]) -> dict[str, Any]:
    """Return a `BertLMHeadModel`'s parameters: its own, and those of a `BertModel`."""
    layer = dict(encoder["encoder"]["layer"]) | decoder["bert"]["encoder"]["layer"]
    bert = {"embeddings": encoder["embeddings"], "encoder": {"layer": layer}}
    return {"bert": bert, "cls": decoder["cls"]}

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
    layers = _joined(encoder["encoder"]["layer"], decoder["bert"]["encoder"]["layer"])
    bert = {"embeddings": encoder["embeddings"], "encoder": {"layer": layers}}
    return {"bert": bert, "cls": decoder["cls"]}


def _joined(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tree with the branches of both, where layers may be one by one."""
    both = {name: _joined(one[name], other[name]) for name in one.keys() & other.keys()}
    return {**one, **other, **both}

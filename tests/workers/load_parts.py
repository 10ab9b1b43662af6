"""Load the named PARTs, each of the model me/PART of the hub; the last argument is a directory."""

import sys

import bertjax
from bertjax.model_commands import ConvertConfig
from bertjax.pretrained.convert import convert

*parts, out = sys.argv[1:]
how = {
    "config": bertjax.BertConfig.from_pretrained,
    "tokenizer": bertjax.BertTokenizer.from_pretrained,
    "model": bertjax.BertModel.from_pretrained,
    "model-and-class": bertjax.from_pretrained,
    "convert": lambda source: convert(ConvertConfig(source, out)),
}
for part in parts:
    if part in how:
        how[part](f"me/{part}")
    else:
        bertjax.pipeline(part, f"me/{part}")

"""Other people's weights in and out: every format, through one name table.

A format's module turns its files into tensors by Hugging Face's torch names (`reader`), `match`
finds each tensor's place in the model, `names` is the table between both, `fill` reads what is
there; `load`, `pairs` (an encoder with a decoder) and `save` are what users call.
"""

from bertjax.pretrained.fill import abstract_params
from bertjax.pretrained.load import from_pretrained, load_pretrained
from bertjax.pretrained.save import save_pretrained

__all__ = ["abstract_params", "from_pretrained", "load_pretrained", "save_pretrained"]

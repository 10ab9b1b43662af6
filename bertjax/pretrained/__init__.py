"""Other people's weights in and out: every format, through one name table.

A format's module turns its files into tensors by Hugging Face's torch names (`reader`), `match`
finds each tensor's place in the model, `names` is the table between both, `load` and `save` are
what users call.
"""

from bertjax.pretrained.load import abstract_params, from_pretrained, load_pretrained
from bertjax.pretrained.save import save_pretrained

__all__ = ["abstract_params", "from_pretrained", "load_pretrained", "save_pretrained"]

"""Tensors whose numbers are no weights: whole numbers and codes of eight bits."""

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch

from bertjax import BertConfig, BertModel, InputError
from bertjax.model_commands import ConvertConfig
from bertjax.pretrained import from_pretrained, save_pretrained
from bertjax.pretrained.convert import convert
from bertjax.pretrained.formats import FORMATS
from bertjax.sharding import path_of
from tests.peers import quick_params

CONFIG = BertConfig(
    vocab_size=60,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
    max_position_embeddings=16,
    scan_unroll=1,
)


def saved(directory):
    """Write a random model; return its parameters."""
    model = BertModel(CONFIG)
    params = quick_params(model)
    save_pretrained(directory, model, params)
    return params


def write_as(directory, to, kind, changed):
    """Write a model with some of its tensors in another type."""
    params = saved(directory)
    tensors = load_file(directory / "model.safetensors")
    tensors |= {n: np.ones_like(a, kind) for n, a in tensors.items() if changed in n}
    tensors["embeddings.position_ids"] = np.arange(16)[None]
    if to == "hf":
        save_file(tensors, directory / "model.safetensors")
        return
    (directory / "model.safetensors").unlink()
    if to == "torch":
        state = {name: torch.tensor(array) for name, array in tensors.items()}
        torch.save(state, directory / "pytorch_model.bin")
    elif to == "orbax":
        cast = jax.tree_util.tree_map_with_path(
            lambda path, a: np.ones_like(a, kind) if changed in path_of(path) else a, params
        )
        FORMATS[to].module.write(directory, cast)
    else:
        del tensors["embeddings.position_ids"]  # which Google's and Flax's models do not have
        FORMATS[to].module.write(directory, tensors, 10**9)


@pytest.mark.parametrize(
    ("to", "kind", "file", "name"),
    [
        ("hf", np.int8, "model.safetensors", "pooler.dense.bias is of type I8"),
        ("torch", np.int8, "pytorch_model.bin", "pooler.dense.bias is of type int8"),
        ("flax", np.int8, "flax_model.msgpack", "pooler.dense.bias is of type int8"),
        ("tf1", np.int32, "bert_model.ckpt.index", "bert/pooler/dense/bias is of type int32"),
        ("orbax", np.int32, "params", "pooler.dense.(bias|kernel) is of type int32"),
    ],
)
def test_weights_of_no_type_of_weights(to, kind, file, name, tmp_path):
    """Refused before anything is read; whole numbers that no model has a use for are none."""
    write_as(tmp_path / "a", to, kind, "pooler" if to == "orbax" else "pooler.dense.bias")
    message = f"^{tmp_path}/a/{file}: tensor {name}, but weights are read as float32,"
    for load in (from_pretrained, planned):
        with pytest.raises(InputError, match=message):
            load(tmp_path / "a")
    write_as(tmp_path / "b", to, kind, "none of them")
    from_pretrained(tmp_path / "b")


def planned(directory):
    return convert(ConvertConfig(str(directory), "nowhere", dry_run=True))


def test_weights_of_eight_bits(tmp_path):
    saved(tmp_path)
    state = load_torch(tmp_path / "model.safetensors")
    state["pooler.dense.bias"] = state["pooler.dense.bias"].to(torch.float8_e4m3fn)
    save_torch(state, tmp_path / "model.safetensors")
    for load in (from_pretrained, planned):
        with pytest.raises(InputError, match=r"tensor pooler.dense.bias is of type F8_E4M3, but"):
            load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(
        InputError, match=r"model.bin: holds a tensor of a type such as float8, but"
    ):
        from_pretrained(tmp_path)

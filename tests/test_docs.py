"""The examples in docstrings and in the README run as they stand."""

import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import torch
from safetensors.torch import load_file

import bertjax
from bertjax import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel
from bertjax.pretrained import abstract_params, save_pretrained
from bertjax.run_config import MeshConfig
from bertjax.sharding import make_mesh, state_shardings
from bertjax.tokenizer import BertTokenizer
from tests.peers import quick_params

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.parametrize(
    "module",
    [
        "config",
        "model",
        "heads",
        "task_heads",
        "causal_lm",
        "encoder_decoder",
        "encoder_decoder_config",
    ],
)
def test_docstring_examples(module):
    result = doctest.testmod(importlib.import_module(f"bertjax.{module}"))
    assert result.attempted
    assert not result.failed


def test_import_bertjax_is_enough_for_what_the_readme_names():
    named = sorted(set(re.findall(r"`(bertjax\.[a-z_]+\.[a-z_]+)[`(]", README.read_text())))
    assert "bertjax.devices.keep_freed_memory" in named
    for name in named:
        # In a process of its own: another module may have loaded this one.
        subprocess.run([sys.executable, "-c", f"import bertjax; {name}"], check=True)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        bertjax.nothing  # noqa: B018


def test_readme_python_examples(tmp_path, monkeypatch):
    """Run the README's Python blocks in order, at a size that takes seconds."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    small = BertConfig.preset(
        "tiny", vocab_size=50, hidden_size=16, num_attention_heads=4, intermediate_size=20
    )
    # What the examples find: directories under the names of models.
    model = BertForMaskedLM(small)
    classifier = BertForSequenceClassification(small)
    params = quick_params(model)
    words = Path("words.txt")
    words.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdef"]) + "\n")
    tokenizer = BertTokenizer.from_vocab(words)
    for directory, to in (
        ("bert-base-uncased", "hf"),
        ("uncased_L-12_H-768_A-12", "tf1"),
        ("owner/model", "hf"),
        ("flax_dir", "flax"),
        ("torch_dir", "hf"),
        ("runs/base/model", "hf"),
    ):
        save_pretrained(directory, model, params, tokenizer, to=to)
    weights = Path("torch_dir", "model.safetensors")
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    Path("runs/base/checkpoints").mkdir()
    save_pretrained("owner/classifier", classifier, quick_params(classifier), tokenizer)
    ids = jnp.ones((2, 8), jnp.int32)
    encoder = abstract_params(BertModel(small))
    names = {
        "input_ids": ids,
        "mask": ids,
        "types": ids,
        "positions": ids[:, :3],
        "tokens": ids,
        "labels": ids[:, 0],
        "key": jax.random.key(1),
        "shardings": state_shardings(encoder, make_mesh(MeshConfig(), jax.devices()[:1])),
    }
    sizes = "vocab_size=50, hidden_size=16, num_attention_heads=4, intermediate_size=20"
    for block in blocks:
        # Those that begin with text need nothing of the blocks before.
        alone = block.startswith("import bertjax") and "tokenizer = " in block
        found = {} if alone else names
        exec(block.replace('preset("base"', f'preset("tiny", {sizes}'), found)
        names |= found
        if "BertLMHeadModel" in block:
            assert alone
            assert names["written"].sequences.shape == (1, 12)
        if "BertConfig.preset" in block and not alone:
            assert names["output"].prediction_logits.shape == (2, 3, 50)
        if "BertForMultipleChoice" in block:
            shapes = {name: names[name].shape for name in ("guesses", "follows", "tags", "right")}
            assert shapes == {"guesses": (2, 3), "follows": (2,), "tags": (2, 8), "right": (2,)}
            assert names["output"].logits.shape == (2, 2)
    for written in (
        "out/model.safetensors",
        "shards/model.safetensors",
        "flax_out/flax_model.msgpack",
        "from_torch/model.safetensors",
        "tf_out/bert_model.ckpt.index",
        "orbax_out/params/_METADATA",
    ):
        assert (tmp_path / written).is_file()
    assert names["written"].sequences.shape == (1, 9)
    assert names["scored"].logits.shape == (1, 4, 50)
    assert set(names["both"]["decoder"]["bert"]["encoder"]["layer"]) == {"crossattention"}
    assert (tmp_path / "bert2bert" / "model.safetensors").is_file()
    assert int(names["output"].past_key_values.length) == 4
    assert names["model"].config.vocab_size == 31000
    assert names["model"].config.pruned_heads == ((0, 1), (0, 3), (1, 2))
    assert "adapters" in names

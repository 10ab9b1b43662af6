"""The examples in docstrings and in the README run as they stand."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.parametrize("module", ["config", "model", "heads"])
def test_docstring_examples(module):
    result = doctest.testmod(importlib.import_module(f"bertjax.{module}"))
    assert result.attempted
    assert not result.failed


def test_readme_module_example(tmp_path, monkeypatch):
    """Run the README's Python blocks in order, at a size that takes seconds."""
    import jax
    import jax.numpy as jnp

    import bertjax

    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    assert len(blocks) == 3
    ids = jnp.ones((2, 8), jnp.int32)
    names = {
        "input_ids": ids,
        "mask": ids,
        "types": ids,
        "positions": ids[:, :3],
        "key": jax.random.key(1),
    }
    first = blocks[0].replace('preset("base")', 'preset("tiny", vocab_size=50)')
    assert first != blocks[0]
    exec(first, names)
    assert names["output"].prediction_logits.shape == (2, 3, 50)
    bertjax.save_pretrained("path/to/model", names["model"], names["params"])
    for block in blocks[1:]:
        exec(block, names)
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert names["model"](ids).last_hidden_state.shape == (2, 8, 128)

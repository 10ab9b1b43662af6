"""Other people's weights in and out: `load_pretrained` and `save_pretrained`."""

import dataclasses
import json
import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from bertjax.config import BertConfig
from bertjax.errors import InputError
from bertjax.pretrained import names, safetensors
from bertjax.sharding import path_of

_LOG = logging.getLogger(__name__)
ModelT = TypeVar("ModelT", bound=Any)


def load_pretrained(
    model_class: type[ModelT],
    source: str | Path,
    *,
    shardings: Any = None,
    **attributes: Any,
) -> tuple[ModelT, dict[str, Any]]:
    """Build a model and its parameters from a directory in Hugging Face's layout.

    Args:
      model_class: `BertModel` or one of the classes with a head.
      source: directory with config.json and safetensors (single or sharded). A run directory's
        `model/` is one.
      shardings: tree of `jax.sharding.Sharding`s to load the parameters into; None leaves them on
        the default device.
      **attributes: attributes of the module (`dtype`, `add_pooling_layer`), and `config` to replace
        the one of the directory.

    Returns:
      The module, and its parameters in float32.

    Raises:
      InputError: no such directory, damaged files, or tensors that are missing, unexpected or of
        another shape, all of them listed.
    """
    source = Path(source)
    if not source.exists():
        raise InputError(f"{source}: no such model directory")
    config = attributes.pop("config", None) or BertConfig.from_pretrained(source)
    model = model_class(config, **attributes)
    wanted = abstract_params(model)
    with safetensors.open_tensors(source) as files:
        shapes = files.shapes()
        by_name = _match(wanted, shapes, source)
        if shardings is None:
            shardings = jax.tree.map(lambda _: None, wanted)

        def read(key_path: tuple[Any, ...], leaf: Any, sharding: Any) -> jax.Array:
            path = path_of(key_path)
            parts = [
                tensor.decode(files.read(by_name[tensor.name]))
                for tensor in names.hf_tensors(path, leaf.shape)
            ]
            stacked = parts[0].ndim < len(leaf.shape)
            return jax.device_put(np.stack(parts) if stacked else parts[0], sharding)

        params = jax.tree_util.tree_map_with_path(
            read, wanted, shardings, is_leaf=lambda x: x is None
        )
    return model, params


def abstract_params(model: Any) -> dict[str, Any]:
    """Return the model's parameter tree as shapes, without computing anything."""
    ids = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    return jax.eval_shape(model.init, jax.random.key(0), ids)["params"]


def _match(
    wanted: dict[str, Any], shapes: Mapping[str, tuple[int, ...]], source: Path
) -> dict[str, str]:
    """Return model tensor name -> checkpoint tensor name, or list everything that is amiss."""
    canonical = {names.canonical(name): name for name in shapes}
    headless = "bert" not in wanted
    renamed = names.to_model_prefix(canonical, headless)
    by_name = {renamed[c]: original for c, original in canonical.items()}
    expected = {
        tensor.name: tensor.shape
        for path, leaf in names.parameters(wanted)
        for tensor in names.hf_tensors(path, leaf.shape)
    }
    if names.DECODER in expected and names.DECODER_BIAS in by_name:
        by_name[names.BIAS] = by_name[names.DECODER_BIAS]
    extra = [name for name in by_name if name not in expected and not names.is_redundant(name)]
    if headless:  # the head of the model that the checkpoint comes from is not wanted
        dropped = [name for name in extra if name.startswith(names.HEADS)]
        extra = [name for name in extra if name not in dropped]
        if dropped:
            _LOG.info("%s: left out %d tensors: %s", source, len(dropped), ", ".join(dropped))
    faults = [f"missing {name} {list(s)}" for name, s in expected.items() if name not in by_name]
    faults += [f"unexpected {by_name[name]} {list(shapes[by_name[name]])}" for name in extra]
    faults += [
        f"misshapen {by_name[name]} {list(shapes[by_name[name]])}, the config says {list(shape)}"
        for name, shape in expected.items()
        if name in by_name and shapes[by_name[name]] != shape
    ]
    if faults:
        raise InputError(f"{source}: {len(faults)} tensors do not fit: " + "; ".join(faults))
    return by_name


def save_pretrained(
    directory: str | Path, model: Any, params: Mapping[str, Any], tokenizer: Any = None
) -> None:
    """Write a directory that transformers loads: config.json, model.safetensors, tokenizer files.

    The files are written beside and moved in when whole.

    Args:
      directory: created where needed; files of the same names are replaced.
      model: the module.
      params: its parameters.
      tokenizer: anything with `save_pretrained(directory)`.

    Raises:
      InputError: the directory cannot be written.
    """
    directory = Path(directory)
    tensors = {
        tensor.name: tensor.encode(array)
        for path, leaf in names.parameters(params)
        for array in (np.asarray(leaf, np.float32),)
        for tensor in names.hf_tensors(path, array.shape)
    }
    if names.DECODER in tensors:
        tensors[names.DECODER_BIAS] = tensors[names.BIAS]
    other = dict(model.config.other) | {"architectures": json.dumps([type(model).__name__])}
    config = dataclasses.replace(model.config, other=tuple(sorted(other.items())))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory, prefix=".writing-") as beside:
            config.to_json(Path(beside) / "config.json")
            safetensors.write(Path(beside) / safetensors.FILE, tensors)
            if tokenizer is not None:
                tokenizer.save_pretrained(beside)
            for path in sorted(Path(beside).iterdir()):
                path.chmod(0o644)  # the safetensors library leaves its files to their owner alone
                shutil.move(path, directory / path.name)
    except OSError as error:
        raise InputError(f"{directory}: cannot be written ({error.strerror})") from error

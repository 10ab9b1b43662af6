"""LoRA as a transformation of parameter trees: small factors beside frozen kernels.

`init` makes the factors, `merge` adds their product to the kernels. A model with adapters is the
module applied to `merge(params, adapters, config)`, whether in training or after it, so merging for
good changes nothing:

    adapters = lora.init(key, params, config)
    loss = lambda adapters: objective(model, lora.merge(params, adapters, config), batch)
    grads = jax.grad(loss)(adapters)                # of the adapters alone

The tree of adapters repeats the paths of the parameters: `.../query/lora_A/kernel` and
`.../query/lora_B/kernel` beside `.../query/kernel`, and under its own path what is trained in full.
`save` and `load` use the files of the `peft` library.
"""

import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from bertjax.config import BertConfig
from bertjax.errors import InputError
from bertjax.lora_config import LoraConfig
from bertjax.partition import is_stacked, select
from bertjax.pretrained import names
from bertjax.pretrained.safetensors import open_tensors, write_file

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"

_PREFIX = "base_model.model."

# What an adapter_config.json may say without changing what the tensors mean.
_HARMLESS = {
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "revision",
    "target_modules",
    "task_type",
    "use_rslora",
}


def init(key: jax.Array, params: Mapping[str, Any], config: LoraConfig) -> dict[str, Any]:
    """Make adapters that change nothing yet.

    The first factor is uniform with variance 1 / (3 inputs), as in the paper's code and peft; the
    second is zero. Parameters trained in full are copied.

    Args:
      key: PRNG key of the first factors.
      params: of any model; layers may be stacked.
      config: which kernels, and the rank.

    Returns:
      A tree of the dtypes of `params`; small enough to be replicated over devices.

    Raises:
      InputError: no rank, a pattern that matches nothing, or some of the layers of a kernel.
    """
    if config.rank < 1:
        raise InputError("lora: adapters need a rank of at least 1; got 0")
    flat = dict(names.parameters(params))
    kernels = {path: leaf for path, leaf in flat.items() if path.endswith("/kernel")}
    chosen = select(kernels, config.targets, "lora.targets") if config.targets else {}
    whole = select(flat, config.full, "lora.full") if config.full else {}
    adapters = {path: jnp.array(flat[path]) for path in _all_layers(whole)}
    targets = [path for path in _all_layers(chosen) if path not in adapters]
    for path, sub_key in zip(targets, jax.random.split(key, max(1, len(targets))), strict=False):
        dtype = flat[path].dtype
        for factor, shape in _factors(path, flat[path].shape, config.rank).items():
            bound = math.prod(shape[int(is_stacked(path)) : -1]) ** -0.5
            adapters[factor] = (
                jax.random.uniform(sub_key, shape, dtype, -bound, bound)
                if "lora_A" in factor
                else jnp.zeros(shape, dtype)
            )
    return traverse_util.unflatten_dict(adapters, sep="/")


def merge(
    params: Mapping[str, Any], adapters: Mapping[str, Any], config: LoraConfig
) -> dict[str, Any]:
    """Return the parameters with the adapters added; a pure function of both.

    Stacked adapters (`jax.vmap` over a leading axis) give models that share all other parameters.

    Raises:
      InputError: adapters of parameters that are not there.
    """
    multiply = jax.vmap(_product)

    def walk(base: Mapping[str, Any], extra: Mapping[str, Any], path: str) -> dict[str, Any]:
        merged = dict(base)
        for name, branch in extra.items():
            if name in ("lora_A", "lora_B"):
                continue
            if name not in base:
                raise InputError(f"the parameters have no {path}{name}, the adapters do")
            inner = isinstance(branch, Mapping)
            merged[name] = walk(base[name], branch, f"{path}{name}/") if inner else branch
        if "lora_A" in extra:
            kernel, a, b = base["kernel"], extra["lora_A"]["kernel"], extra["lora_B"]["kernel"]
            change = (multiply if is_stacked(path) else _product)(a, b)
            merged["kernel"] = kernel + (config.scale * change).astype(kernel.dtype)
        return merged

    return walk(params, adapters, "")


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    # In full precision on every device: it is cheap, and added to weights.
    return jnp.tensordot(a, b, axes=1, precision=jax.lax.Precision.HIGHEST)


def _all_layers(chosen: Mapping[str, Any]) -> list[str]:
    """Return the paths that `select` found, each of them whole."""
    for path, layers in chosen.items():
        if not isinstance(layers, bool):
            raise InputError(f"{path}: adapters are of all layers, leave the layers' numbers out")
    return [path for path, hit in chosen.items() if hit]


def _factors(path: str, shape: tuple[int, ...], rank: int) -> dict[str, tuple[int, ...]]:
    """Return the paths and shapes of the two factors of a kernel."""
    layers = int(is_stacked(path))
    inputs = layers + names.input_axes(path)
    parent = path.removesuffix("kernel")
    return {
        f"{parent}lora_A/kernel": (*shape[:inputs], rank),
        f"{parent}lora_B/kernel": (*shape[:layers], rank, *shape[inputs:]),
    }


def save(
    directory: str | Path,
    adapters: Mapping[str, Any],
    config: LoraConfig,
    model: Any,
    base_model: str = "",
) -> None:
    """Write adapters as peft does: `PeftModel.from_pretrained(base, directory)` loads them.

    Args:
      directory: created where needed; files of the same names are replaced.
      adapters: the tree of `init`.
      config: that of `init`.
      model: the module that they belong to.
      base_model: its name or directory, written down for peft.

    Raises:
      InputError: the directory cannot be written.
    """
    directory = Path(directory)
    tensors: dict[str, np.ndarray] = {}
    targets: set[str] = set()
    full: set[str] = set()
    for path, leaf in names.parameters(adapters):
        for tensor in names.hf_tensors(path, leaf.shape, model.config):
            tensors[_PREFIX + tensor.name] = np.ascontiguousarray(tensor.encode(np.asarray(leaf)))
            module = tensor.name.rpartition(".")[0]
            (targets if ".lora_" in module else full).add(module.partition(".lora_")[0])
    facts = {
        "base_model_name_or_path": base_model or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "modules_to_save": sorted(full) or None,
        "peft_type": "LORA",
        "r": config.rank,
        "target_modules": sorted(targets),
        "task_type": None,
        "use_rslora": config.rank_stabilized,
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory, prefix=".writing-") as beside:
            text = json.dumps(facts, indent=2) + "\n"
            (Path(beside) / CONFIG).write_text(text, encoding="utf-8")
            write_file(Path(beside) / WEIGHTS, tensors)
            for name in (WEIGHTS, CONFIG):
                (Path(beside) / name).chmod(0o644)  # the library's files are their owner's alone
                os.replace(Path(beside) / name, directory / name)
    except OSError as error:
        raise InputError(f"{directory}: cannot be written ({error.strerror or error})") from error


def load(
    directory: str | Path, model: Any, params: Mapping[str, Any]
) -> tuple[dict[str, Any], LoraConfig]:
    """Read adapters written by `save` or by peft.

    Args:
      directory: holds adapter_config.json and adapter_model.safetensors.
      model: the module that they are for, with or without a head on it.
      params: its parameters, or their shapes.

    Raises:
      InputError: damaged files, another method than plain LoRA, or tensors that do not fit, all of
        them listed.
    """
    directory = Path(directory)
    config = _read_config(directory / CONFIG)
    with open_tensors(directory / WEIGHTS) as file:
        shapes = file.shapes()
        sources = {_bare(name.removeprefix(_PREFIX)): name for name in shapes}
        wanted, config = _find(params, sources, config, model.config)
        expected = {_bare(tensor.name): tensor for tensors in wanted.values() for tensor in tensors}
        faults = [f"missing {t.name}" for name, t in expected.items() if name not in sources]
        faults += [f"unexpected {n}" for name, n in sources.items() if name not in expected]
        faults += [
            f"misshapen {sources[name]} {list(shapes[sources[name]])}, here {list(tensor.shape)}"
            for name, tensor in expected.items()
            if name in sources and shapes[sources[name]] not in (tensor.shape, tensor.pruned_shape)
        ]
        if faults:
            listed = "; ".join(faults)
            raise InputError(f"{directory / WEIGHTS}: {len(faults)} tensors do not fit: {listed}")

        def read(path: str, tensors: list[names.HfTensor]) -> jax.Array:
            parts = [tensor.decode(file.read(sources[_bare(tensor.name)])) for tensor in tensors]
            return jnp.asarray(np.stack(parts) if is_stacked(path) else parts[0])

        adapters = {path: read(path, tensors) for path, tensors in wanted.items()}
    return traverse_util.unflatten_dict(adapters, sep="/"), config


def _find(
    params: Mapping[str, Any], sources: Mapping[str, str], config: LoraConfig, model: BertConfig
) -> tuple[dict[str, list[names.HfTensor]], LoraConfig]:
    """Return the tensors of every adapter that a file has something of, by its path."""
    wanted: dict[str, list[names.HfTensor]] = {}
    full: list[str] = []
    targets: list[str] = []
    for path, leaf in names.parameters(params):
        whole = {path: names.hf_tensors(path, leaf.shape, model)}
        shapes = _factors(path, leaf.shape, config.rank) if path.endswith("/kernel") else {}
        factors = {name: names.hf_tensors(name, shape, model) for name, shape in shapes.items()}
        for group, kind in ((whole, full), (factors, targets)):
            if any(_bare(t.name) in sources for tensors in group.values() for t in tensors):
                wanted |= group
                kind.append(path)
    return wanted, dataclasses.replace(config, targets=tuple(targets), full=tuple(full))


def _bare(name: str) -> str:
    """Return a tensor's name as in a model without a head."""
    return name.removeprefix("bert.")


def _read_config(path: Path) -> LoraConfig:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        rank, alpha = int(facts["r"]), float(facts["lora_alpha"])
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is not an adapter_config.json ({error!r})") from error
    if facts.get("peft_type") != "LORA":
        raise InputError(f"{path}: peft_type {facts.get('peft_type')!r} is not LORA")
    unknown = {k: v for k, v in facts.items() if v and k not in _HARMLESS and v != "none"}
    if unknown:
        raise InputError(f"{path}: uses what bertjax's adapters do not know: {unknown}")
    return LoraConfig(rank, alpha, (), (), bool(facts.get("use_rslora")))

"""Where a model's weights are, and which format they are in."""

import dataclasses
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bertjax import run_dir
from bertjax.config import BertConfig
from bertjax.encoder_decoder_config import AnyConfig, config_from_directory
from bertjax.errors import InputError
from bertjax.pretrained import hub, shards


@dataclasses.dataclass(frozen=True)
class Format:
    """A kind of weight file.

    Attributes:
      name: of its module in `bertjax.pretrained`, imported when first needed.
      files: patterns of the files to open in a directory, preferred first.
      parts: patterns of what else belongs to them, of a model that is written.
    """

    name: str
    files: tuple[str, ...]
    parts: tuple[str, ...] = ()

    @property
    def module(self) -> Any:
        """The module, with `open_tensors(path)` and, where the format is written, `write`."""
        return importlib.import_module(f"bertjax.pretrained.{self.name}")


def _sharded(module: str, file: str) -> Format:
    stem, suffix = file.split(".")
    return Format(module, (file, f"{file}.index.json"), (f"{stem}-*-of-*.{suffix}",))


# The order is that in which a directory is searched.
FORMATS = {
    "hf": _sharded("safetensors", "model.safetensors"),
    "flax": _sharded("flax_msgpack", "flax_model.msgpack"),
    "orbax": Format("orbax", ("params/_METADATA",)),
    "torch": _sharded("torch_bin", "pytorch_model.bin"),
    "tf1": Format("tf1", ("*.index",), ("bert_model.ckpt.*",)),
}
WRITERS = ("hf", "flax", "tf1", "orbax")
_SUFFIXES = {
    ".safetensors": "hf",
    ".safetensors.index.json": "hf",
    ".msgpack": "flax",
    ".msgpack.index.json": "flax",
    ".bin": "torch",
    ".pt": "torch",
    ".pth": "torch",
    ".bin.index.json": "torch",
    ".index": "tf1",
}


def locate(source: str | Path, *, also: Sequence[str] = (), **hub_options: Any) -> Path:
    """Return the local file or directory of a model; one of the hub is downloaded first.

    Of a model of the hub that is its config and its weights in one format.

    Args:
      source: directory, weight file, run directory, TensorFlow prefix, or name on the hub.
      also: what else is downloaded: `hub.TOKENIZER`, `hub.SENTENCES` or both.
      **hub_options: `revision`, `token`, `cache_dir` and `local_files_only` of `hub.fetch`.

    Raises:
      InputError: there is nothing of that name.
    """
    weights = [pattern for kind in FORMATS.values() for pattern in kind.files]
    return _locate(source, (*hub.CONFIG, *also), weights, hub_options)


def locate_config(source: str | Path, **hub_options: Any) -> Path:
    """As `locate`, but of a model of the hub only the config is downloaded."""
    return _locate(source, hub.CONFIG, (), hub_options)


def locate_tokenizer(source: str | Path, **hub_options: Any) -> Path:
    """Return the directory of a model's tokenizer files; of the hub, only these are downloaded."""
    path = _locate(source, hub.TOKENIZER, (), hub_options)
    if (path / run_dir.MODEL).is_dir() and (path / run_dir.CHECKPOINTS).is_dir():
        return path / run_dir.MODEL
    return path if path.is_dir() else path.parent


def _locate(
    source: str | Path,
    beside: Sequence[str],
    weight_files: Sequence[str],
    hub_options: dict[str, Any],
) -> Path:
    if not str(source).strip():
        raise InputError(
            "the name of the model is empty: give a directory, a file, or a name on the hub"
        )
    path = Path(source)
    if path.exists() or Path(f"{path}.index").is_file():
        return path
    if not hub.is_name(str(source)):
        raise InputError(f"{source}: no such model directory or file")
    return hub.fetch(str(source), beside, weight_files, **hub_options)


def find_weights(path: Path) -> tuple[Format, Path]:
    """Return the format of the weights at `path`, and the file to open.

    Raises:
      InputError: no weights there, or of no known kind.
    """
    kind, file = _find_weights(path)
    if file.is_file() and file.stat().st_size < 1024:
        with file.open("rb") as opened:
            if opened.read(20) == b"version https://git-":
                raise InputError(
                    f"{file}: is a pointer to a file that git-lfs did not fetch; run git lfs pull"
                )
    return kind, file


def _find_weights(path: Path) -> tuple[Format, Path]:
    if (path / run_dir.CHECKPOINTS).is_dir():
        return _find_in_run(path)
    if path.is_dir():
        for kind in FORMATS.values():
            for pattern in kind.files:
                if any(path.glob(pattern)):
                    return kind, path / pattern if "*" not in pattern else kind.module.find(path)
        known = ", ".join(pattern for kind in FORMATS.values() for pattern in kind.files)
        raise InputError(f"{path}: holds no weights (none of {known})")
    for suffix, name in _SUFFIXES.items():
        if path.name.endswith(suffix):
            shards.check_no_shard(path)
            return FORMATS[name], path
    if ".ckpt" in path.name or not path.exists():  # a prefix, or another file of a checkpoint
        return FORMATS["tf1"], path
    raise InputError(f"{path}: is no weight file of a known kind ({', '.join(_SUFFIXES)})")


def _find_in_run(path: Path) -> tuple[Format, Path]:
    """Return the final model of a run, or its newest checkpoint."""
    if (path / run_dir.MODEL).is_dir():
        return _find_weights(path / run_dir.MODEL)
    states = sorted(path.glob(f"{run_dir.CHECKPOINTS}/[0-9]*[0-9]/state/_METADATA"))
    if not states:
        raise InputError(f"{path}: this run has no {run_dir.MODEL}/ and no checkpoint yet")
    return FORMATS["orbax"], states[-1]


def find_config(path: Path) -> AnyConfig:
    """Return the config that belongs to the weights at `path`.

    Raises:
      InputError: there is none.
    """
    if (path / run_dir.CHECKPOINTS).is_dir():
        if (path / run_dir.MODEL).is_dir():
            return config_from_directory(path / run_dir.MODEL)
        return run_dir.model_config(path)
    return config_from_directory(path if path.is_dir() else path.parent)


def find_bert_config(path: Path) -> BertConfig:
    """Return the config at `path`, of one BERT.

    Raises:
      InputError: there is none, or that of an encoder-decoder.
    """
    found = find_config(path)
    if isinstance(found, BertConfig):
        return found
    raise InputError(f"{path}: is an encoder-decoder; name a model that is one BERT")


def parse_size(size: str | int) -> int:
    """Return bytes for 1000, "500KB", "20MB" or "5GB" (powers of 1000, as transformers).

    Raises:
      InputError: not a size.
    """
    if isinstance(size, int):
        return size
    text = size.strip().upper()
    factor = {"KB": 10**3, "MB": 10**6, "GB": 10**9}.get(text[-2:], 1)
    try:
        return round(float(text[:-2] if factor > 1 else text) * factor)
    except ValueError:
        raise InputError(f"{size!r} is not a size: give bytes, or such as 500MB or 5GB") from None


def architectures(config: AnyConfig) -> list[str]:
    """Return the class names that a config.json gives.

    Raises:
      InputError: it gives something else.
    """
    given = json.loads(dict(config.other).get("architectures", "null"))
    if given is None:
        return []
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise InputError(
            "architectures in config.json must be a list of class names, such as "
            f'["BertForMaskedLM"]; got {json.dumps(given)}'
        )
    return given

"""Models by name: fetched from the Hugging Face hub, or found in its cache."""

import fnmatch
import glob
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bertjax.errors import InputError

_LOG = logging.getLogger(__name__)

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")

# What a model of the hub has beside its weights, by what reads it.
CONFIG = ("config.json", "bert_config.json")
TOKENIZER = (
    "vocab.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
SENTENCES = (  # the last one is of poolings and dense layers
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "[0-9]_*/config.json",
)


def is_name(source: str) -> bool:
    """Whether `source` could be a name on the hub: MODEL or OWNER/MODEL."""
    return _REPO.fullmatch(source) is not None


def fetch(
    name: str,
    beside: Sequence[str],
    weight_files: Sequence[str] = (),
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """Return the local directory of a model of the hub; what is in the cache is not fetched again.

    Only what is asked for is downloaded, and one format's weights. Without a network, or with
    HF_HUB_OFFLINE=1, the cache has to do.

    Args:
      name: MODEL or OWNER/MODEL.
      beside: patterns of other files: `CONFIG`, `TOKENIZER`, `SENTENCES`, or several of them.
      weight_files: patterns of weight files (`model.safetensors`), preferred first.
      revision: branch, tag or commit.
      token: for private models; None takes the one stored by `hf auth login`.
      cache_dir: None takes the hub's own (HF_HOME).
      local_files_only: do not use the network.

    Raises:
      InputError: no such model or revision, no access to it, no weights there, or no network and
        not in the cache.
    """
    from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache
    from huggingface_hub import errors as hub

    where = f"{name} (no such file or directory, so taken for a model of the Hugging Face hub)"
    options: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir, "token": token}
    reason = "looked for in the cache only"
    if not local_files_only:
        try:
            info = HfApi(token=token).model_info(name, revision=revision)
            files = [sibling.rfilename for sibling in info.siblings or ()]
            wanted = choose(files, beside, weight_files)
            if weight_files and not _weights(files, weight_files):
                raise InputError(f"{where}: holds no weights ({', '.join(weight_files)})")
            patterns = [glob.escape(file) for file in wanted]
            return Path(snapshot_download(name, allow_patterns=patterns, **options))
        except hub.GatedRepoError as error:
            raise InputError(f"{where}: needs its licence accepted and a token") from error
        except hub.RevisionNotFoundError as error:
            raise InputError(f"{where}: has no revision {revision!r}") from error
        except hub.RepositoryNotFoundError as error:
            raise InputError(f"{where}: is not there, or is private and needs a token") from error
        except hub.HFValidationError as error:
            raise InputError(f"{where}: {error}") from error
        except hub.OfflineModeIsEnabled:
            reason = "HF_HUB_OFFLINE is set"
        except InputError:
            raise
        except Exception as error:  # of whichever HTTP library the hub's client is built on
            reason = f"the hub cannot be reached: {type(error).__name__}: {error}".rstrip(": ")
    for file in beside:
        try:
            cached = try_to_load_from_cache(name, file, cache_dir=cache_dir, revision=revision)
        except hub.HFValidationError as error:
            raise InputError(f"{where}: {error}") from error
        if isinstance(cached, str):
            directory = Path(cached.removesuffix(file))
            files = [str(path.relative_to(directory)) for path in directory.rglob("*")]
            if weight_files and not _weights(files, weight_files):
                break  # only its config was needed before
            if not local_files_only:
                _LOG.warning("%s: %s; taking it from the cache", name, reason)
            return directory
    raise InputError(f"{where}: not in the cache, and {reason}")


def choose(files: Sequence[str], beside: Sequence[str], weight_files: Sequence[str]) -> list[str]:
    """List what to download: beside every config, the weights in the first format there is.

    Args:
      files: all files of the repository.
      beside: patterns of files that are no weights.
      weight_files: patterns of weight files, preferred first; none takes no weights.
    """
    chosen = [file for file in files if any(fnmatch.fnmatchcase(file, p) for p in beside)]
    folders = {file.rpartition("/")[0] for file in chosen if file.endswith("/config.json")}
    weights = _weights(files, weight_files)
    for folder in sorted(folders):
        weights += _weights(files, [f"{folder}/{pattern}" for pattern in weight_files])
    return chosen + weights


def _weights(files: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """List the files of the first format there is; an index brings what it is the index of."""
    for pattern in patterns:
        found = fnmatch.filter(files, pattern)
        if not found:
            continue
        if pattern.endswith(".index.json"):
            stem, suffix = pattern.removesuffix(".index.json").rsplit(".", 1)
            found += fnmatch.filter(files, f"{stem}-*-of-*.{suffix}")
        elif pattern.endswith(".index"):  # TensorFlow's, with its data beside it
            found += fnmatch.filter(files, "*.data-?????-of-?????")
            found += fnmatch.filter(files, "checkpoint")
        elif pattern.endswith("/_METADATA"):  # Orbax's, one of many files
            found = fnmatch.filter(files, pattern.replace("_METADATA", "*"))
        return found
    return []

"""Compiled programs kept on disk, so that a second start does not compile again.

The `bertjax` command keeps them by itself; in a program or a notebook call `enable()` once, before
anything is compiled. JAX checks that an entry is of the same program, options, versions and
accelerator; what it does not check, the instruction set of a CPU, is part of the directory here.
"""

import hashlib
import os
import platform
from pathlib import Path

import jax

# Entries that were not used for longest go first.
_MAX_BYTES = 2 * 1024**3


def enable(directory: str | os.PathLike[str] | None = None) -> Path | None:
    """Keep compiled programs in a directory from now on, for this process and later ones.

    A directory that cannot be used, or a damaged entry, costs a warning of JAX's and the time to
    compile, nothing else.

    Args:
      directory: where; None: `bertjax` in the user's cache directory ($XDG_CACHE_HOME, or
        ~/.cache). Where JAX has a cache already (JAX_COMPILATION_CACHE_DIR), that is left alone.

    Returns:
      The directory, or None where JAX has one of its own.
    """
    if directory is None and getattr(jax.config, "jax_compilation_cache_dir", None):
        return None
    if directory is None:
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        directory = Path(caches) / "bertjax"
    place = Path(directory) / f"compiled-{_processor()}"
    jax.config.update("jax_compilation_cache_dir", str(place))
    jax.config.update("jax_compilation_cache_max_size", _MAX_BYTES)
    # By default JAX keeps only what took a second or more; many small programs take as long.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return place


def _processor() -> str:
    """Return a short name of this CPU's instruction set."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    features = next((x for x in lines if x.startswith(("flags", "Features"))), "")
    name = f"{platform.machine()} {platform.processor()} {features}"
    return hashlib.sha256(name.encode()).hexdigest()[:12]

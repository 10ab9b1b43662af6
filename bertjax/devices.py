"""What a job does first: join the hosts, make the mesh, fit its ways to the devices."""

import ctypes

import jax
from jax.sharding import Mesh

from bertjax.run_config import MeshConfig
from bertjax.sharding import check_batch_size, join_hosts, make_mesh

# Parameters of glibc's mallopt (malloc.h).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def open_mesh(
    config: MeshConfig, *, batch_size: int, accumulation_steps: int = 1, distributed: bool = False
) -> Mesh:
    """Return the mesh of a job, after joining the other hosts.

    Raises:
      InputError: a mesh that does not fit the devices, or a batch that it does not divide.
    """
    # Threads that JAX starts keep the arena of their first block, and one of their own cannot hold
    # large ones: so it is before JAX starts that there must be one arena.
    _mallopt((_M_ARENA_MAX, 1))
    if distributed:
        join_hosts()
    mesh = make_mesh(config)
    if mesh.devices.flat[0].platform == "cpu":
        keep_freed_memory()
    else:
        _mallopt((_M_ARENA_MAX, 0))  # as many as there were to be
    check_batch_size(mesh, batch_size, accumulation_steps)
    return mesh


def batch_widths() -> int:
    """Return the widths that the batches of a split may have at most: as many programs compile.

    On a CPU padding takes as long as tokens do: with 8 widths 15 % of SST-2's columns are padding
    and 8 % of SQuAD-like windows', with 12 11 % and 5 %, for some ten seconds of a core each. For
    accelerators, whose steps take milliseconds, three are a guess that waiting outweighs padding.
    """
    return 8 if jax.default_backend() == "cpu" else 3


def keep_freed_memory() -> bool:
    """Let memory that this process has freed stay with it, for what it allocates next.

    By default glibc returns large blocks to the kernel at once, so that a step on a CPU has all its
    memory mapped and cleared anew, page by page: a fifth of the time of a small model's step. The
    price is that the process never shrinks. Other C libraries are left as they are. Of the threads
    that JAX has started already, this changes little.

    Returns:
      Whether it is so now.
    """
    return _mallopt(
        (_M_ARENA_MAX, 1),
        (_M_MMAP_MAX, 0),
        (_M_TRIM_THRESHOLD, 2**31 - 1),
        (_M_TOP_PAD, 64 * 2**20),
    )


def _mallopt(*settings: tuple[int, int]) -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return False
    return all(mallopt(*setting) == 1 for setting in settings)

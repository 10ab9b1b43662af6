"""Running the tests' own programs, and the command, as processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def environment(devices=1, **extra):
    """The environment of a child with that many virtual CPU devices."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
        **extra,
    }


def start(*arguments, devices=1, **options):
    """Start `python -m ARGUMENTS` and return the process, with its output captured."""
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)],
        env=environment(devices, **options.pop("env", {})),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=options.pop("cwd", ROOT),
        **options,
    )


def finish(process, timeout=600):
    """Wait for a process; return (exit code, stdout, stderr)."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, out, err


def run(*arguments, **options):
    """Run `python -m ARGUMENTS` to its end."""
    return finish(start(*arguments, **options))


def bertjax(*arguments, **options):
    """Run the `bertjax` command."""
    return run("bertjax.cli", *arguments, **options)


def free_port():
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]

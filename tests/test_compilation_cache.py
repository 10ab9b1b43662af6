"""The second start compiles nothing, and no state of the cache stops a start."""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import json, sys
import jax, jax.numpy as jnp
from bertjax import compilation_cache
place = compilation_cache.enable(*sys.argv[1:])
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
value = jax.jit(lambda x: jnp.sin(x) @ x.T)(jnp.ones((40, 40))).sum()
print(json.dumps({
    "place": place and str(place),
    "value": float(value),
    "used": jax.config.jax_compilation_cache_dir,
    "hits": hits.count("/jax/compilation_cache/cache_hits"),
    "misses": hits.count("/jax/compilation_cache/cache_misses"),
}))
"""


def start(*arguments, **environment):
    variables = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        env=variables | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.slow
def test_the_second_start_compiles_nothing_and_damage_only_costs_time(tmp_path):
    first, second = start(tmp_path), start(tmp_path)
    assert first["hits"] == 0
    assert first["misses"] > 0
    assert second["misses"] == 0
    assert second["hits"] == first["misses"]
    for entry in tmp_path.glob("compiled-*/*-cache"):
        entry.write_bytes(entry.read_bytes()[:20])
    damaged = start(tmp_path)
    assert damaged["value"] == second["value"] == first["value"]


def test_the_users_cache_directory_and_jaxs_own_are_respected(tmp_path):
    default = start(XDG_CACHE_HOME=str(tmp_path / "caches"))
    assert default["place"].startswith(str(tmp_path / "caches" / "bertjax" / "compiled-"))
    own = start(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "jax"))
    assert own["place"] is None
    assert own["used"] == str(tmp_path / "jax")


def test_a_directory_that_cannot_be_made_stops_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    assert start(tmp_path / "file")["value"] == start(tmp_path / "good")["value"]

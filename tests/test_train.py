"""The step on 8 virtual devices and on 2 processes: the mesh must not change the result."""

import json

import numpy as np
import pytest

from bertjax import sharding
from tests.processes import finish, free_port, run, start

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def meshes():
    code, out, err = run("tests.workers.meshes", "meshes", devices=8)
    assert code == 0, err
    # XLA says so where it must gather a whole array to reshard it.
    assert "rematerialization" not in err, err
    return json.loads(out)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["8x1x1", "1x8x1", "2x2x2"])
def test_meshes_give_the_same_losses_with_dropout(meshes, mesh):
    np.testing.assert_allclose(meshes[mesh], meshes["1x1x1"], rtol=TOLERANCE)
    assert meshes[mesh][0][0] != meshes[mesh][1][0]


@pytest.mark.slow
def test_accumulation_gives_the_same_losses(meshes):
    np.testing.assert_allclose(meshes["accumulation 4"], meshes["accumulation 1"], rtol=TOLERANCE)


@pytest.mark.slow
def test_large_leaves_are_really_split(meshes):
    checked = 0
    for path, (whole, shard) in meshes["placement"].items():
        if np.prod(whole) >= 64 * 64 and "position" not in path:
            assert np.prod(whole) == np.prod(shard) * (
                2 if "dense/kernel" in path and ("pooler" in path or "transform" in path) else 4
            ), path
            checked += 1
    assert checked >= 3 * 8  # parameters and both moments


@pytest.mark.slow
def test_two_processes_equal_one():
    code, out, err = run("tests.workers.meshes", "one", 0, devices=8)
    assert code == 0, err
    want = json.loads(out)
    address = f"127.0.0.1:{free_port()}"
    children = [start("tests.workers.meshes", "two", i, address, devices=4) for i in range(2)]
    for child in children:
        code, out, err = finish(child)
        assert code == 0, err
        got = json.loads(out.splitlines()[-1])
        assert (got["devices"], got["local"]) == (8, 4)
        for mesh in ("4x2x1", "2x2x2"):
            np.testing.assert_allclose(got[mesh], want[mesh], rtol=TOLERANCE)


def test_mesh_axes_are_auto():
    """jax.make_mesh defaults to Explicit axes, under which Linen's Dense and Embed raise."""
    import jax
    from jax.sharding import AxisType

    from bertjax.run_config import MeshConfig

    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    assert mesh.axis_types == (AxisType.Auto,) * 3

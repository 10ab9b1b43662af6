"""The step on 8 virtual devices and on 2 processes: the mesh must not change the result."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from bertjax import BertForSequenceClassification, sharding
from bertjax.objectives import FinetuningObjective
from bertjax.optimizer import optimizer
from bertjax.pretrained import names
from bertjax.run_config import MeshConfig, OptimizerConfig
from bertjax.train import loss_and_grads, new_state, prefers_layers_apart, train_step
from bertjax.unstacked import one_by_one, together
from tests.encoder_decoders import pair_of
from tests.models import BATCH, SMALL, inputs, random_params
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
def test_a_vocabulary_that_fsdp_does_not_divide(meshes):
    np.testing.assert_allclose(meshes["odd 1x8x1"], meshes["odd 1x1x1"], rtol=TOLERANCE)
    placement = meshes["odd placement"]
    found = [sizes for path, sizes in placement.items() if "word_embeddings" in path]
    assert found == [[[511, 64], [511, 8]]] * 3  # the parameter and both moments


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
    from jax.sharding import AxisType

    from bertjax.run_config import MeshConfig

    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    assert mesh.axis_types == (AxisType.Auto,) * 3


# What is frozen


@pytest.fixture(scope="module")
def classifier():
    """An objective, its parameters and a batch."""
    model = BertForSequenceClassification(SMALL)
    batch = inputs(SMALL) | {
        "labels": np.array([0, 1, 1, 0, 1], np.int32),
        "weights": np.ones(BATCH, np.float32),
    }
    doubled = {name: np.concatenate([rows, rows[::-1]]) for name, rows in batch.items()}
    return FinetuningObjective(model), random_params(model), doubled


def gradients(classifier, parts, freeze=()):
    objective, params, batch = classifier
    step = jax.jit(partial(loss_and_grads, objective, accumulation_steps=parts, freeze=freeze))
    sums, grads = step(params, batch, jax.random.key(0))
    assert float(sums["loss"].weight) == 2 * BATCH
    return dict(names.parameters(grads))


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 2])
def test_what_is_frozen_has_no_gradient_and_changes_no_other(classifier, parts):
    whole = gradients(classifier, parts)
    frozen = gradients(classifier, parts, ("embeddings", "layer/0-1", "classifier/bias"))
    for path, gradient in frozen.items():
        want = np.array(whole[path])
        if "/layer/" in path:
            want[:2] = 0
        elif "/embeddings/" in path or path == "classifier/bias":
            want[:] = 0
        np.testing.assert_allclose(gradient, want, rtol=1e-4, atol=1e-6, err_msg=path)


@pytest.mark.slow
def test_what_is_frozen_costs_nothing(classifier):
    """The backward pass of an encoder is two thirds of a step's work."""
    objective, params, batch = classifier
    work = {}
    for freeze in ((), ("embeddings", "encoder")):
        tx = optimizer(OptimizerConfig(freeze=freeze), 10)
        step = partial(train_step, objective=objective, tx=tx, seed=0, freeze=freeze)
        state = jax.eval_shape(partial(new_state, tx=tx), params)
        work[freeze] = jax.jit(step).lower(state, batch).compile().cost_analysis()["flops"]
    without, with_frozen = work.values()
    assert with_frozen < 0.4 * without


# Layers one by one


RULES = {
    "AdamW, lower layers slower": OptimizerConfig(layer_decay=0.5),
    "LAMB": OptimizerConfig(name="lamb", weight_decay=0.1),
    "BertAdam": OptimizerConfig(name="bert_adam", clip_norm=0.01),
}


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("parts", [1, 2])
def test_steps_on_layers_one_by_one_are_those_on_stacks(classifier, rule, parts):
    objective, params, batch = classifier
    tx = optimizer(dataclasses.replace(RULES[rule], learning_rate=1e-2, schedule="constant"), 10)
    run = partial(train_step, objective=objective, tx=tx, seed=0, accumulation_steps=parts)
    step = jax.jit(run)
    stacked = new_state(params, tx)
    apart = one_by_one(jax.tree.map(jnp.copy, stacked))
    for _ in range(3):
        stacked, want = step(stacked, batch)
        apart, found = step(apart, batch)
        for name in want:
            np.testing.assert_allclose(found[name], want[name], rtol=TOLERANCE, err_msg=name)
    assert list(apart.params["bert"]["encoder"]["layer"]) == ["0", "1", "2"]
    after = dict(names.parameters(stacked.params))
    for path, found in names.parameters(together(apart).params):
        if not path.endswith("key/bias"):  # whose gradient is nothing but rounding
            np.testing.assert_allclose(found, after[path], atol=TOLERANCE, err_msg=path)


def test_layers_are_apart_on_one_cpu_alone():
    one = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    unrolled = dataclasses.replace(SMALL, scan_unroll=0)
    assert prefers_layers_apart(unrolled, one)
    assert prefers_layers_apart(pair_of(unrolled, unrolled), one)
    assert not prefers_layers_apart(pair_of(unrolled, SMALL), one)  # a loop over stacks
    assert not prefers_layers_apart(unrolled, one, freeze=("embeddings",))
    assert not prefers_layers_apart(unrolled, AbstractMesh((2, 1, 1), sharding.MESH_AXES))

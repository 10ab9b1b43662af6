"""The schedules against transformers, the update rules against torch and written-out formulas."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from transformers import get_scheduler

from bertjax.errors import InputError
from bertjax.optimizer import (
    decay_mask,
    learning_rate_schedule,
    optimizer,
    scale_by_bert_adam,
    scale_by_layer_trust_ratio,
)
from bertjax.run_config import OptimizerConfig

LAYERS, HIDDEN, HEADS, HEAD, MLP, VOCAB = 3, 8, 2, 4, 12, 20
Flat = dict[str, np.ndarray]


WSD = {"schedule": "warmup_stable_decay", "decay_steps": 20}


def make_params(seed: int = 0) -> Any:
    """Return a tree with BERT's parameter names: kernels of 0.02, LayerNorm scales near 1."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(0.02 * rng.standard_normal(shape), jnp.float32)

    def dense(*shape: int, bias: tuple[int, ...]) -> dict[str, jax.Array]:
        return {"kernel": normal(*shape), "bias": normal(*bias)}

    def layer_norm(*shape: int) -> dict[str, jax.Array]:
        return {"scale": 1 + normal(*shape), "bias": normal(*shape)}

    L, D, H, K = LAYERS, HIDDEN, HEADS, HEAD
    projection = {name: dense(L, D, H, K, bias=(L, H, K)) for name in ("query", "key", "value")}
    attention_output = {"dense": dense(L, H, K, D, bias=(L, D)), "LayerNorm": layer_norm(L, D)}
    layer = {
        "attention": {"self": projection, "output": attention_output},
        "intermediate": {"dense": dense(L, D, MLP, bias=(L, MLP))},
        "output": {"dense": dense(L, MLP, D, bias=(L, D)), "LayerNorm": layer_norm(L, D)},
    }
    embeddings = {
        "word_embeddings": {"embedding": normal(VOCAB, D)},
        "position_embeddings": {"embedding": normal(6, D)},
        "token_type_embeddings": {"embedding": normal(2, D)},
        "LayerNorm": layer_norm(D),
    }
    return {
        "bert": {
            "embeddings": embeddings,
            "encoder": {"layer": layer},
            "pooler": {"dense": dense(D, D, bias=(D,))},
        },
        "cls": {
            "predictions": {
                "transform": {"dense": dense(D, D, bias=(D,)), "LayerNorm": layer_norm(D)},
                "bias": normal(VOCAB),
            },
            "seq_relationship": dense(D, 2, bias=(2,)),
        },
    }


DECAYED = {
    "bert/embeddings/word_embeddings/embedding",
    "bert/embeddings/position_embeddings/embedding",
    "bert/embeddings/token_type_embeddings/embedding",
    "bert/encoder/layer/attention/self/query/kernel",
    "bert/encoder/layer/attention/self/key/kernel",
    "bert/encoder/layer/attention/self/value/kernel",
    "bert/encoder/layer/attention/output/dense/kernel",
    "bert/encoder/layer/intermediate/dense/kernel",
    "bert/encoder/layer/output/dense/kernel",
    "bert/pooler/dense/kernel",
    "cls/predictions/transform/dense/kernel",
    "cls/seq_relationship/kernel",
}


def flatten(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(key.key for key in path): leaf for path, leaf in leaves}


def make_gradients(steps: int) -> list[Any]:
    """Return gradients whose global norm goes through 1, with word rows that are never touched."""
    rng = np.random.default_rng(1)
    params = make_params()
    gradients = []
    for step in range(steps):
        scale = 0.01 * 10 ** math.sin(step)
        tree = jax.tree.map(
            lambda p, scale=scale: np.float32(scale * rng.standard_normal(p.shape)), params
        )
        tree["bert"]["embeddings"]["word_embeddings"]["embedding"][VOCAB // 2 :] = 0.0
        gradients.append(tree)
    norms = [global_norm(tree) for tree in gradients]
    assert min(norms) < 1 < max(norms), "the gradients must test clipping on both sides"
    return gradients


def global_norm(tree: Any) -> float:
    return math.sqrt(sum(float((np.float64(leaf) ** 2).sum()) for leaf in jax.tree.leaves(tree)))


def train(config: OptimizerConfig, params: Any, gradients: list[Any]) -> Any:
    chain = optimizer(config, len(gradients))

    @jax.jit
    def step(params: Any, state: Any, gradient: Any) -> Any:
        updates, state = chain.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.jit(chain.init)(params)
    for gradient in gradients:
        params, state = step(params, state, gradient)
    return params


# Schedules


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("schedule", {"schedule": "linaer"}),
        ("learning_rate", {"learning_rate": 0.0}),
        ("learning_rate", {"learning_rate": math.nan}),
        ("warmup_steps", {"warmup_steps": 101}),
        ("warmup_steps", {"warmup_steps": -1}),
        ("warmup_steps", {"schedule": "constant", "warmup_steps": 1}),
        ("num_cycles", {"schedule": "cosine", "num_cycles": 0.0}),
        ("num_cycles", {"schedule": "cosine", "num_cycles": 1e9}),
        ("power", {"schedule": "polynomial", "power": 0.0}),
        ("end_learning_rate", {"schedule": "polynomial", "learning_rate": 1e-7}),
        ("min_learning_rate", {"schedule": "cosine_with_min_lr", "min_learning_rate": 1.0}),
        ("timescale", {"schedule": "inverse_sqrt", "timescale": -1}),
        ("decay_steps", {**WSD, "decay_steps": 0}),
        ("decay_steps", {**WSD, "warmup_steps": 60, "decay_steps": 41}),
        ("warmup_type", {**WSD, "warmup_type": "sqrt"}),
        ("decay_type", {**WSD, "decay_type": "sqrt"}),
        ("name", {"name": "adam"}),
        ("weight_decay", {"weight_decay": -0.1}),
        ("b1", {"b1": 1.0}),
        ("b2", {"b2": -0.1}),
        ("eps", {"eps": 0.0}),
        ("clip_norm", {"clip_norm": -1.0}),
    ],
)
def test_bad_config_is_an_input_error_that_names_the_field(field: str, fields: Any) -> None:
    with pytest.raises(InputError, match=rf"^optimizer\.{field} .*; got [^\n]+$"):
        optimizer(OptimizerConfig(**fields), 100)


def test_bad_train_steps() -> None:
    with pytest.raises(InputError, match=r"^train_steps"):
        learning_rate_schedule(OptimizerConfig(), 0)


# Update rules


def test_decay_mask_leaves_out_biases_and_layer_norms() -> None:
    mask = flatten(decay_mask(make_params()))
    assert mask.keys() == flatten(make_params()).keys()
    assert {path for path, decayed in mask.items() if decayed} == DECAYED


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_walks_with_torch(weight_decay: float) -> None:
    config = OptimizerConfig(learning_rate=1e-3, weight_decay=weight_decay, warmup_steps=10)
    params, gradients = make_params(), make_gradients(100)
    tensors = {
        path: torch.nn.Parameter(torch.tensor(np.asarray(leaf)))
        for path, leaf in flatten(params).items()
    }
    groups = [
        {"params": [t for path, t in tensors.items() if path in DECAYED]},
        {"params": [t for path, t in tensors.items() if path not in DECAYED], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=1e-3, eps=config.eps, weight_decay=weight_decay)
    scheduler = get_scheduler("linear", adamw, num_warmup_steps=10, num_training_steps=100)
    for gradient in gradients:
        for path, leaf in flatten(gradient).items():
            tensors[path].grad = torch.tensor(np.asarray(leaf))
        torch.nn.utils.clip_grad_norm_(tensors.values(), config.clip_norm)
        adamw.step()
        scheduler.step()
    moved = 0.0
    start = flatten(params)
    for path, leaf in flatten(train(config, params, gradients)).items():
        expected = tensors[path].detach().numpy()
        np.testing.assert_allclose(leaf, expected, rtol=0, atol=1e-6, err_msg=path)
        moved = max(moved, float(np.abs(expected - start[path]).max()))
    assert moved > 1e-3, "the walk must be long against its tolerance"


def unstack(tree: Any) -> Flat:
    """Return float64 arrays by path, those of the stacked layers as one array a layer."""
    flat = {}
    for path, leaf in flatten(tree).items():
        array = np.asarray(leaf, np.float64)
        if "/layer/" in path:
            flat |= {f"{path}#{layer}": array[layer] for layer in range(LAYERS)}
        else:
            flat[path] = array
    return flat


def written_out(config: OptimizerConfig, params: Any, gradients: list[Any]) -> Flat:
    """Return the end of a walk by google's BertAdam or LAMB, written out in float64."""
    lr = [0.5 * (1 + math.cos(math.pi * s / len(gradients))) for s in range(len(gradients))]
    w = unstack(params)
    m = {path: np.zeros_like(array) for path, array in w.items()}
    v = {path: np.zeros_like(array) for path, array in w.items()}
    for t, gradient in enumerate(gradients, start=1):
        g = unstack(gradient)
        norm = global_norm(gradient)
        for path in w:
            clipped = g[path] / max(1.0, norm / config.clip_norm)
            m[path] = config.b1 * m[path] + (1 - config.b1) * clipped
            v[path] = config.b2 * v[path] + (1 - config.b2) * clipped**2
            if config.name == "bert_adam":
                update = m[path] / (np.sqrt(v[path]) + config.eps)
            else:
                m_hat, v_hat = m[path] / (1 - config.b1**t), v[path] / (1 - config.b2**t)
                update = m_hat / (np.sqrt(v_hat) + config.eps)
            if path.split("#")[0] in DECAYED:
                update = update + config.weight_decay * w[path]
                if config.name == "lamb":
                    update = update * np.linalg.norm(w[path]) / np.linalg.norm(update)
            w[path] = w[path] - config.learning_rate * lr[t - 1] * update
    return w


@pytest.mark.parametrize("name", ["bert_adam", "lamb"])
def test_walk_as_written_out_one_layer_at_a_time(name: Any) -> None:
    config = OptimizerConfig(
        name=name, learning_rate=2e-3, weight_decay=0.1, schedule="cosine", b2=0.98
    )
    params, gradients = make_params(), make_gradients(60)
    # Layers of very different norms: a ratio over the whole stack would be far off.
    kernel = params["bert"]["encoder"]["layer"]["intermediate"]["dense"]
    kernel["kernel"] *= jnp.array([0.1, 1.0, 10.0])[:, None, None]
    expected = written_out(config, params, gradients)
    got = unstack(train(config, params, gradients))
    assert got.keys() == expected.keys()
    for path, array in got.items():
        np.testing.assert_allclose(array, expected[path], rtol=2e-5, atol=1e-6, err_msg=path)


def test_bert_adam_reaches_the_minimum_of_googles_test() -> None:
    """google-research/bert, optimization_test.py: 100 steps of 0.2 from [0.1, -0.2, -0.1]."""
    config = OptimizerConfig(
        name="bert_adam", learning_rate=0.2, schedule="constant", weight_decay=0.0, clip_norm=0.0
    )
    chain, goal = optimizer(config, 100), jnp.array([0.4, 0.2, -0.5])
    params = {"w": jnp.array([0.1, -0.2, -0.1])}
    state, update = chain.init(params), jax.jit(chain.update)
    for _ in range(100):
        gradient = {"w": 2 / 3 * (params["w"] - goal)}
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["w"], goal, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("step", "ratio"), [(1, 3.16), (10, 6.5), (100, 3.24), (1000, 1.26)])
def test_bert_adam_against_corrected_adam(step: int, ratio: float) -> None:
    params = {"w": jnp.ones(1)}

    def last_update(rule: optax.GradientTransformation) -> jax.Array:
        def body(state: Any, _: None) -> Any:
            updates, state = rule.update(params, state)
            return state, updates["w"]

        return jax.lax.scan(body, rule.init(params), length=step)[1][-1]

    got = last_update(scale_by_bert_adam()) / last_update(optax.scale_by_adam(eps=1e-6))
    np.testing.assert_allclose(got, ratio, rtol=0.01)


def test_trust_ratio_is_one_where_a_norm_is_zero() -> None:
    layer = jnp.array([[3.0, 4.0], [0.0, 0.0], [3.0, 4.0]])
    params = {"layer": {"kernel": layer}, "kernel": layer}
    update = jnp.array([[0.0, 2.0], [0.0, 2.0], [0.0, 0.0]])
    rule = scale_by_layer_trust_ratio()
    got, _ = rule.update({"layer": {"kernel": update}, "kernel": update}, rule.init(params), params)
    np.testing.assert_allclose(got["layer"]["kernel"], [[0, 5], [0, 2], [0, 0]], rtol=1e-6)
    np.testing.assert_allclose(got["kernel"], update * math.sqrt(50 / 8), rtol=1e-6)


@pytest.mark.parametrize(("scale", "clip_norm"), [(10.0, 1.0), (0.5, 1.0), (10.0, 0.0)])
def test_gradients_are_clipped_at_the_global_norm(scale: float, clip_norm: float) -> None:
    gradient = make_gradients(3)[0]
    norm = global_norm(gradient)
    gradient = jax.tree.map(lambda g: g * np.float32(scale / norm), gradient)
    chain = optimizer(OptimizerConfig(clip_norm=clip_norm), 10)
    state = jax.jit(chain.update)(gradient, chain.init(gradient), gradient)[1]
    kept = min(1.0, clip_norm / scale) if clip_norm else 1.0
    jax.tree.map(
        lambda m, g: np.testing.assert_allclose(m, 0.1 * kept * g, rtol=2e-6), state[1].mu, gradient
    )


@pytest.mark.parametrize("name", ["adamw", "bert_adam", "lamb"])
@pytest.mark.parametrize("zero", ["gradients", "parameters", "both"])
def test_zeros_give_finite_updates(name: Any, zero: str) -> None:
    def few(tree: Any) -> Any:
        bert = tree["bert"]
        return {"layer": bert["encoder"]["layer"]["output"], "pooler": bert["pooler"]}

    zeros = jax.tree.map(np.zeros_like, few(make_params()))
    params = few(make_params()) if zero == "gradients" else zeros
    gradients = [few(g) if zero == "parameters" else zeros for g in make_gradients(3)]
    for leaf in jax.tree.leaves(train(OptimizerConfig(name=name), params, gradients)):
        assert np.isfinite(leaf).all()
        assert zero != "both" or not np.any(leaf)


@pytest.mark.parametrize("name", ["adamw", "bert_adam", "lamb"])
def test_state_repeats_the_parameter_paths_in_float32(name: Any) -> None:
    """Sharding rules find the moments by the ends of their paths."""
    params = make_params()
    state = jax.eval_shape(optimizer(OptimizerConfig(name=name), 10).init, params)
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    moments = {path: leaf for path, leaf in leaves.items() if leaf.shape}
    expected = {
        f"1/{moment}/{path}": leaf.shape
        for moment in ("mu", "nu")
        for path, leaf in flatten(params).items()
    }
    assert {path: leaf.shape for path, leaf in moments.items()} == expected
    assert all(leaf.dtype == jnp.float32 for leaf in moments.values())
    counts = {path: leaf for path, leaf in leaves.items() if not leaf.shape}
    assert set(counts) == {"1/count", "4/count"}


def test_state_does_not_depend_on_clipping() -> None:
    trees = [
        jax.tree.structure(optimizer(OptimizerConfig(clip_norm=norm), 10).init(make_params()))
        for norm in (0.0, 1.0)
    ]
    assert trees[0] == trees[1]


def test_adamw_step_makes_no_copies() -> None:
    """With donated buffers the compiled step needs no memory of a parameter's size."""
    params = {
        "dense": {"kernel": jnp.ones((512, 512)), "bias": jnp.ones(512)},
        "layer": {"kernel": jnp.ones((4, 256, 256))},
    }
    chain = optimizer(OptimizerConfig(warmup_steps=2), 10)

    def step(params: Any, state: Any, gradient: Any) -> Any:
        updates, state = chain.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state = chain.init(params)
    memory = (
        jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()
    ).memory_analysis()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves((params, state)))
    assert memory.alias_size_in_bytes == size
    assert memory.temp_size_in_bytes < 64 * 1024

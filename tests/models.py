"""A small model with nothing at its initial value, and inputs for it, as several tests use them."""

import jax
import jax.numpy as jnp
import numpy as np

from bertjax.config import BertConfig
from bertjax.pretrained import names

SMALL = BertConfig(
    vocab_size=99,
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=112,
    max_position_embeddings=40,
    type_vocab_size=3,
    initializer_range=0.15,
    scan_unroll=1,  # compiles fastest
)
BATCH, LENGTH = 5, 33


def random_params(model, seed=0):
    """Parameters with nothing at its initial value, so that every bias and scale counts."""
    params = jax.jit(model.init)(jax.random.key(seed), model.init_ids)["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: x + jnp.asarray(0.05 * rng.standard_normal(x.shape), jnp.float32), params
    )


def apply(model, params, *arguments, rngs=None, **options):
    """`model.apply`, compiled: arrays are traced, everything else is static."""
    arrays = {k: v for k, v in options.items() if isinstance(v, np.ndarray | jax.Array)}
    static = {k: v for k, v in options.items() if k not in arrays}

    @jax.jit
    def call(params, arguments, arrays, rngs):
        return model.apply({"params": params}, *arguments, **arrays, **static, rngs=rngs)

    return call(params, arguments, arrays, rngs)


def inputs(config, seed=0):
    rng = np.random.default_rng(seed)
    lengths = np.array([LENGTH, 1, 7, 20, LENGTH - 1])
    mask = (np.arange(LENGTH) < lengths[:, None]).astype(np.int32)
    return {
        "input_ids": rng.integers(0, config.vocab_size, (BATCH, LENGTH), dtype=np.int32),
        "attention_mask": mask,
        "token_type_ids": rng.integers(0, config.type_vocab_size, (BATCH, LENGTH), dtype=np.int32),
    }


def assert_same_trees(ours, theirs):
    """The same paths, types and bits."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for (path, a), (_, b) in zip(names.parameters(ours), names.parameters(theirs), strict=True):
        assert a.dtype == b.dtype, path
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=path)

"""LoRA against peft's own files and outputs, and against products written out."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from bertjax import lora
from bertjax.config import BertConfig
from bertjax.errors import InputError
from bertjax.heads import BertForPreTraining
from bertjax.lora import LoraConfig
from bertjax.model import BertModel
from bertjax.optimizer import optimizer
from bertjax.pretrained import abstract_params, names
from bertjax.pruning import prune_heads
from bertjax.run_config import OptimizerConfig

DATA = Path(__file__).parent / "data" / "lora"
KEY = jax.random.key(3)
MODEL = BertForPreTraining(
    dataclasses.replace(BertConfig.from_pretrained(DATA / "base"), scan_unroll=1)
)
IDS = np.random.default_rng(0).integers(0, 20, (3, 7), dtype=np.int32)
EVERYWHERE = LoraConfig(
    rank=3,
    alpha=7.0,
    targets=("query", "attention/output", "intermediate", "pooler", "seq_relationship"),
    full=("transform/dense", "predictions/bias"),
)


def assert_same_trees(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for (path, a), (_, b) in zip(names.parameters(ours), names.parameters(theirs), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=path)


def random_like(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: np.float32(0.2 * rng.standard_normal(x.shape)), tree)


@functools.cache
def base_params(model=MODEL):
    return random_like(abstract_params(model), 0)


def random_adapters(params, config, seed=1):
    return random_like(
        jax.eval_shape(functools.partial(lora.init, config=config), KEY, params), seed
    )


@functools.cache
def base_of_peft():
    tensors = load_file(DATA / "base" / "model.safetensors")

    def read(path, leaf):
        parts = [
            tensor.decode(tensors[tensor.name])
            for tensor in names.hf_tensors(names.path_of(path), leaf.shape)
        ]
        return np.stack(parts) if parts[0].ndim < leaf.ndim else parts[0]

    return jax.tree_util.tree_map_with_path(read, abstract_params(MODEL))


@jax.jit
def forward(params):
    output = MODEL.apply({"params": params}, IDS)
    return output.prediction_logits, output.seq_relationship_logits


# The transformation


def test_fresh_adapters_change_nothing():
    params = base_params()
    adapters = lora.init(KEY, params, EVERYWHERE)
    assert_same_trees(lora.merge(params, adapters, EVERYWHERE), params)
    shapes = {path: leaf.shape for path, leaf in names.parameters(adapters)}
    layer = "bert/encoder/layer"
    assert shapes == {
        f"{layer}/attention/self/query/lora_A/kernel": (2, 12, 3),
        f"{layer}/attention/self/query/lora_B/kernel": (2, 3, 3, 4),
        f"{layer}/attention/output/dense/lora_A/kernel": (2, 3, 4, 3),
        f"{layer}/attention/output/dense/lora_B/kernel": (2, 3, 12),
        f"{layer}/intermediate/dense/lora_A/kernel": (2, 12, 3),
        f"{layer}/intermediate/dense/lora_B/kernel": (2, 3, 16),
        "bert/pooler/dense/lora_A/kernel": (12, 3),
        "bert/pooler/dense/lora_B/kernel": (3, 12),
        "cls/seq_relationship/lora_A/kernel": (12, 3),
        "cls/seq_relationship/lora_B/kernel": (3, 2),
        "cls/predictions/transform/dense/kernel": (12, 12),
        "cls/predictions/transform/dense/bias": (12,),
        "cls/predictions/bias": (20,),
    }
    default = random_adapters(params, LoraConfig())
    assert {path.split("/")[-3] for path, _ in names.parameters(default)} == {"query", "value"}


def test_adapters_are_copies_of_the_parameters_type():
    params = {"classifier": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
    config = LoraConfig(targets=(), full=("bias",))
    adapters = lora.init(KEY, params, config)
    assert list(adapters["classifier"]) == ["bias"]
    adapters["classifier"]["bias"].delete()  # as donating it does
    assert params["classifier"]["bias"].sum() == 3

    def merged(key):
        half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
        adapters = lora.init(key, half, LoraConfig(targets=("classifier",)))
        full = lora.init(key, params, LoraConfig(targets=("classifier",)))
        return [lora.merge(half, tree, LoraConfig()) for tree in (adapters, full)]

    leaves = jax.tree.leaves(jax.eval_shape(merged, KEY))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.bfloat16)}


def test_first_factors_are_uniform_with_a_third_of_the_inverse_inputs_as_variance():
    params = {
        "encoder": {
            "layer": {
                "attention": {
                    "self": {"query": {"kernel": np.zeros((4, 40, 5, 8), np.float32)}},
                    "output": {"dense": {"kernel": np.zeros((4, 5, 8, 40), np.float32)}},
                },
                "intermediate": {"dense": {"kernel": np.zeros((4, 40, 40), np.float32)}},
            }
        }
    }
    config = LoraConfig(rank=50, targets=("kernel",))
    factors = {
        path: np.float64(leaf)
        for path, leaf in names.parameters(lora.init(KEY, params, config))
        if "lora_A" in path
    }
    assert len(factors) == 3
    for path, leaf in factors.items():  # all have 40 inputs
        assert np.abs(leaf).max() <= 40**-0.5
        variance, size = 1 / 120, leaf.size
        assert abs(leaf.mean()) < 5 * (variance / size) ** 0.5, path
        # The fourth moment of a uniform distribution is 9/5 of the squared variance.
        assert abs(leaf.var() - variance) < 5 * variance * (0.8 / size) ** 0.5, path
    flat = [leaf.reshape(-1) for leaf in factors.values()]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert abs(np.corrcoef(flat[i], flat[j])[0, 1]) < 5 / flat[0].size ** 0.5


@pytest.mark.parametrize("stabilized", [False, True])
def test_merging_adds_the_scaled_products(stabilized):
    config = dataclasses.replace(EVERYWHERE, rank_stabilized=stabilized)
    params = base_params()
    adapters = random_adapters(params, config)
    merged = dict(names.parameters(lora.merge(params, adapters, config)))
    flat, extra = dict(names.parameters(params)), dict(names.parameters(adapters))
    scale = 7 / (3**0.5 if stabilized else 3)
    changed = set()
    for path, leaf in extra.items():
        if "lora_" not in path:
            np.testing.assert_array_equal(merged[path], leaf)
            changed.add(path)
        elif "lora_A" in path:
            a, b = np.float64(leaf), np.float64(extra[path.replace("lora_A", "lora_B")])
            kernel = path.replace("lora_A/", "")
            if "query" in kernel:
                product = np.einsum("ldr,lrhk->ldhk", a, b)
            elif "attention/output" in kernel:
                product = np.einsum("lhkr,lrd->lhkd", a, b)
            else:
                product = np.einsum("...dr,...rf->...df", a, b)
            want = flat[kernel] + scale * product
            np.testing.assert_allclose(merged[kernel], want, atol=1e-6, err_msg=kernel)
            changed.add(kernel)
    assert len(changed) == 8
    for path in flat.keys() - changed:
        assert merged[path] is flat[path], path


def test_only_adapters_are_trained():
    params, config = base_params(), EVERYWHERE
    adapters = random_adapters(params, config)

    def loss(params):
        output = MODEL.apply({"params": params}, IDS)
        return jnp.mean(jnp.square(output.prediction_logits - 1)) + jnp.mean(
            jnp.square(output.seq_relationship_logits - 1)
        )

    tx = optimizer(OptimizerConfig(learning_rate=3e-2, weight_decay=0.0), 20)

    @jax.jit
    def step(adapters, state, params):
        value, gradient = jax.value_and_grad(lambda a: loss(lora.merge(params, a, config)))(
            adapters
        )
        updates, state = tx.update(gradient, state, adapters)
        return value, gradient, jax.tree.map(jnp.add, adapters, updates), state

    state = tx.init(adapters)
    first, gradient, trained, state = step(adapters, state, params)
    for _ in range(15):
        last, _, trained, state = step(trained, state, params)
    assert last < first / 2
    # The gradient, by the chain rule from that of the merged parameters.
    merged = lora.merge(params, adapters, config)
    whole = dict(names.parameters(jax.jit(jax.grad(loss))(merged)))
    extra = dict(names.parameters(adapters))
    for path, leaf in names.parameters(gradient):
        if "lora_" not in path:
            want = whole[path]
        else:
            kernel = path.replace("lora_A/", "").replace("lora_B/", "")
            ins = "hk" if "attention/output" in path else "d"
            a, b = (extra[kernel.replace("kernel", f"lora_{x}/kernel")] for x in "AB")
            outs = "mn" if "query" in path else "m"
            if "lora_A" in path:
                want = np.einsum(f"...{ins}{outs},...r{outs}->...{ins}r", whole[kernel], b)
            else:
                want = np.einsum(f"...{ins}{outs},...{ins}r->...r{outs}", whole[kernel], a)
            want = want * config.scale
        limit = 1e-5 * max(np.abs(want).max(), 1e-2)
        np.testing.assert_allclose(leaf, want, rtol=0, atol=limit, err_msg=path)
        assert np.any(want)


def test_several_adapters_at_once():
    params = base_params()
    several = [random_adapters(params, EVERYWHERE, seed) for seed in (1, 2, 3)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *several)
    together = jax.jit(jax.vmap(lambda a: forward(lora.merge(params, a, EVERYWHERE))))(stacked)
    for i, adapters in enumerate(several):
        alone = forward(lora.merge(params, adapters, EVERYWHERE))
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_allclose(one, other[i], atol=1e-5)
    assert np.abs(together[0][0] - together[0][1]).max() > 0.1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LoraConfig(targets=("qurey",)), "targets 'qurey' matches no parameter: near it are query"),
        (LoraConfig(targets=("LayerNorm",)), "targets 'LayerNorm' matches no parameter"),
        (LoraConfig(full=("clasifier",)), "full 'clasifier' matches no parameter"),
        (LoraConfig(targets=("layer/0/attention",)), "adapters are of all layers"),
    ],
)
def test_targets_that_are_not_there(config, message):
    with pytest.raises(InputError, match=message):
        random_adapters(base_params(), config)


def test_bad_settings_and_trees():
    for fields in ({"rank": -1}, {"alpha": 0.0}, {"alpha": float("inf")}):
        with pytest.raises(InputError, match="must be positive"):
            LoraConfig(**fields)
    with pytest.raises(InputError, match="need a rank of at least 1"):
        random_adapters(base_params(), LoraConfig(rank=0))
    adapters = random_adapters(base_params(), LoraConfig(targets=("pooler",)))
    with pytest.raises(InputError, match="have no bert/pooler, the adapters do"):
        lora.merge({"bert": {}}, adapters, LoraConfig())


# Files


def test_adapters_of_peft_give_its_outputs():
    outputs = np.load(DATA / "outputs.npz")
    params = base_of_peft()
    adapters, config = lora.load(DATA, MODEL, params)
    assert (config.rank, config.alpha, config.rank_stabilized) == (4, 6.0, True)
    assert config.full == ("cls/seq_relationship/bias", "cls/seq_relationship/kernel")
    assert len(config.targets) == 4

    @jax.jit
    def run(params):
        output = MODEL.apply({"params": params}, outputs["input_ids"])
        return output.prediction_logits, output.seq_relationship_logits

    got = run(lora.merge(params, adapters, config))
    np.testing.assert_allclose(got[0], outputs["prediction_logits"], atol=2e-5)
    np.testing.assert_allclose(got[1], outputs["seq_relationship_logits"], atol=2e-5)
    assert np.abs(np.asarray(run(params)[0]) - got[0]).max() > 0.1
    # The config that comes back makes adapters of the same places.
    again = random_adapters(params, config)
    assert jax.tree.map(jnp.shape, again) == jax.tree.map(jnp.shape, adapters)


def test_written_files_are_those_of_peft(tmp_path):
    adapters, config = lora.load(DATA, MODEL, base_of_peft())
    lora.save(tmp_path / "new", adapters, config, MODEL, "somewhere/base")
    ours, theirs = (load_file(directory / lora.WEIGHTS) for directory in (tmp_path / "new", DATA))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours[name], tensor, name)
    ours, theirs = (
        json.loads((directory / lora.CONFIG).read_text()) for directory in (tmp_path / "new", DATA)
    )
    assert ours.pop("base_model_name_or_path") == "somewhere/base"
    targets, heads = set(ours.pop("target_modules")), ours.pop("modules_to_save")
    assert heads == ["cls.seq_relationship"]
    peer = transformers.BertForPreTraining(transformers.BertConfig.from_pretrained(DATA / "base"))
    modules = {
        name
        for name, _ in peer.named_modules()
        if any(name.endswith(target) for target in theirs["target_modules"])
    }
    assert targets == modules
    assert len(targets) == 7
    for key, value in ours.items():
        assert theirs[key] == value, key
    assert {path.name for path in (tmp_path / "new").iterdir()} == {lora.WEIGHTS, lora.CONFIG}


def test_peft_loads_what_is_written(tmp_path):
    import peft

    params = base_of_peft()
    config = dataclasses.replace(EVERYWHERE, full=("transform/dense",))
    adapters = random_adapters(params, config)
    lora.save(tmp_path, adapters, config, MODEL)
    base = transformers.BertForPreTraining.from_pretrained(DATA / "base")
    peer = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    with torch.no_grad():
        theirs = peer(torch.tensor(IDS, dtype=torch.long))
    ours = forward(lora.merge(params, adapters, config))
    np.testing.assert_allclose(ours[0], theirs.prediction_logits.numpy(), atol=2e-5)
    np.testing.assert_allclose(ours[1], theirs.seq_relationship_logits.numpy(), atol=2e-5)


def test_round_trip_between_models_with_and_without_a_head(tmp_path):
    config = LoraConfig(rank=2, alpha=3.5)
    params = base_params()
    bare = BertModel(MODEL.config)
    adapters = random_adapters(params, config)
    lora.save(tmp_path / "headed", adapters, config, MODEL)
    without, found = lora.load(tmp_path / "headed", bare, params["bert"])
    assert_same_trees({"bert": without}, adapters)
    assert (found.rank, found.alpha, found.full) == (2, 3.5, ())
    lora.save(tmp_path / "bare", without, config, bare)
    back, _ = lora.load(tmp_path / "bare", MODEL, abstract_params(MODEL))
    assert_same_trees(back, adapters)


def test_adapters_of_a_pruned_model(tmp_path):
    params = base_params()
    config = LoraConfig(rank=2, targets=("self", "attention/output"))
    adapters = random_adapters(params, config)
    smaller, pruned = prune_heads(MODEL, params, {0: [0, 2], 1: [1]})
    # Those of the full model, cut.
    lora.save(tmp_path / "full", adapters, config, MODEL)
    cut, _ = lora.load(tmp_path / "full", smaller, pruned)
    merged = lora.merge(pruned, cut, config)
    _, want = prune_heads(MODEL, lora.merge(params, adapters, config), {0: [0, 2], 1: [1]})
    for (path, one), (_, other) in zip(
        names.parameters(merged), names.parameters(want), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-6, err_msg=path)
    # Its own: written with zeros for the full model.
    lora.save(tmp_path / "cut", cut, config, smaller)
    back, _ = lora.load(tmp_path / "cut", smaller, pruned)
    assert_same_trees(back, cut)
    names_and_shapes = [
        {name: tensor.shape for name, tensor in load_file(tmp_path / d / lora.WEIGHTS).items()}
        for d in ("full", "cut")
    ]
    assert names_and_shapes[0] == names_and_shapes[1]


@pytest.fixture
def broken(tmp_path):
    """A copy of peft's files, to be changed."""
    for name in (lora.WEIGHTS, lora.CONFIG):
        shutil.copy(DATA / name, tmp_path / name)
    return tmp_path


def test_damaged_files(broken):
    weights = broken / lora.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-7])
    with pytest.raises(InputError, match=r"adapter_model\.safetensors: not a whole"):
        lora.load(broken, MODEL, abstract_params(MODEL))
    with pytest.raises(InputError, match=r"adapter_config\.json: cannot be read"):
        lora.load(broken / "nowhere", MODEL, abstract_params(MODEL))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not LORA"),
        ({"use_dora": True}, "do not know: {'use_dora': True}"),
        ({"bias": "all"}, "do not know: {'bias': 'all'}"),
        ({"rank_pattern": {"query": 2}}, "do not know: {'rank_pattern'"),
        ({"something_new": [1]}, "do not know: {'something_new'"),
        ({"r": "many"}, "is not an adapter_config.json"),
        ({"r": None}, "is not an adapter_config.json"),
        ({"r": 5}, "14 tensors do not fit: misshapen base_model"),
    ],
)
def test_configs_that_do_not_fit(broken, change, message):
    facts = json.loads((broken / lora.CONFIG).read_text())
    (broken / lora.CONFIG).write_text(json.dumps(facts | change))
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        lora.load(broken, MODEL, abstract_params(MODEL))


def test_tensors_that_do_not_fit(broken):
    tensors = load_file(broken / lora.WEIGHTS)
    stem = "base_model.model.bert.encoder.layer."
    del tensors[f"{stem}1.attention.self.value.lora_B.weight"]
    tensors[f"{stem}2.attention.self.value.lora_B.weight"] = np.zeros((12, 4), np.float32)
    tensors[f"{stem}0.attention.self.query.lora_A.weight"] = np.zeros((4, 13), np.float32)
    save_file(tensors, broken / lora.WEIGHTS)
    with pytest.raises(InputError) as caught:
        lora.load(broken, MODEL, abstract_params(MODEL))
    message = str(caught.value)
    assert "3 tensors do not fit: missing bert.encoder.layer.1.attention.self.value" in message
    assert f"unexpected {stem}2.attention.self.value.lora_B.weight" in message
    assert f"misshapen {stem}0.attention.self.query.lora_A.weight [4, 13], here [4, 12]" in message
    assert "\n" not in message
    bare = BertModel(MODEL.config)
    with pytest.raises(InputError, match=r"unexpected base_model.model.cls.seq_relationship.bias"):
        lora.load(DATA, bare, abstract_params(bare))


def test_directories_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    adapters = random_adapters(base_params(), LoraConfig())
    with pytest.raises(InputError, match="cannot be written"):
        lora.save(tmp_path / "file", adapters, LoraConfig(), MODEL)

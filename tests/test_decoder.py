"""BERT as a decoder: against transformers (torch), live, and its cache against no cache."""

import dataclasses
import functools
import inspect
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import bertjax
from bertjax import BertLMHeadModel, BertModel, causal_lm, from_pretrained, init_cache, lora
from bertjax.pretrained import abstract_params, save_pretrained
from bertjax.pruning import prune_heads, pruned_head_mask
from tests.models import BATCH, LENGTH, SMALL, assert_same_trees, inputs
from tests.peers import (
    GRADIENT,
    OUTPUT,
    assert_agreement,
    compare,
    quick_jit,
    quick_params,
    torch_of,
    torch_peer,
)

DECODER = dataclasses.replace(SMALL, is_decoder=True, num_hidden_layers=2)
CROSS = dataclasses.replace(DECODER, add_cross_attention=True)
STEP = 1e-5
"""Largest difference allowed between a cached step and the whole row read anew."""
SOURCE_LENGTH = 9


def to_the_left(batch):
    """The batch with the padding of each row before its tokens."""
    shift = LENGTH - batch["attention_mask"].sum(axis=1)
    index = (np.arange(LENGTH) - shift[:, None]) % LENGTH
    return {name: np.take_along_axis(array, index, axis=1) for name, array in batch.items()}


def source(seed=2):
    """An encoder's output, and its mask with padding at either end."""
    rng = np.random.default_rng(seed)
    mask = np.ones((BATCH, SOURCE_LENGTH), np.int32)
    mask[1, 4:] = mask[3, :3] = 0
    return {
        "encoder_hidden_states": rng.normal(size=(*mask.shape, SMALL.hidden_size)).astype("f"),
        "encoder_attention_mask": mask,
    }


def labelled(batch):
    """The batch with its own tokens as labels, but for padding and some that do not count."""
    labels = np.where(batch["attention_mask"] == 0, -100, batch["input_ids"])
    labels[0, 5:9] = -100
    return batch | {"labels": labels}


def embedded(batch):
    rng = np.random.default_rng(8)
    shape = batch["input_ids"].shape
    given = {
        "inputs_embeds": rng.normal(size=(*shape, SMALL.hidden_size)).astype("f"),
        "position_ids": rng.integers(0, SMALL.max_position_embeddings, shape, dtype=np.int32),
    }
    return {name: array for name, array in batch.items() if name != "input_ids"} | given


RIGHT, LEFT = labelled(inputs(SMALL)), labelled(to_the_left(inputs(SMALL)))
ONE = {"num_hidden_layers": 1}  # compiles faster
CASES = {
    "padded right": (DECODER, RIGHT),
    "padded left": (DECODER, LEFT),
    "cross": (CROSS, RIGHT | source()),
    "cross, padded left": (CROSS, LEFT | source()),
    "cross, no masks": (
        CROSS,
        {k: v for k, v in (RIGHT | source()).items() if not k.endswith("mask")},
    ),
    "embeddings, positions": (CROSS, embedded(RIGHT) | source()),
    "untied": (
        dataclasses.replace(CROSS, tie_word_embeddings=False, hidden_act="gelu_new", **ONE),
        RIGHT | source(),
    ),
    "no decoder": (dataclasses.replace(SMALL, **ONE), RIGHT),
}


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_transformers(name):
    config, batch = CASES[name]
    model = BertLMHeadModel(config)
    found = compare(model, quick_params(model), batch)
    assert_agreement(found)
    assert ("cross_attentions" in found) == config.add_cross_attention


def test_cross_attention_is_passed_over_without_an_encoder():
    model = BertLMHeadModel(CROSS)
    params = quick_params(model)
    peer = torch_peer(model, params)
    with torch.no_grad():
        want = peer(**torch_of(RIGHT)).logits.numpy()
    ours = quick_jit(lambda p: model.apply({"params": p}, **RIGHT))(params)
    np.testing.assert_allclose(ours.logits, want, rtol=0, atol=OUTPUT)


def test_gradient_of_the_encoder_agrees_with_transformers():
    model = BertLMHeadModel(CROSS)
    params = quick_params(model)
    given = source()

    def loss(states):
        batch = LEFT | given | {"encoder_hidden_states": states}
        return model.apply({"params": params}, **batch).loss

    grad = quick_jit(jax.grad(loss))(given["encoder_hidden_states"])
    tensors = torch_of(LEFT | given)
    states = tensors["encoder_hidden_states"].requires_grad_(True)
    torch_peer(model, params)(**tensors).loss.backward()
    want = states.grad.numpy()
    np.testing.assert_allclose(grad, want, rtol=0, atol=GRADIENT * np.abs(want).max())


def test_base_model_agrees_with_transformers():
    model = BertModel(CROSS)
    params = quick_params(model)
    batch = {k: v for k, v in (LEFT | source()).items() if k != "labels"}
    asked = {"output_hidden_states": True, "output_attentions": True}
    ours = quick_jit(lambda p: model.apply({"params": p}, **batch, **asked))(params)
    with torch.no_grad():
        theirs = torch_peer(model, params)(**torch_of(batch), **asked, use_cache=False)
    fields = [f for f in ours.__dataclass_fields__ if getattr(ours, f) is not None]
    assert fields == list(theirs)
    for field in fields:
        for a, b in zip(jax.tree.leaves(ours.__dict__[field]), _leaves(theirs[field]), strict=True):
            np.testing.assert_allclose(a, b.numpy(), rtol=0, atol=OUTPUT)


def _leaves(tensors):
    return tensors if isinstance(tensors, tuple) else (tensors,)


def test_arguments_and_fields_are_those_of_transformers():
    renamed = {"cache": "past_key_values"}  # since transformers 5.24, which takes both until 5.40

    def known(names):
        return [renamed.get(name, name) for name in names]

    for name in ("BertLMHeadModel", "BertModel"):
        ours = inspect.signature(getattr(bertjax, name).__call__).parameters
        theirs = known(inspect.signature(getattr(transformers, name).forward).parameters)
        assert set(theirs) - set(ours) == {"kwargs"}
        extra = {"head_mask", "output_attentions", "output_hidden_states", "deterministic"}
        assert set(ours) - set(theirs) - {"output_positions", "cls_positions"} == extra
    from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions

    ours = bertjax.CausalLMOutputWithCrossAttentions.__dataclass_fields__
    assert list(ours) == known(CausalLMOutputWithCrossAttentions.__dataclass_fields__)


# The cache.


@functools.cache
def reader(config):
    """Compiled calls: the whole row at once, and some tokens more with a cache."""
    model = BertLMHeadModel(config)

    def whole(params, batch):
        return model.apply({"params": params}, **batch, output_hidden_states=True)

    def more(params, cache, batch, mask):
        return model.apply(
            {"params": params},
            **batch,
            attention_mask=mask,
            past_key_values=cache,
            output_hidden_states=True,
        )

    return model, quick_jit(whole), quick_jit(more)


CACHED = {
    "absolute": DECODER,
    "relative key": dataclasses.replace(DECODER, position_embedding_type="relative_key"),
    "relative key, query": dataclasses.replace(
        DECODER, position_embedding_type="relative_key_query"
    ),
    "cross": CROSS,
    "unrolled": dataclasses.replace(CROSS, scan_unroll=0, remat=True),
}


@pytest.mark.parametrize("chunks", [(1,) * LENGTH, (20, 1, 1, 11), (LENGTH,)], ids=len)
@pytest.mark.parametrize("name", CACHED)
def test_reading_on_equals_reading_anew(name, chunks):
    config = CACHED[name]
    model, whole, more = reader(config)
    params = quick_params(model)
    batch = {k: v for k, v in LEFT.items() if k != "labels"}
    mask = batch.pop("attention_mask")
    given = source() if config.add_cross_attention else {}
    want = whole(params, batch | {"attention_mask": mask} | given)
    cache = init_cache(config, BATCH, LENGTH + 5)
    logits, hidden, start = [], [], 0
    for size in chunks:
        part = {k: v[:, start : start + size] for k, v in batch.items()}
        output = more(params, cache, part | given, mask)
        cache, start = output.past_key_values, start + size
        given.pop("encoder_hidden_states", None)  # the cache has them
        logits.append(output.logits)
        hidden.append(output.hidden_states)
    assert cache.length == LENGTH
    real = mask != 0  # padding attends to everything alike, of which a cache has more
    for ours, theirs in [
        (logits, want.logits),
        *zip(zip(*hidden, strict=True), want.hidden_states, strict=True),
    ]:
        found = np.concatenate(ours, axis=1)[real]
        np.testing.assert_allclose(found, np.asarray(theirs)[real], rtol=0, atol=STEP)


def test_positions_follow_the_mask_as_in_transformers():
    """Left padding with `position_ids` of its own, in steps."""
    model, _, more = reader(CROSS)
    params = quick_params(model)
    given = source()
    mask = LEFT["attention_mask"]
    ids, positions = LEFT["input_ids"], np.maximum(mask.cumsum(axis=1) - 1, 0).astype(np.int32)
    with torch.no_grad():
        want = torch_peer(model, params)(
            **torch_of(given | {"input_ids": ids, "position_ids": positions}),
            attention_mask=torch.tensor(mask),
        ).logits.numpy()
    cache = init_cache(CROSS, BATCH, LENGTH)
    for part in (slice(0, 30), slice(30, 31), slice(31, 33)):
        batch = {"input_ids": ids[:, part], "position_ids": positions[:, part]}
        output = more(params, cache, batch | given, mask)
        cache = output.past_key_values
        real = mask[:, part] != 0
        ours = np.asarray(output.logits)[real]
        np.testing.assert_allclose(ours, want[:, part][real], rtol=0, atol=OUTPUT)


def test_crop_resize_and_read_on():
    model, whole, more = reader(CROSS)
    params = quick_params(model)
    ids, other = RIGHT["input_ids"], RIGHT["input_ids"][::-1].copy()
    given = source()
    cache = init_cache(CROSS, BATCH, 20)
    cache = more(params, cache, {"input_ids": ids[:, :20]} | given, None).past_key_values
    cache = cache.crop(12).crop(15).resize(24)
    assert (int(cache.length), cache.max_length) == (12, 24)
    got = more(params, cache, {"input_ids": other[:, 12:24]}, None)
    mask = {"encoder_attention_mask": given["encoder_attention_mask"]}
    with pytest.raises(AssertionError):
        _assert_tail(whole, params, ids, other, given, got)
    got = more(params, cache, {"input_ids": other[:, 12:24]} | mask, None)
    _assert_tail(whole, params, ids, other, given, got)
    with pytest.raises(ValueError, match="holds 24 tokens cannot shrink to 23"):
        got.past_key_values.resize(23)
    assert got.past_key_values.crop(3).resize(3).max_length == 3


@pytest.mark.parametrize(("length", "kept"), [(-1, 9), (-4, 6), (-10, 0), (-11, 0), (0, 0)])
def test_crop_removes_the_last_tokens_as_in_transformers(length, kept):
    cache = init_cache(DECODER, 2, 16)
    cache = dataclasses.replace(cache, length=jnp.int32(10))
    assert int(cache.crop(length).length) == kept
    assert int(jax.jit(lambda c, n: c.crop(n))(cache, length).length) == kept
    if length:  # in transformers 0 removes none; here it is the number that stays
        peer = transformers.DynamicCache()
        peer.update(torch.zeros(2, 4, 10, 8), torch.zeros(2, 4, 10, 8), 0)
        peer.crop(length)
        assert peer.get_seq_length() == kept


def _assert_tail(whole, params, ids, other, given, got):
    spliced = np.concatenate([ids[:, :12], other[:, 12:24]], axis=1)
    want = whole(params, {"input_ids": spliced} | given)
    np.testing.assert_allclose(got.logits, want.logits[:, 12:], rtol=0, atol=STEP)


def test_rows_do_not_depend_on_their_batch():
    model, _, more = reader(CROSS)
    params = quick_params(model)
    given, ids = source(), LEFT["input_ids"]
    mask = LEFT["attention_mask"][:, :20].copy()
    mask[:, -3:] = 1

    def run(rows, mask=mask):
        part = {k: v[rows] for k, v in given.items()}
        cache = init_cache(CROSS, len(rows), 24)
        cache = more(
            params, cache, part | {"input_ids": ids[rows, :20]}, mask[rows]
        ).past_key_values
        part.pop("encoder_hidden_states")
        return more(params, cache, part | {"input_ids": ids[rows, 20:22]}, mask[rows])

    full = run([0, 1, 2, 3, 4])
    longer = np.pad(mask, ((0, 0), (0, 2)), constant_values=1)  # what it does not reach is real
    np.testing.assert_array_equal(run([0, 1, 2, 3, 4], longer).logits, full.logits)
    for row in range(BATCH):
        alone = run([row])
        np.testing.assert_allclose(alone.logits[0], full.logits[row], rtol=0, atol=STEP)
    shuffled = run([3, 3, 0, 1, 4])
    np.testing.assert_array_equal(shuffled.logits, full.logits[np.array([3, 3, 0, 1, 4])])
    kept, mixed = full.past_key_values.reorder([3, 3, 0, 1, 4]), shuffled.past_key_values
    assert_same_trees(dataclasses.asdict(kept), dataclasses.asdict(mixed))


def test_steps_compile_once_and_take_the_memory_of_the_cache():
    model = BertLMHeadModel(CROSS)
    params = quick_params(model)
    mask = source()["encoder_attention_mask"]
    traces = []

    def step(params, cache, ids):
        traces.append(ids.shape)
        output = model.apply(
            {"params": params}, ids, past_key_values=cache, encoder_attention_mask=mask
        )
        return output.past_key_values, output.logits

    more = reader(CROSS)[2]
    prompt = source() | {"input_ids": RIGHT["input_ids"][:, :3]}
    first = more(params, init_cache(CROSS, BATCH, 9), prompt, None).past_key_values
    compiled = jax.jit(step, donate_argnums=1)
    lowered = compiled.lower(params, first, RIGHT["input_ids"][:, 3:4]).compile()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(first))
    assert lowered.memory_analysis().alias_size_in_bytes >= size
    cache = first
    for at in range(3, 9):
        last = cache
        cache, _ = compiled(params, cache, RIGHT["input_ids"][:, at : at + 1])
        assert last.layers[0].key.is_deleted()
    assert len(traces) == 1
    assert cache.length == 9


def test_cross_keys_and_values_are_computed_once():
    model, _, more = reader(CROSS)
    params = quick_params(model)
    given, ids = source(), RIGHT["input_ids"]
    cache = init_cache(CROSS, BATCH, 9)
    first = more(params, cache, given | {"input_ids": ids[:, :4]}, None).past_key_values
    spoilt = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            leaf * jnp.nan
            if "crossattention" in str(path) and ("'key'" in str(path) or "'value'" in str(path))
            else leaf
        ),
        params,
    )
    mask = {"encoder_attention_mask": given["encoder_attention_mask"]}
    batch = {"input_ids": ids[:, 4:5]}
    want = more(params, first, batch | mask, None).logits
    np.testing.assert_array_equal(more(spoilt, first, batch | mask, None).logits, want)
    # Given again, as transformers' loops do, they are not read either.
    np.testing.assert_array_equal(more(spoilt, first, batch | given, None).logits, want)
    assert np.isnan(more(spoilt, cache, batch | given, None).logits).all()


@pytest.mark.parametrize(
    ("keep", "layers"), [(1, 1), (4, 2), (np.array([0, 2, 6]), 3)], ids=["last", "four", "some"]
)
def test_logits_to_keep(keep, layers):
    config = dataclasses.replace(CROSS, num_hidden_layers=layers)
    model = BertLMHeadModel(config)
    params = quick_params(model)
    batch = source() | {"input_ids": RIGHT["input_ids"][:, :7]}

    def run(params, cache, keep):
        return model.apply({"params": params}, **batch, past_key_values=cache, logits_to_keep=keep)

    cache = init_cache(config, BATCH, 9)
    for past in (None, cache):
        want = quick_jit(run, static_argnums=2)(params, past, 0)
        static = 2 if isinstance(keep, int) else ()
        found = quick_jit(run, static_argnums=static)(params, past, keep)
        columns = slice(7 - keep, None) if isinstance(keep, int) else keep
        np.testing.assert_allclose(found.logits, want.logits[:, columns], rtol=0, atol=STEP)
        if past is not None:
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=STEP),
                found.past_key_values,
                want.past_key_values,
            )


def test_a_cache_is_returned_when_asked_for():
    ids = RIGHT["input_ids"][:, :4]
    cache = init_cache(DECODER, BATCH, 6)

    def shapes(**given):
        model = BertLMHeadModel(DECODER)
        run = lambda p: model.apply({"params": p}, ids, **given).past_key_values  # noqa: E731
        return jax.eval_shape(run, quick_params(model))

    assert shapes() is None
    assert shapes(use_cache=False, past_key_values=cache) is None
    assert shapes(past_key_values=cache).max_length == 6
    made = shapes(use_cache=True)
    assert (made.max_length, made.batch_size) == (SMALL.max_position_embeddings, BATCH)


def test_bfloat16():
    model = BertLMHeadModel(CROSS, dtype=jnp.bfloat16)
    params = quick_params(model)
    batch = source() | {"input_ids": RIGHT["input_ids"][:, :8]}
    want = quick_jit(lambda p: BertLMHeadModel(CROSS).apply({"params": p}, **batch).logits)(params)
    cache = init_cache(CROSS, BATCH, 8, jnp.bfloat16)

    @quick_jit
    def halves(params, cache):
        for part in (slice(0, 5), slice(5, 8)):
            given = batch | {"input_ids": batch["input_ids"][:, part]}
            output = model.apply({"params": params}, **given, past_key_values=cache)
            cache = output.past_key_values
        return output

    output = halves(params, cache)
    assert {leaf.dtype for leaf in jax.tree.leaves(output.past_key_values)} == {
        jnp.dtype("bfloat16"),
        jnp.dtype("int32"),
    }
    scale = float(np.abs(want).max())
    np.testing.assert_allclose(output.logits, want[:, 5:], rtol=0, atol=0.05 * scale)


# Weights in and out, and what works on parameters.


@pytest.mark.parametrize("config", [DECODER, CROSS], ids=["alone", "cross"])
def test_round_trip_through_transformers(config, tmp_path):
    model = BertLMHeadModel(config)
    params = quick_params(model)
    save_pretrained(tmp_path / "ours", model, params)
    peer, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report.values()), report
    assert type(peer) is transformers.BertLMHeadModel
    batch = RIGHT | (source() if config.add_cross_attention else {})
    ours = quick_jit(lambda p: model.apply({"params": p}, **batch).logits)(params)
    with torch.no_grad():
        np.testing.assert_allclose(
            ours, peer.eval()(**torch_of(batch)).logits.numpy(), rtol=0, atol=OUTPUT
        )
    peer.save_pretrained(tmp_path / "theirs")
    loaded, back = from_pretrained(tmp_path / "theirs")
    assert type(loaded) is BertLMHeadModel
    assert (loaded.config.is_decoder, loaded.config.add_cross_attention) == (
        True,
        config.add_cross_attention,
    )
    assert_same_trees(back, params)


def test_encoder_becomes_decoder_and_back(tmp_path, caplog):
    encoder = bertjax.BertForMaskedLM(dataclasses.replace(SMALL, num_hidden_layers=2))
    params = quick_params(encoder)
    save_pretrained(tmp_path / "encoder", encoder, params)
    decoder, warm = BertLMHeadModel.from_pretrained(tmp_path / "encoder", config=CROSS)
    (message,) = caplog.messages
    assert "newly initialised" in message
    assert message.count("crossattention") == 10
    layer = warm["bert"]["encoder"]["layer"]
    cross = layer.pop("crossattention")
    assert_same_trees(warm, params)
    assert float(np.std(cross["self"]["query"]["kernel"])) == pytest.approx(0.15, rel=0.1)
    layer["crossattention"] = cross
    save_pretrained(tmp_path / "decoder", decoder, warm)
    with caplog.at_level(logging.INFO, logger="bertjax.pretrained"):
        _, back = bertjax.BertForMaskedLM.from_pretrained(
            tmp_path / "decoder", config=encoder.config
        )
    assert "left out 20 tensors" in caplog.messages[-1]
    assert_same_trees(back, params)


@pytest.mark.parametrize("named", ["BertForCausalLM", "FlaxBertForCausalLM", None])
def test_class_is_found_without_its_name(named, tmp_path):
    model = BertLMHeadModel(dataclasses.replace(DECODER, **ONE))
    save_pretrained(tmp_path, model, quick_params(model))
    config = json.loads((tmp_path / "config.json").read_text())
    config["architectures"] = [named] if named else None
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert type(from_pretrained(tmp_path)[0]) is BertLMHeadModel


def test_pruned_decoder_equals_its_head_mask():
    model = BertLMHeadModel(CROSS)
    params = quick_params(model)
    pruned, fewer = prune_heads(model, params, {0: [1], 1: [0, 2]})
    batch = source() | {"input_ids": RIGHT["input_ids"][:, :8]}
    mask = pruned_head_mask(pruned.config)
    want = quick_jit(lambda p: model.apply({"params": p}, **batch, head_mask=mask).logits)(params)
    cache = init_cache(pruned.config, BATCH, 8)
    assert cache.layers[0].key.shape[1] == 3

    @quick_jit
    def halves(params, cache):
        for part in (slice(0, 7), slice(7, 8)):
            given = batch | {"input_ids": batch["input_ids"][:, part]}
            output = pruned.apply({"params": params}, **given, past_key_values=cache)
            cache = output.past_key_values
        return output.logits

    np.testing.assert_allclose(halves(fewer, cache), want[:, 7:], rtol=0, atol=STEP)


def test_adapters_of_the_cross_attention():
    model = BertLMHeadModel(CROSS)
    params = quick_params(model)
    config = lora.LoraConfig(rank=2, targets=("crossattention/self/query", "crossattention/output"))
    adapters = lora.init(jax.random.key(0), params, config)
    batch = source() | RIGHT

    def loss(adapters):
        merged = lora.merge(params, adapters, config)
        return model.apply({"params": merged}, **batch).loss

    grads = quick_jit(jax.grad(loss))(adapters)
    found = {jax.tree_util.keystr(p): g for p, g in jax.tree_util.tree_leaves_with_path(grads)}
    assert len(found) == 4
    assert all("crossattention" in path for path in found)
    assert all(g.any() for path, g in found.items() if "lora_B" in path)


# Bad input.


def fails(config, message, batch=None, model_class=BertLMHeadModel, **given):
    batch = {"input_ids": RIGHT["input_ids"]} if batch is None else batch
    model = model_class(config)
    params = quick_params(model)
    with pytest.raises(ValueError, match=message):
        model.apply({"params": params}, **batch, **given)


def test_cross_attention_that_is_not_there():
    encoder = dataclasses.replace(SMALL, **ONE)
    states = source()["encoder_hidden_states"]
    words = "cross-attention: is_decoder is {}, add_cross_attention False"
    fails(DECODER, words.format(True), encoder_hidden_states=states)
    fails(encoder, words.format(False), model_class=BertModel, encoder_hidden_states=states)
    mask = {"encoder_attention_mask": np.ones((5, 8), np.int32)}
    fails(CROSS, r"\(5, 8\) does not fit 5 rows and no tokens", **mask)
    fails(CROSS, r"\(5, 8\) does not fit 5 rows and 9 tokens", **source() | mask)
    narrow = {"encoder_hidden_states": states[..., :48]}
    fails(CROSS, r"shape \(5, 9, 48\) do not fit 5 rows and hidden_size 64", **narrow)
    with pytest.raises(bertjax.InputError, match="add_cross_attention is for decoders"):
        abstract_params(BertModel(dataclasses.replace(CROSS, is_decoder=False)))


def test_cache_that_does_not_fit():
    encoder = dataclasses.replace(SMALL, **ONE)
    cache = init_cache(DECODER, BATCH, 32)
    fails(encoder, "is_decoder is off", model_class=BertModel, past_key_values=cache)
    fails(encoder, "is_decoder is off", model_class=BertModel, use_cache=True)
    fails(DECODER, "33 new tokens are more than a cache with room for 32", past_key_values=cache)
    short = {"input_ids": RIGHT["input_ids"][:, :4]}
    written = dataclasses.replace(cache, length=jnp.int32(30))
    fails(DECODER, "the 30 there and 4 new tokens", short, past_key_values=written)
    written = written.crop(9)
    fails(
        DECODER,
        "attention_mask of 12 tokens is short of the 9 in the cache and 4 new",
        short | {"attention_mask": np.ones((BATCH, 12))},
        past_key_values=written,
    )
    long = short | {"attention_mask": np.ones((BATCH, 33))}
    fails(DECODER, r"\(5, 33\) is not for 4 queries of 32 keys", long, past_key_values=cache)
    fails(DECODER, "have 4 rows, the batch has 5", past_key_values=init_cache(DECODER, 4, 40))
    other = dataclasses.replace(DECODER, num_attention_heads=8)
    cache = init_cache(other, BATCH, 40)
    fails(DECODER, "8 heads of 8, the model has 2 of 4 of 16", past_key_values=cache)
    with pytest.raises(ValueError, match="a cache of 41 tokens is over max_position_embeddings 40"):
        init_cache(DECODER, 1, 41)
    with pytest.raises(ValueError, match="is_decoder is off"):
        init_cache(SMALL, 1, 4)


def test_logits_and_labels_that_do_not_fit():
    fails(DECODER, "leave out logits_to_keep", RIGHT, logits_to_keep=1)
    fails(DECODER, "logits_to_keep is 34 of 33 tokens", logits_to_keep=34)


def test_no_label_that_counts_gives_zero_not_nan():
    model = BertLMHeadModel(DECODER)
    labels = np.full((BATCH, LENGTH), -100, np.int32)
    labels[:, 0] = 5  # no token before it could predict it
    batch = RIGHT | {"labels": labels}

    def loss(params):
        return model.apply({"params": params}, **batch).loss

    value, grads = quick_jit(jax.value_and_grad(loss))(quick_params(model))
    assert value == 0
    assert all(np.all(np.asarray(g) == 0) for g in jax.tree.leaves(grads))


def test_an_encoder_is_warned_of_once(caplog):
    causal_lm._warn_of_encoder.cache_clear()
    model = BertLMHeadModel(dataclasses.replace(SMALL, **ONE))
    for _ in range(2):
        jax.eval_shape(model.init, jax.random.key(0), model.init_ids)
    (message,) = caplog.messages
    assert "without is_decoder" in message

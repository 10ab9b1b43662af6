"""Every class in every format that is written, heads new and left out, types, runs, conversions."""

import collections
import dataclasses
import json
import logging
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file

import bertjax
from bertjax import BertConfig, InputError
from bertjax.pretrained import abstract_params, from_pretrained, safetensors, save_pretrained
from bertjax.pretrained.formats import FORMATS, WRITERS, parse_size
from bertjax.pruning import prune_heads
from bertjax.run_config import MeshConfig
from bertjax.sharding import make_mesh, state_shardings
from tests import processes
from tests.models import assert_same_trees
from tests.peers import quick_params, torch_peer

PRUNED = Path(__file__).parent / "data" / "pruned"
CONFIG = BertConfig(
    vocab_size=60,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
    max_position_embeddings=16,
    id2label=("no", "yes", "perhaps"),
    scan_unroll=1,
)
CLASSES = [
    n for n in bertjax.__all__ if re.fullmatch(r"Bert(Model|LMHeadModel|For(?!.*Output).*)", n)
]
AUTO = {
    "BertModel": "AutoModel",
    "BertForPreTraining": "AutoModelForPreTraining",
    "BertForMaskedLM": "AutoModelForMaskedLM",
    "BertLMHeadModel": "AutoModelForCausalLM",
    "BertForNextSentencePrediction": "AutoModelForNextSentencePrediction",
    "BertForSequenceClassification": "AutoModelForSequenceClassification",
    "BertForMultipleChoice": "AutoModelForMultipleChoice",
    "BertForTokenClassification": "AutoModelForTokenClassification",
    "BertForQuestionAnswering": "AutoModelForQuestionAnswering",
}


def make(name, config=CONFIG):
    if name == "BertForQuestionAnswering":  # scores starts and ends
        config = dataclasses.replace(config, id2label=("start", "end"))
    if name == "BertLMHeadModel":
        config = dataclasses.replace(config, is_decoder=True)
    model = getattr(bertjax, name)(config)
    return model, quick_params(model)


def loaded_config(model):
    """The config without what the writer noted beside it."""
    return dataclasses.replace(model.config, other=(), scan_unroll=1)


def test_every_class_is_tested():
    assert set(CLASSES) == set(AUTO)


@pytest.mark.parametrize("to", WRITERS)
@pytest.mark.parametrize("name", CLASSES)
def test_round_trip_is_bitwise(name, to, tmp_path):
    model, params = make(name)
    save_pretrained(tmp_path / "out", model, params, to=to)
    loaded, back = from_pretrained(tmp_path / "out")
    assert type(loaded) is type(model)
    assert loaded_config(loaded) == model.config
    assert_same_trees(back, params)


@pytest.mark.parametrize("to", ["hf", "flax"])
def test_sharded_round_trip(to, tmp_path):
    model, params = make("BertForPreTraining")
    save_pretrained(tmp_path, model, params, to=to, max_shard_size="10KB")
    shards = [p for p in tmp_path.glob("*-of-*") if p.is_file()]
    assert len(shards) > 3
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert max(p.stat().st_size for p in shards) < max(10_000, largest) + 4096
    assert_same_trees(from_pretrained(tmp_path)[1], params)
    if to == "hf":
        _, report = transformers.BertForPreTraining.from_pretrained(
            tmp_path, output_loading_info=True
        )
        assert not any(report.values()), report
    # Written again in one piece, nothing of the shards is left to be taken for the model.
    save_pretrained(tmp_path, model, params, to=to)
    assert not list(tmp_path.glob("*-of-*"))
    assert not list(tmp_path.glob("*.index.json"))


@pytest.mark.parametrize("name", CLASSES)
def test_transformers_auto_classes_load_it(name, tmp_path):
    model, params = make(name)
    save_pretrained(tmp_path, model, params)
    peer, report = getattr(transformers, AUTO[name]).from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report.values()), report
    assert type(peer).__name__ == name
    assert peer.config.id2label == dict(enumerate(model.config.id2label))
    ids = np.random.default_rng(0).integers(0, 60, (*model.init_ids.shape[:-1], 9))
    ours = jax.jit(lambda p: model.apply({"params": p}, ids))(params)
    with torch.no_grad():
        theirs = peer.eval()(torch.tensor(ids))
    compared = 0
    for field, value in theirs.items():
        if field in ("past_key_values", "cache"):  # before and since transformers 5.24
            continue
        np.testing.assert_allclose(getattr(ours, field), value.numpy(), rtol=0, atol=2e-5)
        compared += 1
    assert compared >= 1


@pytest.mark.parametrize("written", ["safetensors", "shards", "bin", "old bin", "shards of bin"])
@pytest.mark.parametrize("name", CLASSES)
def test_directories_of_transformers(name, written, tmp_path):
    model, params = make(name)
    peer = torch_peer(model, params)
    peer.save_pretrained(tmp_path, max_shard_size="10KB" if "shards" in written else "5GB")
    if written == "shards of bin":  # transformers 5 writes none: the same shards, torch's way
        index = tmp_path / "model.safetensors.index.json"
        text = index.read_text().replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
        (tmp_path / "pytorch_model.bin.index.json").write_text(text)
        index.unlink()
        shards = list(tmp_path.glob("model-*.safetensors"))
        assert len(shards) > 2
        for shard in shards:
            tensors = load_file(shard)
            torch.save(tensors, tmp_path / f"pytorch_{shard.stem}.bin")
            shard.unlink()
    elif "bin" in written:
        (tmp_path / "model.safetensors").unlink()
        torch.save(
            peer.state_dict(),
            tmp_path / "pytorch_model.bin",
            _use_new_zipfile_serialization=written == "bin",
        )
    loaded, back = from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert_same_trees(back, params)


@pytest.mark.parametrize("kind", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("to", WRITERS)
def test_types_of_files_and_of_parameters(to, kind, tmp_path):
    model, params = make("BertForMaskedLM")
    save_pretrained(tmp_path, model, params, to=to, dtype=kind)
    rounded = jax.tree.map(lambda x: x.astype(kind), params)
    for loaded_as in (jnp.float32, kind):
        _, back = from_pretrained(tmp_path, param_dtype=loaded_as)
        assert_same_trees(back, jax.tree.map(lambda x: x.astype(loaded_as), rounded))  # noqa: B023
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == jnp.dtype(kind).name


@pytest.mark.parametrize("to", WRITERS)
def test_pruned_models(to, tmp_path):
    model, params = make("BertForMaskedLM")
    pruned, fewer = prune_heads(model, params, {0: [1], 1: [0, 2]})
    assert fewer["bert"]["encoder"]["layer"]["attention"]["self"]["query"]["bias"].shape[1] == 2
    save_pretrained(tmp_path, pruned, fewer, to=to)
    loaded, back = from_pretrained(tmp_path)
    assert loaded.config.pruned_heads == ((0, 1), (1, 0), (1, 2))
    assert_same_trees(back, fewer)
    if to == "hf":  # transformers 5 knows no pruning: it finds the heads there, and zero
        peer, report = transformers.BertForMaskedLM.from_pretrained(
            tmp_path, output_loading_info=True, attn_implementation="eager"
        )
        assert not any(report.values()), report
        ids = np.arange(10)[None]
        with torch.no_grad():
            want = peer.eval()(torch.tensor(ids)).logits.numpy()
        ours = jax.jit(lambda p: loaded.apply({"params": p}, ids))(back).logits
        np.testing.assert_allclose(ours, want, rtol=0, atol=2e-5)


def test_files_of_transformers_4_without_their_pruned_heads():
    full, params = from_pretrained(PRUNED / "full")
    pruned, found = from_pretrained(PRUNED / "pruned")
    assert pruned.config.pruned_heads
    heads = collections.defaultdict(list)
    for layer, head in pruned.config.pruned_heads:
        heads[layer].append(head)
    assert_same_trees(found, prune_heads(full, params, heads)[1])


def test_head_of_another_task_is_left_out_and_the_own_one_is_new(tmp_path, caplog):
    model, params = make("BertForPreTraining")
    save_pretrained(tmp_path, model, params)
    with caplog.at_level(logging.INFO, logger="bertjax.pretrained"):
        task, loaded = bertjax.BertForSequenceClassification.from_pretrained(
            tmp_path, key=jax.random.key(5)
        )
    left_out, new = caplog.messages
    assert re.match(r".*: left out 7 tensors: cls\.", left_out)
    assert new == (
        f"{tmp_path}: newly initialised, not in the checkpoint: classifier/bias, classifier/kernel"
    )
    assert_same_trees(loaded["bert"], params["bert"])
    want = jax.jit(task.init)(jax.random.key(5), task.init_ids)["params"]["classifier"]
    assert_same_trees(loaded["classifier"], want)
    assert np.std(want["kernel"]) == pytest.approx(0.02, rel=0.25)  # of 72 draws


def test_a_part_of_a_head_is_a_fault(tmp_path):
    model, params = make("BertForTokenClassification")
    params = params | {"classifier": {"kernel": params["classifier"]["kernel"]}}
    save_pretrained(tmp_path, model, params)
    with pytest.raises(InputError, match=r"1 tensors do not fit: missing classifier.bias \[3\]"):
        from_pretrained(tmp_path)


def test_sizes_that_may_differ(tmp_path, caplog):
    model, params = make("BertForTokenClassification")
    save_pretrained(tmp_path, model, params)
    other = dataclasses.replace(CONFIG, id2label=(), num_labels=5, max_position_embeddings=32)
    load = bertjax.BertForTokenClassification.from_pretrained
    with pytest.raises(InputError, match=r"3 tensors do not fit: misshapen .*; misshapen .*; mis"):
        load(tmp_path, config=other)
    with caplog.at_level(logging.WARNING, logger="bertjax.pretrained"):
        _, loaded = load(tmp_path, config=other, ignore_mismatched_sizes=True)
    (line,) = caplog.messages
    assert line.endswith(
        "newly initialised, not in the checkpoint, or of another shape there: "
        "bert/embeddings/position_embeddings/embedding, classifier/bias, classifier/kernel"
    )
    assert loaded["classifier"]["kernel"].shape == (24, 5)
    assert loaded["bert"]["embeddings"]["position_embeddings"]["embedding"].shape == (32, 24)
    assert_same_trees(loaded["bert"]["encoder"], params["bert"]["encoder"])


def test_a_decoder_that_contradicts_its_tie(tmp_path, caplog):
    untied = dataclasses.replace(CONFIG, tie_word_embeddings=False)
    model, params = make("BertForMaskedLM", untied)
    save_pretrained(tmp_path, model, params)
    assert_same_trees(from_pretrained(tmp_path)[1], params)
    CONFIG.to_json(tmp_path / "config.json")
    with caplog.at_level(logging.WARNING, logger="bertjax.pretrained"):
        bertjax.BertForMaskedLM.from_pretrained(tmp_path)
    assert "cls.predictions.decoder.weight" in caplog.text
    assert "tie_word_embeddings" in caplog.text


@pytest.mark.parametrize("to", WRITERS)
def test_parameters_that_are_sharded(to, tmp_path):
    model, params = make("BertForMaskedLM")
    save_pretrained(tmp_path, model, params, to=to)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    shardings = state_shardings(abstract_params(model), mesh)
    _, back = from_pretrained(tmp_path, shardings=shardings)
    assert jax.tree.map(lambda leaf: leaf.sharding, back) == shardings
    assert_same_trees(back, params)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["hf", "orbax"])
def test_parameters_split_over_eight_devices(to, tmp_path):
    config = BertConfig.preset("tiny", vocab_size=510, hidden_size=32, num_attention_heads=4)
    model = bertjax.BertForPreTraining(config)
    save_pretrained(tmp_path, model, quick_params(model), to=to)
    code, out, err = processes.run("tests.workers.load_sharded", tmp_path, devices=8)
    assert code == 0, err
    for mesh, parameters in json.loads(out).items():
        for path, (size, part) in parameters.items():
            if path.endswith(("query/kernel", "layer/output/dense/kernel")):
                assert size == part * (4 if mesh == "2x2x2" else 8), (mesh, path)
            elif path.endswith("word_embeddings/embedding"):
                assert size == part * (8 if mesh == "1x8x1" else 2), (mesh, path)


def test_the_class_is_told_by_the_tensors_where_the_config_does_not(tmp_path):
    # Multiple choice and token classification have the tensors of a sequence classifier.
    for name in set(CLASSES) - {"BertForMultipleChoice", "BertForTokenClassification"}:
        model, params = make(name)
        save_pretrained(tmp_path / name, model, params)
        model.config.to_json(tmp_path / name / "config.json")  # says nothing of a class
        assert type(from_pretrained(tmp_path / name)[0]).__name__ == name
    model = bertjax.BertModel(CONFIG, add_pooling_layer=False)
    params = quick_params(model)
    save_pretrained(tmp_path / "bare", model, params)
    loaded, back = from_pretrained(tmp_path / "bare")
    assert not loaded.add_pooling_layer
    assert_same_trees(back, params)


def test_a_class_that_bertjax_lacks(tmp_path):
    model, params = make("BertModel")
    save_pretrained(tmp_path, model, params)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace("BertModel", "BertForTimeTravel"))
    with pytest.raises(InputError, match="of a BertForTimeTravel, which bertjax has no class for"):
        from_pretrained(tmp_path)
    assert_same_trees(bertjax.BertModel.from_pretrained(tmp_path)[1], params)


@pytest.mark.parametrize("given", ["BertModel", [1], {"BertModel": 1}])
def test_architectures_that_are_no_list_of_names(given, tmp_path):
    model, params = make("BertModel")
    save_pretrained(tmp_path, model, params)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": given}))
    message = f'a list of class names, such as ["BertForMaskedLM"]; got {json.dumps(given)}'
    with pytest.raises(InputError, match=re.escape(message)):
        from_pretrained(tmp_path)
    assert_same_trees(bertjax.BertModel.from_pretrained(tmp_path)[1], params)


def test_a_config_that_asks_for_what_there_is_not(tmp_path):
    model, params = make("BertModel")
    save_pretrained(tmp_path, model, params)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"gelu"', '"geluu"'))
    with pytest.raises(InputError, match=f"^{tmp_path}: hidden_act 'geluu' is not known: choose"):
        from_pretrained(tmp_path)


def test_model_card(tmp_path):
    model, params = make("BertForMaskedLM")
    save_pretrained(tmp_path, model, params, facts={"Steps": 7})
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: fill-mask\n")
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert f"| Parameters | {count:,} |" in card
    assert "| Steps | 7 |" in card
    (tmp_path / "README.md").write_text("my own words")
    save_pretrained(tmp_path, model, params)
    assert (tmp_path / "README.md").read_text() == "my own words"


def test_a_tokenizer_with_more_pieces_than_the_model_has_rows(tmp_path, caplog):
    words = tmp_path / "vocab.txt"
    words.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]) + "\n")
    tokenizer = bertjax.BertTokenizer.from_vocab(words)
    for rows in (7, 6):
        model, params = make("BertModel", dataclasses.replace(CONFIG, vocab_size=rows))
        save_pretrained(tmp_path / f"{rows}", model, params, tokenizer)
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path / '6'}: the tokenizer has ids up to 6, the model word ")


def test_other_files_of_a_directory_stay(tmp_path):
    model, params = make("BertModel")
    (tmp_path / "notes.txt").write_text("keep")
    (tmp_path / "old.ckpt.index").write_text("keep")
    for to in WRITERS:
        save_pretrained(tmp_path, model, params, to=to)
        save_pretrained(tmp_path, model, params, to=to)
    assert (tmp_path / "notes.txt").read_text() == (tmp_path / "old.ckpt.index").read_text()
    left = [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]
    assert left == []


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("1.5 mb", 1_500_000), ("10KB", 10_000), ("77", 77), (9, 9)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


def test_bad_arguments(tmp_path):
    model, params = make("BertModel")
    with pytest.raises(InputError, match="'many' is not a size"):
        save_pretrained(tmp_path, model, params, max_shard_size="many")
    with pytest.raises(
        InputError, match="cannot write 'torch': choose one of hf, flax, tf1, orbax"
    ):
        save_pretrained(tmp_path, model, params, to="torch")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "weights.xyz").write_text("")
    CONFIG.to_json(tmp_path / "config.json")
    with pytest.raises(InputError, match=r"weights.xyz: is no weight file of a known kind"):
        from_pretrained(tmp_path / "weights.xyz")
    assert set(WRITERS) < set(FORMATS)


def test_pointers_of_git_lfs(tmp_path):
    CONFIG.to_json(tmp_path / "config.json")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 440473133\n"
    for file in ("pytorch_model.bin", "flax_model.msgpack", "model.safetensors"):
        (tmp_path / file).write_text(pointer)
        with pytest.raises(InputError, match=f"{file}: is a pointer .*; run git lfs pull"):
            from_pretrained(tmp_path)


def test_damaged_orbax(tmp_path):
    model, params = make("BertModel")
    save_pretrained(tmp_path, model, params, to="orbax")
    for path in (tmp_path / "params").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(InputError, match="params: not a whole Orbax checkpoint"):
        from_pretrained(tmp_path)
    (tmp_path / "params" / "_METADATA").write_text("{")
    with pytest.raises(InputError, match="params: not a whole Orbax checkpoint"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("zarr3", [True, False])
@pytest.mark.parametrize("ocdbt", [True, False])
def test_every_layout_of_orbax(tmp_path, ocdbt, zarr3, compressed):
    _, params = make("BertForMaskedLM")
    CONFIG.to_json(tmp_path / "config.json")
    chunks = jax.tree.map(lambda leaf: ocp.SaveArgs(chunk_byte_size=leaf.nbytes // 2), params)
    options = {"use_ocdbt": ocdbt, "use_zarr3": zarr3, "use_compression": compressed}
    with ocp.PyTreeCheckpointer(**options) as checkpointer:
        checkpointer.save(tmp_path / "params", params, save_args=chunks)
    assert_same_trees(from_pretrained(tmp_path)[1], params)


def test_lost_chunk_of_orbax(tmp_path):
    _, params = make("BertModel")
    CONFIG.to_json(tmp_path / "config.json")
    with ocp.PyTreeCheckpointer(use_ocdbt=False) as checkpointer:
        checkpointer.save(tmp_path / "params", params)
    (tmp_path / "params" / "pooler.dense.kernel" / "0.0").unlink()
    with pytest.raises(InputError, match="params: not a whole Orbax checkpoint"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("told", ["Error: I/O error: No (os error 28)", "No [os_error_code='28']"])
@pytest.mark.parametrize("to", ["hf", "orbax"])
def test_libraries_that_tell_of_a_full_disk_in_words(to, told, tmp_path, monkeypatch):
    model, params = make("BertModel")

    def fail(*_, **__):
        raise SafetensorError(told)

    monkeypatch.setattr(safetensors, "save_file", fail)
    monkeypatch.setattr(ocp.PyTreeCheckpointer, "save", fail)
    message = rf"^{tmp_path}/a: cannot be written \(No space left on device\)$"
    with pytest.raises(InputError, match=message):
        save_pretrained(tmp_path / "a", model, params, to=to)
    told = "Error: of\nno number"
    message = r"cannot be written \(SafetensorError: Error: of no number\)$"
    with pytest.raises(InputError, match=message):
        save_pretrained(tmp_path / "a", model, params, to=to)
    assert list(tmp_path.iterdir()) == []

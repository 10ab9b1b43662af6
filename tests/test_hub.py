"""Models by name: a stand-in for the hub, its cache, revisions, tokens, and no network."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from bertjax import BertConfig, BertForMaskedLM, InputError
from bertjax.pretrained import hub, save_pretrained
from bertjax.pretrained.formats import FORMATS
from bertjax.tokenizer import BertTokenizer
from tests import hub_stub, processes
from tests.peers import quick_params

CONFIG = BertConfig(
    vocab_size=20,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=8,
    max_position_embeddings=8,
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    model = BertForMaskedLM(CONFIG)
    words = tmp_path_factory.mktemp("words") / "vocab.txt"
    words.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abc"]) + "\n")
    tokenizer = BertTokenizer.from_vocab(words)
    for name, to, size in (
        ("me/tiny", "hf", "5GB"),
        ("me/shards", "hf", "1KB"),
        ("me/old", "flax", "5GB"),
        ("me/google", "tf1", "5GB"),
        ("me/orbax", "orbax", "5GB"),
    ):
        params = quick_params(model)
        save_pretrained(root / name, model, params, tokenizer, to=to, max_shard_size=size)
    (root / "me" / "tiny" / "pytorch_model.bin").write_text("not to be fetched")
    (root / "me" / "tiny" / "onnx").mkdir()
    (root / "me" / "tiny" / "onnx" / "model.onnx").write_text("not to be fetched")
    (root / "me" / "empty").mkdir()
    (root / "me" / "empty" / "notes.md").write_text("no model")
    bias = float(params["cls"]["predictions"]["bias"][0])
    with hub_stub.serve(root) as hub_:
        yield hub_, ["BertForMaskedLM", pytest.approx(bias)]


def load(calls, home, url, offline="0"):
    """Load the models in a process of its own, which reads the hub's settings when it starts."""
    env = {"HF_HOME": str(home), "HF_ENDPOINT": url, "HF_HUB_OFFLINE": offline}
    code, out, err = processes.run("tests.workers.load_models", json.dumps(calls), env=env)
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


def test_names_revisions_and_the_cache(server, tmp_path):
    site, loaded = server
    site.requests.clear()
    missing = "me/none (no such file or directory, so taken for a model of the Hugging Face hub)"
    answers = load(
        [
            ["me/tiny", {}],
            ["me/tiny", {"revision": "v1"}],
            ["me/tiny", {"revision": "v9"}],
            ["me/none", {}],
            ["me/tiny", {"local_files_only": True}],
            ["me/tiny", {"local_files_only": True, "revision": "v7"}],
            ["me/shards", {"cache_dir": str(tmp_path / "elsewhere")}],
            ["me/old", {}],
            ["me/google", {}],
            ["me/orbax", {}],
            ["me/empty", {}],
        ],
        tmp_path / "home",
        site.url,
    )
    assert answers[:2] == [loaded, loaded]
    assert answers[2].endswith("has no revision 'v9'")
    assert answers[3] == f"{missing}: is not there, or is private and needs a token"
    assert answers[4] == loaded
    assert answers[5].endswith("not in the cache, and looked for in the cache only")
    assert answers[6:10] == [loaded] * 4
    assert "hub): holds no weights (model.safetensors, " in answers[10]
    # Each file once, of one format, and nothing that is not needed.
    assert site.downloads("me/tiny") == ["config.json", "model.safetensors"]
    assert (tmp_path / "elsewhere").is_dir()

    # What was loaded once is there without a network.
    gone = "http://127.0.0.1:9"
    offline = load([["me/tiny", {}], ["me/other", {}]], tmp_path / "home", gone)
    assert offline[0] == loaded
    assert "not in the cache, and the hub cannot be reached: " in offline[1]
    site.requests.clear()
    offline = load([["me/old", {}], ["me/other", {}]], tmp_path / "home", site.url, offline="1")
    assert offline[0] == loaded
    assert offline[1].endswith("not in the cache, and HF_HUB_OFFLINE is set")
    assert site.requests == []


_CONFIG = {"config.json"}
_MODEL = {"config.json", "model.safetensors"}
_TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "vocab.txt"}
_SENTENCES = {
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
    "2_Dense/config.json",
    "2_Dense/model.safetensors",
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Load each part of a model with two formats; return what was fetched for it, and the cache."""
    root = tmp_path_factory.mktemp("hub")
    whole = root / "me" / "whole"
    model = BertForMaskedLM(CONFIG)
    words = tmp_path_factory.mktemp("words") / "vocab.txt"
    words.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abc"]) + "\n")
    save_pretrained(whole, model, quick_params(model), BertTokenizer.from_vocab(words))
    size = CONFIG.hidden_size
    for file, content in (
        ("modules.json", [{"type": f"x.{n[2:]}", "path": n} for n in ("1_Pooling", "2_Dense")]),
        ("sentence_bert_config.json", {"max_seq_length": 8}),
        ("1_Pooling/config.json", {"pooling_mode": "mean"}),
        ("2_Dense/config.json", {"in_features": size, "out_features": size}),
        ("generation_config.json", {}),
    ):
        (whole / file).parent.mkdir(exist_ok=True)
        (whole / file).write_text(json.dumps(content))
    kernel = np.zeros((size, size), np.float32)
    save_file({"linear.weight": kernel}, whole / "2_Dense" / "model.safetensors")
    for other in ("pytorch_model.bin", "2_Dense/pytorch_model.bin", "tf_model.h5"):
        (whole / other).write_text("not to be fetched")
    for name in LOADED:
        shutil.copytree(whole, root / "me" / name)
    with hub_stub.serve(root) as site:
        env = {"HF_HOME": str(root / "home"), "HF_ENDPOINT": site.url, "HF_HUB_OFFLINE": "0"}
        code, _, err = processes.run("tests.workers.load_parts", *LOADED, root / "out", env=env)
        assert code == 0, err
        return {name: site.downloads(f"me/{name}") for name in LOADED}, root / "home" / "hub"


LOADED = {
    "config": _CONFIG,
    "tokenizer": _TOKENIZER,
    "model": _MODEL,
    "model-and-class": _MODEL,
    "fill-mask": _MODEL | _TOKENIZER,
    "sentence-embeddings": _MODEL | _TOKENIZER | _SENTENCES,
    "convert": _MODEL | _TOKENIZER,
}


@pytest.mark.parametrize("part", LOADED)
def test_only_what_is_needed_is_fetched(part, parts):
    fetched, _ = parts
    assert fetched[part] == sorted(LOADED[part])


def test_a_config_in_the_cache_is_no_model(parts):
    _, cache = parts
    options = {"cache_dir": cache, "local_files_only": True}
    assert hub.fetch("me/config", hub.CONFIG, **options).is_dir()
    with pytest.raises(InputError, match=r"me/config .*: not in the cache"):
        hub.fetch("me/config", hub.CONFIG, PATTERNS, **options)
    assert hub.fetch("me/model", hub.CONFIG, PATTERNS, **options).is_dir()


def test_tokens(server, tmp_path):
    site, loaded = server
    site.token = "hf_secret"
    try:
        answers = load(
            [["me/tiny", {}], ["me/tiny", {"token": "hf_secret"}]], tmp_path / "home", site.url
        )
    finally:
        site.token = None
    assert answers[0].endswith("is not there, or is private and needs a token")
    assert answers[1] == loaded


PATTERNS = [pattern for kind in FORMATS.values() for pattern in kind.files]


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        (["model.safetensors", "flax_model.msgpack", "pytorch_model.bin"], ["model.safetensors"]),
        (["flax_model.msgpack", "pytorch_model.bin"], ["flax_model.msgpack"]),
        (["pytorch_model.bin", "tf_model.h5"], ["pytorch_model.bin"]),
        (
            ["a.index.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json"],
            ["model.safetensors.index.json", "model-00001-of-00002.safetensors"],
        ),
        (
            [
                "bert_model.ckpt.index",
                "bert_model.ckpt.data-00000-of-00001",
                "bert_model.ckpt.meta",
            ],
            ["bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001"],
        ),
        (["params/_METADATA", "params/d/0", "a/b"], ["params/_METADATA", "params/d/0"]),
        (["model.onnx"], []),
    ],
)
def test_only_one_format_is_fetched(there, wanted):
    found = hub.choose([*there, "config.json", "vocab.txt", "notes.md"], hub.CONFIG, PATTERNS)
    assert found == ["config.json", *wanted]


@pytest.mark.parametrize("name", ["bert-base-uncased", "google/bert_uncased_L-2_H-128_A-2"])
def test_names_of_the_hub(name):
    assert hub.is_name(name)


@pytest.mark.parametrize("path", ["./model", "/models/bert", "a/b/c", "runs/x/", "~/model", ""])
def test_paths_are_no_names(path):
    assert not hub.is_name(path)

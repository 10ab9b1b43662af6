"""`BertConfig`: the fields of transformers, its JSON files, google's, and the published sizes."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
import transformers

from bertjax.config import PRESETS, BertConfig
from bertjax.errors import InputError
from bertjax.heads import BertForPreTraining
from bertjax.model import BertModel
from bertjax.pretrained import abstract_params

# Fields and defaults of transformers 5 (`configuration_bert.py`), then what version 4 adds.
DEFAULTS = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "use_cache": True,
    "classifier_dropout": None,
    "is_decoder": False,
    "add_cross_attention": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "tie_word_embeddings": True,
    "position_embedding_type": "absolute",
    "output_hidden_states": False,
    "output_attentions": False,
    "chunk_size_feed_forward": 0,
    "is_encoder_decoder": False,
    "cross_attention_hidden_size": None,
    "tie_encoder_decoder": False,
    "num_labels": 2,
    "problem_type": None,
    "sep_token_id": None,
    "decoder_start_token_id": None,
}
LABELS = {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
# Inherited fields that say nothing about the network: carried in `other`.
CARRIED = {
    "architectures": ["BertForMaskedLM"],
    "dtype": "float32",
    "finetuning_task": "mnli",
    "return_dict": True,
    "task_specific_params": {"a": [1, None, "é"]},
    "tokenizer_class": "BertTokenizer",
    "prefix": None,
    "torchscript": False,
    "transformers_version": "4.50.0",
}
# The bert_config.json that google's uncased base model came with.
GOOGLE = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "type_vocab_size": 2,
    "vocab_size": 30522,
}


def from_json(tmp_path, values):
    path = tmp_path / "config.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return BertConfig.from_json(path)


def test_every_field_and_its_default():
    written = BertConfig().to_dict()
    assert written == DEFAULTS | LABELS | {"model_type": "bert", "initializer": "normal"}
    peer = transformers.BertConfig()
    for name in DEFAULTS:
        if hasattr(peer, name):
            assert written[name] == getattr(peer, name), name


def test_presets_have_the_published_numbers_of_parameters():
    def millions(model):
        leaves = jax.tree.leaves(abstract_params(model))
        return sum(math.prod(leaf.shape) for leaf in leaves) / 1e6

    # google counts the pretraining model, with its tied decoder once.
    published = {"tiny": 4.4, "mini": 11.3, "small": 29.1, "medium": 41.7, "base": 110.1}
    for name, count in published.items():
        assert round(millions(BertForPreTraining(BertConfig.preset(name))), 1) == count, name
    # For the large one it says 340M, transformers counts 335M without the head.
    assert round(millions(BertModel(BertConfig.preset("large")))) == 335
    assert PRESETS.keys() == {*published, "large"}
    for name, values in PRESETS.items():
        assert values["hidden_size"] == 64 * values["num_attention_heads"], name
    with pytest.raises(InputError, match="'huge': choose one of tiny, mini"):
        BertConfig.preset("huge")
    assert BertConfig.preset("tiny", vocab_size=7, hidden_size=64).head_size == 32


@pytest.mark.parametrize(
    "config",
    [
        BertConfig(),
        BertConfig.preset("tiny", vocab_size=5, layer_norm_eps=1e-5, is_decoder=True),
        BertConfig(id2label=("O", "B-ÄÖ", "I-PER"), problem_type="single_label_classification"),
        BertConfig(num_labels=5, classifier_dropout=0.0, pad_token_id=None, bos_token_id=3),
        BertConfig(num_labels=1, position_embedding_type="relative_key", hidden_act="relu"),
        BertConfig(initializer="truncated_normal", cross_attention_hidden_size=9),
    ],
)
def test_round_trip(config, tmp_path):
    config.to_json(tmp_path / "config.json")
    assert BertConfig.from_json(tmp_path / "config.json") == config
    assert BertConfig.from_pretrained(tmp_path) == config
    assert BertConfig.from_dict(config.to_dict()) == config


def test_how_it_runs_is_not_written(tmp_path):
    config = BertConfig(remat=True, scan_unroll=3)
    config.to_json(tmp_path / "config.json")
    assert BertConfig.from_json(tmp_path / "config.json") == BertConfig()


def test_pruned_heads(tmp_path):
    """transformers 4 writes {layer: [heads]}, with JSON's keys of text."""
    values = {"model_type": "bert", "pruned_heads": {"1": [2, 0], "3": [11]}}
    config = from_json(tmp_path, values)
    assert config.pruned_heads == ((1, 0), (1, 2), (3, 11))
    assert config.kept_heads[1] == (1, *range(3, 12))
    assert config.num_stored_heads == 12
    assert config.to_dict()["pruned_heads"] == {"1": [0, 2], "3": [11]}
    assert BertConfig.from_dict(config.to_dict()) == config
    for same in ({1: [0, 2], 3: (11,)}, ((3, 11), (1, 2), (1, 0), (1, 2))):
        assert BertConfig(pruned_heads=same) == dataclasses.replace(config, other=())
        hash(BertConfig(pruned_heads=same))
    assert from_json(tmp_path, values | {"pruned_heads": {}}).pruned_heads == ()
    assert "pruned_heads" not in BertConfig().to_dict()
    tiny = {"num_hidden_layers": 2, "hidden_size": 6, "num_attention_heads": 3}
    for heads, kept, stored in (
        ({0: [1]}, ((0, 2), (0, 1, 2)), 3),
        ({0: [1], 1: [1, 2]}, ((0, 2), (0,)), 2),
        ({0: [0, 1, 2], 1: [0, 1, 2]}, ((), ()), 1),
    ):
        config = BertConfig(**tiny, pruned_heads=heads)
        assert (config.kept_heads, config.num_stored_heads) == (kept, stored)
        assert config.head_size == 2


@pytest.mark.parametrize(
    "heads",
    [
        {12: [0]},
        {0: [12]},
        {0: [-1]},
        {0: 1},
        {"a": [1]},
        {0: "ab"},
        {0: [True]},
        ((0, 1, 2),),
        (3,),
    ],
)
def test_bad_pruned_heads(heads):
    with pytest.raises(InputError, match=r"^pruned_heads must (map|name) layers"):
        BertConfig(pruned_heads=heads)


def test_other_keys_are_carried_along(tmp_path):
    config = from_json(tmp_path, {"model_type": "bert", "hidden_size": 384} | CARRIED)
    assert config.hidden_size == 384
    assert {key: json.loads(text) for key, text in config.other} == CARRIED
    written = config.to_dict()
    assert {key: written[key] for key in CARRIED} == CARRIED
    assert BertConfig.from_dict(written) == config
    hash(config)


def test_labels():
    names = {"0": "negative", "2": "positive", "1": "neutral"}
    ordered = ("negative", "neutral", "positive")
    by_id = BertConfig.from_dict({"model_type": "bert", "id2label": names})
    assert by_id.id2label == ordered
    assert by_id.num_labels == 3
    assert by_id.label2id == {"negative": 0, "neutral": 1, "positive": 2}
    by_name = {name: int(i) for i, name in names.items()}
    assert BertConfig.from_dict({"model_type": "bert", "label2id": by_name}) == by_id
    assert BertConfig(id2label={int(i): name for i, name in names.items()}) == by_id
    # More than ten: in the order of the numbers, not of their digits.
    many = {str(i): f"label {i}" for i in range(12)}
    assert BertConfig.from_dict({"model_type": "bert", "id2label": many}).id2label[2] == "label 2"
    # Names that say nothing leave the number free to be replaced.
    generic = BertConfig.from_dict({"model_type": "bert"} | LABELS)
    assert generic == BertConfig()
    assert dataclasses.replace(generic, num_labels=4).label2id["LABEL_3"] == 3


def test_google_files(tmp_path):
    config = from_json(tmp_path, GOOGLE)
    assert config == BertConfig()
    assert config.layer_norm_eps == 1e-12
    without = {k: v for k, v in GOOGLE.items() if k != "type_vocab_size"}
    assert from_json(tmp_path, without).type_vocab_size == 16
    assert from_json(tmp_path, without | {"model_type": "bert"}).type_vocab_size == 2
    # A multilingual one has keys of its own.
    config = from_json(tmp_path, GOOGLE | {"directionality": "bidi", "pooler_fc_size": 768})
    assert dict(config.other)["directionality"] == '"bidi"'
    (tmp_path / "config.json").rename(tmp_path / "bert_config.json")
    assert BertConfig.from_pretrained(tmp_path) == config


@pytest.mark.parametrize(
    "config",
    [
        BertConfig(),
        BertConfig.preset("mini", hidden_dropout_prob=0.25, layer_norm_eps=1e-7),
        BertConfig(id2label=("no", "yes", "maybe"), problem_type="regression", is_decoder=True),
        BertConfig(num_labels=4, pad_token_id=None, eos_token_id=7, tie_word_embeddings=False),
    ],
)
def test_transformers_reads_it_and_back(config, tmp_path):
    config.to_json(tmp_path / "config.json")
    peer = transformers.BertConfig.from_pretrained(tmp_path)
    for name in DEFAULTS:
        assert getattr(peer, name) == getattr(config, name), name
    assert peer.label2id == config.label2id
    assert peer.id2label == {i: name for name, i in config.label2id.items()}
    peer.save_pretrained(tmp_path / "theirs")
    back = BertConfig.from_pretrained(tmp_path / "theirs")
    assert dataclasses.replace(back, other=()) == config
    assert "transformers_version" in dict(back.other)


def test_transformers_files(tmp_path):
    peer = transformers.BertConfig(hidden_size=48, num_attention_heads=4, num_labels=3)
    peer.save_pretrained(tmp_path)
    config = BertConfig.from_pretrained(tmp_path)
    for name in DEFAULTS:
        if hasattr(peer, name):
            assert getattr(config, name) == getattr(peer, name), name


def test_hashable_and_frozen():
    assert hash(BertConfig()) == hash(BertConfig())
    assert {BertConfig(): 1}[BertConfig()] == 1
    assert BertConfig(id2label={0: "a"}) == BertConfig(id2label=("a",))
    double = jax.jit(lambda x, config: x * config.hidden_size, static_argnums=1)
    assert double(2, BertConfig(hidden_size=12, num_attention_heads=3)) == 24
    with pytest.raises(dataclasses.FrozenInstanceError):
        BertConfig().hidden_size = 3  # type: ignore[misc]


def test_numbers_of_numpy():
    config = BertConfig(hidden_size=np.int64(24), hidden_dropout_prob=np.float32(0.5))
    assert config.head_size == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_size": 100}, "hidden_size 100 .* num_attention_heads 12"),
        ({"vocab_size": 0}, "vocab_size must be at least 1; got 0"),
        ({"num_hidden_layers": -1}, "num_hidden_layers must be at least 1; got -1"),
        ({"hidden_dropout_prob": 1.0}, r"hidden_dropout_prob must lie in \[0, 1\); got 1.0"),
        ({"attention_probs_dropout_prob": -0.1}, r"attention_probs.* \[0, 1\); got -0.1"),
        ({"classifier_dropout": 2}, r"classifier_dropout must lie in \[0, 1\); got 2"),
        ({"num_labels": 3, "id2label": {"0": "a", "1": "b"}}, "num_labels is 3, id2label names 2"),
        ({"id2label": {"0": "a", "2": "b"}}, r"ids 0, 1, ...; got \['0', '2'\]"),
        ({"id2label": {"zero": "a"}}, r"ids 0, 1, ...; got \['zero'\]"),
        ({"id2label": ["a", "b"]}, r"id2label must be .*; got \['a', 'b'\]"),
        ({"label2id": {"a": "b"}}, r"ids 0, 1, ...; got \['b'\]"),
        ({"label2id": ["a"]}, r"label2id must .*; got \['a'\]"),
        ({"hidden_size": "768"}, "hidden_size must be int; got '768'"),
        ({"hidden_size": 768.5}, "hidden_size must be int; got 768.5"),
        ({"hidden_size": None}, "hidden_size must be int; got None"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be int; got True"),
        ({"pad_token_id": "0"}, r"pad_token_id must be int \| None; got '0'"),
        ({"hidden_act": 3}, "hidden_act must be str; got 3"),
        ({"is_decoder": 1}, "is_decoder must be bool; got 1"),
        ({"classifier_dropout": "x"}, r"classifier_dropout must be float \| None; got 'x'"),
        ({"layer_norm_eps": "1e-12"}, "layer_norm_eps must be float; got '1e-12'"),
        ({"position_embedding_type": "rope"}, "one of 'absolute', 'relative_key'.*; got 'rope'"),
        ({"problem_type": "hard"}, "'single_label_classification'.*; got 'hard'"),
        ({"model_type": "roberta"}, "model_type 'roberta' is not a BERT"),
        ("[1, 2]", "must hold a JSON object"),
        ('{"vocab_size": 1', "is not JSON"),
        ("", "is not JSON"),
    ],
)
def test_bad_files_name_themselves_and_the_fault(values, message, tmp_path):
    if isinstance(values, dict):
        values = {"model_type": "bert"} | values
    with pytest.raises(InputError, match=message) as caught:
        from_json(tmp_path, values)
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: ")
    assert "\n" not in str(caught.value)


def test_bad_values_in_python():
    with pytest.raises(InputError, match=r"hidden_size 100 .* num_attention_heads 3"):
        BertConfig(hidden_size=100, num_attention_heads=3)
    with pytest.raises(InputError, match="'normal', 'truncated_normal'; got 'uniform'"):
        BertConfig(initializer="uniform")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="scan_unroll must not be negative; got -1"):
        BertConfig(scan_unroll=-1)


def test_a_published_config_with_other_labels(tmp_path):
    BertConfig.preset("tiny", id2label=("O", "B-X")).to_json(tmp_path / "config.json")
    assert BertConfig.from_pretrained(tmp_path).id2label == ("O", "B-X")
    more = BertConfig.from_pretrained(tmp_path, num_labels=5, hidden_dropout_prob=0.3)
    assert (more.num_labels, more.id2label, more.hidden_dropout_prob) == (5, (), 0.3)
    named = BertConfig.from_pretrained(tmp_path, id2label=("a", "b", "c"))
    assert (named.num_labels, named.hidden_size) == (3, 128)
    with pytest.raises(TypeError, match="num_lables"):
        BertConfig.from_pretrained(tmp_path, num_lables=5)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"config.json and no bert_config.json"):
        BertConfig.from_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"nowhere.json: cannot be read \(No such file"):
        BertConfig.from_json(tmp_path / "nowhere.json")
    (tmp_path / "config.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(InputError, match=r"config.json: is not JSON"):
        BertConfig.from_pretrained(tmp_path)

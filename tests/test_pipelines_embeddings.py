"""Sentence embeddings against the sentence-transformers library."""

import json
import logging
import shutil

import jax
import numpy as np
import pytest
import sentence_transformers
import torch
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    Transformer,
)

from bertjax import BertModel, InputError, pipeline
from bertjax.pipelines import SentenceEmbeddingPipeline
from bertjax.pipelines.sentence_transformers import read_settings
from tests.pipeline_models import (
    ODD,
    TEXT,
    minilm,
    one_torch_thread,
    quick_compilation,
    sentences,
    write_model,
)

TASK = "sentence-embeddings"
TEXTS = [*ODD, *sentences(8), "word " * 90]


@pytest.fixture(scope="module", autouse=True)
def quick():
    with quick_compilation(), one_torch_thread():
        yield


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A BERT's directory without a word on sentences."""
    return write_model(tmp_path_factory.mktemp("plain"), BertModel)


def pooled(plain, *modes, further=()):
    """sentence-transformers' model on these weights."""
    encoder = Transformer(str(plain), max_seq_length=64)
    pooling = Pooling(encoder.get_embedding_dimension(), pooling_mode=modes)
    return sentence_transformers.SentenceTransformer(
        modules=[encoder, pooling, *further], device="cpu"
    )


@pytest.mark.slow
def test_minilm_embeds_as_sentence_transformers_does():
    lines = (TEXT / "holmes.txt").read_text("utf-8").split("\n")
    texts = [line for line in lines if len(line) > 20][:100] + ODD + [" ".join(lines)[:3000]]
    wanted = sentence_transformers.SentenceTransformer(str(minilm()), device="cpu").encode(texts)
    embed = pipeline(TASK, minilm())
    assert embed.max_length == 256
    found = embed(texts)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    assert np.linalg.norm(wanted, axis=1) == pytest.approx(1)
    near = embed(["A man is playing a guitar.", "Someone makes music.", "The market fell."])
    assert near[0] @ near[1] > 0.4 > 0.2 > near[0] @ near[2]


@pytest.mark.parametrize(
    "modes",
    [("mean",), ("cls",), ("max",), ("mean_sqrt_len_tokens",), ("cls", "max", "mean")],
    ids="+".join,
)
def test_poolings_are_those_of_sentence_transformers(plain, modes):
    wanted = pooled(plain, *modes).encode(TEXTS)
    found = pipeline(TASK, plain, pooling=modes, batch_size=4)(TEXTS)
    assert found.shape == (len(TEXTS), 32 * len(modes))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def test_a_plain_model_gives_means_as_they_are(plain):
    embed = pipeline(TASK, plain)
    vectors = embed(TEXTS)
    np.testing.assert_allclose(vectors, pooled(plain, "mean").encode(TEXTS), rtol=0, atol=1e-5)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    assert np.abs(lengths - 1).min() > 0.1
    normal = pipeline(TASK, plain, normalize=True)(TEXTS)
    np.testing.assert_allclose(normal, vectors / lengths, rtol=0, atol=1e-6)


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_directories_are_read(plain, tmp_path, safe):
    torch.manual_seed(0)
    further = [
        Dense(64, 24, activation_function=torch.nn.Tanh()),
        Dense(24, 10, bias=False, activation_function=torch.nn.GELU()),
        Normalize(),
    ]
    model = pooled(plain, "cls", "mean", further=further)
    model.prompts, model.default_prompt_name = {"query": "find the one: "}, "query"
    model.max_seq_length = 20
    model.save(str(tmp_path), safe_serialization=safe)
    if not safe:  # in the names of the years when this was the only way
        config = tmp_path / "1_Pooling" / "config.json"
        keys = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
        config.write_text(json.dumps({"word_embedding_dimension": 32, **keys}))
        assert list(tmp_path.glob("2_Dense/*.bin"))
    wanted = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS)
    embed = pipeline(TASK, tmp_path, batch_size=4)
    assert (embed.max_length, embed.size) == (20, 10)
    np.testing.assert_allclose(embed(TEXTS), wanted, rtol=0, atol=1e-5)
    unlike = pipeline(TASK, tmp_path, prompt="", max_length=64)(TEXTS)
    assert np.abs(unlike - wanted).max() > 1e-3


def test_texts_are_lower_cased_where_the_directory_says(tmp_path, plain):
    shutil.copytree(plain, tmp_path, dirs_exist_ok=True)
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "a.Transformer", "path": ""}]))
    (tmp_path / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    found = read_settings(tmp_path)
    assert (found.lowercase, found.max_length) == (True, None)
    cased = tmp_path / "tokenizer.json"
    cased.write_text(cased.read_text().replace('"lowercase":true', '"lowercase":false'))
    cased.write_text(cased.read_text().replace('"lowercase": true', '"lowercase": false'))
    found = pipeline(TASK, tmp_path)(["A Man in Paris"])
    np.testing.assert_allclose(found, pipeline(TASK, plain)(["a man in paris"]), atol=1e-6)


def test_vectors_do_not_depend_on_the_company(plain):
    embed = pipeline(TASK, plain, batch_size=4)
    together = embed(TEXTS)
    np.testing.assert_allclose(embed(TEXTS[::-1])[::-1], together, rtol=0, atol=1e-6)
    for text, vector in zip(TEXTS, together, strict=True):
        alone = embed(text)
        assert alone.shape == (32,)
        np.testing.assert_allclose(alone, vector, rtol=0, atol=1e-6)
    seen = embed.compilations
    assert seen <= 10
    embed(TEXTS)
    embed(TEXTS[:5])
    embed(TEXTS[3])
    assert embed.compilations == seen
    assert embed([]).shape == (0, 32)


def test_cut_texts_are_counted(plain, caplog):
    with caplog.at_level(logging.WARNING):
        pipeline(TASK, plain)(TEXTS)
    assert [r.getMessage() for r in caplog.records if r.name.startswith("bertjax")] == [
        "1 of 15 texts are longer than 64 tokens: their ends were cut off"
    ]


def test_parameters_are_those_of_the_checkpoint(plain):
    _, params = BertModel.from_pretrained(plain)
    del params["pooler"]  # which embeddings do not need
    jax.tree.map(np.testing.assert_array_equal, pipeline(TASK, plain).params, params)


# Bad input.


def test_bad_texts_are_told(plain):
    embed = pipeline(TASK, plain)
    with pytest.raises(InputError, match=r"text 1: must be a string; got float 0\.5"):
        embed(["a", 0.5])
    with pytest.raises(InputError, match="pooling must be of cls, max, mean"):
        SentenceEmbeddingPipeline(embed.model, embed.params, embed.tokenizer, pooling="average")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("modules.json", "{", "modules.json: is not JSON"),
        ("modules.json", "{}", "modules.json: must hold a JSON list"),
        ("modules.json", '[{"type": "x.WordWeights", "path": ""}]', "module WordWeights is not"),
        (
            "modules.json",
            '[{"type": "x.Normalize", "path": ""}, {"type": "x.Dense", "path": "2_Dense"}]',
            "Dense after Normalize is not supported",
        ),
        ("1_Pooling/config.json", "[]", "config.json: must hold a JSON object"),
        ("1_Pooling/config.json", '{"pooling_mode": "lasttoken"}', "lasttoken is not supported"),
        (
            "1_Pooling/config.json",
            '{"pooling_mode_weightedmean_tokens": true}',
            "pooling_mode_weightedmean_tokens is not supported",
        ),
        ("1_Pooling/config.json", '{"include_prompt": false}', "include_prompt: false is not"),
        ("2_Dense/config.json", '{"activation_function": "a.SiLU"}', "SiLU is not supported"),
        ("2_Dense/config.json", '{"use_residual": true}', "use_residual is not supported"),
        ("2_Dense/config.json", "{}", "2_Dense: holds no weights"),
        (
            "config_sentence_transformers.json",
            '{"default_prompt_name": "query", "prompts": {}}',
            "has no prompt 'query'",
        ),
    ],
)
def test_bad_directories_are_told(tmp_path, file, content, message):
    modules = ["Transformer", "Pooling", *(["Dense"] if "Dense" in file else [])]
    listed = [
        {"type": f"sentence_transformers.models.{name}", "path": f"{n}_{name}" if n else ""}
        for n, name in enumerate(modules)
    ]
    (tmp_path / "modules.json").write_text(json.dumps(listed))
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(content)
    with pytest.raises(InputError, match=message):
        read_settings(tmp_path)

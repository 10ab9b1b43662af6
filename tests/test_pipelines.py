"""Pipelines on whole texts against transformers' own, and how few programs they compile."""

import dataclasses
import itertools
import logging
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
import torch
import transformers

import bertjax
from bertjax import (
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    InputError,
    pipeline,
)
from bertjax.data.bucket_widths import bucket_width
from bertjax.pipelines import TASKS
from bertjax.pipelines.runner import Runner
from tests import processes
from tests.models import assert_same_trees
from tests.pipeline_models import (
    ODD,
    SMALL,
    assert_same,
    one_torch_thread,
    quick_compilation,
    sentences,
    write_model,
)

MASKED = [
    "The [MASK] of Spain lives there.",
    "Paris is [MASK].",
    "[MASK] and [MASK] went up the hill, as they had done for [MASK] years.",
    "Café Émile doesn't [MASK], does it?",
    "x [MASK]",
    "It was the best of times, it was the worst of times, it was the [MASK] of wisdom, it was the "
    "age of foolishness, it was the epoch of belief",
    "[MASK] [MASK]",
]
NAMES = ("bad", "so so", "good")


@pytest.fixture(scope="module", autouse=True)
def quick():
    with quick_compilation(), one_torch_thread():
        yield


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """A model's directory for each task."""
    root = tmp_path_factory.mktemp("models")
    return {
        "fill-mask": write_model(root / "mlm", BertForMaskedLM, factor=3.0),
        "text-classification": write_model(
            root / "classes", BertForSequenceClassification, factor=3.0, id2label=NAMES
        ),
        "next-sentence-prediction": write_model(root / "nsp", BertForNextSentencePrediction),
    }


@pytest.fixture(scope="module")
def ours(directories):
    return {task: pipeline(task, path, batch_size=4) for task, path in directories.items()}


@pytest.fixture(scope="module")
def theirs(directories):
    return {
        task: transformers.pipeline(task, model=str(path), device="cpu")
        for task, path in directories.items()
        if task != "next-sentence-prediction"
    }


@pytest.fixture
def fill(ours):
    return ours["fill-mask"]


@pytest.fixture
def classify(ours):
    return ours["text-classification"]


# Against transformers.


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 1},
        {"top_k": 11},
        {"targets": ["king", "queen", "Paris", "##ing", "king"]},
        {"targets": "rain", "top_k": 3},
    ],
    ids=repr,
)
def test_fill_mask_is_that_of_transformers(fill, theirs, options):
    for texts in (MASKED, MASKED[::-1]):
        wanted = theirs["fill-mask"](texts, **options)
        assert_same(fill(texts, **options), wanted)
    for text in MASKED[:3]:
        assert_same(fill(text, **options), theirs["fill-mask"](text, **options))


def test_several_masks_keep_the_others_in_view(fill):
    first, second, _ = fill(MASKED[2], top_k=2)
    assert len(first) == 2
    assert [entry["sequence"].count("[MASK]") for entry in first + second] == [2] * 4
    assert {entry["sequence"][:5] for entry in first} == {"[CLS]"}
    assert {entry["sequence"][:11] for entry in second} == {"[CLS] [MASK]"[:11]}


def test_spaces_are_cleaned_up_where_the_tokenizer_asks(directories, tmp_path):
    model = transformers.AutoModelForMaskedLM.from_pretrained(directories["fill-mask"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(directories["fill-mask"])
    tokenizer.clean_up_tokenization_spaces = True
    model.save_pretrained(tmp_path)
    tokenizer.init_kwargs["clean_up_tokenization_spaces"] = True
    tokenizer.save_pretrained(tmp_path)
    peer = transformers.pipeline("fill-mask", model=str(tmp_path), device="cpu")
    assert peer.tokenizer.clean_up_tokenization_spaces
    texts = ["He said ' yes ' to [MASK].", MASKED[3]]
    found = pipeline("fill-mask", tmp_path)(texts, top_k=2)
    assert_same(found, peer(texts, top_k=2))
    assert found[0][0]["sequence"].startswith("he said'yes'to ")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": None},
        {"top_k": 2},
        {"top_k": 1, "function_to_apply": "sigmoid"},
        {"function_to_apply": "none"},
        {"function_to_apply": "SOFTMAX"},
    ],
    ids=repr,
)
def test_text_classification_is_that_of_transformers(classify, theirs, options):
    peer = theirs["text-classification"]
    texts = [*ODD, *sentences(6)]
    for given in (texts, texts[::-1], texts[:1], texts[0]):
        assert_same(classify(given, **options), peer(given, **options))
    pairs = [{"text": a, "text_pair": b} for a, b in zip(texts[6:9], texts[9:], strict=True)]
    assert_same(classify(pairs, **options), peer(pairs, **options))
    assert_same(classify(pairs[0], **options), peer(pairs[0], **options))
    tuples = [(pair["text"], pair["text_pair"]) for pair in pairs]
    assert classify(tuples, **options) == classify(pairs, **options)
    assert classify(tuples[0], **options) == classify(pairs[0], **options)


@pytest.mark.parametrize(
    ("problem_type", "labels"),
    [
        (None, 1),
        ("regression", 1),
        ("regression", 3),
        ("multi_label_classification", 3),
        ("single_label_classification", 3),
    ],
)
def test_what_makes_scores_depends_on_the_problem(classify, theirs, problem_type, labels):
    peer = theirs["text-classification"]
    config = dataclasses.replace(
        classify.model.config, problem_type=problem_type, id2label=NAMES[:labels]
    )
    logits = np.float32([0.3, -2.0, 1.0][:labels])
    peer_config = transformers.BertConfig(**config.to_dict())
    before, peer.model.config = peer.model.config, peer_config
    try:
        outputs = {"logits": torch.tensor(logits[None])}
        wanted = peer.postprocess(outputs, top_k=None, _legacy=False)
    finally:
        peer.model.config = before
    model = BertForSequenceClassification(config)
    other = type(classify)(model, classify.params, classify.tokenizer)
    other._run = lambda rows: [(np.array([0]), logits[None])]
    assert_same(other("x", top_k=None), wanted)


def test_next_sentence_is_the_softmax_of_the_head(ours, directories):
    follows = ours["next-sentence-prediction"]
    texts = sentences(12)
    pairs = list(zip(texts[:6], texts[6:], strict=True))
    found = follows(pairs, top_k=None)
    peer = transformers.BertForNextSentencePrediction.from_pretrained(
        directories["next-sentence-prediction"]
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directories["next-sentence-prediction"])
    for (first, second), entries in zip(pairs, found, strict=True):
        with torch.no_grad():
            logits = peer(**tokenizer(first, second, return_tensors="pt")).logits
        scores = torch.softmax(logits, -1)[0].tolist()
        wanted = dict(zip(("next", "random"), scores, strict=True))
        assert [e["label"] for e in entries] == sorted(wanted, key=wanted.get, reverse=True)
        assert {e["label"]: e["score"] for e in entries} == pytest.approx(wanted, abs=1e-5)
    assert follows(pairs[0]) == found[0][0]
    assert follows([pairs[0]]) == [found[0][0]]
    with pytest.raises(InputError, match=r"text 1: next-sentence prediction needs pairs"):
        follows([pairs[0], "alone"])


def test_a_pretraining_model_fills_masks_and_tells_pairs(tmp_path):
    write_model(tmp_path, BertForPreTraining)
    assert len(pipeline("fill-mask", tmp_path)("a [MASK]", top_k=2)) == 2
    assert pipeline("next-sentence-prediction", tmp_path)(("a", "b"))["label"] in ("next", "random")


# How it runs.


def test_texts_of_one_bucket_compile_nothing_more(directories):
    fill = pipeline("fill-mask", directories["fill-mask"])
    fill("The [MASK] fell.")
    assert fill.compilations == 1
    for text in ("It [MASK].", "The man of the house [MASK] at the door.", "[MASK]"):
        for top_k in (1, 5, 8):
            fill(text, top_k=top_k)
    assert fill.compilations == 1
    fill(["The [MASK] fell."] * 3)  # four rows at a time
    assert fill.compilations == 2
    fill(["She [MASK] up.", "Up [MASK] went.", "It [MASK].", "He [MASK]."])
    assert fill.compilations == 2
    fill("so " * 20 + "[MASK]")  # a wider bucket
    fill("[MASK] " + "so " * 19)
    assert fill.compilations == 3
    fill("A [MASK].", targets=["king"])
    fill("The [MASK].", targets=["queen"])
    assert fill.compilations == 4
    fill("A [MASK].", targets=["king", "queen", "man"])
    fill("A [MASK].", targets=["king", "queen", "man", "boy"])
    assert fill.compilations == 5
    fill("[MASK] [MASK]")
    fill("[MASK] the [MASK].")
    assert fill.compilations == 6


class Numbered:
    """Rows of some lengths whose first token is the row's number."""

    def __init__(self, lengths):
        self.lengths = np.array(lengths, np.int32)

    def __len__(self):
        return len(self.lengths)

    def batch(self, rows, width):
        assert self.lengths[rows].max() <= width
        return {"input_ids": np.repeat(rows[:, None], width, axis=1).astype(np.int32)}


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (6, [4, 1, 1]), (9, [16]), (43, [32, 16])])
def test_batches_hold_rows_of_like_length_and_little_else(count, sizes):
    lengths = np.random.default_rng(0).integers(3, 60, count)
    shapes = []

    def compute(params, batch, static):
        shapes.append(batch["input_ids"].shape)
        return batch["input_ids"][:, 0] * params

    runner = Runner(compute, jax.numpy.int32(2), batch_size=32, longest=64)
    groups = np.arange(count) % 2 if count == 43 else None
    found = list(runner(Numbered(lengths)))
    assert sorted(np.concatenate([picked for picked, _ in found]).tolist()) == list(range(count))
    for picked, doubled in found:
        assert doubled.tolist() == (2 * picked).tolist()
    spans = [(lengths[picked].min(), lengths[picked].max()) for picked, _ in found]
    assert all(low >= high for (low, _), (_, high) in itertools.pairwise(spans))
    steps = [4 if size < 16 else 8 for size in sizes]
    widths = [bucket_width(int(high), 64, n) for (_, high), n in zip(spans, steps, strict=True)]
    assert set(shapes) == set(zip(sizes, widths, strict=True))
    assert runner.compilations == len(shapes) == len(set(shapes))
    if groups is not None:
        parts = [set(groups[picked]) for picked, _ in runner(Numbered(lengths), groups=groups)]
        assert all(len(part) == 1 for part in parts)


def test_long_rows_come_in_small_batches_on_a_cpu():
    runner = Runner(lambda _, batch, __: batch["input_ids"][:, 0], np.int32(0), batch_size=32,
                    longest=512)  # fmt: skip
    lengths = np.repeat([512, 128, 64], [4, 16, 32])
    assert [len(picked) for picked, _ in runner(Numbered(lengths))] == [4, 16, 32]


def test_two_batches_are_computed_at_the_same_time_on_a_cpu(monkeypatch):
    runner = Runner(lambda _, batch, __: batch["input_ids"][:, 0], np.int32(0), batch_size=16,
                    longest=64)  # fmt: skip
    rows = Numbered(np.full(64, 50))
    first = [picked.tolist() for picked, _ in runner(rows)]
    assert (runner.compilations, len(first)) == (1, 4)
    both, compute = threading.Barrier(2), runner._compute

    def after_both(*arguments):
        both.wait(timeout=60)  # raises where no other thread comes
        return compute(*arguments)

    monkeypatch.setattr(runner, "_compute", after_both)
    again = list(runner(rows))
    assert [picked.tolist() for picked, _ in again] == first
    assert all((picked == results).all() for picked, results in again)
    assert runner.compilations == 1


def test_what_fails_in_a_thread_fails_for_the_caller(monkeypatch):
    runner = Runner(lambda _, batch, __: batch["input_ids"][:, 0], np.int32(0), batch_size=16,
                    longest=64)  # fmt: skip
    rows = Numbered(np.full(64, 50))
    list(runner(rows))

    def full(*_):
        raise MemoryError("no room")

    monkeypatch.setattr(runner, "_compute", full)
    with pytest.raises(MemoryError, match="no room"):
        list(runner(rows))


def test_the_shapes_of_many_texts_are_few(directories):
    classify = pipeline("text-classification", directories["text-classification"], batch_size=8)
    texts = sentences(61)
    classify(texts)
    widths = {bucket_width(n, 64, 4) for n in range(1, 65)}
    assert len(widths) == 9
    assert classify.compilations <= len(widths) * 3  # 1, 4 and 8 rows
    before = classify.compilations
    classify(texts[::-1])
    assert classify.compilations == before


def test_results_do_not_depend_on_the_company(classify, fill):
    texts = [*ODD, *sentences(24)]
    together = classify(texts, top_k=None)
    assert_same(classify(texts[::-1], top_k=None)[::-1], together, 1e-6)
    assert_same([classify(text, top_k=None) for text in texts], together, 1e-6)
    alone = [fill(text) for text in MASKED]
    assert_same(fill(MASKED), alone, 1e-6)


def test_no_texts_have_no_results(ours):
    for task in ours:
        assert ours[task]([]) == []


def test_texts_may_come_from_a_generator(classify):
    texts = sentences(5)
    assert classify(text for text in texts) == classify(texts)


def test_bfloat16_is_near(directories):
    task = "text-classification"
    low = pipeline(task, directories[task], dtype=jax.numpy.bfloat16)
    texts = sentences(8)
    scores = [
        [{e["label"]: e["score"] for e in row} for row in p(texts, top_k=None)]
        for p in (low, pipeline(task, directories[task]))
    ]
    for ours, exact in zip(*scores, strict=True):
        assert ours == pytest.approx(exact, abs=0.05)
    # Its kernels are rounded, what it was given is not.
    assert_same_trees(low.params, pipeline(task, directories[task]).params)


def test_parameters_on_a_mesh_stay_there(directories):
    """Eight virtual devices give the results of one (tests/workers/sharded_pipeline.py)."""
    code, out, err = processes.run(
        "tests.workers.sharded_pipeline", directories["text-classification"], devices=8
    )
    assert code == 0, err
    assert out.split()[-1] == "same"


def test_importing_the_package_loads_no_pipeline():
    code = "import sys, bertjax, bertjax.pipelines; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert bertjax.pipelines.pipeline is bertjax.pipeline
    for name in TASKS.values():
        assert getattr(bertjax.pipelines, name).__name__ == name


# Bad input.


def test_an_unknown_task_is_told(directories):
    with pytest.raises(InputError, match="no task 'fillmask': did you mean fill-mask\\?"):
        pipeline("fillmask", "anywhere")
    with pytest.raises(InputError, match="no task 'translate': choose one of fill-mask, ner"):
        pipeline("translate", "anywhere")


def test_a_model_without_the_head_is_refused(tmp_path, classify, fill):
    write_model(tmp_path, BertModel)
    for task, part in (
        ("fill-mask", "cls.predictions"),
        ("text-classification", "classifier"),
        ("ner", "classifier"),
        ("question-answering", "qa_outputs"),
        ("next-sentence-prediction", "cls.seq_relationship"),
    ):
        with pytest.raises(InputError, match=rf"holds no {part}, which BertFor\w+ needs"):
            pipeline(task, tmp_path)
    with pytest.raises(
        InputError, match="FillMaskPipeline needs a BertForMaskedLM; got BertForSeq"
    ):
        type(fill)(classify.model, classify.params, classify.tokenizer)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"max_length": 65}, "max_length must be from 3 to the model's 64; got 65"),
        ({"max_length": 2}, "max_length must be from 3"),
    ],
)
def test_sizes_that_make_no_sense_are_told(fill, sizes, message):
    with pytest.raises(InputError, match=message):
        type(fill)(fill.model, fill.params, fill.tokenizer, **sizes)


def test_a_tokenizer_of_another_model_is_told(fill):
    model = BertForMaskedLM(dataclasses.replace(SMALL, vocab_size=99))
    with pytest.raises(InputError, match="the tokenizer has 30522 pieces, the model embeddings"):
        type(fill)(model, fill.params, fill.tokenizer)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ([["[MASK]", "no mask"]], {}, "text 1: has no .MASK."),
        ([["[MASK]", 3]], {}, "text 1: must be a string; got int 3"),
        ([None], {}, "give a text or a list of them; got NoneType"),
        ([b"[MASK]"], {}, "give a text or a list of them; got bytes"),
        (["[MASK]"], {"top_k": 0}, "top_k must be from 1 to 30522"),
        (["[MASK]"], {"top_k": 30523}, "top_k must be from 1 to 30522"),
        (["[MASK]"], {"targets": []}, "targets is empty"),
        (["[MASK]"], {"targets": ["king", 4]}, "target 1: must be a string"),
        (["[MASK]"], {"targets": ["zwyczajny"]}, r"target 'zwyczajny': .*pieces are z\w* ##"),
        (["[MASK]"], {"targets": "☃☃"}, r"target '☃☃': is not in the vocabulary"),
        (["[MASK]"], {"targets": ""}, "its pieces are none"),
        (["so " * 70 + "[MASK]"], {}, "text 0: is 73 tokens long, rows hold 64"),
        (
            ["so " * 70 + "[MASK]"],
            {"truncation": True},
            "text 0: has no .MASK. .among its first 64",
        ),
    ],
)
def test_bad_masked_texts_are_told(fill, arguments, options, message):
    with pytest.raises(InputError, match=message):
        fill(*arguments, **options)


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ([["a", "b"]], {}, "text 0: must be a string, a tuple of two or a dictionary"),
        ([{"text": "a", "pair": "b"}], {}, "text 0: must be a string, a tuple of two"),
        ([("a", None)], {}, "second text 0: must be a string; got NoneType"),
        ({"text": 3}, {}, "text 0: must be a string"),
        (7, {}, "give a text or pair or a list of them; got int 7"),
        ("a", {"top_k": 0}, "top_k must be at least 1, or None"),
        ("a", {"function_to_apply": "tanh"}, "must be sigmoid, softmax or none; got 'tanh'"),
        (["a", ("so " * 40, "no " * 40)], {}, "text 1: is 83 tokens long, rows hold 64"),
    ],
)
def test_bad_texts_to_classify_are_told(classify, inputs, options, message):
    with pytest.raises(InputError, match=message):
        classify(inputs, **options)


def test_long_texts_are_cut_when_asked_to_and_counted(classify, theirs, caplog):
    texts = ["so " * 80, "a", "no " * 63]
    with caplog.at_level(logging.WARNING):
        found = classify(texts, truncation=True)
    assert [r.getMessage() for r in caplog.records if r.name.startswith("bertjax")] == [
        "2 of 3 texts are longer than 64 tokens: their ends were cut off"
    ]
    assert_same(found, theirs["text-classification"](texts, truncation=True))

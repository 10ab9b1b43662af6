"""Pipelines that find characters of a text: tokens and entities, and answers to questions."""

import json
import logging

import jax
import numpy as np
import pytest
import torch
import transformers

from bertjax import BertForQuestionAnswering, BertForTokenClassification, InputError, pipeline
from bertjax.pipelines import QuestionAnsweringPipeline
from tests.pipeline_models import (
    ODD,
    TEXT,
    assert_same,
    one_torch_thread,
    quick_compilation,
    sentences,
    write_model,
)

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC")
STRATEGIES = ("none", "simple", "first", "average", "max")
QUESTIONS = TEXT.parent / "tasks" / "squad" / "squad2.json"


@pytest.fixture(scope="module", autouse=True)
def quick():
    with quick_compilation(), one_torch_thread():
        yield


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    """Our pipeline and transformers'."""
    path = tmp_path_factory.mktemp("tags")
    write_model(path, BertForTokenClassification, factor=3.0, id2label=TAGS)
    ours = pipeline("ner", path, batch_size=4)
    return ours, transformers.pipeline("ner", model=str(path), device="cpu")


@pytest.fixture(scope="module")
def answerer(tmp_path_factory):
    """Our pipeline, and transformers' model and tokenizer."""
    path = tmp_path_factory.mktemp("answers")
    write_model(path, BertForQuestionAnswering, factor=12.0)
    peer = transformers.BertForQuestionAnswering.from_pretrained(path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    return pipeline("question-answering", path, batch_size=4), peer, tokenizer


# Tokens, against transformers.


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("ignored", [["O"], [], ["O", "B-PER", "PER", "MISC"]], ids=len)
def test_entities_are_those_of_transformers(tagger, strategy, ignored):
    ours, theirs = tagger
    options = {"aggregation_strategy": strategy, "ignore_labels": ignored}
    texts = [*ODD, *sentences(6)]
    wanted = theirs(texts, **options)
    found = ours(texts, **options)
    assert_same(found, wanted)
    assert_same(ours(texts[::-1], **options), wanted[::-1])
    assert_same(ours(texts[0], **options), found[0], 1e-6)
    assert_same(ours(texts[:1], **options), found[:1], 1e-6)
    assert sum(map(len, found)) > 20
    for text, entities in zip(texts, found, strict=True):
        for entity in entities:
            assert {type(value) for value in entity.values()} <= {str, int, float}
            assert 0 <= entity["start"] < entity["end"] <= len(text)


@pytest.mark.parametrize("stride", [0, 7, 40])
@pytest.mark.parametrize("strategy", STRATEGIES[1:])
def test_long_texts_are_those_of_transformers(tagger, strategy, stride):
    ours, theirs = tagger
    options = {"aggregation_strategy": strategy, "stride": stride, "ignore_labels": []}
    texts = [" ".join(sentences(12)), "short", " ".join(sentences(7)), "one two " * 31]
    assert_same(ours(texts, **options), theirs(texts, **options))


@pytest.mark.parametrize("strategy", ["none", "first"])
def test_words_are_those_of_transformers(tagger, strategy):
    ours, theirs = tagger
    words = [["Zoé", "lives-in", "São", "Paulo", "."], ["straitjacketed"], ["東京", "x"]]
    options = {
        "aggregation_strategy": strategy, "ignore_labels": [], "is_split_into_words": True
    }  # fmt: skip
    for more in ({}, {"delimiter": " - "}):
        wanted = [theirs(text, **options, **more)[0] for text in words]
        assert_same(ours(words, **options, **more), wanted)
        assert_same(ours(words[0], **options, **more), wanted[0])
    assert ours([], is_split_into_words=True) == []


def test_the_end_of_a_long_text_is_told_of(tagger, caplog):
    ours, theirs = tagger
    texts = ["word " * 80, "word"]
    with caplog.at_level(logging.WARNING):
        found = ours(texts, ignore_labels=[])
    assert [r.getMessage() for r in caplog.records if r.name.startswith("bertjax")] == [
        "1 of 2 texts are longer than 64 tokens: their ends were cut off; give stride to read all "
        "of them"
    ]
    assert len(found[0]) == 62
    assert_same(found, theirs(texts, ignore_labels=[]))


def test_tokens_compile_one_program_a_shape(tagger):
    ours, _ = tagger
    ours("A short one.")
    before = ours.compilations
    for strategy in STRATEGIES:
        ours("Another text.", aggregation_strategy=strategy)
        ours("And one more of up to sixteen.", aggregation_strategy=strategy)
    assert ours.compilations == before
    assert ours([]) == []


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ("a", {"aggregation_strategy": "mean"}, "must be one of none, simple, first, average, max"),
        ("a", {"stride": 3}, "stride needs an aggregation_strategy"),
        ("a", {"stride": 62, "aggregation_strategy": "max"}, "stride must be from 0 to below 62"),
        (["a", None], {}, "text 1: must be a string; got NoneType"),
        (3, {}, "give a text or a list of them"),
        ([["a"], "b"], {"is_split_into_words": True}, "text 1: must be a list of words; got 'b'"),
        ([["a"], ["b", 3]], {"is_split_into_words": True}, "text 1: must be a list of words"),
    ],
)
def test_bad_texts_to_tag_are_told(tagger, inputs, options, message):
    with pytest.raises(InputError, match=message):
        tagger[0](inputs, **options)


# Answers, against transformers 4.57's rules on transformers 5's model.


def questions():
    """(question, context) pairs of SQuAD 2.0, and some odd ones."""
    found = [
        (asked["question"], paragraph["context"])
        for article in json.loads(QUESTIONS.read_text("utf-8"))["data"]
        for paragraph in article["paragraphs"]
        for asked in paragraph["qas"]
    ]
    odd = [("Who?", text) for text in ODD if text] + [("Where is straitjacketed Émile?", ODD[0])]
    return [*found[:5], *odd]


def answers_of_4_57(
    peer, tokenizer, question, context, *, longest=64, stride=32, top_k=1, most=15, null, words
):
    """The rules of transformers 4.57.6's pipeline, one span at a time."""
    encoded = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=longest,
        stride=stride,
        return_overflowing_tokens=True,
    )
    found, lowest_null = {}, 1e6
    for encoding in encoded.encodings:
        with torch.no_grad():
            output = peer(
                input_ids=torch.tensor([encoding.ids]),
                token_type_ids=torch.tensor([encoding.type_ids]),
            )
        inside = np.array([s == 1 for s in encoding.sequence_ids])
        counted = inside.copy()
        counted[0] = True
        starts, ends = (
            torch.softmax(torch.where(torch.tensor(counted), x[0], -torch.inf).double(), 0).numpy()
            for x in (output.start_logits, output.end_logits)
        )
        lowest_null = min(lowest_null, starts[0] * ends[0])
        columns = np.flatnonzero(inside)
        spans = sorted(
            ((starts[i] * ends[j], i, j) for i in columns for j in columns if 0 <= j - i < most),
            reverse=True,
        )
        for score, i, j in spans[: 2 * top_k + 10 if words else top_k]:
            begin, end = encoding.offsets[i][0], encoding.offsets[j][1]
            if words:
                begin = encoding.word_to_chars(encoding.word_ids[i], 1)[0]
                end = encoding.word_to_chars(encoding.word_ids[j], 1)[1]
            entry = found.setdefault(
                context[begin:end].lower(),
                {"score": 0.0, "start": begin, "end": end, "answer": context[begin:end]},
            )
            entry["score"] += float(score)
    ranked = list(found.values())
    if null:
        ranked.append({"score": float(lowest_null), "start": 0, "end": 0, "answer": ""})
    return sorted(ranked, key=lambda entry: entry["score"], reverse=True)[:top_k]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 4},
        {"handle_impossible_answer": True, "top_k": 2},
        {"max_answer_len": 2, "align_to_words": False, "top_k": 3},
        {"max_seq_len": 40, "doc_stride": 9},
        {"max_seq_len": 52, "max_question_len": 64},
    ],
    ids=repr,
)
def test_answers_are_those_of_transformers_4(answerer, options):
    ours, peer, tokenizer = answerer
    asked = questions()
    longest = options.get("max_seq_len", 64)
    wanted = [
        answers_of_4_57(
            peer,
            tokenizer,
            question,
            context,
            longest=longest,
            stride=options.get("doc_stride", longest // 2),
            top_k=options.get("top_k", 1),
            most=options.get("max_answer_len", 15),
            null=options.get("handle_impossible_answer", False),
            words=options.get("align_to_words", True),
        )
        for question, context in asked
    ]
    if options.get("top_k", 1) == 1:
        wanted = [answers[0] for answers in wanted]
    given = [{"question": q, "context": c} for q, c in asked]
    assert_same(ours(given, **options), wanted)
    assert_same(ours(given[::-1], **options)[::-1], wanted)
    assert_same(ours(question=asked[0][0], context=asked[0][1], **options), wanted[0])


def test_questions_come_in_many_ways(answerer):
    ours = answerer[0]
    (first, context), (second, _) = questions()[:2]
    found = ours([first, second], context)
    assert len(found) == 2
    assert found[0] != found[1]
    assert ours([first, second], [context, context]) == found
    assert ours({"question": first, "context": context}) == found[0]
    assert_same(ours([{"question": first, "context": context}]), found[:1])
    assert_same([ours(first, context)], found[:1])
    assert ours(question=[first], context=context) == [ours(first, context)]
    assert ours([]) == []
    assert ours([], "context") == []


def test_a_context_without_words_has_no_answer(answerer):
    ours = answerer[0]
    assert ours("who?", " \n") == {"score": 0.0, "start": 0, "end": 0, "answer": ""}
    assert ours("who?", " \n", top_k=2) == []
    assert len(ours("who?", "one", top_k=3)) == 1


def test_long_questions_are_cut(answerer):
    ours = answerer[0]
    found = ours("why " * 40, "one two", max_question_len=3)
    assert_same(found, ours("why why why", "one two"))


def test_questions_compile_one_program_a_shape(answerer):
    ours = QuestionAnsweringPipeline(
        answerer[0].model, answerer[0].params, answerer[0].tokenizer, batch_size=4
    )
    for question, context in questions()[:4]:
        ours(question, context, top_k=3)  # windows of 64 tokens but for the last
    seen = ours.compilations
    assert seen <= 2 * 3
    for question, context in questions()[:4]:
        ours(question, context, max_answer_len=3, handle_impossible_answer=True)
    assert ours.compilations == seen


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (["q"], {}, "question 0: give question=... and context=..., or a dictionary"),
        ([{"question": "q"}], {}, "question 0: give question"),
        ("q", {"context": ""}, "context 0: is empty"),
        (["q", ""], {"context": "c"}, "question 1: is empty"),
        (["q", None], {"context": "c"}, "question 1: must be a string; got NoneType"),
        (["q", "r"], {"context": ["c"]}, "2 questions and 1 contexts"),
        (None, {}, "give a question with its context or a list of them; got NoneType"),
        ("q", {"context": "c", "top_k": 0}, "top_k must be at least 1; got 0"),
        ("q", {"context": "c", "max_answer_len": 0}, "max_answer_len must be at least 1"),
        ("q", {"context": "c", "max_seq_len": 65}, "max_seq_len 65 is over the 64"),
        ("q", {"context": "c", "max_seq_len": 9, "doc_stride": 10}, "doc_stride 10 is larger"),
        (
            "q " * 30,
            {"context": "c", "max_seq_len": 20},
            "question '0': rows of 20 tokens leave no",
        ),
    ],
)
def test_bad_questions_are_told(answerer, given, options, message):
    with pytest.raises(InputError, match=message):
        answerer[0](given, **options)


def test_parameters_are_those_of_the_checkpoint(tmp_path):
    write_model(tmp_path, BertForQuestionAnswering)
    _, params = BertForQuestionAnswering.from_pretrained(tmp_path)
    jax.tree.map(
        np.testing.assert_array_equal, pipeline("question-answering", tmp_path).params, params
    )

"""Texts that share rows in the pipelines on a CPU get what they get in rows of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertjax import (
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    packing,
    pipeline,
)
from bertjax.data.features import TextRows
from bertjax.pipelines.runner import Runner
from bertjax.pipelines.sentence_transformers import POOLINGS
from tests.pipeline_models import (
    assert_same,
    one_torch_thread,
    quick_compilation,
    sentences,
    write_model,
)

TEXTS = sentences(40)


@pytest.fixture(scope="module", autouse=True)
def quick():
    with quick_compilation(), one_torch_thread():
        yield


def numbered(lengths):
    """Rows in which every token is the number of its text, from 1."""
    return TextRows(
        ids=np.repeat(np.arange(1, len(lengths) + 1, dtype=np.int32), lengths),
        types=np.zeros(np.sum(lengths), np.int32),
        bounds=np.cumsum([0, *lengths], dtype=np.int64),
        choices=0,
        labels=None,
        words=None,
        cut=np.zeros(len(lengths), bool),
        pad_id=0,
    )


def tokens_and_positions(params, batch, static):
    texts = batch["texts"] if "texts" in batch else batch["attention_mask"]
    return batch["input_ids"], packing.positions(texts)


def sums_of_texts(params, batch, static):
    if "texts" not in batch:
        return batch["input_ids"].sum(axis=1)
    own = packing.members(batch["texts"], batch["cls_positions"].shape[1])
    assert own.shape[:2] == batch["cls_positions"].shape
    return jnp.sum(own * batch["input_ids"][:, None, :], axis=2)


def runner(compute, shared_rows):
    shapes = []

    def recorded(params, batch, static):
        shapes.append(("texts" in batch, *batch["input_ids"].shape))
        return compute(params, batch, static)

    run = Runner(recorded, np.zeros(1), batch_size=32, longest=256, shared_rows=shared_rows)
    return run, shapes


LENGTHS = np.random.default_rng(0).permutation([*range(3, 60)] * 6 + [200, 190, 250])


def test_tokens_are_those_of_their_texts():
    run, shapes = runner(tokens_and_positions, "tokens")
    seen = []
    for picked, (tokens, positions) in run(numbered(LENGTHS)):
        for text, own, places in zip(picked, tokens, positions, strict=True):
            length = LENGTHS[text]
            assert (own[:length] == text + 1).all()
            assert places[:length].tolist() == list(range(length))
            seen.append(text)
    assert sorted(seen) == list(range(len(LENGTHS)))
    # The three long ones are not what all rows are made as wide for.
    assert sorted(shapes) == [(False, 4, 256), (True, 16, 64)]


def test_texts_have_one_result_each():
    run, shapes = runner(sums_of_texts, "texts")
    found = np.zeros(len(LENGTHS), np.int64)
    for picked, sums in run(numbered(LENGTHS)):
        found[picked] += sums
    assert found.tolist() == (LENGTHS * np.arange(1, len(LENGTHS) + 1)).tolist()
    assert run.compilations == len(shapes) == 2
    list(run(numbered(LENGTHS[::-1])))
    assert run.compilations == 2


@pytest.mark.parametrize(
    ("lengths", "shared_rows", "groups"),
    [
        ([20], "texts", None),  # a row of 64 would be padding
        ([130] * 64, "texts", None),  # no two fit, but in rows that cost more
        (LENGTHS, None, None),
        (LENGTHS, "texts", np.zeros(len(LENGTHS))),
    ],
)
def test_rows_are_not_shared_where_that_is_no_use(lengths, shared_rows, groups):
    run, shapes = runner(sums_of_texts, shared_rows)
    list(run(numbered(lengths), groups=groups))
    assert not any(shared for shared, *_ in shapes)


def shares_one_program(ours, *inputs, **options):
    """Return the results of many inputs, which take one program."""
    before = ours.compilations
    results = ours(*inputs, **options)
    assert ours.compilations == before + 1
    return results


def test_vectors_are_those_of_single_texts(tmp_path):
    directory = write_model(tmp_path, BertModel)
    embed = pipeline("sentence-embeddings", directory, pooling=POOLINGS, normalize=True)
    with jax.debug_nans(True):  # there is none for places without a text either
        together = shares_one_program(embed, TEXTS)
    np.testing.assert_allclose(together, [embed(text) for text in TEXTS], atol=1e-6)


def test_labels_are_those_of_single_texts(tmp_path):
    directory = write_model(tmp_path, BertForSequenceClassification, factor=3.0, num_labels=3)
    classify = pipeline("text-classification", directory)
    together = shares_one_program(classify, TEXTS, top_k=None)
    assert_same([classify(text, top_k=None) for text in TEXTS], together, 1e-6)


def test_tags_are_those_of_single_texts(tmp_path):
    directory = write_model(tmp_path, BertForTokenClassification, factor=3.0, num_labels=3)
    tag = pipeline("token-classification", directory)
    together = shares_one_program(tag, TEXTS)
    assert_same([tag(text) for text in TEXTS], together, 1e-6)


def test_answers_are_those_of_single_questions(tmp_path):
    answer = pipeline("question-answering", write_model(tmp_path, BertForQuestionAnswering))
    questions = [" ".join(text.split()[:4]) + "?" for text in TEXTS]
    together = shares_one_program(answer, questions, TEXTS)
    assert_same([answer(*pair) for pair in zip(questions, TEXTS, strict=True)], together, 1e-6)

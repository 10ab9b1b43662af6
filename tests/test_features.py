"""Rows of every family against transformers' tokenizer, and their labels."""

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from bertjax.data.examples import (
    Answer,
    ChoiceExample,
    QuestionExample,
    TaggedExample,
    TextExample,
)
from bertjax.data.features import make_rows
from bertjax.data.task_data import TaskData
from bertjax.data.tasks import find_task
from bertjax.data.vocab import build_vocab
from bertjax.losses import IGNORE_INDEX
from bertjax.run_config import VocabConfig
from bertjax.tokenizer import BertTokenizer

TEXT = Path(__file__).parent / "data" / "text"
LINES = [x for x in (TEXT / "holmes.txt").read_text("utf-8").split("\n") if len(x) > 20][:30]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    vocab = build_vocab(
        VocabConfig((str(TEXT / "holmes.txt"),), str(directory / "vocab.txt"), 1500)
    )
    BertTokenizer.from_vocab(vocab).save_pretrained(directory)
    return BertTokenizer.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)


def data_of(task, examples, labels=()):
    return TaskData(find_task(task), tuple(examples), tuple(labels), ())


def all_rows(rows):
    return rows.batch(np.arange(len(rows)), int(rows.lengths.max()))


def assert_inputs(batch, theirs):
    for name in ("input_ids", "token_type_ids", "attention_mask"):
        np.testing.assert_array_equal(batch[name], theirs[name], name)


@pytest.mark.parametrize("pair", [False, True])
def test_texts_and_pairs(tokenizers, pair):
    ours, theirs = tokenizers
    seconds = LINES[::-1] if pair else [None] * len(LINES)
    examples = [
        TextExample(str(i), text, second, i % 2)
        for i, (text, second) in enumerate(zip(LINES, seconds, strict=True))
    ]
    rows = make_rows(data_of("classification", examples, "ab"), ours, 32)
    batch = all_rows(rows)
    arguments = (LINES, seconds) if pair else (LINES,)
    want = theirs(*arguments, max_length=32, truncation=True, padding=True, return_tensors="np")
    assert_inputs(batch, want)
    np.testing.assert_array_equal(batch["labels"], np.arange(len(LINES)) % 2)
    whole = theirs(*arguments)["input_ids"]
    assert rows.truncated == sum(len(ids) > 32 for ids in whole) > 0
    assert len(rows) == len(LINES)
    narrow = rows.batch(np.array([4, 2]), 64)
    np.testing.assert_array_equal(narrow["input_ids"][:, :32], np.pad(
        batch["input_ids"], ((0, 0), (0, 32 - batch["input_ids"].shape[1]))
    )[[4, 2]])  # fmt: skip


def test_labels_of_other_kinds(tokenizers):
    scored = [TextExample("a", "one", None, 2.5), TextExample("b", "two", None, 0.0)]
    rows = make_rows(data_of("regression", scored), tokenizers[0], 16)
    labels = all_rows(rows)["labels"]
    assert labels.dtype == np.float32
    np.testing.assert_array_equal(labels, [2.5, 0.0])
    several = [TextExample("a", "one", None, (0, 2)), TextExample("b", "two", None, ())]
    rows = make_rows(data_of("multi_label", several, "xyz"), tokenizers[0], 16)
    np.testing.assert_array_equal(all_rows(rows)["labels"], [[1, 0, 1], [0, 0, 0]])
    unknown = [TextExample("a", "one"), TextExample("b", "two", None, 1)]
    rows = make_rows(data_of("classification", unknown, "ab"), tokenizers[0], 16)
    assert "labels" not in all_rows(rows)


def test_choices(tokenizers):
    ours, theirs = tokenizers
    examples = [
        ChoiceExample(str(i), tuple((LINES[i], LINES[i + j + 1]) for j in range(4)), i % 4)
        for i in range(5)
    ]
    rows = make_rows(data_of("swag", examples), ours, 48)
    assert len(rows) == 5
    batch = all_rows(rows)
    pairs = [pair for example in examples for pair in example.pairs]
    want = theirs(
        [a for a, _ in pairs],
        [b for _, b in pairs],
        max_length=48,
        truncation=True,
        padding=True,
        return_tensors="np",
    )
    assert_inputs(batch, {k: v.reshape(5, 4, -1) for k, v in want.items()})
    np.testing.assert_array_equal(batch["labels"], [0, 1, 2, 3, 0])
    np.testing.assert_array_equal(
        rows.lengths, want["attention_mask"].reshape(5, 4, -1).sum(-1).max(1)
    )


def test_tags_stand_on_first_pieces(tokenizers):
    ours, theirs = tokenizers
    words = [tuple(line.split()) for line in LINES]
    examples = [
        TaggedExample(str(i), w, tuple(n % 5 for n in range(len(w)))) for i, w in enumerate(words)
    ]
    rows = make_rows(data_of("wikigold", examples), ours, 24)
    batch = all_rows(rows)
    want = theirs(
        [list(w) for w in words],
        is_split_into_words=True,
        max_length=24,
        truncation=True,
        padding=True,
        return_tensors="np",
    )
    assert_inputs(batch, want)
    tagged = 0
    for row, example in enumerate(examples):
        seen = set()
        for column, word in enumerate(want.word_ids(row)):
            label = batch["labels"][row, column]
            if word is None or word in seen:
                assert label == IGNORE_INDEX
            else:
                seen.add(word)
                assert label == example.tags[word]
                tagged += 1
    assert tagged > 200


def test_questions(tokenizers):
    context = " ".join(LINES[:8])
    start = context.index(LINES[5])
    known = QuestionExample("a", "What did he say?", context, (Answer(LINES[5][:12], start),))
    rows = make_rows(data_of("squad", [known]), tokenizers[0], 64, doc_stride=24)
    assert len(rows) > 3
    batch = all_rows(rows)
    inside = batch["start_positions"] > 0
    assert 0 < inside.sum() < len(rows)
    for row in np.flatnonzero(inside):
        span = batch["input_ids"][row][
            batch["start_positions"][row] : batch["end_positions"][row] + 1
        ]
        assert tokenizers[0].decode(span) == tokenizers[0].decode(
            tokenizers[0](LINES[5][:12])["input_ids"][0]
        )
    unknown = make_rows(data_of("squad", [QuestionExample("b", "who", context)]), tokenizers[0], 64)
    assert "start_positions" not in all_rows(unknown)

import dataclasses
import itertools
import pickle
import threading

import numpy as np
import pytest

from bertjax.data.pretraining import (
    PretrainingExamples,
    _TrainingBatches,
    evaluation_batches,
    pretraining_batches,
)
from bertjax.errors import InputError
from bertjax.run_config import DataConfig
from tests.memory_documents import (
    SPECIAL,
    STRIDE,
    make_documents,
    realistic_lengths,
    sentences_of,
    split_row,
    unmasked,
    vocab_size,
)

CONFIG = DataConfig(sequence_length=64, max_predictions_per_seq=9, short_seq_prob=0.1)
LENGTHS = realistic_lengths(1, 40, mean_sentences=6)


def make_examples(lengths=LENGTHS, config=CONFIG, seed=0, **options):
    documents = make_documents(lengths, **options)
    return PretrainingExamples(documents, config, SPECIAL, vocab_size(documents), seed)


def same(a, b):
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k]) for k in a
    )


def stack(batches):
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def take(iterator, count):
    return list(itertools.islice(iterator, count))


@pytest.mark.parametrize("task", ["nsp", "sop", "none"])
@pytest.mark.parametrize("whole_words", [False, True])
def test_shapes_types_and_content(task, whole_words):
    config = dataclasses.replace(CONFIG, sentence_task=task, whole_word_mask=whole_words)
    documents = make_documents(LENGTHS)
    size = vocab_size(documents)
    continuations = np.arange(size) % 3 == 0
    examples = PretrainingExamples(documents, config, SPECIAL, size, 0, continuations=continuations)
    batch = examples.batch(np.arange(200))
    T, M = config.sequence_length, config.max_predictions_per_seq
    expected = {
        "input_ids": (T, np.int32),
        "token_type_ids": (T, np.int32),
        "attention_mask": (T, np.int32),
        "mlm_positions": (M, np.int32),
        "mlm_labels": (M, np.int32),
        "mlm_weights": (M, np.float32),
        "next_sentence_label": (None, np.int32),
    }
    assert batch.keys() == expected.keys()
    for name, (width, dtype) in expected.items():
        assert batch[name].dtype == dtype
        assert batch[name].shape == ((200,) if width is None else (200, width))
    ids = unmasked(batch)
    lengths = batch["attention_mask"].sum(axis=1)
    counts = batch["mlm_weights"].sum(axis=1)
    budget = [min(M, max(1, round(0.15 * int(n)))) for n in lengths]
    # A row of one long word may have nothing that fits its budget.
    assert (counts <= budget).all() if whole_words else (counts == budget).all()
    assert counts.sum() > 0.95 * sum(budget)
    for row in range(200):
        a, b = split_row(ids[row], batch["token_type_ids"][row], batch["attention_mask"][row])
        sentences_of(a)
        assert len(a) >= 1
        assert len(b) >= 1 if task != "none" else len(b) == 0
        masked = batch["mlm_positions"][row][batch["mlm_weights"][row] > 0]
        assert np.isin(ids[row, masked], [SPECIAL.pad, SPECIAL.cls, SPECIAL.sep]).sum() == 0
    assert set(batch["next_sentence_label"].tolist()) == ({0} if task == "none" else {0, 1})


def test_special_tokens_inside_the_text_are_not_masked():
    documents = make_documents(LENGTHS)
    for record in documents._records.records:
        record[::2] = SPECIAL.sep
    size = vocab_size(documents)
    batch = PretrainingExamples(documents, CONFIG, SPECIAL, size, 0).batch(np.arange(300))
    real = batch["mlm_weights"] > 0
    assert real.sum() > 1000
    assert (batch["mlm_labels"][real] != SPECIAL.sep).all()


def test_example_is_the_same_in_any_batch():
    examples = make_examples()
    whole = examples.batch(np.arange(3 * examples.epoch_size(0)))
    rng = np.random.default_rng(0)
    for _ in range(5):
        indices = rng.integers(0, len(whole["input_ids"]), 33)
        batch = make_examples(cached_records=3).batch(indices)
        assert same(batch, {name: rows[indices] for name, rows in whole.items()})
    one = examples[7]
    assert same(one, {name: rows[7] for name, rows in whole.items()})
    assert one["next_sentence_label"].shape == ()
    assert examples.batch([])["input_ids"].shape == (0, 64)


def test_an_epoch_visits_every_chunk_once_in_random_order():
    config = dataclasses.replace(CONFIG, sentence_task="none", short_seq_prob=0.0)
    # The tokens that a row may lose never are a whole sentence.
    examples = make_examples([[7] * (1 + n % 30) for n in range(60)], config)
    size = examples.epoch_size(0)
    orders = []
    for epoch in range(2):
        batch = examples.batch(np.arange(epoch * size, (epoch + 1) * size))
        heads = [(row[1] - 10) // STRIDE for row in unmasked(batch)]
        assert len(set(heads)) == size
        orders.append(heads)
    assert sorted(orders[0]) == sorted(orders[1])
    for order in orders:
        # Spearman correlation with the order of the text, 4.5 standard errors.
        ranks = np.argsort(np.argsort(order))
        assert abs(np.corrcoef(ranks, np.arange(size))[0, 1]) < 4.5 / np.sqrt(size)
    assert orders[0] != orders[1]


def test_epochs_and_seeds_differ():
    def repeated(a, b):
        rows = {row.tobytes() for row in a["input_ids"]}
        return np.mean([row.tobytes() in rows for row in b["input_ids"]])

    examples = make_examples()
    sizes = [examples.epoch_size(epoch) for epoch in range(3)]
    starts = np.cumsum([0, *sizes])
    epochs = [examples.batch(np.arange(starts[e], starts[e + 1])) for e in range(3)]
    assert repeated(epochs[0], epochs[0]) == 1
    # A row of one short sentence has few ways to be masked; no other should come twice.
    assert repeated(epochs[0], epochs[1]) < 0.02
    assert repeated(epochs[1], epochs[2]) < 0.02
    assert [examples.epoch_of(int(i)) for i in (0, starts[1] - 1, starts[1], starts[2])] == [
        0,
        0,
        1,
        2,
    ]
    other = make_examples(seed=1).batch(np.arange(sizes[0]))
    assert repeated(epochs[0], other) < 0.02
    assert same(make_examples(seed=0).batch(np.arange(sizes[0])), epochs[0])


def test_old_epochs_can_be_visited_again():
    examples = make_examples()
    before = examples.batch(np.arange(10))
    examples.epoch_size(5)
    assert len(examples._plans) == 2
    assert same(examples.batch(np.arange(10)), before)


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_put_together_give_the_same_stream(hosts):
    batch_size, steps = 16, 12
    rows = batch_size // hosts
    streams = [
        take(pretraining_batches(make_examples(), batch_size, 5, h * rows, (h + 1) * rows), steps)
        for h in range(hosts)
    ]
    expected = make_examples()
    for step in range(steps):
        start = 5 + step * batch_size
        together = stack([stream[step] for stream in streams])
        assert same(together, expected.batch(np.arange(start, start + batch_size)))


def test_a_host_reads_only_what_its_rows_need():
    """With one sentence a record and no cache, reads tell the rows that were made."""
    count, read = 96, {}
    for rows in ((0, 8), (8, 16), (0, 16)):
        examples = make_examples(record_tokens=1, cached_records=0)
        source = examples.documents._records
        for start in range(0, count, 16):
            examples.batch(np.arange(start + rows[0], start + rows[1]))
        expected, source.read = sorted(source.read), []
        assert len(list(evaluation_batches(examples, count, 16, *rows))) == 6
        assert sorted(source.read) == expected
        source.read = []
        batches = _TrainingBatches(examples, 16, 0, *rows)
        for number in range(6):
            batches[number]
        assert sorted(source.read) == expected
        read[rows] = set(expected)
        sizes = len(expected)
    assert max(len(read[0, 8]), len(read[8, 16])) < 0.8 * len(read[0, 16])
    assert read[0, 8] | read[8, 16] == read[0, 16]
    assert sizes > count


def test_records_are_read_once_while_they_are_cached():
    examples = make_examples()
    source = examples.documents._records
    for start in range(0, 3 * examples.epoch_size(0), 32):
        examples.batch(np.arange(start, start + 32))
    assert sorted(source.read) == list(range(len(source)))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_continues_exactly_after_a_restart(workers):
    examples = make_examples()
    size = examples.epoch_size(0)
    batch_size = 16
    border = size // batch_size  # this batch runs across the end of the epoch
    assert size % batch_size
    steps = border + 4
    expected = [examples.batch(np.arange(16) + 16 * step) for step in range(steps)]
    restarts = [0, border, border + 1] if workers else range(0, steps, 3)
    for step in restarts:
        stream = pretraining_batches(
            make_examples(), batch_size, step * batch_size, workers=workers
        )
        found = take(stream, min(steps - step, 5))
        assert len(found) >= 2 if step < steps - 1 else found
        for offset, batch in enumerate(found):
            assert same(batch, expected[step + offset])
        stream.close()


def test_processes_are_told_the_epochs():
    examples = make_examples()
    examples.epoch_of(10_000)
    copy = pickle.loads(pickle.dumps(examples))
    assert copy._epoch_starts == examples._epoch_starts
    assert copy._plans == {}
    assert same(copy.batch(np.arange(10_000, 10_010)), examples.batch(np.arange(10_000, 10_010)))


def test_threads_agree():
    examples = make_examples(cached_records=5)
    expected = make_examples().batch(np.arange(2000))
    failures = []

    def work(offset):
        for start in range(offset, 2000, 80):
            batch = examples.batch(np.arange(start, start + 10))
            if not same(batch, {k: v[start : start + 10] for k, v in expected.items()}):
                failures.append(start)

    threads = [threading.Thread(target=work, args=(10 * n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("hosts", [1, 2])
def test_evaluation(hosts):
    examples = make_examples()
    count, batch_size = 37, 16
    rows = batch_size // hosts
    streams = [
        list(evaluation_batches(make_examples(), count, batch_size, h * rows, (h + 1) * rows))
        for h in range(hosts)
    ]
    assert [len(stream) for stream in streams] == [3] * hosts
    together = stack([stack(list(parts)) for parts in zip(*streams, strict=True)])
    real = {name: values[:count] for name, values in together.items()}
    assert same(real, examples.batch(np.arange(count)))
    padding = {name: values[count:] for name, values in together.items()}
    assert padding["input_ids"].shape == (48 - 37, 64)
    assert (padding.pop("next_sentence_label") == -100).all()
    assert not any(values.any() for values in padding.values())


def test_evaluation_ends_with_the_epoch():
    examples = make_examples()
    size = examples.epoch_size(0)
    batches = list(evaluation_batches(examples, 10 * size, 32))
    assert sum(int((batch["next_sentence_label"] != -100).sum()) for batch in batches) == size
    assert len(examples._epoch_starts) == 2  # nothing is made for the rows of padding


@pytest.mark.parametrize("task", ["nsp", "none"])
def test_tiny_corpus(task):
    config = dataclasses.replace(CONFIG, sentence_task=task, sequence_length=8)
    examples = make_examples([[1], [300]], config)
    assert examples.epoch_size(0) == 2
    batch = examples.batch(np.arange(1000))
    assert examples.epoch_of(999) == 499
    ids = unmasked(batch)
    for row in range(1000):
        split_row(ids[row], batch["token_type_ids"][row], batch["attention_mask"][row])
    assert (batch["mlm_weights"].sum(axis=1) == 1).all()


def test_bad_input():
    with pytest.raises(InputError, match="single document"):
        make_examples([[5, 6, 7]])
    with pytest.raises(InputError, match="every document is of one sentence"):
        make_examples([[5], [6]], dataclasses.replace(CONFIG, sentence_task="sop"))
    with pytest.raises(InputError, match="continuations"):
        make_examples(config=dataclasses.replace(CONFIG, whole_word_mask=True))
    with pytest.raises(InputError, match=r"data\.sequence_length must be below"):
        make_examples(config=dataclasses.replace(CONFIG, sequence_length=1 << 15))
    with pytest.raises(InputError, match=r"data\.sequence_length must be at least 8"):
        dataclasses.replace(CONFIG, sequence_length=7)
    documents = make_documents(LENGTHS)
    examples = PretrainingExamples(documents, CONFIG, SPECIAL, 1000, 0)
    with pytest.raises(InputError, match="but the vocabulary only 1000 pieces"):
        examples.batch(np.arange(8))


def test_unused_documents_are_counted_and_told(caplog):
    examples = make_examples([[5], [6, 7], [8]], dataclasses.replace(CONFIG, sentence_task="sop"))
    assert examples.unused_documents == 2
    assert "2 of 3 documents are of one sentence" in caplog.text
    assert make_examples().unused_documents == 0

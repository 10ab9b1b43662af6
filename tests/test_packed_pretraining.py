"""Pretraining rows of several examples: every example as it is alone, once an epoch."""

import dataclasses
import json
import pickle
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertjax import BertForPreTraining
from bertjax.data.packed_pretraining import PackedExamples, most_predictions, most_texts
from bertjax.data.pretraining import PretrainingExamples, pretraining_batches
from bertjax.errors import InputError
from bertjax.objectives import PretrainingObjective
from bertjax.run_config import DataConfig, PretrainConfig
from tests import processes
from tests.memory_documents import SPECIAL, make_documents, realistic_lengths, vocab_size
from tests.models import SMALL
from tests.peers import quick_jit, quick_params

CONFIG = DataConfig(sequence_length=64, max_predictions_per_seq=10, short_seq_prob=0.3)
LENGTHS = realistic_lengths(1, 60, mean_sentences=6)


def make_examples(config=CONFIG, lengths=LENGTHS, seed=0):
    documents = make_documents(lengths)
    return PretrainingExamples(documents, config, SPECIAL, vocab_size(documents), seed)


def alone(batch):
    """What each example of a batch holds."""
    for row in range(len(batch["input_ids"])):
        there = batch["attention_mask"][row] > 0
        some = batch["mlm_weights"][row] > 0
        yield (
            batch["input_ids"][row][there].tobytes(),
            batch["token_type_ids"][row][there].tobytes(),
            batch["mlm_positions"][row][some].tobytes(),
            batch["mlm_labels"][row][some].tobytes(),
            int(batch["next_sentence_label"][row]),
        )


def shared(batch):
    """The same of the examples that share the rows of a batch."""
    for row, texts in enumerate(batch["texts"]):
        some = batch["mlm_weights"][row] > 0
        positions, labels = batch["mlm_positions"][row][some], batch["mlm_labels"][row][some]
        assert (np.diff(positions) > 0).all()
        assert (texts[positions] > 0).all()
        count = texts.max()
        assert (batch["next_sentence_label"][row][count:] == -100).all()
        assert (batch["input_ids"][row][texts == 0] == SPECIAL.pad).all()
        for number in range(1, count + 1):
            there = texts == number
            first = np.argmax(there)
            assert batch["cls_positions"][row, number - 1] == first
            assert batch["input_ids"][row, first] == SPECIAL.cls
            own = texts[positions] == number
            yield (
                batch["input_ids"][row][there].tobytes(),
                batch["token_type_ids"][row][there].tobytes(),
                (positions[own] - first).astype(np.int32).tobytes(),
                labels[own].tobytes(),
                int(batch["next_sentence_label"][row, number - 1]),
            )


@pytest.mark.parametrize("task", ["nsp", "sop", "none"])
def test_an_epoch_has_every_example_once(task):
    examples = make_examples(dataclasses.replace(CONFIG, sentence_task=task))
    packed = PackedExamples(examples)
    for epoch in range(2):
        start, size = examples.epoch_start(epoch), examples.epoch_size(epoch)
        rows = packed.epoch_size(epoch)
        first = 0 if epoch == 0 else packed.epoch_size(0)
        assert packed.epoch_of(first) == packed.epoch_of(first + rows - 1) == epoch
        batch = packed.batch(first + np.arange(rows))
        wanted = Counter(alone(examples.batch(start + np.arange(size))))
        assert Counter(shared(batch)) == wanted
        assert rows < 0.95 * size
        # Not the rows of one text first, say.
        texts = batch["texts"].max(axis=1)
        half = rows // 2
        assert abs(texts[:half].mean() - texts[half:].mean()) < 0.5


@pytest.mark.parametrize("task", ["nsp", "sop", "none"])
def test_lengths_are_those_of_the_rows(task):
    examples = make_examples(dataclasses.replace(CONFIG, sentence_task=task))
    numbers = np.arange(examples.epoch_size(0) + 20)
    want = examples.batch(numbers)["attention_mask"].sum(axis=1)
    np.testing.assert_array_equal(examples.lengths(numbers), want)


def test_shapes_and_types():
    batch = PackedExamples(make_examples()).batch(np.arange(6))
    T, S, M = 64, most_texts(CONFIG), most_predictions(CONFIG)
    assert (S, M) == (2, 11)
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
        **dict.fromkeys(("input_ids", "token_type_ids", "texts"), ((6, T), "int32")),
        **dict.fromkeys(("cls_positions", "next_sentence_label"), ((6, S), "int32")),
        **dict.fromkeys(("mlm_positions", "mlm_labels"), ((6, M), "int32")),
        "mlm_weights": ((6, M), "float32"),
    }


@pytest.mark.parametrize("length", [128, 512])
def test_rows_are_nearly_full_and_their_masked_tokens_fit(length):
    for probability, most in ((0.15, length // 6), (0.4, length), (0.02, 1)):
        config = DataConfig(
            sequence_length=length, masked_lm_prob=probability, max_predictions_per_seq=most
        )
        examples = make_examples(config, realistic_lengths(0, 600))
        packed = PackedExamples(examples)
        rows = packed.epoch_size(0)
        batch = packed.batch(np.arange(rows))
        assert (batch["texts"] > 0).mean() > 0.96
        assert rows < (0.85 if length == 128 else 0.5) * examples.epoch_size(0)
        masked = examples.batch(np.arange(examples.epoch_size(0)))["mlm_weights"].sum()
        assert batch["mlm_weights"].sum() == masked


def test_a_row_is_what_it_is_in_any_batch_and_any_process():
    packed = PackedExamples(make_examples())
    numbers = np.array([3, packed.epoch_size(0) + 5, 0, 3])
    want = packed.batch(numbers)
    other = PackedExamples(make_examples())
    for place, number in enumerate(numbers):
        for name, array in other.batch([number]).items():
            np.testing.assert_array_equal(array[0], want[name][place])
    again = pickle.loads(pickle.dumps(packed))
    for name, array in again.batch(numbers).items():
        np.testing.assert_array_equal(array, want[name])
    later = next(pretraining_batches(other, 8, 16, 2, 6))
    for name, array in packed.batch(16 + np.arange(2, 6)).items():
        np.testing.assert_array_equal(later[name], array)
    seeded = PackedExamples(make_examples(seed=1)).batch(numbers)
    assert not np.array_equal(seeded["input_ids"], want["input_ids"])


@pytest.mark.parametrize("task", ["nsp", "none"])
def test_losses_and_gradients_are_those_of_examples_alone(task):
    config = dataclasses.replace(
        CONFIG, sequence_length=40, sentence_task=task, max_predictions_per_seq=6
    )
    examples = make_examples(config, [[5, 9, 4, 7], [3, 3, 8, 2, 6], [9], [4, 4], [11, 2, 3]] * 3)
    packed = PackedExamples(examples)
    model = BertForPreTraining(dataclasses.replace(SMALL, vocab_size=examples.vocab_size))
    objective = PretrainingObjective(model, sentence_pairs=task != "none")
    params = quick_params(model)

    def loss(params, batch):
        sums = objective.sums(params, batch, None)
        return sum(sums[name].total for name in objective.weights(batch)), sums

    value = quick_jit(jax.value_and_grad(loss, has_aux=True))
    batch = packed.batch(np.arange(packed.epoch_size(0)))
    assert batch["texts"].max() == 2
    (got, sums), grads = value(params, batch)
    (want, sums_alone), wanted = value(params, examples.batch(np.arange(examples.epoch_size(0))))
    assert float(got) == pytest.approx(float(want), rel=1e-5)
    for name, pair in sums_alone.items():
        assert float(sums[name].weight) == float(pair.weight) > 0
        assert float(sums[name].total) == pytest.approx(float(pair.total), rel=1e-5)
    for name, weight in objective.weights(batch).items():
        assert float(weight) == float(sums[name].weight)
    for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted), strict=True):
        scale = max(float(jnp.abs(theirs).max()), 1e-2)
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * scale, rtol=0)


def test_scores_of_each_text_without_masked_positions():
    model = BertForPreTraining(SMALL)
    params = {"params": quick_params(model)}
    ids = jnp.arange(10)[None, :]
    every = model.apply(params, ids, cls_positions=jnp.array([[0, 4, 7]]))
    assert every.seq_relationship_logits.shape == (1, 3, 2)
    assert every.prediction_logits.shape == (1, 10, SMALL.vocab_size)
    some = model.apply(
        params, ids, cls_positions=jnp.array([[0, 4, 7]]), mlm_positions=jnp.array([[5, 2]])
    )
    for ours, theirs in (
        (some.prediction_logits, every.prediction_logits[:, jnp.array([5, 2])]),
        (some.seq_relationship_logits, every.seq_relationship_logits),
    ):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_decoders_are_not_packed():
    decoder = dataclasses.replace(SMALL, is_decoder=True, max_position_embeddings=128)
    with pytest.raises(InputError, match=r"data\.pack: is for masked tokens; a decoder"):
        PretrainConfig("run", model=decoder, data=DataConfig(sentence_task="none", pack=True))


@pytest.mark.slow
def test_a_packed_run_learns_the_same_on_any_devices(tmp_path):
    experiment = Path(__file__).parent / "workers" / "tiny_run.py"
    losses = []
    for devices in (1, 8):
        run = tmp_path / f"run{devices}"
        code, _, err = processes.bertjax(
            *("pretrain", experiment, "--run-dir", run, "--data.pack"),
            devices=devices,
        )
        assert code == 0, err
        assert "examples a row" in err
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines])
    np.testing.assert_allclose(*losses, rtol=2e-4)
    assert losses[0][0] > losses[0][-1]

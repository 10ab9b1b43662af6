"""Pretraining a decoder: rows without masks, the loss of the next token, whole small runs."""

import dataclasses
import math
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from bertjax import BertConfig, BertLMHeadModel
from bertjax.data.pretraining import PretrainingExamples, evaluation_batches
from bertjax.objectives import CausalObjective
from bertjax.report import read_metrics
from bertjax.run_config import DataConfig
from tests import processes
from tests.memory_documents import SPECIAL, make_documents, realistic_lengths, unmasked, vocab_size
from tests.models import SMALL
from tests.peers import hf_state, quick_params

EXPERIMENT = Path(__file__).parent / "workers" / "tiny_run.py"
DECODER = ("--model.is-decoder", "--data.sentence-task", "none")


def examples(masks):
    documents = make_documents(realistic_lengths(1, 40, mean_sentences=6))
    config = DataConfig(sequence_length=64, sentence_task="none")
    return PretrainingExamples(
        documents, config, SPECIAL, vocab_size(documents), seed=3, masks=masks
    )


def test_rows_are_those_of_masked_pretraining_before_masks():
    batch, masked = (examples(masks).batch(np.arange(50)) for masks in (False, True))
    assert set(batch) == {"input_ids", "token_type_ids", "attention_mask"}
    np.testing.assert_array_equal(batch["input_ids"], unmasked(masked))
    np.testing.assert_array_equal(batch["attention_mask"], masked["attention_mask"])
    assert SPECIAL.mask not in batch["input_ids"]


def test_rows_that_fill_up_an_evaluation_count_nothing():
    *_, last = evaluation_batches(examples(masks=False), 10, 8)
    assert last["attention_mask"].any(axis=1).tolist() == [True, True] + [False] * 6
    assert (last["input_ids"][2:] == SPECIAL.pad).all()


def test_sums_are_transformers_loss_and_hits():
    import torch
    import transformers

    config = dataclasses.replace(SMALL, is_decoder=True)
    model = BertLMHeadModel(config)
    params = quick_params(model)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, config.vocab_size, (6, 20)).astype(np.int32)
    mask = (np.arange(20) < np.array([[20], [1], [2], [13], [7], [0]])).astype(np.int32)
    batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    objective = CausalObjective(model, common_token=int(ids[0, 1]))
    sums = objective.sums(params, batch, None)

    hf_config = transformers.BertConfig(**config.to_dict())
    peer = transformers.BertLMHeadModel(hf_config).eval()
    peer.load_state_dict(hf_state(params), strict=False)
    seen = mask.any(axis=1)  # a row that sees nothing is NaN there
    inputs = {name: torch.from_numpy(array[seen]).long() for name, array in batch.items()}
    labels = torch.where(inputs["attention_mask"] > 0, inputs["input_ids"], -100)
    with torch.no_grad():
        output = peer(**inputs, labels=labels)
    count = np.maximum(mask.sum(axis=1) - 1, 0).sum()
    assert float(sums["lm_loss"].weight) == float(objective.weights(batch)["lm_loss"]) == count
    assert float(sums["lm_loss"].mean()) == pytest.approx(float(output.loss), rel=1e-5)
    counted = mask[seen][:, 1:] > 0
    hits = output.logits.numpy()[:, :-1].argmax(-1) == ids[seen][:, 1:]
    assert float(sums["lm_accuracy"].total) == (hits & counted).sum()
    common = ids[seen][:, 1:] == ids[0, 1]
    assert float(sums["common_token_accuracy"].total) == (common & counted).sum() >= 1


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was not interrupted, and what it printed."""
    directory = tmp_path_factory.mktemp("causal") / "run"
    code, out, err = pretrain(directory)
    assert code == 0, err
    return directory, out + err


def pretrain(directory, *extra, devices=1):
    options = ("--run-dir", directory, *DECODER, *extra)
    return processes.bertjax("pretrain", EXPERIMENT, *options, devices=devices)


def losses(directory):
    return [line["loss"] for line in read_metrics(directory) if line["split"] == "train"]


@pytest.mark.slow
def test_a_run_learns_and_tells_what_it_reached(whole):
    directory, told = whole
    train = losses(directory)
    assert train[-1] < train[0] - 0.5
    final = read_metrics(directory)[-1]
    assert final["split"] == "eval"
    assert final["loss"] == final["lm_loss"]
    assert final["perplexity"] == pytest.approx(math.exp(final["lm_loss"]))
    assert "next-token accuracy" in told
    assert told.count(" -> ") == 4
    assert "the next token" in (directory / "model" / "README.md").read_text()


@pytest.mark.slow
def test_transformers_loads_the_decoder(whole):
    import transformers

    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        whole[0] / "model", output_loading_info=True
    )
    assert isinstance(model, transformers.BertLMHeadModel)
    assert not any(report.values()), report
    assert model.config.is_decoder


@pytest.mark.slow
def test_going_on_from_a_checkpoint_ends_the_same(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / f"{60:08d}")
    shutil.rmtree(tmp_path / "run" / "model")
    code, _, err = pretrain(tmp_path / "run")
    assert code == 0, err
    assert "going on from step 50" in err
    ends = [d / "model" / "model.safetensors" for d in (whole[0], tmp_path / "run")]
    assert ends[0].read_bytes() == ends[1].read_bytes()


@pytest.mark.slow
def test_eight_devices_learn_the_same(whole, tmp_path):
    options = ("--data.dataset", whole[0] / "dataset", "--mesh.data", "2", "--mesh.fsdp", "2")
    code, _, err = pretrain(tmp_path / "run", *options, "--mesh.model", "2", devices=8)
    assert code == 0, err
    assert "rematerialization" not in err
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(whole[0]), rtol=1e-4)


@pytest.mark.slow
def test_a_masked_model_becomes_a_decoder(whole, tmp_path):
    one = ("--train-steps", "1", "--optimizer.warmup-steps", "0")
    one = (*one, "--data.dataset", whole[0] / "dataset")
    masked = ("--run-dir", tmp_path / "masked", "--data.sentence-task", "none", *one)
    code, _, err = processes.bertjax("pretrain", EXPERIMENT, *masked)
    assert code == 0, err
    code, _, err = pretrain(tmp_path / "run", "--init-from", tmp_path / "masked", *one)
    assert code == 0, err
    before, after = (
        BertLMHeadModel.from_pretrained(
            tmp_path / name / "model",
            config=BertConfig.from_pretrained(tmp_path / name / "model", is_decoder=True),
        )[1]
        for name in ("masked", "run")
    )
    # One step of Adam moves a parameter by at most the learning rate and its decay.
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, after)
    assert 0 < max(jax.tree.leaves(moved)) < 2e-3


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--model.is-decoder",), "data.sentence_task nsp: a decoder"),
        ((*DECODER, "--model.add-cross-attention"), "model.add_cross_attention"),
    ],
)
def test_what_does_not_fit_is_one_line(options, told, tmp_path):
    code, _, err = processes.bertjax(
        "pretrain", EXPERIMENT, "--run-dir", tmp_path / "run", *options
    )
    assert code == 2
    assert told in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()

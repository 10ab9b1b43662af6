"""Sequence-to-sequence fine-tuning: rows, runs, scores, and what is written by finished models."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from bertjax import BertModel, EncoderDecoderModel, cli, finetune, from_pretrained
from bertjax.data.bucketing import evaluation_batches, training_batches
from bertjax.data.examples import TextExample
from bertjax.data.targets import target_rows
from bertjax.errors import InputError
from bertjax.report import read_metrics
from bertjax.run_config import CheckpointConfig, FinetuneConfig, OptimizerConfig, TaskConfig
from bertjax.tokenizer import BertTokenizer
from tests import processes
from tests.models import assert_same_trees
from tests.small_base import DATA, save_base
from tests.small_runs import CutError, cut_at, lines_of

LINES = [x for x in (DATA / "text" / "holmes.txt").read_text("utf-8").split("\n") if len(x) > 20]
TARGETS = [" ".join(line.split()[: 3 + i % 4]) for i, line in enumerate(LINES[:20])]
SOURCES = [" ".join(sorted(target.split())) for target in TARGETS]
LONGEST, TARGET_LENGTH = 32, 24


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A small encoder to start from."""
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A table of sources and targets, which 8 rows do not divide."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.csv"
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "source", "target"])
        table.writerows(
            (f"n{i}", *pair) for i, pair in enumerate(zip(SOURCES, TARGETS, strict=True))
        )
    return path


def config_of(base, run, pairs, **options):
    task = TaskConfig(
        "seq2seq",
        (str(pairs),),
        (str(pairs),),
        sequence_length=LONGEST,
        target_length=TARGET_LENGTH,
    )
    rule = OptimizerConfig(learning_rate=2e-3, weight_decay=0.0)
    settings = {"batch_size": 8, "epochs": 4, "eval_every": 6, "log_every": 1, **options}
    return FinetuneConfig(str(run), str(base), task, optimizer=rule, **settings)


@pytest.fixture(scope="module")
def run(base, pairs, tmp_path_factory):
    """A finished run, that learned its rows."""
    directory = tmp_path_factory.mktemp("run") / "run"
    finetune.run(config_of(base, directory, pairs, epochs=50, eval_every=50, log_every=10))
    return directory


def evals_of(run):
    return [line for line in read_metrics(Path(run)) if line["split"] == "eval"]


# Rows.


def rows_of(base, most=LONGEST, longest=TARGET_LENGTH, labels=True, pair=False):
    examples = [
        TextExample(str(i), source, "and more" if pair else None, target if labels else None)
        for i, (source, target) in enumerate(zip(SOURCES, TARGETS, strict=True))
    ]
    return target_rows(examples, BertTokenizer.from_pretrained(base), most, longest)


@pytest.mark.parametrize("pair", [False, True])
def test_rows_are_those_of_transformers(base, pair):
    rows = rows_of(base, pair=pair)
    batch = rows.batch(np.arange(len(rows)), int(rows.lengths.max()))
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    seconds = ["and more"] * len(SOURCES) if pair else None
    theirs = tokenizer(SOURCES, seconds, padding=True, return_tensors="np")
    for name in ("input_ids", "token_type_ids", "attention_mask"):
        np.testing.assert_array_equal(batch[name], theirs[name])
    for labels, target in zip(batch["labels"], TARGETS, strict=True):
        ids = tokenizer(target).input_ids[1:]  # without [CLS], with which the decoder begins
        np.testing.assert_array_equal(labels[: len(ids)], ids)
        assert (labels[len(ids) :] == -100).all()
    assert rows.text([*tokenizer("he said it .").input_ids[1:], 0, 7]) == "he said it."
    assert rows.targets.texts[0] == tokenizer.decode(
        tokenizer(TARGETS[0]).input_ids, skip_special_tokens=True
    )


def test_rows_that_are_cut(base):
    rows = rows_of(base, most=8, longest=6)
    assert rows.sources.truncated == sum(np.array(rows_of(base).lengths) > 8)
    whole = rows_of(base).targets
    assert rows.targets.truncated == sum(whole.lengths > 6)
    assert rows.targets.lengths.max() == 6
    assert rows.targets.texts == whole.texts  # what is scored is whole
    end = BertTokenizer.from_pretrained(base).sep_id
    assert (rows.targets.ids[rows.targets.bounds[1:] - 1] == end).all()


def test_batches_have_few_shapes(base):
    words = " ".join(LINES).split()
    lengths = np.random.default_rng(0).integers(1, 30, (60, 2))
    examples = [
        TextExample(str(i), " ".join(words[:m]), None, " ".join(words[:n]))
        for i, (m, n) in enumerate(lengths)
    ]
    rows = target_rows(examples, BertTokenizer.from_pretrained(base), LONGEST, 48)
    batches, others = (training_batches(rows, 4, seed=seed, max_widths=8) for seed in (3, 4))
    shapes, labels = set(), 0
    for _ in range(15):
        batch, other = next(batches), next(others)
        shapes.add((batch["input_ids"].shape, batch["labels"].shape))
        labels += batch["labels"].size
        # The widths of a batch depend on its number alone, so that several seeds go together.
        assert batch["input_ids"].shape == other["input_ids"].shape
        assert batch["labels"].shape == other["labels"].shape
    assert {shape[1] for _, shape in shapes} == {16, 32, 48}
    # Two widths of sources times three of targets; few targets are among wider ones.
    assert len(shapes) <= 6
    assert labels < 1.2 * rows.target_widths.sum()
    unknown = rows_of(base, labels=False)
    assert unknown.targets is None
    for _, batch in evaluation_batches(unknown, 8, 8):
        assert "labels" not in batch


# Runs.


def test_a_run_learns_its_rows(run):
    lines = evals_of(run)
    assert lines[0]["chrf"] < 0.9
    assert max(line["chrf"] for line in lines) > 0.97
    assert lines[-1]["loss"] < 0.1 < lines[0]["loss"]
    assert lines[-1]["token_accuracy"] > 0.98
    assert lines[-1]["perplexity"] == pytest.approx(np.exp(lines[-1]["loss"]))
    assert list(lines[0])[3:] == ["chrf", "exact_match", "token_accuracy", "loss", "perplexity"]


def test_transformers_writes_and_scores_the_same(run, pairs, capsys):
    peer = transformers.EncoderDecoderModel.from_pretrained(run / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "model")
    batch = tokenizer(SOURCES, padding=True, return_tensors="pt")
    del batch["token_type_ids"]
    with torch.no_grad():
        written = peer.generate(**batch, max_new_tokens=TARGET_LENGTH, do_sample=False)
    wanted = tokenizer.batch_decode(written, skip_special_tokens=True)
    assert cli.main(["predict", str(run), "--data", str(pairs), "--batch-size", "6"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["id"] for record in records] == [f"n{i}" for i in range(len(SOURCES))]
    assert [record["prediction"] for record in records] == wanted

    labels = tokenizer(TARGETS, padding=True, return_tensors="pt").input_ids[:, 1:].contiguous()
    labels[labels == tokenizer.pad_token_id] = -100
    with torch.no_grad():
        loss = float(peer(**batch, labels=labels).loss)
    best = max(evals_of(run), key=lambda line: line["chrf"])
    assert best["loss"] == pytest.approx(loss, rel=1e-4)
    right = [a == t for a, t in zip(wanted, rows_texts(tokenizer), strict=True)]
    assert best["exact_match"] == pytest.approx(np.mean(right))


def rows_texts(tokenizer):
    ids = tokenizer(TARGETS).input_ids
    return tokenizer.batch_decode(ids, skip_special_tokens=True)


def test_evaluate_and_predict_read_the_run(run, pairs, tmp_path, capsys):
    scores = tmp_path / "scores.json"
    assert cli.main(["evaluate", str(run), "--output", str(scores), "--batch-size", "3"]) == 0
    best = max(evals_of(run), key=lambda line: line["chrf"])
    found = json.loads(scores.read_text())
    assert found["examples"] == len(SOURCES)
    for name, value in found["scores"].items():
        assert value == pytest.approx(best[name], rel=1e-5), name
    # Plain text, one source a line.
    lines = tmp_path / "sources.txt"
    lines.write_text("\n".join(SOURCES[:3]) + "\n")
    output = tmp_path / "written.csv"
    arguments = ["predict", run, "--data", lines, "--output", output, "--with-inputs"]
    assert cli.main(list(map(str, arguments))) == 0
    with output.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["text"] for row in table] == SOURCES[:3]
    capsys.readouterr()
    assert cli.main(["predict", str(run), "--data", str(pairs)]) == 0
    all_of_them = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["prediction"] for row in table] == [r["prediction"] for r in all_of_them[:3]]


@pytest.mark.slow
def test_a_run_that_was_cut_goes_on_to_the_same_end(base, pairs, tmp_path, monkeypatch):
    def config(name):
        every = CheckpointConfig(every=4, keep=1)
        return config_of(base, tmp_path / name, pairs, checkpoint=every, tie_encoder_decoder=True)

    finetune.run(config("whole"))
    with monkeypatch.context() as patch:
        cut_at(patch, finetune, 7)
        with pytest.raises(CutError):
            finetune.run(config("cut"))
    finetune.run(config("cut"))
    whole, cut = (from_pretrained(tmp_path / name / "model") for name in ("whole", "cut"))
    assert_same_trees(cut[1], whole[1])
    assert lines_of(tmp_path / "cut") == lines_of(tmp_path / "whole")
    # The run was of one set of weights, and its model is.
    model, params = whole
    assert model.config.tie_encoder_decoder
    assert "embeddings" not in params["decoder"]["bert"]


@pytest.mark.slow
def test_several_seeds_are_each_its_own_run(base, pairs, tmp_path):
    finetune.run(config_of(base, tmp_path / "both", pairs, seed=3, seeds=2))
    finetune.run(config_of(base, tmp_path / "one", pairs, seed=4))
    (both,), (one,) = evals_of(tmp_path / "both")[-1:], evals_of(tmp_path / "one")[-1:]
    assert both["loss_seed4"] == pytest.approx(one["loss"], rel=1e-4)
    assert both["loss_seed3"] != both["loss_seed4"]


@pytest.mark.slow
def test_losses_and_scores_do_not_depend_on_the_devices(base, pairs, tmp_path):
    experiment = tmp_path / "experiment.py"
    config = config_of(base, tmp_path / "run", pairs, epochs=2, tie_encoder_decoder=True)
    experiment.write_text(
        "from bertjax.run_config import *\nfrom bertjax.lora_config import *\n"
        f"from bertjax.config import *\nCONFIG = {config!r}\n"
    )
    meshes = {
        "whole": (1, ()),
        "fsdp": (8, ("--mesh.fsdp", "4", "--mesh.data", "2")),
        "model": (8, ("--mesh.model", "2", "--mesh.fsdp", "2", "--mesh.data", "2")),
    }
    for name, (devices, options) in meshes.items():
        code, _, err = processes.bertjax(
            *("finetune", experiment, "--run-dir", tmp_path / name, *options), devices=devices
        )
        assert code == 0, err
    address = f"127.0.0.1:{processes.free_port()}"
    settings = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    command = ("bertjax.cli", "finetune", experiment, "--run-dir", tmp_path / "hosts")
    hosts = [
        processes.start(
            *command, "--distributed", devices=2, env=settings | {"JAX_PROCESS_ID": str(i)}
        )
        for i in range(2)
    ]
    for code, _, err in map(processes.finish, hosts):
        assert code == 0, err
    whole = lines_of(tmp_path / "whole")
    assert [line["split"] for line in whole] == ["train"] * 6 + ["eval"]
    for name in ("fsdp", "model", "hosts"):
        for got, want in zip(lines_of(tmp_path / name), whole, strict=True):
            assert got.pop("split") == want["split"]
            wanted = {key: value for key, value in want.items() if key != "split"}
            assert got == pytest.approx(wanted, rel=1e-4), name


@pytest.mark.slow
def test_a_run_goes_on_from_a_pair(run, base, pairs, tmp_path, capsys):
    config = config_of(run, tmp_path / "again", pairs, epochs=1)
    still = dataclasses.replace(config, optimizer=OptimizerConfig(learning_rate=1e-12))
    finetune.run(still)
    best = max(evals_of(run), key=lambda line: line["chrf"])
    assert evals_of(tmp_path / "again")[-1]["chrf"] == pytest.approx(best["chrf"])
    # Whole parts of it may be frozen, by name.
    rule = dataclasses.replace(config.optimizer, freeze=("encoder/embeddings", "decoder/cls"))
    finetune.run(dataclasses.replace(config, run_dir=str(tmp_path / "part"), optimizer=rule))
    before, after = (from_pretrained(x)[1] for x in (run, tmp_path / "part"))
    assert_same_trees(after["encoder"]["embeddings"], before["encoder"]["embeddings"])
    assert_same_trees(after["decoder"]["cls"], before["decoder"]["cls"])
    moved = after["decoder"]["bert"]["embeddings"]["word_embeddings"]["embedding"]
    kept = before["decoder"]["bert"]["embeddings"]["word_embeddings"]["embedding"]
    assert np.abs(np.asarray(moved) - np.asarray(kept)).max() > 0


@pytest.mark.slow
def test_untied_halves_start_alike(base, pairs, tmp_path):
    config = config_of(base, tmp_path / "run", pairs, epochs=1, eval_every=0)
    finetune.run(dataclasses.replace(config, optimizer=OptimizerConfig(learning_rate=1e-12)))
    model, params = EncoderDecoderModel.from_pretrained(tmp_path / "run")
    _, encoder = BertModel.from_pretrained(base)
    for half in (params["encoder"], params["decoder"]["bert"]):
        np.testing.assert_allclose(
            half["embeddings"]["word_embeddings"]["embedding"],
            encoder["embeddings"]["word_embeddings"]["embedding"],
            atol=1e-8,
        )
    tokenizer = BertTokenizer.from_pretrained(tmp_path / "run")
    ids = (tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id)
    config = model.config
    assert (config.decoder_start_token_id, config.eos_token_id, config.pad_token_id) == ids


# Bad input.


def test_bad_settings(base, pairs, run, tmp_path):
    config = config_of(base, tmp_path / "run", pairs)

    def refuses(message, **changes):
        with pytest.raises(InputError, match=message):
            finetune.run(dataclasses.replace(config, **changes))

    rank = dataclasses.replace(config.lora, rank=2)
    refuses("lora: there are no adapters for seq2seq; leave --lora.rank out", lora=rank)
    long = dataclasses.replace(config.task, target_length=96)
    refuses("task.target_length 96 is over the model's 95: lower it", task=long)
    long = dataclasses.replace(config.task, sequence_length=97)
    refuses("task.sequence_length 97 is over the model's 96: lower it", task=long)
    refuses(
        "tie_encoder_decoder: the halves of .* have weights of their own",
        init_from=str(run),
        tie_encoder_decoder=True,
    )
    other = TaskConfig("classification", (str(pairs),), label_column="source", text_columns=("id",))
    refuses("tie_encoder_decoder: is for seq2seq", task=other, tie_encoder_decoder=True)
    refuses("is an encoder-decoder; name a model that is one BERT", task=other, init_from=str(run))
    with pytest.raises(InputError, match=r"task.target_length must be at least 2; got 1"):
        TaskConfig(target_length=1)
    assert not (tmp_path / "run").exists()


def test_bad_examples(base, tmp_path, capsys):
    file = tmp_path / "bad.jsonl"
    file.write_text('{"source": "a b", "target": 5}\n')
    with pytest.raises(InputError, match="line 1: target 5 is not a text"):
        finetune.run(config_of(base, tmp_path / "run", file))
    file.write_text('{"source": "a b", "target": " "}\n')
    with pytest.raises(InputError, match="line 1: no label in 'target'"):
        finetune.run(config_of(base, tmp_path / "run", file))
    file.write_text('{"source": "a b", "goal": "b"}\n')
    with pytest.raises(InputError, match="no column 'target'; it has 'source', 'goal'"):
        finetune.run(config_of(base, tmp_path / "run", file))


def test_models_of_another_kind(base, run, pairs, capsys):
    for model, task, told in (
        (base, "seq2seq", "is a BertModel, but seq2seq needs a EncoderDecoderModel"),
        (run / "model", "snli", "is a EncoderDecoderModel, but snli needs a BertForSequenceCl"),
    ):
        arguments = ["evaluate", str(model), "--task.name", task, "--data", str(pairs)]
        assert cli.main(arguments) == 2
        assert told in capsys.readouterr().err
    assert cli.main(["predict", str(run), "--data", str(pairs), "--format", "conll"]) == 2

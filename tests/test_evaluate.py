"""`bertjax evaluate`: the scores of a run again, of any model for its task, on any devices."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
import transformers

from bertjax import cli, finetune, from_pretrained, save_pretrained
from bertjax.report import read_metrics
from bertjax.run_config import FinetuneConfig, OptimizerConfig, TaskConfig
from bertjax.tokenizer import BertTokenizer
from tests import processes
from tests.small_base import save_base, save_for_task

TASKS = Path(__file__).parent / "data" / "tasks"
SNLI = TASKS / "snli" / "dev.csv"
STSB = TASKS / "stsb" / "sts-dev.csv"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    """A finished run on snli."""
    directory = tmp_path_factory.mktemp("run") / "run"
    finetune.run(
        FinetuneConfig(
            str(directory),
            str(base),
            TaskConfig("snli", (str(SNLI),), (str(SNLI),), sequence_length=32),
            optimizer=OptimizerConfig(learning_rate=1e-3),
            batch_size=8,
            epochs=10,
            eval_every=5,
        )
    )
    return directory


@pytest.fixture(scope="module")
def snli(base, tmp_path_factory):
    """A random model with snli's labels."""
    return save_for_task(tmp_path_factory.mktemp("snli") / "model", base, "snli")


@pytest.fixture
def evaluated(tmp_path, capsys):
    """Run the command; return its file."""

    def call(*arguments):
        output = tmp_path / "scores.json"
        code = cli.main(["evaluate", *map(str, arguments), "--output", str(output), "--overwrite"])
        assert code == 0, capsys.readouterr().err
        return json.loads(output.read_text())

    return call


@pytest.fixture
def refused(capsys):
    """Run the command; return the one line that it refuses with."""

    def call(*arguments):
        capsys.readouterr()
        assert cli.main(["evaluate", *map(str, arguments)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        line = captured.err.splitlines()[-1]
        assert line.startswith("bertjax: ")
        return line

    return call


def test_a_run_has_the_score_of_its_best_step(run, evaluated, capsys):
    scores = [line["accuracy"] for line in read_metrics(run) if line["split"] == "eval"]
    assert scores[0] < max(scores)
    found = evaluated(run, "--batch-size", "5")
    assert found["scores"] == {"accuracy": max(scores)}
    assert found["task"] == "snli"
    assert found["data"] == [str(SNLI)]
    assert (found["examples"], found["left_out"]) == (12, 0)
    assert capsys.readouterr().out == f"accuracy  {max(scores):.4f}\n"
    assert evaluated(run / "model", "--task.name", "snli", "--data", SNLI)["examples"] == 12


def test_the_command_line_has_the_last_word(run, evaluated, tmp_path):
    with SNLI.open() as file:
        rows = list(csv.DictReader(file))
    own = tmp_path / "own.csv"
    with own.open("w") as file:
        table = csv.writer(file)
        table.writerow(["a", "b", "c"])
        table.writerows([r["premise"], r["hypothesis"], r["label"]] for r in rows[:7])
    options = ("--task.text-columns", "a", "b", "--task.label-column", "c", "--data", own)
    assert evaluated(run, *options)["examples"] == 7


def test_regression_is_what_transformers_and_scipy_get(base, tmp_path, evaluated):
    model = save_for_task(tmp_path / "model", base, "stsb")
    found = evaluated(model, "--task.name", "stsb", "--data", STSB, "--batch-size", "5")
    rows = [line.split("\t") for line in STSB.read_text().splitlines()]
    peer = transformers.AutoModelForSequenceClassification.from_pretrained(model).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    texts = [row[5] for row in rows], [row[6] for row in rows]
    options = {"truncation": True, "max_length": 96, "padding": True, "return_tensors": "pt"}
    batch = tokenizer(*texts, **options)
    with torch.no_grad():
        numbers = peer(**batch).logits[:, 0].numpy()
    actual = [float(row[4]) for row in rows]
    assert found["scores"] == pytest.approx(
        {
            "pearson": scipy.stats.pearsonr(numbers, actual).statistic,
            "spearman": scipy.stats.spearmanr(numbers, actual).statistic,
        },
        abs=1e-5,
    )


def test_labels_are_those_of_the_model_whatever_their_order(base, snli, tmp_path, evaluated):
    order = [2, 0, 1]
    names = ("Contradiction", "ENTAILMENT", "Neutral")
    _, params = from_pretrained(snli)
    params["classifier"] = {
        "kernel": params["classifier"]["kernel"][:, np.array(order)],
        "bias": params["classifier"]["bias"][np.array(order)],
    }
    other = save_for_task(tmp_path / "other", base, "snli", id2label=names)
    moved, _ = from_pretrained(other)
    save_pretrained(other, moved, params, BertTokenizer.from_pretrained(base))
    nameless = save_for_task(tmp_path / "nameless", base, "snli", id2label=(), num_labels=3)
    options = ("--task.name", "snli", "--data", SNLI)
    expected = evaluated(snli, *options)["scores"]
    assert 0 < expected["accuracy"] < 1
    assert evaluated(other, *options)["scores"] == expected
    assert evaluated(nameless, *options)["scores"] == expected


def test_a_table_with_the_models_own_labels(base, tmp_path, evaluated):
    model = save_for_task(tmp_path / "m", base, "classification", id2label=("up", "down"))
    table = tmp_path / "t.csv"
    table.write_text("text,label\nhello there,down\nno,up\nyes,down\n")
    found = evaluated(model, "--task.name", "classification", "--data", table)
    assert found["examples"] == 3
    table.write_text("text,label\nhello there,1\nno,0\nyes,1\n")
    again = evaluated(model, "--task.name", "classification", "--data", table)
    assert again["scores"] == found["scores"]


def test_bad_rows_are_counted(snli, tmp_path, evaluated):
    table = tmp_path / "t.csv"
    table.write_text("premise,hypothesis,label\na,b,neutral\nc,d,what\n")
    found = evaluated(snli, "--task.name", "snli", "--data", table, "--skip-bad")
    assert (found["examples"], found["left_out"]) == (1, 1)


TAGS = "The DT\ndog NN\nruns VBZ\n\nA DT\ncat NN\nsits VBZ\n"
TAGGING = """from bertjax.run_config import FinetuneConfig, TaskConfig
CONFIG = FinetuneConfig("run", task=TaskConfig("token_classification"), batch_size=2, epochs=1)
"""


@pytest.fixture
def tagging(base, tmp_path):
    """Arguments of a run on words with tags of any kind, and its directory."""
    file, experiment = tmp_path / "pos.conll", tmp_path / "tagging.py"
    file.write_text(TAGS)
    experiment.write_text(TAGGING)
    settings = {
        "run-dir": tmp_path / "run",
        "init-from": base,
        "task.train": file,
        "task.validation": file,
        "task.sequence-length": 32,
    }
    options = [str(part) for name, value in settings.items() for part in (f"--{name}", value)]
    return ["finetune", str(experiment), *options], tmp_path / "run"


@pytest.mark.parametrize("scheme", ["plain", "auto"])
def test_plain_tags_are_scored_by_words(scheme, tagging, evaluated):
    arguments, directory = tagging
    assert cli.main([*arguments, "--task.scheme", scheme]) == 0
    (line,) = [line for line in read_metrics(directory) if line["split"] == "eval"]
    found = evaluated(directory)["scores"]
    assert found == {"token_accuracy": line["token_accuracy"]}


def test_a_run_has_the_metrics_that_it_is_told(tagging, evaluated, refused, capsys):
    arguments, directory = tagging
    options = ("--task.scheme", "plain", "--task.metrics", "entity_f1")
    assert cli.main([*arguments, *options]) == 2
    told = "task.metrics: entity_f1 does not fit the labels: 'DT' is no tag of entities"
    assert told in capsys.readouterr().err.splitlines()[-1]
    file = Path(arguments[arguments.index("--task.train") + 1])
    file.write_text(TAGS.replace("DT", "O").replace("NN", "S-NN").replace("VBZ", "O"))
    assert cli.main([*arguments, *options, "token_accuracy"]) == 0
    names = [name for name in read_metrics(directory)[-1] if name not in ("step", "split", "time")]
    assert list(evaluated(directory)["scores"]) == names
    assert names[0] == "f1"
    assert "NN_support" in names
    found = evaluated(directory, "--task.metrics", "token_accuracy")["scores"]
    assert list(found) == ["token_accuracy"]
    line = refused(directory, "--task.metrics", "accuracy")
    assert "choose from token_accuracy, entity_f1, entity_f1_strict" in line


def test_f1_of_three_classes_is_refused_before_anything_runs(snli, refused):
    line = refused(snli, "--task.name", "snli", "--data", SNLI, "--task.metrics", "f1")
    assert "task.metrics: f1 does not fit the labels: f1 scores tasks of two classes" in line


def test_models_that_do_not_fit(base, run, snli, tmp_path, refused):
    data = ("--data", SNLI)
    assert f"{base}: is a BertModel, but snli needs a BertForSequenceClassification" in refused(
        base, "--task.name", "snli", *data
    )
    assert "is a BertForSequenceClassification, but csqa needs" in refused(
        run, "--task.name", "csqa"
    )
    line = refused(run, "--task.name", "mrpc", *data)
    assert "its labels are ['entailment', 'neutral', 'contradiction'], those of mrpc are" in line
    for name in ("stsb", "goemotions"):
        line = refused(run, "--task.name", name)
        assert "was made for single_label_classification outputs (3 of them)" in line
    line = refused(snli, *data)
    assert f"{snli}: is no fine-tuning run, which would know its task" in line
    two = save_for_task(tmp_path / "two", base, "snli", id2label=(), num_labels=2)
    assert "its labels are ['LABEL_0', 'LABEL_1']" in refused(two, "--task.name", "snli", *data)


def test_runs_that_have_no_model_yet(run, base, tmp_path, refused):
    unfinished = tmp_path / "unfinished"
    (unfinished / "checkpoints").mkdir(parents=True)
    (unfinished / "config.json").write_text((run / "config.json").read_text())
    told = "this fine-tuning run has no model/ yet: it is written at the first evaluation"
    assert f"{unfinished}: {told}" in refused(unfinished)
    with pytest.raises(ValueError, match=told):
        from_pretrained(unfinished)
    pretraining = tmp_path / "pretraining"
    (pretraining / "checkpoints").mkdir(parents=True)
    (pretraining / "config.json").write_text('{"run_dir": "x", "model": {}}')
    assert f"{pretraining}: is no fine-tuning run" in refused(pretraining)


def test_bad_settings(run, snli, tmp_path, refused):
    assert "the run directory, model directory or hub name comes first" in refused()
    assert "comes first" in refused("--data", SNLI)
    assert "/no/such: no such model directory or file" in refused("/no/such")
    assert "Unrecognized options: --dat" in refused(run, "--dat", SNLI)
    assert "batch_size must be at least 1; got 0" in refused(run, "--batch-size", "0")
    assert "does not fit" in refused(run, "--mesh.fsdp", "7")
    assert "data: name the examples to score" in refused(snli, "--task.name", "snli")
    assert "no file matches no.csv" in refused(run, "--data", "no.csv")
    empty = tmp_path / "empty.csv"
    empty.write_text("premise,hypothesis,label\n")
    assert "no example in the validation split" in refused(run, "--data", empty)
    empty.write_text("premise,hypothesis\na,b\n")
    assert "line 1: no column 'label'" in refused(run, "--data", empty)
    line = refused(run, "--data", empty, "--split", "test")
    assert "the examples have no labels to compare with" in line


def test_outputs_in_the_way(run, tmp_path, refused):
    there = tmp_path / "there.json"
    there.write_text("precious")
    assert "is there already" in refused(run, "--output", there)
    assert "cannot be written" in refused(run, "--output", there / "below.json")
    assert f"{tmp_path}: is a directory; name a file" in refused(run, "--output", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["there.json"]
    assert there.read_text() == "precious"


def commands(models, output):
    """Evaluate two models, and predict with both."""
    found = []
    for name, data in DEVICE_TASKS.items():
        options = [str(models / name), "--task.name", name, "--data", str(TASKS / data)]
        options += ["--batch-size", "8", "--task.sequence-length", "64"]
        found += [
            ["evaluate", *options, "--output", str(output / f"{name}.json")],
            ["predict", *options, "--output", str(output / f"{name}.jsonl")],
        ]
    return found


# 11 sentences, and windows of 18 questions: nothing that 8 rows divide.
DEVICE_TASKS = {"wnut17": "wnut17/wnut17train.conll", "squad_v2": "squad/squad2.json"}


def files(directory):
    """The scores and the predictions that the commands wrote, with numbers apart from the rest."""
    found = {}
    for name in DEVICE_TASKS:
        found[name] = json.loads((directory / f"{name}.json").read_text())["scores"]
        lines = (directory / f"{name}.jsonl").read_text().splitlines()
        found[name, "predictions"] = [json.loads(line) for line in lines]
    return found


def assert_alike(found, expected):
    """Equal, but for the last digits of numbers."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_alike(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-5)
    else:
        assert found == expected


@pytest.mark.slow
def test_nothing_depends_on_the_devices(base, tmp_path):
    for name in DEVICE_TASKS:
        save_for_task(tmp_path / name, base, name)

    def start(output, *options, process=0, **settings):
        output.mkdir(exist_ok=True)
        calls = [call + (list(options) if "evaluate" in call else []) for call in listed(output)]
        calls[0] += ["--distributed"] if "env" in settings else []
        return processes.start("tests.workers.infer", json.dumps(calls), **settings)

    def listed(output):
        return commands(tmp_path, output)

    expected = None
    for devices in (1, 2, 8):
        output = tmp_path / f"on{devices}"
        mesh = ("--mesh.fsdp", "4") if devices == 8 else ()
        code, _, err = processes.finish(start(output, *mesh, devices=devices))
        assert code == 0, err
        expected = expected or files(output)
        assert len(expected["wnut17", "predictions"]) == 11
        assert_alike(files(output), expected)
    together = tmp_path / "together"
    address = f"127.0.0.1:{processes.free_port()}"
    settings = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    pair = [start(together, devices=2, env=settings | {"JAX_PROCESS_ID": str(i)}) for i in range(2)]
    for code, _, err in map(processes.finish, pair):
        assert code == 0, err
    assert_alike(files(together), expected)

"""`bertjax predict`: what transformers predicts, in files that others read."""

import collections
import csv
import json
import re
import shutil
import string
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from bertjax import cli, finetune, predict, submissions
from bertjax.data.task_data import read_task
from bertjax.data.tasks import find_task
from bertjax.report import read_metrics
from bertjax.run_config import FinetuneConfig, OptimizerConfig, TaskConfig
from bertjax.scoring import Scored
from tests.glue_files import write_glue
from tests.small_base import save_base, save_for_task

TASKS = Path(__file__).parent / "data" / "tasks"
DATA = {
    "banking77": "banking77/train.csv",
    "snli": "snli/dev.csv",
    "stsb": "stsb/sts-dev.csv",
    "goemotions": "goemotions/dev.tsv",
    "csqa": "csqa/dev_rand_split.jsonl",
    "wnut17": "wnut17/wnut17train.conll",
    "squad": "squad/new_wiki.json",
    "squad_v2": "squad/squad2.json",
}
# Of the models, where they are not those of the task in its order.
LABELS = {
    "banking77": read_task("banking77", str(TASKS / DATA["banking77"])).labels,
    "mnli": ("CONTRADICTION", "Neutral", "entailment"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Random models of some tasks, made when they are asked for."""
    base = save_base(tmp_path_factory.mktemp("base"))
    directory = tmp_path_factory.mktemp("models")

    def model(name):
        if not (directory / name).exists():
            fields = {"id2label": LABELS[name]} if name in LABELS else {}
            save_for_task(directory / name, base, name, **fields)
        return directory / name

    return model


@pytest.fixture
def predicted(models, tmp_path, capsys):
    """Run the command on a task's model; return its file's text, its directory, or what it says."""

    def call(name, *options, data=None, output="out.jsonl"):
        arguments = ["predict", models(name), "--task.name", name]
        arguments += ["--data", data or TASKS / DATA[name], *options]
        arguments += ["--output", tmp_path / output] if output else []
        capsys.readouterr()
        assert cli.main([str(a) for a in arguments]) == 0, capsys.readouterr().err
        written = tmp_path / output
        if not output:
            return capsys.readouterr().out
        return written if written.is_dir() else written.read_text()

    return call


@pytest.fixture
def refused(models, capsys):
    """Run the command on a task's model; return the one line that it refuses with."""

    def call(name, *options):
        arguments = ["predict", models(name), "--task.name", name, *options]
        capsys.readouterr()
        assert cli.main([str(a) for a in arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        return captured.err.splitlines()[-1]

    return call


def lines_of(text):
    return [json.loads(line) for line in text.splitlines()]


def peer_of(model, kind):
    """transformers' own model of this directory, and its tokenizer with these settings."""
    peer = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(model).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)

    def encode(*texts, **settings):
        defaults = {"max_length": 96, "truncation": True, "padding": True, "return_tensors": "pt"}
        return tokenizer(*texts, **defaults | settings)

    return peer.requires_grad_(False), encode


@pytest.mark.parametrize("name", ["banking77", "snli", "stsb", "goemotions"])
def test_texts_are_classified_as_by_transformers(name, models, predicted):
    found = lines_of(predicted(name, "--batch-size", "5"))
    examples = read_task(name, str(TASKS / DATA[name]), labels=LABELS.get(name, ())).examples
    assert [line["id"] for line in found] == [example.id for example in examples]
    texts = [[e.text for e in examples]]
    if examples[0].text_pair is not None:
        texts.append([e.text_pair for e in examples])
    peer, encode = peer_of(models(name), "SequenceClassification")
    logits = peer(**encode(*texts)).logits.double()
    if name == "stsb":
        numbers = [line["prediction"] for line in found]
        assert numbers == pytest.approx(logits[:, 0].tolist(), abs=2e-5)
        return
    likely = (torch.sigmoid(logits) if name == "goemotions" else logits.softmax(-1)).numpy()
    ours = np.array([list(line["probabilities"].values()) for line in found])
    np.testing.assert_allclose(ours, likely, atol=2e-5)
    names = [peer.config.id2label[i] for i in range(likely.shape[-1])]
    assert list(found[0]["probabilities"]) == names
    if name == "goemotions":
        held = [[n for n, p in zip(names, row, strict=True) if p > 0.5] for row in likely]
        assert [line["prediction"] for line in found] == held
    else:
        assert [line["prediction"] for line in found] == [names[i] for i in likely.argmax(-1)]


def test_choices_are_made_as_by_transformers(models, predicted):
    found = lines_of(predicted("csqa", "--with-inputs"))
    examples = read_task("csqa", str(TASKS / DATA["csqa"])).examples
    peer, encode = peer_of(models("csqa"), "MultipleChoice")
    for line, example in zip(found, examples, strict=True):
        batch = encode(*map(list, zip(*example.pairs, strict=True)))
        logits = peer(**{k: v[None] for k, v in batch.items()}).logits[0].double()
        ours = list(line["probabilities"].values())
        np.testing.assert_allclose(ours, logits.softmax(-1).numpy(), atol=2e-5)
        assert line["prediction"] == "ABCDE"[int(logits.argmax())]
        assert (line["text"], line["choice 4"]) == example.pairs[4]


def test_words_are_tagged_as_by_transformers(models, predicted):
    options = ("--task.sequence-length", "20")
    found = lines_of(predicted("wnut17", "--with-inputs", *options))
    examples = read_task("wnut17", str(TASKS / DATA["wnut17"])).examples
    peer, encode = peer_of(models("wnut17"), "TokenClassification")
    cut = 0
    for line, example in zip(found, examples, strict=True):
        assert line["words"] == list(example.words)
        batch = encode(line["words"], is_split_into_words=True, max_length=20)
        likely = peer(**batch).logits[0].softmax(-1)
        begun = {}
        for place, word in enumerate(batch.word_ids()):
            if word is not None:
                begun.setdefault(word, likely[place])
        tags = zip(line["prediction"], line["probabilities"], strict=True)
        for word, (tag, sure) in enumerate(tags):
            if word in begun:
                assert tag == peer.config.id2label[int(begun[word].argmax())]
                assert sure == pytest.approx(float(begun[word].max()), abs=2e-5)
            else:
                assert (tag, sure) == ("O", None)
                cut += 1
    assert cut > 0
    conll = predicted("wnut17", *options, output="out.conll")
    sentences = conll.removesuffix("\n\n").split("\n\n")
    rows = [[tuple(row.split("\t")) for row in s.splitlines()] for s in sentences]
    assert rows == [list(zip(e["words"], e["prediction"], strict=True)) for e in found]


def normalized(text):
    """What the official scripts compare: lower case, no punctuation, no articles, single spaces."""
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def official(document, answers):
    """Exact match and F1 of a predictions.json, as the official scripts define them."""
    exact, f1 = [], []
    for article in document["data"]:
        for question in (q for p in article["paragraphs"] for q in p["qas"]):
            ours = normalized(answers[question["id"]])
            gold = [normalized(a["text"]) for a in question["answers"]] or [""]
            exact.append(max(ours == g for g in gold))
            f1.append(max(overlap(ours.split(), g.split()) for g in gold))
    return np.mean(exact), np.mean(f1)


def overlap(ours, gold):
    if not ours or not gold:
        return float(ours == gold)
    shared = (collections.Counter(ours) & collections.Counter(gold)).total()
    return 2 * shared / (len(ours) + len(gold))


@pytest.mark.parametrize("name", ["squad", "squad_v2"])
def test_answers_score_as_by_the_official_script(name, models, predicted, tmp_path):
    arguments = ["evaluate", models(name), "--task.name", name, "--data", TASKS / DATA[name]]
    assert cli.main([str(a) for a in [*arguments, "--output", tmp_path / "scores"]]) == 0
    scores = json.loads((tmp_path / "scores").read_text())["scores"]
    document = json.loads((TASKS / DATA[name]).read_text())
    exact = scores["exact_match" if name == "squad" else "exact"]

    def answers(directory):
        return json.loads((directory / "predictions.json").read_text())

    plain = predicted(name, "--format", "squad", output="plain")
    assert official(document, answers(plain)) == pytest.approx((exact, scores["f1"]))
    files = {"predictions.json", "nbest_predictions.json"}
    if name == "squad":
        assert {path.name for path in plain.iterdir()} == files
        return
    assert {path.name for path in plain.iterdir()} == files | {"null_odds.json"}
    odds = json.loads((plain / "null_odds.json").read_text())
    refused = {question for question, text in answers(plain).items() if not text}
    assert refused == {question for question, value in odds.items() if value > 0}
    # The threshold is the odds of a question, which other batches change in the last digits.
    threshold = ("--null-threshold", scores["best_f1_thresh"] + 1e-5)
    tuned = predicted(name, "--format", "squad", *threshold, output="tuned")
    assert official(document, answers(tuned))[1] == pytest.approx(scores["best_f1"])
    assert scores["best_f1"] > scores["f1"]
    lines = lines_of(predicted(name, *threshold, "--with-inputs"))
    assert {line["id"]: line["prediction"] for line in lines} == answers(tuned)
    for line in lines:
        assert line["context"][line["start"] : line["end"]] == line["prediction"]
        assert line["null_odds"] == pytest.approx(odds[line["id"]], abs=1e-5)
        assert sum(best["probability"] for best in line["n_best"]) == pytest.approx(1, abs=1e-4)


def test_evaluate_refuses_questions_as_predict_does(models, tmp_path, capsys):
    """By the threshold that the model was tuned to, or the one given; the search stays."""
    data, tuned = TASKS / DATA["squad_v2"], tmp_path / "tuned"
    output = tmp_path / "scores"

    def evaluated(model, *options):
        options = ["--task.name", "squad_v2", "--data", data, "--output", output, *options]
        capsys.readouterr()
        assert cli.main([str(a) for a in ["evaluate", model, *options, "--overwrite"]]) == 0
        return json.loads(output.read_text()), capsys.readouterr().err

    shutil.copytree(models("squad_v2"), tuned)
    plain, said = evaluated(tuned)
    assert "no-answer threshold: 0.0000, as the model was tuned to none" in said
    threshold = plain["scores"]["best_f1_thresh"]
    config = json.loads((tuned / "config.json").read_text())
    (tuned / "config.json").write_text(json.dumps(config | {"null_threshold": threshold}))
    found, said = evaluated(tuned)
    assert f"no-answer threshold: {threshold:.4f}, which the model was tuned to" in said
    assert found["null_threshold"] == pytest.approx(threshold, abs=1e-4)
    best = {name: value for name, value in plain["scores"].items() if name.startswith("best_")}
    assert found["scores"]["f1"] == pytest.approx(best["best_f1"]) != plain["scores"]["f1"]
    assert {name: found["scores"][name] for name in best} == pytest.approx(best, abs=1e-4)
    predictions = ["predict", tuned, "--task.name", "squad_v2", "--data", data]
    assert cli.main([str(a) for a in predictions]) == 0
    answers = {line["id"]: line["prediction"] for line in lines_of(capsys.readouterr().out)}
    exact, f1 = official(json.loads(data.read_text()), answers)
    assert (found["scores"]["exact"], found["scores"]["f1"]) == pytest.approx((exact, f1))
    found, said = evaluated(tuned, "--null-threshold", "-1e9")
    assert "as given" in said
    assert (found["scores"]["NoAns_f1"], found["scores"]["HasAns_f1"]) == (1, 0)


@pytest.mark.slow
def test_the_threshold_is_what_the_model_was_tuned_to(models, tmp_path, capsys):
    run = tmp_path / "run"
    rows = str(TASKS / DATA["squad_v2"])
    finetune.run(
        FinetuneConfig(
            str(run),
            str(models("squad_v2")),
            TaskConfig("squad_v2", (rows,), (rows,), sequence_length=96),
            optimizer=OptimizerConfig(learning_rate=1e-12),
            batch_size=64,
            epochs=1,
        )
    )
    (best,) = [line for line in read_metrics(run) if line["split"] == "eval"]
    threshold = best["best_f1_thresh"]
    assert best["best_f1"] > best["f1"]  # which is that of the threshold 0
    for model in (run, run / "model"):
        command = ["predict", str(model), "--data", rows, "--task.name", "squad_v2"]
        capsys.readouterr()
        assert cli.main([*command, "--task.sequence-length", "96"]) == 0
        captured = capsys.readouterr()
        assert f"no-answer threshold: {threshold:.4f}, which the model was" in captured.err
        found = {line["id"]: line["prediction"] for line in lines_of(captured.out)}
        assert official(json.loads(Path(rows).read_text()), found)[1] == pytest.approx(
            best["best_f1"]
        )
    assert cli.main([*command, "--null-threshold", "-1e9"]) == 0
    assert not any(line["prediction"] for line in lines_of(capsys.readouterr().out))
    config = transformers.AutoConfig.from_pretrained(run / "model")
    assert config.null_threshold == threshold


def test_tables_hold_what_the_lines_hold(predicted):
    lines = lines_of(predicted("snli", "--with-inputs"))
    rows = list(csv.DictReader(predicted("snli", "--with-inputs", output="o.csv").splitlines()))
    for row, line in zip(rows, lines, strict=True):
        assert list(row)[:4] == ["id", "text", "text_pair", "prediction"]
        assert row["text_pair"] == line["text_pair"]
        assert row["prediction"] == line["prediction"]
        assert float(row["p(neutral)"]) == line["probabilities"]["neutral"]
    lines = lines_of(predicted("goemotions", output="emotions.jsonl"))
    rows = list(csv.DictReader(predicted("goemotions", output="emotions.csv").splitlines()))
    assert [row["prediction"] for row in rows] == [",".join(line["prediction"]) for line in lines]


def test_predictions_can_be_read_as_labels(predicted, tmp_path):
    predicted("goemotions", "--with-inputs", output="o.csv")
    lines = lines_of(predicted("goemotions", output="o.jsonl"))
    labels = find_task("goemotions").labels
    task = find_task("multi_label").with_columns("text", "prediction")
    data = read_task(task, str(tmp_path / "o.csv"), labels=labels)
    read = [[labels[i] for i in example.label] for example in data.examples]
    assert read == [line["prediction"] for line in lines]


def test_plain_text_a_line_is_a_text(predicted, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text('text\nA "quote,\ta tab\n\n I lost my card\r\n', newline="")
    found = lines_of(predicted("banking77", "--with-inputs", data=texts, output=""))
    assert [(line["id"], line["text"]) for line in found] == [
        ("0", "text"),
        ("1", 'A "quote,\ta tab'),
        ("3", " I lost my card"),
    ]
    emotions = lines_of(predicted("goemotions", data=texts, output=""))
    assert [line["id"] for line in emotions] == ["0", "1", "3"]
    layout = ("--task.layout", "quoted_tsv")
    texts.write_text("hello\t27\tx\n")
    (emotion,) = lines_of(predicted("goemotions", *layout, data=texts, output=""))
    assert emotion["id"] == "x"
    table = tmp_path / "texts.csv"
    table.write_text('text\n" I lost my card"\n')
    (again,) = lines_of(predicted("banking77", data=table, output=""))
    assert again["probabilities"] == pytest.approx(found[2]["probabilities"], abs=2e-6)


@pytest.mark.parametrize("name", ["snli", "csqa", "wnut17"])
def test_rows_over_what_the_model_takes_are_bad(name, refused, predicted, tmp_path):
    long = " ".join(["word"] * 300)
    file, place = {
        "snli": ("t.csv", "line 2"),
        "csqa": ("t.jsonl", "line 1"),
        "wnut17": ("t.conll", "line 1"),
    }[name]
    choices = [{"label": label, "text": "word"} for label in "ABCDE"]
    text = {
        "snli": f"premise,hypothesis\n{long},so\nso,so\n",
        "csqa": json.dumps({"question": {"stem": long, "choices": choices}})
        + "\n"
        + json.dumps({"question": {"stem": "so", "choices": choices}}),
        "wnut17": long.replace(" ", "\n") + "\n\nso\n",
    }[name]
    (tmp_path / file).write_text(text)
    line = refused(name, "--data", str(tmp_path / file))
    assert f"{tmp_path / file}, {place}: " in line
    assert "tokens, where the model takes 96; have texts cut" in line
    assert len(lines_of(predicted(name, "--skip-bad", data=tmp_path / file))) == 1
    cut = ("--task.sequence-length", "90", "--overwrite")
    assert len(lines_of(predicted(name, *cut, data=tmp_path / file))) == 2


def test_labels_may_be_anything(predicted, tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("premise,hypothesis,label\na,b,what\nc,d,\ne,f,neutral\n")
    assert len(lines_of(predicted("snli", data=table))) == 3
    words = tmp_path / "words.conll"
    words.write_text("He NNP\nran VBD\n\nShe PRP\n")
    found = lines_of(predicted("wnut17", data=words, output=""))
    assert [len(line["prediction"]) for line in found] == [2, 1]
    document = json.loads((TASKS / DATA["squad_v2"]).read_text())
    for paragraph in document["data"][0]["paragraphs"]:
        for question in paragraph["qas"]:
            question["answers"] = [{"text": "nowhere", "answer_start": 3}]
    questions = tmp_path / "q.json"
    questions.write_text(json.dumps(document))
    assert lines_of(predicted("squad_v2", data=questions, output=""))


# Task: the file that GLUE wants, and the labels of six examples with the ids 0, 1, (2,) 0, 1, ...
GLUE = {
    "cola": ("CoLA.tsv", "0 1"),
    "sst2": ("SST-2.tsv", "0 1"),
    "mrpc": ("MRPC.tsv", "0 1"),
    "qqp": ("QQP.tsv", "0 1"),
    "wnli": ("WNLI.tsv", "0 1"),
    "qnli": ("QNLI.tsv", "entailment not_entailment"),
    "rte": ("RTE.tsv", "entailment not_entailment"),
    "mnli": ("MNLI-m.tsv", "entailment neutral contradiction"),
    "stsb": ("STS-B.tsv", "0.000 2.500 5.000"),
}


@pytest.mark.parametrize("name", GLUE)
def test_glue_gets_its_files(name, tmp_path):
    write_glue(tmp_path)
    directory = {"mnli": "MNLI"}.get(name, GLUE[name][0].removesuffix(".tsv"))
    # The model has the labels in the opposite order.
    order = find_task(name).labels[::-1]
    data = read_task(name, str(tmp_path / directory), "test", labels=order, with_labels=False)
    file, labels = GLUE[name]
    cycle = [-0.1, 2.5, 5.2] if name == "stsb" else range(len(labels.split()))[::-1]
    predictions = [cycle[i % len(cycle)] for i in range(6)]
    (path,) = submissions.output_files("glue", find_task(name), "test", tmp_path)
    assert path.name == file
    submissions.write(
        "glue",
        data,
        Scored(predictions, {}),
        None,
        [path],
        with_inputs=False,
        null_threshold=0.0,
    )
    wanted = [f"{i}\t{labels.split()[i % len(cycle)]}" for i in range(6)]
    assert path.read_text() == "\n".join(["index\tprediction", *wanted]) + "\n"


def test_glue_from_a_model_with_labels_in_another_order(models, predicted, tmp_path, refused):
    glue = tmp_path / "glue"
    write_glue(glue)
    options = ("--format", "glue", "--split", "test_mismatched")
    lines = lines_of(predicted("mnli", "--split", "test_mismatched", data=glue / "MNLI"))
    written = predicted("mnli", *options, data=glue / "MNLI", output="sub") / "MNLI-mm.tsv"
    rows = list(csv.DictReader(written.read_text().splitlines(), delimiter="\t"))
    assert list(lines[0]["probabilities"]) == ["contradiction", "neutral", "entailment"]
    assert rows == [{"index": row["id"], "prediction": row["prediction"]} for row in lines]
    test = glue / "MNLI" / "test_matched.tsv"
    test.write_text(test.read_text() + "broken\n")
    output = ("--output", tmp_path / "sub", "--format", "glue", "--skip-bad")
    assert "GLUE wants a prediction for every example" in refused("mnli", "--data", test, *output)
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["MNLI-mm.tsv"]


def test_what_is_there_stays_unless_told(predicted, refused, tmp_path, monkeypatch):
    data = ("--data", TASKS / DATA["snli"])
    output = tmp_path / "deep" / "below" / "out.csv"
    first = predicted("snli", output=output)
    assert "is there already" in refused("snli", *data, "--output", output)
    output.write_text("old")
    assert predicted("snli", "--overwrite", output=output) == first

    def full(*arguments, **options):
        arguments[4][0].write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(predict.submissions, "write", full)
    line = refused("snli", *data, "--output", output, "--overwrite")
    assert f"{output.parent}: cannot be written (No space left on device)" in line
    assert [path.name for path in output.parent.iterdir()] == ["out.csv"]
    assert output.read_text() == first


def test_bad_settings(refused, tmp_path):
    data = ("--data", TASKS / DATA["snli"])
    assert "data: name the examples to predict" in refused("snli")
    assert "out.tsv: ends in none of .csv, .jsonl" in refused("snli", *data, "--output", "out.tsv")
    assert "format: csv needs an output" in refused("snli", *data, "--format", "csv")
    for format, told in (
        ("glue", "snli is not in GLUE, whose tasks are cola,"),
        ("squad", "squad is for questions; snli is classification"),
        ("conll", "conll is for tagged words; snli is classification"),
    ):
        line = refused("snli", *data, "--output", tmp_path / "x", "--format", format)
        assert told in line
    lines = tmp_path / "lines.txt"
    lines.write_text("one\ntwo\n")
    assert "no column 'premise', 'hypothesis'; it has 'one'" in refused("snli", "--data", lines)
    assert f"{lines}: cannot be written ({lines} is a file)" in refused(
        "snli", *data, "--output", lines / "x.csv"
    )
    assert list(tmp_path.iterdir()) == [lines]

"""Every fault of the input is exit code 2 and one line, told before anything is compiled."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from bertjax import cli, pretrain
from bertjax.data.corpus import build_corpus
from bertjax.data.vocab import build_vocab
from bertjax.errors import InputError
from bertjax.heads import BertForPreTraining
from bertjax.pretrained import save_pretrained
from bertjax.run_config import CorpusConfig, PretrainConfig, VocabConfig
from tests import processes

EXPERIMENT = Path(__file__).parent / "workers" / "tiny_run.py"
ALICE = str(Path(__file__).parent / "data" / "text" / "alice.txt")
HOLMES = str(Path(__file__).parent / "data" / "text" / "holmes.txt")
CONFIG = cli.load_experiment(str(EXPERIMENT), PretrainConfig)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    directory = tmp_path_factory.mktemp("corpus")
    build_vocab(VocabConfig((ALICE,), str(directory / "vocab.txt"), vocab_size=600))
    build_corpus(
        CorpusConfig(
            (ALICE,),
            str(directory / "vocab.txt"),
            str(directory / "dataset"),
            validation_files=(HOLMES,),
            workers=1,
        )
    )
    return directory / "dataset"


@pytest.fixture(autouse=True)
def nothing_is_compiled(monkeypatch):
    """A fault is told before the training step, or even the initial state, is compiled."""

    def compiled(*arguments, **options):
        raise AssertionError("the fault was not found before compilation")

    monkeypatch.setattr(pretrain, "make_train_step", compiled)
    monkeypatch.setattr(pretrain, "init_state", compiled)


@pytest.fixture
def refused(capsys, tmp_path, dataset):
    """Run the command in this process; return the one line it refuses with."""

    def run(*arguments, news=False):
        capsys.readouterr()
        code = cli.main([str(a) for a in arguments])
        captured = capsys.readouterr()
        assert code == 2
        assert captured.out == ""
        *before, line = captured.err.splitlines()
        assert news or not before, captured.err
        assert line.startswith("bertjax: ")
        assert "Traceback" not in captured.err
        return line

    return run


@pytest.fixture
def bad_run(refused, tmp_path, dataset):
    """As `refused`, for a pretraining run on the ready dataset, with further options."""

    def run(*options, run_dir=tmp_path / "run"):
        return refused(
            "pretrain", EXPERIMENT, "--data.dataset", dataset, "--run-dir", run_dir, *options
        )

    return run


@pytest.fixture
def bad_text(refused, tmp_path):
    """As `refused`, for a pretraining run from raw text."""

    def run(*options, **named):
        options = ("--data.validation-text", "--run-dir", tmp_path / "run", *options)
        return refused("pretrain", EXPERIMENT, *options, **named)

    return run


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (
            [],
            [
                "no command",
                "pretrain, finetune, evaluate, predict, fill-mask, generate, build-vocab",
            ],
        ),
        (["pretrian"], ["'pretrian'", "did you mean pretrain?"]),
        (["frobnicate"], ["'frobnicate'", "choose one of pretrain, finetune, evaluate, predict"]),
        (["pretrain"], ["the experiment file comes first"]),
        (["pretrain", "--batch-size", "3"], ["the experiment file comes first"]),
        (["evaluat"], ["did you mean evaluate?"]),
        (["evaluate"], ["the run directory, model directory or hub name comes first"]),
        (["predict", "--data", "a.csv"], ["hub name comes first"]),
        (["predict", "a", "--dat", "a.csv"], ["--dat", "--data", "predict --help"]),
        (["predict", "a", "b"], ["Unrecognized options: b"]),
        (["evaluate", "/no/a"], ["/no/a: no such model directory or file"]),
        (["pretrain", "nowhere.py"], ["nowhere.py: no such experiment file"]),
        (["build-vocab", "--files", "a.txt"], ["--output", "required", "build-vocab --help"]),
        (["build-corpus", "--fils", "a.txt"], ["--fils", "--files"]),
    ],
)
def test_usage(refused, arguments, parts):
    line = refused(*arguments)
    for part in parts:
        assert part in line


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--batch-sise", "8"], ["--batch-sise", "Perhaps you meant: --batch-size INT"]),
        (["--optimizer.learning-rat", "8"], ["--optimizer.learning-rat", "--optimizer.learning-"]),
        (["--batch-size", "eight"], ["--batch-size", "'eight'"]),
        (["--batch-size", "8.5"], ["--batch-size", "'8.5'"]),
        (["--batch-size"], ["--batch-size", "Missing value"]),
        (["--data.layout", "poem"], ["--data.layout", "'poem'", "'sentences', 'paragraphs'"]),
        (["--model.position-embedding-type", "x"], ["'absolute', 'relative_key'"]),
        (["--data.sequence-length", "64"], ["sequence_length 64", "max_position_embeddings 32"]),
        (["--batch-size", "0"], ["batch_size must be at least 1; got 0"]),
        (["--accumulation-steps", "3"], ["batch_size 8", "accumulation_steps 3"]),
        (["--checkpoint.every", "0"], ["checkpoint.every must be at least 1; got 0"]),
        (["--checkpoint.keep", "0"], ["checkpoint.keep must be at least 1; got 0"]),
        (["--model.num-attention-heads", "3"], ["hidden_size 32", "num_attention_heads 3"]),
        (["--mesh.fsdp", "7"], ["[-1, 7, 1]", "does not fit", "devices; change the mesh"]),
        (["--mesh.fsdp", "-1"], ["at most one -1", "[-1, -1, 1]"]),
        (["--model.hidden-act", "gleu"], ["hidden_act 'gleu'", "choose one of gelu, "]),
        (["--optimizer.warmup-steps", "99"], ["optimizer.warmup_steps", "60", "99"]),
        (["--model.vocab-size", "599"], ["has 600 pieces", "model.vocab_size is 599"]),
    ],
)
def test_options_of_a_run(bad_run, tmp_path, options, parts):
    line = bad_run(*options)
    for part in parts:
        assert part in line
    assert "---" not in line  # the option parser's frame
    # The directory is not claimed by a run that cannot be: the corrected command may use it.
    assert not (tmp_path / "run" / "config.json").exists()


def test_batch_that_the_mesh_does_not_divide():
    code, _, err = processes.bertjax(
        "pretrain", EXPERIMENT, "--run-dir", "/nowhere", "--batch-size", "9", devices=2
    )
    assert code == 2
    (line,) = err.splitlines()
    assert "batch_size 9 is not divisible by" in line
    assert "2 x 1 x 1: take a multiple of 2" in line


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"x = 1\n", ["must set CONFIG to a PretrainConfig"]),
        (b"CONFIG = 1\n", ["must set CONFIG to a PretrainConfig"]),
        (b"x = 1\ny = (\n", ["line 2", "was never closed"]),
        (b"x = '\xff'\n", ["line 1", "utf-8"]),
        (
            b"from bertjax.config import BertConfig\n\n"
            b"CONFIG = BertConfig(hidden_size=100, num_attention_heads=3)\n",
            ["line 3", "hidden_size 100 is not divisible by num_attention_heads 3"],
        ),
        (
            b"from bertjax.config import BertConfig\nCONFIG = BertConfig(hiden_size=100)\n",
            ["line 2", "'hiden_size'"],
        ),
        (b"import nowhere_to_be_found\n", ["line 1", "nowhere_to_be_found"]),
    ],
)
def test_experiment_files(refused, tmp_path, content, parts):
    path = tmp_path / "experiment.py"
    path.write_bytes(content)
    line = refused("pretrain", path)
    for part in [str(path), *parts]:
        assert part in line


def test_a_fault_in_a_file_that_the_experiment_imports(refused, tmp_path, monkeypatch):
    (tmp_path / "shared_by_runs.py").write_text("x = (\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "experiment.py"
    path.write_text("import shared_by_runs\n")
    assert f"{tmp_path / 'shared_by_runs.py'}, line 1: " in refused("pretrain", path)


def test_missing_text(bad_text, tmp_path):
    assert f"no file matches {tmp_path}/no.txt" in bad_text("--data.text", tmp_path / "no.txt")
    assert f"no file matches {tmp_path}/*.no" in bad_text("--data.text", tmp_path / "*.no")
    # The held-out text too is looked for before a vocabulary is learned.
    line = bad_text("--data.text", ALICE, "--data.validation-text", tmp_path / "no.txt")
    assert "no file matches" in line
    assert "give dataset" in bad_text("--data.text")
    assert not (tmp_path / "run").exists()


def test_text_that_is_not_utf8_names_file_and_byte(refused, bad_text, tmp_path):
    path = tmp_path / "latin1.txt"
    path.write_bytes(b"A good line.\n\nA caf\xe9.\n" * 3)
    fault = f"{path}, line 3: invalid UTF-8 at byte 19"
    assert fault in refused("build-vocab", "--files", path, "--output", tmp_path / "vocab.txt")
    assert fault in bad_text("--data.text", path, news=True)


def test_text_without_a_word(refused, bad_text, dataset, tmp_path):
    path = tmp_path / "empty.txt"
    for content in ("", "\n\n  \n"):
        path.write_text(content)
        line = refused("build-vocab", "--files", path, "--output", tmp_path / "vocab.txt")
        assert str(path) in line
        bad_text("--data.text", path, news=True)
        options = ("--vocab", dataset / "vocab.txt", "--output", tmp_path / "dataset")
        line = refused("build-corpus", "--files", path, *options, news=True)
        assert "no sentence in the input files" in line
        assert not (tmp_path / "dataset").exists()


def test_vocabularies(bad_text, bad_run, dataset, tmp_path):
    path = tmp_path / "vocab.txt"
    assert f"cannot read the vocabulary {path}" in bad_text("--data.vocab", path)
    path.write_text("")
    assert f"the vocabulary {path} is empty" in bad_text("--data.vocab", path)
    path.write_text("[PAD]\n[UNK]\n[CLS]\na\n")
    assert f"{path} lacks [SEP] [MASK]" in bad_text("--data.vocab", path)
    path.write_text((dataset / "vocab.txt").read_text() + "another\n")
    line = bad_run("--data.vocab", path)
    assert f"{dataset} was tokenized with another vocabulary than {path}" in line
    assert f"use {dataset}/vocab.txt" in line


def test_datasets(bad_run, dataset, tmp_path):
    assert f"no dataset directory {tmp_path}/no" in bad_run("--data.dataset", tmp_path / "no")
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    assert str(unfinished) in bad_run("--data.dataset", unfinished)


def test_run_directories(bad_run, tmp_path):
    path = tmp_path / "taken"
    path.write_text("a file")
    assert f"{path}: is not a directory" in bad_run(run_dir=path)
    assert "cannot be written (Not a directory)" in bad_run(run_dir=path / "below")
    strangers = tmp_path / "strangers"
    strangers.mkdir()
    (strangers / "thesis.doc").write_text("years of work")
    assert "holds thesis.doc but no config.json of a run" in bad_run(run_dir=strangers)
    other = tmp_path / "other"
    other.mkdir()
    for content in (b"nonsense", b"\xff", b"[]", b'{"model_type": "bert"}'):
        (other / "config.json").write_bytes(content)
        assert f"{other}/config.json: is not " in bad_run(run_dir=other)
    values = pretrain.run_dir._as_json(CONFIG)
    values["batch_size"] = 16
    values["model"]["hidden_size"] = 64
    (other / "config.json").write_text(json.dumps(values))
    line = bad_run(run_dir=other)
    assert f"{other}: belongs to another configuration" in line
    assert "batch_size is 16 there and 8 here" in line
    assert "model.hidden_size is 64 there and 32 here" in line


def test_runs_of_before_a_setting_existed(tmp_path):
    def config(**settings):
        data = dataclasses.replace(CONFIG.data, **settings)
        return dataclasses.replace(CONFIG, run_dir=str(tmp_path), data=data)

    values = pretrain.run_dir._as_json(config())
    del values["data"]["pack"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert pretrain.run_dir.check(config()) == tmp_path
    with pytest.raises(InputError, match=r"data\.pack is False there and True here"):
        pretrain.run_dir.check(config(pack=True))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system of the kernel's")
def test_directory_that_nobody_can_write(bad_run, refused, dataset):
    assert "/proc/nowhere/run" in bad_run(run_dir="/proc/nowhere/run")
    options = ("--files", ALICE, "--vocab", dataset / "vocab.txt")
    line = refused("build-corpus", *options, "--output", "/proc/nowhere/dataset")
    assert "cannot write /proc/nowhere/dataset" in line


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_read_only_file_system(bad_run, refused, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", disk]
    if (mounted := subprocess.run(command, capture_output=True)).returncode:
        pytest.skip(f"nothing can be mounted: {mounted.stderr.decode()}")
    try:
        assert "Read-only file system" in bad_run(run_dir=disk / "run")
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_directory_without_permission(bad_run, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    assert "Permission denied" in bad_run(run_dir=closed / "run")


def test_init_from(bad_run, tmp_path):
    assert f"{tmp_path}/no: no such model directory" in bad_run("--init-from", tmp_path / "no")
    unfinished = tmp_path / "unfinished"
    (unfinished / "checkpoints").mkdir(parents=True)
    line = bad_run("--init-from", unfinished)
    assert f"init_from {unfinished}: this run has no model/ yet" in line
    model = BertForPreTraining(CONFIG.model)
    ids = jnp.zeros((1, 2), jnp.int32)
    params = jax.jit(model.init)(jax.random.key(0), ids)["params"]
    save_pretrained(tmp_path / "model", model, params)
    line = bad_run("--init-from", tmp_path / "model", "--model.intermediate-size", "96")
    assert "bert.encoder.layer.0-1.intermediate.dense.bias [64], the config says [96]" in line
    weights = tmp_path / "model" / "model.safetensors"
    content = weights.read_bytes()
    for damaged in (content[: len(content) // 2], content[:5], b"", b"PK\3\4" + content):
        weights.write_bytes(damaged)
        line = bad_run("--init-from", tmp_path / "model")
        assert f"{weights}: not a whole safetensors file" in line
    assert not (tmp_path / "run" / "config.json").exists()


def test_outputs_that_are_in_the_way(refused, dataset, tmp_path):
    path = tmp_path / "taken"
    path.write_text("a file")
    line = refused("build-vocab", "--files", ALICE, "--output", tmp_path)
    assert f"{tmp_path} is a directory" in line
    small = ("build-vocab", "--files", ALICE, "--vocab-size", "600", "--output", path / "vocab.txt")
    assert f"cannot write {path}/vocab.txt" in refused(*small)
    options = ("--files", ALICE, "--vocab", dataset / "vocab.txt", "--output")
    assert f"{path} is a file" in refused("build-corpus", *options, path)
    assert f"cannot write {path}/below" in refused("build-corpus", *options, path / "below")
    assert path.read_text() == "a file"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--help"], "usage: bertjax COMMAND"),
        (["-h"], "usage: bertjax COMMAND"),
        (["--version"], "bertjax 0."),
        (["pretrain", "--help"], "--run-dir STR"),
        (["pretrain", str(EXPERIMENT), "--help"], "--optimizer.learning-rate FLOAT"),
        (["evaluate", "--help"], "--task.tag-column {None}|INT"),
        (["predict", "some/model", "--help"], "--null-threshold {None}|FLOAT"),
        (["build-vocab", "--help"], "--min-frequency INT"),
        (["build-corpus", "-h"], "--beam-runner STR"),
    ],
)
def test_help_and_version_exit_0(capsys, arguments, part):
    try:
        code = cli.main(arguments)
    except SystemExit as stopped:
        code = stopped.code
    captured = capsys.readouterr()
    assert code == 0
    assert part in captured.out
    assert captured.err == ""


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["pretrain", str(EXPERIMENT), "--batch-sise", "8"], "--batch-size"),
        (["predict", "runs/a", "--batch-sise", "8"], "--batch-size"),
    ],
)
def test_a_typo_is_answered_without_loading_jax(arguments, hint):
    program = (
        "import sys; from bertjax import cli; code = cli.main(sys.argv[1:]); "
        "print(sorted({'jax', 'flax', 'tensorflow_datasets'} & set(sys.modules))); sys.exit(code)"
    )
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(
        command, env=processes.environment(), cwd=processes.ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "[]\n")
    (line,) = done.stderr.splitlines()
    assert hint in line


def test_the_command_as_a_process():
    code, out, err = processes.bertjax("pretrain", "nowhere.py")
    assert (code, out, err) == (2, "", "bertjax: nowhere.py: no such experiment file\n")
    code, out, err = processes.bertjax("--version")
    assert (code, err) == (0, "")
    assert out.startswith("bertjax 0.")


def test_other_faults_are_not_hidden(monkeypatch):
    """A fault of the program stays an exception, with its traceback."""

    def broken(config):
        raise KeyError("a bug")

    monkeypatch.setattr(pretrain, "run", broken)
    with pytest.raises(KeyError, match="a bug"):
        cli.main(["pretrain", str(EXPERIMENT), "--run-dir", "/nowhere"])

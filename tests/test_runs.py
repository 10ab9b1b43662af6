"""Whole runs of the command as processes: kills, signals, damage, other meshes, a full disk."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests import processes

pytestmark = pytest.mark.slow

EXPERIMENT = Path(__file__).parent / "workers" / "tiny_run.py"
STEPS = 60


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Compiled programs, shared by the processes of this file."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, cache):
    """The dataset that an uninterrupted run has built, and the end of that run."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    code, _, err = pretrain(run_dir, cache)
    assert code == 0, err
    return run_dir


def arguments(run_dir, *extra):
    return ["bertjax.cli", "pretrain", EXPERIMENT, "--run-dir", run_dir, *extra]


def pretrain(run_dir, cache, *extra, devices=1):
    return processes.run(*arguments(run_dir, *extra), devices=devices, env=cache)


def from_dataset(whole, run_dir, *extra):
    return arguments(run_dir, "--data.dataset", whole / "dataset", *extra)


def steps_of(run_dir):
    return sorted(int(p.name) for p in (run_dir / "checkpoints").glob("*") if p.name.isdigit())


def end_of(run_dir):
    """Everything that a run ends with: the exported weights, and the state's fingerprint."""
    meta = run_dir / "checkpoints" / f"{STEPS:08d}" / "meta" / "metadata"
    return (run_dir / "model" / "model.safetensors").read_bytes(), json.loads(meta.read_text())


def test_the_run_directory_holds_everything(dataset):
    for name in ("config.json", "metrics.jsonl", "curves.png", "model/config.json"):
        assert (dataset / name).stat().st_size > 0
    assert list((dataset / "tensorboard").glob("events*"))
    assert (dataset / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    lines = [json.loads(line) for line in (dataset / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == list(range(10, 61, 10))
    final = lines[-1]
    assert (final["split"], final["step"]) == ("eval", STEPS)
    for name in ("mlm_accuracy", "common_token_accuracy", "sentence_accuracy_stderr"):
        assert 0 <= final[name] <= 1


def test_transformers_loads_the_exported_model(dataset):
    import transformers

    model, report = transformers.BertForPreTraining.from_pretrained(
        dataset / "model", output_loading_info=True
    )
    assert not any(report.values()), report
    assert model.config.vocab_size == 600
    tokenizer = transformers.AutoTokenizer.from_pretrained(dataset / "model")
    assert tokenizer("Alice")["input_ids"][0] == tokenizer.cls_token_id == 101


def test_running_again_after_the_end_does_nothing(dataset, cache):
    before = {p: p.stat().st_mtime_ns for p in dataset.rglob("*") if p.is_file()}
    code, _, err = pretrain(dataset, cache)
    assert code == 0
    assert "nothing to do" in err
    assert {p: p.stat().st_mtime_ns for p in dataset.rglob("*") if p.is_file()} == before


def test_sigkill_at_random_moments_changes_nothing(dataset, cache, tmp_path):
    run_dir = tmp_path / "run"
    command = from_dataset(dataset, run_dir, "--checkpoint.every", "3")
    rng = random.Random(0)
    kills = 0
    while kills < 4:
        child = processes.start(*command, env=cache)
        last = steps_of(run_dir)[-1] if (run_dir / "checkpoints").is_dir() else 0
        if kills == 1:  # in the middle of writing a checkpoint
            wait_for(child, lambda: list((run_dir / "checkpoints").glob("*tmp*")))
        else:
            wait_for(child, lambda last=last: (steps_of(run_dir) or [0])[-1] > last)
            time.sleep(rng.uniform(0, 0.05))
        finished = child.poll() is not None
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert not finished, child.stderr.read()
        kills += 1
    code, _, err = processes.run(*command, env=cache)
    assert code == 0, err
    assert "going on from step" in err
    assert end_of(run_dir) == end_of(dataset)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if line["split"] == "train"]
    assert steps == sorted(set(steps))


def wait_for(child, condition, timeout=120):
    deadline = time.monotonic() + timeout
    while not condition():
        assert child.poll() is None, child.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def test_sigterm_saves_and_exits_75(dataset, cache, tmp_path):
    run_dir = tmp_path / "run"
    # No regular checkpoints: what is there afterwards, the signal has saved.
    command = from_dataset(dataset, run_dir, "--checkpoint.every", "1000", "--log-every", "1")
    child = processes.start(*command, env=cache)
    wait_for(
        child,
        lambda: (
            (run_dir / "metrics.jsonl").is_file()
            and len((run_dir / "metrics.jsonl").read_text().splitlines()) >= 5
        ),
    )
    child.send_signal(signal.SIGTERM)
    code, _, err = processes.finish(child)
    assert code == 75, err
    assert "stopped by a signal" in err
    (step,) = steps_of(run_dir)
    assert 5 <= step < STEPS
    code, _, err = processes.run(*command, env=cache)
    assert code == 0, err
    assert f"going on from step {step} " in err
    assert end_of(run_dir) == end_of(dataset)


def interrupted(dataset, cache, run_dir):
    """A run whose last checkpoint, of the end, is gone: it has those of steps 40 and 50."""
    command = from_dataset(dataset, run_dir, "--checkpoint.keep", "3")
    code, _, err = processes.run(*command, env=cache)
    assert code == 0, err
    (run_dir / "DONE").unlink()
    shutil.rmtree(run_dir / "checkpoints" / "00000060")
    assert steps_of(run_dir) == [40, 50]
    return command


@pytest.mark.parametrize("damage", ["truncated", "bit flipped", "file gone"])
def test_damaged_newest_checkpoint_is_named_and_the_previous_one_used(
    damage, dataset, cache, tmp_path
):
    run_dir = tmp_path / "run"
    command = interrupted(dataset, cache, run_dir)
    files = [p for p in (run_dir / "checkpoints" / "00000050" / "state").rglob("*") if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    if damage == "truncated":
        largest.write_bytes(content[: len(content) // 2])
    elif damage == "bit flipped":
        content[len(content) // 2] ^= 0x10
        largest.write_bytes(content)
    else:
        largest.unlink()
    code, _, err = processes.run(*command, env=cache)
    assert code == 0, err
    assert "checkpoint of step 50 is damaged" in err
    assert "going on from step 40" in err
    assert end_of(run_dir) == end_of(dataset)


def test_every_checkpoint_damaged_is_one_clear_line(dataset, cache, tmp_path):
    run_dir = tmp_path / "run"
    command = interrupted(dataset, cache, run_dir)
    for path in (run_dir / "checkpoints").rglob("*"):
        if path.is_file() and path.stat().st_size > 1000:
            path.write_bytes(b"")
    code, _, err = processes.run(*command, env=cache)
    assert code == 2
    assert "every checkpoint is damaged (steps [50, 40])" in err.splitlines()[-1]


def test_restore_on_another_mesh(dataset, cache, tmp_path):
    run_dir = tmp_path / "run"
    command = interrupted(dataset, cache, run_dir)
    mesh = ("--mesh.data", "2", "--mesh.fsdp", "2", "--mesh.model", "2")
    code, _, err = processes.run(*command, *mesh, devices=8, env=cache)
    assert code == 0, err
    assert "going on from step 50" in err
    ours, theirs = (
        json.loads((d / "metrics.jsonl").read_text().splitlines()[-1]) for d in (run_dir, dataset)
    )
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


def test_another_configuration_is_refused_with_the_differences(dataset, cache):
    code, _, err = pretrain(
        dataset, cache, "--batch-size", "16", "--optimizer.learning-rate", "0.5"
    )
    assert code == 2
    (line,) = err.splitlines()
    assert "batch_size is 8 there and 16 here" in line
    assert "optimizer.learning_rate is 0.001 there and 0.5 here" in line


def test_non_finite_loss_stops_and_names_the_step(dataset, cache, tmp_path):
    extra = ("--optimizer.learning-rate", "1e30", "--optimizer.clip-norm", "0")
    command = from_dataset(dataset, tmp_path / "run", *extra)
    code, _, err = processes.run(*command, env=cache)
    assert code == 1
    assert "not finite" in err.splitlines()[-1]
    assert "step " in err.splitlines()[-1]
    assert "Traceback" not in err


def test_init_from_another_run(dataset, cache, tmp_path):
    command = from_dataset(
        dataset,
        tmp_path / "run",
        "--init-from",
        dataset,
        "--train-steps",
        "1",
        "--optimizer.learning-rate",
        "1e-12",
        "--optimizer.warmup-steps",
        "0",
    )
    code, _, err = processes.run(*command, env=cache)
    assert code == 0, err
    assert "parameters from" in err
    ours, theirs = (
        json.loads((d / "metrics.jsonl").read_text().splitlines()[-1])
        for d in (tmp_path / "run", dataset)
    )
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


def test_two_processes_pretrain_and_stop_together(dataset, cache, tmp_path):
    """Hosts of a pod: one dataset, one run directory, one export, and a preemption of one host."""
    run_dir = tmp_path / "run"
    address = f"127.0.0.1:{processes.free_port()}"
    command = from_dataset(
        dataset, run_dir, "--distributed", "--mesh.fsdp", "2", "--log-every", "1"
    )

    def pair():
        return [
            processes.start(
                *command,
                devices=2,
                env=cache
                | {
                    "JAX_COORDINATOR_ADDRESS": address,
                    "JAX_NUM_PROCESSES": "2",
                    "JAX_PROCESS_ID": str(i),
                },
            )
            for i in range(2)
        ]

    children = pair()
    wait_for(
        children[0],
        lambda: (
            (run_dir / "metrics.jsonl").is_file()
            and len((run_dir / "metrics.jsonl").read_text().splitlines()) >= 5
        ),
    )
    children[1].send_signal(signal.SIGTERM)
    for child in children:
        code, _, err = processes.finish(child)
        assert code == 75, err
    for child in pair():
        code, _, err = processes.finish(child)
        assert code == 0, err
    ours, theirs = (
        json.loads((d / "metrics.jsonl").read_text().splitlines()[-1]) for d in (run_dir, dataset)
    )
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_full_disk_keeps_the_last_good_checkpoint(dataset, cache, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2500k", "tmpfs", run_dir], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted: {mounted.stderr.decode()}")
    try:
        command = from_dataset(
            dataset, run_dir, "--checkpoint.every", "5", "--checkpoint.keep", "9"
        )
        code, _, err = processes.run(*command, env=cache)
        assert code == 2, err
        assert "no space left" in err.splitlines()[-1]
        good = steps_of(run_dir)
        assert good
        subprocess.run(["mount", "-o", "remount,size=100m", run_dir], check=True)
        code, _, err = processes.run(*command, env=cache)
        assert code == 0, err
        assert f"going on from step {good[-1]} " in err
        assert end_of(run_dir) == end_of(dataset)
    finally:
        subprocess.run(["umount", run_dir], check=True)

"""metrics.jsonl over restarts, TensorBoard's files, the curves, and who writes them."""

import json
import math
import struct

import matplotlib.image
import pytest
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from bertjax.report import Report, draw_curves, progress_text, read_metrics, say

TRAIN = {
    "loss": 7.25,
    "mlm_accuracy": 0.125,
    "sentence_accuracy": 0.5,
    "learning_rate": 1e-4,
    "sequences_per_second": 1234.0,
    "tokens_per_second": 157952.0,
}


def run(directory, first_step, steps, every=10, enabled=True, **values):
    with Report(directory, steps=100, first_step=first_step, enabled=enabled) as report:
        for step in range(first_step + 1, steps + 1):
            report.advance()
            if step % every == 0:
                report.write(step, "train", TRAIN | {"loss": 100.0 - step} | values)


def steps_of(directory):
    return [line["step"] for line in read_metrics(directory)]


def events(directory):
    """Read TensorBoard's record files, checksums included."""
    found = []
    for path in sorted((directory / "tensorboard").glob("events*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            content = data[12 : 12 + length]
            sums = struct.unpack("<I", data[8:12]) + struct.unpack("<I", data[12 + length :][:4])
            assert sums == (masked_crc32c(data[:8]), masked_crc32c(content))
            found.append(Event.FromString(content))
            data = data[16 + length :]
    return found


def scalars(directory):
    return {
        (value.tag, event.step): value.simple_value
        for event in events(directory)
        for value in event.summary.value
    }


def test_every_line_is_json_with_step_split_and_time(tmp_path):
    run(tmp_path, 0, 30)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30]
    assert lines[1] == {"step": 20, "split": "train", "time": lines[1]["time"]} | TRAIN | {
        "loss": 80.0
    }
    assert lines[0]["time"] <= lines[1]["time"] <= lines[2]["time"]
    assert read_metrics(tmp_path) == lines


def test_a_resumed_run_cuts_off_what_came_after_its_checkpoint(tmp_path):
    run(tmp_path, 0, 50)
    run(tmp_path, 25, 60, loss=0.5)
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [10, 20, 30, 40, 50, 60]
    assert [line["loss"] for line in lines] == [90.0, 80.0, 0.5, 0.5, 0.5, 0.5]
    run(tmp_path, 60, 60)  # nothing left to do, nothing lost
    assert read_metrics(tmp_path) == lines
    run(tmp_path, 0, 0)  # from the start again
    assert read_metrics(tmp_path) == []
    assert [p.name for p in tmp_path.glob("metrics*")] == ["metrics.jsonl"]


@pytest.mark.parametrize("cut", [1, 2, 17, 40])
def test_half_written_last_line_is_dropped(tmp_path, cut):
    run(tmp_path, 0, 40)
    path = tmp_path / "metrics.jsonl"
    text = path.read_text()
    path.write_text(text[:-cut])
    kept = [10, 20, 30, 40] if cut == 1 else [10, 20, 30]  # the line feed alone may be missing
    assert steps_of(tmp_path) == kept
    run(tmp_path, 40, 50)
    assert steps_of(tmp_path) == [*kept, 50]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_numbers_that_json_does_not_have_are_null(tmp_path):
    run(tmp_path, 0, 10, loss=math.nan, learning_rate=-math.inf)

    def refuse(constant):
        raise AssertionError(constant)

    text = (tmp_path / "metrics.jsonl").read_text()
    line = json.loads(text, parse_constant=refuse)
    assert line["loss"] is None
    assert line["learning_rate"] is None
    assert line["mlm_accuracy"] == 0.125
    assert math.isnan(scalars(tmp_path)["train/loss", 10])


def test_lines_are_there_at_once(tmp_path):
    with Report(tmp_path, steps=5, first_step=0, enabled=True) as report:
        report.write(1, "train", TRAIN)
        assert steps_of(tmp_path) == [1]
        assert scalars(tmp_path)["train/loss", 1] == 7.25


def test_tensorboard_events(tmp_path):
    run(tmp_path, 0, 30)
    with Report(tmp_path / "other", steps=30, first_step=20, enabled=True) as report:
        report.write(30, "eval", {"loss": 1.5})
    found = scalars(tmp_path)
    assert len(found) == 3 * len(TRAIN)
    assert found["train/loss", 20] == 80.0
    assert found["train/sentence_accuracy", 30] == 0.5
    assert all(event.wall_time > 1.6e9 for event in events(tmp_path))
    # A reader drops, at this mark, what an interrupted run wrote at its step and later.
    marks = [e for e in events(tmp_path / "other") if e.session_log.status == SessionLog.START]
    assert [mark.step for mark in marks] == [21]
    assert scalars(tmp_path / "other") == {("eval/loss", 30): 1.5}


def test_only_the_first_process_writes(tmp_path, capsys):
    run(tmp_path / "run", 0, 20, enabled=False)
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().err == ""


def test_progress_text():
    text = progress_text(TRAIN | {"mfu": 0.456})
    assert text == ("loss 7.250 mlm 12.5% nsp 50.0% 1234 seq/s 157952 tok/s lr 1.00e-04 MFU 45.6%")
    few = {k: v for k, v in TRAIN.items() if "accuracy" not in k}
    assert progress_text(few) == "loss 7.250 1234 seq/s 157952 tok/s lr 1.00e-04"


def test_bar_and_news_go_to_stderr(tmp_path, capsys):
    with Report(tmp_path, steps=4, first_step=2, enabled=True) as report:
        report.advance()
        report.write(3, "train", TRAIN)
        report.write(3, "eval", {"loss": 1.25, "mlm_accuracy": 0.5})
        say("news")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "3/4" in captured.err
    assert "loss 7.250" in captured.err
    assert "step 3: held-out loss 1.25, mlm_accuracy 0.5\n" in captured.err
    assert "news\n" in captured.err


def test_curves_are_drawn(tmp_path):
    run(tmp_path, 0, 100)
    with Report(tmp_path, steps=100, first_step=100, enabled=True) as report:
        report.write(100, "eval", {"loss": 3.0, "mlm_accuracy": 0.25})
    path = draw_curves(tmp_path)
    assert path == tmp_path / "curves.png"
    image = matplotlib.image.imread(path)
    height, width = image.shape[:2]
    assert width > 4 * height > 4 * 300  # four panels side by side
    colours = {tuple(c) for c in (image[..., :3] * 255).round().astype(int).reshape(-1, 3)}
    assert (255, 127, 14) in colours  # the held-out points
    # Without pairs there is one panel less; without a number there is no point.
    other = tmp_path / "other"
    other.mkdir()
    lines = [
        {"step": s, "split": "train", "loss": None if s == 2 else 1.0, "learning_rate": 1.0}
        for s in range(4)
    ]
    (other / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert matplotlib.image.imread(draw_curves(other)).shape[1] < width * 0.6

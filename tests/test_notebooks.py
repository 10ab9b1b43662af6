"""The notebooks run from top to bottom, as in a clone, and come to what their text says."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def run(name, tmp_path):
    """Execute a notebook in a place like a clone; return what its cells print."""
    work = tmp_path / "notebooks"
    work.mkdir()
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    client = NotebookClient(notebook, timeout=800, resources={"metadata": {"path": str(work)}})
    client.execute()
    return "".join(
        output["text"]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if output.output_type == "stream" and output.name == "stdout"
    )


@pytest.mark.slow
def test_pretrain_and_look(tmp_path):
    printed = run("01_pretrain_and_look", tmp_path)
    found = re.findall(r"masked tokens right ([\d.]+) %  \(commonest token: ([\d.]+) %\)", printed)
    right, common = map(float, found[-1])
    assert len(found) == 6
    assert right > 1.5 * common
    assert (tmp_path / "notebooks/runs/notebook/model/model.safetensors").is_file()


@pytest.mark.slow
def test_finetune(tmp_path):
    printed = run("02_finetune_colab", tmp_path)
    best = max(float(x) for x in re.findall(r"accuracy ([\d.]+) %", printed))
    right, rows = map(int, re.search(r"(\d+) of (\d+) right", printed).groups())
    assert rows == 197
    assert best > 90
    assert abs(100 * right / rows - best) < 0.06  # the pipeline says what the scores say


@pytest.mark.slow
def test_modules(tmp_path):
    printed = run("03_modules_in_your_research", tmp_path)
    mean, deviation = map(float, re.search(r"([\d.]+) \+- ([\d.]+) %", printed).groups())
    assert mean > 90
    assert 0 < deviation < 5
    assert float(re.search(r"difference from one device: (\S+)", printed)[1]) < 5e-5


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_outputs_are_whole_and_small(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
    assert path.stat().st_size < 400_000

"""The programs of examples/ and of the page on Python, run as a reader would."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from grpokit.commands.tasks import write_task
from helpers import forked
from helpers.launch import ENVIRONMENT
from helpers.places import ROOT

NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))


def test_both_notebooks_are_there_and_stored_without_outputs():
    nbformat = pytest.importorskip("nbformat")
    assert [path.stem for path in NOTEBOOKS] == ["losses_by_hand", "train_from_python"]
    for path in NOTEBOOKS:
        cells = nbformat.read(path, 4).cells
        assert not [cell for cell in cells if cell.get("outputs")], path.name


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_its_first_cell_to_its_last(path, tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
    client = nbclient.NotebookClient(
        nbformat.read(path, 4),
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()


def run(program: Path, *arguments: str) -> str:
    done = forked.run(program, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_page_on_python_runs_from_top_to_bottom(tmp_path, monkeypatch):
    pytest.importorskip("peft")
    page = (ROOT / "docs" / "en" / "python.md").read_text()
    blocks = re.findall(r"```python example\n(.*?)```", page, re.DOTALL)
    assert len(blocks) > 10
    (tmp_path / "page.py").write_text("\n\n".join(blocks))
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "page.py")


@pytest.mark.slow
def test_one_step_written_out_trains(tmp_path):
    write_task("sort_digits", str(tmp_path / "task"))
    task = ["--model", str(tmp_path / "task" / "model"), "--dataset", str(tmp_path / "task" / "train.jsonl")]
    said = run(ROOT / "examples" / "loop.py", *task, "--steps", "3")
    assert [line.split(":")[0] for line in said.splitlines() if line.startswith("step ")] == [
        "step 1",
        "step 2",
        "step 3",
    ]

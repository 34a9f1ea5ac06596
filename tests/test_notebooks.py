"""The notebooks run, and what is in the repository is what their scripts say."""

import re
import runpy
from pathlib import Path

import jupytext
import matplotlib.pyplot as plt
import nbformat
import pytest
from conftest import REPOSITORY
from nbclient import NotebookClient

from spatial_transformer.loggers.csv import MetricsCSV

SCRIPTS = sorted((REPOSITORY / "notebooks").glob("*.py"))
LIGHTEST = "reading_results"


@pytest.fixture
def surroundings(name, request, tmp_path, monkeypatch) -> None:
    """What a notebook is run with: a few steps on real MNIST, and the figures of a run."""
    monkeypatch.chdir(REPOSITORY / "notebooks")
    for variable in ("RUN", "STEPS", "DATA_ROOT"):
        monkeypatch.delenv(variable, raising=False)
    if name == "train_in_five_minutes":
        monkeypatch.setenv("DATA_ROOT", str(request.getfixturevalue("mnist_root")))
        monkeypatch.setenv("STEPS", "20")
    if name in ("train_in_five_minutes", "reading_results"):
        monkeypatch.setenv("RUN", str(tmp_path))
    if name == "reading_results":
        table = MetricsCSV(tmp_path / "metrics.csv")
        for step in (50, 100):
            table.log_metrics({"train/error": 90.0 - step / 10, "val/error": 80.0}, step)
        table.save()


@pytest.mark.parametrize("name", [script.stem for script in SCRIPTS])
def test_its_script_runs(name, surroundings, monkeypatch):
    shown = []
    monkeypatch.setattr(
        plt,
        "show",
        lambda: shown.append((plt.get_backend(), len(plt.get_fignums()))) or plt.close("all"),
    )
    backend = plt.get_backend()
    plt.switch_backend(
        "svg"
    )  # not the one of servers: code that switches to that, as a notebook's plots get lost, is seen
    try:
        with plt.rc_context():
            runpy.run_path(f"{name}.py")
        assert plt.get_backend() == "svg"
    finally:
        plt.switch_backend(backend)
    assert shown
    assert all(name == "svg" and figures for name, figures in shown), shown


@pytest.mark.parametrize(
    "name",
    [pytest.param(s.stem, marks=[] if s.stem == LIGHTEST else pytest.mark.slow) for s in SCRIPTS],
)
def test_it_runs_in_a_kernel(name, surroundings):
    notebook = nbformat.read(f"{name}.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    plots = [cell for cell in notebook.cells if re.search(r"^plt\.show\(\)", cell.source, re.M)]
    assert plots
    for cell in plots:
        assert any("image/png" in output.get("data", {}) for output in cell.outputs), cell.source
    assert not any(output.get("name") == "stderr" for output in outputs), outputs


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_notebook_is_what_its_script_says(script: Path):
    """`make notebooks` writes them anew."""
    notebook = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(notebook)
    cells = [(cell.cell_type, cell.source) for cell in notebook.cells]
    assert cells == [(cell.cell_type, cell.source) for cell in jupytext.read(script).cells]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)


def test_no_notebook_is_without_its_script():
    assert {path.stem for path in (REPOSITORY / "notebooks").glob("*.ipynb")} == {
        script.stem for script in SCRIPTS
    }

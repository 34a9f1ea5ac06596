"""Notebooks run, and their cells are those of their scripts."""

import re
import runpy

import jupytext
import matplotlib.pyplot as plt
import nbformat
import pytest
from conftest import REPOSITORY
from nbclient import NotebookClient

from spatial_transformer.loggers.csv import MetricsCSV
from spatial_transformer.reporting.paper_tables import paper_tables

NAMES = sorted(path.stem for path in (REPOSITORY / "notebooks").glob("*.py"))
QUICK = "reading_results"


@pytest.fixture
def environment(name, request, tmp_path, monkeypatch):
    """The working directory, the variables and a run for a notebook."""
    monkeypatch.chdir(REPOSITORY / "notebooks")
    for variable in ("RUN", "STEPS", "DATA_ROOT"):
        monkeypatch.delenv(variable, raising=False)
    if name in ("train_in_five_minutes", "frozen_classifier"):
        monkeypatch.setenv("DATA_ROOT", str(request.getfixturevalue("mnist_root")))
        monkeypatch.setenv("STEPS", "20")
    if name in ("train_in_five_minutes", "reading_results"):
        monkeypatch.setenv("RUN", str(tmp_path))
    if name == "reading_results":
        table = MetricsCSV(tmp_path / "metrics.csv")
        for step in (50, 100):
            table.log_metrics({"train/error": 90.0 - step / 10, "val/error": 80.0}, step)


@pytest.mark.parametrize("name", NAMES)
def test_script_runs(name, environment, monkeypatch):
    shown = []

    def show():
        shown.append((plt.get_backend(), len(plt.get_fignums())))
        plt.close("all")

    monkeypatch.setattr(plt, "show", show)
    backend = plt.get_backend()
    plt.switch_backend("svg")  # library code must not switch to another, which would hide plots
    try:
        with plt.rc_context():
            runpy.run_path(f"{name}.py")
        assert plt.get_backend() == "svg"
    finally:
        plt.switch_backend(backend)
    assert shown
    assert all(name == "svg" and figures for name, figures in shown), shown


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == QUICK else pytest.mark.slow) for n in NAMES]
)
def test_notebook_runs(name, environment):
    notebook = nbformat.read(f"{name}.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    plots = [cell for cell in notebook.cells if re.search(r"^plt\.show\(\)", cell.source, re.M)]
    assert plots
    for cell in plots:
        assert any("image/png" in output.get("data", {}) for output in cell.outputs), cell.source
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not any(output.get("name") == "stderr" for output in outputs), outputs


@pytest.mark.parametrize("name", NAMES)
def test_notebook_is_up_to_date(name):
    """``make notebooks`` executes the scripts and writes the notebooks."""
    path = REPOSITORY / "notebooks" / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    script = jupytext.read(path.with_suffix(".py"))
    cells = [(cell.cell_type, cell.source) for cell in notebook.cells]
    assert cells == [(cell.cell_type, cell.source) for cell in script.cells]
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert path.stat().st_size < 500_000
    private = r"/(root|home|work|Users|tmp)/"
    assert not re.search(private, nbformat.writes(notebook))


def test_the_stored_table_is_that_of_the_results():
    """``python scripts/dev/run_notebooks.py reading_results`` brings it up to date."""
    notebook = nbformat.read(REPOSITORY / "notebooks" / "reading_results.ipynb", as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    stored = [o.data["text/markdown"] for o in outputs if "text/markdown" in o.get("data", {})]
    table = paper_tables(REPOSITORY / "results", REPOSITORY / "conf")["mnist"]
    assert stored == [table.markdown()]


def test_every_notebook_has_a_script():
    assert sorted(path.stem for path in (REPOSITORY / "notebooks").glob("*.ipynb")) == NAMES

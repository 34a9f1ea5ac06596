"""Execute the notebooks' scripts and write the notebooks with their outputs.

python scripts/dev/run_notebooks.py [NAME ...]

The notebooks read the variables DATA_ROOT and RUN.
"""

import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
WIDGET = "application/vnd.jupyter.widget-view+json"  # works only in a running notebook


def main() -> None:
    """Execute the notebooks that are named, or all."""
    names = sys.argv[1:] or sorted(path.stem for path in NOTEBOOKS.glob("*.py"))
    for name in names:
        notebook = jupytext.read(NOTEBOOKS / f"{name}.py")
        resources = {"metadata": {"path": NOTEBOOKS}}
        NotebookClient(notebook, kernel_name="python3", resources=resources).execute()
        notebook.metadata.pop("widgets", None)
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)
            if "outputs" in cell:
                cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {})]
        nbformat.write(notebook, NOTEBOOKS / f"{name}.ipynb")
        print(f"notebooks/{name}.ipynb")


if __name__ == "__main__":
    main()

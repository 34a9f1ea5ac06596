"""Execute the notebooks' scripts and write the notebooks with their outputs.

python scripts/dev/run_notebooks.py [NAME ...]

The notebooks read the variables DATA_ROOT and RUN.
"""

from argparse import ArgumentParser
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
WIDGET = "application/vnd.jupyter.widget-view+json"  # works only in a running notebook


def main() -> None:
    """Execute the notebooks that are named, or all."""
    names = sorted(path.stem for path in NOTEBOOKS.glob("*.py"))
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names))
    chosen = parser.parse_args().names
    if unknown := set(chosen) - set(names):
        parser.error(f"there is no notebook {', '.join(unknown)}. Choose from {', '.join(names)}.")
    for name in chosen or names:
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

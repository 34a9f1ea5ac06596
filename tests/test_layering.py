"""Check that imports within the package only run downwards."""

import ast
import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY

PACKAGE = REPOSITORY / "src" / "spatial_transformer"
ORDER = [  # each part may import those above it in this list
    "transformer",
    "geometry",
    "utils",
    "networks",
    "paper",
    "data",
    "tasks",
    "visualization",
    "loggers",
    "callbacks",
    "training",
    "inference",
    "reporting",
]
UNKNOWN = {  # parts that must not know each other although the order would allow it
    "data": {"networks", "transformer"},
    "reporting": {"networks", "tasks", "callbacks", "loggers", "inference"},
}


def imported_parts(file):
    """Return the top-level parts of the package that a module imports."""
    dots = "." * len(file.relative_to(PACKAGE).parts)  # from the module to the package
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (f"{node.module}." if node.module else "")
            names = [module + alias.name for alias in node.names]
        for name in names:
            for prefix in (dots, f"{PACKAGE.name}."):
                if re.match(rf"{re.escape(prefix)}\w", name):
                    yield name.removeprefix(prefix).partition(".")[0]


def test_the_order_is_complete():
    parts = {path.stem for path in PACKAGE.glob("[!_]*") if path.suffix in ("", ".py")}
    assert parts == set(ORDER)


@pytest.mark.parametrize("part", ORDER)
def test_imports_run_downwards(part):
    allowed = set(ORDER[: ORDER.index(part) + 1]) - UNKNOWN.get(part, set())
    for file in [*(PACKAGE / part).rglob("*.py"), *PACKAGE.glob(f"{part}.py")]:
        assert set(imported_parts(file)) <= allowed, file


@pytest.mark.parametrize("part", ["transformer", "networks"])
def test_networks_are_plain_pytorch(part):
    files = (PACKAGE / part).glob("[!_]*.py")
    names = [f"spatial_transformer.{part}.{file.stem}" for file in files]
    code = f"import sys, {', '.join(names)}; sys.exit('pytorch_lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0

"""What the code imports is what it says that it depends on."""

import ast
import json
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from conftest import REPOSITORY

import hubconf

BROUGHT = {"markupsafe", "submitit"}
"""Of jinja2 and of Hydra's launcher for SLURM, to speak with them."""

ON_A_HUB = """
import json, sys, torch
torch.hub.load(".", "st_cnn_mnist", source="local")
modules = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
print(json.dumps([list(modules), [file for name, file in modules.items() if name.startswith("spatial_transformer.") and file]]))
"""


def imported(files):
    """The packages of others that files import, by the names that they import."""
    names = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module)
    return {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"spatial_transformer"}


def test_the_package_declares_all_that_it_imports():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["onnx"]]
    declared = {re.match(r"[\w-]+", text)[0].lower() for text in wanted}
    packages = packages_distributions()
    for name in imported((REPOSITORY / "src").rglob("*.py")) - BROUGHT:
        assert {package.lower() for package in packages[name]} & declared, name


def test_the_hub_is_told_all_that_its_networks_import():
    done = subprocess.run([sys.executable, "-c", ON_A_HUB], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    loaded, files = json.loads(done.stdout.splitlines()[-1])
    assert imported([Path(file) for file in files]) & set(loaded) <= set(hubconf.dependencies)

"""The code imports what it declares as its dependencies."""

import ast
import itertools
import json
import re
import subprocess
import sys
from importlib.metadata import metadata, packages_distributions
from pathlib import Path

import pytest
from conftest import REPOSITORY
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import hubconf

TRANSITIVE = {"joblib", "markupsafe", "submitit"}
"""Packages that jinja2 and two launchers of Hydra require."""

ON_A_HUB = """
import json, sys, torch
torch.hub.load(".", "st_cnn_mnist", source="local")
modules = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
ours = [f for name, f in modules.items() if name.startswith("spatial_transformer.") and f]
print(json.dumps([list(modules), ours]))
"""


def imported(files):
    """Return the third-party packages that files import."""
    names = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module)
    return (
        {name.partition(".")[0] for name in names}
        - set(sys.stdlib_module_names)
        - {"spatial_transformer"}
    )


def test_package_declares_its_imports():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    wanted = itertools.chain(project["dependencies"], *extras)
    declared = {re.match(r"[\w-]+", text)[0].lower() for text in wanted}
    packages = packages_distributions()
    for name in imported((REPOSITORY / "src").rglob("*.py")) - TRANSITIVE:
        assert {package.lower() for package in packages[name]} & declared, name


def test_hub_declares_the_imports_of_its_networks():
    done = subprocess.run(
        [sys.executable, "-c", ON_A_HUB], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    loaded, files = json.loads(done.stdout.splitlines()[-1])
    assert imported([Path(file) for file in files]) & set(loaded) <= set(hubconf.dependencies)


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-dev.txt"])
def test_pins_cover_every_supported_python(file):
    for line in (REPOSITORY / file).read_text().splitlines():
        text = line.partition("#")[0].strip()
        if not text or text.startswith("-"):
            continue
        pin = Requirement(text)
        if pin.marker and not pin.marker.evaluate():
            continue
        takes = SpecifierSet(metadata(pin.name).get("Requires-Python") or "")
        for python in ("3.10", "3.11", "3.12", "3.13"):
            if not pin.marker or pin.marker.evaluate({"python_version": python}):
                assert takes.contains(f"{python}.9"), f"{pin} is not for Python {python}"

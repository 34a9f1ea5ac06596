"""Which part of the package knows which others: no arrow runs back up."""

import ast
import subprocess
import sys

import pytest
from conftest import REPOSITORY

PACKAGE = REPOSITORY / "src" / "spatial_transformer"
KNOWN = {"transformer": set(), "utils": set(), "networks": {"transformer"}, "data": set()}
PARTS = {"transformer", "networks", "data", "tasks", "callbacks", "training", "inference"}


@pytest.mark.parametrize("part", KNOWN)
def test_a_part_knows_only_those_below(part):
    for file in (PACKAGE / part).rglob("*.py"):
        up = len(file.relative_to(PACKAGE).parts)  # dots from the file to the package
        nodes = ast.walk(ast.parse(file.read_text()))
        imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.level == up]
        names = {(node.module or alias.name).partition(".")[0] for node in imports for alias in node.names}
        assert names & PARTS <= KNOWN[part], file


def test_networks_are_plain_pytorch():
    names = [f"spatial_transformer.networks.{file.stem}" for file in (PACKAGE / "networks").glob("[!_]*.py")]
    code = f"import sys, {', '.join(names)}; sys.exit('pytorch_lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0

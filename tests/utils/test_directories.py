"""Directories that are complete or absent, and hints for a wrong root."""

import subprocess
import sys

import pytest

from spatial_transformer.utils.directories import check_files, create_directory
from spatial_transformer.utils.errors import UsageError

KILLED = """
import os
from pathlib import Path
from spatial_transformer.utils.directories import create_directory
with create_directory(Path('new')) as new:
    (new / 'half').touch()
    os._exit(9)
"""


def visible(directory):
    return sorted(path.name for path in directory.glob("[!.]*"))


def test_rest_of_a_killed_process_is_removed(tmp_path):
    assert subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path).returncode == 9
    assert visible(tmp_path) == ["incomplete-new"]
    with create_directory(tmp_path / "new") as directory:
        (directory / "whole").touch()
    assert visible(tmp_path) == ["new"]
    assert visible(tmp_path / "new") == ["whole"]


def test_directory_appears_when_it_is_complete(tmp_path):
    with create_directory(tmp_path / "new"):
        assert not (tmp_path / "new").exists()
    with create_directory(tmp_path / "new") as directory:
        assert directory is None
    with pytest.raises(KeyboardInterrupt), create_directory(tmp_path / "other"):
        raise KeyboardInterrupt
    assert visible(tmp_path) == ["new"]


def test_missing_files_are_named(tmp_path):
    (tmp_path / "a").touch()
    check_files("Words", tmp_path, ["a"])
    with pytest.raises(UsageError, match=rf"{tmp_path} does not contain b, c\.\n") as error:
        check_files("Words", tmp_path, ["a", "b", "c"])
    # Also true for a user who has set neither and has only some files in data/.
    assert "Without both, Words is downloaded to data/ if nothing of it is" in str(error.value)

"""Directories of the data sets: data.root, $STN_DATA and the default."""

from pathlib import Path

import pytest
from tiny_birds import Bird, write_birds
from tiny_numbers import write_parts

from spatial_transformer.data.cub import files as cub_files
from spatial_transformer.data.io.roots import find_dataset, find_root
from spatial_transformer.data.svhn import files as svhn_files

DATA_SETS = {
    "CUB_200_2011": (lambda root: write_birds(root, [Bird()]), cub_files.prepare),
    "SVHN": (write_parts, lambda root: svhn_files.prepare(root, extra=False)[0].parent),
}


@pytest.mark.parametrize("name", DATA_SETS)
def test_root_is_the_directory_of_the_data_set_or_the_one_above(tmp_path, monkeypatch, name):
    write, prepare = DATA_SETS[name]
    root = write(tmp_path / name)
    assert prepare(str(root)) == prepare(tmp_path) == root
    monkeypatch.setenv("STN_DATA", str(tmp_path))
    assert prepare(None) == root


def test_directory_with_the_file_is_the_data_set(tmp_path):
    (tmp_path / "SVHN").mkdir()
    (tmp_path / "file").touch()
    assert find_dataset(tmp_path, "SVHN", "file") == tmp_path
    assert find_dataset(tmp_path / "absent", "SVHN", "file") == tmp_path / "absent"


def test_environment_variable_is_the_default(monkeypatch):
    assert find_root(None) is None
    monkeypatch.setenv("STN_DATA", "~/shared")
    assert find_root(None) == Path.home() / "shared"
    assert find_root("elsewhere") == Path("elsewhere")

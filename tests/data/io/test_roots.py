"""Directories of the data sets: data.root, $STN_DATA and the default."""

from pathlib import Path

import pytest

from spatial_transformer.data.io.roots import find_dataset, find_root


@pytest.fixture
def common(tmp_path):
    (tmp_path / "SVHN").mkdir()
    (tmp_path / "SVHN" / "file").touch()
    return tmp_path


def test_root_is_the_directory_of_the_data_set_or_the_one_above(common):
    for root in (common, common / "SVHN"):
        assert find_dataset(root, "SVHN", "file") == common / "SVHN"
    (common / "file").touch()
    assert find_dataset(common, "SVHN", "file") == common
    assert find_dataset(common / "absent", "SVHN", "file") == common / "absent"
    assert find_dataset(None, "SVHN", "file") == Path("data/SVHN")


def test_environment_variable_is_the_default(monkeypatch):
    assert find_root(None) is None
    monkeypatch.setenv("STN_DATA", "~/shared")
    assert find_root(None) == Path.home() / "shared"
    assert find_root("elsewhere") == Path("elsewhere")

"""Where a file is, when it is not where it was said to be."""

import pytest

from spatial_transformer.files import rather


@pytest.mark.parametrize("named", ["sets", "sets/SVHN/train", "sets/SVHN/train/deeper"])
def test_the_folder_that_was_meant_is_found_in_the_named_one_and_above(tmp_path, named):
    meant = tmp_path / "sets" / "SVHN"
    (tmp_path / named).mkdir(parents=True)
    (meant / "train").mkdir(parents=True, exist_ok=True)
    (meant / "train" / "digitStruct.mat").touch()
    assert rather(tmp_path / named, "train/digitStruct.mat") == f" Did you mean data.root={meant}?"


def test_where_nothing_is_near_nothing_is_added(tmp_path):
    assert rather(tmp_path, "images.txt") == rather(tmp_path / "nothing", "images.txt") == ""

"""CUB's text files and root: what is read, refused and downloaded."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_birds import PARTS, Bird, species_folder, write_birds

from spatial_transformer.data.cub import files as cub_files
from spatial_transformer.data.cub.files import (
    parse_species,
    prepare,
    read_birds,
    read_boxes,
    read_parts,
)
from spatial_transformer.utils.errors import UsageError

BIRDS = [Bird(1), Bird(1, training=False), Bird(2), Bird(3), Bird(4), Bird(2, training=False)]


@pytest.fixture
def root(tmp_path):
    return write_birds(tmp_path / "CUB_200_2011", BIRDS)


def read_all(root):
    birds = read_birds(prepare(root), parse_species("1-4"))
    read_boxes(birds)
    read_parts(birds)


# Species


@pytest.mark.parametrize(
    ("species", "expected"),
    [
        (None, list(range(1, 201))),
        (7, [7]),
        ("200", [200]),
        ("1-50", list(range(1, 51))),
        ("1,4, 7-9,8", [1, 4, 7, 8, 9]),
        ("Laysan_Albatross,5", ["Laysan_Albatross", 5]),
        ([9, "1-3", "002.Kind"], [9, 1, 2, 3, "002.Kind"]),
    ],
)
def test_species_are_numbers_ranges_or_names(species, expected):
    assert parse_species(species) == expected


@pytest.mark.parametrize(
    ("species", "message"),
    [
        ("", r"data\.species must be names, and numbers from 1 to 200, got ''"),
        ([], "got ''"),
        ("1,,2", "got ''"),
        (0, "got '0'"),
        ("150-201", "got '150-201'"),
        ("9-7", "got '9-7'"),
    ],
)
def test_wrong_species_are_refused(species, message):
    with pytest.raises(UsageError, match=message):
        parse_species(species)


@pytest.mark.parametrize(
    ("species", "message"),
    [
        ("Kind_a_Wrem", r"Kind_a_Wrem is not in .*classes\.txt\. Did you mean .*Kind_a_Wren"),
        ("002.Kind_a_Wren", r"002\.Kind_a_Wren is not in"),
        (None, r"5 is not in .*classes\.txt"),
        (True, "True is not in"),
        ("1-2,Kind_b_Wren", r"must be different species, got the numbers \[1, 2, 2\]"),
    ],
)
def test_unknown_species_are_refused(root, species, message):
    with pytest.raises(UsageError, match=message):
        read_birds(root, parse_species(species))


# Text files


def test_labels_are_in_the_official_order(root):
    birds = read_birds(root, parse_species("004.Kind_d_Wren,Kind_b_Wren"))
    assert birds.ids.tolist() == [13, 15, 16]
    assert birds.labels.tolist() == [0, 1, 0]
    assert birds.training.tolist() == [True, True, False]
    assert (birds.numbers, birds.names) == ([2, 4], ["Kind_b_Wren", "Kind_d_Wren"])
    assert birds.files[1] == f"{species_folder(4)}/Wren_0015.jpg"


def test_boxes_and_parts_are_those_of_the_chosen_images(tmp_path):
    parts = [((i, 2.0 * i, 1), (0.5, 0.0, 0), (i + 0.25, 9.0, 1)) for i in (0.0, 1.0, 2.0, 3.0)]
    birds = [Bird(2, parts=own, box=(own[0][0], -1.0, 3.5, 4.0)) for own in parts]
    birds[1] = Bird(1)
    chosen = read_birds(write_birds(tmp_path / "birds", birds), [2])
    np.testing.assert_array_equal(read_boxes(chosen), [(i, -1, 3.5, 4) for i in (0, 2, 3)])
    np.testing.assert_array_equal(read_parts(chosen)[1], [(2, 4, 1), (0.5, 0, 0), (2.25, 9, 1)])
    assert read_parts(chosen).shape == (3, 3, 3)
    assert cub_files.part_names(chosen.root) == list(PARTS)


DAMAGES = {
    "empty": lambda text: "",
    "no number": lambda text: "x" + text,
    "twice": lambda text: text + text,
    "without the last line": lambda text: text[: text.rindex("\n", 0, -1)],
}
CASES = [(f, d) for f in cub_files.COLUMNS for d in DAMAGES if f != "parts/parts.txt"]
CASES.remove(("images.txt", "without the last line"))  # a smaller data set


@pytest.mark.parametrize(("file", "damage"), CASES)
def test_damaged_file_is_named(root, file, damage):
    (root / file).write_text(DAMAGES[damage]((root / file).read_text()))
    with pytest.raises(UsageError, match=file):
        read_all(root)


# The root


def test_missing_files_of_a_root_are_named_and_not_downloaded(root, monkeypatch):
    monkeypatch.setattr(cub_files, "download_archive", lambda *_: pytest.fail("downloaded"))
    (root / "images.txt").unlink()
    shutil.rmtree(root / "parts")
    files = r"images\.txt, parts/part_locs\.txt, parts/parts\.txt"
    with pytest.raises(UsageError, match=rf"{root} does not contain {files}\."):
        prepare(root)
    with pytest.raises(UsageError, match=r"does not contain images\.txt"):
        prepare(root / "absent")


def test_missing_data_set_is_downloaded_without_a_root(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    started = []

    def download(url, target, *_):
        started.append(url)
        shutil.copytree(root, target)

    monkeypatch.setattr(cub_files, "download_archive", download)
    for _ in range(2):
        assert prepare(None) == Path("data", "CUB_200_2011")
    assert started == [cub_files.URL]


# Real files


def test_real_text_files_are_read(cub_root):
    birds = read_birds(cub_root, parse_species(None))
    assert len(birds.files) == 11_788
    assert (birds.training.sum(), (~birds.training).sum()) == (5_994, 5_794)
    assert birds.names[:2] == ["Black_footed_Albatross", "Laysan_Albatross"]
    assert np.bincount(birds.labels).min() >= 41
    assert read_boxes(birds)[0].tolist() == [60, 27, 325, 304]
    parts = read_parts(birds)
    assert parts.shape == (11_788, 15, 3)
    assert parts[0, 1].tolist() == [312, 182, 1]
    names = cub_files.part_names(cub_root)
    assert (len(names), names[1], names[14]) == (15, "beak", "throat")

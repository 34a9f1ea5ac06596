"""CUB's text files on disk: what is read, what is refused, and what a download leaves behind."""

import shutil
import tarfile

import numpy as np
import pytest
from tiny_birds import PARTS, Bird, species_folder, write_birds

from spatial_transformer.data.cub import files as cub_files
from spatial_transformer.data.cub.files import (
    check_images,
    parse_species,
    prepare,
    read_birds,
    read_boxes,
    read_parts,
)
from spatial_transformer.utils.download import unpack
from spatial_transformer.utils.errors import UsageError

BIRDS = [
    Bird(1),
    Bird(1, training=False),
    Bird(2, box=(1.0, 2.0, 3.5, 4.0)),
    Bird(3),
    Bird(4),
    Bird(2, training=False),
]


@pytest.fixture
def root(tmp_path):
    return write_birds(tmp_path / "birds", BIRDS)


# Species


@pytest.mark.parametrize(
    ("species", "chosen"),
    [
        (None, list(range(1, 201))),
        (7, [7]),
        ("7", [7]),
        ("1-50", list(range(1, 51))),
        ("1,4, 7-9", [1, 4, 7, 8, 9]),
        ("Laysan_Albatross,5", ["Laysan_Albatross", 5]),
        ([1, 2], [1, 2]),
        ([9, "1-3", "002.Kind"], [9, 1, 2, 3, "002.Kind"]),
        ("200", [200]),
    ],
)
def test_species_are_chosen_by_number_range_or_name(species, chosen):
    assert parse_species(species) == chosen


@pytest.mark.parametrize(
    ("species", "message"),
    [
        ("", r"data\.species must be names, and numbers from 1 to 200, got ''"),
        ([], r"data\.species must be names, .* got ''"),
        ("1,,2", r"data\.species must be names, .* got ''"),
        (0, r"numbers from 1 to 200, got '0'"),
        ("201", r"numbers from 1 to 200, got '201'"),
        ("150-201", "numbers from 1 to 200, got '150-201'"),
        ("9-7", "numbers from 1 to 200, got '9-7'"),
        ("3,1-4", r"data\.species must list each species once"),
        (["Wren", "Wren"], r"data\.species must list each species once"),
    ],
)
def test_a_selection_that_cannot_be_is_told(species, message):
    with pytest.raises(UsageError, match=message):
        parse_species(species)


@pytest.mark.parametrize(
    ("species", "message"),
    [
        (
            "Kind_a_Wrem",
            r"Kind_a_Wrem does not exist in .*classes\.txt\. Did you mean Kind_a_Wren\?",
        ),
        ("002.Kind_a_Wren", r"002\.Kind_a_Wren does not exist"),
        ("2,Kind_b_Wren", "must list each species once"),
        ("Kind_b_Wren,002.Kind_b_Wren", "must list each species once"),
        ("3-5", r"5 does not exist in .*classes\.txt"),
        (None, r"5 does not exist in .*classes\.txt"),
        (True, "True does not exist"),
    ],
)
def test_species_that_the_files_do_not_know_are_told(root, species, message):
    with pytest.raises(UsageError, match=message):
        read_birds(root, parse_species(species))


def test_labels_are_dense_and_in_the_official_order(root):
    birds = read_birds(root, parse_species("004.Kind_d_Wren,Kind_b_Wren"))
    assert birds.ids.tolist() == [13, 15, 16]
    assert birds.labels.tolist() == [0, 1, 0]
    assert birds.training.tolist() == [True, True, False]
    assert (birds.numbers, birds.names) == ([2, 4], ["Kind_b_Wren", "Kind_d_Wren"])
    assert birds.files[1] == f"{species_folder(4)}/Wren_0015.jpg"


# What the text files say


def test_boxes_and_parts_are_those_of_the_chosen_images(tmp_path):
    where = [((i, 2.0 * i, 1), (0.5, 0.0, 0), (i + 0.25, 9.0, 1)) for i in (0.0, 1.0, 2.0, 3.0)]
    birds = [Bird(2, parts=parts, box=(parts[0][0], -1.0, 3.5, 4.0)) for parts in where]
    birds[1] = Bird(1)
    chosen = read_birds(write_birds(tmp_path / "birds", birds), [2])
    np.testing.assert_array_equal(read_boxes(chosen), [(i, -1, 3.5, 4) for i in (0, 2, 3)])
    np.testing.assert_array_equal(read_parts(chosen)[1], [(2, 4, 1), (0.5, 0, 0), (2.25, 9, 1)])
    assert read_parts(chosen).shape == (3, 3, 3)
    assert cub_files.part_names(chosen.root) == list(PARTS)


def everything(root):
    birds = read_birds(prepare(root), parse_species("1-4"))
    check_images(birds)
    read_boxes(birds)
    read_parts(birds)


def test_lines_may_end_as_on_windows_and_the_last_may_have_no_end(root):
    for text in cub_files.COLUMNS:
        (root / text).write_bytes((root / text).read_bytes().rstrip().replace(b"\n", b"\r\n"))
    everything(root)


def test_a_folder_that_is_not_cub_is_reported_with_all_that_is_missing(root):
    (root / "images.txt").unlink()
    shutil.rmtree(root / "parts")
    with pytest.raises(
        UsageError,
        match=rf"{root} does not contain images\.txt, parts/part_locs\.txt, parts/parts\.txt\.",
    ):
        prepare(root)


@pytest.mark.parametrize("file", [file for file in cub_files.COLUMNS if file != "parts/parts.txt"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: "x" + text,
        lambda text: text[: text.rindex("\n", 0, -1)],
        lambda text: text + text,
    ],
    ids=["empty", "no number", "last line", "twice"],
)
def test_a_damaged_file_is_named(root, file, damage):
    (root / file).write_text(damage((root / file).read_text()))
    with pytest.raises(UsageError, match=rf"{file}"):
        everything(root)


# Images


def test_missing_images_are_counted(root):
    shutil.rmtree(root / "images" / species_folder(3))
    (root / "images" / species_folder(2) / "Wren_0013.jpg").unlink()
    message = rf"{root / 'images'} does not contain 2 of 6 files .* first '.*Wren_0013\.jpg'\.\nSet data\.root"
    with pytest.raises(UsageError, match=message):
        everything(root)
    check_images(read_birds(root, [1, 4]))


# The download


def test_a_named_folder_is_never_downloaded_into(tmp_path, monkeypatch):
    monkeypatch.setattr(cub_files, "download_archive", lambda *_: pytest.fail("downloaded"))
    with pytest.raises(UsageError, match="does not contain images"):
        prepare(tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []


def test_without_a_root_it_is_downloaded_once(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []

    def download(url, target, *_):
        asked.append(url)
        shutil.copytree(root, target)

    monkeypatch.setattr(cub_files, "download_archive", download)
    for _ in range(2):
        everything(None)
    assert asked == [cub_files.URL]


def test_the_archive_is_unpacked_without_what_is_next_to_its_folder(root, tmp_path):
    (tmp_path / "attributes.txt").write_text("1 has_bill\n")
    with tarfile.open(tmp_path / "CUB.tgz", "w:gz") as tar:
        tar.add(tmp_path / "attributes.txt", "attributes.txt")
        tar.add(root, "CUB_200_2011")
    unpack(tmp_path / "CUB.tgz", "CUB_200_2011", tmp_path / "unpacked")
    assert not (tmp_path / "unpacked" / "attributes.txt").exists()
    everything(tmp_path / "unpacked")


# The real ones


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


def test_the_real_part_is_complete_for_its_species(cub_root):
    birds = read_birds(cub_root, parse_species("1-50"))
    check_images(birds)
    assert (birds.training.sum(), (~birds.training).sum()) == (1_500, 1_389)

"""CUB's text files on disk: what is read, what is refused, and what a download leaves behind."""

import hashlib
import shutil
import tarfile

import numpy as np
import pytest
from tiny_birds import PARTS, Bird, species_folder, write_birds

from spatial_transformer.data import cub_files
from spatial_transformer.data.cub_files import check_images, prepare, ranges, read_birds, read_boxes, read_parts, selection
from spatial_transformer.errors import UsageError

BIRDS = [Bird(1), Bird(1, training=False), Bird(2, box=(1.0, 2.0, 3.5, 4.0)), Bird(3), Bird(4), Bird(2, training=False)]


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
    assert selection(species) == chosen


@pytest.mark.parametrize(
    ("species", "message"),
    [
        ("", r"data\.species='' names no species\. Way out"),
        ([], r"data\.species='' names no species\. Way out"),
        ("1,,2", r"'1,,2' names no species between two commas"),
        (0, r"'0': 0 does not exist\. Way out: numbers from 1 to 200"),
        ("201", "201 does not exist"),
        ("150-201", "150-201 does not exist"),
        ("9-7", "9-7 does not exist.*from the lower to the higher"),
        ("3,1-4", r"data\.species lists 3 twice"),
        (["Wren", "Wren"], r"data\.species lists Wren twice"),
    ],
)
def test_a_selection_that_cannot_be_is_told(species, message):
    with pytest.raises(UsageError, match=message):
        selection(species)


@pytest.mark.parametrize(
    ("species", "message"),
    [
        ("Kind_a_Wrem", r"Kind_a_Wrem does not exist in .*classes\.txt\. Way out: did you mean Kind_a_Wren"),
        ("002.Kind_a_Wren", r"002\.Kind_a_Wren does not exist"),
        ("2,Kind_b_Wren", r"lists 002\.Kind_b_Wren twice"),
        ("Kind_b_Wren,002.Kind_b_Wren", r"lists 002\.Kind_b_Wren twice"),
        ("3-5", r"5 does not exist in .*classes\.txt\. Way out: data\.species=1-4"),
        (None, r"5 does not exist in .*classes\.txt\. Way out: data\.species=1-4"),
        (True, "True does not exist"),
    ],
)
def test_species_that_the_files_do_not_know_are_told(root, species, message):
    with pytest.raises(UsageError, match=message):
        read_birds(root, selection(species))


def test_labels_are_dense_and_in_the_official_order(root):
    birds = read_birds(root, selection("004.Kind_d_Wren,Kind_b_Wren"))
    assert birds.ids.tolist() == [13, 15, 16]
    assert birds.labels.tolist() == [0, 1, 0]
    assert birds.training.tolist() == [True, True, False]
    assert (birds.numbers, birds.names) == ([2, 4], ["Kind_b_Wren", "Kind_d_Wren"])
    assert birds.files[1] == f"{species_folder(4)}/Wren_0015.jpg"


@pytest.mark.parametrize(("numbers", "text"), [([], ""), ([4], "4"), ([1, 2, 3, 7, 9, 10], "1-3,7,9-10")])
def test_ranges_are_written_as_they_are_read(numbers, text):
    assert ranges(numbers) == text
    assert not numbers or selection(text) == numbers


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
    birds = read_birds(prepare(root), selection("1-4"))
    check_images(birds)
    read_boxes(birds)
    read_parts(birds)


def test_lines_may_end_as_on_windows_and_the_last_may_have_no_end(root):
    for text in cub_files.TEXTS:
        (root / text).write_bytes((root / text).read_bytes().rstrip().replace(b"\n", b"\r\n"))
    everything(root)


@pytest.mark.parametrize("text", cub_files.TEXTS)
def test_a_missing_file_is_named(root, text):
    (root / text).unlink()
    with pytest.raises(UsageError, match=rf"{root} lacks {text}\.\nWay out: .*data\.root=FOLDER"):
        everything(root)


def test_a_folder_that_is_not_cub_is_told_with_all_that_it_lacks(tmp_path):
    with pytest.raises(UsageError, match=rf"{tmp_path} lacks images\.txt, .*part_locs\.txt\.\nWay out"):
        prepare(tmp_path)


@pytest.mark.parametrize("text", cub_files.TEXTS)
@pytest.mark.parametrize("damage", [lambda line: "", lambda line: line[: line.rindex(" ")], lambda line: line + " x\x00"])
def test_a_line_that_cannot_be_read_is_named_with_its_number(root, text, damage):
    lines = (root / text).read_text().splitlines()
    lines[1] = damage(lines[1])
    if text == "parts/parts.txt" and lines[1].endswith("x\x00"):
        lines[1] = "two " + lines[1]  # a part's name may have spaces
    (root / text).write_text("\n".join(lines) + "\n")
    with pytest.raises(UsageError, match=rf"{root / text}, line 2: (.|\n)*Way out: "):
        everything(root)


@pytest.mark.parametrize("text", [text for text in cub_files.TEXTS if text != "parts/parts.txt"])
def test_a_file_cut_anywhere_in_its_last_line_is_refused(root, text):
    content = (root / text).read_text().rstrip()
    for end in range(content.rindex("\n") + 1, len(content)):
        (root / text).write_text(content[:end])
        with pytest.raises(UsageError, match=rf"{root}.*, line \d+: "):
            everything(root)


@pytest.mark.parametrize("text", cub_files.TEXTS)
def test_an_empty_file_is_named(root, text):
    (root / text).write_text("")
    with pytest.raises(UsageError, match=rf"{text}, line 1: the file is empty"):
        everything(root)


@pytest.mark.parametrize(
    ("text", "line", "other", "message"),
    [
        ("images.txt", 3, f"11 {species_folder(2)}/Wren_0013.jpg", "line 3: image 11 stands in line 1 already"),
        (
            "images.txt",
            3,
            "13 ../Wren_0013.jpg",
            r"line 3: species 2 is 002\.Kind_b_Wren, but images\.txt has .* in \.\.",
        ),
        ("images.txt", 3, "99 " + species_folder(2) + "/x.jpg", r"line 3: image 13 stands where images\.txt has image 99"),
        ("classes.txt", 2, "3 003.Other", r"line 2: species 3 003\.Other stands where species 2 should"),
        ("classes.txt", 2, "2 003.Other", r"line 2: species 2 003\.Other stands where species 2 should"),
        (
            "classes.txt",
            2,
            "2 002.Other",
            r"labels\.txt, line 3: species 2 is 002\.Other, but images\.txt has .* in 002\.K",
        ),
        ("image_class_labels.txt", 4, "14 1", r"line 4: species 1 is 001\.Kind_a_Wren, but images\.txt has"),
        ("image_class_labels.txt", 4, "14 77", r"line 4: species 77 is not in classes\.txt"),
        ("train_test_split.txt", 6, "12 1", r"line 6: image 12 stands where images\.txt has image 16"),
        ("train_test_split.txt", 6, "16 1\n17 0", r"line 7: the file goes on, but the 6 images of images\.txt take 6 lines"),
        ("train_test_split.txt", 6, None, r"line 6: the file ends before it, but the 6 images"),
        ("bounding_boxes.txt", 6, None, r"line 6: the file ends before it"),
        ("bounding_boxes.txt", 2, "12 1.0 nan 3.0 4.0", r"line 2: '12 1\.0 nan 3\.0 4\.0' is not ID LEFT TOP WIDTH HEIGHT"),
        ("parts/parts.txt", 3, "4 tail", r"line 3: part 4 stands where part 3 should"),
        ("parts/part_locs.txt", 5, "12 3 0.0 0.0 0", r"line 5: part 3 stands where 2 should"),
        (
            "parts/parts.txt",
            3,
            None,
            r"locs\.txt, line 3: image 11 stands where images\.txt, with 2 parts each as in parts\.txt, has",
        ),
        (
            "parts/part_locs.txt",
            18,
            None,
            r"line 18: the file ends before it, but the 6 images of .* parts\.txt, take 18 lines",
        ),
    ],
)
def test_files_that_do_not_fit_together_are_told(root, text, line, other, message):
    lines = (root / text).read_text().splitlines()
    lines[line - 1 : line] = [] if other is None else [other]
    (root / text).write_text("\n".join(lines) + "\n")
    with pytest.raises(UsageError, match=message):
        everything(root)


# Images


def test_absent_images_are_counted_and_the_complete_species_are_the_way_out(root):
    shutil.rmtree(root / "images" / species_folder(3))
    (root / "images" / species_folder(4) / "Wren_0015.jpg").unlink()
    message = (
        rf"{root / 'images'} lacks 2 of the 6 images .*Wren_0014\.jpg, .*Wren_0015\.jpg\. Complete are the species 1-2\.\n"
        r"Way out: do with these \(data\.species=1-2\)"
    )
    with pytest.raises(UsageError, match=message):
        everything(root)
    check_images(read_birds(root, selection("1-2")))
    with pytest.raises(UsageError, match=r"lacks 1 of the 1 images (.|\n)*None of these species is complete"):
        check_images(read_birds(root, [4]))


def test_complete_species_with_gaps_are_written_for_the_shell(root):
    shutil.rmtree(root / "images" / species_folder(2))
    with pytest.raises(UsageError, match=r"\('data\.species=\[1,3-4\]'\)"):
        everything(root)


# The download


def test_a_named_folder_is_never_downloaded_into(tmp_path, monkeypatch):
    monkeypatch.setattr(cub_files, "download", lambda *_: pytest.fail("downloaded"))
    with pytest.raises(UsageError, match="lacks images"):
        prepare(tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []


def test_without_a_root_it_is_downloaded_once(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(cub_files, "download", lambda folder: asked.append(shutil.copytree(root, folder / "CUB_200_2011")))
    for _ in range(2):
        everything(None)
    assert len(asked) == 1


@pytest.fixture
def archive(root, tmp_path):
    """The archive as the official one is: with a file beside the folder."""
    (tmp_path / "attributes.txt").write_text("1 has_bill\n")
    with tarfile.open(tmp_path / "CUB_200_2011.tgz", "w:gz") as tar:
        tar.add(tmp_path / "attributes.txt", "attributes.txt")
        tar.add(root, "CUB_200_2011")
    return tmp_path / "CUB_200_2011.tgz"


def test_the_archive_is_proved_and_unpacked(archive, tmp_path):
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    cub_files.download(tmp_path / "data", archive.as_uri(), md5)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["CUB_200_2011"]
    everything(tmp_path / "data" / "CUB_200_2011")


def test_another_archive_is_refused_and_nothing_is_left(archive, tmp_path):
    message = rf"its md5 is \w+, not {cub_files.MD5}\. It was deleted\.\nWay out: start again (.|\n)*data\.root=FOLDER"
    with pytest.raises(UsageError, match=message):
        cub_files.download(tmp_path / "data", archive.as_uri())
    assert list((tmp_path / "data").iterdir()) == []


# The real ones


def test_real_text_files_are_read(cub_root):
    birds = read_birds(cub_root, selection(None))
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
    birds = read_birds(cub_root, selection("1-50"))
    check_images(birds)
    assert (birds.training.sum(), (~birds.training).sum()) == (1_500, 1_389)

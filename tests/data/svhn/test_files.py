"""SVHN's annotations, and the directories of its parts."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from make_svhn import write_annotations

from spatial_transformer.data.svhn import files as svhn_files
from spatial_transformer.data.svhn.files import Annotation, read_annotations
from spatial_transformer.utils.errors import UsageError

BOXES = np.array([[3.0, 4, 5, 6], [9, 4, 5, 7], [15, 5, 4, 6]])


def write_part(part, *numbers):
    """Write annotations without images."""
    part.mkdir(parents=True)
    names = (f"{i}.png" for i in range(1, len(numbers) + 1))
    annotations = [Annotation(i, BOXES[: len(n)], n) for i, n in zip(names, numbers)]
    write_annotations(part, annotations)
    return part


# digitStruct.mat


@pytest.mark.parametrize("part", ["train", "test"])
def test_real_annotations_are_read(svhn_root, part):
    count = svhn_files.count_annotations(svhn_root / part)
    annotations = read_annotations(svhn_root / part, slice(0, count, count // 200))
    assert all((svhn_root / part / annotation.name).is_file() for annotation in annotations)
    assert {len(annotation.labels) for annotation in annotations} >= {1, 2, 3}
    assert {label for annotation in annotations for label in annotation.labels} == set(range(10))
    assert all(annotation.boxes.shape == (len(annotation.labels), 4) for annotation in annotations)


def test_known_entry_is_read(svhn_root):
    (first,) = read_annotations(svhn_root / "train", slice(1))
    assert (first.name, first.labels) == ("1.png", (1, 9))
    assert first.boxes.tolist() == [[246, 77, 81, 219], [323, 81, 96, 219]]


def test_written_annotations_are_read(tmp_path):
    numbers = [(0,), (7,), (1, 0), (5, 0, 9)]
    part = write_part(tmp_path / "train", *numbers)
    annotations = read_annotations(part)
    assert [a.labels for a in annotations] == numbers
    assert [a.name for a in annotations] == ["1.png", "2.png", "3.png", "4.png"]
    for annotation in annotations:
        np.testing.assert_array_equal(annotation.boxes, BOXES[: len(annotation.labels)])
    assert [a.labels for a in read_annotations(part, slice(1, 3))] == numbers[1:3]
    with h5py.File(part / "digitStruct.mat") as file:  # the official layout
        assert file[file["digitStruct/bbox"][0, 0]]["label"][()].tolist() == [[10]]
        assert file[file["digitStruct/bbox"][2, 0]]["label"].dtype == h5py.ref_dtype


@pytest.mark.parametrize(
    "damage", [lambda c: c[: len(c) // 2], lambda c: b"", lambda c: b"no HDF5" * 500]
)
def test_damaged_file_is_named(tmp_path, damage):
    part = write_part(tmp_path / "train", *[(1, 2)] * 20)
    path = part / "digitStruct.mat"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UsageError, match=rf"SVHN is damaged: {path}: "):
        read_annotations(part)


def set_label(value):
    def damage(file, group):
        file[group["label"][0, 0]][...] = value

    return damage


def drop_field(file, group):
    del group["width"]


def shorten_field(file, group):
    first = group["left"][0, 0]
    del group["left"]
    group["left"] = np.array([[first]], dtype=h5py.ref_dtype)


def set_reference(get_reference):
    def damage(file, group):
        references = group["top"][()]
        references[0, 0] = get_reference(group)
        group["top"][...] = references

    return damage


def write_text(file, group):
    del group["height"]
    group["height"] = np.array([[b"a"], [b"b"]])


DAMAGES = {
    **{f"label {value}": set_label(value) for value in (11, 0, 1.5)},
    "missing field": drop_field,
    "short field": shorten_field,
    "null reference": set_reference(lambda group: h5py.Reference()),
    "reference to a group": set_reference(lambda group: group.ref),
    "text": write_text,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_entry_is_reported(tmp_path, damage):
    part = write_part(tmp_path / "train", (1,), (2, 3), (4,))
    with h5py.File(part / "digitStruct.mat", "r+") as file:
        damage(file, file[file["digitStruct/bbox"][1, 0]])
    with pytest.raises(UsageError, match=r"SVHN is damaged: .*digitStruct\.mat: "):
        read_annotations(part)


# The root


@pytest.fixture
def downloads(monkeypatch):
    """Replace downloads, and return the list of those that are started."""
    started = []

    def download(url, part, required, known_hash):
        started.append((url, part, known_hash))
        write_part(part, (1,))

    monkeypatch.setattr(svhn_files, "download_archive", download)
    return started


def names(parts):
    return [part.name for part in parts]


def test_extra_is_used_if_it_exists(tmp_path, downloads):
    for part in ("train", "test"):
        write_part(tmp_path / part, (1,))
    assert names(svhn_files.prepare(tmp_path, None)) == ["train", "test"]
    with pytest.raises(UsageError, match=rf"{tmp_path} does not contain extra/digitStruct\.mat"):
        svhn_files.prepare(tmp_path, True)
    write_part(tmp_path / "extra", (1,))
    assert names(svhn_files.prepare(str(tmp_path), None)) == ["train", "test", "extra"]
    assert names(svhn_files.prepare(tmp_path, False)) == ["train", "test"]


def test_missing_parts_of_a_root_are_not_downloaded(tmp_path, downloads):
    files = r"train/digitStruct\.mat, test/digitStruct\.mat"
    with pytest.raises(UsageError, match=rf"{tmp_path} does not contain {files}\.\nSet data\.root"):
        svhn_files.prepare(tmp_path, None)
    assert downloads == []
    assert list(tmp_path.iterdir()) == []


def test_missing_parts_are_downloaded_without_a_root(tmp_path, monkeypatch, downloads):
    monkeypatch.chdir(tmp_path)
    write_part(tmp_path / "data" / "SVHN" / "test", (1,))
    svhn_files.prepare(None, False)
    train = Path("data", "SVHN", "train")
    known_hash = f"sha256:{svhn_files.SHA256['train']}"
    assert downloads == [(f"{svhn_files.URL}/train.tar.gz", train, known_hash)]
    svhn_files.prepare(None, None)
    assert names(part for _, part, _ in downloads) == ["train", "extra"]

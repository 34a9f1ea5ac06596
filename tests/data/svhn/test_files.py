"""SVHN's full numbers on disk: what is read, what is refused, and what a download leaves behind."""

import gzip
import hashlib
import io
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import numpy as np
import pytest
from make_svhn import write_annotations
from PIL import Image

from spatial_transformer.data.svhn import files as svhn_files
from spatial_transformer.data.svhn.files import Annotation, read_annotations
from spatial_transformer.utils.errors import UsageError

BOXES = np.array([[3.0, 4, 5, 6], [9, 4, 5, 7], [15, 5, 4, 6]])


def write_part(folder, *numbers):
    """A part whose image N.png shows the Nth number."""
    folder.mkdir(parents=True)
    annotations = []
    for i, labels in enumerate(numbers, 1):
        Image.new("RGB", (24, 16), (i, 0, 0)).save(folder / f"{i}.png")
        annotations.append(Annotation(f"{i}.png", BOXES[: len(labels)], labels))
    write_annotations(folder, annotations)
    return folder


# What digitStruct.mat says


@pytest.mark.parametrize(("part", "n"), [("train", 2026), ("test", 700)])
def test_real_annotations_are_read(svhn_root, part, n):
    count = svhn_files.count_annotations(svhn_root / part)
    assert count in (n, 33_402, 13_068)  # of the part for tests, or of the whole
    annotations = read_annotations(svhn_root / part, range(0, count, count // 200))
    assert all((svhn_root / part / annotation.name).is_file() for annotation in annotations)
    lengths = np.bincount([len(annotation.labels) for annotation in annotations])
    assert (lengths[1:4] > 0).all()
    assert sorted({label for annotation in annotations for label in annotation.labels}) == list(
        range(10)
    )
    assert all(annotation.boxes.shape == (len(annotation.labels), 4) for annotation in annotations)


def test_real_entries_are_those_that_are_known(svhn_root):
    first, second = read_annotations(svhn_root / "train", range(2))
    assert first.name == "1.png"
    assert first.labels == (1, 9)
    assert first.boxes.tolist() == [[246, 77, 81, 219], [323, 81, 96, 219]]
    assert second.labels == (2, 3)
    single = next(a for a in read_annotations(svhn_root / "test", range(50)) if len(a.labels) == 1)
    assert single.boxes.shape == (1, 4)


def test_entries_of_one_and_of_many_digits_are_read_and_label_10_is_0(tmp_path):
    part = write_part(tmp_path / "train", (0,), (7,), (1, 0), (5, 0, 9))
    annotations = read_annotations(part)
    assert [a.labels for a in annotations] == [(0,), (7,), (1, 0), (5, 0, 9)]
    assert [a.name for a in annotations] == ["1.png", "2.png", "3.png", "4.png"]
    for annotation in annotations:
        np.testing.assert_array_equal(annotation.boxes, BOXES[: len(annotation.labels)])
    with h5py.File(part / "digitStruct.mat") as file:
        assert file[file["digitStruct/bbox"][0, 0]]["label"][()].tolist() == [[10]]
        assert file[file["digitStruct/bbox"][2, 0]]["label"].dtype == h5py.ref_dtype


def test_a_range_of_entries_is_read_alone(tmp_path):
    part = write_part(tmp_path / "train", (0,), (7,), (1, 0))
    assert [a.labels for a in read_annotations(part, range(1, 3))] == [(7,), (1, 0)]


@pytest.mark.parametrize(
    "damage", [lambda c: c[: len(c) // 2], lambda c: b"", lambda c: b"no HDF5" * 500]
)
def test_a_damaged_file_is_named(tmp_path, damage):
    part = write_part(tmp_path / "train", *[(1, 2)] * 20)
    path = part / "digitStruct.mat"
    path.write_bytes(damage(path.read_bytes()))
    for read in (read_annotations, svhn_files.count_annotations):
        with pytest.raises(UsageError, match=rf"SVHN is damaged: {path}: "):
            read(part)


def test_a_file_without_the_struct_is_refused(tmp_path):
    part = write_part(tmp_path / "train", (1,))
    with h5py.File(part / "digitStruct.mat", "w") as file:
        file["other"] = 1
    with pytest.raises(UsageError, match=r"digitStruct\.mat: .*digitStruct"):
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


def null_reference(file, group):
    references = group["top"][()]
    references[0, 0] = h5py.Reference()
    group["top"][...] = references


def reference_to_a_group(file, group):
    references = group["top"][()]
    references[0, 0] = group.ref
    group["top"][...] = references


def text_for_numbers(file, group):
    del group["height"]
    group["height"] = np.array([[b"a"], [b"b"]])


@pytest.mark.parametrize(
    "damage",
    [
        *(set_label(value) for value in (11, 0, 1.5)),
        drop_field,
        shorten_field,
        null_reference,
        reference_to_a_group,
        text_for_numbers,
    ],
)
def test_an_entry_that_cannot_be_read_is_named_with_its_index(tmp_path, damage):
    part = write_part(tmp_path / "train", (1,), (2, 3), (4,))
    with h5py.File(part / "digitStruct.mat", "r+") as file:
        damage(file, file[file["digitStruct/bbox"][1, 0]])
    with pytest.raises(UsageError, match=r"digitStruct\.mat: entry 1: "):
        read_annotations(part)


def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path):
    part = write_part(tmp_path / "train", (1,))
    write_annotations(part, [Annotation("../1.png", BOXES[:1], (1,))])
    with pytest.raises(UsageError, match=r"entry 0: '\.\./1\.png'"):
        read_annotations(part)


# A folder that the user names


def test_extra_is_used_where_it_is_there_unless_told_otherwise(tmp_path):
    for part in ("train", "test"):
        write_part(tmp_path / part, (1,))
    assert [f.name for f in svhn_files.prepare(tmp_path, None)] == ["train", "test"]
    with pytest.raises(UsageError, match=rf"{tmp_path} does not contain extra/digitStruct\.mat"):
        svhn_files.prepare(tmp_path, True)
    write_part(tmp_path / "extra", (1,))
    assert [f.name for f in svhn_files.prepare(str(tmp_path), None)] == ["train", "test", "extra"]
    assert [f.name for f in svhn_files.prepare(tmp_path, False)] == ["train", "test"]


def test_a_named_folder_is_never_downloaded_into(tmp_path, monkeypatch):
    monkeypatch.setattr(svhn_files, "download_archive", lambda *_: pytest.fail("downloaded"))
    with pytest.raises(
        UsageError,
        match=rf"{tmp_path} does not contain train/digitStruct\.mat, test/digitStruct\.mat\.\nSet data\.root",
    ):
        svhn_files.prepare(tmp_path, None)
    assert list(tmp_path.iterdir()) == []


def test_without_a_root_what_is_missing_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_part(tmp_path / "data" / "SVHN" / "test", (1,))
    asked = []

    def download(url, target, *_):
        asked.append((url, target))
        write_part(target, (1,))

    monkeypatch.setattr(svhn_files, "download_archive", download)
    svhn_files.prepare(None, False)
    assert asked == [(f"{svhn_files.URL}/train.tar.gz", Path("data/SVHN/train"))]
    svhn_files.prepare(None, None)
    assert [target.name for _, target in asked] == ["train", "extra"]


# The download


@pytest.fixture
def server():
    """Serves ``contents[path]``; ``breaks_off`` is the number of bytes after which it hangs up."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked.append(self.path)
            content = server.contents.get(self.path)
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: server.breaks_off])

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.contents, server.asked, server.breaks_off = {}, [], None
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """An archive of a part with two images, as bytes; it is taken for the official one."""
    monkeypatch.setattr(svhn_files, "SHA256", {})
    part = write_part(tmp_path / "source" / "train", (1,), (2, 3))
    return packed(lambda tar: tar.add(part, "train"))


def packed(fill):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        fill(tar)
    return file.getvalue()


def left_in(folder):
    return sorted(path.name for path in folder.glob("[!.]*"))


def test_an_archive_is_downloaded_unpacked_and_deleted(tmp_path, server, archive):
    server.contents["/train.tar.gz"] = archive
    svhn_files.download("train", tmp_path / "SVHN", server.url)
    assert [a.labels for a in read_annotations(tmp_path / "SVHN" / "train")] == [(1,), (2, 3)]
    assert left_in(tmp_path / "SVHN") == ["train"]
    assert left_in(tmp_path / "SVHN" / "train") == ["1.png", "2.png", "digitStruct.mat"]


def test_two_that_download_at_once_fetch_once(tmp_path, server, archive):
    server.contents["/train.tar.gz"] = archive
    with ThreadPoolExecutor(2) as pool:
        list(
            pool.map(
                lambda _: svhn_files.download("train", tmp_path / "SVHN", server.url), range(2)
            )
        )
    assert len(server.asked) == 1
    assert left_in(tmp_path / "SVHN") == ["train"]


def test_an_archive_that_is_not_the_official_one_is_refused_and_nothing_is_left(
    tmp_path, server, archive, monkeypatch
):
    monkeypatch.setattr(svhn_files, "SHA256", {"train": hashlib.sha256(archive).hexdigest()})
    server.contents["/train.tar.gz"] = archive
    svhn_files.download("train", tmp_path / "SVHN", server.url)
    server.contents["/train.tar.gz"] = archive + b"more"
    with pytest.raises(
        UsageError, match=r"train\.tar\.gz could not be downloaded to .*other/train: SHA256"
    ):
        svhn_files.download("train", tmp_path / "other", server.url)
    assert left_in(tmp_path / "other") == []


def flipped(content):
    """A bit of the CRC, which is 8 bytes before the end."""
    return content[:-8] + bytes([content[-8] ^ 1]) + content[-7:]


def with_member(content, **attributes):
    """The archive with another member before the others."""
    member = tarfile.TarInfo()
    for name, value in attributes.items():
        setattr(member, name, value)

    def fill(tar):
        tar.addfile(member)
        with tarfile.open(fileobj=io.BytesIO(content)) as source:
            for other in source:
                tar.addfile(other, source.extractfile(other))

    return packed(fill)


UNSAFE = {
    "up": {"name": "../outside"},
    "up in the part": {"name": "train/../../outside"},
    "absolute": {"name": "/outside"},
    "link": {"name": "train/link", "type": tarfile.SYMTYPE, "linkname": "1.png"},
    "link elsewhere": {"name": "other/link", "type": tarfile.SYMTYPE, "linkname": "../.."},
    "hard link": {"name": "train/hard", "type": tarfile.LNKTYPE, "linkname": "train/1.png"},
    "pipe": {"name": "train/pipe", "type": tarfile.FIFOTYPE},
    "device": {"name": "train/null", "type": tarfile.CHRTYPE},
}


@pytest.mark.parametrize("name", UNSAFE)
def test_only_regular_files_and_directories_are_unpacked(tmp_path, server, archive, name):
    server.contents["/train.tar.gz"] = with_member(archive, **UNSAFE[name])
    with pytest.raises(
        UsageError,
        match=rf"could not be downloaded .*its member '{UNSAFE[name]['name']}' is unsafe",
    ):
        svhn_files.download("train", tmp_path / "SVHN", server.url)
    assert left_in(tmp_path / "SVHN") == []
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: c[:-100],
        flipped,
        lambda c: b"<html>moved</html>",
        lambda c: packed(lambda tar: None),
        lambda c: gzip.compress(b"no archive" * 200),
    ],
    ids=["truncated", "CRC", "page", "empty", "no tar"],
)
def test_a_damaged_archive_is_refused_and_nothing_is_left(tmp_path, server, archive, damage):
    server.contents["/train.tar.gz"] = damage(archive)
    with pytest.raises(UsageError, match=r"train\.tar\.gz could not be downloaded "):
        svhn_files.download("train", tmp_path / "SVHN", server.url)
    assert left_in(tmp_path / "SVHN") == []


def test_a_download_that_breaks_off_is_reported_and_nothing_is_left(tmp_path, server, archive):
    server.contents["/train.tar.gz"] = archive
    server.breaks_off = 700
    with pytest.raises(
        UsageError,
        match=rf"{server.url}/train\.tar\.gz could not be downloaded(.|\n)*Run the same command",
    ):
        svhn_files.download("train", tmp_path / "SVHN", server.url)
    assert left_in(tmp_path / "SVHN") == []


@pytest.mark.parametrize(("url", "reason"), [(None, "404"), ("http://127.0.0.1:9", "refused")])
def test_a_server_without_the_file_is_reported(tmp_path, server, url, reason):
    with pytest.raises(
        UsageError, match=rf"extra\.tar\.gz could not be downloaded .*{reason}(.|\n)*data\.root"
    ):
        svhn_files.download("extra", tmp_path, url or server.url)
    assert left_in(tmp_path) == []

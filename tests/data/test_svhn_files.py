"""SVHN's full numbers on disk: what is read, what is refused, and what a download leaves behind."""

import gzip
import hashlib
import io
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import h5py
import numpy as np
import pytest
from PIL import Image

from spatial_transformer.data import svhn_files
from spatial_transformer.data.svhn_files import Annotation, read_annotations
from spatial_transformer.data.svhn_synthetic import write_annotations
from spatial_transformer.errors import UsageError

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
def test_real_annotations_are_all_read(svhn_root, part, n):
    annotations = read_annotations(svhn_root / part)
    if svhn_files.count_annotations(svhn_root / part) not in (33_402, 13_068):  # the part of it that goes around for tests
        assert len(annotations) == n
    assert svhn_files.missing_images(svhn_root / part, annotations) == []
    lengths = np.bincount([len(annotation.labels) for annotation in annotations])
    assert (lengths[1:5] > 0).all()
    assert sorted({label for annotation in annotations for label in annotation.labels}) == list(range(10))
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


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=rf"{tmp_path} lacks digitStruct\.mat\.\nWay out: "):
        read_annotations(tmp_path)


@pytest.mark.parametrize("damage", [lambda c: c[: len(c) // 2], lambda c: b"", lambda c: b"no HDF5" * 500])
def test_a_broken_file_is_named(tmp_path, damage):
    part = write_part(tmp_path / "train", *[(1, 2)] * 20)
    path = part / "digitStruct.mat"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UsageError, match=rf"{path}: (.|\n)*Way out: "):
        read_annotations(part)


def test_a_file_without_the_struct_is_refused(tmp_path):
    part = write_part(tmp_path / "train", (1,))
    with h5py.File(part / "digitStruct.mat", "w") as file:
        file["other"] = 1
    with pytest.raises(UsageError, match=r"digitStruct\.mat: digitStruct/name cannot be read"):
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
    with pytest.raises(UsageError, match=r"digitStruct\.mat: entry 1 cannot be read: "):
        read_annotations(part)


def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path):
    part = write_part(tmp_path / "train", (1,))
    write_annotations(part, [Annotation("../1.png", BOXES[:1], (1,))])
    with pytest.raises(UsageError, match=r"entry 0 cannot be read: '\.\./1\.png'"):
        read_annotations(part)


# A folder that the user names


def test_extra_is_used_where_it_is_there_unless_told_otherwise(tmp_path):
    for part in ("train", "test"):
        write_part(tmp_path / part, (1,))
    assert [f.name for f in svhn_files.prepare(tmp_path, None)] == ["train", "test"]
    with pytest.raises(UsageError, match=rf"{tmp_path} lacks extra/digitStruct\.mat(.|\n)*data\.extra=false"):
        svhn_files.prepare(tmp_path, True)
    write_part(tmp_path / "extra", (1,))
    assert [f.name for f in svhn_files.prepare(str(tmp_path), None)] == ["train", "test", "extra"]
    assert [f.name for f in svhn_files.prepare(tmp_path, False)] == ["train", "test"]


def test_a_named_folder_is_never_downloaded_into(tmp_path, monkeypatch):
    monkeypatch.setattr(svhn_files, "download", lambda *_: pytest.fail("downloaded"))
    with pytest.raises(UsageError, match=rf"{tmp_path} lacks train/digitStruct\.mat, test/digitStruct\.mat(.|\n)*data\.root="):
        svhn_files.prepare(tmp_path, None)
    assert list(tmp_path.iterdir()) == []


def test_without_a_root_what_is_missing_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_part(tmp_path / "data" / "SVHN" / "test", (1,))
    asked = []
    monkeypatch.setattr(svhn_files, "download", lambda part, folder: asked.append(part))
    svhn_files.prepare(None, None)
    svhn_files.prepare(None, False)
    assert asked == ["train", "extra", "train"]


# The download


@pytest.fixture
def server():
    """Serves ``contents[path]`` with ranges; ``breaks_off`` says after how many bytes it hangs up; ``asked`` is a record."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            content = server.contents.get(self.path)
            wanted = self.headers.get("Range")
            server.asked.append(wanted)
            if content is None:
                self.send_error(404)
                return
            start = int(wanted[6:-1]) if wanted and server.ranges else 0
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.end_headers()
                return
            self.send_response(206 if wanted and server.ranges else 200)
            if wanted and server.ranges:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start : server.breaks_off])

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.contents, server.asked, server.ranges, server.breaks_off = {}, [], True, None
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
    return sorted(path.name for path in folder.iterdir())


def test_an_archive_is_downloaded_unpacked_and_deleted(tmp_path, server, archive):
    server.contents["/train.tar.gz"] = archive
    svhn_files.download("train", tmp_path / "SVHN", server.url)
    assert [a.labels for a in read_annotations(tmp_path / "SVHN" / "train")] == [(1,), (2, 3)]
    assert left_in(tmp_path / "SVHN") == ["train"]
    assert left_in(tmp_path / "SVHN" / "train") == ["1.png", "2.png", "digitStruct.mat"]


def test_two_that_download_at_once_fetch_once(tmp_path, server, archive):
    server.contents["/train.tar.gz"] = archive
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: svhn_files.download("train", tmp_path / "SVHN", server.url), range(2)))
    assert len(server.asked) == 1
    assert left_in(tmp_path / "SVHN") == ["train"]


def test_a_python_that_cannot_unpack_safely_downloads_nothing(tmp_path, server, archive, monkeypatch):
    monkeypatch.delattr(tarfile, "data_filter")  # as before Python 3.10.12 and 3.11.4
    server.contents["/train.tar.gz"] = archive
    with pytest.raises(UsageError, match=r"cannot unpack SVHN's archive safely.\nWay out: Python 3\.11\.4"):
        svhn_files.download("train", tmp_path / "SVHN", server.url)
    assert not (tmp_path / "SVHN").exists()


def test_a_download_that_broke_off_goes_on_where_it_was(tmp_path, server, archive):
    server.contents["/train.tar.gz"] = archive
    server.breaks_off = 700
    with pytest.raises(UsageError, match=rf"{server.url}/train\.tar\.gz (.|\n)*Way out: start again"):
        svhn_files.download("train", tmp_path / "SVHN", server.url)
    assert left_in(tmp_path / "SVHN") == ["train.tar.gz.part"]
    assert (tmp_path / "SVHN" / "train.tar.gz.part").read_bytes() == archive[:700]
    server.breaks_off = None
    svhn_files.download("train", tmp_path / "SVHN", server.url)
    assert server.asked == [None, "bytes=700-"]
    assert left_in(tmp_path / "SVHN") == ["train"]


def test_a_server_without_ranges_sends_all_again(tmp_path, server, archive):
    server.contents["/train.tar.gz"] = archive
    server.ranges = False
    (tmp_path / "train.tar.gz.part").write_bytes(archive[:700])
    svhn_files.download("train", tmp_path, server.url)
    assert (tmp_path / "train" / "digitStruct.mat").is_file()


def test_a_whole_file_that_was_not_yet_unpacked_is_not_downloaded_again(tmp_path, server, archive):
    server.contents["/train.tar.gz"] = archive
    (tmp_path / "train.tar.gz.part").write_bytes(archive)
    svhn_files.download("train", tmp_path, server.url)
    assert (tmp_path / "train" / "digitStruct.mat").is_file()


def test_a_file_longer_than_the_servers_is_dropped(tmp_path, server, archive):
    server.contents["/train.tar.gz"] = archive
    (tmp_path / "train.tar.gz.part").write_bytes(archive + b"more")
    with pytest.raises(UsageError, match="Way out: start again"):
        svhn_files.download("train", tmp_path, server.url)
    assert "train.tar.gz.part" not in left_in(tmp_path)


def test_an_archive_that_is_not_the_official_one_is_refused_and_nothing_is_left(tmp_path, server, archive, monkeypatch):
    monkeypatch.setattr(svhn_files, "SHA256", {"train": hashlib.sha256(archive).hexdigest()})
    server.contents["/train.tar.gz"] = archive
    svhn_files.download("train", tmp_path / "SVHN", server.url)
    server.contents["/train.tar.gz"] = packed(
        lambda tar: tar.add(tmp_path / "SVHN" / "train" / "1.png", "train/digitStruct.mat")
    )
    with pytest.raises(UsageError, match=r"train\.tar\.gz is damaged or unsafe: its sha256 is"):
        svhn_files.download("train", tmp_path / "other", server.url)
    assert left_in(tmp_path / "other") == []


def flipped(content):
    """A bit of the CRC, which stands 8 bytes before the end."""
    return content[:-8] + bytes([content[-8] ^ 1]) + content[-7:]


def leading_out(content):
    def fill(tar):
        member = tarfile.TarInfo("../outside")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"bad"))

    return packed(fill)


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: c[:-100],
        flipped,
        lambda c: b"<html>moved</html>",
        leading_out,
        lambda c: packed(lambda tar: None),
        lambda c: gzip.compress(b"no archive" * 200),
    ],
    ids=["truncated", "CRC", "page", "leading out", "empty", "no tar"],
)
def test_a_bad_archive_is_refused_and_nothing_is_left(tmp_path, server, archive, damage):
    server.contents["/train.tar.gz"] = damage(archive)
    with pytest.raises(UsageError, match=r"train\.tar\.gz is damaged or unsafe: (.|\n)*Way out: start again"):
        svhn_files.download("train", tmp_path / "SVHN", server.url)
    assert left_in(tmp_path / "SVHN") == []
    assert not (tmp_path / "outside").exists()


def test_a_file_that_the_server_lacks_is_told_with_the_way_out(tmp_path, server):
    with pytest.raises(UsageError, match=rf"{server.url}/extra\.tar\.gz to {tmp_path}: HTTP Error 404(.|\n)*data\.root=FOLDER"):
        svhn_files.download("extra", tmp_path, server.url)
    assert left_in(tmp_path) == []


def test_a_server_that_cannot_be_reached_is_told_with_the_way_out(tmp_path):
    with pytest.raises(UsageError, match=r"refused(.|\n)*data\.root=FOLDER"):
        svhn_files.download("train", tmp_path, "http://127.0.0.1:9")
    assert left_in(tmp_path) == []

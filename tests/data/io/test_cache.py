"""Caches: concurrent processes, settings, damage, and directories that cannot be written."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from spatial_transformer.data.io.cache import cache_directories, open_cache
from spatial_transformer.utils.errors import UsageError


def open_word(directory: Path, word: str = "word", directories=None) -> str:
    """Open a cache of one word. Each process that writes it leaves a file next to it."""

    def write(new: Path) -> dict:
        (directory / f"made-{os.getpid()}").touch()
        (new / "word").write_text(word)
        time.sleep(0.1)
        return {"length": len(word)}

    def read(new: Path, meta: dict) -> str:
        assert meta["length"] == len(word)
        return (new / "word").read_text()

    directories = directories or [directory / "cache"]
    return open_cache("word", {"word": word}, directories, write, read)


def visible(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("[!.]*"))


def test_one_of_several_processes_makes_the_cache(tmp_path):
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert pool.map(open_word, [tmp_path] * 3, chunksize=1) == ["word"] * 3
    assert len(list(tmp_path.glob("made-*"))) == 1
    assert len(visible(tmp_path / "cache")) == 1


def test_each_setting_has_its_own_cache(tmp_path):
    assert [open_word(tmp_path, word) for word in "abab"] == ["a", "b", "a", "b"]
    assert len(visible(tmp_path / "cache")) == 2


def change(path):
    path.write_bytes(b"ward")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [change, truncate, Path.unlink])
@pytest.mark.parametrize("name", ["word", "meta.json"])
def test_a_damaged_cache_is_replaced_with_a_warning(tmp_path, caplog, damage, name):
    open_word(tmp_path)
    (directory,) = visible(tmp_path / "cache")
    damage(tmp_path / "cache" / directory / name)
    assert open_word(tmp_path) == "word"
    (message,) = caplog.messages
    assert f"{directory} is damaged" in message
    caplog.clear()
    assert open_word(tmp_path) == "word"
    assert not caplog.messages


def test_read_only_root_has_its_cache_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    root, home = cache_directories(tmp_path / "root", None, "words")
    open_word(tmp_path, "a", [root, home])
    is_writable = lambda path, mode: not Path(path).is_relative_to(tmp_path / "root")  # noqa: E731
    monkeypatch.setattr(os, "access", is_writable)  # tests may run as root, who may write anywhere
    assert [open_word(tmp_path, word, [root, home]) for word in "ab"] == ["a", "b"]
    assert (len(visible(root)), len(visible(home))) == (1, 1)


def test_home_directory_is_optional(tmp_path, monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    assert cache_directories(tmp_path, None, "words") == [tmp_path / "cache" / "words"]


def test_home_directory_may_be_inaccessible(tmp_path, monkeypatch):
    closed = tmp_path / ("x" * 300)  # raises an OSError, as a directory that may not be searched
    places = [tmp_path / "root", closed]
    assert open_word(tmp_path, "a", places) == "a"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert open_word(tmp_path, "b", places) == "b"


def test_cache_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "cache").touch()
    with pytest.raises(UsageError, match=rf"{tmp_path}/cache(.|\n)*Set data\.cache"):
        open_word(tmp_path)

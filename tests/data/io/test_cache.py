"""Caches: concurrent processes, settings, damage, and directories that cannot be written."""

import errno
import multiprocessing
import os
import stat
import time
from pathlib import Path

import pytest

from spatial_transformer.data.io.cache import Cache, cache_directories, open_cache
from spatial_transformer.utils.errors import UsageError


def word_cache(directory: Path, word: str = "word") -> Cache:
    """Return a cache of one word. Each process that writes it leaves a file next to it."""

    def write(new: Path) -> dict:
        (directory / f"made-{os.getpid()}").touch()
        (new / "word").write_text(word)
        time.sleep(0.1)
        return {"length": len(word)}

    def read(new: Path, meta: dict) -> str:
        assert meta["length"] == len(word)
        return (new / "word").read_text()

    return Cache("Words", "words", "word", {"word": word}, write, read)


def open_word(directory: Path, word: str = "word") -> str:
    return open_cache(word_cache(directory, word), [directory / "cache"])


def visible(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("[!.]*"))


def test_one_of_several_processes_makes_the_cache(tmp_path):
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert pool.map(open_word, [tmp_path] * 3, chunksize=1) == ["word"] * 3
    assert len(list(tmp_path.glob("made-*"))) == 1
    assert len(visible(tmp_path / "cache")) == 1


def test_other_users_may_read_a_cache(tmp_path):
    open_word(tmp_path)
    (tmp_path / "directory").mkdir()
    (name,) = visible(tmp_path / "cache")
    modes = [
        stat.S_IMODE((tmp_path / path).stat().st_mode) for path in (f"cache/{name}", "directory")
    ]
    assert modes[0] == modes[1]


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
    (tmp_path / "root").mkdir(mode=0o555)
    directories = cache_directories(tmp_path / "root", None, "words")
    assert open_cache(word_cache(tmp_path), directories) == "word"
    assert len(visible(tmp_path / "home" / ".cache" / "spatial_transformer" / "words")) == 1
    assert visible(tmp_path / "root") == []


def test_cache_in_a_read_only_root_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    directories = cache_directories(tmp_path / "root", None, "words")
    open_cache(word_cache(tmp_path), directories)
    for mode in (0o555, 0o755):
        for path in ("root", "root/cache", "root/cache/words"):
            (tmp_path / path).chmod(mode)
        open_cache(word_cache(tmp_path), directories)
    assert not (tmp_path / "home").exists()


def test_home_directory_is_optional(tmp_path, monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    assert cache_directories(tmp_path, None, "words") == [tmp_path / "cache" / "words"]


def test_cache_that_cannot_be_created_is_reported(tmp_path):
    (tmp_path / "cache").touch()
    message = rf"cannot be written to {tmp_path}/cache(.|\n)*Set data\.cache"
    with pytest.raises(UsageError, match=message):
        open_word(tmp_path)


def test_full_disk_is_reported(tmp_path, monkeypatch):
    def write_text(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", write_text)
    with pytest.raises(UsageError, match=r"No space left on device(.|\n)*Set data\.cache"):
        open_word(tmp_path)
    assert visible(tmp_path / "cache") == []

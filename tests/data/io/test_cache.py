"""Caches and downloads with several processes, and what those leave behind that are killed."""

import errno
import math
import multiprocessing
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spatial_transformer.data.io import workers
from spatial_transformer.data.io.cache import Cache, cache_directories, open_cache
from spatial_transformer.data.io.workers import map_in_processes
from spatial_transformer.utils.directories import check_files, create_directory
from spatial_transformer.utils.errors import UsageError


def cache_of(directory: Path, seconds: float = 0.0, word: str = "word") -> Cache:
    """A cache of one word. Each process that writes it leaves a file next to it."""

    def write(new: Path) -> dict:
        (directory / f"made-{os.getpid()}").touch()
        (new / "word").write_text(word)
        time.sleep(seconds)
        return {"length": len(word)}

    def read(new: Path, meta: dict) -> str:
        assert meta["length"] == len(word)
        return (new / "word").read_text()

    return Cache("Words", "words", "word", {"word": word}, write, read)


def opened(directory: Path) -> str:
    return open_cache(cache_of(directory, seconds=0.3), [directory / "cache"])


def visible(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))


def test_of_processes_that_need_one_cache_one_makes_it(tmp_path):
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert pool.map(opened, [tmp_path] * 3, chunksize=1) == ["word"] * 3
    assert len(list(tmp_path.glob("made-*"))) == 1
    assert len(visible(tmp_path / "cache")) == 1


def test_what_a_killed_process_left_is_removed_by_the_next_that_makes_the_cache(tmp_path):
    code = "import os; from pathlib import Path\n"
    code += "from spatial_transformer.utils.directories import create_directory\n"
    code += "with create_directory(Path('new')) as new: (new / 'half').touch(); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 9
    assert visible(tmp_path) == ["incomplete-new"]
    with create_directory(tmp_path / "new") as directory:
        (directory / "whole").touch()
    assert visible(tmp_path) == ["new"]
    assert visible(tmp_path / "new") == ["whole"]


def test_a_directory_appears_only_when_it_is_complete(tmp_path):
    with create_directory(tmp_path / "new"):
        assert not (tmp_path / "new").exists()
    with create_directory(tmp_path / "new") as directory:
        assert directory is None
    with pytest.raises(KeyboardInterrupt), create_directory(tmp_path / "other"):
        raise KeyboardInterrupt
    assert visible(tmp_path) == ["new"]


def test_others_may_read_a_cache_as_any_other_directory(tmp_path):
    open_cache(cache_of(tmp_path), [tmp_path / "cache"])
    (tmp_path / "directory").mkdir()
    (name,) = visible(tmp_path / "cache")
    mode = stat.S_IMODE((tmp_path / "cache" / name).stat().st_mode)
    assert mode == stat.S_IMODE((tmp_path / "directory").stat().st_mode)


def test_a_cache_is_made_again_for_other_settings(tmp_path):
    words = [open_cache(cache_of(tmp_path, word=word), [tmp_path / "cache"]) for word in "abab"]
    assert words == ["a", "b", "a", "b"]
    assert len(visible(tmp_path / "cache")) == 2


def damage_file(path):
    path.write_bytes(b"ward")


def cut_file(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [damage_file, cut_file, Path.unlink])
@pytest.mark.parametrize("name", ["word", "meta.json"])
def test_a_damaged_cache_is_replaced_with_a_warning(tmp_path, caplog, damage, name):
    cache, places = cache_of(tmp_path), [tmp_path / "cache"]
    open_cache(cache, places)
    (directory,) = visible(tmp_path / "cache")
    damage(tmp_path / "cache" / directory / name)
    assert open_cache(cache, places) == "word"
    (message,) = caplog.messages
    assert f"{directory} is damaged" in message
    caplog.clear()
    assert open_cache(cache, places) == "word"
    assert not caplog.messages


def test_a_root_that_is_read_only_has_its_cache_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "root").mkdir(mode=0o555)
    directories = cache_directories(tmp_path / "root", None, "words")
    assert open_cache(cache_of(tmp_path), directories) == "word"
    assert len(visible(tmp_path / "home" / ".cache" / "spatial_transformer" / "words")) == 1
    assert visible(tmp_path / "root") == []


def test_a_cache_in_a_read_only_root_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "root").mkdir()
    directories = cache_directories(tmp_path / "root", None, "words")
    open_cache(cache_of(tmp_path), directories)
    for path in ("root/cache/words", "root/cache", "root"):
        (tmp_path / path).chmod(0o555)
    open_cache(cache_of(tmp_path), directories)
    for path in ("root", "root/cache", "root/cache/words"):
        (tmp_path / path).chmod(0o755)
    assert not (tmp_path / "home").exists()


def test_a_home_directory_is_needed_only_for_a_cache_in_it(tmp_path, monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert cache_directories(tmp_path, None, "words") == [tmp_path / "cache" / "words"]


def test_a_cache_without_a_place_is_reported(tmp_path):
    (tmp_path / "cache").write_text("a file")
    place = tmp_path / "cache" / "words"
    with pytest.raises(UsageError, match=rf"cannot be written to {place}(.|\n)*Set data\.cache"):
        open_cache(cache_of(tmp_path), [place])


def test_a_full_disk_is_reported_and_nothing_is_left(tmp_path, monkeypatch):
    def write_text(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", write_text)
    with pytest.raises(UsageError, match=r"No space left on device(.|\n)*Set data\.cache"):
        open_cache(cache_of(tmp_path), [tmp_path / "cache"])
    assert visible(tmp_path / "cache") == []


# Missing files


def test_a_root_that_is_one_directory_off_is_suggested(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "file").touch()
    check_files("Words", tmp_path / "a", ["file"])
    for root in (tmp_path, tmp_path / "a" / "b", tmp_path / "a" / "b" / "c"):
        with pytest.raises(
            UsageError,
            match=rf"{root} does not .* file.\nDid you mean data\.root={tmp_path / 'a'}\?",
        ):
            check_files("Words", root, ["file"])


# Worker processes


def test_several_processes_return_results_in_order_also_with_a_long_temporary_directory(
    tmp_path, monkeypatch
):
    temporary = tmp_path / ("x" * 100)
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(sys.modules["__main__"], "__file__", None, raising=False)  # pytest's
    monkeypatch.setattr(workers, "_PENDING", 2)
    numbers = list(range(11))
    assert list(map_in_processes(math.sqrt, numbers, 2, "roots")) == [math.sqrt(n) for n in numbers]


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    code = (
        "import os, signal\n"
        "from spatial_transformer.data.io.workers import map_in_processes\n"
        "if __name__ == '__main__':\n"
        "    for parent in map_in_processes(os.getpgid, [0] * 9, 2, ''):\n"
        "        print(parent, flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    (tmp_path / "killed.py").write_text(code)
    command = [sys.executable, tmp_path / "killed.py"]
    group = int(subprocess.run(command, stdout=subprocess.PIPE, start_new_session=True).stdout)
    end = time.monotonic() + 20
    while is_alive(group):
        assert time.monotonic() < end, "a worker is still there"
        time.sleep(0.1)


def is_alive(group: int) -> bool:
    """Whether a process of a group is at work."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    states = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            fields = (process / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group:
            states.append(fields[0])
    return any(state != "Z" for state in states)


def test_the_number_of_workers_must_be_positive():
    with pytest.raises(
        UsageError, match=r"data\.workers must be a positive integer or null, got 0"
    ):
        workers.check_workers(0)

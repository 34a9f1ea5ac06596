"""Caches and downloads where several processes are at work, and what those leave that are killed."""

import multiprocessing
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spatial_transformer.data.caching import Cache, open_cache
from spatial_transformer.files import locked


def cache_of(folder: Path, seconds: float = 0.0) -> Cache:
    """A cache of one word; each time that it is made leaves a file beside it."""

    def write(made: Path) -> dict:
        (folder / f"made-{os.getpid()}").touch()
        (made / "word").write_text("word")
        time.sleep(seconds)
        return {}

    return Cache("Words", "words", folder, "word", {}, lambda made, meta: (made / "word").read_text(), write)


def opened(folder: Path) -> str:
    return open_cache(cache_of(folder, seconds=0.5), [folder / "cache"])


def test_of_processes_that_need_one_cache_one_makes_it(tmp_path):
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert pool.map(opened, [tmp_path] * 3, chunksize=1) == ["word"] * 3
    assert len(list(tmp_path.glob("made-*"))) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_what_a_killed_process_left_is_removed_by_the_next_that_makes_a_cache(tmp_path):
    (tmp_path / "cache" / "incomplete-x").mkdir(parents=True)
    (tmp_path / "cache" / "incomplete-x" / "images").touch()
    open_cache(cache_of(tmp_path), [tmp_path / "cache"])
    assert [path.name.partition("-")[0] for path in (tmp_path / "cache").iterdir()] == ["word"]


def test_others_may_read_a_cache_as_any_other_folder(tmp_path):
    open_cache(cache_of(tmp_path), [tmp_path / "cache"])
    (tmp_path / "folder").mkdir()
    (made,) = (tmp_path / "cache").iterdir()
    assert stat.S_IMODE(made.stat().st_mode) == stat.S_IMODE((tmp_path / "folder").stat().st_mode)


def test_a_lock_is_another_processs_until_that_has_ended(tmp_path):
    code = "import sys, time; from pathlib import Path; from spatial_transformer.files import locked\n"
    code += f"with locked(Path({str(tmp_path)!r})): print(1, flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    with pytest.raises(BlockingIOError), locked(tmp_path):
        pass
    process.kill()
    process.wait()
    with locked(tmp_path) as held:
        assert held


def test_processes_end_with_the_one_that_they_work_for(tmp_path):
    code = (
        "import os, signal, time\n"
        "from spatial_transformer.data import caching\n"
        "if __name__ == '__main__':\n"
        "    with caching.processes(2, 100, 1, 'time') as pool:\n"
        "        print(pool.submit(os.getpid).result(), flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    (tmp_path / "killed.py").write_text(code)
    worker = int(subprocess.run([sys.executable, tmp_path / "killed.py"], stdout=subprocess.PIPE).stdout)
    end = time.monotonic() + 20
    while _is_alive(worker):
        assert time.monotonic() < end, "a process works on for nobody"
        time.sleep(0.1)


def _is_alive(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False

"""metrics.csv: appended, cut when a run resumes, and equal to that of an undisturbed run."""

import pytest

from spatial_transformer.loggers.csv import MetricsCSV
from spatial_transformer.utils.errors import UsageError

ROWS = [({"b": 0.1 * n} if n % 3 else {"b": 0.5, "a": 1e-7 * n}, n) for n in range(1, 30)]


def write(path, rows, logger=None):
    logger = logger or MetricsCSV(path)
    for metrics, step in rows:
        logger.log_metrics(metrics, step)
    return logger


def test_a_row_is_appended_without_rewriting_the_file(tmp_path):
    logger = write(tmp_path / "metrics.csv", ROWS[:4])
    inode = (tmp_path / "metrics.csv").stat().st_ino
    write(None, ROWS[4:], logger)
    assert (tmp_path / "metrics.csv").stat().st_ino == inode
    assert (tmp_path / "metrics.csv").read_text().splitlines()[:3] == [
        "step,a,b",
        "1,,0.1",
        "2,,0.2",
    ]


def test_a_new_metric_becomes_a_column(tmp_path):
    logger = write(tmp_path / "metrics.csv", ROWS[:8])
    logger.log_metrics({"A": 2.0}, 9)
    assert logger.sync() == 9
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert (lines[0], lines[1], lines[-1]) == ("step,A,a,b", "1,,,0.1", "9,2.0,,")


@pytest.mark.parametrize("kept", [0, 1, 2, 3, 7, 20])
@pytest.mark.parametrize("half", ["", "9,0."])
def test_a_resumed_run_leaves_the_file_of_an_undisturbed_one(tmp_path, kept, half):
    write(tmp_path / "expected.csv", ROWS)
    write(tmp_path / "metrics.csv", ROWS[:23])
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write(half)  # by a process that was killed
    resumed = MetricsCSV(tmp_path / "metrics.csv")
    resumed.resume(kept)
    assert len(resumed.read()) == kept or kept == 0
    write(None, ROWS[kept:], resumed)
    assert (tmp_path / "metrics.csv").read_text() == (tmp_path / "expected.csv").read_text()


@pytest.mark.parametrize("damage", ["", "step,b\n1,x\n", "step,b\n,1\n", "\0"])
def test_a_damaged_file_is_named(tmp_path, damage):
    (tmp_path / "metrics.csv").write_text(damage)
    with pytest.raises(UsageError, match=r"metrics\.csv is damaged"):
        MetricsCSV(tmp_path / "metrics.csv").resume(2)

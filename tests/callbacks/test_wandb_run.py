"""W&B's run of a run folder."""

import pytest

from spatial_transformer.loggers.wandb import STEP, WandbRun
from spatial_transformer.utils.errors import UsageError

ROWS = [{"step": n, "train/loss": 1 / (n + 1)} for n in range(5)]


class Server:
    """A run in W&B that has some rows already, of a process that was stopped."""

    def __init__(self, rows):
        self.step, self.rows = rows, []

    def log(self, row, step, commit):
        assert commit
        self.rows.append((step, row))


@pytest.fixture
def run(tmp_path):
    def begin(rows_there):
        run = WandbRun(tmp_path, offline=True, project="test")
        run._experiment = Server(rows_there)
        return run

    return begin


def test_a_run_that_goes_on_sends_what_is_not_there_and_nothing_twice(run):
    stopped = run(3)
    stopped.resume(ROWS)
    stopped.log_metrics({"val/error": 2.0}, 5)
    assert stopped.experiment.rows == [
        (3, {STEP: 3, "train/loss": 1 / 4}),
        (4, {STEP: 4, "train/loss": 1 / 5}),
        (5, {STEP: 5, "val/error": 2.0}),
    ]


def test_rows_that_are_there_are_passed_over_though_the_checkpoint_is_older(run):
    stopped = run(4)
    stopped.resume(ROWS[:2])
    for row in ROWS[2:]:
        stopped.log_metrics({"train/loss": row["train/loss"]}, row["step"])
    assert [step for step, _ in stopped.experiment.rows] == [4]


def test_pictures_travel_with_the_next_row_of_figures(run):
    new = run(0)
    new.log_metrics({"pictures/crops": ["a picture"]}, 0)
    assert new.experiment.rows == []
    new.log_metrics({"val/error": 2.0}, 1)
    new.log_metrics({"train/loss": 1.0}, 2)
    assert new.experiment.rows == [
        (0, {STEP: 1, "val/error": 2.0, "pictures/crops": ["a picture"]}),
        (1, {STEP: 2, "train/loss": 1.0}),
    ]


def test_a_run_directory_keeps_its_id_wherever_the_files_of_wandb_are(tmp_path):
    ids = [
        WandbRun(tmp_path / name, tmp_path / "shared", offline=True, project="test").version
        for name in "aba"
    ]
    assert ids[0] == ids[2] != ids[1]


def test_a_name_that_wandb_does_not_take_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match=r"logger\.wandb: Invalid project name"):
        WandbRun(tmp_path, offline=True, project="team/project").experiment  # noqa: B018


def test_a_run_begins_without_warnings(tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr("wandb.termwarn", lambda text, **settings: warnings.append(text))
    WandbRun(tmp_path, offline=True, project="test").experiment.finish()
    assert warnings == []


def test_a_run_that_w_and_b_is_to_know_nothing_of_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = WandbRun(tmp_path, project="test")
    logger.resume([])
    logger.log_metrics({"train/loss": 1.0}, 0)
    logger.experiment.finish()
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_cannot_be_sent_costs_no_row(run, caplog):
    new = run(0)
    log = new.experiment.log

    def full(row, **settings):
        if "mistakes" in row:
            raise OSError("Unable to write staging files")
        log(row, **settings)

    new.experiment.log = full
    new.log_metrics({"mistakes": "a table"}, 0)
    new.log_metrics({"test/error": 2.0}, 1)
    new.log_metrics({"test/loss": 1.0}, 2)
    assert new.experiment.rows == [
        (0, {STEP: 1, "test/error": 2.0}),
        (1, {STEP: 2, "test/loss": 1.0}),
    ]
    assert "Unable to write staging files" in caplog.text

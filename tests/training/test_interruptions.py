"""A run that is stopped, however, resumes where it was and ends as if it had not been stopped."""

import csv
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time

import pytest
import pytorch_lightning as pl
import torch
import wandb_file
from conftest import REPOSITORY

from spatial_transformer.loggers.wandb import STEP, select_metrics

STEPS = 40
SETTINGS = [
    "model=st_fcn",
    "model.width=16",
    "data.batch_size=16",
    "data.eval_batch_size=50",
    "recipe.validate_every=8",
    "recipe.dropout=0.2",
    f"trainer.max_steps={STEPS}",
    "trainer.log_every_n_steps=3",
    "++trainer.limit_train_batches=14",
    "++trainer.limit_val_batches=2",
    "++trainer.limit_test_batches=2",
    "checkpoint_minutes=0",
    "logger=csv",
]

PIPES = {
    "cwd": REPOSITORY,
    "env": {
        **os.environ,
        "OMP_NUM_THREADS": "1",
    },  # another number of threads adds up in another order
    "stdout": subprocess.PIPE,
    "stderr": subprocess.STDOUT,
    "text": True,
}


def command(folder, root, *more):
    return [
        sys.executable,
        "train.py",
        *SETTINGS,
        f"data.root={root}",
        f"hydra.run.dir={folder}",
        *more,
    ]


def start(folder, root, *more, **options):
    return subprocess.Popen(command(folder, root, *more), **PIPES, **options)


def finish(folder, root, *more):
    process = start(folder, root, *more)
    errors, _ = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return errors


def outcome(folder):
    """Weights, metrics, learning curve, misclassified samples and table of a finished run."""
    checkpoints = {
        name: torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
        for name in ("last", "best")
    }
    result = json.loads((folder / "metrics.json").read_text())
    metrics = {name: result[name] for name in ("metrics", "curve", "misclassified")}
    return checkpoints, metrics, (folder / "metrics.csv").read_text()


def assert_same(folder, undisturbed):
    (checkpoints, metrics, table), (expected_checkpoints, expected_metrics, expected_table) = (
        outcome(folder),
        undisturbed,
    )
    for name, expected in expected_checkpoints.items():
        assert checkpoints[name]["global_step"] == expected["global_step"]
        for key, tensor in expected["state_dict"].items():
            assert torch.equal(checkpoints[name]["state_dict"][key], tensor), (name, key)
    assert metrics == expected_metrics
    assert table == expected_table
    half_written = [path for path in folder.rglob(".*") if path.is_file() and path.name != ".lock"]
    assert half_written == []


@pytest.fixture(scope="module")
def undisturbed(mnist_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    begin = time.monotonic()
    finish(folder, mnist_root)
    return outcome(folder), time.monotonic() - begin


def kill(process, folder, mark, wait, number=signal.SIGKILL):
    """Sends a signal a while after ``mark`` is in the folder; whether the process was still running then."""
    while not (folder / mark).exists() and process.poll() is None:
        time.sleep(0.002)
    time.sleep(wait)
    if process.poll() is not None:
        return False
    process.send_signal(number)
    return True


def test_a_run_killed_at_any_moment_ends_bit_equal(mnist_root, tmp_path, undisturbed):
    expected, _ = undisturbed
    moments = random.Random(0)
    killed = 0
    for _ in range(5):
        process = start(tmp_path, mnist_root)
        killed += kill(
            process,
            tmp_path,
            "checkpoints/last.ckpt" if killed else "config.yaml",
            moments.uniform(0, 2),
        )
        process.communicate()
    assert killed >= 2
    finish(tmp_path, mnist_root)
    assert_same(tmp_path, expected)


def ended_at(place, times, number, folder, root, *more):
    """A program of its own that trains as train.py does and sends itself a signal as it comes to the place for that time."""
    lines = {
        "saving": "from pathlib import Path; owner, name = Path, 'write_bytes'",
        "renaming": "owner, name = os, 'replace'",
    }.get(
        place,
        f"from spatial_transformer.callbacks.misclassified import MisclassifiedSamples as owner; name = {place!r}",
    )
    program = f"""
import os, runpy
import pytorch_lightning
from spatial_transformer.callbacks.checkpointing import ResumeCheckpoint
{lines}
inner, times = getattr(owner, name), [0]
def deadly(*arguments, **more):
    times[0] += 1
    if times[0] == {times}:
        os.kill(os.getpid(), {number:d})
    return inner(*arguments, **more)
setattr(owner, name, deadly)
runpy.run_path("train.py", run_name="__main__")
"""
    return subprocess.run(
        [sys.executable, "-c", program, *command(folder, root, *more)[2:]], **PIPES
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "place",
    ["on_train_batch_end", "on_validation_batch_end", "saving", "renaming", "on_test_epoch_end"],
)
def test_a_run_killed_at_this_place_ends_bit_equal(mnist_root, tmp_path, undisturbed, place):
    killed = ended_at(
        place, 1 if place == "on_test_epoch_end" else 10, signal.SIGKILL, tmp_path, mnist_root
    )
    assert killed.returncode == -signal.SIGKILL, killed.stdout
    finish(tmp_path, mnist_root)
    assert_same(tmp_path, undisturbed[0])


def test_a_run_ended_by_sigterm_saves_where_it_is_and_ends_bit_equal(
    mnist_root, tmp_path, undisturbed
):
    expected, _ = undisturbed
    process = start(tmp_path, mnist_root, "checkpoint_minutes=60", "trainer.max_steps=40")
    terminated = kill(process, tmp_path, "checkpoints/last.ckpt", 0.02, signal.SIGTERM)
    errors, _ = process.communicate()
    assert terminated
    assert process.returncode == 143, errors
    assert "Interrupted by SIGTERM at step" in errors
    assert f"hydra.run.dir={tmp_path}" in errors
    assert "Traceback" not in errors
    finish(tmp_path, mnist_root)
    assert_same(tmp_path, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "times", "step"),
    [
        pytest.param("on_train_batch_end", 14, 15, id="last step of an epoch"),
        pytest.param("on_train_epoch_end", 3, STEPS, id="last step of all"),
        pytest.param("on_test_batch_end", 1, STEPS, id="test"),
    ],
)
def test_a_run_ended_by_sigterm_at_this_place_ends_bit_equal(
    mnist_root, tmp_path, undisturbed, place, times, step
):
    asked = ended_at(place, times, signal.SIGTERM, tmp_path, mnist_root, "checkpoint_minutes=60")
    assert asked.returncode == 143
    assert f"Interrupted by SIGTERM at step {step}." in asked.stdout
    finish(tmp_path, mnist_root)
    assert_same(tmp_path, undisturbed[0])


@pytest.mark.slow
def test_a_run_ended_within_a_step_of_several_batches_ends_bit_equal(mnist_root, tmp_path):
    several = "+trainer.accumulate_grad_batches=2"
    finish(tmp_path / "undisturbed", mnist_root, several)
    asked = ended_at(
        "on_train_batch_end",
        17,
        signal.SIGTERM,
        tmp_path / "asked",
        mnist_root,
        several,
        "checkpoint_minutes=60",
    )
    assert "Interrupted by SIGTERM at step 8." in asked.stdout
    for folder, more in (("asked", []), ("often", ["checkpoint_minutes=0"])):
        finish(tmp_path / folder, mnist_root, several, *more)
        assert_same(tmp_path / folder, outcome(tmp_path / "undisturbed"))


def test_a_stopped_run_resumes_where_its_folder_was_moved_to(mnist_root, tmp_path, undisturbed):
    ended_at("on_test_epoch_end", 1, signal.SIGKILL, tmp_path / "here", mnist_root)
    finish((tmp_path / "here").rename(tmp_path / "there"), mnist_root)
    assert_same(tmp_path / "there", undisturbed[0])


@pytest.fixture
def stopped(mnist_root, tmp_path):
    """A run folder whose run was killed after it had written two checkpoints."""
    process = start(tmp_path, mnist_root)
    assert kill(process, tmp_path, "checkpoints/best.ckpt", 0)
    process.communicate()
    return tmp_path


def assert_all_rows_are_in_wandb(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        table = [
            {name: value for name, value in row.items() if value != ""}
            for row in csv.DictReader(file)
        ]
    rows = wandb_file.rows(wandb_file.newest(folder))
    by_number = {row["_step"]: row for row in rows}
    assert len(rows) == 1 + len(table), "one row before training"
    for number, row in enumerate(table, start=1):
        expected = {STEP: row["step"], **select_metrics(row)}
        del expected["step"]
        for name, value in expected.items():
            assert by_number[number][name] == float(value), (number, name)
    pictures = 1 + sum("val/error" in row for row in table)  # one before training
    assert sum("pictures/crops/_type" in row for row in rows) == pictures


def test_a_killed_run_stays_one_run_in_wandb_with_each_row_once(mnist_root, tmp_path, undisturbed):
    process = start(tmp_path, mnist_root, "logger=wandb", "logger.wandb.offline=true")
    assert kill(process, tmp_path, "checkpoints/best.ckpt", 0.1)
    process.communicate()
    finish(tmp_path, mnist_root, "logger=wandb", "logger.wandb.offline=true")
    assert_same(tmp_path, undisturbed[0])
    assert (
        len({path.name.rsplit("-", 1)[1] for path in (tmp_path / "wandb").glob("offline-run-*")})
        == 1
    )
    assert_all_rows_are_in_wandb(tmp_path)
    file = wandb_file.newest(tmp_path)
    best = json.loads((tmp_path / "metrics.json").read_text())["metrics"]["val/best_error"]
    assert wandb_file.summary(file)["val/error"] == {"min": best}
    assert "st_fcn" in wandb_file.messages(file, "run")[0].tags
    assert sum(artifact.type == "model" for artifact in wandb_file.messages(file, "artifact")) == 1


@pytest.mark.slow
def test_training_continues_offline_where_wandb_cannot_be_reached(mnist_root, tmp_path):
    nobody = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}
    environment = PIPES["env"] | nobody
    result = subprocess.run(
        command(tmp_path, mnist_root, "logger=wandb"), **PIPES | {"env": environment}
    )
    assert result.returncode == 0, result.stdout
    assert "W&B cannot be reached" in result.stdout
    assert "upload it with `wandb sync`" in result.stdout
    assert_all_rows_are_in_wandb(tmp_path)


def test_a_broken_last_checkpoint_is_named_and_the_one_before_it_used(
    mnist_root, stopped, undisturbed
):
    last = stopped / "checkpoints" / "last.ckpt"
    last.write_bytes(b"PK" + os.urandom(5000))
    errors = finish(stopped, mnist_root)
    assert f"{last} cannot be read as a checkpoint" in errors
    assert_same(stopped, undisturbed[0])


def test_without_any_readable_checkpoint_the_run_is_refused_with_a_hint(mnist_root, stopped):
    for name in ("last", "previous"):
        (stopped / "checkpoints" / f"{name}.ckpt").write_bytes(b"")
    process = start(stopped, mnist_root)
    errors, _ = process.communicate()
    assert process.returncode == 1
    assert "cannot be read as a checkpoint" in errors
    assert "ckpt_path=null" in errors
    assert "Traceback" not in errors


def test_other_settings_do_not_resume_a_run(mnist_root, stopped):
    before = (stopped / "checkpoints" / "previous.ckpt").read_bytes()
    process = start(stopped, mnist_root, "recipe.optimizer.lr=0.5")
    errors, _ = process.communicate()
    assert process.returncode == 1
    assert "holds another run: recipe.optimizer.lr is 0.002 there and 0.5 here" in errors
    assert (stopped / "checkpoints" / "previous.ckpt").read_bytes() == before


def test_a_finished_run_is_not_run_again(mnist_root, tmp_path):
    finish(tmp_path, mnist_root, "trainer.max_steps=2")
    record = (tmp_path / "metrics.json").stat().st_mtime_ns
    finish(tmp_path, mnist_root, "trainer.max_steps=2")
    assert (tmp_path / "metrics.json").stat().st_mtime_ns == record
    finish(tmp_path, mnist_root, "trainer.max_steps=2", "ckpt_path=null")
    assert (tmp_path / "metrics.json").stat().st_mtime_ns != record


def test_a_run_continues_when_the_reader_of_its_output_ends(mnist_root, tmp_path):
    process = start(tmp_path, mnist_root, "trainer.max_steps=10", "recipe.validate_every=2")
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=300) == 0
    assert (tmp_path / "metrics.json").is_file()


def test_a_full_disk_ends_the_run_clearly_and_keeps_the_last_good_checkpoint(
    mnist_root, stopped, undisturbed
):
    def small_files():  # a file that grows past this fails, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    checkpoints = stopped / "checkpoints"
    good = {
        (checkpoints / f"{name}.ckpt").read_bytes()
        for name in ("last", "previous")
        if (checkpoints / f"{name}.ckpt").exists()
    }
    process = start(stopped, mnist_root, preexec_fn=small_files)
    errors, _ = process.communicate()
    assert process.returncode == 1
    assert "File too large" in errors
    assert "Traceback" not in errors
    assert good & {path.read_bytes() for path in checkpoints.glob("*.ckpt")}
    finish(stopped, mnist_root)
    assert_same(stopped, undisturbed[0])


def test_lightning_has_the_private_names_that_checkpoints_use():
    """There is no public way to end training after the metrics of a step are logged (callbacks/checkpointing.py)."""
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    assert trainer._signal_connector.received_sigterm is False
    assert trainer.received_sigterm is False
    trainer._signal_connector.received_sigterm = True
    assert trainer.received_sigterm is True

"""A stopped run resumes, and ends as if it had not been stopped."""

import os
import random
import resource
import signal
import time

import pytest
import pytorch_lightning as pl
import wandb_file
from programs import Program
from run_files import assert_bit_equal, metrics, rows

from spatial_transformer.loggers.wandb import STEP, select_metrics

STEPS = 40
SETTINGS = f"""
model=st_fcn model.width=16 data.batch_size=16 data.eval_batch_size=50 recipe.validate_every=8
recipe.dropout=0.2 trainer.max_steps={STEPS} trainer.log_every_n_steps=3 checkpoint_minutes=0
++trainer.limit_train_batches=14 ++trainer.limit_val_batches=2 ++trainer.limit_test_batches=2
logger=csv
""".split()


def start(run, root, *more, **options):
    words = [*SETTINGS, f"data.root={root}", f"hydra.run.dir={run}", *more]
    return Program("train.py", *words, merge=True, **options)


def finish(run, root, *more, **options):
    process = start(run, root, *more, **options)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def undisturbed(mnist_root, tmp_path_factory):
    run = tmp_path_factory.mktemp("undisturbed")
    finish(run, mnist_root)
    return run


def kill(process, run, mark, wait):
    """Kill a process some seconds after a file is there; return whether it still ran."""
    while not (run / mark).exists() and process.poll() is None:
        time.sleep(0.002)
    time.sleep(wait)
    if process.poll() is not None:
        return False
    process.send_signal(signal.SIGKILL)
    return True


def test_run_killed_at_any_moment_ends_bit_equal(mnist_root, tmp_path, undisturbed):
    moments = random.Random(0)
    killed = 0
    for _ in range(5):
        process = start(tmp_path, mnist_root)
        mark = "checkpoints/last.ckpt" if killed else "config.yaml"
        killed += kill(process, tmp_path, mark, moments.uniform(0, 0.8))
        process.communicate()
    assert killed >= 2
    finish(tmp_path, mnist_root)
    assert_bit_equal(tmp_path, undisturbed)


@pytest.fixture
def stopped(mnist_root, tmp_path):
    """The directory of a run that was killed after it had written two checkpoints."""
    run = tmp_path / "run"
    process = start(run, mnist_root)
    assert kill(process, run, "checkpoints/best.ckpt", 0)
    process.communicate()
    return run


def test_moved_run_resumes(mnist_root, stopped, undisturbed):
    """Here from the previous checkpoint, because the last one is damaged."""
    moved = stopped.rename(stopped.with_name("moved"))
    last = moved / "checkpoints" / "last.ckpt"
    last.write_bytes(b"PK" + os.urandom(5000))
    assert f"{last} cannot be read as a checkpoint" in finish(moved, mnist_root)
    assert_bit_equal(moved, undisturbed)


def assert_all_rows_are_in_wandb(run):
    table = [{name: value for name, value in row.items() if value} for row in rows(run)]
    found = wandb_file.rows(wandb_file.newest(run))
    by_number = {row["_step"]: row for row in found}
    assert len(found) == 1 + len(table), "one row before training"
    for number, row in enumerate(table, start=1):
        expected = {STEP: row["step"], **select_metrics(row)}
        del expected["step"]
        for name, value in expected.items():
            assert by_number[number][name] == float(value), (number, name)
    pictures = 1 + sum("val/error" in row for row in table)  # one before training
    assert sum("pictures/crops/_type" in row for row in found) == pictures


def test_killed_run_stays_one_run_in_wandb(mnist_root, tmp_path, undisturbed):
    offline = ("logger=wandb", "logger.wandb.offline=true")
    process = start(tmp_path, mnist_root, *offline)
    assert kill(process, tmp_path, "checkpoints/best.ckpt", 0.1)
    process.communicate()
    finish(tmp_path, mnist_root, *offline)
    assert_bit_equal(tmp_path, undisturbed)
    runs = (tmp_path / "wandb").glob("offline-run-*")
    assert len({path.name.rsplit("-", 1)[1] for path in runs}) == 1
    assert_all_rows_are_in_wandb(tmp_path)
    file = wandb_file.newest(tmp_path)
    best = metrics(tmp_path)["val/best_error"]
    assert wandb_file.summary(file)["val/error"] == {"min": best}
    assert "st_fcn" in wandb_file.messages(file, "run")[0].tags
    assert sum(artifact.type == "model" for artifact in wandb_file.messages(file, "artifact")) == 1


@pytest.mark.slow
def test_run_continues_offline_where_wandb_cannot_be_reached(mnist_root, tmp_path):
    nobody = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}
    output = finish(tmp_path, mnist_root, "logger=wandb", environment=nobody)
    assert "W&B cannot be reached" in output
    assert "upload it with `wandb sync`" in output
    assert_all_rows_are_in_wandb(tmp_path)


def test_run_continues_when_the_reader_of_its_output_ends(mnist_root, tmp_path):
    process = start(tmp_path, mnist_root, "trainer.max_steps=10", "recipe.validate_every=2")
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=300) == 0
    assert (tmp_path / "metrics.json").is_file()


def test_full_disk_keeps_the_last_checkpoint(mnist_root, stopped, undisturbed):
    # A file that grows beyond this fails, as on a full disk.
    limit = (resource.setrlimit, resource.RLIMIT_FSIZE, (10_000, 10_000))

    def contents():
        names = ("last.ckpt", "previous.ckpt")
        paths = [stopped / "checkpoints" / name for name in names]
        return {path.read_bytes() for path in paths if path.exists()}

    before = contents()
    process = start(stopped, mnist_root, prepare=limit)
    output, _ = process.communicate()
    assert process.returncode == 1
    assert "File too large" in output
    assert "Traceback" not in output
    assert before & contents()
    finish(stopped, mnist_root)
    assert_bit_equal(stopped, undisturbed)


def test_lightning_has_the_private_names_in_use():
    """Nothing public ends training after the metrics of a step are logged."""
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    assert trainer._signal_connector.received_sigterm is False
    assert trainer.received_sigterm is False
    trainer._signal_connector.received_sigterm = True
    assert trainer.received_sigterm is True

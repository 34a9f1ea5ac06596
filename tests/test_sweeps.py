"""Sweeps: which runs they have, where those lie, and what is done when they are started again."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial

import pytest
from conftest import REPOSITORY

SWEEPS = {
    ("sweep", "addition"): 8,
    ("sweep", "cluttered"): 4,
    ("sweep", "colocalisation"): 20,
    ("ablation", "localisation_lr"): 6,
    ("ablation", "seeds"): 1,
    ("sweep", "table1"): 32,
    ("sweep", "table2"): 6,
    ("sweep", "table3"): 4,
    ("ablation", "transforms"): 5,
    ("ablation", "transformers"): 3,
}
"""Number of runs with one seed."""
SMALL = ["model=st_fcn", "model.width=4", "debug=fdr", "data.eval_batch_size=50", "logger=csv"]


def start(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "train.py", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def sweep(*arguments):
    process = start(*arguments)
    output, errors = process.communicate(timeout=500)
    return process.returncode, output, errors


def states(output):
    """Of the last table that was printed: the state of each run."""
    return dict(re.findall(r"^ (\S+) +(finished|failed|stopped|not started)\b", output, re.M))


def test_every_sweep_is_tested():
    files = [*REPOSITORY.glob("conf/sweep/*.yaml"), *REPOSITORY.glob("conf/ablation/*.yaml")]
    assert sorted(SWEEPS) == sorted((file.parent.name, file.stem) for file in files)


@pytest.mark.parametrize(
    ("group", "name"),
    [
        pytest.param(*key, marks=() if key[1] in ("table1", "table3") else pytest.mark.slow)
        for key in SWEEPS
    ],
)
def test_a_sweep_has_valid_runs(group, name, tmp_path):
    code, output, errors = sweep(
        f"{group}={name}", "launcher=show", f"hydra.sweep.dir={tmp_path}/sweep", "seed=1"
    )
    assert code == 0, errors
    assert f"{SWEEPS[group, name]} runs, 0 already finished" in output
    assert output.count("not started") == SWEEPS[group, name]
    assert not (tmp_path / "sweep").exists()


def test_a_listing_runs_nothing_where_there_is_no_sweep_either(tmp_path):
    code, output, errors = sweep("launcher=show", f"hydra.sweep.dir={tmp_path}/sweep", "seed=2")
    assert code == 0, errors
    assert states(output) == {"seed-2": "not started"}


def test_three_seeds_are_the_tables(tmp_path):
    path = "trainer.default_root_dir=/some/where"  # the last part of the folders' names, and the same for all
    code, output, errors = sweep(
        "sweep=cluttered", "launcher=show", f"hydra.sweep.dir={tmp_path}/sweep", path
    )
    assert code == 0, errors
    assert [
        output.count(f"_seed-{seed}_") + output.count(f"_seed-{seed} ") for seed in (1, 2, 3)
    ] == [4, 4, 4]


@pytest.mark.parametrize("launcher", ["local", "joblib"])
def test_a_sweep_goes_on_past_a_failed_run_and_started_again_runs_only_what_is_not_finished(
    mnist_root, tmp_path, launcher
):
    there = [
        f"data.root={mnist_root}",
        f"hydra.sweep.dir={tmp_path}",
        f"launcher={launcher}",
        "sweep=table1",
    ]
    wanted = [*SMALL, "transform=affine,projective", "data.distortion=r", "seed=1"]
    settings = (
        "data.distortion-r_data.eval_batch_size-50_debug-fdr_model.width-4_model-st_fcn_seed-1"
    )
    name = f"{settings}_transform-{{}}".format
    for transform in ("affine", "projective"):
        (tmp_path / name(transform)).mkdir()
    (tmp_path / name("affine") / "crops").write_text("a file where the run needs a folder")
    code, output, errors = sweep(*there, *wanted)
    assert code == 1
    assert states(output) == {name("affine"): "failed", name("projective"): "finished"}
    lines = [line for line in output.splitlines() if " steps/s " in line]
    assert lines
    assert all(
        line.startswith("st_fcn-projective-r-fast-seed1  ") == (launcher == "joblib")
        for line in lines
    )
    reported, _, summary = errors.partition("Error: ")
    assert f"{name('affine')} failed: " in reported, "at once"
    assert "1 of 2 runs are not finished: 1 failed" in summary
    assert "Traceback" not in errors
    finished = (tmp_path / name("projective") / "metrics.json").stat().st_mtime_ns
    (tmp_path / name("affine") / "crops").unlink()
    code, output, errors = sweep(*there, *wanted)
    assert code == 0, errors
    assert "2 runs, 1 already finished" in output
    assert set(states(output).values()) == {"finished"}
    assert (tmp_path / name("projective") / "metrics.json").stat().st_mtime_ns == finished
    assert not (tmp_path / name("affine") / "error.txt").exists()


def test_a_sweeps_table_says_what_is_wrong_not_the_way_out(tmp_path):
    there = [f"data.root={tmp_path}", f"hydra.sweep.dir={tmp_path}/sweep"]
    code, output, errors = sweep("sweep=table1", *there, "model=fcn", "data.distortion=r", "seed=1")
    assert code == 1
    (error,) = tmp_path.glob("sweep/*/error.txt")
    assert output.splitlines()[-1].split(" failed ")[1].strip() == error.read_text().splitlines()[0]
    assert "(see error.txt of each). Rerun the same command" in errors


def test_a_wrong_setting_of_a_sweep_is_told_before_any_run_begins(mnist_root, tmp_path):
    there = [f"data.root={mnist_root}", f"hydra.sweep.dir={tmp_path}/sweep"]
    for wrong, message in {
        "+data.batchsize=3": "Unknown setting data.batchsize",
        "model=cnn,svhn_cnn": "No run of this sweep has model=svhn_cnn",
        "+data.canvas=28,-3": "data.canvas must be from",
        "trainer.max_steps=0,5": "trainer.max_steps must be a positive integer, got 0",
    }.items():
        code, _, errors = sweep("-m", "sweep=table1", *there, wrong)
        assert code == 1
        assert message in errors
        assert not (tmp_path / "sweep").exists()


def wait_for(found, seconds=120):
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)
    return value


SMALL_RUNS = [
    "ablation=seeds",
    "launcher=joblib",
    "model=fcn",
    "model.width=4",
    "recipe.validate_every=20",
    "++trainer.limit_val_batches=1",
    "++trainer.limit_test_batches=1",
    "data.batch_size=16",
    "data.eval_batch_size=50",
    "logger=csv",
    "callbacks.progress=null",
]


@pytest.fixture
def joblib_sweep(mnist_root, tmp_path):
    """Start a sweep, and wait until both of its workers train; returns it and their ids."""
    processes = []

    def start_(*settings):
        there = [f"data.root={mnist_root}", f"hydra.sweep.dir={tmp_path}"]
        # A shell lets what it starts in the background ignore interrupts, and these tests with it.
        reset = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        process = start(*there, *SMALL_RUNS, *settings, start_new_session=True, preexec_fn=reset)
        processes.append(process)
        wait_for(lambda: len(list(tmp_path.glob("*/checkpoints/last.ckpt"))) == 2)
        command = ["pgrep", "-f", "LokyProcess", "-P", str(process.pid)]
        return process, subprocess.run(command, capture_output=True, text=True).stdout.split()

    yield start_
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


SIGTERM = pytest.param(signal.SIGTERM, marks=pytest.mark.slow)  # as SIGINT


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, SIGTERM])
def test_a_joblib_sweep_that_is_ended_leaves_no_run_behind(joblib_sweep, number):
    process, workers = joblib_sweep("seed=1,2", "trainer.max_steps=1000000")
    assert len(workers) == 2
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    process.wait(60)
    listed = ["ps", "-o", "stat=", "-p", ",".join(workers)]
    wait_for(
        lambda: not subprocess.run(listed, capture_output=True, text=True).stdout.strip(" Z\n"), 20
    )
    output, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number
        assert "Rerun the same command to resume the sweep." in errors
        assert list(states(output).values()) == ["stopped"] * 2


def test_a_worker_that_is_ended_does_not_end_the_other_runs(joblib_sweep):
    process, workers = joblib_sweep("seed=1,2,3", "trainer.max_steps=500")
    os.kill(int(workers[0]), signal.SIGTERM)
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 1
    assert sorted(states(output).values()) == ["finished", "finished", "stopped"]
    assert "1 of 3 runs are not finished: 1 stopped" in errors
    assert "Traceback" not in errors


def test_a_command_line_names_one_sweep():
    code, output, errors = sweep("-m", "sweep=table1,cluttered")
    assert code == 1
    assert "Choose one sweep, got table1, cluttered." in errors
    assert not output


@pytest.mark.slurm
def test_a_sweep_on_slurm_survives_requeueing_time_limits_and_cancelling(mnist_root, tmp_path):
    run = [
        "model=st_fcn",
        "model.width=16",
        "data.batch_size=64",
        "recipe.validate_every=100",
        "trainer.max_steps=2000",
    ]
    run += [
        "++trainer.limit_val_batches=2",
        "++trainer.limit_test_batches=2",
        "logger=csv",
        f"data.root={mnist_root}",
    ]
    run += ["checkpoint_minutes=0.02"]
    on_slurm = [
        "ablation=seeds",
        "seed=1,2,3,4",
        "launcher=slurm",
        "hydra.launcher.cpus_per_task=1",
        f"hydra.sweep.dir={tmp_path}",
    ]
    process = start(*on_slurm, *run)
    folders = {n: lambda n=n: next(iter(tmp_path.glob(f"*seed-{n}*")), None) for n in (1, 2, 3, 4)}
    for n in (1, 2):
        wait_for(lambda n=n: folders[n]() and (folders[n]() / "checkpoints" / "last.ckpt").exists())
    queue = subprocess.run(
        ["squeue", "--noheader", "--format=%F %k"], capture_output=True, text=True, check=True
    ).stdout
    number = next(line.split()[0] for line in queue.splitlines() if str(tmp_path) in line)
    subprocess.run(["scontrol", "requeue", f"{number}_0"], check=True)
    with suppress(
        subprocess.TimeoutExpired
    ):  # as before the time limit or a preemption; it waits for an answer of the job
        subprocess.run(["scancel", "--signal=USR2", f"{number}_1"], capture_output=True, timeout=3)
    subprocess.run(["scancel", f"{number}_3"], check=True)
    code, _, errors = sweep(*on_slurm, *run)
    assert code == 1
    assert f"already queued as job {number}" in errors

    def resumes(n):
        # SLURM itself would let a job that it has queued again wait for two minutes.
        subprocess.run(
            ["scontrol", "update", f"jobid={number}_{n}", "starttime=now"], capture_output=True
        )
        logs = "".join(
            log.read_text() for log in tmp_path.glob(f".submitit/{number}_{n}/*_log.out")
        )
        return "Resuming from" in logs and (n == 0 or "Caught signal SIGUSR2" in logs)

    wait_for(lambda: all([resumes(0), resumes(1)]), seconds=300)
    output, errors = process.communicate(timeout=400)
    assert process.returncode == 1
    assert "4 runs, 0 already finished" in output
    told = states(output)
    assert sorted(told.values()) in (
        ["finished"] * 3 + ["not started"],
        ["finished"] * 3 + ["stopped"],
    )
    records = {n: (folders[n]() / "metrics.json") for n in (1, 2, 3)}
    written = {n: path.stat().st_mtime_ns for n, path in records.items()}
    # The requeued run ends as one that nothing disturbed.
    code, _, errors = sweep("experiment=mnist", "seed=1", f"hydra.run.dir={tmp_path}/alone", *run)
    assert code == 0, errors
    alone = json.loads((tmp_path / "alone" / "metrics.json").read_text())["metrics"]
    assert json.loads(records[1].read_text())["metrics"] == alone
    assert (records[1].parent / "metrics.csv").read_text() == (
        tmp_path / "alone" / "metrics.csv"
    ).read_text()
    code, output, errors = sweep(*on_slurm, *run)
    assert code == 0, errors
    assert "4 runs, 3 already finished" in output
    assert list(states(output).values()) == ["finished"] * 4
    assert {n: path.stat().st_mtime_ns for n, path in records.items()} == written

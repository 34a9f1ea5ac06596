"""Sweeps: which runs they have, where those lie, and what is done when they are started again."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from conftest import REPOSITORY

ABLATIONS = {
    "addition": 8,
    "cluttered": 4,
    "colocalisation": 20,
    "localisation_lr": 6,
    "seeds": 1,
    "table1": 32,
    "table2": 6,
    "table3": 4,
    "transforms": 5,
    "transformers": 3,
}
"""How many runs each ablation has of one seed."""
SMALL = ["model=st_fcn", "model.width=4", "debug=short", "data.eval_batch_size=50", "logger=csv"]


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
    return dict(re.findall(r"^ (\S+) +(finished|failed|stopped|not begun)\b", output, re.M))


def test_every_ablation_is_known_here():
    assert sorted(ABLATIONS) == sorted(path.stem for path in (REPOSITORY / "conf" / "ablation").glob("*.yaml"))


@pytest.mark.parametrize(
    "ablation", [name if name in ("table1", "table3") else pytest.param(name, marks=pytest.mark.slow) for name in ABLATIONS]
)
def test_an_ablation_has_its_runs_and_each_is_a_right_configuration(ablation, tmp_path):
    code, output, errors = sweep(f"ablation={ablation}", "cluster=show", f"hydra.sweep.dir={tmp_path}/sweep", "seed=1")
    assert code == 0, errors
    assert output.startswith(f"{ABLATIONS[ablation]} runs, 0 finished before")
    assert output.count("not begun") == ABLATIONS[ablation]
    assert not (tmp_path / "sweep").exists()


def test_a_listing_runs_nothing_where_there_is_no_sweep_either(tmp_path):
    code, output, errors = sweep("cluster=show", f"hydra.sweep.dir={tmp_path}/sweep", "seed=2")
    assert code == 0, errors
    assert states(output) == {"seed-2": "not begun"}


def test_three_seeds_are_the_tables(tmp_path):
    path = "trainer.default_root_dir=/some/where"  # the last part of the folders' names, and the same for all
    code, output, errors = sweep("ablation=cluttered", "cluster=show", f"hydra.sweep.dir={tmp_path}/sweep", path)
    assert code == 0, errors
    assert [output.count(f"_seed-{seed}_") + output.count(f"_seed-{seed} ") for seed in (1, 2, 3)] == [4, 4, 4]


@pytest.mark.parametrize("cluster", ["local", "joblib"])
def test_a_sweep_goes_on_past_a_failed_run_and_started_again_runs_only_what_is_not_finished(mnist_root, tmp_path, cluster):
    there = [f"data.root={mnist_root}", f"hydra.sweep.dir={tmp_path}", f"cluster={cluster}", "ablation=table1"]
    wanted = [*SMALL, "transform=affine,projective", "data.distortion=r", "seed=1"]
    settings = "data.distortion-r_data.eval_batch_size-50_debug-short_model.width-4_model-st_fcn_seed-1"
    name = f"{settings}_transform-{{}}".format
    for transform in ("affine", "projective"):
        (tmp_path / name(transform)).mkdir()
    (tmp_path / name("affine") / "crops").write_text("a file where the run needs a folder")
    code, output, errors = sweep(*there, *wanted)
    assert code == 1
    assert states(output) == {name("affine"): "failed", name("projective"): "finished"}
    lines = [line for line in output.splitlines() if " steps/s " in line]
    assert lines
    assert all(line.startswith("st_fcn-projective-r-fast-seed1  ") == (cluster == "joblib") for line in lines)
    assert "of 2 runs 1 failed" in errors
    assert "Traceback" not in errors
    finished = (tmp_path / name("projective") / "metrics.json").stat().st_mtime_ns
    (tmp_path / name("affine") / "crops").unlink()
    code, output, errors = sweep(*there, *wanted)
    assert code == 0, errors
    assert "2 runs, 1 finished before" in output
    assert set(states(output).values()) == {"finished"}
    assert (tmp_path / name("projective") / "metrics.json").stat().st_mtime_ns == finished
    assert not (tmp_path / name("affine") / "error.txt").exists()


def test_a_sweeps_table_says_what_is_wrong_not_the_way_out(tmp_path):
    there = [f"data.root={tmp_path}", f"hydra.sweep.dir={tmp_path}/sweep"]
    code, output, errors = sweep("ablation=table1", *there, "model=fcn", "data.distortion=r", "seed=1")
    assert code == 1
    (error,) = tmp_path.glob("sweep/*/error.txt")
    assert output.splitlines()[-1].split(" failed ")[1].strip() == error.read_text().splitlines()[0]
    assert "Way out: the error.txt of a run that failed tells why" in errors


def test_a_wrong_setting_of_a_sweep_is_told_before_any_run_begins(mnist_root, tmp_path):
    there = [f"data.root={mnist_root}", f"hydra.sweep.dir={tmp_path}/sweep"]
    for wrong, message in {
        "+data.batchsize=3": "has no setting 'batchsize'",
        "model=cnn,svhn_cnn": "no run of this ablation has model=svhn_cnn",
        "+data.canvas=28,-3": "data.canvas=-3",
        "trainer.max_steps=0,5": "trainer.max_steps=0 is not a number of steps",
    }.items():
        code, _, errors = sweep("-m", "ablation=table1", *there, wrong)
        assert code == 1
        assert message in errors
        assert not (tmp_path / "sweep").exists()


def wait_for(found, seconds=120):
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)
    return value


def test_a_joblib_sweep_ended_by_sigterm_leaves_no_run_behind(mnist_root, tmp_path):
    there = [f"data.root={mnist_root}", f"hydra.sweep.dir={tmp_path}", "ablation=seeds", "seed=1,2", "cluster=joblib"]
    endless = ["model=st_fcn", "model.width=4", "trainer.max_steps=1000000", "recipe.validate_every=100"]
    run = [*endless, "++trainer.limit_val_batches=2", "data.eval_batch_size=50", "logger=csv"]
    process = start(*there, *run, start_new_session=True)
    try:
        wait_for(lambda: len(list(tmp_path.glob("*/checkpoints/last.ckpt"))) == 2)
        listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True)
        children = listed.stdout.split()
        assert len(children) >= 2
        process.terminate()
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 143, errors
        assert "stopped by SIGTERM. Way out: the same command goes on" in errors
        assert "Traceback" not in errors
        assert list(states(output).values()) == ["stopped"] * 2
        wait_for(lambda: subprocess.run(["ps", "-p", ",".join(children)], capture_output=True).returncode, 20)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slurm
def test_a_sweep_on_slurm_survives_requeueing_time_limits_and_cancelling(mnist_root, tmp_path):
    run = ["model=st_fcn", "model.width=16", "data.batch_size=64", "recipe.validate_every=100", "trainer.max_steps=2000"]
    run += ["++trainer.limit_val_batches=2", "++trainer.limit_test_batches=2", "logger=csv", f"data.root={mnist_root}"]
    run += ["checkpoint_minutes=0.02"]
    on_slurm = [
        "ablation=seeds",
        "seed=1,2,3,4",
        "cluster=slurm",
        "hydra.launcher.cpus_per_task=1",
        f"hydra.sweep.dir={tmp_path}",
    ]
    process = start(*on_slurm, *run)
    folders = {n: lambda n=n: next(iter(tmp_path.glob(f"*seed-{n}*")), None) for n in (1, 2, 3, 4)}
    for n in (1, 2):
        wait_for(lambda n=n: folders[n]() and (folders[n]() / "checkpoints" / "last.ckpt").exists())
    queue = subprocess.run(["squeue", "--noheader", "--format=%F %k"], capture_output=True, text=True, check=True).stdout
    number = next(line.split()[0] for line in queue.splitlines() if str(tmp_path) in line)
    subprocess.run(["scontrol", "requeue", f"{number}_0"], check=True)
    with suppress(subprocess.TimeoutExpired):  # as before the time limit or a preemption; it waits for an answer of the job
        subprocess.run(["scancel", "--signal=USR2", f"{number}_1"], capture_output=True, timeout=3)
    subprocess.run(["scancel", f"{number}_3"], check=True)
    code, _, errors = sweep(*on_slurm, *run)
    assert code == 1
    assert f"in the queue already, as job {number}" in errors

    def goes_on(n):
        # SLURM itself would let a job that it has queued again wait for two minutes.
        subprocess.run(["scontrol", "update", f"jobid={number}_{n}", "starttime=now"], capture_output=True)
        logs = "".join(log.read_text() for log in tmp_path.glob(f".submitit/{number}_{n}/*_log.out"))
        return "going on from" in logs and (n == 0 or "Caught signal SIGUSR2" in logs)

    wait_for(lambda: all([goes_on(0), goes_on(1)]), seconds=300)
    output, errors = process.communicate(timeout=400)
    assert process.returncode == 1
    assert "4 runs, 0 finished before" in output
    told = states(output)
    assert sorted(told.values()) in (["finished"] * 3 + ["not begun"], ["finished"] * 3 + ["stopped"])
    records = {n: (folders[n]() / "metrics.json") for n in (1, 2, 3)}
    written = {n: path.stat().st_mtime_ns for n, path in records.items()}
    # The requeued run ends as one that nothing disturbed.
    code, _, errors = sweep("experiment=mnist", "seed=1", f"hydra.run.dir={tmp_path}/alone", *run)
    assert code == 0, errors
    alone = json.loads((tmp_path / "alone" / "metrics.json").read_text())["metrics"]
    assert json.loads(records[1].read_text())["metrics"] == alone
    assert (records[1].parent / "metrics.csv").read_text() == (tmp_path / "alone" / "metrics.csv").read_text()
    code, output, errors = sweep(*on_slurm, *run)
    assert code == 0, errors
    assert "4 runs, 3 finished before" in output
    assert list(states(output).values()) == ["finished"] * 4
    assert {n: path.stat().st_mtime_ns for n, path in records.items()} == written

"""Sweeps: their runs, and what happens when they fail, stop and are rerun."""

import json
import os
import re
import signal
import subprocess
from contextlib import suppress
from functools import partial
from types import SimpleNamespace

import pytest
from conftest import REPOSITORY
from programs import Program, wait_for

import train
from hydra_plugins.spatial_transformer_sweeps.sweeps import (
    SlurmArray,
    SlurmLauncher,
    _is_queued,
    _queued_jobs,
    run_job,
)
from spatial_transformer.training.run_dir import RunDir
from spatial_transformer.utils.errors import UsageError

RUNS = {  # number of runs with one seed
    "sweep=addition": 8,
    "sweep=cluttered": 4,
    "sweep=colocalisation": 20,
    "sweep=table1": 32,
    "sweep=table2": 6,
    "sweep=table3": 4,
    "ablation=definitions": 14,
    "ablation=fixed_crop": 1,
    "ablation=localisation_lr": 6,
    "ablation=long_parts": 6,
    "ablation=mnist_rotated": 5,
    "ablation=regress": 4,
    "ablation=seeds": 1,
    "ablation=trivial_baselines": 3,
}
TINY = ["model.width=4", "data.eval_batch_size=50", "logger=csv"]
STATES = "finished|failed|stopped|not started"


def states(output):
    """Return the state of each run in the last table of an output."""
    return dict(re.findall(rf"^ (\S+) +({STATES})\b", output, re.M))


@pytest.fixture
def run_here(run_program, monkeypatch, tmp_path):
    """Run train.py in this process, in tmp_path; return exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    return partial(run_program, train.main)


def run(*words):
    process = Program("train.py", *words)
    output, errors = process.communicate(timeout=500)
    return process.returncode, output, errors


def test_every_sweep_is_tested():
    files = [file for group in ("sweep", "ablation") for file in REPOSITORY.glob(f"conf/{group}/*")]
    assert set(RUNS) == {f"{file.parent.name}={file.stem}" for file in files}


@pytest.mark.parametrize("sweep", RUNS)
def test_runs_are_listed_without_a_download(run_here, tmp_path, monkeypatch, sweep):
    connections = []

    def connect(*arguments):
        connections.append(arguments)
        raise ConnectionRefusedError

    monkeypatch.setattr("socket.socket.connect", connect)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    code, output, errors = run_here(sweep, "launcher=show", "seed=1")
    assert code == 0, errors
    assert re.search(rf"\b{RUNS[sweep]} runs?, 0 finished\n", output)
    assert list(states(output).values()) == ["not started"] * RUNS[sweep]
    assert not any(tmp_path.iterdir())
    assert not connections


def test_runs_have_three_seeds(run_here):
    output = run_here("sweep=cluttered", "launcher=show")[1]
    assert [output.count(f"_seed-{seed}") for seed in (1, 2, 3)] == [4, 4, 4]


def test_listing_without_a_sweep(run_here):
    assert states(run_here("launcher=show", "seed=2")[1]) == {"seed-2": "not started"}


def test_listing_estimates_the_time(run_here, record, tmp_path):
    (tmp_path / "results" / "mnist").mkdir(parents=True)
    for threads, hours in ((1, 1), (1, 2), (1, 9), (8, 0.1)):
        result = record(1.0, "model=fcn", "transform=none", "recipe=fast")
        result |= {"seconds": hours * 3600, "threads": threads, "devices": 1}
        file = tmp_path / "results" / "mnist" / f"{threads}-{hours}.json"
        file.write_text(json.dumps(result))
    words = ["sweep=table1", "launcher=show", "seed=1"]
    estimate = "4 runs, 0 finished; about 8 h on one core, from earlier results"
    assert estimate in run_here(*words, "model=fcn")[1]
    assert "about 4 h" in run_here(*words, "model=fcn", "trainer.max_steps=7500")[1]
    assert "8 runs, 0 finished\n" in run_here(*words, "model=fcn,cnn")[1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("+data.batchsize=3", "Unknown setting data.batchsize"),
        ("model=cnn,svhn_cnn", "No run of this sweep has model=svhn_cnn"),
        ("model=fcn transform=affine,tps", "has model=fcn and transform=affine,tps."),
        ("+data.canvas=28,-3", "data.canvas must be at least 28"),
        ("trainer.max_steps=0,5", "trainer.max_steps must be a positive integer, got 0"),
        ("sweep=table1,cluttered", "Choose one sweep, got table1, cluttered."),
        (f"label={'x' * 250}", "The name of a run directory must have at most 255 bytes"),
        ("hydra.sweep.subdir=same", "Two runs of the sweep have the same directory same."),
        ("seed=interval(1,3)", "Can only enumerate CHOICE and RANGE sweeps"),
    ],
)
def test_wrong_setting_starts_no_run(run_here, tmp_path, wrong, message):
    sweep = [] if wrong.startswith("sweep=") else ["sweep=table1"]
    code, output, errors = run_here("-m", *sweep, *wrong.split())
    assert code == 1
    assert message in errors
    assert not output
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "SLURM_PROCID"])
def test_sweep_of_several_processes_is_refused(run_here, monkeypatch, variable):
    monkeypatch.setenv(variable, "2")
    code, _, errors = run_here("sweep=table1", "launcher=show")
    assert code == 1
    assert "A sweep must be one process" in errors


def test_error_that_cannot_be_written_is_reported(monkeypatch, tmp_path, capsys):
    output = SimpleNamespace(runtime=SimpleNamespace(output_dir=f"{tmp_path}/run"))
    monkeypatch.setattr("hydra.core.hydra_config.HydraConfig.get", lambda: output)
    (tmp_path / "run").touch()  # no directory, so that error.txt cannot be written

    def fail(config):
        raise UsageError("The disk is full.")

    with pytest.raises(UsageError, match="full"):
        run_job(fail, None)
    assert capsys.readouterr().err == "run failed: The disk is full.\n"


def test_run_in_progress_is_not_failed(run_here, tmp_path):
    words = ["sweep=table1", "model=fcn", "data.distortion=r", "seed=1", "hydra.sweep.dir=sweep"]
    (name,) = states(run_here(*words, "launcher=show")[1])
    with RunDir(tmp_path / "sweep" / name).lock():
        _, output, errors = run_here(*words)
    assert "Another run is working in" in errors
    assert states(output) == {name: "not started"}


@pytest.mark.parametrize("launcher", ["local", "joblib"])
def test_failed_run_is_retried(run_here, mnist_root, tmp_path, launcher):
    words = ["sweep=table1", f"launcher={launcher}", f"hydra.sweep.dir={tmp_path}", *TINY]
    words += [f"data.root={mnist_root}", "model=st_fcn", "transform=affine,projective", "seed=1"]
    words += ["data.distortion=r", "debug=fdr"]
    failing, other = sorted(states(run_here(*words, "launcher=show")[1]))
    (tmp_path / failing).mkdir()
    (tmp_path / failing / "crops").write_text("a file where the run needs a directory")
    code, output, errors = run(*words)
    assert code == 1
    assert states(output) == {failing: "failed", other: "finished"}
    progress = [line for line in output.splitlines() if " steps/s " in line]
    label = "st_fcn-projective-r-fast-seed1  "
    assert {line.startswith(label) for line in progress} == {launcher == "joblib"}
    immediate, _, summary = errors.partition("Error: ")
    assert f"{failing} failed: " in immediate
    assert "Not all runs are finished: 1 failed, 1 finished" in summary
    assert "Traceback" not in errors
    result = tmp_path / other / "metrics.json"
    written = result.stat().st_mtime_ns
    (tmp_path / failing / "crops").unlink()
    code, output, errors = run(*words)
    assert code == 0, errors
    assert "2 runs, 1 finished" in output
    assert states(output) == {failing: "finished", other: "finished"}
    assert result.stat().st_mtime_ns == written
    assert not (tmp_path / failing / "error.txt").exists()


@pytest.fixture
def joblib_sweep(mnist_root, tmp_path):
    """Start a sweep and wait until two workers train; return it and the ids of the workers."""
    processes = []

    def start_sweep(*settings):
        words = ["ablation=seeds", "launcher=joblib", "model=fcn", *TINY, "data.batch_size=16"]
        words += [f"data.root={mnist_root}", f"hydra.sweep.dir={tmp_path}"]
        words += ["callbacks.progress=null", "++trainer.limit_val_batches=1"]
        words += ["++trainer.limit_test_batches=1", "recipe.validate_every=20", *settings]
        process = Program("train.py", *words, prepare=(os.setsid,))
        processes.append(process)
        wait_for(lambda: len(list(tmp_path.glob("*/checkpoints/last.ckpt"))) == 2)
        command = ["pgrep", "-f", "LokyProcess", "-P", str(process.pid)]
        return process, subprocess.run(command, capture_output=True, text=True).stdout.split()

    yield start_sweep
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


SIGTERM = pytest.param(signal.SIGTERM, marks=pytest.mark.slow)  # handled as SIGINT


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, SIGTERM])
def test_stopped_joblib_sweep_leaves_no_process(joblib_sweep, number):
    process, workers = joblib_sweep("seed=1,2", "trainer.max_steps=1000000")
    assert len(workers) == 2
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    process.wait(60)
    command = ["ps", "-o", "stat=", "-p", ",".join(workers)]
    wait_for(
        lambda: not set(subprocess.run(command, capture_output=True).stdout) - set(b" Z\n"), 20
    )
    output, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number
        assert "Rerun the same command to resume the sweep." in errors
        assert list(states(output).values()) == ["stopped"] * 2


def test_stopped_worker_ends_no_other_run(joblib_sweep):
    process, workers = joblib_sweep("seed=1,2,3", "trainer.max_steps=500")
    os.kill(int(workers[0]), signal.SIGTERM)
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 1
    assert sorted(states(output).values()) == ["finished", "finished", "stopped"]
    assert "Traceback" not in errors


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    """Let squeue answer with a code and a text."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def answer(code, text):
        script = f"#!/bin/sh\nprintf '{text}\\n' | tee /dev/stderr\nexit {code}\n"
        (tmp_path / "squeue").write_text(script)
        (tmp_path / "squeue").chmod(0o755)

    return answer


def test_sweep_is_queued_until_slurm_says_otherwise(squeue):
    squeue(0, "7|other sweep\n8|my|sweep")
    assert _queued_jobs("my|sweep") == ["8"]
    assert _is_queued("my|sweep")
    assert not _is_queued("sweep")
    squeue(1, "Socket timed out")
    assert _is_queued("sweep")
    with pytest.raises(UsageError, match="squeue failed: Socket timed out"):
        _queued_jobs("sweep")


@pytest.mark.parametrize(("restarts", "kept"), [("", 2), ("0", 2), ("1", 1)])
def test_requeued_job_resumes_even_if_it_was_started_over(monkeypatch, restarts, kept):
    monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    monkeypatch.setattr(SlurmLauncher, "__call__", lambda job, overrides, *_: overrides)
    words = ["seed=1", "ckpt_path=null"]
    assert SlurmArray.__new__(SlurmArray)(words) == words[:kept]


def test_slurm_of_others_is_not_stopped(tmp_path):
    conf = tmp_path / "slurm.conf"
    conf.write_text("ClusterName=theirs\n")
    script = (REPOSITORY / "scripts" / "dev" / "slurm.sh").read_text()
    script = script.replace("/etc/slurm/slurm.conf", str(conf))
    command = ["bash", "-c", "pkill() { echo $*; }; rm() { pkill; };" + script, "slurm.sh", "stop"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{conf} is there already" in done.stderr


@pytest.mark.slurm
def test_slurm_sweep_resumes(mnist_root, tmp_path):
    """One run is requeued, one gets the signal before a time limit, one is cancelled."""
    settings = ["model=st_fcn", "model.width=16", "data.batch_size=64", "trainer.max_steps=1000"]
    settings += ["recipe.validate_every=100", "checkpoint_minutes=0.02", "logger=csv"]
    settings += ["++trainer.limit_val_batches=2", "++trainer.limit_test_batches=2"]
    settings += [f"data.root={mnist_root}"]
    sweep = ["ablation=seeds", "seed=1,2,3,4", "launcher=slurm", f"hydra.sweep.dir={tmp_path}"]
    sweep += ["hydra.launcher.cpus_per_task=1", *settings]
    process = Program("train.py", *sweep)

    def find(seed, file):
        return next(tmp_path.glob(f"*seed-{seed}*/{file}"), None)

    for seed in (1, 2):
        wait_for(lambda seed=seed: find(seed, "checkpoints/last.ckpt"))
    queue = ["squeue", "--noheader", "--format=%F %k"]
    queue = subprocess.run(queue, capture_output=True, text=True, check=True).stdout
    number = next(line.split()[0] for line in queue.splitlines() if str(tmp_path) in line)
    subprocess.run(["scontrol", "requeue", f"{number}_0"], check=True)
    with suppress(subprocess.TimeoutExpired):  # it waits for an answer of the job
        command = ["scancel", "--signal=USR2", f"{number}_1"]
        subprocess.run(command, capture_output=True, timeout=3)
    subprocess.run(["scancel", f"{number}_3"], check=True)
    code, _, errors = run(*sweep)
    assert code == 1
    assert f"already queued as job {number}" in errors

    def resumes(task):  # SLURM itself would let a requeued job wait for two minutes
        command = ["scontrol", "update", f"jobid={number}_{task}", "starttime=now"]
        subprocess.run(command, capture_output=True)
        logs = tmp_path.glob(f".submitit/{number}_{task}/*_log.out")
        text = "".join(log.read_text() for log in logs)
        return "Resuming from" in text and (task == 0 or "Caught signal SIGUSR2" in text)

    wait_for(lambda: all([resumes(0), resumes(1)]), seconds=300)
    output, errors = process.communicate(timeout=400)
    assert process.returncode == 1
    assert "4 runs, 0 finished" in output
    *others, cancelled = sorted(states(output).values())
    assert others == ["finished"] * 3
    assert cancelled in ("not started", "stopped")
    results = [find(seed, "metrics.json") for seed in (1, 2, 3)]
    written = [path.stat().st_mtime_ns for path in results]
    # The requeued run has the result of a run that was not disturbed.
    code, _, errors = run(
        "experiment=mnist", "seed=1", f"hydra.run.dir={tmp_path}/alone", *settings
    )
    assert code == 0, errors
    alone = tmp_path / "alone" / "metrics.json"
    metrics = [json.loads(path.read_text())["metrics"] for path in (results[0], alone)]
    assert metrics[0] == metrics[1]
    tables = [path.with_name("metrics.csv").read_text() for path in (results[0], alone)]
    assert tables[0] == tables[1]
    code, output, errors = run(*sweep)
    assert code == 0, errors
    assert "4 runs, 3 finished" in output
    assert list(states(output).values()) == ["finished"] * 4
    assert [path.stat().st_mtime_ns for path in results] == written

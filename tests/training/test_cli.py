"""The programs report a configuration error in one message, and other errors in full."""

import os
import pickle
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from conftest import REPOSITORY
from programs import Program

import train
from spatial_transformer.training.cli import entry_point
from spatial_transformer.training.signals import StopSignals
from spatial_transformer.utils.errors import Stopped, UsageError


@pytest.fixture
def start(run_program, tmp_path):
    """Run train.py, or another main function; return its exit code and what it prints."""

    def start_(*words, main=train.main):
        code, _, errors = run_program(main, f"hydra.run.dir={tmp_path}/run", *words)
        return code, errors

    return start_


WRONG = {
    "experiment=mnst": "experiment=mnst does not exist. Did you mean 'mnist' or 'mnist_3d'?",
    "modle=cnn": "There is no setting or group modle. Did you mean 'model'",
    "experimnt=mnist": "There is no setting or group experimnt. Did you mean 'experiment'?",
    "data.batch_sise=3": "There is no setting or group data.batch_sise. Did you mean 'batch_size'",
    "experiment=svhn_cnn data.siz=1": "There is no setting or group data.siz. Did you mean 'size'",
    "trainer.max_time=1": "There is no setting or group trainer.max_time. Did you mean 'max_steps'?"
    " Use +trainer.max_time=1 for an argument that is not set yet.",
    "seed=one": "seed=one: Value 'one' of type 'str' could not be converted to Integer.",
    "recipe.optimizer=sgd": "recipe.optimizer=sgd: Cannot assign str",
    "data.root={": "data.root={ cannot be parsed. Quote the value: 'data.root=\"{\"'.",
    "recipe.dropout=${nothing}": "model.dropout: Interpolation key 'nothing' not found",
    "seed=${nothing}": "seed: Interpolation key 'nothing' not found",
    "recipe={stepz:3}": "Could not override 'recipe'",
    "logger=null": "logger=null does not exist. Choose one of csv, mlflow, none, tensorboard,",
    "--experiment mnist": "--experiment is not an option. Write experiment=mnist.",
    "--experiment=mnist": "--experiment is not an option. Write experiment=mnist.",
    "-cn nothing": "Cannot find primary config 'nothing'.",
    "mnist": "mnist is not a setting. Write NAME=VALUE.",
    "run_dir=null": "run_dir must be a directory (set hydra.run.dir), got None.",
    "seed=-1": "seed must be from 0 to 4,294,967,295, got -1.",
    "data.batch_size=0": "data.batch_size must be a positive integer, got 0",
    "data.root=~/nowhere": f"MNIST is incomplete: {os.path.expanduser('~')}/nowhere does not",
    'data.root="~/nowhere"': f"MNIST is incomplete: {os.path.expanduser('~')}/nowhere does not",
    "hydra.sweep.dir=x +modle=3": "Unknown setting modle. Did you mean 'model'",
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_command_prints_one_message_and_leaves_nothing(start, tmp_path, words):
    code, errors = start("data.root=nowhere", "logger=none", *words.split())
    assert code == 1
    head, _, message = errors.partition("Error: ")
    assert not head.strip()
    assert message.startswith(WRONG[words])
    assert message.splitlines()[-1] == "(HYDRA_FULL_ERROR=1 shows the traceback)"
    assert "Traceback" not in message
    assert not os.environ.get("HYDRA_FULL_ERROR")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mode", ["run", "sweep"])
def test_directory_that_cannot_be_created_is_reported(run_program, tmp_path, mode):
    (tmp_path / "file").touch()
    words = ["-m", "model=fcn"] if mode == "sweep" else []
    code, _, errors = run_program(train.main, *words, f"hydra.{mode}.dir={tmp_path}/file/new")
    assert code == 1
    assert re.search(rf"^Error: The .*{mode}.* cannot be created: \[Errno 20\]", errors, re.M)
    assert "Traceback" not in errors


def test_other_errors_before_the_runs_of_a_sweep_keep_their_traceback(run_program, monkeypatch):
    def build(config):
        raise ConnectionResetError("while weights were downloaded")

    monkeypatch.setattr("spatial_transformer.training.build.build", build)
    with pytest.raises(ConnectionResetError, match="downloaded"):
        run_program(train.main, "-m", "model=fcn", "seed=1")


def make(error):
    def main(config):
        raise error

    main.__module__ = train.__name__
    main.__code__ = main.__code__.replace(co_filename=str(REPOSITORY / "train.py"))
    return entry_point("train")(main)


@pytest.mark.parametrize("kind", [OSError, ConnectionResetError, ValueError, MemoryError])
def test_other_errors_keep_their_traceback(start, kind):
    with pytest.raises(kind, match="of the user"):
        start(main=make(kind("an error of the user's code")))


def test_full_traceback_can_be_shown(start, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(UsageError):
        start(main=make(UsageError("wrong")))
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


def test_interruption_sets_the_exit_code(start):
    code, errors = start(main=make(Stopped("Interrupted at step 3.", 143)))
    assert (code, errors.strip()) == (143, "Interrupted at step 3.")
    assert start(main=make(KeyboardInterrupt()))[0] == 130


def test_interruption_can_be_pickled():
    stop = pickle.loads(pickle.dumps(Stopped("Interrupted at step 3.", 143)))
    assert (str(stop), stop.code) == ("Interrupted at step 3.", 143)


def test_second_signal_stops_at_once_unless_it_comes_within_a_second(monkeypatch):
    with StopSignals("Run it again.") as signals:
        signals.is_deferred = True
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        later = time.monotonic() + 2
        monkeypatch.setattr(time, "monotonic", lambda: later)
        with pytest.raises(Stopped, match=r"Interrupted by SIGINT\. Run it again\."):
            signal.raise_signal(signal.SIGINT)


def test_program_of_nohup_ignores_the_end_of_its_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals("Run it again."):
            signal.raise_signal(signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with StopSignals("Run it again."), pytest.raises(Stopped, match="by SIGHUP"):
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_thread_without_signals_can_train():
    with ThreadPoolExecutor() as threads, StopSignals("") as signals:
        threads.submit(signals.install).result()


@pytest.mark.parametrize(("local", "reports"), [("0", True), ("1", False)])
def test_first_process_of_each_machine_reports_errors(start, monkeypatch, local, reports):
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_RANK", local)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    code, errors = start(main=make(UsageError("the data is missing here")))
    assert code == 1
    assert ("the data is missing here" in errors) == reports


SLURM = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("variables", "refused"),
    [
        ({"SLURM_NTASKS": "4"}, True),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_ID": "0"}, True),  # Lightning does not support it
        ({"SLURM_NTASKS": "4", "SLURM_STEP_ID": "0", "SLURM_NTASKS_PER_NODE": "4"}, False),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "interactive"}, False),
        ({"SLURM_NTASKS": "4", "TORCHELASTIC_RUN_ID": "x"}, False),
        ({"SLURM_NTASKS": "1"}, False),
    ],
)
def test_slurm_tasks_without_srun_are_refused(start, monkeypatch, variables, refused):
    for name, value in {**SLURM, **variables}.items():
        monkeypatch.setenv(name, value)
    _, errors = start(main=make(UsageError("the run has begun")))
    assert ("SLURM has reserved 4 tasks for one process" in errors) == refused
    assert ("the run has begun" in errors) != refused


def test_resolved_settings_are_printed(run_program):
    words = ["model=cnn", "transform=none", "recipe=long", "--cfg", "job", "--resolve"]
    code, output, _ = run_program(train.main, *words)
    assert code == 0
    assert "label: cnn-none-rts-long-seed1" in output
    assert "total_steps: 30000" in output


def test_help_lists_examples_experiments_and_groups_without_waiting_for_torch():
    code = "import sys, runpy; sys.argv = ['train.py', '--help']\n"
    code += "try: runpy.run_path('train.py', run_name='__main__')\n"
    code += "except SystemExit: pass\nassert 'torch' not in sys.modules"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0
    examples = ("experiment=quickstart", "colocalisation, mnist, mnist_3d", "data.root")
    for part in (*examples, "fdr", "-sc"):
        assert part in done.stdout
    assert "spatial_transformer_" not in done.stdout


def test_interrupted_run_reports_how_to_resume(mnist_root, tmp_path):
    words = [f"data.root={mnist_root}", "logger=none", f"hydra.run.dir={tmp_path}"]
    words += ["model.width=8", "recipe.validate_every=1", "++trainer.limit_val_batches=1"]
    words += ["ckpt_path=null"]
    process = Program("train.py", *words)
    next(line for line in process.stdout if line.startswith("step 2 of"))
    for _ in range(20):  # Python can lose an interrupt that arrives within a callback of C code
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(2)
            break
    _, errors = process.communicate()
    assert process.returncode == 130
    assert f"hydra.run.dir={tmp_path} ckpt_path=auto to resume" in errors
    assert "Interrupted by SIGINT at step " in (tmp_path / "train.log").read_text()
    assert "Traceback" not in errors


@pytest.mark.parametrize("logging", ["default", "stdout", "none", "disabled"])
def test_options_of_job_logging_can_be_chosen(start, tmp_path, logging):
    code, errors = start(f"hydra/job_logging={logging}", main=make(Stopped("Stopped.", 143)))
    assert (code, errors.strip()) == (143, "Stopped.")


def test_used_directory_is_kept_after_an_error(start, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    assert start("seed=-1")[0] == 1
    assert (tmp_path / "run" / "mine.txt").exists()
    assert "seed must be from 0" in (tmp_path / "run" / "train.log").read_text()


def test_multirun_may_follow_settings(run_program, tmp_path):
    words = ["experiment=mnist", "-m", "seed=1,2", "launcher=show", "model=fcn", "transform=none"]
    code, output, _ = run_program(train.main, *words, f"hydra.sweep.dir={tmp_path}")
    assert code == 0
    assert output.startswith("2 runs, 0 finished")

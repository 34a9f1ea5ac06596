"""A run on several devices, here processes on a CPU, equals the run on one."""

import copy
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
import wandb_file
from conftest import REPOSITORY
from make_svhn import make as make_numbers
from run_files import checkpoint, losses, metrics, rows

from spatial_transformer.data.base import check_divisible
from spatial_transformer.networks.backbones import load_backbone
from spatial_transformer.training.distributed import DistributedContext
from spatial_transformer.utils.errors import UsageError

STEPS = 8
TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
# Evaluation batches have shares of 17 and 16 samples; dropout alone is drawn on the device.
SETTINGS = f"""
data.batch_size=12 data.eval_batch_size=33 recipe.validate_every=4 recipe.dropout=0
trainer.max_steps={STEPS} trainer.log_every_n_steps=2 trainer.accelerator=cpu logger=csv
++trainer.limit_val_batches=2 ++trainer.limit_test_batches=3
""".split()
# SGD: AdamW would enlarge the rounding errors of a gradient of 0.
MNIST = ["model=st_fcn", "model.width=16", "recipe=paper"]
LONG = [*MNIST, "trainer.max_steps=60", "recipe.validate_every=6"]
TORCHRUN = ("-m", "torch.distributed.run")
TWO_PROCESSES = (*TORCHRUN, "--standalone", "--nproc-per-node=2", "train.py")

# A sitecustomize module, which Python imports at its start: notes the samples of each process.
SITE = """
import hashlib, os
from spatial_transformer.data.base import BatchedData
from spatial_transformer.tasks import digit_encoder
digit_encoder.RECIPE["steps"] = 2
inner = BatchedData.on_after_batch_transfer
def watched(self, draw, number):
    images, labels = inner(self, draw, number)
    trainer = self.trainer
    if not trainer.sanity_checking:
        with open(f"{os.environ['SEEN']}/{os.getpid()}", "a") as file:
            for n, image, label in zip(draw.indices.tolist(), images, labels):
                content = image.numpy().tobytes() + label.numpy().tobytes()
                digest = hashlib.sha256(content).hexdigest()
                print(draw.split, trainer.global_step, n, digest, file=file, flush=True)
    return images, labels
BatchedData.on_after_batch_transfer = watched
"""


USER = """
import pytorch_lightning as pl
class LocalMetric(pl.Callback):
    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("val/mine", float(trainer.global_rank))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(SITE)
    (folder / "user.py").write_text(USER)
    return folder


@pytest.fixture(scope="module")
def start(site):
    def start_(folder, *arguments, program=("train.py",), **environment):
        seen = folder.with_name(f"{folder.name}-seen")
        seen.mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
        ours = {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "SEEN": str(seen)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        command = [sys.executable, *program, *arguments]
        return subprocess.Popen(
            command, cwd=REPOSITORY, env={**os.environ, **ours, **environment}, **pipes
        )

    return start_


def wait(process, code=0):
    """Wait for the end of a process and return its output and its errors."""
    output, errors = process.communicate(timeout=900)
    assert process.returncode == code, errors
    return output, errors


@pytest.fixture(scope="module")
def finish(start):
    """Train in a directory and return what is printed."""

    def finish_(run, *settings, **more):
        return wait(start(run, *SETTINGS, *settings, f"hydra.run.dir={run}", **more))[0]

    return finish_


def seen(run, split):
    """Return how often the processes saw each (step, sample, digest), and their number."""
    files = list(run.with_name(f"{run.name}-seen").iterdir())
    lines = [line.split() for file in files for line in file.read_text().splitlines()]
    draws = ((int(step), int(n), digest) for of, step, n, digest in lines if of == split)
    return Counter(draws), len(files)


def assert_near(run, other, rtol, atol):
    found, expected = checkpoint(run)["state_dict"], checkpoint(other)["state_dict"]
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, rtol=rtol, atol=atol), name


def files(run):
    names = (path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file())
    return {name for name in names if "wandb" not in name}


def assert_same_run(one, two, steps=STEPS):
    assert (seen(one, "train")[1], seen(two, "train")[1]) == (1, 2)
    for split in ("train", "val", "test"):
        assert seen(one, split)[0] == seen(two, split)[0]
    for split in ("train", "test"):
        assert set(seen(two, split)[0].values()) == {1}, "each sample once"
    assert_near(two, one, rtol=1e-3, atol=2e-5)
    assert len(losses(one)) == steps // 2
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    assert metrics(two) == pytest.approx(metrics(one), rel=1e-3, abs=1e-3)
    assert [row["step"] for row in rows(two)] == [row["step"] for row in rows(one)], "no row twice"
    assert files(two) == files(one)


@pytest.fixture(scope="module")
def two(mnist_root, tmp_path_factory, finish):
    """A finished run on two devices, and what it printed."""
    run = tmp_path_factory.mktemp("two") / "run"
    wandb = ["logger=wandb", "logger.wandb.offline=true"]
    return run, finish(run, *MNIST, *TWO, f"data.root={mnist_root}", *wandb)


def test_two_devices_equal_one(two, mnist_root, tmp_path, finish):
    one = tmp_path / "one" / "run"
    finish(one, *MNIST, f"data.root={mnist_root}")
    assert_same_run(one, two[0])
    wrong = [{row["test sample"] for row in rows(r, "crops/mistakes.csv")} for r in (one, two[0])]
    assert wrong[0] == wrong[1] != set()


def test_rank_zero_alone_prints_and_writes(two):
    run, output = two
    assert [path.name for path in run.parent.iterdir() if path.name != "run-seen"] == ["run"]
    for line in ("test error", "parameters", f"step {STEPS} of {STEPS}"):
        assert output.count(line) == 1
    assert (run / "train.log").read_text() == output
    (offline,) = (run / "wandb").glob("offline-run-*")
    (file,) = offline.glob("*.wandb")
    logged = [row["train/loss"] for row in wandb_file.rows(file) if "train/loss" in row]
    assert logged == pytest.approx(losses(run))


@pytest.mark.slow
def test_only_a_metric_of_a_user_that_differs_between_devices_is_warned_of(
    mnist_root, tmp_path, start
):
    words = [*SETTINGS, *MNIST, *TWO, "trainer.max_steps=2", f"data.root={mnist_root}"]
    words.append("+callbacks.mine={_target_: user.LocalMetric}")
    _, errors = wait(start(tmp_path / "run", *words, f"hydra.run.dir={tmp_path}/run"))
    assert re.findall(r"self\.log\('(\S+)', \.\.\., sync_dist=True", errors) == ["val/mine"]


def test_evaluation_on_one_device_equals_that_on_two(two, start):
    run, _ = two
    output, _ = wait(start(run, f"run={run}", program=("evaluate.py",)))
    found = {words[0]: words[1] for words in map(str.split, output.splitlines()) if words}
    assert output.count("test/error") == 1
    for name in ("test/error", "test/loss"):
        assert found[name] == f"{metrics(run)[name]:.4g}"


@pytest.mark.parametrize(
    ("batch_size", "devices", "sizes"),
    [(10, 4, "8 or 12"), (3, 4, "4"), (7, 2, "6 or 8"), (1, 2, "2")],
)
def test_batch_that_cannot_be_divided_is_refused(batch_size, devices, sizes):
    message = rf"multiple of the {devices} devices, got {batch_size}\. Use {sizes}\."
    with pytest.raises(UsageError, match=message):
        check_divisible(batch_size, devices)


def test_refusal_leaves_no_run(mnist_root, tmp_path, start):
    run = tmp_path / "run"
    words = ["experiment=mnist_modern", f"data.root={mnist_root}", f"hydra.run.dir={run}"]
    _, errors = wait(start(run, *TWO, *words), code=1)
    assert "Batch normalisation over several devices needs GPUs." in errors
    assert "Traceback" not in errors
    assert not run.exists()


# Processes that torchrun or SLURM starts


@pytest.fixture
def settings(mnist_root):
    return [*SETTINGS, *MNIST, *TWO, "trainer.max_steps=2", f"data.root={mnist_root}"]


def slurm(task, tasks=2):
    """Return the environment that SLURM gives to a task of a job."""
    values = {"JOB_ID": 4711, "NTASKS": tasks, "NTASKS_PER_NODE": tasks, "NNODES": 1}
    values |= {"NODELIST": "localhost", "JOB_NAME": "train", "STEP_ID": 0}
    values |= {"PROCID": task, "LOCALID": task, "NODEID": 0}
    return {f"SLURM_{name}": str(value) for name, value in values.items()}


@pytest.mark.slow
@pytest.mark.parametrize("by_slurm", [False, True], ids=["torchrun", "SLURM"])
def test_started_processes_share_a_run_directory(settings, tmp_path, start, by_slurm):
    # Each process would take another run directory if it took its own.
    words = [*settings, f"hydra.run.dir={tmp_path}/runs/${{now:%H-%M-%S-%f}}"]
    if by_slurm:
        tasks = [start(tmp_path, *words, **slurm(task)) for task in (0, 1)]
    else:
        tasks = [start(tmp_path, *words, program=TWO_PROCESSES)]
    (output, _), *others = [wait(task) for task in tasks]
    assert others in ([], [("", "")])
    assert output.count("test error") == 1
    assert seen(tmp_path, "train")[1] == 2
    (run,) = (tmp_path / "runs").iterdir()
    assert metrics(run)["test/error"] > 0
    assert {"config.yaml", "metrics.json", "checkpoints/last.ckpt"} <= files(run)


@pytest.mark.slow
def test_two_nodes_train_one_run(settings, tmp_path, start):
    run = tmp_path / "run"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        meeting = f"--rdzv-endpoint=localhost:{free.getsockname()[1]}"
    node = ("--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", meeting, "train.py")
    words = ["trainer.devices=1", "trainer.num_nodes=2", f"hydra.run.dir={run}"]
    nodes = [start(run, *settings, *words, program=(*TORCHRUN, *node)) for _ in range(2)]
    outputs = [wait(node)[0] for node in nodes]
    assert "".join(outputs).count("test error") == 1
    assert seen(run, "train")[1] == 2
    assert json.loads((run / "metrics.json").read_text())["devices"] == 2


@pytest.mark.slow
def test_single_slurm_task_starts_the_processes(mnist_root, tmp_path, finish):
    words = [*MNIST, *TWO, "trainer.max_steps=2", f"data.root={mnist_root}"]
    finish(tmp_path / "run", *words, **slurm(0, tasks=1))
    assert seen(tmp_path / "run", "train")[1] == 2


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 3])
def test_wrong_number_of_processes_is_refused_once(settings, tmp_path, start, devices):
    words = [f"hydra.run.dir={tmp_path}/run", f"trainer.devices={devices}"]
    _, errors = wait(start(tmp_path / "run", *settings, *words, program=TWO_PROCESSES), code=1)
    assert errors.count(f"2 processes were started for {devices} devices") == 1


@pytest.mark.slow
def test_encoder_is_not_trained_by_several_processes(mnist_root, tmp_path, start):
    words = ["experiment=colocalisation", "data.digit=1", f"data.root={mnist_root}"]
    words += [f"task.cache={tmp_path}/cache", f"hydra.run.dir={tmp_path}/run"]
    process = start(tmp_path, *SETTINGS, *TWO, *words, program=TWO_PROCESSES)
    _, errors = wait(process, code=1)
    assert errors.count("cannot be trained by several processes") == 1
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.slow
def test_runs_of_a_sweep_have_two_devices_each(settings, tmp_path, start):
    sweep = tmp_path / "sweep"
    words = [f"hydra.sweep.dir={sweep}", "seed=1,2", "hydra.sweep.subdir=seed${seed}"]
    output, _ = wait(start(sweep, "-m", *settings, *words))
    assert output.count("2 runs, 0 finished") == 1
    assert output.count("test error") == 2 + 2, "once by each run, once in the table"
    assert {path.name for path in sweep.iterdir() if path.is_dir()} == {"seed1", "seed2"}
    assert seen(sweep, "train")[1] == 4


# Interruptions


@pytest.fixture
def running(mnist_root, start, tmp_path):
    """Start a run on two devices and wait for its first checkpoint."""
    run = tmp_path / "run"
    words = [*LONG, *TWO, f"data.root={mnist_root}", f"hydra.run.dir={run}"]
    process = start(run, *SETTINGS, *words)
    while not (run / "checkpoints" / "last.ckpt").exists() and process.poll() is None:
        time.sleep(0.1)
    assert process.poll() is None, process.communicate()
    return run, process


def assert_near_undisturbed(run, mnist_root, finish, tmp_path):
    undisturbed = tmp_path / "undisturbed"
    finish(undisturbed, *LONG, f"data.root={mnist_root}")
    assert set(seen(run, "train")[0]) == set(seen(undisturbed, "train")[0])
    assert_near(run, undisturbed, rtol=1e-2, atol=1e-4)


@pytest.mark.slow
def test_killed_process_ends_the_run_which_resumes_on_one_device(
    running, mnist_root, finish, tmp_path
):
    run, process = running
    workers = [int(file.name) for file in run.with_name("run-seen").iterdir()]
    os.kill(workers[1], signal.SIGKILL)
    _, errors = wait(process, code=1)
    assert "A process was killed" in errors or "onnection closed by peer" in errors
    finish(run, *LONG, f"data.root={mnist_root}")
    assert_near_undisturbed(run, mnist_root, finish, tmp_path)


@pytest.mark.slow
def test_sigterm_lets_all_processes_save(running, mnist_root, finish, tmp_path):
    run, process = running
    process.send_signal(signal.SIGTERM)
    _, errors = wait(process, code=143)
    assert "Interrupted by SIGTERM" in errors
    assert f"hydra.run.dir={run}" in errors
    assert "Traceback" not in errors
    assert checkpoint(run)["global_step"] % 6, "not where it validates"
    finish(run, *LONG, *TWO, f"data.root={mnist_root}")
    assert_near_undisturbed(run, mnist_root, finish, tmp_path)


# Other experiments


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "experiment=mnist_addition model=addition_2st_fcn transform=affine model.width=16",
        "experiment=mnist_3d data.canvas=40",
        "experiment=colocalisation data.digit=1 ++trainer.limit_train_batches=4 data.images=40",
        "experiment=svhn_cnn model.width=0.05 data.augment=true",
        "experiment=svhn_st_multi model.width=0.05 data.augment=true",
    ],
)
def test_other_experiments(mnist_root, tmp_path, finish, words):
    one, two, root = tmp_path / "one" / "run", tmp_path / "two" / "run", mnist_root
    words = words.split()
    if words[0].startswith("experiment=svhn"):
        root = tmp_path / "numbers"
        make_numbers(root, mnist_root, {"train": 60, "test": 31})
    words.append(f"data.root={root}")
    if words[0] == "experiment=colocalisation":  # whose encoder one process must train before
        words.append(f"task.cache={tmp_path}")
        finish(tmp_path / "before" / "run", *words)
    finish(one, *words)
    finish(two, *words, *TWO)
    assert_same_run(one, two)


# Batch normalisation


def test_sync_batchnorm_keeps_outputs_and_names():
    """PyTorch's conversion, which Lightning uses, loses the activations within timm's layers."""
    strategy = SimpleNamespace(root_device=torch.device("cuda"))
    trainer = SimpleNamespace(num_devices=2, num_nodes=1, strategy=strategy)
    backbone = load_backbone("efficientnet_lite0", "none").eval()
    converted = DistributedContext(trainer).convert_sync_batchnorm(copy.deepcopy(backbone)).eval()
    assert sum(isinstance(module, torch.nn.SyncBatchNorm) for module in converted.modules()) > 40
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(converted(images), backbone(images))
    assert list(converted.state_dict()) == list(backbone.state_dict())

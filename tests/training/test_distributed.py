"""A run on several devices, here processes on a CPU, is the run on one: same samples, figures and files."""

import copy
import csv
import json
import os
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
from tiny_birds import Bird, write_birds

from spatial_transformer.data.base import check_divisible
from spatial_transformer.networks.backbones import load_backbone
from spatial_transformer.training.distributed import DistributedContext
from spatial_transformer.utils.errors import UsageError

STEPS = 8
TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
SETTINGS = [
    "data.batch_size=12",
    "data.eval_batch_size=33",  # a share of 17 and one of 16
    "recipe.validate_every=4",
    "recipe.dropout=0",  # the one thing that draws by device
    f"trainer.max_steps={STEPS}",
    "trainer.log_every_n_steps=2",
    "trainer.accelerator=cpu",
    "++trainer.limit_val_batches=2",
    "++trainer.limit_test_batches=3",
    "logger=csv",
]
MNIST = [
    "model=st_fcn",
    "model.width=16",
    "recipe=paper",
]  # SGD: AdamW would enlarge what rounding leaves of a gradient of 0

# Imported by every Python process, as its name says: notes which samples each process sees of each split.
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
                digest = hashlib.sha256(image.numpy().tobytes() + label.numpy().tobytes()).hexdigest()
                print(draw.split, trainer.global_step, n, digest, file=file, flush=True)
    return images, labels
BatchedData.on_after_batch_transfer = watched
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(SITE)
    return folder


@pytest.fixture(scope="module")
def start(site):
    def start_(folder, *arguments, program=("train.py",), **environment):
        seen = folder.with_name(f"{folder.name}-seen")
        seen.mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
        return subprocess.Popen(
            [sys.executable, *program, *arguments],
            cwd=REPOSITORY,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": path,
                "SEEN": str(seen),
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start_


@pytest.fixture(scope="module")
def finish(start):
    """Trains in a folder and returns what was printed."""

    def finish_(folder, *settings, **more):
        process = start(folder, *SETTINGS, *settings, f"hydra.run.dir={folder}", **more)
        output, errors = process.communicate(timeout=400)
        assert process.returncode == 0, errors
        return output

    return finish_


def seen(folder, split):
    """(step, sample, digest) of all samples that the processes of a run saw, and how many processes there were."""
    files = list(folder.with_name(f"{folder.name}-seen").iterdir())
    lines = [line.split() for file in files for line in file.read_text().splitlines()]
    return Counter(
        (int(step), int(n), digest) for of, step, n, digest in lines if of == split
    ), len(files)


def weights(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def assert_near(folder, other, rtol, atol):
    found, expected = weights(folder), weights(other)
    assert found.keys() == expected.keys()
    assert [
        name
        for name, tensor in expected.items()
        if not torch.allclose(found[name], tensor, rtol=rtol, atol=atol)
    ] == []


def rows(folder, name="metrics.csv"):
    with (folder / name).open() as file:
        return list(csv.DictReader(file))


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())["metrics"]


def files(folder):
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "wandb" not in str(path.relative_to(folder))
    }


def assert_same_run(one, two, steps=STEPS):
    assert (seen(one, "train")[1], seen(two, "train")[1]) == (1, 2)
    assert seen(one, "train")[0] == seen(two, "train")[0]
    assert set(seen(two, "train")[0].values()) == {1}
    for split in ("val", "test"):
        assert seen(one, split)[0] == seen(two, split)[0]
    assert set(seen(two, "test")[0].values()) == {1}, "each test sample once"
    assert_near(two, one, rtol=1e-3, atol=2e-5)
    losses = [
        [float(row["train/loss"]) for row in rows(folder) if row["train/loss"]]
        for folder in (one, two)
    ]
    assert len(losses[0]) == steps // 2
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert metrics(two) == pytest.approx(metrics(one), rel=1e-3, abs=1e-3)
    assert [row["step"] for row in rows(two)] == [row["step"] for row in rows(one)], "no row twice"
    assert files(two) == files(one)


@pytest.fixture(scope="module")
def one(mnist_root, tmp_path_factory, finish):
    folder = tmp_path_factory.mktemp("one") / "run"
    finish(folder, *MNIST, f"data.root={mnist_root}")
    return folder


@pytest.fixture(scope="module")
def two(mnist_root, tmp_path_factory, finish):
    folder = tmp_path_factory.mktemp("two") / "run"
    output = finish(
        folder, *MNIST, *TWO, f"data.root={mnist_root}", "logger=wandb", "logger.wandb.offline=true"
    )
    return folder, output


def test_a_run_on_two_devices_is_that_on_one(one, two):
    assert_same_run(one, two[0])
    wrong = [
        {row["test sample"] for row in rows(folder, "crops/mistakes.csv")}
        for folder in (one, two[0])
    ]
    assert wrong[0] == wrong[1] != set()


def test_only_the_first_process_speaks_and_writes(two):
    folder, output = two
    assert [path.name for path in folder.parent.iterdir() if path.name != "run-seen"] == ["run"]
    assert output.count("test error") == 1
    assert output.count(f"step {STEPS} of {STEPS}") == 1
    (run,) = (folder / "wandb").glob("offline-run-*")
    (file,) = run.glob("*.wandb")
    logged = [row["train/loss"] for row in wandb_file.rows(file) if "train/loss" in row]
    assert logged == [
        pytest.approx(float(row["train/loss"])) for row in rows(folder) if row["train/loss"]
    ]


def evaluated(start, folder, *settings):
    process = start(folder, f"run={folder}", *settings, program=("evaluate.py",))
    output, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    lines = [line.split() for line in output.splitlines()]
    return {words[0]: words[1] for words in lines if words}, output


def test_a_test_on_one_device_gives_the_figures_that_two_gave(two, start):
    folder, _ = two
    figures, output = evaluated(start, folder)
    assert output.count("test/error") == 1
    assert figures["test/error"] == f"{metrics(folder)['test/error']:.4g}"
    assert figures["test/loss"] == f"{metrics(folder)['test/loss']:.4g}"


@pytest.mark.parametrize(
    ("batch_size", "devices", "sizes"),
    [(10, 4, "8 or 12"), (3, 4, "4"), (7, 2, "6 or 8"), (1, 2, "2")],
)
def test_a_batch_that_cannot_be_shared_out_is_refused_with_the_next_that_can(
    batch_size, devices, sizes
):
    with pytest.raises(
        UsageError, match=rf"multiple of the {devices} devices, got {batch_size}\. Use {sizes}\."
    ):
        check_divisible(batch_size, devices)


def test_it_is_refused_before_anything_starts(mnist_root, tmp_path, start):
    process = start(
        tmp_path / "run",
        *TWO,
        "data.batch_size=15",
        f"data.root={mnist_root}",
        f"hydra.run.dir={tmp_path}/run",
    )
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "data.batch_size must be a multiple of the 2 devices, got 15. Use 14 or 16." in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.slow
def test_processes_of_torchrun_agree_on_one_folder(mnist_root, tmp_path, start):
    settings = [*SETTINGS, *MNIST, *TWO, "trainer.max_steps=2", f"data.root={mnist_root}"]
    # No hydra.run.dir: by itself each process would make a folder with its own time in its name.
    folder = ["choices.experiment=torchrun", f"hydra.run.dir={tmp_path}/${{now:%H-%M-%S-%f}}"]
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "train.py")
    process = start(tmp_path, *settings, *folder, program=torchrun)
    output, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    (run,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert output.count("test error") == 1
    assert seen(tmp_path, "train")[1] == 2
    assert metrics(run)["test/error"] > 0
    assert {"config.yaml", "metrics.json", "checkpoints/last.ckpt"} <= files(run)


@pytest.mark.slow
def test_two_nodes_train_one_run(mnist_root, tmp_path, start):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        meeting = f"--rdzv-endpoint=localhost:{free.getsockname()[1]}"
    torchrun = (
        "-m",
        "torch.distributed.run",
        "--nnodes=2",
        "--nproc-per-node=1",
        "--rdzv-backend=c10d",
        meeting,
        "train.py",
    )
    settings = [
        *SETTINGS,
        *MNIST,
        "trainer=ddp",
        "trainer.devices=1",
        "trainer.num_nodes=2",
        f"data.root={mnist_root}",
    ]
    nodes = [
        start(tmp_path / "run", *settings, f"hydra.run.dir={tmp_path}/run", program=torchrun)
        for _ in range(2)
    ]
    told = [node.communicate(timeout=400) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], told
    assert "".join(output for output, _ in told).count("test error") == 1
    assert seen(tmp_path / "run", "train")[1] == 2
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["devices"] == 2


def slurm(task):
    """What SLURM tells a task of a job of two."""
    told = {
        "JOB_ID": "4711",
        "NTASKS": 2,
        "NTASKS_PER_NODE": 2,
        "NNODES": 1,
        "NODELIST": "localhost",
        "JOB_NAME": "train",
    }
    told |= {"PROCID": task, "LOCALID": task, "NODEID": 0, "STEP_ID": 0}
    return {f"SLURM_{name}": str(value) for name, value in told.items()}


@pytest.mark.slow
def test_tasks_of_slurm_agree_on_one_folder(mnist_root, tmp_path, start):
    settings = [*SETTINGS, *MNIST, *TWO, "trainer.max_steps=2", f"data.root={mnist_root}"]
    folder = f"hydra.run.dir={tmp_path}/${{now:%H-%M-%S-%f}}"
    tasks = [start(tmp_path, *settings, folder, **slurm(task)) for task in (0, 1)]
    told = [task.communicate(timeout=400) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], told
    (run,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert "test error" in told[0][0]
    assert told[1] == ("", "")
    assert metrics(run)["test/error"] > 0


@pytest.mark.slow
def test_a_single_task_of_slurm_starts_the_processes_itself(mnist_root, tmp_path, finish):
    alone = slurm(0) | {"SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1"}
    finish(
        tmp_path / "run", *MNIST, *TWO, "trainer.max_steps=2", f"data.root={mnist_root}", **alone
    )
    assert seen(tmp_path / "run", "train")[1] == 2


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 3])
def test_other_processes_than_devices_are_refused_by_the_first_alone(
    mnist_root, tmp_path, start, devices
):
    settings = [
        *SETTINGS,
        *MNIST,
        f"data.root={mnist_root}",
        f"hydra.run.dir={tmp_path}/run",
        f"trainer.devices={devices}",
    ]
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "train.py")
    process = start(tmp_path / "run", *settings, program=torchrun)
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 1
    assert errors.count(f"2 processes were started for {devices} devices") == 1


@pytest.mark.slow
def test_the_encoder_of_colocalisation_is_not_trained_by_several_processes(
    mnist_root, tmp_path, start
):
    settings = [
        *SETTINGS,
        *TWO,
        "experiment=colocalisation",
        "data.digit=1",
        f"data.root={mnist_root}",
    ]
    folders = [f"task.cache={tmp_path}/cache", f"hydra.run.dir={tmp_path}/run"]
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "train.py")
    process = start(tmp_path, *settings, *folders, program=torchrun)
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 1
    assert errors.count("cannot be trained by several processes") == 1
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.slow
def test_the_runs_of_a_sweep_are_each_on_two_devices(mnist_root, tmp_path, start):
    settings = [
        *SETTINGS,
        *MNIST,
        *TWO,
        "trainer.max_steps=2",
        f"data.root={mnist_root}",
        f"hydra.sweep.dir={tmp_path}/sweep",
    ]
    process = start(
        tmp_path / "sweep", "-m", *settings, "seed=1,2", "hydra.sweep.subdir=seed${seed}"
    )
    output, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    assert output.count("2 runs, 0 already finished") == 1
    assert output.count("test error") == 2 + 2, "once by each run, once in the table"
    assert {path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir()} == {
        "seed1",
        "seed2",
    }
    assert seen(tmp_path / "sweep", "train")[1] == 4


def processes(folder):
    return [int(file.name) for file in folder.with_name(f"{folder.name}-seen").iterdir()]


@pytest.fixture
def under_way(mnist_root, start, tmp_path):
    """A run on two devices that has written a checkpoint and goes on, in a folder that it is to be finished in."""
    folder = tmp_path / "run"
    process = start(
        folder, *SETTINGS, *LONG, *TWO, f"data.root={mnist_root}", f"hydra.run.dir={folder}"
    )
    while not (folder / "checkpoints" / "last.ckpt").exists() and process.poll() is None:
        time.sleep(0.1)
    assert process.poll() is None, process.communicate()
    return folder, process


LONG = [*MNIST, "trainer.max_steps=60", "recipe.validate_every=6"]


@pytest.mark.slow
def test_a_killed_process_ends_the_run_with_an_error_and_it_resumes_on_one_device(
    under_way, mnist_root, finish, tmp_path
):
    folder, process = under_way
    os.kill(processes(folder)[1], signal.SIGKILL)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 1
    assert "was ended by signal" in errors or "onnection closed by peer" in errors
    finish(folder, *LONG, f"data.root={mnist_root}")
    assert_same_samples_and_weights_as_undisturbed(folder, mnist_root, finish, tmp_path)


@pytest.mark.slow
def test_sigterm_lets_all_processes_save_and_the_run_resumes_on_two_devices(
    under_way, mnist_root, finish, tmp_path
):
    folder, process = under_way
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 143, errors
    assert "Interrupted by SIGTERM" in errors
    assert f"hydra.run.dir={folder}" in errors
    assert "Traceback" not in errors
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert saved % 6, "not where it validates"
    finish(folder, *LONG, *TWO, f"data.root={mnist_root}")
    assert_same_samples_and_weights_as_undisturbed(folder, mnist_root, finish, tmp_path)


def assert_same_samples_and_weights_as_undisturbed(folder, mnist_root, finish, tmp_path):
    undisturbed = tmp_path / "undisturbed"
    finish(undisturbed, *LONG, f"data.root={mnist_root}")
    assert set(seen(folder, "train")[0]) == set(seen(undisturbed, "train")[0])
    assert_near(folder, undisturbed, rtol=1e-2, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        [
            "experiment=mnist_addition",
            "model=addition_2st_fcn",
            "transform=affine",
            "model.width=16",
        ],
        ["experiment=mnist_3d", "data.canvas=40"],
        [
            "experiment=colocalisation",
            "data.digit=1",
            "++trainer.limit_train_batches=4",
            "data.images=40",
        ],
    ],
    ids=["addition", "volumes", "colocalisation"],
)
def test_digits_of_all_kinds(mnist_root, tmp_path, finish, settings):
    if (
        "experiment=colocalisation" in settings
    ):  # whose encoder is trained before there are processes
        settings = [*settings, f"task.cache={tmp_path}"]
        finish(tmp_path / "before" / "run", *settings, f"data.root={mnist_root}")
    compare(finish, tmp_path, *settings, f"data.root={mnist_root}")


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["svhn_cnn", "svhn_st_multi"])
def test_house_numbers(mnist_root, tmp_path, finish, experiment):
    make_numbers(tmp_path / "numbers", mnist_root, {"train": 60, "test": 31})
    settings = [
        f"experiment={experiment}",
        "model.width=0.05",
        "data.augment=true",
        f"data.root={tmp_path}/numbers",
    ]
    compare(finish, tmp_path, *settings)


def compare(finish, tmp_path, *settings):
    one, two = tmp_path / "one" / "run", tmp_path / "two" / "run"
    finish(one, *settings)
    finish(two, *settings, *TWO)
    assert_same_run(one, two)


def test_batch_normalisation_over_devices_keeps_what_a_network_computes_and_its_names():
    """PyTorch's own conversion, which Lightning uses, loses the activations that timm's layers have within."""
    trainer = SimpleNamespace(
        num_devices=2, num_nodes=1, strategy=SimpleNamespace(root_device=torch.device("cuda"))
    )
    backbone = load_backbone("efficientnet_lite0", "none").eval()
    converted = DistributedContext(trainer).convert_sync_batchnorm(copy.deepcopy(backbone)).eval()
    assert sum(isinstance(module, torch.nn.SyncBatchNorm) for module in converted.modules()) > 40
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(converted(images), backbone(images))
    assert list(converted.state_dict()) == list(backbone.state_dict())


@pytest.mark.slow
def test_batch_normalisation_over_processes_on_a_cpu_is_refused(tmp_path, start):
    birds = [Bird(species, training) for species in (1, 2, 3) for training in (True, True, False)]
    data = [
        f"data.root={write_birds(tmp_path / 'birds', birds)}",
        "data.species=1-3",
        "data.workers=1",
    ]
    settings = [
        *SETTINGS,
        "experiment=birds_cnn",
        *data,
        "model.weights=none",
        "data.batch_size=2",
        *TWO,
    ]
    process = start(tmp_path / "run", *settings, f"hydra.run.dir={tmp_path}/run")
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "SyncBatchNorm needs GPUs" in errors
    assert "Traceback" not in errors

"""Real runs on real data, a few steps long."""

import errno
import json
import logging
import os
import shutil
import signal
import time
import warnings
from itertools import cycle

import gradient_vs_finite_difference
import matplotlib
import pytest
import torch
import wandb_file
from conftest import SHORT
from make_svhn import make as make_numbers
from omegaconf import OmegaConf
from PIL import Image
from run_files import checkpoint, losses, rows
from tiny_birds import Bird, write_birds

from spatial_transformer.callbacks.misclassified import MisclassifiedSamples
from spatial_transformer.data.mnist import files as mnist_files
from spatial_transformer.inference.evaluate import evaluate
from spatial_transformer.inference.load import load_trained
from spatial_transformer.paper import ADDITION_NETWORKS, NETWORKS
from spatial_transformer.tasks import digit_encoder
from spatial_transformer.tasks.classification import Classification
from spatial_transformer.training.result import read_result, result_settings
from spatial_transformer.training.runner import train
from spatial_transformer.utils.errors import UsageError

VALIDATION_SIZE = "spatial_transformer.data.mnist.distorted.VALIDATION_SIZE"
TWO_VALIDATIONS = "model=fcn trainer.max_steps=4 recipe.validate_every=2"


@pytest.fixture
def short(composed, mnist_root):
    """Compose a run of a few steps on real MNIST from words, as on a command line."""

    def short_(words="", *more):
        return composed(*SHORT, f"data.root={mnist_root}", "logger=csv", *words.split(), *more)

    return short_


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


def evaluate_run(run, data_root=None, **settings):
    trainer = {"accelerator": "auto", "devices": 1, "num_nodes": 1}
    config = {"run": str(run), "checkpoint": "best", "data": {"root": data_root}, "trust": []}
    return evaluate(OmegaConf.create(config | {"trainer": trainer} | settings))


def fail(*arguments):
    raise ValueError("on the way")


def with_transform(model, transform):
    return f"model={model}" + (f" transform={transform}" if transform != "none" else "")


# Every experiment


@pytest.mark.parametrize(
    ("network", "distortion"),
    list(zip(NETWORKS.values(), cycle(["rts", "r", "p", "e", "t", "tc"]))),
)
def test_networks_of_table_1_train_and_are_evaluated_alike(short, run, network, distortion):
    result = train(short(f"{with_transform(*network)} data.distortion={distortion}"))
    assert result["steps"] == 2
    metrics = evaluate_run(run)  # on the same four batches, as the saved configuration has them
    assert metrics["test/error"] == result["metrics"]["test/error"] > 0
    assert metrics["test/loss"] == result["metrics"]["test/loss"]


@pytest.mark.parametrize("network", ADDITION_NETWORKS.values())
def test_sums_train_and_are_evaluated_alike(short, run, network):
    metrics = train(short(f"experiment=mnist_addition {with_transform(*network)}"))["metrics"]
    assert evaluate_run(run)["test/error"] == metrics["test/error"]
    transformers = {"addition_st_fcn": 1, "addition_2st_fcn": 2}.get(network[0], 0)
    for k in (1, 2):
        assert (f"test/pose_{k}_1" in metrics) is (k <= transformers)
        assert (f"test/resolves_first_{k}" in metrics) is (k <= transformers)
    if transformers:
        assert metrics["test/pose_input_1"] > 3
        assert (run / "crops" / "mean_images_0000002.png").is_file()


@pytest.mark.parametrize("model", ["volume_st_fcn", "volume_fcn"])
def test_volumes_train_and_are_evaluated_alike(short, run, model):
    words = f"experiment=mnist_3d data.canvas=40 data.eval_batch_size=10 model={model}"
    metrics = train(short(words))["metrics"]
    assert evaluate_run(run)["test/error"] == metrics["test/error"]
    assert ("theta/std_11" in metrics) is (model == "volume_st_fcn")
    with Image.open(run / "crops" / "crops_0000002.png") as views:
        assert 2 * 3 * 40 * 2 < views.width <= 830, "three views of each sample"
    assert (run / "crops" / "mistakes.png").is_file()


def test_colocalisation_trains_its_encoder_once(short, mnist_root, tmp_path, run, monkeypatch):
    monkeypatch.setitem(digit_encoder.RECIPE, "steps", 2)
    words = f"experiment=colocalisation data.digit=1 task.cache={tmp_path}/kept"
    metrics = train(short(words))["metrics"]
    assert "val/best_error" not in metrics, "the best checkpoint is the last one"
    saved = read_result(run / "metrics.json")["config"]
    assert not {"root", "cache"} & {*saved["task"], *saved["data"]}
    (kept,) = (tmp_path / "kept").rglob("encoder.pt")
    written = kept.stat().st_mtime_ns
    weights = checkpoint(run, "best.ckpt")["state_dict"]
    for name, tensor in torch.load(kept, weights_only=True).items():
        assert torch.equal(weights[f"network.encoder.{name}"], tensor), "the encoder is frozen"
    expected = pytest.approx(metrics["test/overlap"])
    assert evaluate_run(run)["test/overlap"] == expected
    assert train(short(words))["metrics"]["test/overlap"] == expected
    assert kept.stat().st_mtime_ns == written
    shutil.rmtree(tmp_path / "kept")
    (tmp_path / "elsewhere").symlink_to(mnist_root)
    elsewhere = str(tmp_path / "elsewhere")
    assert load_trained(run, data_root=elsewhere).task.root == elsewhere
    assert evaluate_run(run, data_root=elsewhere)["test/overlap"] == expected
    assert not kept.exists(), "a test uses the encoder of the checkpoint"


@pytest.mark.parametrize("experiment", ["svhn_cnn", "svhn_st_single", "svhn_st_multi"])
def test_house_numbers_train_and_are_evaluated_alike(short, mnist_root, tmp_path, run, experiment):
    make_numbers(tmp_path / "numbers", mnist_root, {"train": 60, "test": 30})
    words = f"experiment={experiment} data.root={tmp_path}/numbers model.width=0.05"
    metrics = train(short(f"{words} recipe.validate_every=1"))["metrics"]
    assert {"test/error", "test/digit_error", "test/length_error"} <= set(metrics)
    assert evaluate_run(run)["test/error"] == pytest.approx(metrics["test/error"])
    pictures = {path.name for path in (run / "crops").iterdir()}
    assert pictures >= {"crops_0000002.png", "mistakes.png", "mistakes.csv"}
    assert ("theta_4/outside" in metrics) is (experiment == "svhn_st_multi")


BIRDS = {"birds_cnn": 0, "birds_2st": 2, "birds_2st_448": 2, "birds_4st": 4}
"""Number of transformers of each experiment."""


@pytest.mark.parametrize(
    "experiment",
    [pytest.param(name, marks=[pytest.mark.slow] if n else []) for name, n in BIRDS.items()],
)
def test_birds_train_and_are_evaluated_alike(short, tmp_path, run, experiment):
    birds = [
        Bird(species, is_training, parts=((20.0, 20.0, 1),) * 3)
        for species in (1, 2, 3)
        for is_training in (True, True, False)
    ]
    root = write_birds(tmp_path / "birds", birds)
    words = f"experiment={experiment} data.root={root} data.species=1-3 model.weights=none"
    result = train(short(f"{words} data.batch_size=2 data.workers=1"))
    metrics, transformers = result["metrics"], BIRDS[experiment]
    assert result["samples"] == {"train": 3, "val": 3, "test": 3}
    found = evaluate_run(run)
    for name in ("test/accuracy", "test/macro_accuracy"):
        assert found[name] == pytest.approx(metrics[name])
    for k in range(1, 5):
        theta = "theta/outside" if k == 1 else f"theta_{k}/outside"
        for name in (f"test/parts_{k}/beak", f"test/box_{k}", theta):
            assert (name in metrics) is (k <= transformers)
    assert (run / "crops" / "parts.csv").is_file() is (transformers > 0)
    with Image.open(run / "crops" / "contact_sheet.jpg") as sheet:
        assert sheet.width == 110 + 3 * (114 + 6), "one test image of each of three species"
    assert "Kind a Wren" in (run / "crops" / "mistakes.csv").read_text()
    assert not list((run / "crops").glob("mean_images*")), "of photographs, a mean shows nothing"
    with pytest.raises(UsageError, match="--samples must be at least 2, got 1"):
        gradient_vs_finite_difference.measure(run, samples=1, data_root=None)
    if not transformers:
        with pytest.raises(UsageError, match="must be of birds with transformers"):
            gradient_vs_finite_difference.measure(run, samples=2, data_root=None)
        return
    pixels = [
        row["pixels"]
        for row in gradient_vs_finite_difference.measure(run, samples=2, data_root=None)["rows"]
    ]
    assert pixels == ([2, 11, 28] if experiment == "birds_2st" else [4, 22, 56])


def test_frozen_birds_train_and_are_evaluated_alike(short, tmp_path, run):
    root = write_birds(tmp_path / "birds", species=2)
    words = f"experiment=birds_frozen data.root={root} data.species=1-2 data.batch_size=2"
    metrics = train(short(f"{words} data.workers=1 model.weights=none"))["metrics"]
    assert evaluate_run(run)["test/accuracy"] == pytest.approx(metrics["test/accuracy"])
    assert "theta/outside" in metrics
    assert (run / "crops" / "contact_sheet.jpg").is_file()


# What a run learns and writes


@pytest.mark.slow
def test_fast_recipe_learns_rotated_digits(short):
    words = "data.distortion=r trainer.max_steps=1500 data.batch_size=256"
    assert train(short(words, "data.eval_batch_size=1000"))["metrics"]["test/error"] < 4


@pytest.mark.parametrize("recipe", ["fast", "paper"])
def test_recipes_lower_the_loss(short, run, recipe):
    words = "model=fcn data.distortion=r trainer.max_steps=60 data.batch_size=64"
    train(short(f"{words} recipe={recipe}"))
    assert sum(losses(run)[-5:]) < sum(losses(run)[:5])


def test_run_directory_is_complete(short, mnist_root, run, caplog):
    caplog.set_level("INFO")
    start = time.monotonic()
    result = train(short("trainer.max_steps=4 recipe.validate_every=2 seed=7"))
    assert 0 < result["seconds"] < time.monotonic() - start + 0.1, "rounded to a tenth"
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    steps = [f"{name}_000000{step}.png" for name in ("crops", "mean_images") for step in (2, 4)]
    figures = ["training.gif", "mistakes.png", "mistakes.csv", "confusion.png"]
    expected = {"config.yaml", "metrics.json", "metrics.csv"}
    expected |= {"checkpoints/best.ckpt", "checkpoints/last.ckpt"}
    assert names >= expected | {f"crops/{name}" for name in [*steps, *figures]}
    hidden = [name for name in names if "/." in name or name.startswith(".")]
    assert hidden == [".lock"], "half-written files"
    assert json.loads((run / "metrics.json").read_text()) == result
    assert OmegaConf.load(run / "config.yaml").seed == result["seed"] == 7
    assert set(result) >= {"commit", "dirty", "device", "packages", "parameters", "config", "label"}
    assert result["curve"].keys() == {"step", "val/error", "val/loss"}
    assert result["curve"]["step"] == [2, 4]
    assert result["curve"]["val/error"][-1] == pytest.approx(result["metrics"]["val/error"])
    wrong = rows(run, "crops/mistakes.csv")
    labels = mnist_files.read(mnist_root, train=False)[1]
    for row in wrong:
        assert int(row["label"]) == labels[int(row["test sample"])] != int(row["prediction"])
    assert sorted(int(row["test sample"]) for row in wrong) == result["misclassified"]
    assert len(wrong) == round(result["metrics"]["test/error"] * 2) > 0  # of 200 samples
    confidences = [float(row["confidence"]) for row in wrong]
    assert confidences == sorted(confidences, reverse=True)
    with Image.open(run / "crops" / "training.gif") as animation:
        assert animation.n_frames == 3, "before training and after each validation"
    for name in ("crops_0000000", "crops_0000004", "mean_images_0000004", "mistakes"):
        with Image.open(run / "crops" / f"{name}.png") as sheet:
            assert 600 < sheet.width <= 830, "as wide as a README"
    logged = {name for row in rows(run) for name, value in row.items() if value}
    assert logged >= {
        f"{split}/{name}" for split in ("train", "val", "test") for name in ("loss", "error")
    }
    assert logged >= {"theta/mean_0", "theta/std_5", "theta/outside"}
    assert logged >= {"localisation/gradient_norm", "lr-AdamW/network", "lr-AdamW/localisation"}


def test_start_and_end_of_a_run_are_logged(short, run, caplog):
    caplog.set_level("INFO")
    run = run.with_name("a run")
    result = train(short("logger=wandb logger.wandb.offline=true", f"run_dir='{run}'"))
    lines = [r.getMessage() for r in caplog.records if r.name.startswith("spatial_transformer")]
    path = os.path.relpath(run)
    (wandb,) = (run / "wandb").glob("offline-run-*")
    assert lines[:6] == [
        f"run         {path}",
        f"device      1 x {'cuda' if torch.cuda.is_available() else 'cpu'}, precision 32-true",
        "data        MnistData: 55,000 train, 5,000 val, 10,000 test samples",
        f"parameters  {result['parameters']:,}, of which localisation 58,790",
        "W&B         offline (set so). Upload it with:",
        f"            wandb sync '{os.path.relpath(wandb)}'",
    ]
    assert lines[6].startswith("step 2 of 2  ")
    error = result["metrics"]["test/error"]
    assert lines[7].startswith(f"test error  {error:.2f} % after 2 steps in 0 min")
    assert lines[8:] == [
        f"pictures    {path}/crops",
        f"result      {path}/metrics.json",
        f"evaluate    python evaluate.py 'run=\"{path}\"'",
    ]


def test_identity_is_the_initial_transform(short, run):
    train(short("trainer.max_steps=1 recipe.optimizer.lr=0"))
    (row,) = [row for row in rows(run) if row["theta/outside"]]
    assert [float(row[f"theta/mean_{k}"]) for k in range(6)] == [1, 0, 0, 0, 1, 0]
    assert [float(row[f"theta/std_{k}"]) for k in range(6)] == [0] * 6
    assert float(row["theta/outside"]) == 0


def test_theta_statistics_do_not_depend_on_pictures(short):
    drawn, plain = (train(short(words))["metrics"] for words in ("", "~callbacks.crops"))
    assert drawn["theta/std_2"] == plain["theta/std_2"] > 0


def test_logger_and_best_checkpoint_are_optional(short, run, caplog):
    caplog.set_level("INFO")
    result = train(short("callbacks.best=null logger=none"))
    assert "val/best_error" not in result["metrics"]
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["last.ckpt"]
    assert caplog.messages[-1].endswith(f"run={os.path.relpath(run)} checkpoint=last")


@pytest.mark.parametrize("accumulate", [1, 3, 4])
def test_intervals_count_steps_under_accumulation(short, run, monkeypatch, accumulate):
    monkeypatch.setattr(VALIDATION_SIZE, 60_000 - 16 * 14)  # 14 batches per epoch
    words = "model=fcn trainer.max_steps=12 recipe.validate_every=4"
    result = train(short(f"{words} ++trainer.accumulate_grad_batches={accumulate}"))
    assert result["curve"]["step"] == [4, 8, 12]
    epochs = [float(row["epoch"]) for row in rows(run) if row["train/loss"]]
    assert epochs == [step // (14 // accumulate) for step in range(12)]


def test_process_is_left_unchanged(short):
    def state():
        names = ("pytorch_lightning", "lightning_fabric")
        levels = [logging.getLogger(name).level for name in names]
        handler = signal.getsignal(signal.SIGTERM)
        process = dict(os.environ), list(warnings.filters), matplotlib.get_backend()
        return *process, levels, handler

    before = state()
    train(short("trainer.max_steps=1"))
    assert state() == before


def test_wandb_runs_offline_without_a_key(short, tmp_path, run, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    train(short("logger=wandb"))
    images = (run / "wandb").rglob("media/images/pictures/*")
    media = {path.name.rsplit("_", 2)[0] for path in images}
    assert media >= {"crops", "mean_images", "confusion", "mistakes"}
    logged = set().union(*wandb_file.rows(wandb_file.newest(run)))
    assert logged >= {"train/loss", "val/error", "test/error", "theta/outside", "mistakes/_type"}
    assert "WANDB_MODE" not in os.environ
    assert wandb_file.messages(wandb_file.newest(run), "exit")[0].exit_code == 0
    monkeypatch.setattr(MisclassifiedSamples, "on_train_start", fail)
    with pytest.raises(ValueError, match="on the way"):
        train(short("logger=wandb"))
    assert wandb_file.messages(wandb_file.newest(run), "exit")[0].exit_code == 1


# What is refused, and what is never lost


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.canvas=20", "data.canvas must be"),
        ("model.width=0", "width must be at least 1"),
        ("recipe.localisation_lr_factor=-1", "localisation_lr_factor must be at least 0"),
        ("recipe.localisation_lr_factor=nan", "localisation_lr_factor must be"),
        ("model=registration", r"model=registration does not match .*\(1, 42, 42\)"),
        ("ckpt_path=nothing.ckpt", "nothing.ckpt does not exist"),
        ("trainer=ddp trainer.accelerator=cpu trainer.devices=2 data.batch_size=15", "2 devices"),
    ],
)
def test_wrong_settings_are_refused_before_training(short, run, override, message):
    with pytest.raises(UsageError, match=message):
        train(short(override))
    assert not (run / "config.yaml").exists()


def test_refusal_by_lightning_is_a_usage_error(short):
    config = short("model=fcn")
    target = "torch.optim.lr_scheduler.ReduceLROnPlateau"
    config.recipe.scheduler = {"_target_": target, "_partial_": True}
    with pytest.raises(UsageError, match="ReduceLROnPlateau"):
        train(config)


def test_read_only_run_directory_is_a_usage_error(short, monkeypatch):
    def acquire(lock):
        raise OSError(errno.EROFS, "Read-only file system", lock.lock_file)

    monkeypatch.setattr("filelock.FileLock.acquire", acquire)
    with pytest.raises(UsageError, match=r"run/\.lock cannot be read or written: Read-only file"):
        train(short())


def test_unreadable_data_are_named(short, monkeypatch):
    def prepare(root):
        raise PermissionError(errno.EACCES, "Permission denied", "/theirs/MNIST")

    monkeypatch.setattr("spatial_transformer.data.mnist.files.prepare", prepare)
    message = r"^/theirs/MNIST cannot be read or written: Permission denied\."
    with pytest.raises(UsageError, match=message):
        train(short())


def test_restart_keeps_earlier_results_and_no_pictures(short, run):
    results = [train(short(f"trainer.max_steps={steps}")) for steps in (4, 2, 1)]
    names = ("metrics.1.json", "metrics.2.json", "metrics.json")
    assert [json.loads((run / name).read_text()) for name in names] == results
    assert {path.name[-5] for path in (run / "crops").glob("crops_*.png")} == {"0", "1"}


def test_run_continued_from_a_checkpoint_is_bit_equal(short, tmp_path, monkeypatch):
    monkeypatch.setattr(VALIDATION_SIZE, 60_000 - 100)  # six batches per epoch

    def weights(name, *more):
        words = "recipe.validate_every=1 recipe.scheduler.total_steps=10 recipe.dropout=0.2"
        train(short(words, f"run_dir={tmp_path}/{name}", *more))
        return checkpoint(tmp_path / name)

    whole = weights("whole", "trainer.max_steps=10")
    for stop in (3, 6, 8):
        weights(f"stopped-{stop}", f"trainer.max_steps={stop}")
        start = f"ckpt_path={tmp_path}/stopped-{stop}/checkpoints/last.ckpt"
        resumed = weights(f"resumed-{stop}", "trainer.max_steps=10", start)
        assert resumed["global_step"] == whole["global_step"] == 10
        for name, tensor in whole["state_dict"].items():
            assert torch.equal(tensor, resumed["state_dict"][name]), (stop, name)


def test_averaged_weights_resume_bit_equal_and_are_tested(short, tmp_path, monkeypatch):
    words = "experiment=mnist_modern model.width=4 trainer.max_steps=6 recipe.validate_every=1"

    def train_in(name):
        return train(short(words, "ckpt_path=auto", f"run_dir={tmp_path}/{name}"))

    def fail_at_step_3(self, batch, batch_idx):
        if self.global_step == 3:
            raise ValueError("on the way")
        return step(self, batch, batch_idx)

    whole = train_in("whole")
    step = Classification.training_step
    with monkeypatch.context() as patch:
        patch.setattr(Classification, "training_step", fail_at_step_3)
        with pytest.raises(ValueError, match="on the way"):
            train_in("stopped")
    stopped = train_in("stopped")
    assert stopped["curve"] == whole["curve"]
    for file in ("last.ckpt", "best.ckpt"):
        expected, found = (checkpoint(tmp_path / name, file) for name in ("whole", "stopped"))
        for part in ("state_dict", "current_model_state", "averaging_state"):
            assert expected[part].keys() == found[part].keys()
            for name, tensor in expected[part].items():
                assert torch.equal(tensor, found[part][name]), (file, name)

    on_the_way = checkpoint(tmp_path / "whole", "previous.ckpt")
    for name, tensor in on_the_way["state_dict"].items():  # statistics of BatchNorm too
        is_averaged = not torch.equal(tensor, on_the_way["current_model_state"][name])
        assert is_averaged == tensor.is_floating_point() or "num_batches" in name, name
    assert evaluate_run(tmp_path / "whole")["test/loss"] == whole["metrics"]["test/loss"]


def test_continued_run_resumes_from_its_own_checkpoint(short, tmp_path, run, monkeypatch, caplog):
    caplog.set_level("INFO")
    words = "recipe.scheduler=null recipe.validate_every=1"
    train(short(words))
    run.rename(tmp_path / "first")
    words += f" ckpt_path={tmp_path}/first/checkpoints/last.ckpt trainer.max_steps=6"
    with monkeypatch.context() as patch:
        patch.setattr(MisclassifiedSamples, "on_test_start", fail)
        with pytest.raises(ValueError, match="on the way"):
            train(short(words))
    assert train(short(words))["steps"] == 6
    assert f"Resuming from {tmp_path}/first" not in caplog.text
    assert caplog.text.count(f"Resuming from {run}/checkpoints/last.ckpt") == 1
    train(short(words))
    assert "is already finished" in caplog.text


def test_start_that_cannot_be_continued_is_refused(short, tmp_path, run):
    train(short("model=fcn"))
    start = run / "checkpoints" / "last.ckpt"
    torch.save({"state_dict": checkpoint(run)["state_dict"]}, tmp_path / "weights.pt")
    four = "model=fcn trainer.max_steps=4"
    for file, words, message in (
        (start, "model=st_fcn", "weights of another network"),
        (start, "model=fcn", r"max_steps must be more than the 2 steps of .*, got 2\."),
        (start, four, r"max_steps must be at most 2, where .* ends, got 4\."),
        (start, f"{four} recipe=paper", r"last\.ckpt, which does not have dampening"),
        (run, four, r"run does not exist or is a directory\. .*choose a checkpoint file"),
        (tmp_path / "weights.pt", four, r"weights\.pt has no optimizer\."),
    ):
        with pytest.raises(UsageError, match=message):
            train(short(f"{words} ckpt_path={file} run_dir={tmp_path}/another"))
    assert not (tmp_path / "another" / "config.yaml").exists()


def test_result_has_acting_callbacks_and_the_start(composed):
    plain = result_settings(composed("experiment=mnist"))
    assert plain["start"] == {"ckpt_path": None}
    assert list(plain["callbacks"]) == ["best"]
    early = "_target_: pytorch_lightning.callbacks.EarlyStopping"
    stop = f"+callbacks.stop={{{early}, monitor: val/loss}}"
    other = result_settings(composed("debug=overfit", stop, "ckpt_path=some.ckpt"))
    assert other["start"] == {"ckpt_path": "some.ckpt"}
    assert other["callbacks"]["stop"]["monitor"] == "val/loss"
    assert set(other["callbacks"]) == {"best", "stop", "overfit"}


def test_moved_run_directory_ends_the_run(short, run, monkeypatch):
    move = lambda *arguments: run.rename(run.with_name("moved"))  # noqa: E731
    monkeypatch.setattr(MisclassifiedSamples, "on_train_start", move)
    with pytest.raises(UsageError, match="run was moved or removed during the run"):
        train(short(TWO_VALIDATIONS))
    assert not list(run.rglob("*.ckpt"))


def test_damaged_best_checkpoint_is_not_tested(short, run, monkeypatch):
    best = run / "checkpoints" / "best.ckpt"

    def damage(*arguments):
        content = bytearray(best.read_bytes())
        content[len(content) // 2] ^= 1
        best.write_bytes(content)

    with monkeypatch.context() as patch:
        patch.setattr(MisclassifiedSamples, "on_train_end", damage)
        with pytest.raises(UsageError, match=r"best\.ckpt cannot be read as a checkpoint"):
            train(short(f"{TWO_VALIDATIONS} ckpt_path=auto"))
    assert not (run / "metrics.json").exists()
    best.unlink()
    with pytest.raises(UsageError, match=r"best\.ckpt does not exist"):
        train(short(f"{TWO_VALIDATIONS} ckpt_path=auto"))


def test_loss_that_is_not_finite_ends_the_run(short, run):
    sgd = "recipe.optimizer._target_=torch.optim.SGD ~recipe.optimizer.fused recipe.scheduler=null"
    words = "recipe.optimizer.lr=1e18 trainer.max_steps=40 recipe.validate_every=1"
    with pytest.raises(UsageError, match=r"loss is not finite at step \d+"):
        train(short(f"{words} {sgd}"))
    assert checkpoint(run)["global_step"] >= 1
    assert not (run / "metrics.json").exists()


def test_weights_that_are_not_finite_are_not_saved(short, run, monkeypatch):
    def spoil(self, trainer, pl_module, optimizer):
        if trainer.global_step == 3:
            next(pl_module.parameters()).grad.fill_(float("nan"))

    monkeypatch.setattr(MisclassifiedSamples, "on_before_optimizer_step", spoil)
    with pytest.raises(UsageError, match="weights are not finite at step 4"):
        train(short(TWO_VALIDATIONS))
    for file in (run / "checkpoints").iterdir():
        weights = checkpoint(run, file.name)["state_dict"].values()
        assert all(weight.isfinite().all() for weight in weights), file


# Debug options


def test_overfit_trains_on_one_batch(short, run):
    train(short("debug=overfit trainer.max_steps=80 trainer.log_every_n_steps=1 recipe=fast"))
    errors = [float(row["train/error"]) for row in rows(run) if row["train/error"]]
    assert errors[-1] == 0 < errors[0]


def test_limit_takes_a_share_of_the_training_batches(short, run):
    train(short("model=fcn model.width=4 debug=limit trainer.max_steps=13 data.batch_size=250"))
    epochs = [float(row["epoch"]) for row in rows(run) if row["train/loss"]]
    assert epochs == [0] * 11 + [1] * 2  # 220 batches, 5 % of them

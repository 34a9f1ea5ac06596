"""Real runs on real MNIST, a few steps long."""

import csv
import json
import logging
import os
import shutil
import signal
import time
import warnings

import gradient_vs_finite_difference
import matplotlib
import pytest
import torch
import wandb_file
from conftest import SHORT
from make_svhn import make as make_numbers
from omegaconf import OmegaConf
from PIL import Image
from tiny_birds import Bird, write_birds

from spatial_transformer.callbacks.misclassified import MisclassifiedSamples
from spatial_transformer.inference.evaluate import evaluate
from spatial_transformer.inference.load import load_trained
from spatial_transformer.paper import ADDITION_NETWORKS, NETWORKS
from spatial_transformer.tasks import digit_encoder
from spatial_transformer.training.result import read_result, result_settings
from spatial_transformer.training.run_dir import RunDir
from spatial_transformer.training.runner import train
from spatial_transformer.utils.errors import UsageError
from spatial_transformer.utils.process import keep_freed_memory


@pytest.fixture
def short(composed, mnist_root):
    """Composes a run of a few steps on real MNIST."""
    return lambda *overrides: composed(*SHORT, f"data.root={mnist_root}", "logger=csv", *overrides)


def evaluation(folder, data_root=None, **settings):
    trainer = {"accelerator": "auto", "devices": 1, "num_nodes": 1}
    return OmegaConf.create(
        {
            "run": str(folder),
            "checkpoint": "best",
            "data": {"root": data_root},
            "trainer": trainer,
            "trust": [],
        }
        | settings
    )


@pytest.mark.parametrize(("model", "transform"), NETWORKS.values())
def test_every_network_of_table_1_trains_and_is_evaluated_alike(short, tmp_path, model, transform):
    chosen = [] if transform == "none" else [f"transform={transform}"]
    record = train(short(f"model={model}", "data.distortion=rts", *chosen))
    assert record["steps"] == 2
    assert record["metrics"]["test/error"] > 0
    figures = evaluate(evaluation(tmp_path / "run"))
    # The record is of 4 batches of the test set, and so is the evaluation, as the run's own config says.
    assert figures["test/error"] == record["metrics"]["test/error"]
    assert figures["test/loss"] == record["metrics"]["test/loss"]


@pytest.mark.parametrize("distortion", ["r", "p", "e", "t", "tc"])
def test_every_distortion_trains(short, distortion):
    assert train(short(f"data.distortion={distortion}"))["steps"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("distortion", ["r", "p", "e", "t", "tc"])
@pytest.mark.parametrize(("model", "transform"), NETWORKS.values())
def test_every_network_trains_on_every_distortion(short, model, transform, distortion):
    chosen = [] if transform == "none" else [f"transform={transform}"]
    assert train(short(f"model={model}", f"data.distortion={distortion}", *chosen))["steps"] == 2


@pytest.mark.slow
def test_the_fast_recipe_learns_to_read_rotated_digits(composed, mnist_root):
    """A tenth of the fast recipe: far from the paper's error, and far below that of a network that does not learn to look."""
    config = composed(
        "data.distortion=r", "trainer.max_steps=1500", f"data.root={mnist_root}", "logger=none"
    )
    assert train(config)["metrics"]["test/error"] < 4


@pytest.mark.parametrize("recipe", ["fast", "paper"])
def test_both_recipes_lower_the_loss(short, tmp_path, recipe):
    train(
        short(
            f"recipe={recipe}",
            "trainer.max_steps=60",
            "data.batch_size=64",
            "data.distortion=r",
            "model=fcn",
        )
    )
    losses = [float(row["train/loss"]) for row in rows(tmp_path / "run") if row["train/loss"]]
    assert sum(losses[-5:]) < sum(losses[:5])


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_run_folder_holds_config_record_checkpoints_figures_and_pictures(short, tmp_path):
    record = train(short("trainer.max_steps=4", "recipe.validate_every=2", "seed=7"))
    folder = tmp_path / "run"
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    pictures = {
        f"crops/{name}_000000{step}.png" for name in ("crops", "mean_images") for step in (2, 4)
    }
    assert names >= pictures | {
        "config.yaml",
        "metrics.json",
        "metrics.csv",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "crops/training.gif",
        "crops/mistakes.png",
        "crops/mistakes.csv",
        "crops/confusion.png",
    }
    assert [name for name in names if "/." in name or name.startswith(".")] == [".lock"], (
        "half-written files"
    )
    assert json.loads((folder / "metrics.json").read_text()) == record
    assert OmegaConf.load(folder / "config.yaml").seed == 7
    assert record["seed"] == 7
    assert set(record) >= {
        "commit",
        "dirty",
        "device",
        "seconds",
        "packages",
        "parameters",
        "config",
        "label",
    }
    assert record["curve"].keys() == {"step", "val/error", "val/loss"}
    assert record["curve"]["step"] == [2, 4]
    assert record["curve"]["val/error"][-1] == pytest.approx(record["metrics"]["val/error"])
    with (folder / "crops" / "mistakes.csv").open() as file:
        assert record["misclassified"] == sorted(
            int(row["test sample"]) for row in csv.DictReader(file)
        )
    with Image.open(folder / "crops" / "training.gif") as animation:
        assert animation.n_frames == 3, "before training and after each validation"
    with Image.open(folder / "crops" / "crops_0000004.png") as picture:
        assert picture.width > 12 * 3 * 42


def test_a_run_that_is_started_over_keeps_the_earlier_result(short, tmp_path):
    first = train(short("trainer.max_steps=1", "seed=1"))
    second = train(short("trainer.max_steps=1", "seed=2"))
    third = train(short("trainer.max_steps=1", "seed=3"))
    kept = [
        json.loads((tmp_path / "run" / name).read_text())
        for name in ("metrics.1.json", "metrics.2.json", "metrics.json")
    ]
    assert kept == [first, second, third]


def test_a_run_from_another_ones_checkpoint_resumes_from_its_own_once_stopped(
    short, tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO")
    settings = ["recipe.scheduler=null", "recipe.validate_every=1"]
    train(short(*settings))
    (tmp_path / "run").rename(tmp_path / "first")
    settings += [f"ckpt_path={tmp_path}/first/checkpoints/last.ckpt", "trainer.max_steps=6"]
    with monkeypatch.context() as patch:
        patch.setattr(MisclassifiedSamples, "on_test_start", fail)
        with pytest.raises(ValueError, match="on the way"):
            train(short(*settings))
    assert train(short(*settings))["steps"] == 6
    assert f"Resuming from {tmp_path}/first" not in caplog.text
    assert caplog.text.count(f"Resuming from {tmp_path}/run/checkpoints/last.ckpt") == 1
    train(short(*settings))
    assert "is already finished" in caplog.text


def test_a_record_has_the_time_that_the_run_took(short):
    start = time.monotonic()
    record = train(short("trainer.max_steps=40"))
    assert 0 < record["seconds"] < time.monotonic() - start + 0.1, (
        "rounded to a tenth; nothing of it is counted twice"
    )


def test_figures_are_logged_under_their_names(short, tmp_path):
    train(short("trainer.max_steps=2"))
    logged = {name for row in rows(tmp_path / "run") for name, value in row.items() if value}
    assert logged >= {
        "train/loss",
        "train/error",
        "val/loss",
        "val/error",
        "test/loss",
        "test/error",
        "theta/mean_0",
        "theta/std_5",
        "theta/outside",
        "localisation/gradient_norm",
        "lr-AdamW/network",
        "lr-AdamW/localisation",
    }


def test_theta_statistics_of_an_untrained_network_are_those_of_the_identity(short, tmp_path):
    train(short("trainer.max_steps=1", "recipe.optimizer.lr=0"))
    (row,) = [row for row in rows(tmp_path / "run") if row["theta/outside"]]
    assert [float(row[f"theta/mean_{k}"]) for k in range(6)] == [1, 0, 0, 0, 1, 0]
    assert [float(row[f"theta/std_{k}"]) for k in range(6)] == [0] * 6
    assert float(row["theta/outside"]) == 0


def test_the_wrong_ones_are_told(short, tmp_path):
    record = train(short("trainer.max_steps=1", "++trainer.limit_test_batches=2"))
    with (tmp_path / "run" / "crops" / "mistakes.csv").open() as file:
        wrong = list(csv.DictReader(file))
    assert len(wrong) == round(record["metrics"]["test/error"])  # of 100 samples
    assert all(row["label"] != row["prediction"] for row in wrong)
    confidence = [float(row["confidence"]) for row in wrong]
    assert confidence == sorted(confidence, reverse=True)


@pytest.mark.parametrize("stop", [3, 6, 8])
def test_a_resumed_run_ends_bit_equal_to_an_undisturbed_one(short, tmp_path, monkeypatch, stop):
    """With 6 batches to an epoch: a stop in an epoch, at its end, and in the next one."""
    monkeypatch.setattr("spatial_transformer.data.mnist.distorted.VALIDATION_SIZE", 60_000 - 100)
    settings = ["recipe.validate_every=1", "recipe.scheduler.total_steps=10", "recipe.dropout=0.2"]

    def weights(folder, *more):
        config = short(*settings, *more)
        config.run_dir = str(tmp_path / folder)
        train(config)
        return torch.load(tmp_path / folder / "checkpoints" / "last.ckpt", weights_only=True)

    whole = weights("whole", "trainer.max_steps=10")
    weights("stopped", f"trainer.max_steps={stop}")
    resumed = weights(
        "resumed", "trainer.max_steps=10", f"ckpt_path={tmp_path}/stopped/checkpoints/last.ckpt"
    )
    assert resumed["global_step"] == whole["global_step"] == 10
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(tensor, resumed["state_dict"][name]), name


def test_the_same_seed_gives_the_same_run_and_another_seed_another(short):
    first, again, other = (
        train(short(f"seed={seed}"))["metrics"]["test/loss"] for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(short, tmp_path):
    settings = [
        "recipe.optimizer.lr=1e18",
        "trainer.max_steps=40",
        "recipe.validate_every=1",
        "recipe.scheduler=null",
    ]
    with pytest.raises(UsageError, match=r"loss is not finite at step \d+"):
        train(
            short(*settings, "recipe.optimizer._target_=torch.optim.SGD", "~recipe.optimizer.fused")
        )
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] >= 1
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_a_checkpoint_of_another_network_is_refused(short, tmp_path):
    train(short("model=fcn"))
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    with pytest.raises(UsageError, match="weights of another network"):
        train(short("model=st_fcn", f"ckpt_path={checkpoint}", f"run_dir={tmp_path}/another"))


@pytest.mark.parametrize(
    "other",
    ["recipe.optimizer.lr=0.5", "recipe.localisation_lr_factor=0.5", "recipe.scheduler=null"],
)
def test_a_checkpoint_goes_on_with_its_own_optimiser_and_schedule_alone(short, tmp_path, other):
    before = train(short())
    with pytest.raises(UsageError, match=f"{other.partition('=')[0]}.* is .* there"):
        train(short(f"ckpt_path={tmp_path}/run/checkpoints/last.ckpt", other))
    assert read_result(tmp_path / "run" / "metrics.json") == before


def test_a_checkpoint_outside_of_a_run_folder_is_refused(short, tmp_path):
    train(short())
    (tmp_path / "run" / "checkpoints" / "last.ckpt").rename(tmp_path / "some.ckpt")
    with pytest.raises(UsageError, match=r"some\.ckpt must be in checkpoints/ of a run directory"):
        train(short(f"ckpt_path={tmp_path}/some.ckpt", f"run_dir={tmp_path}/another"))


def fail(*arguments):
    raise ValueError("on the way")


def test_a_run_anew_leaves_no_picture_of_the_one_before(short, tmp_path):
    train(short("trainer.max_steps=4"))
    train(short("trainer.max_steps=2"))
    assert {path.name[-5] for path in (tmp_path / "run" / "crops").glob("crops_*.png")} == {
        "0",
        "2",
    }


def test_a_run_keeps_no_best_weights_if_asked(short, tmp_path):
    record = train(short("callbacks.best=null"))
    assert "val/best_error" not in record["metrics"]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["last.ckpt"]


def test_a_broken_checkpoint_is_named(short, tmp_path):
    train(short("model=fcn"))
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(UsageError, match=r"best.ckpt cannot be read"):
        evaluate(evaluation(tmp_path / "run"))
    with pytest.raises(UsageError, match=r"other\.ckpt does not exist"):
        evaluate(evaluation(tmp_path / "run", checkpoint="other"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.batch_size=0", "data.batch_size must be a positive integer"),
        ("data.distortion=x", "one of r, rts"),
        ("data.canvas=20", "data.canvas must be"),
        (
            "++trainer.limit_test_batches=0.001",
            "limit_test_batches must leave at least one of 200 batches, got 0.001",
        ),
        ("++trainer.limit_train_batches=0.0001", "limit_train_batches must leave at least one of"),
        ("model.width=0", "width must be at least 1"),
        ("recipe.localisation_lr_factor=-1", "localisation_lr_factor must be at least 0"),
        ("recipe.localisation_lr_factor=nan", "localisation_lr_factor must be"),
        ("trainer.log_every_n_steps=0", "log_every_n_steps must be a positive integer"),
        ("ckpt_path=checkpoints/st_fcn_mnist.pt", "must be in checkpoints/ of a run directory"),
        ("ckpt_path=nothing.ckpt", "nothing.ckpt does not exist"),
        ("data.root=nowhere", "MNIST is incomplete"),
    ],
)
def test_bad_settings_are_refused_before_training(short, tmp_path, override, message):
    with pytest.raises(UsageError, match=message):
        train(short(override))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_wandb_runs_offline_without_a_key_and_leaves_the_environment_alone(
    short, tmp_path, monkeypatch
):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    train(short("logger=wandb"))
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    media = {
        path.name.rsplit("_", 2)[0]
        for path in (tmp_path / "run" / "wandb").rglob("media/images/pictures/*")
    }
    assert media >= {"crops", "mean_images", "confusion", "mistakes"}
    logged = set().union(*wandb_file.rows(wandb_file.newest(tmp_path / "run")))
    assert logged >= {
        "train/loss",
        "val/error",
        "test/error",
        "theta/outside",
        "localisation/gradient_norm",
        "mistakes/_type",
    }
    assert "WANDB_MODE" not in os.environ
    assert wandb_file.messages(wandb_file.newest(tmp_path / "run"), "exit")[0].exit_code == 0
    monkeypatch.setattr(MisclassifiedSamples, "on_train_start", fail)
    with pytest.raises(ValueError, match="on the way"):
        train(short("logger=wandb"))
    assert wandb_file.messages(wandb_file.newest(tmp_path / "run"), "exit")[0].exit_code == 1


def test_freed_memory_is_kept_without_harm():
    keep_freed_memory()
    assert torch.ones(10_000_000).sum() == 10_000_000


def test_a_run_without_any_logger_works(short):
    assert train(short("logger=none"))["steps"] == 2


def test_figures_of_theta_are_of_the_validation_samples_whatever_else_is_drawn(short):
    with_pictures, without = (
        train(short(*more))["metrics"] for more in ((), ("~callbacks.crops",))
    )
    assert with_pictures["theta/std_2"] == without["theta/std_2"] > 0


@pytest.mark.parametrize(("model", "transform"), ADDITION_NETWORKS.values())
def test_sums_are_trained_on_and_evaluated_alike(short, tmp_path, model, transform):
    chosen = [] if transform == "none" else [f"transform={transform}"]
    metrics = train(short("experiment=mnist_addition", f"model={model}", *chosen))["metrics"]
    assert evaluate(evaluation(tmp_path / "run"))["test/error"] == metrics["test/error"]
    transformers = {"addition_st_fcn": 1, "addition_2st_fcn": 2}.get(model, 0)
    for k in (1, 2):
        assert (
            (f"test/pose_{k}_1" in metrics)
            is (f"test/resolves_first_{k}" in metrics)
            is (k <= transformers)
        )
    if transformers:
        assert metrics["test/pose_input_1"] > 3
        assert (tmp_path / "run" / "crops" / "mean_images_0000002.png").is_file()


@pytest.mark.parametrize("model", [[], ["model=volume_fcn"]], ids=["with a transformer", "without"])
def test_volumes_are_trained_on_evaluated_alike_and_shown(short, tmp_path, model):
    metrics = train(
        short("experiment=mnist_3d", "data.canvas=40", "data.eval_batch_size=10", *model)
    )["metrics"]
    assert evaluate(evaluation(tmp_path / "run"))["test/error"] == metrics["test/error"]
    assert ("theta/std_11" in metrics) is not bool(model)
    views = Image.open(tmp_path / "run" / "crops" / "crops_0000002.png")
    assert views.width > 6 * 3 * 40 * 2, "three views of each sample"
    assert (tmp_path / "run" / "crops" / "mean_images_0000002.png").is_file()
    assert (tmp_path / "run" / "crops" / "mistakes.png").is_file()


def test_windows_are_learned_with_an_encoder_that_is_trained_once(
    short, mnist_root, tmp_path, monkeypatch
):
    monkeypatch.setitem(digit_encoder.RECIPE, "steps", 2)
    settings = ["experiment=colocalisation", "data.digit=1", f"task.cache={tmp_path}/kept"]
    metrics = train(short(*settings))["metrics"]
    record = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert not {"root", "cache"} & {*record["config"]["task"], *record["config"]["data"]}
    (kept,) = (tmp_path / "kept").rglob("encoder.pt")
    made = kept.stat().st_mtime_ns
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)[
        "state_dict"
    ]
    for name, tensor in torch.load(kept, weights_only=True).items():
        assert torch.equal(checkpoint[f"network.encoder.{name}"], tensor), (
            "the encoder does not learn"
        )
    assert evaluate(evaluation(tmp_path / "run"))["test/overlap"] == pytest.approx(
        metrics["test/overlap"]
    )
    assert (tmp_path / "run" / "crops" / "training.gif").is_file()
    again = train(short(*settings))["metrics"]
    assert again["test/overlap"] == metrics["test/overlap"]
    assert kept.stat().st_mtime_ns == made
    shutil.rmtree(tmp_path / "kept")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.symlink_to(mnist_root)
    assert load_trained(tmp_path / "run", data_root=str(elsewhere)).task.root == str(elsewhere)
    moved = evaluate(evaluation(tmp_path / "run", data_root=str(elsewhere)))
    assert moved["test/overlap"] == pytest.approx(metrics["test/overlap"])
    assert not kept.exists(), "a test takes the encoder of the checkpoint"


@pytest.mark.parametrize("experiment", ["svhn_cnn", "svhn_st_single", "svhn_st_multi"])
def test_house_numbers_are_trained_on_and_evaluated_alike(
    composed, mnist_root, tmp_path, experiment
):
    make_numbers(tmp_path / "numbers", mnist_root, {"train": 60, "test": 30})
    settings = [
        f"experiment={experiment}",
        f"data.root={tmp_path}/numbers",
        "model.width=0.05",
        "logger=csv",
        *SHORT,
    ]
    record = train(composed(*settings, "recipe.validate_every=1"))
    assert {"test/error", "test/digit_error", "test/length_error"} <= set(record["metrics"])
    figures = evaluate(evaluation(tmp_path / "run"))
    assert figures["test/error"] == pytest.approx(record["metrics"]["test/error"])
    pictures = {path.name for path in (tmp_path / "run" / "crops").iterdir()}
    assert pictures >= {"crops_0000002.png", "mistakes.png", "mistakes.csv"}
    if experiment == "svhn_st_multi":
        assert "theta_4/outside" in record["metrics"]


@pytest.mark.parametrize(
    "experiment",
    [
        "birds_cnn",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("birds_2st", "birds_2st_448", "birds_4st")
        ),
    ],
)
def test_birds_are_trained_on_and_evaluated_alike(composed, tmp_path, experiment):
    birds = [
        Bird(species, training, parts=((20.0, 20.0, 1),) * 3)
        for species in (1, 2, 3)
        for training in (True, True, False)
    ]
    settings = [
        f"experiment={experiment}",
        f"data.root={write_birds(tmp_path / 'birds', birds)}",
        "data.species=1-3",
    ]
    record = train(
        composed(
            *settings,
            "model.weights=none",
            "logger=csv",
            *SHORT,
            "data.batch_size=2",
            "data.workers=1",
        )
    )
    assert record["samples"] == {"train": 3, "val": 3, "test": 3}
    figures = evaluate(evaluation(tmp_path / "run"))
    for name in ("test/accuracy", "test/macro_accuracy"):
        assert figures[name] == pytest.approx(record["metrics"][name])
    transformers = {"birds_cnn": 0, "birds_4st": 4}.get(experiment, 2)
    for k in range(1, 5):
        for name in (
            f"test/parts_{k}/beak",
            f"test/box_{k}",
            "theta/outside" if k == 1 else f"theta_{k}/outside",
        ):
            assert (name in record["metrics"]) is (k <= transformers)
    assert (tmp_path / "run" / "crops" / "parts.csv").is_file() is (transformers > 0)
    with Image.open(tmp_path / "run" / "crops" / "contact_sheet.jpg") as sheet:
        assert sheet.width == 3 * (112 + 6) + 6, "one test image of each of three species"
    if transformers:
        measured = gradient_vs_finite_difference.measure(
            tmp_path / "run", samples=2, data_root=None
        )
        assert [row["pixels"] for row in measured["rows"]] == (
            [2, 11, 28] if experiment == "birds_2st" else [4, 22, 56]
        )
    else:
        with pytest.raises(UsageError, match="must be of birds with transformers"):
            gradient_vs_finite_difference.measure(tmp_path / "run", samples=2, data_root=None)
    with pytest.raises(UsageError, match="--samples must be at least 2, got 1"):
        gradient_vs_finite_difference.measure(tmp_path / "run", samples=1, data_root=None)
    wrong = (tmp_path / "run" / "crops" / "mistakes.csv").read_text()
    assert "Kind a Wren" in wrong


def test_a_folder_without_a_run_keeps_its_files(short, tmp_path):
    mine = [
        tmp_path / "run" / name
        for name in ("checkpoints/mine.ckpt", "crops/photo.png", "metrics.csv")
    ]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    for start in ("auto", "null"):
        with pytest.raises(
            UsageError, match=r"has no config.yaml but metrics.csv, mine.ckpt, crops"
        ):
            train(short("trainer.max_steps=1", f"ckpt_path={start}"))
    assert all(path.read_text() == "mine" for path in mine)


def test_a_run_from_a_checkpoint_does_not_take_another_runs_folder(short, tmp_path):
    for folder in ("first", "second"):
        train(short("trainer.max_steps=1", f"run_dir={tmp_path}/{folder}"))
    record = (tmp_path / "second" / "metrics.json").read_bytes()
    with pytest.raises(UsageError, match=r"second holds another run: .* is 1 there and 2 here"):
        train(
            short(
                "trainer.max_steps=2",
                f"run_dir={tmp_path}/second",
                f"ckpt_path={tmp_path}/first/checkpoints/last.ckpt",
            )
        )
    assert (tmp_path / "second" / "metrics.json").read_bytes() == record
    assert RunDir(tmp_path / "second").state().name == "finished"


def test_two_runs_do_not_work_in_one_folder(short, tmp_path):
    train(short("trainer.max_steps=1"))
    folder = RunDir(tmp_path / "run")
    with folder.lock(), pytest.raises(UsageError, match="Another run is working in"):
        train(short("trainer.max_steps=1"))
    assert folder.state().name == "finished"
    with folder.lock():
        pass


def test_a_finished_run_that_fails_when_started_anew_is_told_as_failed(short, tmp_path):
    train(short("trainer.max_steps=1"))
    with pytest.raises(UsageError, match="MNIST is incomplete"):
        train(short("trainer.max_steps=1", "ckpt_path=null", f"data.root={tmp_path}/nowhere"))
    assert RunDir(tmp_path / "run").state().name == "failed"
    train(short("trainer.max_steps=1", "ckpt_path=auto"))
    assert RunDir(tmp_path / "run").state().name == "finished"


def test_a_record_tells_of_callbacks_and_checkpoints_that_change_what_comes_out(composed):
    stop = "+callbacks.stop._target_=pytorch_lightning.callbacks.EarlyStopping"
    plain = result_settings(composed("experiment=mnist"))
    assert plain["start"] == {"ckpt_path": None}
    assert list(plain["callbacks"]) == ["best"]
    other = result_settings(
        composed(
            "experiment=mnist", stop, "+callbacks.stop.monitor=val/loss", "ckpt_path=some.ckpt"
        )
    )
    assert other["start"] == {"ckpt_path": "some.ckpt"}
    assert other["callbacks"]["stop"]["monitor"] == "val/loss"


@pytest.mark.parametrize("accumulate", [1, 3, 4])
def test_validation_intervals_and_epochs_count_steps_whatever_the_accumulation(
    short, tmp_path, monkeypatch, accumulate
):
    monkeypatch.setattr(
        "spatial_transformer.data.mnist.distorted.VALIDATION_SIZE", 60_000 - 16 * 14
    )  # 14 batches an epoch
    several = f"++trainer.accumulate_grad_batches={accumulate}"
    result = train(short("model=fcn", "trainer.max_steps=12", "recipe.validate_every=4", several))
    assert result["curve"]["step"] == [4, 8, 12]
    epochs = [float(row["epoch"]) for row in rows(tmp_path / "run") if row["train/loss"]]
    steps_per_epoch = 14 // accumulate
    assert epochs == [step // steps_per_epoch for step in range(12)]


SHORT_INTERVALS = ("model=fcn", "trainer.max_steps=4", "recipe.validate_every=2")


def test_a_run_whose_directory_is_moved_ends(short, tmp_path, monkeypatch):
    monkeypatch.setattr(
        MisclassifiedSamples,
        "on_train_start",
        lambda *arguments: (tmp_path / "run").rename(tmp_path / "moved"),
    )
    with pytest.raises(UsageError, match="run was moved or removed during the run"):
        train(short(*SHORT_INTERVALS))
    assert not list((tmp_path / "run").rglob("*.ckpt"))


def test_a_damaged_best_checkpoint_is_not_tested(short, tmp_path, monkeypatch):
    def damage(*arguments):
        file = tmp_path / "run" / "checkpoints" / "best.ckpt"
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)

    with monkeypatch.context() as patch:
        patch.setattr(MisclassifiedSamples, "on_train_end", damage)
        with pytest.raises(UsageError, match=r"best\.ckpt cannot be read as a checkpoint"):
            train(short(*SHORT_INTERVALS, "ckpt_path=auto"))
    assert not (tmp_path / "run" / "metrics.json").exists()
    (tmp_path / "run" / "checkpoints" / "best.ckpt").unlink()
    with pytest.raises(UsageError, match=r"best\.ckpt is missing"):
        train(short(*SHORT_INTERVALS, "ckpt_path=auto"))


def test_weights_that_are_not_finite_are_never_saved(short, tmp_path, monkeypatch):
    def spoil(self, trainer, pl_module, optimizer):
        if trainer.global_step == 3:
            next(pl_module.parameters()).grad.fill_(float("nan"))

    monkeypatch.setattr(MisclassifiedSamples, "on_before_optimizer_step", spoil)
    with pytest.raises(UsageError, match="weights are not finite at step 4"):
        train(short(*SHORT_INTERVALS))
    for file in (tmp_path / "run" / "checkpoints").iterdir():
        weights = torch.load(file, weights_only=True)["state_dict"].values()
        assert all(weight.isfinite().all() for weight in weights), file


def test_a_run_leaves_the_process_as_it_was(short):
    def state():
        loggers = [
            logging.getLogger(name).level for name in ("pytorch_lightning", "lightning_fabric")
        ]
        return (
            dict(os.environ),
            list(warnings.filters),
            loggers,
            matplotlib.get_backend(),
            signal.getsignal(signal.SIGTERM),
        )

    before = state()
    train(short("trainer.max_steps=1"))
    assert state() == before

"""Components of users and of other packages, and the code of docs/guides/extending.md."""

import json
import re
import sys

import pytest
import torch
from conftest import REPOSITORY, SHORT
from programs import Program

from spatial_transformer import SpatialTransformer
from spatial_transformer.loggers.csv import MetricsCSV
from spatial_transformer.tasks.classification import Classification
from spatial_transformer.training.build import build
from spatial_transformer.training.runner import train
from spatial_transformer.utils.errors import UsageError

PAGE = (REPOSITORY / "docs" / "guides" / "extending.md").read_text()
MODULE = """
import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn

from spatial_transformer import Affine, FcLocalisation, SpatialTransformer
from spatial_transformer.tasks.classification import Classification


class MyNet(nn.Module):
    def __init__(self, size: int, hidden: "Unknown | list[int]", classes: int = 10):
        super().__init__()
        assert type(hidden) is list
        sizes = [size * size, *hidden, classes]
        layers = [nn.Linear(a, b) for a, b in zip(sizes, sizes[1:])]
        self.layers = nn.Sequential(nn.Flatten(), *layers)

    def forward(self, images):
        return self.layers(images)


class MyCallback(pl.Callback):
    steps = 0

    def on_train_batch_end(self, *arguments):
        MyCallback.steps += 1

    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("val/mine", float("nan"))


def my_optimizer(groups, lr: float):
    return torch.optim.SGD(groups, lr=lr)


class OnlyInTraining(MyNet):
    def __init__(self, size: int, hidden: list, classes: int):
        super().__init__(size, hidden, classes)
        transform = Affine()
        self.transformer = SpatialTransformer(FcLocalisation((1, size, size), transform), transform)

    def forward(self, images):
        return self.layers(self.transformer(images) if self.training else images)


class Broken(nn.Module):
    def __init__(self, size: int, classes: int):
        super().__init__()
        self.layer = nn.Linear(size, classes, bais=True)


class BrokenTransform(Affine):
    def __init__(self):
        raise ValueError("of a user")


class CosineTask(Classification):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
        steps = self.trainer.estimated_stepping_batches
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)]


class ManualTask(Classification):
    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


class ArrayCallback(pl.Callback):
    def state_dict(self):
        return {"array": np.zeros(3)}
"""
TINY = [*SHORT, "logger=csv", "trainer.max_steps=5", "recipe.validate_every=2", "data.root=."]
FCN = ["model=fcn", "model.width=4"]
CALLBACK = "pytorch_lightning.callbacks."


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_module", raising=False)
    import my_module

    return my_module


@pytest.mark.parametrize("factory", ["timm.optim.Lion", "my_module.my_optimizer"])
def test_components_of_a_user_train(composed, drawn_mnist, module, factory):
    own = ["model=custom", "model._target_=my_module.MyNet", "+model.hidden=[8, 8]"]
    own += ["+callbacks.mine={_target_: my_module.MyCallback}"]
    own += ["~recipe.optimizer.fused", "~recipe.optimizer.weight_decay"]
    own += [f"recipe.optimizer._target_={factory}", "recipe.optimizer.lr=0.01"]
    module.MyCallback.steps = 0
    record = train(composed(*TINY, *own))
    assert record["steps"] == module.MyCallback.steps == 5
    assert record["metrics"]["test/error"] >= 0
    assert "val/mine" not in record["metrics"], "JSON has no NaN"
    assert record["curve"]["val/mine"] == [None] * len(record["curve"]["step"])


def test_transformer_that_is_used_in_training_alone(composed, drawn_mnist, module, caplog):
    own = ["model=custom", "model._target_=my_module.OnlyInTraining", "+model.hidden=[8, 8]"]
    record = train(composed(*TINY, *own))
    assert "theta/outside" not in record["metrics"]
    assert "localisation/gradient_norm" in record["metrics"]
    assert "failed" not in caplog.text


def test_test_error_that_is_not_finite_is_refused(composed, drawn_mnist, monkeypatch):
    def no_errors(task, logits, labels):
        return {"error": torch.full(labels.shape, torch.nan)}

    monkeypatch.setattr(Classification, "per_sample_errors", no_errors)
    with pytest.raises(UsageError, match="must log a finite test/error, got nan"):
        train(composed(*TINY, *FCN))


def test_unknown_monitor_is_refused_before_training(composed, drawn_mnist, tmp_path):
    stop = f"+callbacks.stop={{_target_: {CALLBACK}EarlyStopping, monitor: val_error}}"
    message = "EarlyStopping monitors 'val_error', which is not logged. Did you mean 'val/error'"
    with pytest.raises(UsageError, match=message):
        train(composed(*TINY, *FCN, stop, "trainer.num_sanity_val_steps=1"))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_callbacks_of_lightning_work(composed, drawn_mnist, tmp_path):
    added = [
        f"+callbacks.stop={{_target_: {CALLBACK}EarlyStopping, monitor: val/error, patience: 9}}",
        f"+callbacks.copies={{_target_: {CALLBACK}ModelCheckpoint, dirpath: {tmp_path}/copies}}",
        f"+callbacks.rate={{_target_: {CALLBACK}LearningRateMonitor}}",
        f"+callbacks.average={{_target_: {CALLBACK}EMAWeightAveraging}}",
    ]
    assert train(composed(*TINY, *FCN, *added))["steps"] == 5
    assert list((tmp_path / "copies").glob("*.ckpt"))


@pytest.mark.parametrize("task", ["CosineTask", "ManualTask"])
def test_task_of_a_user_may_optimize_in_its_own_way(composed, drawn_mnist, module, tmp_path, task):
    words = [*TINY, *FCN, f"task._target_=my_module.{task}", "recipe.scheduler=null"]
    assert train(composed(*words))["steps"] == 5
    start = f"ckpt_path={tmp_path}/run/checkpoints/last.ckpt"
    more = [start, "trainer.max_steps=7", f"run_dir={tmp_path}/more"]
    assert train(composed(*words, *more))["steps"] == 7


def test_state_that_could_not_be_read_again_is_refused_at_the_first_checkpoint(
    composed, drawn_mnist, module, tmp_path
):
    callback = "+callbacks.mine={_target_: my_module.ArrayCallback}"
    with pytest.raises(UsageError, match=r"cannot be written: .*, got numpy\.\S+, numpy"):
        train(composed(*TINY, *FCN, callback))
    steps = [row["step"] for row in MetricsCSV(tmp_path / "run" / "metrics.csv").read()]
    assert max(map(int, steps)) < 2


def test_error_in_the_transform_of_a_user_keeps_its_type(composed, module):
    with pytest.raises(ValueError, match=r"^of a user$") as caught:
        build(
            composed(
                *TINY, *FCN[1:], "model=st_fcn", "transform._target_=my_module.BrokenTransform"
            )
        )
    assert any("my_module.py" in str(frame.path) for frame in caught.traceback)


def test_error_in_the_code_of_a_user_keeps_its_traceback(composed, module):
    config = composed(*TINY, "model=custom", "model._target_=my_module.Broken")
    with pytest.raises(TypeError, match="bais") as caught:
        build(config)
    assert any("my_module.py" in str(frame.path) for frame in caught.traceback)
    assert (caught.value.__cause__, caught.value.__suppress_context__) == (None, True)


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


@pytest.fixture
def project(tmp_path):
    """Write the files of the page to a directory."""
    (tmp_path / "mine.py").write_text("\n\n".join(blocks("python")))
    files = dict(re.findall(r"`(conf/\S+?\.yaml)`:\n\n```yaml\n(.*?)```", PAGE, re.S))
    assert len(files) == len(blocks("yaml")) == 4
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_page_makes_an_experiment(project):
    settings = ["trainer.max_steps=60", "recipe.optimizer.lr=0.003", "logger=csv"]
    words = re.search(r"python ../train.py (.*)", PAGE)[1].split()
    run = Program("train.py", *words, *settings, "hydra.run.dir=run", cwd=project)
    assert run.wait() == 0, run.communicate()
    assert json.loads((project / "run" / "metrics.json").read_text())["metrics"]["test/error"] < 5
    assert (project / "run" / "crops" / "confusion.png").is_file()
    refused = Program("evaluate.py", "run=run", cwd=project)
    _, errors = refused.communicate()
    assert refused.returncode == 1
    assert "set trust=[mine]" in errors
    assert "Traceback" not in errors
    trusted = Program("evaluate.py", "run=run", "trust=[mine]", cwd=project)
    assert trusted.wait() == 0, trusted.communicate()
    exported = Program("scripts/export.py", "run", "--trust=mine", "--out=mine.pt", cwd=project)
    assert exported.wait() == 0, exported.communicate()
    assert (project / "mine.pt").is_file()


def test_data_and_transform_of_the_page(project, monkeypatch):
    monkeypatch.syspath_prepend(project)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    import mine

    similarity, data = mine.Similarity(), mine.Bars()
    images, labels = data.samples("val", torch.arange(50))
    upright = images.sum(dim=(1, 3))[labels == 1]
    assert torch.equal(upright, torch.ones(25, 28)), "an upright bar has a pixel in each row"
    network = mine.small_cnn(data.input_size, similarity, classes=data.classes)
    (transformer,) = (m for m in network.modules() if isinstance(m, SpatialTransformer))
    torch.testing.assert_close(transformer(images), images, atol=2e-6, rtol=0)
    theta = torch.tensor([[0.8, 0.3, 0.1, -0.2]])
    composed = similarity.compose(theta, similarity.inverse(theta))
    torch.testing.assert_close(composed, similarity.identity()[None])
    grid = similarity.grid(torch.tensor([[0.0, 1.0, 0.0, 0.0]]), (28, 28))
    turned = torch.nn.functional.grid_sample(images[:1], grid, align_corners=False)
    torch.testing.assert_close(turned, images[:1].rot90(1, (2, 3)), atol=1e-5, rtol=0)

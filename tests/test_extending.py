"""What docs/extending.md tells to write works as it stands there."""

import re
import shutil
import sys
from types import ModuleType

import pytest
import torch
from conftest import REPOSITORY

from spatial_transformer import SpatialTransformer, transformer
from spatial_transformer.config import composed
from spatial_transformer.networks import mnist
from spatial_transformer.runner import run

PAGE = (REPOSITORY / "docs" / "extending.md").read_text()
SETTINGS = ("trainer.max_steps=60", "recipe.optimizer.lr=0.003", "logger=csv", "callbacks.progress=null")


@pytest.fixture
def written(monkeypatch):
    """The names of its three pieces, at the places that it tells."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    places = {"Similarity": transformer, "small_cnn": mnist, "Bars": ModuleType("spatial_transformer.data.bars")}
    there = {}
    for (name, module), block in zip(places.items(), blocks, strict=True):
        there["__name__"] = module.__name__
        exec(block, there)
        monkeypatch.setattr(module, name, there[name], raising=False)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return there


@pytest.fixture
def conf(tmp_path):
    """The configuration with its files in it."""
    shutil.copytree(REPOSITORY / "conf", tmp_path / "conf")
    files = dict(re.findall(r"`conf/(\S+?\.yaml)`[^`]*?(?:`python[^`]*`[^`]*?)?:\n\n```yaml\n(.*?)```", PAGE, re.S))
    files |= dict(re.findall(r"`conf/(\S+?\.yaml)` has one line, `(.*?)`", PAGE))
    assert sorted(files) == ["data/bars.yaml", "experiment/bars.yaml", "model/small_cnn.yaml", "transform/similarity.yaml"]
    for name, text in files.items():
        (tmp_path / "conf" / name).write_text(text)
    return tmp_path / "conf"


def test_its_data_has_what_it_says_and_its_transform_turns(written):
    similarity, data = written["Similarity"](), written["Bars"]()
    images, labels = data.samples("val", torch.arange(50))
    assert torch.equal(images.sum(dim=(1, 3))[labels == 1], torch.ones(25, 28)), "an upright bar has a pixel in each row"
    network = written["small_cnn"](data.input_size, similarity, classes=data.classes)
    (of_network,) = (module for module in network.modules() if isinstance(module, SpatialTransformer))
    torch.testing.assert_close(of_network(images), images, atol=2e-6, rtol=0)  # a similarity starts as the identity
    theta = torch.tensor([[0.8, 0.3, 0.1, -0.2]])
    torch.testing.assert_close(similarity.compose(theta, similarity.inverse(theta)), similarity.identity()[None])
    quarter_turn = similarity.grid(torch.tensor([[0.0, 1.0, 0.0, 0.0]]), (28, 28))
    turned = torch.nn.functional.grid_sample(images[:1], quarter_turn, align_corners=False)
    torch.testing.assert_close(turned, images[:1].rot90(1, (2, 3)), atol=1e-5, rtol=0)


def test_its_transform_network_and_data_set_make_an_experiment(written, conf, tmp_path):
    choices = ("experiment=bars", "model=small_cnn", "transform=similarity")
    record = run(composed(conf, *choices, *SETTINGS, f"run_dir={tmp_path}/run"))
    assert record["metrics"]["test/error"] < 5
    assert (tmp_path / "run" / "crops" / "confusion.png").is_file()

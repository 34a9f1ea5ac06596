"""Wrong settings and broken files, chosen by Hypothesis: whatever it is, one message tells, and nothing is left behind."""

import copy
import hashlib
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from hydra.errors import HydraException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from tiny_birds import Bird, write_birds
from torch import nn

from spatial_transformer import runner
from spatial_transformer.building import build, component, load_trained
from spatial_transformer.callbacks.metrics_table import MetricsTable
from spatial_transformer.config import check, explanation
from spatial_transformer.data import cub_files, mnist_files
from spatial_transformer.data.cub_cache import open_pictures
from spatial_transformer.data.svhn_cache import open_crops
from spatial_transformer.data.svhn_synthetic import make_part
from spatial_transformer.errors import UsageError
from spatial_transformer.networks import backbones
from spatial_transformer.records import read_records
from spatial_transformer.run_folder import RunFolder, read_record
from spatial_transformer.saved import load_saved

TOLD = (UsageError, HydraException, OmegaConfBaseException, OverflowError)
"""What ``config.explained`` tells in one message."""

EXPERIMENTS = {
    "mnist": ["experiment=mnist", "model=st_cnn", "transform=tps", "model.width=4", "model.pool=2"],
    "mnist p": ["experiment=mnist", "model=cnn", "recipe=paper", "data.distortion=p", "data.corner_std=2.5", "model.width=4"],
    "addition": ["experiment=mnist_addition", "transform=projective"],
    "colocalisation": ["experiment=colocalisation"],
    "3d": ["experiment=mnist_3d", "debug=profile"],
    "svhn": ["experiment=svhn_st_multi", "recipe=svhn_part", "model.width=0.05"],
    "birds": ["experiment=birds_2st", "recipe=birds_differences", "data.species=1-50"],
    "birds paper": ["experiment=birds_cnn", "recipe=birds_paper"],
}


FEW, MANY = 20, 500
AMOUNTS = [pytest.param(FEW, id="few"), pytest.param(MANY, id="many", marks=pytest.mark.slow)]


def try_all(amount, function, **strategies):
    """Calls a function with what Hypothesis chooses: the same few examples each time, or many new ones."""
    how = settings(
        max_examples=amount,
        deadline=None,
        derandomize=amount == FEW,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    how(given(**strategies)(function))()


# Settings

HUGE = 10**15  # no machine has so much memory: smaller ones could be granted
NUMBERS = st.sampled_from([-HUGE, -1, 0, 1, 2, 3, 5, HUGE, 2**31 * HUGE, 10**400]) | st.sampled_from(
    [math.nan, math.inf, -math.inf, -1.0, -0.0, 0.5, 1.5, 5e-324, 1e308]
)
REFERENCES = [
    "${",
    "${}",
    "${nothing}",
    "${seed}",
    "${data}",
    "${oc.env:NOTHING}",
    "\\${seed}",
    "${oc.create:'{_target_: os.x}'}",
]
ODD = ["", " ", "0", "1e9", "none", "auto", "ä漢字🐦", "x" * 20_000, "..", "../..", "a.b", "\0", "%s{}\\n", "-1", "1-50", "???"]
TEXTS = st.text(max_size=8) | st.sampled_from([*ODD, *REFERENCES])
LEAVES = st.none() | st.booleans() | NUMBERS | TEXTS
WRONG = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=2), max_leaves=4
)


def paths(node: Any, path: str = "") -> Iterator[str]:
    """Every setting and every group of settings by its dotted name."""
    if path:
        yield path
    if isinstance(node, dict):
        for key, child in node.items():
            yield from paths(child, f"{path}.{key}" if path else key)


class Tiny(nn.Sequential):
    """Stands for a backbone: as many features, no depth."""

    def __init__(self) -> None:
        super().__init__(nn.AvgPool2d(32), nn.Conv2d(3, 8, 1))


@pytest.fixture
def tiny_backbones(monkeypatch):
    for name, kind in list(backbones.BACKBONES.items()):
        trained = lambda: {key: torch.zeros_like(value) for key, value in Tiny().state_dict().items()}  # noqa: E731
        monkeypatch.setitem(backbones.BACKBONES, name, kind._replace(channels=8, build=Tiny, trained=trained))


@pytest.fixture
def config(request, composed):
    return composed(*EXPERIMENTS[request.param], "logger=csv")


def build_all(config: DictConfig) -> None:
    """What a run does before it reads data and begins to train."""
    check(config)
    build(config)
    runner._validate_to_the_end(config)
    for name, node in config.callbacks.items():
        if node is not None:
            component(node, f"callbacks.{name}")
    for name, node in config.logger.items():
        component(node, f"logger.{name}")
    component(config.trainer, "trainer", logger=False, callbacks=[])


def files_in(*folders: Path) -> set[str]:
    return {str(path) for folder in folders for path in folder.rglob("*")}


def must_be_told(error: BaseException, *names: str) -> None:
    text = explanation(error)
    assert text
    assert any(name in text for name in names), f"{names} not in: {text}"


def with_value(config: DictConfig, path: str, value: Any) -> DictConfig:
    changed = copy.deepcopy(config)
    with open_dict(changed):
        OmegaConf.update(changed, path, value, merge=False)
    return changed


def refuse(config: DictConfig, path: str, value: Any) -> None:
    """Puts a value at a place and builds all: success, or an error that names the place."""
    key = path.rpartition(".")[2]
    names = (key, path.partition(".")[0])  # those of the setting, or of its component
    try:
        build_all(with_value(config, path, value))
    except TOLD as error:
        must_be_told(error, *names)


@pytest.mark.parametrize("amount", AMOUNTS)
@pytest.mark.parametrize("config", EXPERIMENTS, indirect=True)
def test_any_value_at_any_place_is_taken_or_told(config, amount, tiny_backbones, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = list(paths(OmegaConf.to_container(config, resolve=True)))

    def put(path, value):
        refuse(config, path, value)
        assert files_in(tmp_path) == set()

    try_all(amount, put, path=st.sampled_from(places), value=WRONG)


PLAIN = ["seed", "data.batch_size", "data.distortion", "data.root", "model.width", "recipe.dropout", "recipe.optimizer.lr"]


@pytest.mark.parametrize("amount", AMOUNTS)
def test_any_text_on_the_command_line_is_taken_or_told(composed, amount, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def put(setting, sign, text):
        try:
            build_all(composed("model.width=4", "logger=csv", f"{sign}{setting}={text}"))
        except TOLD as error:
            must_be_told(error, setting.rpartition(".")[2], setting.partition(".")[0])
        assert files_in(tmp_path) == set()

    known = ["nan", "inf", "-1", "0", "1e400", "true", "null", "[1,2]", "{a: 1}", "'", '"', "[", "1,2", "$", "~"]
    signs = st.sampled_from(["", "+", "++", "~"])
    try_all(amount, put, setting=st.sampled_from(PLAIN), sign=signs, text=st.sampled_from(known) | TEXTS)


FOUND = {
    "recipe.theta_step": 10**400,
    "trainer.val_check_interval": 0,
    "trainer.max_steps": True,
    "recipe.max_steps": 10**400,
    "recipe.optimizer.lr": -1.0,
    "recipe.scheduler.pct_start": 5.0,
    "data.canvas": 10**15,
    "data.batch_size": "64",
    "data._partial_": True,
    "model": "${seed}",
    "model.width": 10**15,
    "model.transform": None,
    "recipe": "${seed}",
    "callbacks": "${seed}",
    "callbacks.best": [],
    "callbacks.best.mode": "least",
    "run_dir": "\0",
    "seed": -1,
    "checkpoint_minutes": math.nan,
    "label": "${label}",
}
"""What once ended in a traceback, or after the run had begun."""


@pytest.mark.parametrize("setting", FOUND)
@pytest.mark.parametrize("config", ["mnist"], indirect=True)
def test_what_was_found_once_is_told(config, setting):
    with pytest.raises(TOLD) as caught:
        build_all(with_value(config, setting, FOUND[setting]))
    must_be_told(caught.value, setting.rpartition(".")[0] or setting)


@pytest.mark.parametrize("experiment", ["addition", "birds"])
def test_more_transformers_than_make_sense_are_told_before_they_are_built(composed, experiment, tiny_backbones):
    with pytest.raises(UsageError, match="transformers must be from 1 to 16"):
        build_all(composed(*EXPERIMENTS[experiment], "logger=csv", f"model.transformers={HUGE}"))


# Files


@st.composite
def damages(draw):
    """Something that happens to a file, as a function of its path."""
    share = draw(st.floats(0, 1, exclude_max=True))
    more = draw(st.binary(min_size=1, max_size=8))
    kind = draw(st.sampled_from(["cut", "flip", "flip", "insert", "overwrite", "empty", "folder", "append", "gone"]))

    def damage(path):
        content = path.read_bytes()
        place = int(share * len(content))
        if kind in ("gone", "folder"):
            path.unlink()
            if kind == "folder":
                path.mkdir()
            return
        if kind == "flip" and content:
            changed = content[:place] + bytes([content[place] ^ (1 << more[0] % 8)]) + content[place + 1 :]
        else:
            changed = {
                "cut": content[:place],
                "insert": content[:place] + more + content[place:],
                "overwrite": content[:place] + more + content[place + len(more) :],
                "append": content + more,
            }.get(kind, b"")
        path.write_bytes(changed)

    return damage


def try_files(amount, source, tmp_path, names, read, made=()):
    """Damages one file of a copy of ``source`` at a time and calls ``read(folder, name)``, which proves what it reads.

    Reading ends in success, or in an error that names the file or its folder and a way out; there is no other file than before,
    but for those below ``made``, and never a half-written one.
    """
    read(shutil.copytree(source, tmp_path / "good", copy_function=shutil.copy2), None)
    counter = iter(range(10**9))

    def attempt(name, damage):
        folder = shutil.copytree(source, tmp_path / str(next(counter)), copy_function=shutil.copy2)
        damage(folder / name)
        before = files_in(folder)
        try:
            read(folder, name)
        except UsageError as error:
            must_be_told(error, Path(name).name)
            must_be_told(error, "Way out")
        new = {path for path in files_in(folder) - before if not any(part in Path(path).parts for part in made)}
        assert {Path(path).suffix for path in new} <= {".broken"}
        assert not [path for path in files_in(folder) if Path(path).name.startswith((".", "incomplete-"))]
        shutil.rmtree(folder)

    try_all(amount, attempt, name=st.sampled_from(names), damage=damages())


@pytest.mark.parametrize("amount", AMOUNTS)
def test_broken_files_of_mnist_are_always_told(amount, tmp_path, monkeypatch):
    raw = tmp_path / "source" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in mnist_files.FILES:
        content = bytes(range(16)) + bytes(28 * 28 * 2)
        (raw / name).write_bytes(content)
        monkeypatch.setitem(mnist_files.FILES, name, hashlib.md5(content).hexdigest())
    names = [f"MNIST/raw/{name}" for name in mnist_files.FILES]

    def read(folder, name):
        mnist_files.prepare(folder)
        whole = name is None or (folder / name).read_bytes() == (tmp_path / "source" / name).read_bytes()
        assert whole, "a damaged file was taken for MNIST"

    try_files(amount, tmp_path / "source", tmp_path, names, read)


@pytest.mark.parametrize("amount", AMOUNTS)
def test_broken_files_of_svhn_are_taken_as_they_are_left_out_or_told(amount, tmp_path, digits, capfd):
    images = (digits[:, 0] * 255).round().to(torch.uint8).numpy()
    make_part(tmp_path / "source" / "train", 6, (images, np.arange(64) % 10), seed=1)
    names = ["train/digitStruct.mat"] * 3 + ["train/1.png", "train/2.png"]

    def read(folder, name):
        crops = open_crops(folder / "train", 64, folder / "kept", workers=1)
        assert crops.images.shape[0] == len(crops.labels) == 6 - sum(map(len, crops.left_out.values()))
        assert crops.labels.max() <= 10

    try_files(amount, tmp_path / "source", tmp_path, names, read, made=["kept"])


@pytest.mark.parametrize("amount", AMOUNTS)
def test_broken_files_of_cub_are_told(amount, tmp_path, capfd):
    birds = [Bird(species, training) for species in (1, 2) for training in (True, True, False)]
    root = write_birds(tmp_path / "source" / "birds", birds, species=2)
    texts = [f"birds/{text}" for text in cub_files.TEXTS]
    images = [str(path.relative_to(tmp_path / "source")) for path in sorted(root.rglob("*.jpg"))]

    def read(folder, name):
        found = cub_files.read_birds(cub_files.prepare(folder / "birds"), [1, 2])
        pictures = open_pictures(found, 224, folder / "kept", workers=1)
        assert len(pictures.sizes) == len(found.files)
        assert cub_files.read_boxes(found).shape == (len(found.files), 4)

    try_files(amount, tmp_path / "source", tmp_path, [*texts, *images[:2]], read, made=["kept"])


@pytest.mark.parametrize("amount", AMOUNTS)
def test_broken_caches_are_made_anew(amount, tmp_path, digits, capfd):
    images = (digits[:, 0] * 255).round().to(torch.uint8).numpy()
    make_part(tmp_path / "part" / "train", 4, (images, np.arange(64) % 10), seed=1)
    expected = open_crops(tmp_path / "part" / "train", 64, tmp_path / "source", workers=1)
    (kept,) = (tmp_path / "source" / "svhn").iterdir()
    names = [f"svhn/{kept.name}/{name}" for name in ("labels.npy", "images.npy", "meta.json")]

    def read(folder, name):
        crops = open_crops(tmp_path / "part" / "train", 64, folder, workers=1)
        assert np.array_equal(crops.labels, expected.labels), "wrong labels were taken silently"
        assert crops.images.shape == expected.images.shape  # of the pixels themselves only the length is proved

    try_files(amount, tmp_path / "source", tmp_path, names, read, made=["svhn"])


@pytest.mark.parametrize("amount", AMOUNTS)
def test_broken_run_folders_are_told(amount, composed, tmp_path, capfd):
    config = composed("model=fcn", "model.width=2", "transform=none", "data.distortion=r", "logger=none")
    _, task = build(config)
    source = RunFolder(tmp_path / "source")
    source.checkpoints.mkdir(parents=True)
    source.config.write_text(OmegaConf.to_yaml(config, resolve=True))
    for name in ("best", "last"):
        torch.save({"state_dict": task.state_dict()}, source.checkpoints / f"{name}.ckpt")
    record = next((REPOSITORY / "results" / "mnist").glob("*.json"))
    shutil.copy(record, source.record)
    (source.path / "metrics.csv").write_text("step,val/error\n1,90.5\n2,80.25\n3,\n")
    weights = load_saved(source.last)["state_dict"]

    def compare(taken):
        for key, tensor in taken.items():
            assert torch.equal(tensor, weights[key]), "wrong weights were taken silently"

    def read(folder, name):
        of_run, taken = RunFolder(folder), None
        if name == "metrics.json":
            of_run.state()
            read_record(of_run.record)
            read_records(folder)
        elif name == "metrics.csv":
            MetricsTable(folder / "metrics.csv").go_on(3)
        elif name == "checkpoints/last.ckpt":
            taken = of_run.newest_checkpoint()
        elif name is not None:
            compare(load_trained(folder).task.state_dict())
        if taken is not None:
            compare(load_saved(taken)["state_dict"])

    names = ["metrics.json", "metrics.csv", "checkpoints/last.ckpt", "checkpoints/best.ckpt", "config.yaml"]
    for name in names:
        try_files(amount // 2, source.path, tmp_path / name.replace("/", "_"), [name], read)

"""Broken files, chosen by Hypothesis: each is reported by name, and nothing is left behind."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_svhn import make_part
from omegaconf import OmegaConf
from tiny_birds import Bird, write_birds

from spatial_transformer.data.cub import files as cub_files
from spatial_transformer.data.cub.images import open_images
from spatial_transformer.data.mnist import files as mnist_files
from spatial_transformer.data.svhn.crops import open_crops
from spatial_transformer.inference.load import load_trained
from spatial_transformer.loggers.csv import MetricsCSV
from spatial_transformer.reporting.records import read_records
from spatial_transformer.training.build import build
from spatial_transformer.training.fingerprint import fingerprint
from spatial_transformer.training.result import read_result
from spatial_transformer.training.run_dir import RunDir
from spatial_transformer.utils.errors import UsageError
from spatial_transformer.utils.serialization import load_tensors, save_tensors

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


def files_in(*folders: Path) -> set[str]:
    return {str(path) for folder in folders for path in folder.rglob("*")}


def must_be_told(error: BaseException, *names: str) -> None:
    text = str(error)
    assert any(name in text for name in names), f"{names} not in: {text}"


# Files


@st.composite
def damages(draw):
    """Something that happens to a file, as a function of its path."""
    share = draw(st.floats(0, 1, exclude_max=True))
    more = draw(st.binary(min_size=1, max_size=8))
    kind = draw(
        st.sampled_from(
            ["cut", "flip", "flip", "insert", "overwrite", "empty", "folder", "append", "gone"]
        )
    )

    def damage(path):
        content = path.read_bytes()
        place = int(share * len(content))
        if kind in ("gone", "folder"):
            path.unlink()
            if kind == "folder":
                path.mkdir()
            return
        if kind == "flip" and content:
            changed = (
                content[:place]
                + bytes([content[place] ^ (1 << more[0] % 8)])
                + content[place + 1 :]
            )
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
        new = {
            path
            for path in files_in(folder) - before
            if not any(part in Path(path).parts for part in made)
        }
        assert {Path(path).suffix for path in new} <= {".broken"}
        left = {
            path for path in files_in(folder) if Path(path).name.startswith((".", "incomplete-"))
        }
        assert {Path(path).suffix for path in left} <= {".lock"}
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
        whole = (
            name is None
            or (folder / name).read_bytes() == (tmp_path / "source" / name).read_bytes()
        )
        assert whole, "a damaged file was taken for MNIST"

    try_files(amount, tmp_path / "source", tmp_path, names, read)


@pytest.mark.parametrize("amount", AMOUNTS)
def test_broken_files_of_svhn_are_taken_as_they_are_left_out_or_told(
    amount, tmp_path, digits, capfd
):
    images = (digits[:, 0] * 255).round().to(torch.uint8).numpy()
    make_part(tmp_path / "source" / "train", 6, (images, np.arange(64) % 10), seed=1)
    names = ["train/digitStruct.mat"] * 3 + ["train/1.png", "train/2.png"]

    def read(folder, name):
        crops = open_crops(folder / "train", 64, folder / "kept", workers=1)
        assert crops.images.shape[0] == len(crops.labels) <= 6
        assert crops.labels.max() <= 10

    try_files(amount, tmp_path / "source", tmp_path, names, read, made=["kept"])


@pytest.mark.parametrize("amount", AMOUNTS)
def test_broken_files_of_cub_are_told(amount, tmp_path, capfd):
    birds = [Bird(species, training) for species in (1, 2) for training in (True, True, False)]
    root = write_birds(tmp_path / "source" / "birds", birds, species=2)
    texts = [f"birds/{text}" for text in cub_files.COLUMNS]
    images = [str(path.relative_to(tmp_path / "source")) for path in sorted(root.rglob("*.jpg"))]

    def read(folder, name):
        found = cub_files.read_birds(cub_files.prepare(folder / "birds"), [1, 2])
        images = open_images(found, 224, folder / "kept", workers=1)
        assert len(images.sizes) == len(found.files)
        assert cub_files.read_boxes(found).shape == (len(found.files), 4)

    try_files(amount, tmp_path / "source", tmp_path, [*texts, *images[:2]], read, made=["kept"])


@pytest.mark.parametrize("amount", AMOUNTS)
def test_broken_caches_are_made_anew(amount, tmp_path, digits, capfd):
    images = (digits[:, 0] * 255).round().to(torch.uint8).numpy()
    make_part(tmp_path / "part" / "train", 4, (images, np.arange(64) % 10), seed=1)
    expected = open_crops(tmp_path / "part" / "train", 64, tmp_path / "source", workers=1)
    (kept,) = (tmp_path / "source" / "svhn").glob("[!.]*")
    names = [f"svhn/{kept.name}/{name}" for name in ("labels.npy", "images.bin", "meta.json")]

    def read(folder, name):
        crops = open_crops(tmp_path / "part" / "train", 64, folder, workers=1)
        assert np.array_equal(crops.labels, expected.labels), "wrong labels were taken silently"
        assert np.array_equal(crops.images, expected.images), "wrong pixels were taken silently"

    try_files(amount, tmp_path / "source", tmp_path, names, read, made=["svhn"])


@pytest.mark.parametrize("amount", AMOUNTS)
def test_broken_run_folders_are_told(amount, composed, tmp_path, capfd):
    config = composed(
        "model=fcn", "model.width=2", "transform=none", "data.distortion=r", "logger=none"
    )
    _, task = build(config)
    source = RunDir(tmp_path / "source")
    plain = OmegaConf.to_container(config, resolve=True)
    mark = fingerprint(plain, "data")
    source.prepare(plain, mark)
    for name in ("best", "last"):
        save_tensors(
            {"state_dict": task.state_dict(), "fingerprint": mark},
            source.checkpoints / f"{name}.ckpt",
        )
    result = next((REPOSITORY / "results" / "mnist").glob("*.json"))
    shutil.copy(result, source.result)
    (source.path / "metrics.csv").write_text("step,val/error\n1,90.5\n2,80.25\n3,\n")
    weights = load_tensors(source.last)["state_dict"]

    def compare(taken):
        for key, tensor in taken.items():
            assert torch.equal(tensor, weights[key]), "wrong weights were taken silently"

    def read(folder, name):
        of_run, taken = RunDir(folder), None
        if name == "metrics.json":
            of_run.state()
            read_result(of_run.result)
            read_records(folder)
        elif name == "metrics.csv":
            MetricsCSV(folder / "metrics.csv").resume(3)
        elif name == "checkpoints/last.ckpt":
            taken = of_run.newest_checkpoint(mark)
        elif name is not None:
            compare(load_trained(folder).task.state_dict())
        if taken is not None:
            compare(taken[1]["state_dict"])

    names = [
        "metrics.json",
        "metrics.csv",
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
        "config.yaml",
    ]
    for name in names:
        try_files(amount // 2, source.path, tmp_path / name.replace("/", "_"), [name], read)

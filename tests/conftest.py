"""Fixtures that several test files share."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from chromium import browser  # noqa: F401  a fixture
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from spatial_transformer.data.mnist import files as mnist_files
from spatial_transformer.training.config import compose_config
from spatial_transformer.training.result import result_settings

REPOSITORY = Path(__file__).resolve().parents[1]
DATA_ROOTS = [
    *(Path(root) for root in [os.environ.get("STN_DATA")] if root),
    REPOSITORY.parent / "shared" / "data",
    REPOSITORY / "data",
]
SHORT = [
    "ckpt_path=null",
    "data.batch_size=16",
    "data.eval_batch_size=50",
    "++trainer.limit_val_batches=2",
    "++trainer.limit_test_batches=4",
    "trainer.log_every_n_steps=1",
    "trainer.num_sanity_val_steps=0",
    "trainer.max_steps=2",
]


def pytest_configure(config: pytest.Config) -> None:
    """Give each worker of pytest-xdist one thread, as there is a worker for each core."""
    if config.getoption("numprocesses", 0):
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers inherit it before they load torch


@pytest.fixture(scope="session", autouse=True)
def _default_data_root():
    """Let no test depend on the user's ``$STN_DATA``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("STN_DATA", raising=False)
        yield


@pytest.fixture(autouse=True)
def _seed():
    """Let no test depend on those before it."""
    torch.manual_seed(0)


def find_data(*files: str) -> Path:
    """Return the common directory of the data sets if it contains the files, or skip the test."""
    for root in DATA_ROOTS:
        if all((root / file).is_file() for file in files):
            return root
    pytest.skip(f"{files[0]} is missing. Set STN_DATA to the directory that contains it.")


@pytest.fixture(scope="session")
def mnist_root() -> Path:
    """Directory that contains ``MNIST/raw`` with the real MNIST."""
    return find_data("MNIST/raw/train-images-idx3-ubyte")


@pytest.fixture(scope="session")
def svhn_root() -> Path:
    """Directory that contains ``train`` and ``test`` of the real SVHN, at least in part."""
    return find_data("SVHN/train/digitStruct.mat", "SVHN/test/digitStruct.mat") / "SVHN"


@pytest.fixture(scope="session")
def cub_root() -> Path:
    """Directory of CUB-200-2011 with all text files, and at least the images of species 1 to 50."""
    return find_data("CUB_200_2011/images.txt") / "CUB_200_2011"


@pytest.fixture(scope="session")
def digits() -> Tensor:
    """Synthetic digits ``(64, 1, 28, 28)`` in [0, 1]: three strokes within 20 x 20 pixels."""
    generator = torch.Generator().manual_seed(0)
    corners = 6 + 15 * torch.rand(64, 4, 2, generator=generator)
    start, side = corners[:, :-1, None], corners.diff(dim=1)[:, :, None]
    axis = torch.arange(28.0)
    offsets = torch.cartesian_prod(axis, axis) - start
    along = (offsets * side).sum(-1, keepdim=True) / side.square().sum(-1, keepdim=True)
    distance = (offsets - along.clamp(0, 1) * side).norm(dim=-1).amin(dim=1).view(-1, 1, 28, 28)
    ink = torch.zeros(64, 1, 28, 28)
    ink[:, :, 4:24, 4:24] = (2 - distance).clamp(0, 1)[:, :, 4:24, 4:24]
    return ink


@pytest.fixture
def composed(tmp_path: Path) -> Callable[..., DictConfig]:
    """Compose as ``python train.py OVERRIDES`` does, with the run directory ``tmp_path/run``."""

    def compose(*overrides: str) -> DictConfig:
        GlobalHydra.instance().clear()
        return compose_config(REPOSITORY / "conf", f"run_dir={tmp_path}/run", *overrides)

    return compose


@pytest.fixture
def run_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Run the main function of a program; return its exit code, output and errors."""

    def run(main: Callable[[], None], *words: object) -> tuple[int, str, str]:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["program.py", *map(str, words)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        code: Any = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    yield run
    GlobalHydra.instance().clear()


def replace_mnist(monkeypatch: pytest.MonkeyPatch, training: tuple, test: tuple) -> None:
    """Replace the images ``(N, 28, 28)`` uint8 and the labels of MNIST."""
    monkeypatch.setattr(mnist_files, "prepare", lambda root: root)
    monkeypatch.setattr(mnist_files, "read", lambda root, train: training if train else test)


@pytest.fixture
def drawn_mnist(digits: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace MNIST by ten synthetic digits, repeated. Digit n has label n."""
    images = (digits[:10, 0] * 255).round().to(torch.uint8).repeat(6_000, 1, 1)
    labels = torch.arange(60_000) % 10
    replace_mnist(monkeypatch, (images, labels), (images[:10_000], labels[:10_000]))


@pytest.fixture
def record(composed: Callable[..., DictConfig]) -> Callable[..., dict]:
    """Make the result of a run with given overrides, without running it."""

    def record_(error, *overrides, experiment="mnist"):
        config = composed(f"experiment={experiment}", *overrides)
        return {
            "label": config.label,
            **config.choices,
            "seed": config.seed,
            "steps": config.trainer.max_steps,
            "precision": config.trainer.precision,
            "samples": {"train": 1824, "test": 10_000},
            "seconds": 60.0,
            "device": "cpu",
            "metrics": {"test/error": error, "val/best_error": 1.0},
            "config": result_settings(OmegaConf.to_container(config, resolve=True)),
        }

    return record_

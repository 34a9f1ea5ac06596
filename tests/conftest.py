"""Fixtures that several test files share."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor

import spatial_transformer.training.config  # noqa: F401  registers the schema
from spatial_transformer.data.mnist import files as mnist_files
from spatial_transformer.training.result import result_settings

REPOSITORY = Path(__file__).resolve().parents[1]
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


@pytest.fixture(scope="session")
def mnist_root() -> Path:
    """A directory with real MNIST in ``MNIST/raw``."""
    for root in (REPOSITORY.parent / "shared" / "data", REPOSITORY / "data"):
        if (root / "MNIST" / "raw" / "train-images-idx3-ubyte").is_file():
            return root
    pytest.skip("real MNIST is missing: run `make train` once")


@pytest.fixture(scope="session")
def svhn_root() -> Path:
    """A directory with ``train`` and ``test`` of real SVHN (full numbers), or a part of them."""
    for root in (REPOSITORY.parent / "shared" / "data" / "SVHN", REPOSITORY / "data" / "SVHN"):
        if all((root / part / "digitStruct.mat").is_file() for part in ("train", "test")):
            return root
    pytest.skip("real SVHN is missing: unpack train.tar.gz and test.tar.gz into data/SVHN")


@pytest.fixture(scope="session")
def cub_root() -> Path:
    """A directory with real CUB-200-2011, at least the images of species 1 to 50."""
    for data in (REPOSITORY.parent / "shared" / "data", REPOSITORY / "data"):
        root = data / "CUB_200_2011"
        if (root / "images.txt").is_file():
            return root
    pytest.skip("real CUB-200-2011 is missing: unpack CUB_200_2011.tgz into data/")


@pytest.fixture(scope="session")
def digits() -> Tensor:
    """Drawn digits, (64, 1, 28, 28) in [0, 1]: three strokes within the central 20 x 20 pixels."""
    generator = torch.Generator().manual_seed(0)
    corners = 6 + 15 * torch.rand(64, 4, 2, generator=generator)
    start, side = corners[:, :-1, None], corners.diff(dim=1)[:, :, None]
    axis = torch.arange(28.0)
    pixels = torch.cartesian_prod(axis, axis)
    along = ((pixels - start) * side).sum(-1, keepdim=True) / side.square().sum(-1, keepdim=True)
    distance = (
        (pixels - start - along.clamp(0, 1) * side).norm(dim=-1).amin(dim=1).view(-1, 1, 28, 28)
    )
    ink = torch.zeros(64, 1, 28, 28)
    ink[:, :, 4:24, 4:24] = (2 - distance).clamp(0, 1)[:, :, 4:24, 4:24]
    return ink


@pytest.fixture
def composed(tmp_path: Path) -> Iterator[Callable[..., DictConfig]]:
    """Compose as ``python train.py OVERRIDES`` does, with the run directory ``tmp_path/run``."""

    def compose_(*overrides: str) -> DictConfig:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
            config = compose("train", overrides=list(overrides), return_hydra_config=True)
        OmegaConf.set_readonly(config.hydra, False)
        config.hydra.runtime.output_dir = str(tmp_path / "run")
        HydraConfig.instance().set_config(config)
        with open_dict(config):
            del config["hydra"]
        return config

    yield compose_
    HydraConfig.instance().cfg = None
    GlobalHydra.instance().clear()


@pytest.fixture
def drawn_mnist(digits: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace MNIST by ten drawn digits, repeated."""
    images = (digits[:10, 0] * 255).round().to(torch.uint8).repeat(6_000, 1, 1)
    monkeypatch.setattr(mnist_files, "prepare", lambda root: root)
    monkeypatch.setattr(
        mnist_files, "read", lambda root, train: (images, torch.arange(len(images)) % 10)
    )


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
            "samples": {"train": 1824},
            "seconds": 60.0,
            "device": "cpu",
            "metrics": {"test/error": error, "val/best_error": 1.0},
            "config": result_settings(OmegaConf.to_container(config, resolve=True)),
        }

    return record_

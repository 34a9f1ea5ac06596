"""What several test files share: real MNIST where it is at hand, and digits drawn here for tests that need no real ones."""

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
    """A folder that holds ``MNIST/raw`` with real MNIST."""
    for root in (REPOSITORY.parent / "shared" / "data", REPOSITORY / "data"):
        if (root / "MNIST" / "raw" / "train-images-idx3-ubyte").is_file():
            return root
    pytest.skip(
        "real MNIST is not here: run `make train` once, or put the four unpacked idx files into data/MNIST/raw"
    )


@pytest.fixture(scope="session")
def svhn_root() -> Path:
    """A folder that holds ``train`` and ``test`` of real SVHN, the full numbers, whole or in part."""
    for root in (REPOSITORY.parent / "shared" / "data" / "SVHN", REPOSITORY / "data" / "SVHN"):
        if all((root / part / "digitStruct.mat").is_file() for part in ("train", "test")):
            return root
    pytest.skip(
        "real SVHN is not here: unpack train.tar.gz and test.tar.gz of its full numbers into data/SVHN"
    )


@pytest.fixture(scope="session")
def cub_root() -> Path:
    """A folder that holds CUB-200-2011's text files and at least the images of its species 1 to 50."""
    for root in (
        REPOSITORY.parent / "shared" / "data" / "CUB_200_2011",
        REPOSITORY / "data" / "CUB_200_2011",
    ):
        if (root / "images.txt").is_file():
            return root
    pytest.skip("real CUB-200-2011 is not here: unpack CUB_200_2011.tgz into data/")


@pytest.fixture(scope="session")
def digits() -> Tensor:
    """(64, 1, 28, 28) float32 in [0, 1]: open curves of three straight strokes inside the central 20 x 20 pixels."""
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
    """Composes as ``python train.py OVERRIDES`` does, with ``tmp_path/run`` as the run folder."""

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
    """Digits drawn here in the place of MNIST, ten of them again and again."""
    images = (digits[:10, 0] * 255).round().to(torch.uint8).repeat(6_000, 1, 1)
    monkeypatch.setattr(mnist_files, "prepare", lambda root: root)
    monkeypatch.setattr(
        mnist_files, "read", lambda root, train: (images, torch.arange(len(images)) % 10)
    )


@pytest.fixture
def record(composed: Callable[..., DictConfig]) -> Callable[..., dict]:
    """Makes the record of a run with given overrides, as the runner does, but for the run."""

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

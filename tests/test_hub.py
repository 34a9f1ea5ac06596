"""The entries of torch.hub, also without other packages than torch and NumPy."""

import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY

import hubconf
from spatial_transformer.inference.load import load_trained

LOAD_ENTRIES = """
import torch

def load(entry, **settings):
    return torch.hub.load(".", entry, source="local", **settings)

for entry in ("st_cnn_mnist", "st_fcn_mnist", "cnn_mnist"):
    for pretrained in (True, False):
        assert load(entry, pretrained=pretrained)(torch.rand(2, 1, 42, 42)).shape == (2, 10)
x = torch.rand(2, 1, 8, 8)
assert torch.allclose(load("spatial_transformer", in_shape=(1, 8, 8))(x), x, atol=1e-4)
"""
IMPORT_PACKAGE = """
import sys
sys.path.insert(0, "src")
import spatial_transformer
for name in spatial_transformer.__all__:
    getattr(spatial_transformer, name)
"""
OTHERS = (
    *("PIL", "h5py", "hydra", "matplotlib", "omegaconf", "pandas", "pooch", "pydantic"),
    *("pytorch_lightning", "rich", "timm", "torchmetrics", "torchvision", "wandb", "yaml"),
)
every_network = pytest.mark.parametrize("entry", ["st_cnn_mnist", "st_fcn_mnist", "cnn_mnist"])


def load(entry, **settings):
    return torch.hub.load(str(REPOSITORY), entry, source="local", **settings)


@pytest.mark.parametrize("code", [LOAD_ENTRIES, IMPORT_PACKAGE], ids=["entries", "package"])
def test_torch_and_numpy_are_enough(code):
    hide = f"import sys; sys.modules.update(dict.fromkeys({OTHERS}))\n"  # importing them fails
    command = [sys.executable, "-c", hide + code]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@every_network
def test_a_pretrained_network_is_that_of_its_file(entry):
    network, images = load(entry), torch.rand(5, 1, 42, 42)
    trained = load_trained(REPOSITORY / "checkpoints" / f"{entry}.pt")
    assert trained.data.input_size == 42
    assert str(network) == str(trained.task.network)
    with torch.inference_mode():
        assert torch.equal(network(images), trained.task.network(images))


@every_network
def test_only_a_pretrained_network_is_in_evaluation_mode(entry):
    assert not any(module.training for module in load(entry).modules())
    assert all(module.training for module in load(entry, pretrained=False).modules())


@pytest.mark.parametrize("transform", ["Affine", "Attention", "Projective", "ThinPlateSpline"])
def test_a_bare_transformer_starts_as_the_identity(transform):
    settings = {"in_shape": (3, 16, 24), "transform": transform}
    x = torch.rand(2, 3, 16, 24)
    assert torch.allclose(load("spatial_transformer", **settings)(x), x, atol=1e-4)
    small = load("spatial_transformer", **settings, output_size=(8, 8))
    assert small(x).shape == (2, 3, 8, 8)


def test_an_unknown_transform_is_refused():
    with pytest.raises(ValueError, match="Affine, Attention, Projective, ThinPlateSpline"):
        load("spatial_transformer", in_shape=(1, 8, 8), transform="Rotation")


def test_every_entry_is_documented():
    public = {name: value for name, value in vars(hubconf).items() if not name.startswith("_")}
    entries = {name for name, value in public.items() if callable(value)}
    assert entries == {"st_cnn_mnist", "st_fcn_mnist", "cnn_mnist", "spatial_transformer"}
    assert all(getattr(hubconf, name).__doc__ for name in entries)

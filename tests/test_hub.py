"""The entries of torch.hub, also where PyTorch and NumPy are the only packages."""

import subprocess
import sys
from importlib.metadata import distribution

import pytest
import torch
from conftest import REPOSITORY
from packaging.requirements import Requirement

from spatial_transformer.inference.load import load_trained

LOAD_ENTRIES = """
import torch

def load(entry, **settings):
    return torch.hub.load(".", entry, source="local", **settings)

for entry in ("st_cnn_mnist", "st_fcn_mnist"):
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

FORBIDDEN = (
    "pytorch_lightning",
    "hydra",
    "omegaconf",
    "pydantic",
    "torchvision",
    "matplotlib",
    "PIL",
)


def load(entry, **settings):
    return torch.hub.load(str(REPOSITORY), entry, source="local", **settings)


def required_distributions(name):
    """Return the names of a distribution and of all that it depends on."""
    seen, pending = set(), [Requirement(name)]
    while pending:
        current = pending.pop()
        key = (current.name, *sorted(current.extras))
        if key not in seen:
            seen.add(key)
            for text in distribution(current.name).requires or []:
                one = Requirement(text)
                extras = current.extras or {""}
                if not one.marker or any(one.marker.evaluate({"extra": e}) for e in extras):
                    pending.append(one)
    return {key[0] for key in seen}


@pytest.fixture(scope="module")
def run_with_torch_alone(tmp_path_factory):
    """Return a function that runs code where only torch, its dependencies and NumPy exist."""
    site = tmp_path_factory.mktemp("site")
    for name in required_distributions("torch") | {"numpy"}:
        installed = distribution(name)
        for top in {file.parts[0] for file in installed.files} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(installed.locate_file(top))

    def run_(code):
        start = f"import sys; sys.path.insert(0, {str(site)!r})\n"
        command = [sys.executable, "-I", "-S", "-c", start + code]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)

    return run_


@pytest.mark.parametrize("code", [LOAD_ENTRIES, IMPORT_PACKAGE], ids=["entries", "package"])
def test_entries_and_package_need_torch_alone(run_with_torch_alone, code):
    done = run_with_torch_alone(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", FORBIDDEN)
def test_the_environment_of_torch_alone_lacks_other_packages(run_with_torch_alone, name):
    assert "ModuleNotFoundError" in run_with_torch_alone(f"import {name}").stderr


@pytest.mark.parametrize("entry", ["st_cnn_mnist", "st_fcn_mnist"])
def test_a_trained_network_is_that_of_its_file(entry):
    network = load(entry)
    images = torch.rand(5, 1, 42, 42)
    expected = load_trained(REPOSITORY / "checkpoints" / f"{entry}.pt").task.network
    with torch.inference_mode():
        assert torch.equal(network(images), expected(images))
        assert not torch.equal(load(entry, pretrained=False)(images), expected(images))


@pytest.mark.parametrize("entry", ["st_cnn_mnist", "st_fcn_mnist"])
def test_a_pretrained_network_is_in_evaluation_mode(entry):
    assert not any(module.training for module in load(entry).modules())
    assert all(module.training for module in load(entry, pretrained=False).modules())


@pytest.mark.parametrize("entry", ["st_cnn_mnist", "st_fcn_mnist"])
def test_an_entry_is_built_as_its_file_is_configured(entry):
    trained = load_trained(REPOSITORY / "checkpoints" / f"{entry}.pt")
    assert str(load(entry)) == str(trained.task.network)
    assert load(entry).pool == trained.task.network.pool
    assert trained.data.input_size == 42


@pytest.mark.parametrize("transform", ["Affine", "Attention", "Projective", "ThinPlateSpline"])
def test_a_bare_transformer_starts_as_the_identity(transform):
    x = torch.rand(2, 3, 16, 24)
    assert torch.allclose(
        load("spatial_transformer", in_shape=(3, 16, 24), transform=transform)(x), x, atol=1e-4
    )
    small = load(
        "spatial_transformer", in_shape=(3, 16, 24), transform=transform, output_size=(8, 8)
    )
    assert small(x).shape == (2, 3, 8, 8)


def test_another_transform_is_refused():
    with pytest.raises(ValueError, match="Affine, Attention, Projective, ThinPlateSpline"):
        load("spatial_transformer", in_shape=(1, 8, 8), transform="Rotation")


def test_every_entry_is_documented():
    import hubconf

    entries = {
        name
        for name, value in vars(hubconf).items()
        if callable(value) and not name.startswith("_")
    }
    assert entries == {"st_cnn_mnist", "st_fcn_mnist", "spatial_transformer"}
    assert all(getattr(hubconf, name).__doc__ for name in entries)

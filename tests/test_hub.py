"""What torch.hub finds at the top level."""

import pytest
import torch
from conftest import REPOSITORY

from spatial_transformer.building import load_trained


def load(entry, **settings):
    return torch.hub.load(str(REPOSITORY), entry, source="local", **settings)


@pytest.mark.parametrize("entry", ["st_cnn_mnist", "st_fcn_mnist"])
def test_a_trained_network_is_that_of_its_file(entry):
    network = load(entry)
    images = torch.rand(5, 1, 42, 42)
    expected = load_trained(REPOSITORY / "checkpoints" / f"{entry}.pt").task.network
    with torch.inference_mode():
        assert torch.equal(network(images), expected(images))
        assert not torch.equal(load(entry, pretrained=False)(images), expected(images))


@pytest.mark.parametrize("transform", ["Affine", "Attention", "Projective", "ThinPlateSpline"])
def test_a_bare_transformer_starts_as_the_identity(transform):
    x = torch.rand(2, 3, 16, 24)
    assert torch.allclose(load("spatial_transformer", in_shape=(3, 16, 24), transform=transform)(x), x, atol=1e-4)
    small = load("spatial_transformer", in_shape=(3, 16, 24), transform=transform, output_size=(8, 8))
    assert small(x).shape == (2, 3, 8, 8)


def test_another_transform_is_refused():
    with pytest.raises(ValueError, match="Affine, Attention, Projective, ThinPlateSpline"):
        load("spatial_transformer", in_shape=(1, 8, 8), transform="Rotation")


def test_every_entry_is_documented():
    import hubconf

    entries = {name for name, value in vars(hubconf).items() if callable(value) and not name.startswith("_")}
    assert entries == {"st_cnn_mnist", "st_fcn_mnist", "spatial_transformer"}
    assert all(getattr(hubconf, name).__doc__ for name in entries)

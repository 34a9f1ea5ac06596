import pytest
import torch
import torch.nn.functional as F

from spatial_transformer.networks.volume import VolumeNetwork
from spatial_transformer.transformer import Affine, Affine3d


def test_both_networks_start_from_the_same_projection():
    networks = VolumeNetwork(40, width=16), VolumeNetwork(40, Affine3d(), width=16)
    # Smooth, so that reading every other voxel loses nothing.
    corners = torch.linspace(0, 0.1, 8).view(1, 1, 2, 2, 2)
    volume = F.interpolate(corners, size=40, mode="trilinear")
    seen = []
    for network in networks:
        network.classifier.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        assert network(volume).shape == (1, 10)
    assert seen[0].shape == (1, 1, 20, 20)
    torch.testing.assert_close(*seen, atol=1e-2, rtol=0)


def test_every_parameter_of_theta_learns_from_labels():
    network = VolumeNetwork(40, Affine3d(), width=16)
    F.cross_entropy(network(torch.rand(3, 1, 40, 40, 40) / 5), torch.tensor([1, 2, 3])).backward()
    regression = network.transformer.localisation[-1]
    assert regression.bias.grad.abs().min() > 0
    assert regression.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("size", "transform", "message"),
    [(40, Affine(), "three dimensions"), (24, Affine3d(), "26 voxels per side, got 24")],
)
def test_invalid_arguments_are_refused(size, transform, message):
    with pytest.raises(ValueError, match=message):
        VolumeNetwork(size, transform)

"""The networks of three dimensions: shapes, where they start, gradients and refusals."""

import pytest
import torch
import torch.nn.functional as F

from spatial_transformer.networks.volume import fcn, st_fcn
from spatial_transformer.transformer import Affine, Affine3d


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_both_have_the_same_classifier_and_ten_classes():
    with_transformer, without = st_fcn(40, Affine3d(), width=16), fcn(40, width=16)
    volumes = torch.rand(2, 1, 40, 40, 40)
    assert with_transformer(volumes).shape == without(volumes).shape == (2, 10)
    assert [p.shape for p in with_transformer.classifier.parameters()] == [
        p.shape for p in without.classifier.parameters()
    ]


def test_it_starts_from_the_projection_that_the_other_sees():
    network, other = st_fcn(40, Affine3d(), width=16), fcn(40, width=16)
    seen = []
    for each in (network, other):
        each.classifier.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        # Smooth, so that reading every other voxel loses nothing.
        each(
            F.interpolate(torch.linspace(0, 0.1, 8).view(1, 1, 2, 2, 2), size=40, mode="trilinear")
        )
    assert seen[0].shape == seen[1].shape == (1, 1, 20, 20)
    assert torch.allclose(*seen, atol=1e-2)


def test_labels_alone_teach_the_transformer():
    network = st_fcn(40, Affine3d(), width=16)
    F.cross_entropy(network(torch.rand(3, 1, 40, 40, 40) / 5), torch.tensor([1, 2, 3])).backward()
    regression = network.transformer.localisation[-1]
    assert regression.bias.grad.abs().min() > 0, "each of twelve parameters"
    assert regression.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("size", "transform", "text"),
    [(40, Affine(), "three dimensions"), (24, Affine3d(), "26 voxels")],
)
def test_what_does_not_fit_is_refused(size, transform, text):
    with pytest.raises(ValueError, match=text):
        st_fcn(size, transform)

import pytest
import torch

from spatial_transformer.networks.modern import ModernStCnn
from spatial_transformer.tasks.classification import Classification
from spatial_transformer.transformer import Affine, ThinPlateSpline, sample


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("size", "transform"), [(28, Affine()), (42, ThinPlateSpline())])
def test_all_parameters_train(size, transform, shared):
    network = ModernStCnn(size, transform, shared=shared)
    regression = network.transformer.localisation[-1]
    torch.nn.init.normal_(regression.weight, std=0.01)  # zero weights pass no gradient
    logits = network(torch.rand(4, 1, size, size))
    assert logits.shape == (4, 10)
    logits.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in network.parameters())


def test_network_has_little_more_than_a_third_of_the_parameters_of_the_paper():
    for size in (28, 42):
        count = sum(p.numel() for p in ModernStCnn(size, Affine()).parameters())
        assert 133_000 < count < 150_000


def test_classifier_sees_28_pixels_of_every_image():
    network = ModernStCnn(42, Affine()).eval()
    x = torch.rand(2, 1, 42, 42)
    theta = Affine().identity().expand(2, 6) * 0.8
    image = sample(x, Affine().grid(theta, (28, 28)))
    assert torch.equal(network(x, theta), network.classifier(image))
    assert torch.equal(network.transformer(x), network.transformer(x, theta=theta / 0.8))


def test_shared_convolutions_are_trained_once_and_normalised_apart():
    network = ModernStCnn(28, Affine(), shared=True)
    classifier, localisation = network.classifier, network.transformer.localisation
    for n in (0, 4):
        assert localisation[n] is classifier[n]
    assert localisation[2] is not classifier[2]
    task = Classification(network, torch.optim.SGD)
    found = [id(p) for group in task.parameter_groups() for p in group["params"]]
    assert sorted(found) == sorted({id(p) for p in network.parameters()})

    x = torch.rand(4, 1, 28, 28)
    network.train()(x, theta=Affine().identity().expand(4, 6) * 0.3)
    assert localisation[2].num_batches_tracked == 0
    assert classifier[2].num_batches_tracked == 1


def test_dropout_is_before_the_last_layer():
    dropout, _ = ModernStCnn(28, Affine(), dropout=0.3).classifier[-2:]
    assert dropout.p == 0.3


@pytest.mark.parametrize(("size", "width", "name"), [(27, 8, "size"), (28, 0, "width")])
def test_wrong_sizes_are_refused(size, width, name):
    with pytest.raises(ValueError, match=f"{name} must be at least"):
        ModernStCnn(size, Affine(), width)

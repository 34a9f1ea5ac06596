import pytest
import torch
from torch import nn

from spatial_transformer.networks.birds import BirdNetwork
from spatial_transformer.networks.frozen import Frozen, FrozenBirdNetwork, FrozenMnistNetwork
from spatial_transformer.networks.mnist import MnistNetwork
from spatial_transformer.networks.rotated import Rotation
from spatial_transformer.transformer import Affine


@pytest.fixture
def weights(tmp_path):
    network = MnistNetwork("fcn", 28)
    state = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "fcn.pt")
    return network, tmp_path / "fcn.pt"


def test_frozen_module_stays_in_evaluation_mode_and_passes_gradients():
    module = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2))
    frozen = Frozen(module).train()
    before = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    x = torch.randn(5, 3, requires_grad=True)
    out = frozen(x)
    out.sum().backward()
    assert torch.equal(frozen(x), out)  # no dropout
    assert x.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in frozen.parameters())
    assert all(torch.equal(before[name], t) for name, t in frozen.state_dict().items())


def test_network_starts_as_the_trained_classifier_on_upright_digits(weights):
    classifier, file = weights
    network = FrozenMnistNetwork(28, Affine(), str(file))
    x = torch.rand(4, 1, 28, 28)
    torch.testing.assert_close(network(x), classifier.eval()(x), rtol=0, atol=1e-5)


def test_only_the_localisation_network_trains(weights):
    network = FrozenMnistNetwork(42, Affine(), str(weights[1]))
    network(torch.rand(4, 1, 42, 42)).sum().backward()
    trained = {name for name, p in network.named_parameters() if p.grad is not None}
    assert trained
    assert all(name.startswith("transformer.localisation") for name in trained)
    scratch = FrozenMnistNetwork(42, Affine())
    assert all(parameter.requires_grad for parameter in scratch.parameters())


@pytest.mark.parametrize("content", [{}, {"state_dict": {}}, [1], {"state_dict": {"network.x": 1}}])
def test_weights_of_something_else_are_refused(content, tmp_path):
    torch.save(content, tmp_path / "other.pt")
    for name in ("other.pt", "missing.pt"):
        with pytest.raises(ValueError, match="weights must be a file of an FCN"):
            FrozenMnistNetwork(28, Affine(), str(tmp_path / name))


@pytest.mark.parametrize("transform", [Rotation(), Affine()])
def test_birds_start_as_the_trained_classifier_and_only_localisation_trains(tmp_path, transform):
    lite0 = {"backbone": "efficientnet_lite0", "weights": "none"}
    classifier = BirdNetwork(64, 3, **lite0).eval()
    state = {f"network.{name}": tensor for name, tensor in classifier.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "birds.pt")
    network = FrozenBirdNetwork(64, 3, transform, "none")
    frozen = network.classifier.module
    assert network.transformer.fill == (frozen.streams[0].mean,)  # zero for the backbone
    frozen.load_state_dict(classifier.state_dict())
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(network(x), classifier(x), rtol=0, atol=1e-4)
    network.train()(x).sum().backward()
    trained = {name for name, p in network.named_parameters() if p.grad is not None}
    assert trained
    assert all(name.startswith("transformer.localisation") for name in trained)
    for name, tensor in classifier.state_dict().items():
        assert torch.equal(frozen.state_dict()[name], tensor), "statistics of the batch"
    with pytest.raises(ValueError, match="must be a file of experiment=birds_cnn with 4 species"):
        FrozenBirdNetwork(64, 4, transform, str(tmp_path / "birds.pt"))
    with pytest.raises(ValueError, match="must be a file of a trained CNN unless frozen is false"):
        FrozenBirdNetwork(64, 3, transform, "imagenet")
    both = FrozenBirdNetwork(64, 3, transform, "none", frozen=False, dropout=0.5).train()
    both(x).sum().backward()
    assert all(parameter.grad is not None for parameter in both.parameters())

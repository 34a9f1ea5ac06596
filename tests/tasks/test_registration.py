import math

import pytest
import torch
from samples import set_up

from spatial_transformer.data.mnist import RegistrationData
from spatial_transformer.networks.registration import RegistrationNetwork
from spatial_transformer.tasks.registration import Registration, correlation, dice, jacobian
from spatial_transformer.transformer import Affine, ThetaRecorder, ThinPlateSpline
from spatial_transformer.utils.errors import UsageError


def rotation(degrees):
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return torch.tensor([[c, -s, 0, s, c, 0]])


def evaluate(task, pair):
    task._evaluate((pair, torch.zeros(len(pair))), task.val_scores)
    scores = {name.removeprefix("val/"): float(x) for name, x in task.val_scores.compute().items()}
    task.val_scores.reset()
    return scores


def test_measures_of_two_images():
    a = torch.zeros(1, 1, 4, 4)
    a[..., :2] = 1.0
    assert correlation(a, a).item() == pytest.approx(1)
    assert correlation(a, 1 - a).item() == pytest.approx(-1)
    assert correlation(a, torch.ones_like(a)).item() == 0
    b = torch.zeros_like(a)
    b[..., 1:3] = 0.9
    assert dice(a, b).item() == pytest.approx(0.5)


def test_jacobian_is_negative_where_a_grid_folds():
    identity = Affine().grid(Affine().identity()[None], (8, 8))
    assert (jacobian(identity) > 0).all()
    mirrored = Affine().grid(torch.tensor([[-1.0, 0, 0, 0, 1, 0]]), (8, 8))
    assert (jacobian(mirrored) < 0).all()
    spline = ThinPlateSpline()
    theta = spline.identity().view(2, 4, 4).clone()
    theta[0, :, [1, 2]] = theta[0, :, [2, 1]]  # two columns of control points change places
    folds = jacobian(spline.grid(theta.view(1, -1), (28, 28))) < 0
    assert 0 < folds.float().mean() < 0.5


def test_untrained_network_changes_nothing():
    pair = torch.rand(6, 2, 28, 28)
    scores = evaluate(Registration(RegistrationNetwork(28, Affine()), torch.optim.Adam), pair)
    assert scores["error"] == pytest.approx(scores["error_before"], abs=1e-3)
    assert scores["dice"] == scores["dice_before"]
    assert scores["folding"] == 0
    assert scores["inverse_px"] == pytest.approx(0, abs=1e-4)


def test_inverse_distance_is_that_of_the_inverse_from_the_swapped_pair():
    network = RegistrationNetwork(28, Affine())
    predicted = iter([rotation(-90), rotation(90), rotation(90), rotation(90)])
    network.transformer.localisation = torch.nn.Module()
    network.transformer.localisation.forward = lambda pair: next(predicted)
    task = Registration(network, torch.optim.Adam)
    pair = torch.rand(1, 2, 28, 28)
    assert evaluate(task, pair)["inverse_px"] == pytest.approx(0, abs=1e-4)
    points = Affine().grid(Affine().identity()[None], (28, 28)) * 14
    # From -90 to 90 degrees, a point moves to its opposite.
    expected = 2 * points.norm(dim=-1).mean()
    assert evaluate(task, pair)["inverse_px"] == pytest.approx(expected.item(), rel=1e-4)


def test_a_family_without_inverse_has_no_inverse_distance():
    task = Registration(RegistrationNetwork(28, ThinPlateSpline()), torch.optim.Adam)
    scores = evaluate(task, torch.rand(2, 2, 28, 28))
    assert "inverse_px" not in scores
    assert scores["folding"] == 0


def test_callbacks_read_theta_of_the_pair_and_not_of_the_swapped_one():
    network = RegistrationNetwork(28, Affine())
    torch.nn.init.normal_(network.transformer.localisation[-1].weight)
    pair = torch.rand(2, 2, 28, 28)
    with ThetaRecorder(network) as recorder:
        evaluate(Registration(network, torch.optim.Adam), pair)
    theta = network.transformer.localisation(pair)
    torch.testing.assert_close(recorder.latest[network.transformer], theta)


def test_noise_that_would_have_no_effect_is_refused():
    with pytest.raises(UsageError, match="theta_noise has no effect"):
        Registration(RegistrationNetwork(28, Affine()), torch.optim.Adam, theta_noise=0.03)


def test_pairs_of_images_of_two_sizes_are_refused():
    with pytest.raises(UsageError, match=r"r, p or e, got images of 42 pixels"):
        RegistrationData("rts").setup()


def test_pairs_show_two_digits_of_one_class(mnist_root):
    data = set_up(RegistrationData("r", root=mnist_root))
    index = torch.arange(500)
    pairs, labels = data.samples("test", index)
    again, _ = data.samples("test", index)
    assert torch.equal(pairs, again)
    assert torch.equal(pairs[:, 0], data._digits("test", index)[:, 0])
    partners = set_up(RegistrationData("t", canvas=28, root=mnist_root))  # upright
    moving = partners.samples("test", index)[0][:, 1]
    digits, all_labels = partners._digits("test", torch.arange(data.size("test"))), data._labels
    for image, label in zip(moving[:20], labels[:20]):
        (places,) = (digits[:, 0] == image).all(dim=(1, 2)).nonzero(as_tuple=True)
        assert set(all_labels["test"][places].tolist()) == {int(label)}
    first, second = (data.samples("train", index, epoch)[0] for epoch in (0, 1))
    assert torch.equal(first[:, 0], second[:, 0])
    assert not torch.equal(first[:, 1], second[:, 1])


def test_training_reduces_the_difference(mnist_root):
    data = set_up(RegistrationData("r", root=mnist_root))
    pair, labels = data.samples("train", torch.arange(64))
    task = Registration(RegistrationNetwork(28, Affine()), torch.optim.Adam)
    optimizer = torch.optim.Adam(task.parameters(), lr=1e-3)
    losses = []
    for _ in range(40):
        _, loss = task.compute_loss(pair, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]

"""Statistics of theta and of the gradient of the localisation network."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from spatial_transformer import (
    Affine,
    Attention,
    FcLocalisation,
    Projective,
    SpatialTransformer,
    ThinPlateSpline,
)
from spatial_transformer.callbacks.theta_stats import ThetaStatistics, describe_theta
from spatial_transformer.transformer import Affine3d

AFFINE = {"scale_x": 1, "scale_y": 1, "rotation": 0, "shift": 0}


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        (Attention(), {"scale": 1, "shift": 0}),
        (Attention(0.5), {"shift": 0}),
        (Affine(), AFFINE),
        (Projective(), AFFINE),
        (ThinPlateSpline(), {"displacement": 0}),
        (Affine3d(), {"scale_x": 1, "scale_y": 1, "scale_z": 1, "shift": 0}),
    ],
    ids=repr,
)
def test_the_identity_neither_scales_nor_rotates_nor_shifts(transform, expected):
    theta = transform.identity().expand(3, -1)
    assert describe_theta(transform, theta) == pytest.approx(expected, abs=1e-6)


def test_affine_thetas_are_described_by_root_mean_squares():
    thetas = []
    for angle, shift in ((0.3, 0.0), (-0.3, 0.5)):
        cos, sin = math.cos(angle), math.sin(angle)
        thetas.append([0.5 * cos, -0.25 * sin, shift, 0.5 * sin, 0.25 * cos, 0.0])
    expected = {"scale_x": 0.5, "scale_y": 0.25}
    expected |= {"rotation": math.degrees(0.3), "shift": 0.5 / math.sqrt(2)}
    assert describe_theta(Affine(), torch.tensor(thetas)) == pytest.approx(expected)


def test_the_displacement_of_a_spline_is_that_of_its_points():
    theta = ThinPlateSpline().identity().expand(2, -1).clone()
    theta[:, :16] += 0.3
    theta[:, 16:] -= 0.4
    assert describe_theta(ThinPlateSpline(), theta) == pytest.approx({"displacement": 0.5})


def test_statistics_are_of_each_transformer_over_all_batches():
    """Of windows of half the image: the first is inside, the second crosses the right edge."""
    thetas = torch.tensor([[-0.5, 0.0, 1.0, 0.0], [0.5, 0.0, 0.5, 0.0]])
    network = SpatialTransformer(nn.Identity(), Attention(0.5), parallel=2)
    logged, described = {}, []
    module = SimpleNamespace(network=network, log_dict=lambda m, sync_dist: logged.update(m))
    logger = SimpleNamespace(log_metrics=lambda m, step: described.append((step, m)))
    trainer = SimpleNamespace(sanity_checking=False, loggers=[logger], global_step=7)
    statistics = ThetaStatistics()
    statistics.on_validation_epoch_start(trainer, module)
    for theta in thetas:
        network.localisation(theta[None])
        statistics.on_validation_batch_end(trainer, module, None, None, 0)
    statistics.on_validation_epoch_end(trainer, module)
    assert {name: value.item() for name, value in logged.items()} == {
        "theta/mean_0": 0.0,
        "theta/mean_1": 0.0,
        "theta/std_0": 0.5,
        "theta/std_1": 0.0,
        "theta/outside": 0.0,
        "theta_2/mean_0": 0.75,
        "theta_2/mean_1": 0.0,
        "theta_2/std_0": 0.25,
        "theta_2/std_1": 0.0,
        "theta_2/outside": 0.25,  # half of one window
    }
    ((step, values),) = described
    assert step == 6  # the row of the last step
    assert values == pytest.approx({"theta/shift": 0.5, "theta_2/shift": (1.25 / 2) ** 0.5})
    assert not network.localisation._forward_hooks


@pytest.mark.parametrize("fused", [False, True])
def test_the_gradient_norm_does_not_depend_on_the_loss_scale(fused):
    """With float16, which no run of the tests can use."""
    network = SpatialTransformer(FcLocalisation((1, 9, 9), Affine()), Affine())
    optimizer = torch.optim.AdamW(network.parameters(), fused=fused)
    norms = []
    log = lambda name, value: norms.append(value.item())  # noqa: E731
    module = SimpleNamespace(network=network, should_log=True, log=log)
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=1024)):
        optimizer.zero_grad()
        loss = network(torch.ones(2, 1, 9, 9)).square().sum()
        (scaler.scale(loss) if scaler else loss).backward()
        if scaler and not fused:  # as PyTorch Lightning does before it calls
            scaler.unscale_(optimizer)
        trainer = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=scaler))
        ThetaStatistics().on_before_optimizer_step(trainer, module, optimizer)
    assert norms[0] > 0
    assert norms[1] == pytest.approx(norms[0])

"""Numbers of the localisation network, where no run of the tests can go: float16."""

from types import SimpleNamespace

import pytest
import torch

from spatial_transformer import Affine, FcLocalisation, SpatialTransformer
from spatial_transformer.callbacks.theta_stats import ThetaStatistics


@pytest.mark.parametrize("fused", [False, True])
def test_the_gradient_norm_is_that_of_the_loss_whatever_its_scale(fused):
    torch.manual_seed(0)
    network = SpatialTransformer(FcLocalisation((1, 9, 9), Affine()), Affine())
    optimizer = torch.optim.AdamW(network.parameters(), fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024)
    logged = {}
    module = SimpleNamespace(network=network, should_log=True, log=logged.__setitem__)
    norms = []
    for precision_plugin in (SimpleNamespace(), SimpleNamespace(scaler=scaler)):
        optimizer.zero_grad()
        loss = network(torch.ones(2, 1, 9, 9)).square().sum()
        if precision_plugin.__dict__:
            scaler.scale(loss).backward()
            if not fused:  # as PyTorch Lightning does before it calls
                scaler.unscale_(optimizer)
        else:
            loss.backward()
        ThetaStatistics().on_before_optimizer_step(
            SimpleNamespace(precision_plugin=precision_plugin), module, optimizer
        )
        norms.append(logged["localisation/gradient_norm"].item())
    assert norms[0] > 0
    assert norms[1] == pytest.approx(norms[0])

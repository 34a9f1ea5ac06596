"""The convolution of one channel against PyTorch's."""

import pytest
import torch
import torch.nn.functional as F

from spatial_transformer.networks.convolution import OneChannelConv2d


def gradients(convolve, x, layer):
    x = x.clone().requires_grad_()
    layer.zero_grad()
    out = convolve(x)
    out.square().sum().backward()
    return [out.detach(), x.grad, layer.weight.grad.clone(), layer.bias.grad.clone()]


@pytest.mark.parametrize(
    ("height", "width", "kernel"), [(28, 28, 9), (21, 21, 9), (30, 17, 9), (9, 9, 9), (12, 10, 3), (5, 5, 1)]
)
def test_output_and_gradients_are_those_of_a_convolution(height, width, kernel):
    torch.manual_seed(0)
    layer, x = OneChannelConv2d(7, kernel), torch.randn(3, 1, height, width)
    ours = gradients(layer, x, layer)
    torchs = gradients(lambda x: F.conv2d(x, layer.weight, layer.bias), x, layer)
    for a, b in zip(ours, torchs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_gradcheck():
    layer = OneChannelConv2d(2, 3).double()
    x = torch.randn(2, 1, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x)
    assert torch.autograd.gradcheck(
        lambda w, b: torch.func.functional_call(layer, {"weight": w, "bias": b}, x), tuple(layer.parameters())
    )


def test_frozen_weights_get_no_gradient():
    layer = OneChannelConv2d(2, 3).requires_grad_(False)
    x = torch.randn(1, 1, 5, 5, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None


def test_autocast_and_compile_take_pytorchs_path():
    layer, x = OneChannelConv2d(2, 3), torch.randn(1, 1, 8, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))


def test_weights_have_the_names_of_a_convolution():
    assert set(OneChannelConv2d(2, 3).state_dict()) == {"weight", "bias"}

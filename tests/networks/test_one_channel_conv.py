"""The convolution of one channel against PyTorch's."""

import pytest
import torch
import torch.nn.functional as F

from spatial_transformer.networks.one_channel_conv import OneChannelConv2d


def gradients(convolve, x, layer):
    x = x.clone().requires_grad_()
    layer.zero_grad()
    out = convolve(x)
    out.square().sum().backward()
    return [out.detach(), x.grad, layer.weight.grad.clone(), layer.bias.grad.clone()]


@pytest.mark.parametrize(
    ("height", "width", "kernel"),
    [(28, 28, 9), (21, 21, 9), (30, 17, 9), (9, 9, 9), (12, 10, 3), (5, 5, 1)],
)
def test_output_and_gradients_are_those_of_a_convolution(height, width, kernel):
    torch.manual_seed(0)
    layer, x = OneChannelConv2d(7, kernel), torch.randn(3, 1, height, width)
    ours = gradients(layer, x, layer)
    torchs = gradients(lambda x: F.conv2d(x, layer.weight, layer.bias), x, layer)
    for a, b in zip(ours, torchs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_first_and_second_derivatives_are_the_numerical_ones():
    layer = OneChannelConv2d(2, 3).double()
    x = torch.randn(2, 1, 5, 6, dtype=torch.float64, requires_grad=True)

    def convolve(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, x)

    inputs = (x, *(p.detach().clone().requires_grad_() for p in layer.parameters()))
    assert torch.autograd.gradcheck(convolve, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(convolve, inputs)


def test_vectorised_jacobian_is_that_of_a_convolution():
    torch.manual_seed(0)
    layer, image = OneChannelConv2d(4, 3), torch.randn(1, 1, 6, 6)
    vectorised = torch.autograd.functional.jacobian(layer, image, vectorize=True)
    plain = torch.autograd.functional.jacobian(
        lambda x: F.conv2d(x, layer.weight, layer.bias), image
    )
    torch.testing.assert_close(vectorised, plain)


def test_an_image_without_a_batch_is_taken_as_by_a_convolution():
    layer, image = OneChannelConv2d(4, 3), torch.randn(1, 6, 6, requires_grad=True)
    out = layer(image)
    torch.testing.assert_close(out, F.conv2d(image, layer.weight, layer.bias))
    out.sum().backward()
    assert image.grad.shape == (1, 6, 6)


def test_frozen_weights_get_no_gradient():
    layer = OneChannelConv2d(2, 3).requires_grad_(False)
    x = torch.randn(1, 1, 5, 5, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None


def test_half_precision_computes_what_pytorch_does_in_it():
    torch.manual_seed(0)
    layer, x = OneChannelConv2d(7, 5), torch.randn(3, 1, 12, 12)

    def plainly(x):
        return F.conv2d(x, layer.weight, layer.bias)

    with torch.autocast("cpu", torch.bfloat16):
        ours, torchs = gradients(layer, x, layer), gradients(plainly, x, layer)
    assert ours[0].dtype == torch.bfloat16
    for a, b, exact in zip(ours, torchs, gradients(plainly, x, layer), strict=True):
        close = 0.02 * float(exact.abs().max())
        torch.testing.assert_close(a.float(), exact, rtol=0, atol=close)
        torch.testing.assert_close(b.float(), exact, rtol=0, atol=close)


@pytest.mark.parametrize("wants", [False, True])
def test_the_maps_have_their_channels_last(wants):
    out = OneChannelConv2d(4, 3)(torch.randn(2, 1, 8, 8, requires_grad=wants))
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_compile_takes_pytorchs_path():
    layer, x = OneChannelConv2d(2, 3), torch.randn(1, 1, 8, 8, requires_grad=True)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))


def test_torch_func_takes_pytorchs_path():
    torch.manual_seed(0)
    layer, x = OneChannelConv2d(3, 3), torch.randn(4, 1, 8, 8)
    weights = {name: weight.detach() for name, weight in layer.named_parameters()}

    def loss(weights, one):
        return torch.func.functional_call(layer, weights, (one[None],)).square().sum()

    of_each = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, x)
    _, _, *expected = gradients(layer, x, layer)
    for name, gradient in zip(("weight", "bias"), expected, strict=True):
        torch.testing.assert_close(of_each[name].sum(0), gradient, rtol=1e-4, atol=1e-4)


def test_weights_have_the_names_of_a_convolution():
    assert set(OneChannelConv2d(2, 3).state_dict()) == {"weight", "bias"}

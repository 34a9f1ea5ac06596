import pytest
import torch
import torch.nn.functional as F

from spatial_transformer.networks.one_channel_conv import OneChannelConv2d


def plain(layer):
    """Return PyTorch's convolution with the weights of ``layer``."""
    return lambda x: F.conv2d(x, layer.weight, layer.bias)


def results(convolve, x, layer):
    """Return the output of a convolution and all its gradients."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    out = convolve(x)
    out.square().sum().backward()
    return [out.detach(), x.grad, layer.weight.grad.clone(), layer.bias.grad.clone()]


@pytest.mark.parametrize(
    ("shape", "kernel"),
    [
        ((3, 1, 28, 28), 9),
        ((3, 1, 21, 21), 9),
        ((3, 1, 30, 17), 9),
        ((3, 1, 9, 9), 9),
        ((3, 1, 12, 10), 3),
        ((3, 1, 5, 5), 1),
        ((1, 6, 6), 3),
        ((0, 1, 6, 6), 3),
    ],
    ids=str,
)
def test_output_and_gradients_are_those_of_pytorch(shape, kernel):
    layer, x = OneChannelConv2d(7, kernel), torch.randn(shape)
    ours, expected = results(layer, x, layer), results(plain(layer), x, layer)
    for value, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-4)


def test_half_precision_is_as_exact_as_pytorch():
    layer, x = OneChannelConv2d(7, 5), torch.randn(3, 1, 12, 12)
    exact = results(plain(layer), x, layer)
    with torch.autocast("cpu", torch.bfloat16):
        ours, others = results(layer, x, layer), results(plain(layer), x, layer)
    assert ours[0].dtype == torch.bfloat16
    for value, other, right in zip(ours, others, exact, strict=True):
        tolerance = {"rtol": 0, "atol": 0.02 * float(right.abs().max())}
        torch.testing.assert_close(value.float(), right, **tolerance)
        torch.testing.assert_close(other.float(), right, **tolerance)


def test_first_and_second_derivatives_are_the_numerical_ones():
    layer = OneChannelConv2d(2, 3).double()
    x = torch.randn(2, 1, 5, 6, dtype=torch.float64, requires_grad=True)

    def convolve(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, x)

    inputs = (x, *(p.detach().clone().requires_grad_() for p in layer.parameters()))
    assert torch.autograd.gradcheck(convolve, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(convolve, inputs)


def test_vectorised_jacobian():
    layer, image = OneChannelConv2d(4, 3), torch.randn(1, 1, 6, 6)
    vectorised = torch.autograd.functional.jacobian(layer, image, vectorize=True)
    expected = torch.autograd.functional.jacobian(plain(layer), image)
    torch.testing.assert_close(vectorised, expected)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_output_is_channels_last(requires_grad):
    out = OneChannelConv2d(4, 3)(torch.randn(2, 1, 8, 8, requires_grad=requires_grad))
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_compile():
    layer, x = OneChannelConv2d(2, 3), torch.randn(1, 1, 8, 8, requires_grad=True)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))


def test_gradients_per_sample_by_torch_func():
    layer, x = OneChannelConv2d(3, 3), torch.randn(4, 1, 8, 8)
    weights = {name: weight.detach() for name, weight in layer.named_parameters()}

    def loss(weights, sample):
        return torch.func.functional_call(layer, weights, (sample[None],)).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, x)
    expected = dict(zip(("weight", "bias"), results(layer, x, layer)[2:], strict=True))
    for name, gradient in expected.items():
        torch.testing.assert_close(per_sample[name].sum(0), gradient, rtol=1e-4, atol=1e-4)

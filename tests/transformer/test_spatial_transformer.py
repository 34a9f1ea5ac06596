"""Test the spatial transformer as a module."""

import pytest
import torch
from families import (
    both_modes,
    every_family,
    half_precision,
    image,
    random,
    since_torch,
    thetas,
    trained,
)
from torch import nn

from spatial_transformer import (
    Affine,
    Affine3d,
    Attention,
    FcLocalisation,
    SpatialTransformer,
    sample,
)


class Given(nn.Module):
    """Stands for a localisation network: gives the thetas that it was made with."""

    def __init__(self, theta):
        super().__init__()
        self.theta = theta

    def forward(self, x):
        return self.theta


def untrained(transform, in_shape, **options):
    return SpatialTransformer(
        FcLocalisation(in_shape, transform, hidden=(8,)), transform, **options
    )


# One transformer


@every_family
@both_modes
@pytest.mark.parametrize("size", [None, (3, 5, 6)], ids=str)
def test_the_output_is_the_sample_at_the_grid_of_theta(make, mode, size):
    transform = make()
    x, theta = image(transform), thetas(transform, 3)
    size = size and size[-transform.dims :]
    transformer = SpatialTransformer(Given(theta), transform, size, mode, 0.3)
    out, returned = transformer(x, return_theta=True)
    assert torch.equal(out, sample(x, transform.grid(theta, size or x.shape[2:]), mode, 0.3))
    assert torch.equal(returned, theta)


@every_family
def test_a_sample_is_warped_in_a_batch_as_alone(make):
    transform = make()
    x = image(transform)
    transformer = trained(transform, x)
    alone = torch.cat([transformer(one[None]) for one in x])
    torch.testing.assert_close(transformer(x), alone, rtol=0, atol=1e-4)


# Several


@every_family
@both_modes
def test_transformers_in_parallel_are_as_many_alone_side_by_side_as_channels(make, mode):
    transform = make()
    x, theta = image(transform), thetas(transform, 3, parallel=3)
    size = (3, 5, 6)[-transform.dims :]
    together = SpatialTransformer(Given(theta), transform, size, mode, 0.3, parallel=3)(x)
    alone = [
        SpatialTransformer(Given(one), transform, size, mode, 0.3)(x)
        for one in theta.chunk(3, dim=1)
    ]
    torch.testing.assert_close(together, torch.cat(alone, dim=1))


@pytest.mark.parametrize("output_size", [None, (5, 6)], ids=str)
def test_theta_in_parallel_is_one_row_for_each_transformer(output_size):
    theta = thetas(Affine(), 4, parallel=2)
    transformer = SpatialTransformer(Given(theta), Affine(), output_size, parallel=2)
    out, returned = transformer(random(4, 3, 9, 7), return_theta=True)
    assert torch.equal(returned, theta.reshape(4, 2, 6))
    assert out.shape == (4, 6, *(output_size or (9, 7)))


# Derivatives


@since_torch("2.12")
def test_a_transformer_of_channels_last_maps_may_have_second_derivatives():
    x = random(1, 64, 4, 5).contiguous(memory_format=torch.channels_last)
    theta = thetas(Affine(), 1).requires_grad_()
    out = SpatialTransformer(Given(theta), Affine(), second_order=True)(x)
    (first,) = torch.autograd.grad(out.square().sum(), theta, create_graph=True)
    assert torch.autograd.grad(first.sum(), theta)[0].abs().sum() > 0


# Precision


def test_theta_of_a_whole_network_is_float32_under_autocast():
    x = random(2, 3, 28, 28)
    transformer = untrained(Affine(), x.shape[1:])
    with torch.autocast("cpu", torch.bfloat16):
        out, theta = transformer(x, return_theta=True)
    assert theta.dtype == torch.float32
    torch.testing.assert_close(out, x, rtol=0, atol=1e-5)


def test_a_theta_in_half_precision_is_taken_as_float32():
    theta = thetas(Affine(), 2).bfloat16()
    out, returned = SpatialTransformer(Given(theta), Affine())(
        random(2, 1, 9, 7), return_theta=True
    )
    assert (out.dtype, returned.dtype) == (torch.float32, torch.float32)
    assert torch.equal(returned, theta.float())


@half_precision
@pytest.mark.parametrize("output_size", [None, (60, 60)], ids=str)
def test_a_module_in_half_precision_starts_at_the_identity(dtype, output_size):
    x = torch.rand(2, 3, 60, 60).to(dtype)
    out, theta = untrained(Affine(), x.shape[1:], output_size=output_size).to(dtype)(
        x, return_theta=True
    )
    assert (out.dtype, theta.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(
        out, x, rtol=torch.finfo(dtype).eps, atol=1e-5
    )  # at most one rounding


@pytest.mark.parametrize("output_size", [None, (9, 7)], ids=str)
def test_a_module_in_float64_is_float64_throughout(output_size):
    x = torch.rand(2, 3, 9, 7).double()
    out, theta = untrained(Affine(), x.shape[1:], output_size=output_size).double()(
        x, return_theta=True
    )
    assert (out.dtype, theta.dtype) == (torch.float64, torch.float64)
    torch.testing.assert_close(out, x, rtol=0, atol=1e-14)


# State


@every_family
def test_a_transformer_first_used_in_inference_mode_can_be_trained(make):
    transform = make()
    x = image(transform)
    transformer = trained(transform, x)
    with torch.inference_mode():
        first = transformer(x)
    out = transformer(x)
    out.square().sum().backward()
    assert torch.equal(out, first)
    assert all(parameter.grad.abs().sum() > 0 for parameter in transformer.parameters())


@every_family
def test_state_dict_holds_the_localisation_network_alone(make):
    x = image(make())
    transformer = trained(make(), x, (3, 5, 6))
    transformer(x)
    assert list(transformer.state_dict()) == [
        f"localisation.{name}" for name in transformer.localisation.state_dict()
    ]


def test_the_settings_are_shown():
    fill = torch.tensor([0.25, 0.5])
    shown = SpatialTransformer(
        Given(None), Affine(), [5, 6], "nearest", fill, 2, second_order=True
    ).extra_repr()
    options = "parallel=2, antialias=False, second_order=True"
    assert shown == f"output_size=(5, 6), mode='nearest', fill=(0.25, 0.5), {options}"


# Refusals


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (Affine, {"output_size": (5,)}, r"output_size must be 2 positive integers, got \("),
        (Affine, {"output_size": (5, 6, 7)}, r"output_size must be 2 positive integers, got \("),
        (Affine, {"output_size": (5.5, 6)}, r"output_size must be 2 positive integers, got \("),
        (Affine, {"output_size": (0, 5)}, r"output_size must be 2 positive integers, got \("),
        (Affine3d, {"output_size": (5, 6)}, r"output_size must be 3 positive integers, got \("),
        (Affine3d, {"output_size": (1, 2, -3)}, r"output_size must be 3 positive integers, got \("),
        (Affine, {"mode": "bicubic"}, "mode must be 'bilinear' or 'nearest', got 'bicubic'"),
        (
            Affine,
            {"mode": "nearest", "antialias": True},
            "mode must be 'bilinear' with antialias, got 'nearest'",
        ),
        (Affine, {"parallel": 0}, "parallel must be at least 1, got 0"),
        (Affine, {"parallel": -1}, "parallel must be at least 1, got -1"),
    ],
)
def test_invalid_arguments_are_refused(make, options, message):
    with pytest.raises(ValueError, match=message):
        SpatialTransformer(nn.Identity(), make(), **options)


def test_a_class_in_place_of_a_transform_is_refused():
    with pytest.raises(TypeError, match=r"transform must be an object such as Affine\(\), got <cl"):
        SpatialTransformer(nn.Identity(), Affine)


@pytest.mark.parametrize(
    ("shape", "parallel"),
    [*((shape, 1) for shape in [(2, 5), (2, 12), (3, 6), (6,), (2, 1, 6)]), ((2, 6), 3)],
    ids=str,
)
def test_a_theta_that_does_not_fit_is_refused(shape, parallel):
    expected = rf"\(2, {6 * parallel}\) for {parallel} x Affine\(\), got \("
    with pytest.raises(ValueError, match=f"output of the localisation network must be {expected}"):
        SpatialTransformer(Given(torch.zeros(shape)), Affine(), parallel=parallel)(
            random(2, 1, 9, 7)
        )


@pytest.mark.parametrize("parallel", [1, 2])
def test_a_given_theta_takes_the_place_of_the_regressed_one(parallel):
    transform = Attention()
    start = torch.tensor([[0.5, 0.1, 0.2]] * parallel)
    transformer = SpatialTransformer(
        FcLocalisation((1, 8, 8), transform, start=start), transform, (4, 4), parallel=parallel
    )
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(transformer(x, theta=start.flatten().expand(2, -1)), transformer(x))
    assert not torch.equal(
        transformer(x, theta=start.flatten().expand(2, -1) + 0.1), transformer(x)
    )
    with pytest.raises(ValueError, match=f"theta must be .2, {3 * parallel}.* got .2, 5"):
        transformer(x, theta=torch.zeros(2, 5))


def test_nearest_mode_warns_of_a_localisation_network_that_cannot_train():
    with pytest.warns(UserWarning, match="mode='nearest' has no gradient for theta"):
        untrained(Affine(), (1, 9, 7), mode="nearest")


def test_nearest_mode_does_not_warn_of_a_frozen_localisation_network(recwarn):
    frozen = FcLocalisation((1, 9, 7), Affine()).requires_grad_(False)
    SpatialTransformer(frozen, Affine(), mode="nearest")
    assert not recwarn.list


def test_parallel_windows_are_antialiased_each_for_itself():
    x = torch.rand(2, 1, 24, 24)
    theta = torch.tensor([[1.0, 0, 0, 0.5, 0.2, 0.1]]).repeat(2, 1)
    together = SpatialTransformer(Given(theta), Attention(), (6, 6), parallel=2, antialias=True)(x)
    alone = [
        SpatialTransformer(Given(one), Attention(), (6, 6), antialias=True)(x)
        for one in theta.chunk(2, dim=1)
    ]
    torch.testing.assert_close(together, torch.cat(alone, dim=1))
    torch.testing.assert_close(together[:, :1], torch.nn.functional.avg_pool2d(x, 4))

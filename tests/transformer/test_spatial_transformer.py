"""Test the spatial transformer as a module."""

import copy

import pytest
import torch
from families import both_modes, every_family
from torch import nn

from spatial_transformer import (
    Affine,
    Affine3d,
    Attention,
    ConvLocalisation,
    FcLocalisation,
    Projective,
    SpatialTransformer,
    ThinPlateSpline,
    sample,
)

SIZES = [(28, 28), (42, 42), (60, 60), (64, 64), (33, 17), (224, 224)]


class Given(nn.Module):
    """Stands for a localisation network: gives the thetas that it was made with."""

    def __init__(self, theta):
        super().__init__()
        self.theta = theta

    def forward(self, x):
        return self.theta


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def thetas(transform, batch, parallel=1, seed=1):
    """Random thetas around the identity, ``(batch, parallel * n_params)``."""
    return transform.identity().repeat(parallel) + 0.2 * random(
        batch, parallel * transform.n_params, seed=seed
    )


def image(transform, batch=3, channels=2):
    return random(batch, channels, *(4, 9, 7)[-transform.dims :])


def untrained(transform, in_shape, **options):
    return SpatialTransformer(
        FcLocalisation(in_shape, transform, hidden=(8,)), transform, **options
    )


def trained(transform, x, parallel=1, **options):
    """A transformer whose theta depends on its input, and stays near the identity."""
    start = transform.identity().repeat(parallel, 1)
    localisation = FcLocalisation(x.shape[1:], transform, hidden=(8,), start=start)
    for layer in (localisation[1], localisation[-1]):
        nn.init.normal_(layer.weight, std=0.05)
    return SpatialTransformer(localisation, transform, parallel=parallel, **options)


# Start


@both_modes
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("make", [Affine, Attention, Projective, ThinPlateSpline])
@pytest.mark.filterwarnings("ignore:mode='nearest'")
def test_at_the_start_the_input_is_returned(make, size, mode):
    x = torch.rand(2, 1, *size)
    tolerance = max(2e-6, 3e-5 * max(size) / 224)
    torch.testing.assert_close(
        untrained(make(), (1, *size), mode=mode)(x), x, rtol=0, atol=tolerance
    )


@pytest.mark.parametrize("size", [(4, 4, 4), (5, 7, 9), (3, 28, 28)], ids=str)
def test_at_the_start_a_volume_is_returned(size):
    x = torch.rand(2, 1, *size)
    torch.testing.assert_close(untrained(Affine3d(), (1, *size))(x), x, rtol=0, atol=2e-6)


def test_at_the_start_a_fixed_scale_of_a_half_crops_the_centre():
    x = torch.rand(2, 3, 28, 60)
    crop = untrained(Attention(scale=0.5), (3, 28, 60), output_size=(14, 30))(x)
    torch.testing.assert_close(crop, x[..., 7:21, 15:45], rtol=0, atol=8e-6)


# One transformer


@every_family
@both_modes
def test_the_output_is_the_sample_at_the_grid_of_theta(make, mode):
    transform = make()
    x, theta = image(transform), thetas(transform, 3)
    size = (3, 5, 6)[-transform.dims :]
    expected = sample(x, transform.grid(theta, size), mode, 0.3)
    assert torch.equal(SpatialTransformer(Given(theta), transform, size, mode, 0.3)(x), expected)


@every_family
def test_theta_is_returned_on_demand(make):
    transform = make()
    x, theta = image(transform), thetas(transform, 3)
    out, returned = SpatialTransformer(Given(theta), transform)(x, return_theta=True)
    assert torch.equal(returned, theta)
    assert out.shape == x.shape


@pytest.mark.parametrize("output_size", [None, (5, 6), (20, 30), [9, 7], (1, 1)], ids=str)
def test_the_output_has_the_size_that_is_asked_or_that_of_the_input(output_size):
    x = random(3, 2, 9, 7)
    out = SpatialTransformer(Given(thetas(Affine(), 3)), Affine(), output_size)(x)
    assert out.shape == (3, 2, *(output_size or (9, 7)))


def test_without_an_output_size_inputs_of_several_sizes_are_taken():
    transformer = SpatialTransformer(Given(thetas(Affine(), 2)), Affine())
    for size in [(9, 7), (4, 5), (9, 7)]:
        assert transformer(random(2, 1, *size)).shape == (2, 1, *size)


@every_family
def test_a_sample_is_warped_in_a_batch_as_alone(make):
    transform = make()
    x = image(transform)
    transformer = trained(transform, x)
    alone = torch.cat([transformer(one[None]) for one in x])
    torch.testing.assert_close(transformer(x), alone, rtol=0, atol=1e-4)


def test_no_gradient_passes_from_one_sample_to_another():
    x = random(3, 2, 9, 7).requires_grad_()
    trained(Affine(), x)(x)[1].square().sum().backward()
    assert torch.equal(x.grad[[0, 2]], torch.zeros(2, 2, 9, 7))
    assert x.grad[1].abs().sum() > 0


@every_family
def test_the_localisation_network_learns_through_the_sampler(make):
    transform = make()
    x = image(transform)
    transformer = trained(transform, x)
    transformer(x).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in transformer.parameters())


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


@both_modes
def test_gradients_in_parallel_are_those_of_as_many_alone(mode):
    gradients = []
    for parallel in (2, 1):
        x, theta = (
            random(3, 2, 9, 7).requires_grad_(),
            thetas(Affine(), 3, parallel=2).requires_grad_(),
        )
        parts = theta.chunk(2 // parallel, dim=1)
        out = [
            SpatialTransformer(Given(part), Affine(), (5, 6), mode, parallel=parallel)(x)
            for part in parts
        ]
        gradients.append(torch.autograd.grad(torch.cat(out, dim=1).square().sum(), (x, theta)))
    for in_parallel, alone in zip(*gradients):
        torch.testing.assert_close(in_parallel, alone, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("output_size", [None, (5, 6)], ids=str)
def test_theta_in_parallel_is_one_row_for_each_transformer(output_size):
    theta = thetas(Affine(), 4, parallel=2)
    transformer = SpatialTransformer(Given(theta), Affine(), output_size, parallel=2)
    out, returned = transformer(random(4, 3, 9, 7), return_theta=True)
    assert torch.equal(returned, theta.reshape(4, 2, 6))
    assert out.shape == (4, 6, *(output_size or (9, 7)))


def test_in_parallel_each_transformer_starts_where_it_is_told():
    x, transform = random(2, 3, 28, 28), Attention(scale=0.5)
    localisation = ConvLocalisation(
        (3, 28, 28), transform, start=torch.tensor([[-0.5, -0.5], [0.5, 0.5]])
    )
    out = SpatialTransformer(localisation, transform, (14, 14), parallel=2)(x)
    expected = torch.cat([x[..., :14, :14], x[..., 14:, 14:]], dim=1)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


def test_transformers_in_series_at_several_depths_learn_together():
    first = trained(Affine(), random(2, 1, 12, 12))
    second = trained(ThinPlateSpline(), random(2, 4, 10, 10), output_size=(5, 5))
    network = nn.Sequential(first, nn.Conv2d(1, 4, 3), second)
    out = network(random(2, 1, 12, 12))
    out.square().sum().backward()
    assert out.shape == (2, 4, 5, 5)
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_transformers_in_series_at_the_start_return_the_input():
    x = torch.rand(2, 3, 42, 28)
    series = nn.Sequential(
        *[untrained(make(), x.shape[1:]) for make in (Affine, Attention, Affine)]
    )
    torch.testing.assert_close(series(x), x, rtol=0, atol=2e-5)


def test_two_affine_transformers_in_series_are_their_product_on_a_smooth_image():
    row = torch.linspace(-1, 1, 41)
    x = (torch.exp(-12 * (row[:, None] ** 2 + (row[None] - 0.2) ** 2)))[None, None]
    first, second = (
        torch.tensor([[0.9, 0.1, 0.0], [-0.1, 0.9, 0.05]]),
        torch.tensor([[0.95, 0.0, 0.1], [0.0, 0.9, 0.0]]),
    )
    product = (
        torch.vstack([first, torch.tensor([0, 0, 1.0])])
        @ torch.vstack([second, torch.tensor([0, 0, 1.0])])
    )[:2]

    def warp(matrix):
        return SpatialTransformer(Given(matrix.reshape(1, 6)), Affine())

    torch.testing.assert_close(
        nn.Sequential(warp(first), warp(second))(x), warp(product)(x), rtol=0, atol=0.02
    )


# Precision


@every_family
def test_theta_is_float32_and_the_warp_unrounded_under_autocast(make):
    transform = make()
    x, theta = image(transform), thetas(transform, 3)
    transformer = SpatialTransformer(Given(theta), transform, fill=0.3)
    expected = transformer(x)
    with torch.autocast("cpu", torch.bfloat16):
        out, returned = transformer(x, return_theta=True)
    assert returned.dtype == torch.float32
    assert torch.equal(out, expected)


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
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
    transform = make()
    x = image(transform)
    transformer = trained(transform, x)
    transformer(x)
    assert list(transformer.state_dict()) == [
        f"localisation.{name}" for name in transformer.localisation.state_dict()
    ]


def test_a_state_dict_gives_another_transformer_the_same_warp():
    x = random(2, 1, 9, 7)
    source, target = trained(Affine(), x), untrained(Affine(), x.shape[1:])
    target.load_state_dict(source.state_dict())
    assert torch.equal(target(x), source(x))


@every_family
def test_a_deep_copy_of_a_used_transformer_is_its_own_and_warps_alike(make):
    transform = make()
    x = image(transform)
    transformer = trained(transform, x)
    expected = transformer(x)
    copied = copy.deepcopy(transformer)
    assert torch.equal(copied(x), expected)
    nn.init.constant_(copied.localisation[-1].bias, 0.3)
    assert torch.equal(transformer(x), expected)
    assert not torch.equal(copied(x), expected)


def test_the_settings_are_shown():
    fill = torch.tensor([0.25, 0.5])
    shown = SpatialTransformer(
        Given(None), Affine(), (5, 6), "nearest", fill, 2, second_order=True
    ).extra_repr()
    options = "parallel=2, antialias=False, second_order=True"
    assert shown == f"output_size=(5, 6), mode='nearest', fill=(0.25, 0.5), {options}"


# Refusals


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (Affine, (5,)),
        (Affine, (5, 6, 7)),
        (Affine, (0, 5)),
        (Affine3d, (5, 6)),
        (Affine3d, (1, 2, -3)),
    ],
)
def test_an_output_size_that_does_not_fit_is_refused(make, wrong):
    with pytest.raises(
        ValueError, match=rf"output_size must be {make().dims} positive sizes, got \("
    ):
        SpatialTransformer(nn.Identity(), make(), wrong)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="mode must be 'bilinear' or 'nearest', got 'bicubic'"):
        SpatialTransformer(nn.Identity(), Affine(), mode="bicubic")


def test_antialiasing_in_nearest_mode_is_refused():
    with pytest.raises(ValueError, match="mode must be 'bilinear' with antialias, got 'nearest'"):
        SpatialTransformer(nn.Identity(), Affine(), mode="nearest", antialias=True)


@pytest.mark.parametrize("parallel", [0, -1])
def test_less_than_one_transformer_is_refused(parallel):
    with pytest.raises(ValueError, match=f"parallel must be at least 1, got {parallel}"):
        SpatialTransformer(nn.Identity(), Affine(), parallel=parallel)


@pytest.mark.parametrize("shape", [(2, 5), (2, 12), (3, 6), (6,), (2, 1, 6)], ids=str)
def test_a_theta_that_does_not_fit_is_refused(shape):
    message = r"output of the localisation network must be \(2, 6\) for 1 x Affine\(\), got \("
    with pytest.raises(ValueError, match=message):
        SpatialTransformer(Given(torch.zeros(shape)), Affine())(random(2, 1, 9, 7))


def test_too_few_thetas_for_the_transformers_in_parallel_are_refused():
    with pytest.raises(ValueError, match=r"must be \(2, 18\) for 3 x Affine\(\), got \(2, 6\)"):
        SpatialTransformer(Given(torch.zeros(2, 6)), Affine(), parallel=3)(random(2, 1, 9, 7))


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

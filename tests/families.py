"""The families of transformations that tests are parametrised with, and inputs for them."""

import pytest
import torch
from torch import nn

from spatial_transformer import FcLocalisation, SpatialTransformer, sample
from spatial_transformer.transformer import Affine, Affine3d, Attention, Projective, ThinPlateSpline

FAMILIES = {
    "affine": Affine,
    "attention": Attention,
    "attention_fixed": lambda: Attention(scale=0.5),
    "projective": Projective,
    "tps": ThinPlateSpline,
    "tps_3x5": lambda: ThinPlateSpline((3, 5)),
    "affine3d": Affine3d,
}
every_family = pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES.keys())
every_class = pytest.mark.parametrize(
    "make", [Affine, Attention, Projective, ThinPlateSpline, Affine3d]
)
both_modes = pytest.mark.parametrize("mode", ["bilinear", "nearest"])
half_precision = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def since_torch(version: str) -> pytest.MarkDecorator:
    """Skip a test of what the operators of an older PyTorch cannot do."""
    is_older = torch.__version__ < version  # a TorchVersion, which compares by number
    return pytest.mark.skipif(is_older, reason=f"needs PyTorch {version}")


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def thetas(transform, batch=2, spread=0.2, dtype=torch.float32, seed=1, parallel=1):
    """Random thetas around the identity, ``(batch, parallel * n_params)``."""
    noise = random(batch, parallel * transform.n_params, dtype=dtype, seed=seed)
    return transform.identity().to(dtype).repeat(parallel) + spread * noise


def image(transform):
    return random(3, 2, *(4, 9, 7)[-transform.dims :])


def trained(transform, x, size=None, **options):
    """A transformer whose theta depends on its input, and stays near the identity."""
    torch.manual_seed(0)
    localisation = FcLocalisation(x.shape[1:], transform, hidden=(8,))
    for layer in (localisation[1], localisation[-1]):
        nn.init.normal_(layer.weight, std=0.05)
    with torch.no_grad():  # off the kinks at pixel centres
        localisation[-1].bias += 0.02 * torch.randn_like(localisation[-1].bias)
    output_size = None if size is None else size[-transform.dims :]
    return SpatialTransformer(localisation, transform, output_size, **options)


def small_warp(transform, mode="bilinear"):
    size = (2, 3, 4)[-transform.dims :]
    return lambda x, theta: sample(x, transform.grid(theta, size), mode)


def small_inputs(transform):
    """A float64 image and thetas for :func:`small_warp`, with gradients."""
    x = random(2, 2, *(3, 4, 5)[-transform.dims :], dtype=torch.float64)
    theta = thetas(transform, dtype=torch.float64)
    return x.requires_grad_(), theta.requires_grad_()

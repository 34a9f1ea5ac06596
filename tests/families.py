"""The families of transformations that tests are parametrised with."""

import pytest
import torch

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


def since_torch(version: str) -> pytest.MarkDecorator:
    """Skip a test of what the operators of an older PyTorch cannot do."""
    is_older = torch.__version__ < version  # a TorchVersion, which compares by number
    return pytest.mark.skipif(is_older, reason=f"needs PyTorch {version}")

"""Run the conformance suite of tests/conformance on several libraries.

Writes results/conformance.json: python scripts/dev/conformance.py. `make tables` then updates the
table in docs/reference/conformance.md.
"""

from __future__ import annotations

import hashlib
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import spatial_transformer
from spatial_transformer import Affine, Affine3d, Projective, ThinPlateSpline, sample
from spatial_transformer.transformer import Transform, pixel_centres
from spatial_transformer.utils.files import write_json

ROOT = Path(__file__).parents[2]
SUITE = ROOT / "tests" / "conformance"
RESULT = ROOT / "results" / "conformance.json"

sys.path.append(str(SUITE))

from suite import GOLDEN, NOT_SUPPORTED, Adapter, run_suite, summarize  # noqa: E402

Size = Sequence[int]
Fill = float | Sequence[float]


def spatial_transformer_adapter() -> Adapter:
    """Return the adapter of this project."""

    def adapt(transform: Transform) -> Callable[..., Tensor]:
        def warp(
            x: Tensor,
            theta: Tensor,
            size: Size,
            mode: str = "bilinear",
            fill: Fill = 0.0,
        ) -> Tensor:
            return sample(x, transform.grid(theta, size), mode, fill)

        return warp

    return {
        "affine": adapt(Affine()),
        "projective": adapt(Projective()),
        "tps": adapt(ThinPlateSpline()),
        "affine3d": adapt(Affine3d()),
    }


def torch_adapter() -> Adapter:
    """Return the adapter of PyTorch's ``affine_grid`` and ``grid_sample``."""

    def warp(x: Tensor, theta: Tensor, size: Size, mode: str = "bilinear") -> Tensor:
        matrix, shape = _matrix(theta, len(size)), [*x.shape[:2], *size]
        grid = F.affine_grid(matrix, shape, align_corners=False)
        return F.grid_sample(x, grid, mode, align_corners=False)

    return {"affine": warp, "affine3d": warp}


def torchvision_adapter() -> Adapter:
    """Return the adapter of torchvision's ``perspective``.

    It takes eight numbers, which map pixels of the output to pixels of the input, with a corner of
    the image as origin. ``affine`` takes an angle, scale and shear instead, which cannot express a
    reflection.
    """
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import perspective

    def warp(
        x: Tensor,
        theta: Tensor,
        size: Size,
        mode: str = "bilinear",
        fill: Fill | None = None,
    ) -> Tensor:
        if tuple(size) != x.shape[2:]:
            raise NotImplementedError("the output has the size of the input")
        to_pixels = _scaling(size, first=0.5)
        matrices = to_pixels @ _homography(theta.detach()) @ to_pixels.inverse()
        outputs = []
        for image, matrix in zip(x, matrices, strict=True):
            coefficients = (matrix / matrix[2, 2]).flatten()[:8].tolist()
            interpolation = InterpolationMode(mode)
            outputs.append(perspective(image, None, None, interpolation, fill, coefficients))
        return torch.stack(outputs)

    return {"affine": warp, "projective": warp}


def kornia_adapter() -> Adapter:
    """Return the adapter of kornia's ``homography_warp`` and ``warp_image_tps``.

    Matrices are in pixels, with the centre of the first pixel as origin: in normalised coordinates,
    kornia rounds the grid to bfloat16 under autocast and aligns the corners of a volume. Only
    ``warp_perspective`` takes a fill. Its matrix is the inverse, from the input to the output.
    """
    import kornia.geometry.transform as kornia

    in_pixels: dict[str, Any] = {"align_corners": False, "normalized_coordinates": False}

    def to_source(x: Tensor, theta: Tensor, size: Size) -> Tensor:
        matrix = _scaling(x.shape[2:]) @ _homography(theta, len(size)) @ _scaling(size).inverse()
        return matrix.to(theta.dtype)

    def warp(
        x: Tensor,
        theta: Tensor,
        size: Size,
        mode: str = "bilinear",
        fill: Fill | None = None,
    ) -> Tensor:
        matrix, size = to_source(x, theta, size), (size[0], size[1])
        if fill is None:
            return kornia.homography_warp(x, matrix, size, mode, **in_pixels)
        value = torch.as_tensor(fill, dtype=x.dtype).view(-1)
        filled: Any = {"padding_mode": "fill", "fill_value": value, "align_corners": False}
        return kornia.warp_perspective(x, matrix.inverse(), size, mode, **filled)

    def warp_3d(x: Tensor, theta: Tensor, size: Size, mode: str = "bilinear") -> Tensor:
        matrix, size = to_source(x, theta, size), (size[0], size[1], size[2])
        return kornia.homography_warp3d(x, matrix, size, mode, **in_pixels)

    control = ThinPlateSpline().identity().view(2, 16).T

    def warp_tps(x: Tensor, theta: Tensor, size: Size) -> Tensor:
        if tuple(size) != x.shape[2:]:
            raise NotImplementedError("the output has the size of the input")
        source = theta.view(-1, 2, 16).mT
        kernel, affine = kornia.get_tps_transform(control.expand_as(source), source)
        return kornia.warp_image_tps(x, source, kernel, affine, align_corners=False)

    return {"affine": warp, "projective": warp, "affine3d": warp_3d, "tps": warp_tps}


def monai_adapter() -> Adapter:
    """Return the adapter of MONAI's ``AffineTransform``."""
    from monai.networks.layers import AffineTransform

    def warp(x: Tensor, theta: Tensor, size: Size, mode: str = "bilinear") -> Tensor:
        layer = AffineTransform(
            spatial_size=tuple(size),
            normalized=True,
            mode=mode,
            padding_mode="zeros",
            align_corners=False,
            reverse_indexing=False,
        )
        return layer(x, _matrix(theta, len(size)))

    return {"affine": warp, "affine3d": warp}


def torch_tps_adapter() -> Adapter:
    """Return the adapter of torch-tps, whose points we sample with ``grid_sample``."""
    from torch_tps import ThinPlateSpline as Spline

    control = ThinPlateSpline().identity().view(2, 16).T

    def warp(x: Tensor, theta: Tensor, size: Size) -> Tensor:
        spline = Spline().fit(control, theta.view(-1, 16).T)
        points = spline.transform(pixel_centres(tuple(size), torch.float32).T)
        grid = points.view(*size, len(theta), 2).permute(2, 0, 1, 3)
        return F.grid_sample(x, grid, align_corners=False)

    return {"tps": warp}


ADAPTERS: dict[str, Callable[[], Adapter]] = {
    "spatial-transformer": spatial_transformer_adapter,
    "torch": torch_adapter,
    "torchvision": torchvision_adapter,
    "kornia": kornia_adapter,
    "monai": monai_adapter,
    "torch-tps": torch_tps_adapter,
}
"""Adapters by the name of their distribution."""


def _matrix(theta: Tensor, dims: int) -> Tensor:
    return theta.view(-1, dims, dims + 1)


def _homography(theta: Tensor, dims: int = 2) -> Tensor:
    """Return float64 matrices on homogeneous coordinates: ``(B, dims + 1, dims + 1)``."""
    last_row = torch.eye(dims + 1, dtype=torch.float64)[-1]
    missing = last_row[theta.shape[1] - dims * (dims + 1) :].expand(len(theta), -1)
    return torch.cat([theta.double(), missing], dim=1).view(-1, dims + 1, dims + 1)


def _scaling(size: Size, first: float = 0.0) -> Tensor:
    """Return the float64 matrix from [-1, 1] to pixels, where the first centre is ``first``."""
    half = torch.tensor(list(reversed(size)), dtype=torch.float64) / 2
    matrix = torch.diag(torch.cat([half, torch.ones(1)]))
    matrix[:-1, -1] = half - 0.5 + first
    return matrix


def library_version(library: str) -> str:
    """Return the version of a distribution, or of this project."""
    if library == "spatial-transformer":
        return spatial_transformer.__version__
    return version(library).split("+")[0]


def golden_digest() -> str:
    """Return the SHA-256 of the golden file, which tells whether a result is up to date."""
    return hashlib.sha256(GOLDEN.read_bytes()).hexdigest()


def run_library(library: str) -> list[dict]:
    """Return a row for each group, with its library and version."""
    results = run_suite(ADAPTERS[library]())
    for result in results:
        if result.status not in ("passed", NOT_SUPPORTED):
            print(f"{library}: {result.group}: {result.case}: {result.message}", flush=True)
    about = {"library": library, "version": library_version(library)}
    return [about | row for row in summarize(results)]


def main() -> None:
    """Run all libraries and write the result file."""
    ArgumentParser(description=__doc__).parse_args()
    rows = [row for library in ADAPTERS for row in run_library(library)]
    write_json({"golden": golden_digest(), "rows": rows}, RESULT)


if __name__ == "__main__":
    main()

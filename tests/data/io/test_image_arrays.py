"""Arrays, tensors and PIL images as input of predict_images."""

import numpy as np
import pytest
import torch
from photographs import photograph
from PIL import Image

from spatial_transformer.data.io.image_arrays import to_pictures


@pytest.fixture
def strokes(digits):
    """Return five black and white images, ``(5, 28, 28)`` uint8."""
    return (digits[:5, 0] > 0.5).byte().numpy() * 255


def make_transparent(x):
    """Return light ink on nothing."""
    white = Image.new("L", x.shape[::-1], 255)
    return Image.merge("RGBA", (white, white, white, Image.fromarray(x)))


ONE_IMAGE = {
    "array (H, W)": lambda x: x,
    "array (H, W, 1)": lambda x: x[..., None],
    "array (H, W, 3)": lambda x: x[..., None].repeat(3, -1),
    "array (H, W, 4)": lambda x: np.stack([x, x, x, np.full_like(x, 255)], -1),
    "float64 array": lambda x: x / 255,
    "float32 array": lambda x: x.astype(np.float32) / 255,
    "float16 array": lambda x: (x / 255).astype(np.float16),
    "array with a negative stride": lambda x: x[::-1].copy()[::-1],
    "array with a rounding error": lambda x: x / 255 * (1 + 2e-5) - 1e-5,
    "tensor (H, W)": torch.from_numpy,
    "tensor (1, H, W)": lambda x: torch.from_numpy(x)[None],
    "tensor (3, H, W)": lambda x: torch.from_numpy(x).expand(3, -1, -1),
    "float32 tensor with a gradient": lambda x: (torch.from_numpy(x) / 255).requires_grad_(),
    "bfloat16 tensor": lambda x: (torch.from_numpy(x) / 255).bfloat16(),
    "grey PIL image": Image.fromarray,
    "RGB PIL image": lambda x: Image.fromarray(x).convert("RGB"),
    "transparent PIL image": make_transparent,
}
BATCHES = {
    "array (B, H, W)": lambda x: x,
    "array (B, H, W, 1)": lambda x: x[..., None],
    "float array (B, H, W, 3)": lambda x: x[..., None].repeat(3, -1) / 255,
    "tensor (B, 1, H, W)": lambda x: torch.from_numpy(x)[:, None] / 255,
    "tensor (B, 3, H, W)": lambda x: torch.from_numpy(x)[:, None].expand(-1, 3, -1, -1),
    "list of arrays": list,
    "tuple of PIL images": lambda x: tuple(Image.fromarray(one) for one in x),
    "list of all kinds": lambda x: [Image.fromarray(x[0]), x[1:4] / 255, torch.from_numpy(x[4])],
}


@pytest.mark.parametrize("convert", ONE_IMAGE.values(), ids=ONE_IMAGE)
def test_one_image(strokes, convert):
    (picture,) = to_pictures(convert(strokes[0]))
    assert np.array_equal(np.asarray(picture), strokes[0][..., None].repeat(3, -1))


@pytest.mark.parametrize("convert", BATCHES.values(), ids=BATCHES)
def test_batch(strokes, convert):
    pictures = to_pictures(convert(strokes))
    assert np.array_equal(np.stack(pictures), strokes[..., None].repeat(3, -1))


def test_different_sizes_and_colours():
    pictures = [photograph("4"), photograph("7", size=(300, 200))]
    tensor = torch.from_numpy(np.array(pictures[1])).permute(2, 0, 1)
    assert to_pictures([np.asarray(pictures[0]) / 255, tensor]) == pictures


WRONG = {
    "empty list": ([], ValueError, "at least one image"),
    "empty batch": (np.zeros((0, 9, 9)), ValueError, "at least one image"),
    "no pixels": (
        torch.zeros(2, 1, 0, 9),
        ValueError,
        r"at least one pixel, got shape \(0, 9, 1\)",
    ),
    "one axis": (np.zeros(42), ValueError, r"\(H, W\).* got \(42,\)"),
    "array (B, C, H, W)": (np.zeros((2, 3, 9, 9)), ValueError, r"got \(2, 3, 9, 9\)"),
    "tensor (B, H, W, C)": (torch.zeros(2, 9, 9, 3), ValueError, r"got \(2, 9, 9, 3\)"),
    "int64": (np.zeros((9, 9), int), TypeError, "uint8, or floating point .* got int64"),
    "bool": (torch.zeros(9, 9).bool(), TypeError, "got bool"),
    "text": ("digit.png", TypeError, "got str"),
    "list of lists": ([[[0.0]]], TypeError, "got list"),
    "NaN": (np.full((9, 9), np.nan), ValueError, r"^images\[0\]: .* from nan to nan"),
    "third": (
        [np.zeros((2, 9, 9)), -torch.ones(1, 9, 9)],
        ValueError,
        r"^images\[2\]: .* -1 to -1",
    ),
    "up to 255": (np.linspace(0, 255, 81).reshape(9, 9), ValueError, "got values from 0 to 255"),
    "PIL image of NaN": (Image.new("F", (5, 5), float("nan")), ValueError, "must be finite"),
    "infinite PIL image": (Image.new("F", (5, 5), float("inf")), ValueError, "must be finite"),
}


@pytest.mark.parametrize(("images", "error", "message"), WRONG.values(), ids=WRONG)
def test_wrong_images_are_refused(images, error, message):
    with pytest.raises(error, match=message):
        to_pictures(images)

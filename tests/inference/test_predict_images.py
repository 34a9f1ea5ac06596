"""Predictions for images in memory."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import REPOSITORY
from omegaconf import OmegaConf
from photographs import STROKES, photograph
from PIL import Image

from spatial_transformer.inference.load import Trained, load_trained
from spatial_transformer.inference.predict import predict, predict_images
from spatial_transformer.training.build import build
from spatial_transformer.utils.errors import UsageError

ST_CNN = REPOSITORY / "checkpoints" / "st_cnn_mnist.pt"


@pytest.fixture(scope="module")
def trained():
    return load_trained(str(ST_CNN))


@pytest.fixture
def strokes(digits):
    """Return five black and white images of the network's size, ``(5, 42, 42)`` uint8."""
    return F.pad((digits[:5, 0] > 0.5).byte() * 255, (7, 7, 7, 7)).numpy()


def make_untrained(config):
    """Return a network with random weights as load_trained returns a trained one."""
    torch.manual_seed(0)
    return Trained(config, *build(config), {})


def test_photographs_are_predicted_as_by_the_program(trained, tmp_path):
    photographs = {digit: photograph(digit, angle=20) for digit in STROKES}
    (tmp_path / "pictures").mkdir()
    for digit, picture in photographs.items():
        picture.save(tmp_path / "pictures" / f"{digit}.png")
    paths = {"run": ST_CNN, "images": tmp_path / "pictures", "out": tmp_path / "out"}
    settings = {name: str(path) for name, path in paths.items()}
    settings |= {"checkpoint": "best", "data": {"root": None}}
    expected = predict(OmegaConf.create(settings))
    found = predict_images(trained, list(photographs.values()))
    assert found.texts == [one.text for one in expected] == list(STROKES)
    assert found.confidences.tolist() == pytest.approx([one.confidence for one in expected])
    torch.testing.assert_close(found.thetas[0], torch.tensor([one.theta for one in expected]))


def test_the_outputs_are_those_of_the_network(trained, strokes):
    found = predict_images(trained, strokes)
    inputs = torch.from_numpy(strokes)[:, None] / 255
    assert torch.equal(found.inputs, inputs)
    network = trained.task.network
    with torch.no_grad():
        probabilities = network(inputs).softmax(dim=1)
        crop, theta = network.transformer(inputs, return_theta=True)
    torch.testing.assert_close(found.confidences, probabilities.amax(dim=1))
    assert torch.equal(found.labels, probabilities.argmax(dim=1))
    assert found.texts == [str(label) for label in found.labels.tolist()]
    torch.testing.assert_close((found.thetas, found.crops), ((theta,), (crop,)))


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
    "transparent PIL image": lambda x: _with_opacity(x),
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


def _with_opacity(x):
    """Return light ink on nothing."""
    white = Image.new("L", x.shape[::-1], 255)
    return Image.merge("RGBA", (white, white, white, Image.fromarray(x)))


@pytest.mark.parametrize("convert", ONE_IMAGE.values(), ids=ONE_IMAGE)
def test_one_image_of_any_kind_is_the_same_image(trained, strokes, convert):
    found = predict_images(trained, convert(strokes[0]))
    assert torch.equal(found.inputs, torch.from_numpy(strokes[:1])[:, None] / 255)
    assert len(found.texts) == len(found.labels) == len(found.thetas[0]) == 1


@pytest.mark.parametrize("convert", BATCHES.values(), ids=BATCHES)
def test_a_batch_of_any_kind_is_the_same_batch(trained, strokes, convert):
    found = predict_images(trained, convert(strokes))
    assert torch.equal(found.inputs, torch.from_numpy(strokes)[:, None] / 255)
    assert len(found.texts) == 5


def test_images_of_different_sizes_and_colours_are_one_batch(trained):
    pictures = [photograph("4"), photograph("7", size=(300, 200))]
    tensor = torch.from_numpy(np.array(pictures[1])).permute(2, 0, 1)
    found = predict_images(trained, [np.asarray(pictures[0]) / 255, tensor])
    assert found.texts == ["4", "7"]
    assert torch.equal(found.inputs, predict_images(trained, pictures).inputs)


def test_a_pil_image_is_turned_upright_as_a_file_is(trained, strokes, tmp_path):
    lying = Image.fromarray(strokes[0]).transpose(Image.Transpose.ROTATE_90)
    tags = lying.getexif()
    tags[0x0112] = 6  # turn by a quarter, clockwise
    lying.save(tmp_path / "lying.png", exif=tags)
    with Image.open(tmp_path / "lying.png") as picture:
        found = predict_images(trained, picture)
    assert torch.equal(found.inputs[0, 0], torch.from_numpy(strokes[0]) / 255)


def test_many_images_are_predicted_as_a_few_are(trained, strokes):
    many = predict_images(trained, np.tile(strokes, (25, 1, 1)))
    few = predict_images(trained, strokes)
    assert many.texts == few.texts * 25
    assert torch.equal(many.labels, few.labels.repeat(25))
    for name in ("confidences", "inputs"):
        torch.testing.assert_close(getattr(many, name), torch.cat([getattr(few, name)] * 25))
    torch.testing.assert_close(many.thetas[0], few.thetas[0].repeat(25, 1))
    torch.testing.assert_close(many.crops[0], few.crops[0].repeat(25, 1, 1, 1))


def test_a_network_in_training_is_evaluated_and_remains_in_training(composed, strokes):
    untrained = make_untrained(composed("model=fcn", "data.distortion=rts", "recipe.dropout=0.9"))
    untrained.task.train()
    found = predict_images(untrained, strokes)
    assert untrained.task.training
    logits = untrained.task.eval().network(found.inputs)
    torch.testing.assert_close(found.confidences, logits.softmax(dim=1).amax(dim=1).detach())


def test_a_network_without_a_transformer_has_neither_theta_nor_crops(composed, strokes):
    found = predict_images(make_untrained(composed("model=fcn", "data.distortion=rts")), strokes)
    assert found.thetas == found.crops == ()
    assert found.labels.shape == (5,)


def test_a_number_has_a_label_for_each_position(composed, tmp_path):
    settings = ["experiment=svhn_st_multi", "model.width=0.05", f"data.root={tmp_path}"]
    found = predict_images(make_untrained(composed(*settings)), np.random.rand(2, 90, 40, 3))
    assert found.labels.shape == (2, 5)
    digits = [[str(n) for n in number if n < 10] for number in found.labels.tolist()]
    assert found.texts == ["".join(number) for number in digits]
    assert [tuple(theta.shape) for theta in found.thetas] == [(2, 6)] * 4
    assert [crop.shape[-1] for crop in found.crops] == [64, 32, 32, 16]


ARRAYS = re.escape("(H, W), (H, W, C), (B, H, W) or (B, H, W, C) with 1, 3 or 4 channels.")
TENSORS = re.escape("(H, W), (C, H, W) or (B, C, H, W) with 1, 3 or 4 channels.")
WRONG = {
    "an empty list": ([], ValueError, "images is empty: got 0 images, expected at least one"),
    "an empty batch": (np.zeros((0, 9, 9)), ValueError, r"images is empty: got shape \(0, 9, 9\)"),
    "an empty tensor": (torch.zeros(0, 1, 9, 9), ValueError, r"empty: got shape \(0, 1, 9, 9\)"),
    "an image without a row": (Image.new("L", (5, 0)), ValueError, r"empty: got shape \(5, 0\)"),
    "one axis": (np.zeros(42), ValueError, rf"wrong shape: got \(42,\), expected {ARRAYS}"),
    "five axes": (np.zeros((1, 1, 9, 9, 1)), ValueError, rf"wrong shape: .*expected {ARRAYS}"),
    "an array with its channels first": (np.zeros((2, 3, 9, 9)), ValueError, f"expected {ARRAYS}"),
    "a tensor without a channel": (torch.zeros(5, 9, 9), ValueError, f"expected {TENSORS}"),
    "a tensor with its channels last": (torch.zeros(2, 9, 9, 3), ValueError, f"expected {TENSORS}"),
    "whole numbers": (np.zeros((9, 9), int), TypeError, "dtype: got int64, expected uint8 in 0 to"),
    "truth values": (torch.zeros(9, 9).bool(), TypeError, "dtype: got torch.bool, expected uint8"),
    "complex numbers": (np.zeros((9, 9), complex), TypeError, "dtype: got complex128"),
    "text": ("digit.png", TypeError, "images has the wrong type: got str, expected a NumPy array"),
    "a list of lists": ([[[0.0]]], TypeError, r"images\[0\] has the wrong type: got list"),
    "NaN": (np.full((9, 9), np.nan), ValueError, r"images\[0\] is not finite: got nan, expected"),
    "values up to 255": (
        np.linspace(0, 255, 81).reshape(9, 9),
        ValueError,
        r"images\[0\] is out of range: got values from 0 to 255, expected \[0, 1\] for float64",
    ),
    "values from -1": (-torch.ones(1, 9, 9), ValueError, "got values from -1 to -1, expected"),
}


@pytest.mark.parametrize(("images", "error", "message"), WRONG.values(), ids=WRONG)
def test_wrong_images_are_refused(trained, images, error, message):
    with pytest.raises(error, match=message):
        predict_images(trained, images)


def test_the_third_image_is_named_if_it_is_wrong(trained, strokes):
    faulty = strokes[:4] / 255
    faulty[2, 5, 5] = np.inf
    with pytest.raises(ValueError, match=r"^images\[2\] is not finite: got inf"):
        predict_images(trained, faulty)
    with pytest.raises(ValueError, match=r"^images\[2\] is not finite: got inf"):
        predict_images(trained, [strokes[0], faulty[1:3]])
    with pytest.raises(TypeError, match=r"^images\[2\] has the wrong type: got NoneType"):
        predict_images(trained, [strokes[:2], None])
    blank = np.zeros((1, 60, 80), np.uint8)
    with pytest.raises(UsageError, match=r"^images\[2\]: it shows no digit"):
        predict_images(trained, [strokes[:2], blank])


def test_a_network_that_takes_no_pictures_is_refused(composed):
    untrained = make_untrained(composed("experiment=mnist_addition", "model=addition_fcn"))
    with pytest.raises(UsageError, match=r"addition.* cannot be used .* two channels"):
        predict_images(untrained, np.zeros((42, 42)))


def test_the_example_of_the_readme_returns_what_it_says(monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.S)
    (example,) = (block for block in blocks if "predict_images" in block)
    monkeypatch.chdir(REPOSITORY)
    names = {}
    exec(example, names)
    found = names["predictions"]
    assert found.labels.shape == found.confidences.shape == (8,)
    assert len(found.texts) == 8
    assert found.thetas[0].shape == (8, 6)
    assert found.crops[0].shape == (8, 1, 42, 42)

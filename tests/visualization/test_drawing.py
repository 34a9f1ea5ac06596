"""What is drawn is where the transformer reads."""

import re

import pytest
import torch
from samples import set_up
from torch import nn

from spatial_transformer import (
    Affine,
    Attention,
    FcLocalisation,
    Projective,
    SpatialTransformer,
    ThinPlateSpline,
)
from spatial_transformer.data.mnist import MnistData
from spatial_transformer.networks.mnist import MnistNetwork
from spatial_transformer.tasks.classification import Classification
from spatial_transformer.visualization.crops import class_means, render_samples
from spatial_transformer.visualization.drawing import (
    COLOURS,
    REGION,
    TOP,
    WRONG,
    CropGeometry,
    draw_lines,
    image_grid,
    tile_width,
    to_image,
)


def region_lines(transform, theta):
    return CropGeometry([transform], [theta[None]], (28, 28)).outline(0)


def test_the_outline_of_a_window_starts_with_its_top_edge():
    top, bottom, left, right = region_lines(Attention(), torch.tensor([0.5, 0.25, -0.25]))
    assert torch.allclose(top[[0, -1]], torch.tensor([[-0.25, -0.75], [0.75, -0.75]]))
    assert torch.allclose(bottom[[0, -1]], torch.tensor([[-0.25, 0.25], [0.75, 0.25]]))
    assert torch.allclose(left[[0, -1]], torch.tensor([[-0.25, -0.75], [-0.25, 0.25]]))
    assert torch.allclose(right[[0, -1]], torch.tensor([[0.75, -0.75], [0.75, 0.25]]))


@pytest.mark.parametrize("transform", [Projective(), ThinPlateSpline()], ids=["projective", "tps"])
def test_a_bending_warp_is_drawn_as_a_lattice(transform):
    lines = region_lines(transform, transform.identity())
    assert len(lines) == 10
    assert all(line.shape == (25, 2) for line in lines)


def test_a_crop_is_the_output_of_the_transformer():
    network, x = MnistNetwork("fcn", 28, ThinPlateSpline(), width=4), torch.rand(3, 1, 28, 28)
    nn.init.normal_(network.transformer.localisation[-1].weight, std=0.1)
    (reading,), logits = CropGeometry.from_network(network, x)
    assert torch.equal(logits, network(x))
    crops = torch.stack([reading.crop(n, image) for n, image in enumerate(x)])
    torch.testing.assert_close(crops, network.transformer(x), atol=1e-4, rtol=0)


def test_transformers_in_a_row_multiply_their_matrices():
    first, second = (
        torch.tensor([0.5, 0.1, 0.2, 0.0, 0.5, -0.1]),
        torch.tensor([0.8, 0.0, 0.1, -0.3, 0.7, 0.3]),
    )
    bottom = torch.tensor([[0.0, 0.0, 1.0]])
    product = torch.cat([first.view(2, 3), bottom]) @ torch.cat([second.view(2, 3), bottom])
    points = torch.rand(10, 2) * 2 - 1
    both = CropGeometry([Affine(), Affine()], [first[None], second[None]], (8, 8)).map_points(
        0, points
    )
    assert torch.allclose(both, Affine()(product[:2].reshape(1, 6), points)[0], atol=1e-6)


def test_crops_of_parallel_transformers_are_their_outputs():
    transform = Attention(0.5)
    localisation = FcLocalisation(
        (1, 20, 20), transform, start=torch.tensor([[-0.7, 0.0], [0.5, 0.2]])
    )  # one beyond the edge
    transformer = SpatialTransformer(localisation, transform, (10, 10), fill=0.5, parallel=2)
    x = torch.rand(3, 1, 20, 20)
    readings, crops = CropGeometry.from_network(nn.Sequential(transformer), x)
    for k, reading in enumerate(readings):
        for n, image in enumerate(x):
            torch.testing.assert_close(
                reading.crop(n, image), crops[n, k : k + 1], atol=1e-5, rtol=0
            )
    assert len(readings) == 2


def test_a_crop_of_an_image_takes_no_fill_of_a_feature_map():
    transform = Attention()
    localisation = FcLocalisation((8, 20, 20), transform, start=torch.tensor([2.0, 0.0, 0.0]))
    transformer = SpatialTransformer(localisation, transform, fill=[0.5] * 8)
    network, image = nn.Sequential(nn.Conv2d(3, 8, 1), transformer), torch.ones(3, 20, 20)
    (reading,), _ = CropGeometry.from_network(network, image[None])
    crop = reading.crop(0, image)
    assert crop.shape == (3, 20, 20)
    assert (crop[:, 0] == 0).all()


def test_lines_are_drawn_at_their_coordinates():
    black = to_image(torch.zeros(1, 20, 20), width=80)
    drawn = draw_lines(black, region_lines(Affine(), torch.tensor([0.5, 0, 0, 0, 0.5, 0])))
    assert drawn.getpixel((40, 19)) == TOP  # a quarter from the top
    assert drawn.getpixel((40, 59)) == REGION
    assert drawn.getpixel((19, 40)) == REGION
    assert drawn.getpixel((40, 40)) == (0, 0, 0)
    assert black.getpixel((40, 19)) == (0, 0, 0), "the image itself has changed"


def test_an_image_keeps_its_values_and_colours():
    image = to_image(torch.tensor([[[0.0, 1.0], [0.5, 2.0]]]), width=6)
    assert image.size == (6, 6)
    corners = [image.getpixel(at) for at in ((0, 0), (3, 0), (0, 3), (3, 3))]
    assert corners == [(0,) * 3, (255,) * 3, (127,) * 3, (255,) * 3]
    colour = to_image(torch.tensor([1.0, 0.0, 0.5]).view(3, 1, 1), width=1)
    assert colour.getpixel((0, 0)) == (255, 0, 127)


def test_a_sheet_has_rows_of_at_most_six_columns():
    columns = [[to_image(torch.ones(1, 4, 4), tile_width(1))]] * 7
    sheet = image_grid(columns, list("abcdefg"), "title", ["input"])
    two_rows = image_grid(columns[:4] * 2, list("abcdefgh"), "title", ["input"])
    assert sheet.size == two_rows.size
    six = image_grid(columns[:6], list("abcdef"), "title", ["input"])
    assert six.height < sheet.height
    assert 800 < six.width <= 830


def test_a_sheet_has_the_border_of_a_crop_in_the_colour_of_its_outline(drawn_mnist):
    transform = Attention(0.5)
    start = torch.tensor([[-0.4, 0.0], [0.4, 0.0]])
    localisation = FcLocalisation((1, 28, 28), transform, start=start)
    transformer = SpatialTransformer(localisation, transform, (14, 14), parallel=2)
    network = nn.Sequential(transformer, nn.Flatten(), nn.Linear(2 * 14 * 14, 10))
    data = set_up(MnistData("r", root="."))
    samples = render_samples(data, Classification(network, None), "val", torch.arange(3))
    assert samples.labels == [
        "input and sampling grids",
        "transformer 1 output",
        "transformer 2 output",
    ]
    for wrong, caption in zip(samples.is_wrong, samples.captions, strict=True):
        assert re.fullmatch(r"pred \d, true \d" if wrong else r"pred \d", caption)
    for column in samples.columns:
        assert [image.getpixel((1, 1)) for image in column[1:]] == list(COLOURS[:2])
    (one, *_), tile = samples.columns, samples.tiles()[0]
    assert tile.height > sum(image.height for image in one)
    colours = {colour for _, colour in samples.sheet("title").getcolors(1 << 24)}
    assert (WRONG in colours) == any(samples.is_wrong)


class ThetaNetwork(MnistNetwork):
    """A network that uses theta itself."""

    def forward(self, x):
        x, theta = self.transformer(x, return_theta=True)
        return self.classifier(x) + theta.sum(1, keepdim=True)


@pytest.mark.parametrize("make", [MnistNetwork, ThetaNetwork])
def test_class_means_are_those_of_each_class(drawn_mnist, make):
    network = make("fcn", 28, Affine(), width=4)
    nn.init.constant_(network.transformer.localisation[-1].bias, 0.3)
    data = set_up(MnistData("r", root="."))
    index = torch.cat([torch.arange(9), torch.arange(10, 19)])  # two of each class but the last
    means = class_means(data, Classification(network, None), "val", index)
    images = data.samples("val", index)[0].view(2, 9, 1, 28, 28)
    expected = torch.cat([images.mean(0), torch.zeros(1, 1, 28, 28)])
    torch.testing.assert_close(means["input"], expected)
    expected = network.transformer(expected)  # the warp of a mean is the mean of the warps
    torch.testing.assert_close(means["output"], expected, atol=1e-4, rtol=0)


def test_class_means_leave_no_hook_after_an_error(drawn_mnist):
    network, data = MnistNetwork("fcn", 42, Affine(), width=4), set_up(MnistData("r", root="."))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        class_means(data, Classification(network, None), "val", torch.arange(3))
    assert not network.transformer._forward_hooks

"""Pictures: what is drawn is where the transformer reads."""

import pytest
import torch
from torch import nn

from spatial_transformer import (
    Affine,
    Attention,
    FcLocalisation,
    Projective,
    SpatialTransformer,
    ThinPlateSpline,
)
from spatial_transformer.networks.mnist import MnistNetwork
from spatial_transformer.visualization.crops import ClassMeans
from spatial_transformer.visualization.drawing import (
    REGION,
    TOP,
    CropGeometry,
    draw_lines,
    image_grid,
    to_image,
)


def region_lines(transform, theta):
    return CropGeometry([transform], [theta[None]], (28, 28)).outline(0)


def test_the_outline_of_a_window_is_its_four_edges_the_top_one_first():
    top, bottom, left, right = region_lines(Attention(), torch.tensor([0.5, 0.25, -0.25]))
    assert torch.allclose(top[[0, -1]], torch.tensor([[-0.25, -0.75], [0.75, -0.75]]))
    assert torch.allclose(bottom[[0, -1]], torch.tensor([[-0.25, 0.25], [0.75, 0.25]]))
    assert torch.allclose(left[[0, -1]], torch.tensor([[-0.25, -0.75], [-0.25, 0.25]]))
    assert torch.allclose(right[[0, -1]], torch.tensor([[0.75, -0.75], [0.75, 0.25]]))


@pytest.mark.parametrize("transform", [Projective(), ThinPlateSpline()], ids=["projective", "tps"])
def test_a_warp_that_bends_is_drawn_as_a_lattice_of_curves(transform):
    lines = region_lines(transform, transform.identity())
    assert len(lines) == 10
    assert all(line.shape == (25, 2) for line in lines)


def test_what_one_transformer_reads_is_what_it_gives():
    torch.manual_seed(0)
    network, x = MnistNetwork("fcn", 28, ThinPlateSpline(), width=4), torch.rand(3, 1, 28, 28)
    nn.init.normal_(network.transformer.localisation[-1].weight, std=0.1)
    (reading,), logits = CropGeometry.from_network(network, x)
    assert torch.equal(logits, network(x))
    crops = torch.stack([reading.crop(n, image) for n, image in enumerate(x)])
    torch.testing.assert_close(crops, network.transformer(x), atol=1e-4, rtol=0)


def test_transformers_in_a_row_read_by_the_product_of_their_matrices():
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


def test_parallel_transformers_read_what_each_gives():
    torch.manual_seed(0)
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


def test_transformers_apart_are_each_its_own():
    thetas = [torch.tensor([[0.5, 0, 0, 0, 0.5, 0]]), torch.tensor([[0.2, 0, 0.1, 0, 0.2, 0]])]
    parts = CropGeometry([Affine(), Affine()], thetas, (8, 8)).split()
    for part, theta in zip(parts, thetas, strict=True):
        for line, expected in zip(part.outline(0), region_lines(Affine(), theta[0]), strict=True):
            assert torch.equal(line, expected)


def test_a_network_without_transformers_reads_nothing():
    network, x = MnistNetwork("fcn", 28, width=4), torch.rand(2, 1, 28, 28)
    readings, logits = CropGeometry.from_network(network, x)
    assert readings == []
    assert torch.equal(logits, network(x))


def test_lines_are_drawn_where_they_are():
    black = to_image(torch.zeros(1, 20, 20), zoom=4)
    drawn = draw_lines(black, region_lines(Affine(), torch.tensor([0.5, 0, 0, 0, 0.5, 0])))
    assert drawn.getpixel((40, 19)) == TOP  # a quarter from the top
    assert drawn.getpixel((40, 59)) == REGION
    assert drawn.getpixel((19, 40)) == REGION
    assert drawn.getpixel((40, 40)) == (0, 0, 0)
    assert black.getpixel((40, 19)) == (0, 0, 0), "the picture itself is left as it was"


def test_points_at_infinity_do_not_stop_the_drawing():
    draw_lines(
        to_image(torch.zeros(1, 8, 8), 2),
        [torch.tensor([[0.0, 0.0], [1e30, -1e30], [float("inf"), 0]])],
    )


def test_an_image_keeps_its_values_and_colours():
    image = to_image(torch.tensor([[[0.0, 1.0], [0.5, 2.0]]]), zoom=3)
    assert image.size == (6, 6)
    assert [image.getpixel(at) for at in ((0, 0), (3, 0), (0, 3), (3, 3))] == [
        (0,) * 3,
        (255,) * 3,
        (127,) * 3,
        (255,) * 3,
    ]
    colour = to_image(torch.tensor([1.0, 0.0, 0.5]).view(3, 1, 1), zoom=1)
    assert colour.getpixel((0, 0)) == (255, 0, 127)


def test_a_strip_wraps_into_rows():
    columns = [[to_image(torch.ones(1, 4, 4), 2)]] * 5
    one, two = (
        image_grid(columns, list("abcde"), per_row=5),
        image_grid(columns, list("abcde"), per_row=3),
    )
    assert two.height > one.height
    assert two.width < one.width


def test_long_captions_are_broken_into_lines_as_wide_as_their_picture():
    columns = [[to_image(torch.ones(1, 4, 15), 4)]] * 2
    short, long = (
        image_grid(columns, ["one line", "two"]),
        image_grid(columns, ["one line", "two or even three lines"]),
    )
    assert long.width == short.width
    assert long.height == short.height + 2 * 14


def test_an_image_made_smaller_is_smoothed():
    checks = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(8, 8)[None]
    small = to_image(checks, zoom=0.25)
    assert small.size == (4, 4)
    assert all(100 < value < 155 for value in small.convert("L").tobytes())


def test_class_means_are_those_of_each_class():
    means = ClassMeans(3)
    images, labels = torch.rand(6, 1, 2, 2), torch.tensor([0, 1, 0, 2, 2, 2])
    means.update(images[:4], labels[:4])
    means.update(images[4:], labels[4:])
    assert torch.allclose(
        means.images(), torch.stack([images[labels == c].mean(0) for c in range(3)])
    )

"""CUB's crops, augmentation, splits, digest and annotations."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from samples import all_samples, set_up
from tiny_birds import PARTS, Bird, species_folder, write_birds

from spatial_transformer.data.cub import CubData
from spatial_transformer.data.cub.datamodule import MEAN_COLOUR, validation_mask
from spatial_transformer.data.cub.files import read_birds
from spatial_transformer.utils.errors import UsageError

MEAN = torch.tensor(MEAN_COLOUR).view(3, 1, 1)
SPLITS = ("train", "val", "test")


def build(root, **settings):
    species = len((root / "classes.txt").read_text().splitlines())
    defaults = {"species": f"1-{species}", "batch_size": 1, "workers": 1}
    return set_up(CubData(root, **(defaults | settings)))


def build_test_set(tmp_path, *birds, **settings):
    """Build data with these test images."""
    birds = [Bird(), Bird(), *(bird._replace(training=False) for bird in birds)]
    return build(write_birds(tmp_path / "birds", birds, species=1), **settings)


def coordinates(width, height):
    """Return an image whose red and green are the coordinates of the pixel."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, 0 * x + 77], -1).astype(np.uint8))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Species 1 to 3 with 22, 11 and 2 training images, and 3 test images each."""
    counts = ((1, 22), (2, 11), (3, 2))
    birds = [Bird(n, training=i >= 3) for n, training in counts for i in range(training + 3)]
    return write_birds(tmp_path_factory.mktemp("cub") / "CUB_200_2011", birds, species=3)


# Crops


@pytest.mark.parametrize(
    ("size", "corner"),
    [((256, 240), (16, 8)), ((256, 224), (16, 0)), ((256, 225), (16, 0)), ((229, 256), (2, 16))],
)
def test_evaluation_crop_is_at_the_centre(tmp_path, size, corner):
    data = build_test_set(tmp_path, Bird(picture=coordinates(*size), form="PNG"))
    (image,) = all_samples(data, "test")[0]
    x, y = (torch.arange(224) + first for first in corner)
    assert torch.equal(image[0], (x / 255).expand(224, 224))
    assert torch.equal(image[1], (y / 255)[:, None].expand(224, 224))


@pytest.mark.parametrize(("height", "above"), [(200, 12), (199, 12), (223, 0), (1, 111)])
def test_smaller_image_is_padded_with_the_mean_colour(tmp_path, height, above):
    data = build_test_set(tmp_path, Bird(picture=coordinates(256, height), form="PNG"))
    (image,) = all_samples(data, "test")[0]
    inside = slice(above, above + height)
    assert torch.equal(image[1, inside], (torch.arange(height) / 255)[:, None].expand(height, 224))
    assert torch.equal(image[0, inside], ((torch.arange(224) + 16) / 255).expand(height, 224))
    outside = torch.cat([image[:, :above], image[:, above + height :]], 1)
    assert torch.equal(outside, MEAN.expand(3, 224 - height, 224))


def build_crops(tmp_path, size):
    """Return the training crops of an image of coordinates, and whether they are mirrored."""
    birds = [Bird(picture=coordinates(*size), form="PNG")] * 2
    data = build(write_birds(tmp_path / "birds", birds, species=1))
    index = torch.tensor([0])
    crops = [data.samples("train", index, epoch)[0][:, :, ::16] for epoch in range(250)]
    crops = torch.cat(crops) * 255
    row = crops[:, 0, 7]  # a row that each crop has, in which red grows
    return crops, row[:, 120] < row[:, 110]


def test_training_crops_are_random_and_mirrored(tmp_path):
    crops, is_mirrored = build_crops(tmp_path, (256, 250))
    crops = torch.where(is_mirrored.view(-1, 1, 1, 1), crops.flip(3), crops).round()
    x, y = crops[:, 0, 0, 0], crops[:, 1, 0, 0]
    columns, rows = torch.arange(224), torch.arange(0, 224, 16)[:, None]
    assert torch.equal(crops[:, 0], (x.view(-1, 1, 1) + columns).expand(-1, 14, 224))
    assert torch.equal(crops[:, 1], (y.view(-1, 1, 1) + rows).expand(-1, 14, 224))
    assert sorted(set(x.tolist())) == list(range(33))
    assert sorted(set(y.tolist())) == list(range(27))
    assert 0.4 < is_mirrored.float().mean() < 0.6
    draws = torch.stack([x, y, is_mirrored.float()])
    assert (draws.corrcoef() - torch.eye(3)).abs().max() < 0.2


def test_smaller_image_is_anywhere_in_the_training_crop(tmp_path):
    crops, is_mirrored = build_crops(tmp_path, (200, 256))
    is_image = (crops[:, 2, 0] - 77).abs() < 0.5  # by its blue, which the mean colour does not have
    assert (is_image.sum(1) == 200).all()
    left = is_image.float().argmax(1)
    assert sorted(set(left.tolist())) == list(range(25))
    for crop, start, mirrored in zip(crops[:20], left[:20].tolist(), is_mirrored[:20]):
        red = crop[0, 5, start : start + 200].round()
        assert torch.equal(red.flip(0) if mirrored else red, torch.arange(200.0))
        outside = torch.cat([crop[:, :, :start], crop[:, :, start + 200 :]], 2) / 255
        torch.testing.assert_close(outside, MEAN.expand(3, 14, 24))


# Splits and labels


def test_a_tenth_of_each_species_is_for_validation(root):
    data = build(root)
    counts = [all_samples(data, split)[1].bincount().tolist() for split in SPLITS]
    assert counts == [[20, 10, 1], [2, 1, 1], [3, 3, 3]]
    images = [all_samples(build(root, augment=False), split)[0] for split in SPLITS]
    assert len(torch.cat(images).flatten(1).unique(dim=0)) == 44


def test_validation_set_does_not_depend_on_the_species(root):
    images, labels = all_samples(build(root), "val")
    one = build(root, species="Kind_b_Wren")
    assert torch.equal(all_samples(one, "val")[0], images[labels == 1])


def test_validation_set_never_changes(root):
    birds = read_birds(root, [1, 2, 3])
    assert birds.ids[validation_mask(birds)].tolist() == [22, 31, 46, 53]


def test_labels_are_in_the_official_order(root):
    data = build(root, species=[3, "001.Kind_a_Wren"])
    assert data.classes == 2
    assert data.names == ["Kind_a_Wren", "Kind_c_Wren"]
    assert data.decode_labels(torch.tensor([1])) == ["Kind c Wren"]
    images, labels = all_samples(data, "test")
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(images, all_samples(build(root), "test")[0][[0, 1, 2, 6, 7, 8]])


def test_number_of_classes_needs_no_files():
    assert CubData(root="nowhere").classes == 200
    assert CubData(root="nowhere", species="Any_Name,3-5").classes == 4


# Digest and settings


def test_digest_identifies_the_content(root, tmp_path):
    digest = build(root).digest()
    assert len(digest) == 16
    assert build(shutil.copytree(root, tmp_path / "CUB_200_2011")).digest() == digest
    common = CubData(root=tmp_path, species="1-3", workers=1, batch_size=1)
    assert common.digest() == digest
    assert build(root, species="1").digest() != digest


def change_image(root):
    Image.new("RGB", (60, 40)).save(root / "images" / species_folder(1) / "Wren_0015.jpg")


def change_split(root):
    text = (root / "train_test_split.txt").read_text()
    (root / "train_test_split.txt").write_text(text.replace(" 0", " 1", 1))


@pytest.mark.parametrize("change", [change_image, change_split])
def test_digest_changes_with_the_data(root, tmp_path, change):
    other = shutil.copytree(root, tmp_path / "other", ignore=shutil.ignore_patterns("cache"))
    change(other)
    assert build(other).digest() != build(root).digest()


# Annotations


def test_parts_and_boxes_are_in_coordinates_of_the_crop(tmp_path):
    # 512 x 400 becomes 256 x 200: x is (p + 0.5) / 2 - 16 and y is (p + 0.5) / 2 + 12 pixels.
    bird = Bird(
        picture=Image.new("RGB", (512, 400)),
        parts=((100.0, 100.0, 1), (10.0, 100.0, 1), (0.0, 0.0, 0)),
        box=(10.0, 20.0, 400.0, 300.0),
    )
    data = build_test_set(tmp_path, bird)
    x, y = 34.25 / 112 - 1, 62.25 / 112 - 1
    parts = torch.tensor([[[x, y, 1], [-10.75 / 112 - 1, y, 0], [0, 0, 0]]])
    torch.testing.assert_close(data.parts("test"), parts)
    boxes = torch.tensor([[-1, 22.25 / 112 - 1, 189.25 / 112 - 1, 172.25 / 112 - 1]])
    torch.testing.assert_close(data.boxes("test"), boxes)
    assert data.part_names == list(PARTS)


@pytest.mark.parametrize("size", [224, 448])
@pytest.mark.parametrize(
    ("original", "x", "y"), [((500, 375), 130, 300), ((333, 500), 300, 200), ((256, 256), 40, 222)]
)
def test_parts_and_boxes_are_where_the_crop_shows_them(tmp_path, size, original, x, y):
    columns, rows = np.meshgrid(*map(np.arange, original))
    disc = ((columns - x) ** 2 + (rows - y) ** 2 <= 36) * np.uint8(255)
    picture = Image.fromarray(np.repeat(disc[:, :, None], 3, 2))
    box = (x - 6.5, y - 6.5, 13.0, 13.0)  # pixels reach half a pixel beyond their centres
    bird = Bird(picture=picture, parts=((float(x), float(y), 1),) * 3, box=box)
    data = build_test_set(tmp_path, bird, size=size)
    (image,) = all_samples(data, "test")[0]
    light = torch.where((image - MEAN).abs().amax(0) < 1e-4, 0, image[0] * (image[0] > 0.1))
    part, (left, top, right, bottom) = data.parts("test")[0, 0], data.boxes("test")[0]
    pixel = 2 / size
    centres = (torch.arange(size) + 0.5) * pixel - 1
    for axis, low, high in ((0, left, right), (1, top, bottom)):
        centre_of_mass = (light.sum(axis) * centres).sum() / light.sum()
        np.testing.assert_allclose(centre_of_mass, part[axis], atol=0.1 * pixel)
        bright = (light > 0.5).any(axis).nonzero()[:, 0]
        edges = torch.stack([bright[0], bright[-1] + 1]) * pixel - 1
        np.testing.assert_allclose(edges, (low, high), atol=pixel)
    assert part[2] == 1


def test_annotations_are_those_of_the_split(tmp_path):
    birds = [
        Bird(training=i % 3 > 0, parts=((float(i), 20.0, 1),) * 3, box=(float(i), 1.0, 9.0, 9.0))
        for i in range(9)
    ]
    root = write_birds(tmp_path / "birds", birds, species=1)
    data, is_held_out = build(root), validation_mask(read_birds(root, [1]))
    for split, positions in (("val", is_held_out.nonzero()[0]), ("test", np.array([0, 3, 6]))):
        x = ((torch.from_numpy(positions) + 0.5) * 256 / 60 - 16) / 112 - 1
        torch.testing.assert_close(data.parts(split)[:, 0, 0], x.float())
        torch.testing.assert_close(data.boxes(split)[:, 0], x.float().clamp(-1, 1))
        assert data.parts(split).shape == (data.size(split), 3, 3)


def test_training_crops_have_no_annotations(root):
    with pytest.raises(UsageError, match="Only the crops of val and test are fixed"):
        build(root).parts("train")


# Real birds


def test_real_birds_have_their_parts_in_their_boxes(cub_root, tmp_path):
    data = build(cub_root, species="36,48", cache=tmp_path)
    assert data.names == ["Northern_Flicker", "European_Goldfinch"]
    assert [data.size(split) for split in SPLITS] == [54, 6, 60]
    images, labels = all_samples(data, "test")
    assert labels.bincount().tolist() == [30, 30]
    assert images.std((1, 2, 3)).min() > 0.03
    parts, boxes = data.parts("test"), data.boxes("test")[:, None]
    assert parts.shape == (60, 15, 3)
    points, is_visible = parts[:, :, :2], parts[:, :, 2] == 1
    is_inside = ((points >= boxes[..., :2]) & (points <= boxes[..., 2:])).all(2)
    assert is_inside[is_visible].float().mean() > 0.99
    assert (boxes[..., :2] < boxes[..., 2:]).all()

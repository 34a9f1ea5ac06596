"""The birds' resized images, their cache, and the crops made of them."""

import os
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_birds import PARTS, Bird, species_folder, write_birds

from spatial_transformer.data.cub import CubData
from spatial_transformer.data.cub import files as cub_files
from spatial_transformer.data.cub import images as cub_images
from spatial_transformer.data.cub.datamodule import MEAN_COLOUR, validates
from spatial_transformer.data.cub.images import open_images
from spatial_transformer.utils.errors import UsageError

MEAN = torch.tensor(MEAN_COLOUR).view(3, 1, 1)


def coordinates(width, height):
    """An image whose red and green are the coordinates of the pixel."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, 0 * x + 77], -1).astype(np.uint8))


def spot(width, height, x, y):
    """A black image with a white disc about the pixel (x, y)."""
    rows, columns = np.mgrid[:height, :width]
    disc = ((columns - x) ** 2 + (rows - y) ** 2 <= 36) * np.uint8(255)
    return Image.fromarray(np.repeat(disc[:, :, None], 3, 2))


def ready(root, **settings):
    species = len((root / "classes.txt").read_text().split()) // 2
    data = CubData(
        **{"root": root, "species": f"1-{species}", "batch_size": 1, "workers": 1, **settings}
    )
    data.prepare_data()
    data.setup()
    return data


def every(data, split, epoch=0):
    return data.samples(split, torch.arange(data.size(split)), epoch)


def of_pictures(tmp_path, *birds, **settings):
    """Data whose test set is these birds."""
    birds = [Bird(), Bird(), *(bird._replace(training=False) for bird in birds)]
    return ready(write_birds(tmp_path / "birds", birds, species=1), **settings)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Species 1 to 3 with 22, 11 and 2 training images, and 3 test images each."""
    birds = [
        Bird(n, training=i >= 3)
        for n, training in ((1, 22), (2, 11), (3, 2))
        for i in range(training + 3)
    ]
    return write_birds(tmp_path_factory.mktemp("cub") / "birds", birds, species=3)


# Crops


@pytest.mark.parametrize(
    ("size", "corner"),
    [((256, 240), (16, 8)), ((256, 224), (16, 0)), ((256, 225), (16, 0)), ((229, 256), (2, 16))],
)
def test_the_evaluation_crop_is_at_the_centre(tmp_path, size, corner):
    data = of_pictures(tmp_path, Bird(picture=coordinates(*size), form="PNG"))
    (image,) = every(data, "test")[0]
    x, y = (torch.arange(224) + first for first in corner)
    assert torch.equal(image[0], (x / 255).expand(224, 224))
    assert torch.equal(image[1], (y / 255)[:, None].expand(224, 224))


@pytest.mark.parametrize(("height", "above"), [(200, 12), (199, 12), (223, 0), (1, 111)])
def test_an_image_smaller_than_the_crop_is_at_its_centre_in_the_mean_colour(
    tmp_path, height, above
):
    data = of_pictures(tmp_path, Bird(picture=coordinates(256, height), form="PNG"))
    (image,) = every(data, "test")[0]
    inside = slice(above, above + height)
    assert torch.equal(image[1, inside], (torch.arange(height) / 255)[:, None].expand(height, 224))
    assert torch.equal(image[0, inside], ((torch.arange(224) + 16) / 255).expand(height, 224))
    outside = torch.ones(224, dtype=torch.bool)
    outside[inside] = False
    assert outside.sum() == 224 - height
    assert torch.equal(image[:, outside], MEAN.expand(3, 224 - height, 224))


@pytest.mark.parametrize(
    ("original", "size", "resized"),
    [
        ((512, 400), 224, (256, 200)),
        ((100, 128), 224, (200, 256)),
        ((100, 128), 448, (400, 512)),
        ((500, 333), 448, (512, 341)),
    ],
)
def test_the_longest_side_is_resized(tmp_path, original, size, resized):
    data = of_pictures(tmp_path, Bird(picture=Image.new("RGB", original, (10, 20, 30))), size=size)
    assert data.images.sizes[-1].tolist() == list(resized)
    assert data.images.originals[-1].tolist() == list(original)
    assert data.images.image(2).shape == (3, *resized[::-1])
    assert every(data, "test")[0].shape == (1, 3, size, size)


def test_reduced_images_are_antialiased(tmp_path):
    noise = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
    )
    data = of_pictures(tmp_path, Bird(picture=noise, form="PNG"))
    assert every(data, "test")[0].std() < 25 / 255  # of noise of standard deviation 74


def test_a_greyscale_image_becomes_rgb(tmp_path):
    grey = Image.new("L", (256, 256), 90)
    images = every(
        of_pictures(
            tmp_path, Bird(picture=grey), Bird(picture=Image.new("RGB", (256, 256), (200, 0, 0)))
        ),
        "test",
    )[0]
    assert torch.equal(images[0], torch.full((3, 224, 224), 90 / 255))
    assert images[1, 0].mean() > 0.7 > 0.1 > images[1, 1].mean()


# Augmentation


def placed(tmp_path, size, epochs=250):
    """Every 16th row of crops of an image of coordinates in many epochs, in [0, 255], and which are mirrored."""
    birds = [Bird(picture=coordinates(*size), form="PNG")] * 2
    data = ready(write_birds(tmp_path / "birds", birds, species=1))
    index = torch.tensor([0])
    images = (
        torch.cat([data.samples("train", index, epoch)[0][:, :, ::16] for epoch in range(epochs)])
        * 255
    )
    middle = images[:, 0, 7]  # the direction in which red grows, in a row that every image has
    return images, middle[:, 120] < middle[:, 110]


def test_training_crops_are_anywhere_and_mirrored_in_every_second_image(tmp_path):
    images, mirrored = placed(tmp_path, (256, 250))
    straight = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images).round()
    x, y = straight[:, 0, 0, 0], straight[:, 1, 0, 0]
    assert torch.equal(straight[:, 0], (x.view(-1, 1, 1) + torch.arange(224)).expand(-1, 14, 224))
    assert torch.equal(
        straight[:, 1], (y.view(-1, 1, 1) + torch.arange(0, 224, 16)[:, None]).expand(-1, 14, 224)
    )
    assert sorted(set(x.tolist())) == list(range(33))
    assert sorted(set(y.tolist())) == list(range(27))
    assert 0.4 < mirrored.float().mean() < 0.6
    draws = torch.stack([x, y, mirrored.float()])
    assert (draws.corrcoef() - torch.eye(3)).abs().max() < 0.2


def test_a_smaller_image_is_anywhere_in_the_training_crop(tmp_path):
    images, mirrored = placed(tmp_path, (200, 256))
    blue = (
        images[:, 2, 0] - 77
    ).abs() < 0.5  # in a row: the image's own blue, which the mean colour has not
    assert (blue.sum(1) == 200).all()
    left = blue.float().argmax(1)
    assert sorted(set(left.tolist())) == list(range(25))
    for image, start, flipped in zip(images[:20], left[:20].tolist(), mirrored[:20]):
        red = image[0, 5, start : start + 200].round()
        assert torch.equal(red.flip(0) if flipped else red, torch.arange(200.0))
        beside = torch.cat([image[:, :, :start], image[:, :, start + 200 :]], 2) / 255
        torch.testing.assert_close(beside, MEAN.expand(3, 14, 24))


def test_samples_depend_on_nothing_but_seed_epoch_and_index(root):
    data = ready(root)
    images, labels = every(data, "train", 3)
    some = torch.tensor([7, 2, 30])
    again = data.samples("train", some, 3)
    assert torch.equal(again[0], images[some])
    assert torch.equal(again[1], labels[some])
    assert torch.equal(every(ready(root, batch_size=5), "train", 3)[0], images)
    assert not torch.equal(every(data, "train", 4)[0], images)
    assert not torch.equal(every(ready(root, seed=2), "train", 3)[0], images)


def test_only_training_images_are_augmented(root):
    plain, changed = ready(root, augment=False), ready(root, seed=9)
    for split in ("val", "test"):
        assert torch.equal(every(plain, split)[0], every(changed, split, 5)[0])
    assert torch.equal(every(plain, "train", 0)[0], every(plain, "train", 1)[0])
    assert not torch.equal(every(plain, "train")[0], every(changed, "train")[0])


# Splits and labels


@pytest.mark.parametrize("size", [224, 448])
def test_samples_have_their_shapes_and_ranges(root, size):
    data = ready(root, size=size)
    for split in ("train", "test"):
        images, labels = data.samples(split, torch.tensor([8, 0]))
        assert images.shape == (2, 3, size, size)
        assert images.dtype == torch.float32
        assert images.is_contiguous()
        assert images.min() >= 0
        assert images.max() <= 1
        assert labels.dtype == torch.int64
    assert labels.tolist() == [2, 0]
    assert (data.input_size, data.classes) == (size, 3)
    assert data.names == ["Kind_a_Wren", "Kind_b_Wren", "Kind_c_Wren"]


def test_a_tenth_of_each_species_validates(root):
    data = ready(root)
    counts = {
        split: every(data, split)[1].bincount().tolist() for split in ("train", "val", "test")
    }
    assert counts == {"train": [20, 10, 1], "val": [2, 1, 1], "test": [3, 3, 3]}
    assert not set(data._positions["train"]) & set(data._positions["val"])


def of_validation(data):
    return {data.birds.files[position] for position in data._positions["val"]}


def test_the_validation_set_is_the_same_whatever_the_settings(root):
    first = of_validation(ready(root))
    assert of_validation(ready(root, seed=2, size=448, batch_size=3, augment=False)) == first
    one = of_validation(ready(root, species="Kind_b_Wren"))
    assert one == {file for file in first if file.startswith(species_folder(2))}


def test_the_validation_set_is_fixed_for_all_time(root):
    birds = cub_files.read_birds(root, [1, 2, 3])
    assert birds.ids[validates(birds)].tolist() == [22, 31, 46, 53]


def test_labels_are_dense_in_the_official_order(root):
    data = ready(root, species=[3, "001.Kind_a_Wren"])
    assert data.classes == 2
    assert data.names == ["Kind_a_Wren", "Kind_c_Wren"]
    assert every(data, "test")[1].tolist() == [0, 0, 0, 1, 1, 1]
    whole = ready(root)
    assert torch.equal(every(data, "test")[0], every(whole, "test")[0][[0, 1, 2, 6, 7, 8]])


def test_the_number_of_classes_needs_no_files():
    assert CubData(root="nowhere").classes == 200
    assert CubData(root="nowhere", species="Any_Name,3-5").classes == 4


def test_loaders_deliver_every_sample_of_the_fixed_sets_once(root):
    data = ready(root, eval_batch_size=4, batch_size=4)
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.test_dataloader()]
    assert [len(images) for images, _ in batches] == [4, 4, 1]
    assert torch.equal(torch.cat([images for images, _ in batches]), every(data, "test")[0])
    assert len(data.train_dataloader()) == 31 // 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gets_the_same(root):
    data, index = ready(root), torch.tensor([5, 20, 2])
    images, labels = data.samples("train", index.cuda())
    expected = data.samples("train", index)
    assert images.device.type == "cuda"
    torch.testing.assert_close(images.cpu(), expected[0])
    assert torch.equal(labels.cpu(), expected[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 256}, r"data\.size must be 224 or 448 pixels, got 256"),
        ({"workers": 0}, r"data\.workers must be a positive integer or null, got 0"),
        ({"batch_size": 0}, r"data\.batch_size must be a positive integer, got 0"),
        ({"eval_batch_size": 0}, r"data\.eval_batch_size must be a positive integer, got 0"),
        ({"species": "1-300"}, r"data\.species must be .* got '1-300'"),
    ],
)
def test_settings_out_of_range_are_told(settings, message):
    with pytest.raises(UsageError, match=message):
        CubData(**settings)


def test_a_batch_larger_than_the_training_set_is_told(root):
    with pytest.raises(
        UsageError,
        match=r"data\.batch_size must be at most 31, the size of the training set, got 32",
    ):
        ready(root, batch_size=32)


@pytest.mark.parametrize(
    ("species", "classes"),
    [("1-50", 50), ("[1-3,7]", 4), ("7", 1), ("null", 200)],
)
def test_the_configuration_names_every_setting(composed, species, classes):
    config = composed("data=cub", "data.root=somewhere", f"data.species={species}")
    settings = {key: value for key, value in config.data.items() if key != "_target_"}
    assert CubData(**settings).classes == classes


# Parts and boxes


def test_parts_and_boxes_are_those_computed_by_hand(tmp_path):
    """512 x 400 becomes 256 x 200: of a place p the crop has x = (p + 0.5) / 2 - 16 and y = (p + 0.5) / 2 + 12 pixels."""
    bird = Bird(
        picture=Image.new("RGB", (512, 400)),
        parts=((100.0, 100.0, 1), (10.0, 100.0, 1), (0.0, 0.0, 0)),
        box=(10.0, 20.0, 400.0, 300.0),
    )
    data = of_pictures(tmp_path, bird)
    x, y = 34.25 / 112 - 1, 62.25 / 112 - 1
    torch.testing.assert_close(
        data.parts("test"), torch.tensor([[[x, y, 1], [-10.75 / 112 - 1, y, 0], [0, 0, 0]]])
    )
    box = [-1, 22.25 / 112 - 1, 189.25 / 112 - 1, 172.25 / 112 - 1]
    torch.testing.assert_close(data.boxes("test"), torch.tensor([box]))
    assert data.part_names == list(PARTS)


@pytest.mark.parametrize("size", [224, 448])
@pytest.mark.parametrize(
    ("picture", "x", "y"), [((500, 375), 130, 300), ((333, 500), 300, 200), ((256, 256), 40, 222)]
)
def test_a_part_is_where_the_crop_shows_it(tmp_path, size, picture, x, y):
    parts = ((float(x), float(y), 1),) * 3
    box = (
        x - 6.5,
        y - 6.5,
        13.0,
        13.0,
    )  # around the disc, whose pixels reach half a pixel beyond their centres
    data = of_pictures(
        tmp_path, Bird(picture=spot(*picture, x, y), parts=parts, box=box), size=size
    )
    (image,) = every(data, "test")[0]
    sides = ((torch.arange(size) + 0.5) / size * 2 - 1,) * 2
    light = torch.where((image - MEAN).abs().amax(0) < 1e-4, 0, image[0] * (image[0] > 0.1))
    found = [
        float((light.sum(axis) * side).sum() / light.sum()) for axis, side in zip((0, 1), sides)
    ]
    (left, top, right, bottom), (part, *_) = data.boxes("test")[0], data.parts("test")[0]
    pixel = 2 / size
    np.testing.assert_allclose(found, part[:2], atol=0.1 * pixel)
    assert part[2] == 1
    bright = light > 0.5
    for axis, (low, high) in zip((0, 1), ((left, right), (top, bottom))):
        (there,) = torch.nonzero(bright.any(axis), as_tuple=True)
        edges = torch.stack([there[0], there[-1] + 1]) * pixel - 1
        np.testing.assert_allclose(edges, (low, high), atol=pixel)


def test_measures_are_of_the_images_of_their_split(tmp_path):
    birds = [
        Bird(training=i % 3 > 0, parts=((float(i), 20.0, 1),) * 3, box=(float(i), 1.0, 9.0, 9.0))
        for i in range(9)
    ]
    data = ready(write_birds(tmp_path / "birds", birds, species=1))
    for split in ("val", "test"):
        x = (torch.from_numpy(data._positions[split]) + 0.5) * 256 / 60 - 16
        expected = x / 112 - 1
        torch.testing.assert_close(data.parts(split)[:, 0, 0], expected.float())
        torch.testing.assert_close(data.boxes(split)[:, 0], expected.float().clamp(-1, 1))
        assert data.parts(split).shape == (data.size(split), 3, 3)
        assert data.parts(split).dtype == data.boxes(split).dtype == torch.float32


def test_training_crops_have_no_measures(root):
    data = ready(root)
    for measure in (data.parts, data.boxes):
        with pytest.raises(
            UsageError, match=r"Only the crops of val and test are fixed, got split 'train'"
        ):
            measure("train")


# The cache


@pytest.fixture
def few(tmp_path):
    return write_birds(
        tmp_path / "birds",
        [Bird(n, training) for n in (1, 2) for training in (True, True, False)],
        species=2,
    )


def cached(folder):
    return sorted(path.name for path in (folder / "cub").glob("[!.]*"))


def empty_images(root):
    for image in root.glob("images/*/*.jpg"):
        image.write_bytes(b"")


def test_a_second_start_opens_what_the_first_made(few):
    first = every(ready(few), "test")[0]
    empty_images(few)
    second = ready(few)
    assert torch.equal(every(second, "test")[0], first)
    assert isinstance(second.images.pixels.base, np.memmap)
    assert len(cached(few / "cache")) == 1


def test_each_choice_of_species_and_size_has_its_own_cache(few):
    for settings in ({}, {"species": "2"}, {"species": "1"}, {"size": 448}):
        ready(few, **settings)
    assert len(cached(few / "cache")) == 4
    empty_images(few)
    for species in ("2,1", "Kind_a_Wren"):
        ready(few, species=species)
    assert len(cached(few / "cache")) == 4


@pytest.mark.parametrize("file", cub_files.COLUMNS)
def test_for_changed_text_files_images_are_made_again(few, file):
    ready(few)
    os.utime(few / file, ns=(1, 1))
    ready(few)
    assert len(cached(few / "cache")) == 2


@pytest.mark.parametrize("name", ["pixels.bin", "originals.npy"])
def test_a_single_changed_byte_of_the_cache_is_found(few, caplog, name):
    whole = every(ready(few), "test")[0]
    (file,) = (few / "cache" / "cub").glob(f"*/{name}")
    content = bytearray(file.read_bytes())
    content[-1] ^= 128
    file.write_bytes(content)
    assert torch.equal(every(ready(few), "test")[0], whole)
    (message,) = caplog.messages
    assert f"the checksum of {name} is wrong" in message


@pytest.mark.parametrize(
    "damage", [lambda c: c[: len(c) // 2], lambda c: c[:-20], lambda c: b"", lambda c: b"no image"]
)
def test_an_image_that_cannot_be_decoded_is_named_and_nothing_is_left(few, damage):
    path = few / "images" / species_folder(2) / "Wren_0015.jpg"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UsageError, match=rf"the image {path} cannot be decoded: "):
        ready(few)
    assert cached(few / "cache") == []


@pytest.mark.parametrize("file", ["bounding_boxes.txt", "parts/part_locs.txt"])
def test_a_text_file_that_is_needed_only_later_is_read_at_the_start(few, file):
    (few / file).write_text("11 1.0\n")
    with pytest.raises(UsageError, match=rf"damaged: {few / file}: "):
        ready(few)
    assert cached(few / "cache") == []


def test_several_processes_make_the_same_in_the_same_order(few, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__file__", None, raising=False)  # pytest's
    birds = cub_files.read_birds(few, [1, 2])
    alone = open_images(birds, 224, tmp_path / "alone", workers=1)
    monkeypatch.setattr(cub_images, "_CHUNK", 1)
    monkeypatch.setattr(cub_images, "_FEW", 1)
    together = open_images(birds, 224, tmp_path / "together", workers=2)
    np.testing.assert_array_equal(alone.pixels, together.pixels)
    np.testing.assert_array_equal(alone.sizes, together.sizes)


# The digest


def test_the_digest_is_of_the_content_and_not_of_its_place(few, tmp_path):
    digest = ready(few).digest()
    assert len(digest) == 16
    assert ready(shutil.copytree(few, tmp_path / "copy")).digest() == digest


def other_image(root):
    Image.new("RGB", (60, 40)).save(root / "images" / species_folder(2) / "Wren_0015.jpg")


def another_training_image(root):
    text = (root / "train_test_split.txt").read_text()
    (root / "train_test_split.txt").write_text(text.replace(" 0", " 1", 1))


@pytest.mark.parametrize("change", [other_image, another_training_image])
def test_the_digest_changes_with_the_data(few, tmp_path, change):
    digest = ready(few).digest()
    assert ready(few, species="1").digest() != digest
    other = shutil.copytree(few, tmp_path / "other")
    change(other)
    assert ready(other, cache=tmp_path / "other cache").digest() != digest


# The real ones


def test_real_birds_are_found_with_their_parts_in_their_boxes(cub_root, tmp_path):
    data = ready(cub_root, species="36,48", cache=tmp_path)
    assert data.names == ["Northern_Flicker", "European_Goldfinch"]
    assert [data.size(split) for split in ("train", "val", "test")] == [54, 6, 60]
    images, labels = every(data, "test")
    assert labels.bincount().tolist() == [30, 30]
    assert images.std((1, 2, 3)).min() > 0.03
    parts, boxes = data.parts("test"), data.boxes("test")
    assert parts.shape == (60, 15, 3)
    assert len(data.part_names) == 15
    seen = parts[:, :, 2] == 1
    inside = (
        (parts[:, :, :2] >= boxes[:, None, :2]) & (parts[:, :, :2] <= boxes[:, None, 2:])
    ).all(2)
    assert inside[seen].float().mean() > 0.99
    assert (boxes[:, :2] < boxes[:, 2:]).all()
    assert (parts[~seen][:, 2] == 0).all()


def test_the_real_part_that_is_not_there_is_told_with_the_way_out(cub_root, tmp_path):
    if (cub_root / "images" / "051.Horned_Grebe").is_dir():
        pytest.skip("all of CUB-200-2011 is here")
    with pytest.raises(UsageError, match="does not contain 8,899 of 11,788 files"):
        CubData(root=cub_root, cache=tmp_path).prepare_data()

"""SVHN's crops, their cache, and the batches made of them."""

import os
import shutil

import numpy as np
import pytest
import torch
from make_svhn import make, scene, write_annotations
from PIL import Image

from spatial_transformer.data.mnist import files as mnist_files
from spatial_transformer.data.svhn import SvhnData, crops
from spatial_transformer.data.svhn.crops import crop, open_crops, union_box
from spatial_transformer.data.svhn.datamodule import augmented, validation_positions
from spatial_transformer.data.svhn.files import Annotation, read_annotations
from spatial_transformer.utils.errors import UsageError

BOX = (20.0, 10.0, 6.0, 12.0)


def write_part(folder, entries, but=()):
    """A part of random images of 60 x 40 pixels; entries are (boxes, labels), None for a box that does not matter."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(len(entries))
    annotations = []
    for i, (boxes, labels) in enumerate(entries, 1):
        if i not in but:
            Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(
                folder / f"{i}.png"
            )
        boxes = [(20 + 7 * j, *BOX[1:]) for j in range(len(labels))] if boxes is None else boxes
        annotations.append(Annotation(f"{i}.png", np.array(boxes, dtype=float), labels))
    write_annotations(folder, annotations)
    return folder


@pytest.fixture
def part(tmp_path):
    return write_part(
        tmp_path / "svhn" / "train", [(None, (1,)), (None, (2, 0)), (None, (3, 4, 5))]
    )


@pytest.fixture(scope="module")
def small_root(tmp_path_factory):
    """40 training, 10 test and 20 extra images; the labels tell which they are."""
    root = tmp_path_factory.mktemp("small")
    for name, n, first in (("train", 40, 1), ("test", 10, 2), ("extra", 20, 3)):
        write_part(root / name, [(None, (first, i // 10, i % 10)) for i in range(n)])
    return root


# Crops


def coordinates(width, height):
    """An image whose red and green are the coordinates of the pixel's centre, times 2."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([2 * x + 1, 2 * y + 1, 0 * x], -1).astype(np.uint8))


def centres(low, high, size):
    return low + (np.arange(size) + 0.5) * (high - low) / size


@pytest.mark.parametrize(
    ("enlargement", "size", "x", "y"),
    [
        (1.3, 64, (43.5, 56.5), (24, 76)),
        (2.6, 128, (37, 63), (-2, 102)),
        (1.0, 5, (45, 55), (30, 70)),
    ],
)
def test_a_crop_is_the_enlarged_box_about_its_centre(enlargement, size, x, y):
    pixels = crop(coordinates(120, 100), np.array([45.0, 30, 55, 70]), enlargement, size)
    assert pixels.shape == (size, size, 3)
    inside = (centres(*y, size) > 1) & (centres(*y, size) < 99)
    np.testing.assert_allclose(pixels[0, :, 0], 2 * centres(*x, size), atol=1)
    np.testing.assert_allclose(pixels[inside, 0, 1], 2 * centres(*y, size)[inside], atol=1)


def test_outside_of_the_image_its_edge_goes_on():
    pixels = crop(coordinates(50, 40), np.array([-20.0, -10, 20, 30]), 1.0, 40)
    np.testing.assert_array_equal(pixels[:10, :20], np.broadcast_to((1, 1, 0), (10, 20, 3)))
    np.testing.assert_array_equal(pixels[10:, 20:], np.asarray(coordinates(20, 30)))
    np.testing.assert_array_equal(pixels[:10, 20:, 0], np.asarray(coordinates(20, 10))[:, :, 0])
    np.testing.assert_array_equal(pixels[10:, :20, 1], np.asarray(coordinates(20, 30))[:, :, 1])


def test_a_box_beyond_the_far_edges_is_filled_too():
    pixels = crop(coordinates(50, 40), np.array([30.0, 20, 70, 60]), 1.0, 40)
    np.testing.assert_array_equal(pixels[20:, 20:], np.broadcast_to((99, 79, 0), (20, 20, 3)))
    np.testing.assert_array_equal(pixels[:20, :20], np.asarray(coordinates(50, 40))[20:, 30:])


def test_a_reduced_crop_is_antialiased_as_in_the_whole_image():
    noise = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    )
    pixels = crop(noise, np.array([100.0, 50, 300, 250]), 1.3, 64)
    whole = noise.resize((64, 64), Image.Resampling.BILINEAR, box=(70, 20, 330, 280))
    assert abs(pixels.astype(int) - np.asarray(whole)).max() <= 1
    assert pixels.std() < 30  # of noise of standard deviation 74


def test_the_union_box_holds_all_digits():
    assert union_box(np.array([[5.0, 9, 4, 10], [10, 7, 3, 8]])).tolist() == [5, 7, 13, 19]


def test_labels_are_sorted_from_left_to_right_and_padded(tmp_path):
    boxes = [(30, 10, 5, 9), (10, 10, 5, 9), (20, 10, 5, 9)]
    source = write_part(tmp_path / "train", [(boxes, (1, 2, 0)), (None, (5,))])
    assert open_crops(source, 64).labels.tolist() == [[2, 0, 1, 10, 10], [5, 10, 10, 10, 10]]


def test_what_cannot_be_used_is_counted_and_named_once(tmp_path, caplog):
    entries = [
        (None, (1,)),
        ([(20, 10, 0, 12)], (2,)),
        (None, (1, 2, 3, 4, 5, 6)),
        (None, (4,)),
        ([(60, 0, 9, 9)], (5,)),
    ]
    entries += [
        ([(-5, -5, 20, 60)], (6,)),
        ([(0, 0, 1e9, 5)], (7,)),
        ([(np.nan, 0, 5, 5)], (8,)),
        (None, (9,)),
    ]
    source = write_part(tmp_path / "train", entries)
    (source / "4.png").write_bytes((source / "4.png").read_bytes()[:500])
    (source / "9.png").write_bytes(b"no image")
    assert open_crops(source, 64).labels[:, 0].tolist() == [1, 6]
    assert (
        f"1 of 9 images in {source / 'digitStruct.mat'} have more than 5 digits: '3.png'. They are left out."
        in caplog.text
    )
    assert (
        "have a box without area or outside of the image: '2.png', '5.png', '7.png', '8.png'."
        in caplog.text
    )
    assert "have a file that cannot be decoded: '4.png', '9.png'." in caplog.text
    caplog.clear()
    open_crops(source, 64)
    assert not caplog.messages


def test_a_part_without_a_usable_image_is_refused(tmp_path):
    source = write_part(tmp_path / "train", [([(20, 10, 0, 12)], (2,))])
    with pytest.raises(UsageError, match=f"{source} has no image that can be used"):
        open_crops(source, 64)
    assert cached(tmp_path / "cache") == []


def test_images_that_are_missing_are_counted_and_named(tmp_path):
    source = write_part(tmp_path / "train", [(None, (1,))] * 9, but=(2, 3, 4, 5, 6, 7))
    with pytest.raises(
        UsageError, match=r"6 of 9 images in .* have a missing file: '2\.png', .*'6\.png', \.\.\."
    ):
        open_crops(source, 64)
    assert cached(tmp_path / "cache") == []


# The cache


def cached(folder):
    return sorted(path.name.rpartition("-")[0] for path in (folder / "svhn").glob("[!.]*"))


def remove_images(part):
    for image in part.glob("*.png"):
        image.unlink()


def test_a_second_start_opens_what_the_first_made(part):
    first = open_crops(part, 64)
    remove_images(part)
    second = open_crops(part, 64)
    assert isinstance(second.images, np.memmap)
    assert not second.images.flags.writeable
    assert second.images.shape == (3, 3, 64, 64)
    np.testing.assert_array_equal(first.images, second.images)
    assert second.digest == first.digest
    assert cached(part.parent / "cache") == ["train-64"]


def test_each_size_has_its_own_cache(part):
    open_crops(part, 64)
    open_crops(part, 128)
    assert cached(part.parent / "cache") == ["train-128", "train-64"]


def test_a_copy_that_keeps_times_needs_no_crops_of_its_own(part, tmp_path):
    open_crops(part, 64, tmp_path / "cache")
    part.parent.rename(tmp_path / "elsewhere")
    remove_images(tmp_path / "elsewhere" / "train")
    open_crops(tmp_path / "elsewhere" / "train", 64, tmp_path / "cache")


def test_a_changed_source_has_new_crops(part, tmp_path):
    open_crops(part, 64, tmp_path / "cache")
    shutil.rmtree(part)
    write_part(part, [(None, (1,))])
    os.utime(part / "digitStruct.mat", ns=(1, 1))
    assert len(open_crops(part, 64, tmp_path / "cache").labels) == 1


def test_a_single_changed_pixel_is_found(part, caplog):
    whole = open_crops(part, 64).images.copy()
    (images,) = (part.parent / "cache" / "svhn").glob("*/images.bin")
    content = bytearray(images.read_bytes())
    content[20_000] ^= 128
    images.write_bytes(content)
    np.testing.assert_array_equal(open_crops(part, 64).images, whole)
    (message,) = caplog.messages
    assert "the checksum of images.bin is wrong" in message


def test_several_processes_make_the_same_in_the_same_order(small_root, tmp_path, monkeypatch):
    alone = open_crops(small_root / "train", 64, tmp_path / "alone", workers=1)
    monkeypatch.setattr(crops, "_CHUNK", 4)
    monkeypatch.setattr(crops, "_FEW", 1)
    monkeypatch.setattr(crops, "map_in_processes", reversed_work)
    together = open_crops(small_root / "train", 64, tmp_path / "together", workers=2)
    np.testing.assert_array_equal(alone.images, together.images)
    np.testing.assert_array_equal(alone.labels, together.labels)


def reversed_work(function, items, workers, description):
    """Does the last piece of work first, as other processes may."""
    assert workers == 2
    return reversed([function(item) for item in reversed(items)])


# The digest


def test_the_digest_is_of_the_content_and_not_of_its_place(small_root, tmp_path):
    copy = shutil.copytree(small_root, tmp_path / "copy")
    assert ready(copy, tmp_path).digest() == ready(small_root, tmp_path).digest()
    assert len(ready(small_root, tmp_path).digest()) == 16


def test_the_digest_changes_with_the_data(small_root, tmp_path):
    digests = {
        ready(small_root, tmp_path / "cache").digest(),
        ready(small_root, tmp_path / "cache", extra=False).digest(),
    }
    exchanged = shutil.copytree(small_root, tmp_path / "exchanged")
    for old, new in (("train", "x"), ("test", "train"), ("x", "test")):
        (exchanged / old).rename(exchanged / new)
    digests.add(ready(exchanged, tmp_path / "exchanged cache").digest())
    other = shutil.copytree(small_root, tmp_path / "other")
    Image.new("RGB", (60, 40)).save(other / "test" / "3.png")
    digests.add(ready(other, tmp_path / "other cache").digest())
    assert len(digests) == 4


# Batches


def ready(root, tmp_path, **settings):
    data = SvhnData(root=root, cache=tmp_path, workers=1, **{"batch_size": 8, **settings})
    data.prepare_data()
    data.setup()
    return data


def every(data, split, epoch=0):
    return data.samples(split, torch.arange(data.size(split)), epoch)


@pytest.mark.parametrize("size", [64, 128])
def test_samples_have_their_shapes_and_no_mean(small_root, tmp_path, size):
    data = ready(small_root, tmp_path, size=size)
    images, labels = data.samples("test", torch.tensor([3, 1]))
    assert images.shape == (2, 3, size, size)
    assert images.dtype == torch.float32
    assert images.mean((1, 2, 3)).abs().max() < 1e-6
    assert labels.tolist() == [[2, 0, 3, 10, 10], [2, 0, 1, 10, 10]]
    assert labels.dtype == torch.int64
    pixels = open_crops(small_root / "test", size, tmp_path).images[3] / np.float32(255)
    np.testing.assert_allclose(images[0], pixels - pixels.mean(), atol=1e-6)
    assert (data.input_size, data.classes) == (size, 11)


def test_splits_are_disjoint_and_whole(small_root, tmp_path):
    data = ready(small_root, tmp_path)
    assert [data.size(split) for split in ("train", "val", "test")] == [54, 6, 10]
    numbers = {
        split: {tuple(row) for row in every(data, split)[1].tolist()}
        for split in ("train", "val", "test")
    }
    assert len(numbers["train"] | numbers["val"]) == 60
    assert {row[0] for row in numbers["train"]} == {1, 3}
    assert {row[0] for row in numbers["test"]} == {2}
    assert [ready(small_root, tmp_path, extra=False).size(split) for split in ("train", "val")] == [
        36,
        4,
    ]


def test_every_image_has_its_own_labels_across_parts(small_root, tmp_path):
    data = ready(small_root, tmp_path)
    parts = [open_crops(small_root / part, 64, tmp_path) for part in ("train", "extra")]
    own = {
        tuple(label): image
        for part in parts
        for label, image in zip(part.labels.tolist(), part.images)
    }
    index = torch.tensor([50, 0, 49, 3, 3])
    for pixels, label in zip(
        data._splits["train"].images(index.numpy()), data.samples("train", index)[1].tolist()
    ):
        np.testing.assert_array_equal(pixels, own[tuple(label)])


def test_the_validation_set_is_the_same_for_every_seed_and_size(small_root, tmp_path):
    first = every(ready(small_root, tmp_path, seed=1), "val")[1]
    other = every(ready(small_root, tmp_path, seed=2, size=128, batch_size=3), "val")[1]
    assert torch.equal(first, other)


@pytest.mark.parametrize(
    ("n", "held_out"), [(235_754, 5_000), (50_000, 5_000), (33_402, 3_340), (5, 1)]
)
def test_the_validation_set_has_its_size(n, held_out):
    positions = validation_positions(n)
    assert len(np.unique(positions)) == held_out
    assert positions.max() < n
    assert (np.diff(positions) > 0).all()


def test_the_validation_set_is_fixed_for_all_time():
    assert validation_positions(60).tolist() == [2, 13, 22, 23, 31, 52]


def test_samples_depend_on_nothing_but_seed_epoch_and_index(small_root, tmp_path):
    data = ready(small_root, tmp_path, augment=True)
    images = every(data, "train", 3)[0]
    some = torch.tensor([7, 2, 30])
    torch.testing.assert_close(data.samples("train", some, 3)[0], images[some], rtol=0, atol=1e-6)
    assert torch.equal(every(ready(small_root, tmp_path, augment=True), "train", 3)[0], images)
    assert not torch.equal(every(data, "train", 4)[0], images)
    assert not torch.equal(
        every(ready(small_root, tmp_path, augment=True, seed=2), "train", 3)[0], images
    )
    assert images.mean((1, 2, 3)).abs().max() < 1e-6


def test_only_training_images_are_augmented(small_root, tmp_path):
    plain, changed = ready(small_root, tmp_path), ready(small_root, tmp_path, augment=True)
    for split in ("val", "test"):
        assert torch.equal(every(plain, split)[0], every(changed, split, 5)[0])
    assert torch.equal(every(plain, "train", 0)[0], every(plain, "train", 1)[0])
    assert not torch.equal(every(plain, "train")[0], every(changed, "train")[0])


def test_augmentation_changes_place_and_colour_within_bounds():
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    spot = 0.25 + 0.5 * (x.square() + y.square() < 0.04)
    images = torch.stack([spot, spot, 0.8 * spot + 0.1]).expand(400, -1, -1, -1)
    changed = augmented(images, torch.arange(400) * 7919)
    assert changed.min() >= 0
    assert changed.max() <= 1
    grey = changed.mean(1)
    found = (grey - grey[:, :1, :1]).abs()
    found = found / found.sum((1, 2), keepdim=True)
    for axis in (x, y):
        moved = (found * axis).sum((1, 2))
        assert (
            0.2 < moved.abs().max() < 0.2 * 1.25 * 1.35
        )  # 10 % of a side that is 2 long, seen through scale, turn and shear
        assert moved.mean().abs() < 0.02
    dark = (grey[:, 0, 0] > grey.amin((1, 2)) + 0.05).float().mean()
    assert 0.4 < dark < 0.6
    assert (changed[:, 0] - changed[:, 2]).abs().amax((1, 2)).max() > 0.02
    assert (changed[:, 0] - changed[:, 2]).abs().amax((1, 2)).min() < 0.005


def test_loaders_deliver_every_sample_of_the_fixed_sets_once(small_root, tmp_path):
    data = ready(small_root, tmp_path, eval_batch_size=4)
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.test_dataloader()]
    assert [len(images) for images, _ in batches] == [4, 4, 2]
    assert sorted(
        labels[1] * 10 + labels[2] for _, batch in batches for labels in batch.tolist()
    ) == list(range(10))
    assert len(data.train_dataloader()) == 54 // 8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gets_the_same_whether_images_lie_on_it_or_not(small_root, tmp_path):
    index = torch.tensor([5, 50, 2])
    expected = ready(small_root, tmp_path).samples("train", index)
    for resident in (0, 4):
        images, labels = ready(small_root, tmp_path, resident=resident).samples(
            "train", index.cuda()
        )
        assert images.device.type == "cuda"
        torch.testing.assert_close(images.cpu(), expected[0])
        assert torch.equal(labels.cpu(), expected[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 54}, r"data\.size must be 64 or 128 pixels, got 54"),
        ({"workers": 0}, r"data\.workers must be a positive integer or null, got 0"),
        ({"batch_size": 0}, r"data\.batch_size must be a positive integer, got 0"),
    ],
)
def test_settings_out_of_range_are_told(settings, message):
    with pytest.raises(UsageError, match=message):
        SvhnData(**settings)


def test_a_batch_larger_than_the_training_set_is_told(small_root, tmp_path):
    with pytest.raises(
        UsageError,
        match=r"data\.batch_size must be at most 54, the size of the training set, got 55",
    ):
        ready(small_root, tmp_path, batch_size=55)


def test_the_configuration_names_every_setting(composed):
    config = composed("data=svhn", "data.root=somewhere")
    settings = {key: value for key, value in config.data.items() if key != "_target_"}
    assert SvhnData(**settings).input_size == 64


def test_real_images_are_cropped_and_none_is_left_out(svhn_root, tmp_path, monkeypatch):
    monkeypatch.setattr(crops, "count_annotations", lambda part: 100)
    data = ready(svhn_root, tmp_path)
    assert data.size("train") + data.size("val") == 100
    images, labels = every(data, "train")
    assert images.std((1, 2, 3)).min() > 0.005
    assert labels.max() == 10
    assert (labels[:, 0] < 10).all()


# Synthetic numbers


@pytest.fixture(scope="module")
def synthetic_root(mnist_root, tmp_path_factory):
    root = tmp_path_factory.mktemp("synthetic")
    make(root, mnist_root, {"train": 60, "test": 12, "extra": 2})
    return root


def test_synthetic_numbers_are_read_back_as_they_were_written(synthetic_root, mnist_root):
    digits = [array.numpy() for array in mnist_files.read(mnist_root, train=False)]
    annotations = read_annotations(synthetic_root / "test")
    assert len(annotations) == 12
    for i, annotation in enumerate(annotations, 1):
        picture, boxes, labels = scene(np.random.default_rng([1, 1, i]), *digits)
        assert annotation.name == f"{i}.png"
        np.testing.assert_array_equal(annotation.boxes, boxes)
        assert annotation.labels == labels
        np.testing.assert_array_equal(
            np.asarray(Image.open(synthetic_root / "test" / annotation.name)), picture
        )


def test_synthetic_numbers_lie_in_their_images_from_left_to_right(synthetic_root):
    annotations = read_annotations(synthetic_root / "train")
    for annotation in annotations:
        size = Image.open(synthetic_root / "train" / annotation.name).size
        assert (annotation.boxes[:, :2] >= 0).all()
        assert (annotation.boxes[:, :2] + annotation.boxes[:, 2:] <= size).all()
        assert (np.diff(annotation.boxes[:, 0]) > 0).all()
    assert len({len(annotation.labels) for annotation in annotations}) >= 4


def test_synthetic_numbers_feed_the_data_module(synthetic_root, tmp_path):
    data = ready(synthetic_root, tmp_path)
    assert [data.size(split) for split in ("train", "val", "test")] == [56, 6, 12]
    assert every(data, "train")[0].isfinite().all()


def test_a_part_that_is_there_is_not_overwritten(synthetic_root, mnist_root):
    with pytest.raises(UsageError, match=f"{synthetic_root / 'train'} exists"):
        make(synthetic_root, mnist_root, {"train": 1})


def test_an_interrupted_making_leaves_nothing(mnist_root, tmp_path, monkeypatch):
    def interrupted(images, *_, **__):
        yield 1
        raise KeyboardInterrupt

    monkeypatch.setattr("make_svhn.track", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "new", mnist_root, {"test": 3})
    assert list((tmp_path / "new").glob("[!.]*")) == []

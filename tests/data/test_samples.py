"""What every data module has in common: what its samples depend on, and damaged images."""

from functools import partial

import pytest
import torch
from samples import differ, set_up
from tiny_birds import Bird, write_birds
from tiny_numbers import write_parts

from spatial_transformer.data.cub import CubData
from spatial_transformer.data.mnist import (
    Mnist3dData,
    MnistAdditionData,
    MnistData,
    RotatedMnistData,
)
from spatial_transformer.data.mnist.distortions import DISTORTIONS
from spatial_transformer.data.svhn import SvhnData
from spatial_transformer.utils.errors import UsageError

INDEX = torch.tensor([3, 0, 5, 1])
MODULES = {
    **{name: partial(MnistData, name, root=".") for name in DISTORTIONS},
    "rotated": partial(RotatedMnistData, root="."),
    "addition": partial(MnistAdditionData, root="."),
    "volumes": partial(Mnist3dData, 44, "."),
    "svhn": partial(SvhnData, augment=True, workers=1),
    "svhn that is not resident": partial(SvhnData, augment=True, workers=1, resident=0),
    "cub": partial(CubData, species="1-2", workers=1),
}


BIRDS = [Bird(n, training=i >= 6) for n in (1, 2) for i in range(36)]
WRITERS = {"svhn": write_parts, "cub": partial(write_birds, birds=BIRDS, species=2)}
photographs = pytest.mark.parametrize("name", WRITERS)


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    return {name: write(tmp_path_factory.mktemp(name)) for name, write in WRITERS.items()}


def open_data(name, roots, batch_size=8, **settings):
    root = {"root": roots[name.split()[0]]} if name.split()[0] in roots else {}
    return set_up(MODULES[name](batch_size=batch_size, **root, **settings))


@pytest.fixture(params=MODULES)
def build(request, roots, drawn_mnist):
    return partial(open_data, request.param, roots)


def test_training_samples_depend_on_seed_epoch_and_index_only(build):
    data = build()
    images, labels = data.samples("train", INDEX, 3)
    assert (images.shape[-1], images.dtype) == (data.input_size, torch.float32)
    assert labels.dtype == torch.int64
    for other in (data, build(batch_size=3)):
        some, some_labels = other.samples("train", INDEX[1:3], 3)
        torch.testing.assert_close(some, images[1:3], rtol=0, atol=1e-5)
        assert torch.equal(some_labels, labels[1:3])
    assert differ(images, data.samples("train", INDEX, 4)[0])
    assert differ(images, build(seed=2).samples("train", INDEX, 3)[0])


@pytest.mark.parametrize("split", ["val", "test"])
def test_fixed_sets_do_not_depend_on_settings_and_epoch(build, split):
    images, labels = build().samples(split, INDEX)
    others, other_labels = build(seed=2, batch_size=3).samples(split, INDEX, 5)
    assert torch.equal(images, others)
    assert torch.equal(labels, other_labels)
    assert differ(images, build().samples("train", INDEX)[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_has_the_samples_of_the_cpu(build):
    expected, expected_labels = build().samples("train", INDEX)
    images, labels = build().samples("train", INDEX.cuda())
    assert images.device.type == labels.device.type == "cuda"
    torch.testing.assert_close(images.cpu(), expected, rtol=0, atol=1e-4)
    assert torch.equal(labels.cpu(), expected_labels)


@photographs
def test_only_training_images_are_augmented(name, roots):
    plain, augmented = (open_data(name, roots, augment=augment) for augment in (False, True))
    for split, epoch in (("train", 0), ("val", 5), ("test", 5)):
        expected = plain.samples(split, INDEX, 1)[0]
        other = plain if split == "train" else augmented
        assert torch.equal(other.samples(split, INDEX, epoch)[0], expected)


@pytest.mark.parametrize(
    "damage", [lambda c: c[: len(c) // 2], lambda c: c[:-100], lambda c: b"no image", None]
)
@photographs
def test_damaged_or_missing_image_is_named(tmp_path, name, damage):
    root = WRITERS[name](tmp_path / name)
    path = sorted([*root.glob("test/*.png"), *root.glob("images/*/*.jpg")])[7]
    content = path.read_bytes()
    path.unlink()
    if damage is not None:
        path.write_bytes(damage(content))
    with pytest.raises(UsageError, match=rf"The image {path} cannot be read: "):
        open_data(name, {name: root})
    assert not any("test" in cache.name for cache in (root / "cache").glob("*/[!.]*"))


@photographs
def test_wrong_size_is_refused(name):
    with pytest.raises(UsageError, match=r"data\.size must be \d+ or \d+ pixels, got 256"):
        MODULES[name](size=256)

"""What the samples of every data module depend on."""

from functools import partial

import pytest
import torch
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


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    birds = [Bird(n, training=i >= 6) for n in (1, 2) for i in range(36)]
    return {
        "svhn": write_parts(tmp_path_factory.mktemp("svhn")),
        "cub": write_birds(tmp_path_factory.mktemp("cub"), birds, species=2),
    }


@pytest.fixture(params=MODULES)
def build(request, roots, drawn_mnist):
    def build_(seed=1, batch_size=8):
        name = request.param.split()[0]
        root = {"root": roots[name]} if name in roots else {}
        data = MODULES[request.param](seed=seed, batch_size=batch_size, **root)
        data.prepare_data()
        data.setup()
        return data

    return build_


def differ(images, others):
    """Return whether all images of two batches differ."""
    return ((images - others).abs().flatten(1).amax(dim=1) > 1e-3).all()


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

"""The data module: splits, what a sample depends on, and which samples the loaders hand over."""

import math
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from spatial_transformer.data.base import BatchedData, Draw
from spatial_transformer.data.mnist import MnistAdditionData, MnistData
from spatial_transformer.data.mnist import files as mnist_files
from spatial_transformer.data.mnist.distortions import DISTORTIONS
from spatial_transformer.utils.errors import UsageError

STAND_IN = Path("stand-in")
SIZES = {"train": 55_000, "val": 5_000, "test": 10_000}
EVEN_AND_UNEVEN = [(1, 1000), (2, 1000), (3, 1000), (2, 333), (3, 4096)]


@pytest.fixture(scope="module", autouse=True)
def stand_in(digits):
    """Drawn digits wherever the root is STAND_IN, each with its position in its file as its label."""
    images = (digits[:, 0] * 255).round().to(torch.uint8).repeat(60_000 // len(digits) + 1, 1, 1)
    real_prepare, real_read = mnist_files.prepare, mnist_files.read

    def prepare(root):
        return root if root is STAND_IN else real_prepare(root)

    def read(folder, train):
        n = 60_000 if train else 10_000
        return (images[:n], torch.arange(n)) if folder is STAND_IN else real_read(folder, train)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mnist_files, "prepare", prepare)
        patch.setattr(mnist_files, "read", read)
        yield


def mnist(distortion="r", trainer=None, **settings):
    """A data module that is set up; ``trainer`` gives attributes that it looks up in a trainer."""
    data = MnistData(distortion, root=STAND_IN, **settings)
    data.setup()
    if trainer is not None:
        data.trainer = SimpleNamespace(
            **{
                "global_step": 0,
                "accumulate_grad_batches": 1,
                "num_training_batches": float("inf"),
                "global_rank": 0,
                "world_size": 1,
            }
            | trainer
        )
    return data


def drawn(loader):
    return torch.cat([draw.samples for draw in loader])


def order_of(trainer=None, **settings):
    return drawn(mnist(trainer=trainer, **settings).train_dataloader())


# Splits


def test_real_mnist_is_split_into_55_000_5_000_and_10_000_digits(mnist_root):
    data = MnistData("t", canvas=28, root=mnist_root)
    data.prepare_data()
    data.setup()
    images, labels = mnist_files.read(mnist_root, train=True)
    test_images, test_labels = mnist_files.read(mnist_root, train=False)
    parts = {
        "train": (images[:55_000], labels[:55_000]),
        "val": (images[55_000:], labels[55_000:]),
        "test": (test_images, test_labels),
    }
    for split, (part, part_labels) in parts.items():
        assert len(part) == SIZES[split]
        index = torch.cat([torch.arange(0, SIZES[split], 97), torch.tensor([SIZES[split] - 1])])
        made, made_labels = data.samples(split, index)
        assert torch.equal((made[:, 0] * 255).round().to(torch.uint8), part[index])
        assert torch.equal(made_labels, part_labels[index])


@pytest.mark.parametrize(
    ("split", "first", "last"), [("train", 0, 54_999), ("val", 55_000, 59_999), ("test", 0, 9_999)]
)
def test_the_validation_set_is_the_end_of_the_training_digits(split, first, last):
    labels = mnist().samples(split, torch.tensor([0, SIZES[split] - 1]))[1]
    assert labels.tolist() == [first, last]


@pytest.mark.parametrize("split", SIZES)
def test_no_split_goes_on_beyond_its_size(split):
    with pytest.raises(IndexError):
        mnist().samples(split, torch.tensor([SIZES[split]]))


def test_there_are_ten_classes():
    assert MnistData.classes == 10


# Samples


@pytest.mark.parametrize(
    ("distortion", "canvas"), [("r", 28), ("rts", 42), ("p", 28), ("e", 28), ("t", 60), ("tc", 60)]
)
def test_the_canvas_is_the_papers_unless_another_is_asked_for(distortion, canvas):
    for asked, size in ((None, canvas), (70, 70)):
        data = mnist(distortion, canvas=asked)
        images, labels = data.samples("train", torch.arange(5))
        assert data.input_size == size
        assert images.shape == (5, 1, size, size)
        assert images.dtype == torch.float32
        assert 0 <= images.min() < images.max() <= 1 + 1e-6
        assert labels.shape == (5,)
        assert labels.dtype == torch.int64


@pytest.mark.parametrize("distortion", DISTORTIONS)
@pytest.mark.parametrize("split", SIZES)
def test_a_sample_is_repeatable_whatever_batch_it_is_in(distortion, split):
    index = torch.tensor([4999, 0, 7, 7, 123])
    together, labels = mnist(distortion).samples(split, index, epoch=2)
    for k, one in enumerate(index):
        alone, label = mnist(distortion).samples(split, one[None], epoch=2)
        torch.testing.assert_close(alone[0], together[k], rtol=0, atol=5e-6)
        assert label == labels[k]


@pytest.mark.parametrize("distortion", DISTORTIONS)
@pytest.mark.parametrize("split", ["val", "test"])
def test_fixed_sets_are_the_same_for_every_seed_and_epoch(distortion, split):
    index = torch.arange(20)
    first = mnist(distortion, seed=1).samples(split, index, epoch=0)[0]
    assert torch.equal(first, mnist(distortion, seed=2).samples(split, index, epoch=0)[0])
    assert torch.equal(first, mnist(distortion, seed=1).samples(split, index, epoch=5)[0])
    assert torch.equal(first, mnist(distortion, fresh=False).samples(split, index, epoch=5)[0])


def differ(images, others):
    return ((images - others).abs().amax(dim=(1, 2, 3)) > 1e-3).all()


@pytest.mark.parametrize("split", ["val", "test"])
def test_another_draw_distorts_the_same_digits_in_another_way_each_time_the_same(split):
    data, index = mnist(), torch.arange(9)
    (first, labels), (again, _), (other, _) = (
        data.redraw(split, index, draw) for draw in (1, 1, 2)
    )
    fixed, expected = data.samples(split, index)
    assert torch.equal(labels, expected)
    assert torch.equal(first, again)
    for one, another in ((first, other), (first, fixed)):
        assert not any(torch.equal(*pair) for pair in zip(one, another, strict=True))


@pytest.mark.parametrize("distortion", DISTORTIONS)
def test_training_samples_differ_from_seed_to_seed_and_from_epoch_to_epoch(distortion):
    index = torch.arange(20)
    first = mnist(distortion, seed=1).samples("train", index, epoch=0)[0]
    assert differ(first, mnist(distortion, seed=2).samples("train", index, epoch=0)[0])
    assert differ(first, mnist(distortion, seed=1).samples("train", index, epoch=1)[0])


def test_splits_are_distorted_independently():
    white = torch.full((1, 28, 28), 255, dtype=torch.uint8).expand(60_000, 28, 28)
    data = mnist("rts")
    data._images = {split: white for split in SIZES}
    train, val, test = (data.samples(split, torch.arange(20))[0] for split in SIZES)
    assert differ(train, val)
    assert differ(train, test)
    assert differ(val, test)


def test_without_fresh_distortions_every_epoch_has_those_of_the_first():
    index = torch.arange(20)
    fresh = mnist(fresh=True).samples("train", index, epoch=0)[0]
    for epoch in (0, 1, 7):
        assert torch.equal(mnist(fresh=False).samples("train", index, epoch)[0], fresh)
    assert differ(fresh, mnist(fresh=False, seed=2).samples("train", index, 1)[0])


@pytest.mark.parametrize("split", SIZES)
def test_clutter_is_cut_from_training_digits_in_every_split(split):
    data = mnist("tc")
    white, black = (torch.full((1, 28, 28), value, dtype=torch.uint8) for value in (255, 0))
    data._images = {
        name: (white if name == "train" else black).expand(SIZES[name], 28, 28) for name in SIZES
    }
    made = data.samples(split, torch.arange(50))[0]
    ink = made.sum(dim=(1, 2, 3))
    assert made.unique().tolist() == [0, 1]
    assert (ink > 36).all()
    assert split == "train" or (ink <= 6 * 36).all()


def test_a_batch_that_reaches_the_device_becomes_the_samples_it_names():
    data = mnist("rts")
    draw = Draw("train", 3, torch.tensor([5, 2]))
    images, labels = data.on_after_batch_transfer(draw, 0)
    expected, expected_labels = data.samples("train", torch.tensor([5, 2]), epoch=3)
    assert torch.equal(images, expected)
    assert torch.equal(labels, expected_labels)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_samples_are_made_on_the_device_of_the_index():
    images, labels = mnist("tc").samples("test", torch.arange(5, device="cuda"))
    assert images.device.type == labels.device.type == "cuda"
    torch.testing.assert_close(
        images.cpu(), mnist("tc").samples("test", torch.arange(5))[0], rtol=0, atol=1e-4
    )


# The training loader


@pytest.mark.parametrize("batch_size", [256, 1000, 54_999, 55_000])
def test_an_epoch_has_whole_batches_only_and_no_sample_twice(batch_size):
    loader = mnist(batch_size=batch_size).train_dataloader()
    draws = list(loader)
    assert len(draws) == len(loader) == 55_000 // batch_size
    assert {(draw.split, draw.epoch, len(draw.samples)) for draw in draws} == {
        ("train", 0, batch_size)
    }
    index = drawn(draws)
    assert len(index.unique()) == len(index)
    assert 0 <= index.min() <= index.max() < 55_000


def test_the_order_of_an_epoch_is_a_thorough_mix():
    index = order_of(batch_size=1000).double()
    position = torch.arange(55_000.0, dtype=torch.float64)
    for other in (position, index.roll(1), index.roll(1000)):
        assert abs(torch.corrcoef(torch.stack([index, other]))[0, 1]) < 4.5 / 55_000**0.5


def test_the_order_is_the_same_for_the_same_seed_and_epoch():
    assert torch.equal(order_of(seed=3), order_of(seed=3))


def test_the_order_depends_on_the_seed():
    assert (order_of(seed=1) == order_of(seed=2)).float().mean() < 0.001


def test_the_order_depends_on_the_epoch():
    assert (order_of() == order_of({"global_step": 55_000 // 256})).float().mean() < 0.001


def test_the_order_does_not_depend_on_the_distortion():
    first, second = (
        drawn(islice(mnist(distortion).train_dataloader(), 3)) for distortion in ("r", "tc")
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize("fresh", [True, False])
def test_the_order_changes_from_epoch_to_epoch_with_fresh_distortions_or_without(fresh):
    orders = [
        order_of({"global_step": epoch * 55}, fresh=fresh, batch_size=1000) for epoch in range(3)
    ]
    assert (orders[0] == orders[1]).float().mean() < 0.001
    assert (orders[1] == orders[2]).float().mean() < 0.001


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_ranks_share_the_batches_of_a_single_device(world_size):
    whole = list(mnist().train_dataloader())
    ranks = [
        mnist(trainer={"global_rank": rank, "world_size": world_size}).train_dataloader()
        for rank in range(world_size)
    ]
    assert {len(loader) for loader in ranks} == {len(whole)}
    for draw, *shares in zip(whole, *ranks, strict=True):
        assert (
            torch.cat([share.samples for share in shares]).sort()[0].equal(draw.samples.sort()[0])
        )
        assert len({len(share.samples) for share in shares}) == 1
        assert {share.epoch for share in shares} == {draw.epoch}


@pytest.mark.parametrize(
    ("steps", "accumulated", "epoch", "done"),
    [
        pytest.param(0, 1, 0, 0, id="at the start"),
        pytest.param(37, 1, 0, 37, id="in the first epoch"),
        pytest.param(54, 1, 0, 54, id="before the last batch"),
        pytest.param(55, 1, 1, 0, id="between two epochs"),
        pytest.param(3 * 55 + 20, 1, 3, 20, id="in a later epoch"),
        pytest.param(4, 5, 0, 20, id="with accumulated gradients"),
        pytest.param(11, 5, 1, 0, id="between two epochs, with accumulated gradients"),
    ],
)
def test_a_resumed_epoch_goes_on_with_the_batches_that_remain(steps, accumulated, epoch, done):
    whole = list(mnist(batch_size=1000, trainer={"global_step": epoch * 55}).train_dataloader())
    resumed = mnist(
        batch_size=1000, trainer={"global_step": steps, "accumulate_grad_batches": accumulated}
    ).train_dataloader()
    rest = list(resumed)
    assert len(whole) == len(resumed) == 55
    assert len(rest) == 55 - done
    for draw, expected in zip(rest, whole[done:], strict=True):
        assert draw.epoch == expected.epoch == epoch
        assert torch.equal(draw.samples, expected.samples)


def test_every_pass_over_one_loader_asks_anew_how_far_training_is():
    data = mnist(batch_size=1000, trainer={})
    loader = data.train_dataloader()
    assert {draw.epoch for draw in loader} == {0}
    data.trainer.global_step = 55 + 50
    assert [draw.epoch for draw in loader] == [1] * 5


def test_all_steps_of_an_epoch_have_as_many_batches():
    # 55 batches, 4 to a step: 13 steps, and the last 3 batches are left out.
    loader = mnist(
        batch_size=1000, trainer={"global_step": 13, "accumulate_grad_batches": 4}
    ).train_dataloader()
    assert len(loader) == 52
    assert [draw.epoch for draw in loader] == [1] * 52


def test_a_limit_on_the_batches_of_an_epoch_counts_where_training_is():
    # 12 of 55 batches, 4 to a step: 3 steps to an epoch.
    limited = {"global_step": 4, "accumulate_grad_batches": 4, "num_training_batches": 12}
    draws = list(mnist(batch_size=1000, trainer=limited).train_dataloader())
    assert {draw.epoch for draw in draws} == {1}
    assert len(draws) == 48  # from the 5th batch on; the trainer stops at its limit


# The loaders of the fixed sets


@pytest.mark.parametrize(("world_size", "batch_size"), EVEN_AND_UNEVEN)
@pytest.mark.parametrize("split", ["val", "test"])
def test_a_fixed_set_is_covered_once_by_all_ranks_together(split, world_size, batch_size):
    covered = []
    for rank in range(world_size):
        data = mnist(
            eval_batch_size=batch_size,
            trainer={"global_rank": rank, "world_size": world_size, "global_step": 99},
        )
        loader = data.val_dataloader() if split == "val" else data.test_dataloader()
        draws = list(loader)
        assert len(draws) == len(loader) == -(-SIZES[split] // batch_size)
        assert {(draw.split, draw.epoch) for draw in draws} == {(split, 0)}
        covered.append(drawn(draws))
    assert torch.cat(covered).sort()[0].equal(torch.arange(SIZES[split]))


def test_a_fixed_set_comes_in_order_and_the_last_batch_is_what_remains():
    draws = list(mnist(eval_batch_size=1500).test_dataloader())
    assert [len(draw.samples) for draw in draws] == [1500] * 6 + [1000]
    assert drawn(draws).equal(torch.arange(10_000))


# The digest


def test_the_digest_is_that_of_the_official_files():
    assert len(MnistData().digest()) == 16
    assert (
        MnistData(root="elsewhere", seed=3).digest()
        == MnistAdditionData().digest()
        == MnistData().digest()
    )


class OwnData(BatchedData):
    """All that a data module needs for training."""

    input_size, classes = 4, 3

    def size(self, split):
        return 8

    def samples(self, split, index, epoch=0):
        return torch.zeros(len(index), 1, 4, 4), index % 3


def test_a_data_module_of_the_users_needs_sizes_and_samples_only():
    data = OwnData(batch_size=4, eval_batch_size=8, seed=1)
    assert [len(data.on_after_batch_transfer(draw, 0)[1]) for draw in data.train_dataloader()] == [
        4,
        4,
    ]
    assert data.digest() == ""
    assert data.decode_labels(torch.tensor([2, 0])) == ["2", "0"]
    assert torch.equal(data.to_display(torch.ones(1)), torch.ones(1))
    with pytest.raises(UsageError, match="no method `preprocess_picture`"):
        data.preprocess_picture(Image.new("RGB", (4, 4)))
    data.names = ["a", "b", "c"]
    assert data.decode_labels(torch.tensor([2, 0])) == ["c", "a"]


# Wrong settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"distortion": "rst"}, r"data\.distortion must be one of r, rts, p, e, t, tc, got rst"),
        ({"distortion": "RTS"}, r"data\.distortion must be one of .* got RTS"),
        (
            {"distortion": "r", "canvas": 27},
            r"data\.canvas must be from 28 to 1024 pixels for r, got 27.*paper has 28",
        ),
        (
            {"distortion": "rts", "canvas": 33},
            r"data\.canvas must be from 34 .* got 33.*paper has 42",
        ),
        ({"distortion": "tc", "canvas": 0}, r"data\.canvas must be from 28 .* got 0.*paper has 60"),
        ({"distortion": "r", "canvas": 1025}, r"data\.canvas must be from 28 to 1024 .* got 1025"),
        (
            {"distortion": "r", "corner_std": 2.5},
            r"data\.corner_std must be null, .* got 2\.5 with r",
        ),
        (
            {"distortion": "p", "corner_std": -1.0},
            r"data\.corner_std must be .* at least 0 .* got -1\.0 with p",
        ),
        ({"batch_size": 0}, r"data\.batch_size must be a positive integer, got 0"),
        ({"eval_batch_size": -1}, r"data\.eval_batch_size must be a positive integer, got -1"),
        ({"batch_size": 55_001}, r"data\.batch_size must be at most 55,000, .* got 55,001"),
    ],
    ids=str,
)
def test_a_setting_out_of_range_is_named(settings, message):
    with pytest.raises(UsageError, match=message):
        MnistData(**settings)


def test_the_corners_of_p_move_as_far_as_asked():
    index = torch.arange(50)
    at_rest, mild, papers = (
        mnist("p", corner_std=std).samples("val", index)[0] for std in (0, 2.5, None)
    )
    assert torch.equal(papers, mnist("p", corner_std=5 / math.sqrt(2)).samples("val", index)[0])
    moved = [(images - at_rest).abs().mean() for images in (mild, papers)]
    assert 0 < moved[0] < moved[1]


@pytest.mark.parametrize(("name", "distortion"), DISTORTIONS.items(), ids=DISTORTIONS)
def test_the_smallest_canvas_works_and_one_pixel_less_is_refused(name, distortion):
    images, _ = mnist(name, canvas=distortion.smallest).samples("val", torch.arange(50))
    assert images.isfinite().all()
    with pytest.raises(UsageError, match=r"data\.canvas must be from"):
        MnistData(name, canvas=distortion.smallest - 1)


def test_a_batch_that_cannot_be_shared_out_evenly_is_refused():
    data = mnist(batch_size=2, trainer={"world_size": 3})
    with pytest.raises(
        UsageError, match=r"data\.batch_size must be a multiple of the 3 devices, got 2\. Use 3\."
    ):
        data.train_dataloader()


def test_a_data_folder_that_is_not_there_is_told_before_training(tmp_path):
    data = MnistData(root=tmp_path / "nowhere")
    with pytest.raises(UsageError, match="nowhere"):
        data.prepare_data()
    with pytest.raises(UsageError, match="nowhere"):
        data.setup()

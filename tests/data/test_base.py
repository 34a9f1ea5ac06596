"""The base class of data modules: loaders, order, resuming, shares of devices, defaults."""

import math
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from spatial_transformer.data.base import BatchedData, PreprocessedPicture, TrainingSampler
from spatial_transformer.utils.errors import UsageError
from spatial_transformer.utils.random import sample_keys


class ToyData(BatchedData):
    """What a data module must define."""

    input_size, classes = 4, 3
    sizes = {"train": 64, "val": 20, "test": 30}  # noqa: RUF012

    def __init__(self, batch_size=10, eval_batch_size=8, seed=1):
        super().__init__(batch_size, eval_batch_size, seed)

    def size(self, split):
        return self.sizes[split]

    def samples(self, split, index, epoch=0):
        return torch.full((len(index), 1, 4, 4), epoch), index % 3


class OtherNames(ToyData):
    names = ["a", "b", "c"]  # noqa: RUF012


class WithPictures(ToyData):
    def preprocess_picture(self, picture):
        return PreprocessedPicture(torch.zeros(1, 4, 4), (0, 0, 4, 4))


def on_rank(rank, world_size, accumulate_grad_batches=1, **settings):
    data = ToyData(**settings)
    ranks = {"global_rank": rank, "world_size": world_size}
    progress = {"global_step": 0, "num_training_batches": math.inf}
    progress["accumulate_grad_batches"] = accumulate_grad_batches
    data.trainer = SimpleNamespace(**ranks, **progress)
    return data


def batches(steps=0, batches_per_step=1, limit=math.inf, n=5_500, seed=1):
    return list(TrainingSampler(n, 100, seed, lambda: (steps, batches_per_step, limit)))


def order(**settings):
    return torch.cat([batch.indices for batch in batches(**settings)])


def test_size_and_samples_are_enough():
    data = ToyData()
    batch = next(iter(data.train_dataloader()))
    images, labels = data.on_after_batch_transfer(batch, 0)
    assert images.shape == (10, 1, 4, 4)
    assert torch.equal(labels, batch.indices % 3)
    assert (data.on_after_batch_transfer(batch._replace(epoch=2), 0)[0] == 2).all()
    assert data.digest() == ""
    assert data.decode_labels(torch.tensor([2, 0])) == ["2", "0"]
    assert OtherNames().decode_labels(torch.tensor([2, 0])) == ["c", "a"]
    assert torch.equal(data.to_display(images), images)


def test_pictures_need_a_method_and_nothing_else():
    with pytest.raises(UsageError, match="does not define preprocess_picture"):
        ToyData().preprocess_picture(Image.new("RGB", (4, 4)))
    assert ToyData().unsupported_reason
    assert not WithPictures().unsupported_reason


def test_wrong_batch_sizes_are_refused():
    for name in ("batch_size", "eval_batch_size"):
        with pytest.raises(UsageError, match=rf"data\.{name} must be a positive integer, got 0"):
            ToyData(**{name: 0})
    with pytest.raises(UsageError, match=r"data\.batch_size must be at most 64, .* got 65"):
        ToyData(batch_size=65).train_dataloader()
    with pytest.raises(UsageError, match=r"data\.batch_size must be at most 16, .* got 20"):
        on_rank(0, 1, accumulate_grad_batches=4, batch_size=20).train_dataloader()
    message = r"data\.batch_size must be a multiple of the 3 devices, got 2\. Use 3\."
    with pytest.raises(UsageError, match=message):
        on_rank(0, 3, batch_size=2).train_dataloader()


@pytest.mark.parametrize("split", ["val", "test"])
def test_empty_split_is_refused_before_training(split):
    data = ToyData()
    data.sizes = ToyData.sizes | {split: 0}
    message = f"at least one sample of '{split}' for each device, got 0 for 1"
    with pytest.raises(UsageError, match=message):
        data.val_dataloader()


# Training batches


@pytest.mark.parametrize("batch_size", [10, 32, 63, 64])
def test_epochs_have_whole_batches_without_repeated_samples(batch_size):
    loader = ToyData(batch_size=batch_size).train_dataloader()
    found = list(loader)
    assert len(found) == len(loader) == 64 // batch_size
    assert {(batch.split, batch.epoch, len(batch.indices)) for batch in found} == {
        ("train", 0, batch_size)
    }
    assert len(torch.cat([batch.indices for batch in found]).unique()) == len(found) * batch_size


def test_order_is_random():
    index = order(n=55_000).double()
    position = torch.arange(55_000.0, dtype=torch.float64)
    drawn = sample_keys(1, 0, torch.arange(55_000)).argsort().double()  # by what samples draw
    for other in (position, index.roll(1), index.roll(1000), drawn):
        assert abs(torch.corrcoef(torch.stack([index, other]))[0, 1]) < 4.5 / 55_000**0.5


def test_order_depends_on_seed_and_epoch_only():
    assert torch.equal(order(seed=3), order(seed=3))
    for other in (order(seed=2), order(steps=55), order(steps=110)):
        assert (order() == other).float().mean() < 0.01


@pytest.mark.parametrize(
    ("steps", "batches_per_step", "epoch", "done"),
    [
        pytest.param(0, 1, 0, 0, id="start"),
        pytest.param(37, 1, 0, 37, id="first epoch"),
        pytest.param(54, 1, 0, 54, id="last batch"),
        pytest.param(55, 1, 1, 0, id="between epochs"),
        pytest.param(3 * 55 + 20, 1, 3, 20, id="later epoch"),
        pytest.param(4, 5, 0, 20, id="accumulated gradients"),
        pytest.param(11, 5, 1, 0, id="between epochs with accumulated gradients"),
    ],
)
def test_resumed_epoch_has_the_remaining_batches(steps, batches_per_step, epoch, done):
    rest = batches(steps, batches_per_step)
    assert len(rest) == 55 - done
    for batch, expected in zip(rest, batches(epoch * 55)[done:], strict=True):
        assert batch.epoch == expected.epoch == epoch
        assert torch.equal(batch.indices, expected.indices)


def test_progress_is_read_on_each_pass():
    steps = 0
    sampler = TrainingSampler(5_500, 100, 1, lambda: (steps, 1, math.inf))
    assert {batch.epoch for batch in sampler} == {0}
    steps = 55 + 50
    assert [batch.epoch for batch in sampler] == [1] * 5


def test_all_steps_of_an_epoch_have_the_same_number_of_batches():
    # 55 batches, 4 per step: 13 steps, and the last 3 batches are left out.
    assert [batch.epoch for batch in batches(13, 4)] == [1] * 52


def test_limited_epochs_are_counted():
    # 12 of 55 batches, 4 per step: 3 steps per epoch. The trainer stops at its limit.
    assert [batch.epoch for batch in batches(4, 4, 12)] == [1] * 48


@pytest.mark.parametrize("world_size", [2, 5])
def test_ranks_share_the_training_batches(world_size):
    ranks = [on_rank(rank, world_size).train_dataloader() for rank in range(world_size)]
    for batch, *shares in zip(ToyData().train_dataloader(), *ranks, strict=True):
        together = torch.cat([share.indices for share in shares])
        assert together.sort()[0].equal(batch.indices.sort()[0])
        assert {len(share.indices) for share in shares} == {10 // world_size}


# Validation and test batches


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 7), (2, 10), (3, 7), (3, 100)])
@pytest.mark.parametrize("split", ["val", "test"])
def test_ranks_cover_fixed_sets_once(split, world_size, batch_size):
    covered = []
    for rank in range(world_size):
        data = on_rank(rank, world_size, eval_batch_size=batch_size)
        loader = getattr(data, f"{split}_dataloader")()
        found = list(loader)
        assert len(found) == len(loader) == -(-data.size(split) // batch_size)
        assert {(batch.split, batch.epoch) for batch in found} == {(split, 0)}
        covered += [batch.indices for batch in found]
    index = torch.cat(covered)
    assert (index if world_size == 1 else index.sort()[0]).equal(torch.arange(data.size(split)))


@pytest.mark.parametrize(("size", "eval_batch_size"), [(17, 8), (18, 8), (19, 2), (3, 1)])
def test_every_device_has_a_share_of_every_evaluation_batch(size, eval_batch_size):
    shares = []
    for rank in range(3):
        data = on_rank(rank, 3, eval_batch_size=eval_batch_size)
        data.sizes = ToyData.sizes | {"val": size}
        shares.append([batch.indices for batch in data.val_dataloader()])
    assert min(len(share) for loader in shares for share in loader) > 0
    assert len({len(loader) for loader in shares}) == 1
    found = torch.cat([share for loader in shares for share in loader])
    assert torch.equal(found.sort().values, torch.arange(size))

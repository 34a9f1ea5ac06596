"""The loss against a slow literal one, overlaps by hand, what learns and what is frozen, and the two stages."""

from functools import partial

import pytest
import torch

from spatial_transformer.data.mnist import files as mnist_files
from spatial_transformer.geometry import box_to_theta
from spatial_transformer.networks.colocalisation import colocalisation
from spatial_transformer.tasks.colocalisation import ColocalisationTask, paired_iou, triplet_loss
from spatial_transformer.tasks.digit_encoder import load_or_train_encoder
from spatial_transformer.transformer import Attention
from spatial_transformer.utils.errors import UsageError

SGD = partial(torch.optim.SGD, lr=0.1)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("margin", [1.0, 0.1])
def test_the_loss_is_the_papers_sum_over_pairs_in_the_mean(margin):
    crops, random = torch.randn(5, 7) / 2, torch.randn(5, 7) / 2
    total, zeros = 0.0, 0
    for n in range(5):
        for m in range(5):
            if m != n:
                alike = sum((crops[n, k] - crops[m, k]).item() ** 2 for k in range(7))
                unlike = sum((crops[n, k] - random[n, k]).item() ** 2 for k in range(7))
                total += max(0.0, alike - unlike + margin)
                zeros += alike - unlike + margin <= 0
    assert zeros > 0, "some pairs must be apart by more than the margin, or the hinge is not seen"
    assert triplet_loss(crops, random, margin).item() == pytest.approx(total / 20, rel=1e-5)


def test_overlaps_worked_out_by_hand():
    box = [0.0, 0, 28, 28]
    others = torch.tensor([box, [14.0, 0, 42, 28], [0, 0, 14, 14], [28, 0, 56, 28], [7, 7, 35, 35]])
    windows = box_to_theta(torch.tensor([box] * 5), 84)
    assert paired_iou(windows, box_to_theta(others, 84)).tolist() == pytest.approx(
        [1, 1 / 3, 1 / 4, 0, 441 / 1127], abs=1e-5
    )


class _Trainer:
    estimated_stepping_batches = 100
    world_size = 1
    log_every_n_steps = 10**9


def task_at(step, monkeypatch, **settings):
    task = ColocalisationTask(colocalisation(84, Attention()), SGD, **settings)
    task._trainer = _Trainer()
    task._seed = 0
    monkeypatch.setattr(ColocalisationTask, "global_step", step)
    monkeypatch.setattr(ColocalisationTask, "global_rank", 0)
    return task


@pytest.mark.parametrize("step", [0, 60, 99])
def test_only_the_localisation_network_learns(step, monkeypatch):
    task = task_at(
        step, monkeypatch, margin=1e3
    )  # no pair is apart by that, so all have a gradient
    task.on_train_batch_start(None, 0)
    _, loss = task.compute_loss(torch.rand(6, 1, 84, 84), torch.zeros(6, 3))
    loss.backward()
    assert all(parameter.grad is None for parameter in task.network.encoder.parameters())
    last = task.network.transformer.localisation[-2]
    assert last.bias.grad[1:].abs().min() > 0
    assert (last.bias.grad[0] != 0) == (step > 50), "the scale is fixed in the first stage"
    (group,) = task.parameter_groups()
    assert {id(p) for p in group["params"]} == {
        id(p) for p in task.network.transformer.localisation.parameters()
    }


def test_the_scale_is_freed_after_the_first_stage(monkeypatch):
    freedom = []
    for step in (0, 49, 50, 60, 70, 99):
        task = task_at(step, monkeypatch)
        task.on_train_batch_start(None, 0)
        freedom.append(task.network.windows.freedom.item())
    assert freedom == pytest.approx([0, 0, 0, 0.5, 1, 1])


def test_images_count_as_found_above_half(monkeypatch):
    task = task_at(0, monkeypatch)
    boxes = torch.tensor([[0.0, 0, 28, 28], [0, 0, 28, 28]])
    near = torch.tensor(
        [[0.0, 9, 28, 37], [0, 10, 28, 38]]
    )  # 19 and 18 of 28 rows: 0.514 and 0.474
    errors = task.per_sample_errors(box_to_theta(near, 84), box_to_theta(boxes, 84))
    assert errors["error"].tolist() == [0, 100]
    assert errors["overlap"].tolist() == pytest.approx([100 * 19 / 37, 100 * 18 / 38])


@pytest.mark.parametrize("setting", [{"locate": 1.5}, {"narrow": -0.1}, {"random_scale": 0}])
def test_shares_out_of_range_are_refused(setting):
    (name,) = setting
    with pytest.raises(UsageError, match=f"task.{name}"):
        ColocalisationTask(colocalisation(84, Attention()), SGD, **setting)


def test_a_place_that_cannot_keep_the_encoder_is_told_with_its_setting(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(mnist_files, "prepare", lambda root: tmp_path)
    with pytest.raises(
        UsageError, match=r"digit encoder cannot be written to (.|\n)*Set task\.cache"
    ):
        load_or_train_encoder(tmp_path, tmp_path / "file")

import pytest
import torch
from hydra.utils import instantiate
from torch import nn

from spatial_transformer.tasks.schedules import multi_step_decay, one_cycle


def parameter():
    return nn.Parameter(torch.zeros(1))


@pytest.mark.parametrize("total_steps", [1, 2, 3, 5, 10, 20, 100])
@pytest.mark.parametrize("pct_start", [0.05, 0.1, 0.3, 0.5])
def test_one_cycle_has_any_length_and_keeps_the_ratio_of_learning_rates(total_steps, pct_start):
    groups = [{"params": [parameter()], "lr": lr} for lr in (0.1, 0.01)]
    optimizer = torch.optim.AdamW(groups)
    schedule = one_cycle(optimizer, total_steps, pct_start)
    for _ in range(total_steps):
        fast, slow = (group["lr"] for group in optimizer.param_groups)
        assert 0 < fast <= 0.1 + 1e-9
        assert fast == pytest.approx(10 * slow)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(
    ("experiment", "recipe", "steps", "milestones"),
    [
        ("mnist", "paper", 150_000, [50_000, 100_000]),
        ("svhn_cnn", "svhn_paper", 400_000, [80_000, 160_000, 240_000, 320_000]),
        ("birds_4st", "birds_paper", 30_000, [10_000, 20_000, 25_000]),
    ],
)
def test_milestones_of_the_paper(composed, experiment, recipe, steps, milestones):
    config = composed(f"experiment={experiment}", f"recipe={recipe}")
    assert config.trainer.max_steps == steps
    optimizer = instantiate(config.recipe.optimizer)([parameter()])
    schedule = instantiate(config.recipe.scheduler)(optimizer)
    assert sorted(schedule.milestones) == milestones
    assert schedule.gamma == 0.1


@pytest.mark.parametrize(
    ("total_steps", "milestones"), [(9, [3, 6]), (10, [3, 7]), (3, [1, 2]), (300, [100, 200])]
)
def test_milestones_scale_with_the_length_of_training(total_steps, milestones):
    optimizer = torch.optim.SGD([parameter()], lr=1.0)
    schedule = multi_step_decay(optimizer, total_steps, [50, 100], reference_steps=150)
    assert sorted(schedule.milestones) == milestones

"""Learning rate schedules."""

import pytest
import torch
from hydra.utils import instantiate
from torch import nn

from spatial_transformer.tasks.schedules import falling_steps, one_cycle


@pytest.mark.parametrize("total_steps", [1, 2, 3, 5, 10, 20, 100])
@pytest.mark.parametrize("pct_start", [0.05, 0.1, 0.3, 0.5])
def test_the_cycle_works_at_any_length_and_keeps_the_ratio_of_the_rates(total_steps, pct_start):
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.1, 0.01)]
    optimizer = torch.optim.AdamW(groups)
    schedule = one_cycle(optimizer, total_steps, pct_start)
    for _ in range(total_steps):
        fast, slow = (group["lr"] for group in optimizer.param_groups)
        assert 0 < fast <= 0.1 + 1e-9
        assert fast == pytest.approx(10 * slow)
        optimizer.step()
        schedule.step()


def test_the_papers_recipe_divides_the_rate_by_ten_every_50k_steps(composed):
    config = composed("recipe=paper")
    optimizer = instantiate(config.recipe.optimizer)([nn.Parameter(torch.zeros(1))])
    schedule = instantiate(config.recipe.scheduler)(optimizer)
    assert (config.trainer.max_steps, config.data.batch_size) == (150_000, 256)
    rates = {}
    for step in range(100_002):
        rates[step] = optimizer.param_groups[0]["lr"]
        optimizer.step()
        schedule.step()
    assert [rates[step] for step in (0, 49_999, 50_000, 99_999, 100_000)] == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3, 1e-4])


@pytest.mark.parametrize(("total_steps", "falls"), [(9, [3, 6]), (10, [4, 8]), (3, [1, 2])])
def test_the_rate_falls_after_equal_parts_of_any_length(total_steps, falls):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = falling_steps(optimizer, total_steps)
    rates = []
    for _ in range(total_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert [n for n in range(1, total_steps) if rates[n] < rates[n - 1]] == falls
    assert rates[-1] == pytest.approx(0.01)


def test_the_papers_recipe_for_birds_divides_the_rate_after_10k_20k_and_25k_steps(composed):
    config = composed("experiment=birds_4st", "recipe=birds_paper")
    optimizer = instantiate(config.recipe.optimizer)([nn.Parameter(torch.zeros(1))])
    schedule = instantiate(config.recipe.scheduler)(optimizer)
    rates = []
    for _ in range(30_000):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    falls = [step for step in range(1, 30_000) if rates[step] != rates[step - 1]]
    assert falls == [10_000, 20_000, 25_000]
    assert rates[-1] == pytest.approx(1e-4)

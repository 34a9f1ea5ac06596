"""Every field of the recipe reaches the tasks that take it, in every experiment."""

import inspect

import pytest
import torch
from conftest import REPOSITORY

from spatial_transformer.tasks.bird_classification import BirdClassification
from spatial_transformer.tasks.classification import Classification
from spatial_transformer.tasks.colocalisation import ColocalisationTask
from spatial_transformer.tasks.number_reading import NumberReading
from spatial_transformer.training.build import build
from spatial_transformer.training.config import Recipe
from spatial_transformer.training.runner import train
from spatial_transformer.training.validation import validate
from spatial_transformer.utils.errors import UsageError

TASKS = (Classification, NumberReading, BirdClassification, ColocalisationTask)
NOT_OF_TASKS = {"max_steps", "batch_size", "validate_every", "dropout"}
WITH_LONG = ("mnist", "mnist_addition", "mnist_3d", "quickstart")


def test_every_field_of_the_recipe_is_taken_by_a_task():
    taken = {name for task in TASKS for name in inspect.signature(task).parameters}
    assert set(Recipe.__dataclass_fields__) - NOT_OF_TASKS <= taken


def test_experiments_do_not_repeat_the_recipe():
    fields = Recipe.__dataclass_fields__
    for file in (REPOSITORY / "conf" / "experiment").glob("*.yaml"):
        assert not [name for name in fields if f"{name}: ${{recipe.{name}}}" in file.read_text()], (
            file
        )


@pytest.mark.parametrize("experiment", WITH_LONG)
def test_the_recipe_sets_the_hyperparameters_of_the_task(composed, experiment):
    config = composed(
        f"experiment={experiment}", "recipe=long", "recipe.localisation_lr_factor=0.5"
    )
    validate(config)
    _, task = build(config)
    assert task.theta_noise == 0.03
    assert task.localisation_lr_factor == 0.5
    assert task.label_smoothing == config.recipe.label_smoothing


def test_a_setting_of_the_task_has_priority_over_the_recipe(composed):
    config = composed("experiment=mnist", "+task.label_smoothing=0.2")
    validate(config)
    assert build(config)[1].label_smoothing == 0.2


@pytest.mark.parametrize(
    ("experiment", "override"),
    [("mnist", "recipe.spsa_delta=0.1"), ("colocalisation", "recipe.label_smoothing=0.1")],
)
def test_a_hyperparameter_that_the_task_does_not_take_is_an_error(composed, experiment, override):
    name = override.partition("=")[0]
    with pytest.raises(UsageError, match=f"{name}=.* has no effect"):
        validate(composed(f"experiment={experiment}", override))


@pytest.mark.parametrize("experiment", ["mnist_addition", "mnist_3d"])
def test_the_long_recipe_trains_in_every_experiment(composed, drawn_mnist, tmp_path, experiment):
    small = ["data.batch_size=4", "data.eval_batch_size=4", "logger=none", f"data.root={tmp_path}"]
    config = composed(
        f"experiment={experiment}", "recipe=long", "debug=fdr", *small, "callbacks.mistakes=null"
    )
    record = train(config)
    assert record["steps"] == 2
    assert record["config"]["recipe"]["theta_noise"] == 0.03
    assert torch.tensor(record["metrics"]["theta/mean_0"]).isfinite()


def test_a_network_with_a_transformer_cannot_lose_it_silently(composed):
    with pytest.raises(UsageError, match="model=st_fcn cannot have transform"):
        validate(composed("experiment=mnist", "model=st_fcn", "model.transform=null"))

import inspect
import math

import pytest
from conftest import REPOSITORY

from spatial_transformer.tasks.bird_classification import BirdClassification
from spatial_transformer.tasks.classification import Classification
from spatial_transformer.tasks.colocalisation import ColocalisationTask
from spatial_transformer.tasks.number_reading import NumberReading
from spatial_transformer.training.build import build
from spatial_transformer.training.config import NOT_FOR_TASKS, Recipe
from spatial_transformer.training.runner import train
from spatial_transformer.training.validation import validate

TASKS = (Classification, NumberReading, BirdClassification, ColocalisationTask)
FIELDS = Recipe.__dataclass_fields__.keys()


def test_every_field_of_the_recipe_has_a_task():
    taken = {name for task in TASKS for name in inspect.signature(task).parameters}
    assert taken >= FIELDS - NOT_FOR_TASKS


def test_experiments_do_not_repeat_the_recipe():
    for file in (REPOSITORY / "conf" / "experiment").glob("*.yaml"):
        text = file.read_text()
        assert not [name for name in FIELDS if f"{name}: ${{recipe.{name}}}" in text], file


def test_networks_take_the_dropout_of_the_recipe():
    for file in (REPOSITORY / "conf" / "model").glob("*.yaml"):
        text = file.read_text()
        assert "dropout:" not in text or "dropout: ${recipe.dropout}" in text, file


@pytest.mark.parametrize("experiment", ["mnist", "mnist_addition", "mnist_3d", "quickstart"])
def test_the_task_gets_the_settings_of_the_recipe(composed, experiment):
    factor = "recipe.localisation_lr_factor=0.5"
    config = composed(f"experiment={experiment}", "recipe=long", factor)
    validate(config)
    _, task = build(config)
    assert task.theta_noise == 0.03
    assert task.localisation_lr_factor == 0.5
    assert task.label_smoothing == config.recipe.label_smoothing


def test_a_setting_of_the_task_has_priority_over_the_recipe(composed):
    config = composed("experiment=mnist", "+task.label_smoothing=0.2")
    validate(config)
    assert build(config)[1].label_smoothing == 0.2


@pytest.mark.parametrize("experiment", ["mnist_addition", "mnist_3d"])
def test_the_long_recipe_trains(composed, drawn_mnist, tmp_path, experiment):
    small = ["data.batch_size=4", "data.eval_batch_size=4", "callbacks.mistakes=null"]
    paths = ["logger=none", f"data.root={tmp_path}"]
    result = train(composed(f"experiment={experiment}", "recipe=long", "debug=fdr", *small, *paths))
    assert result["steps"] == 2
    assert result["config"]["recipe"]["theta_noise"] == 0.03
    assert math.isfinite(result["metrics"]["theta/mean_0"])

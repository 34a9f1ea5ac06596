"""Result files of earlier versions are read under the names of this version."""

import copy
from collections import Counter

import pytest
from conftest import REPOSITORY

from spatial_transformer.reporting.records import changed_settings, read_records
from spatial_transformer.training.upgrade import upgrade_settings

CONF = REPOSITORY / "conf"
SCHEDULES = "spatial_transformer.tasks.schedules"


CLASSIFICATION = "spatial_transformer.tasks.classification.Classification"


def old_config(target, recipe=None, task=None, **model):
    return {
        "data": {"_target_": "spatial_transformer.data.mnist_3d.Mnist3dData"},
        "model": {"_target_": f"spatial_transformer.networks.{target}", **model},
        "recipe": recipe or {},
        "task": {"_target_": CLASSIFICATION, **(task or {})},
    }


@pytest.mark.parametrize(
    ("target", "old", "new"),
    [
        ("mnist.fcn", {"width": 8}, {"arch": "fcn", "width": 8}),
        ("mnist.cnn", {}, {"arch": "cnn", "pool": 1}),
        ("mnist.st_cnn", {"pool": None}, {"arch": "cnn", "pool": None}),
        ("addition.fcn", {"pool": None}, {"arch": "fcn", "in_channels": 2, "pool": 1}),
        ("addition.fcn", {"pool": 2}, {"arch": "fcn", "in_channels": 2, "pool": 2}),
        ("addition.cnn", {}, {"arch": "cnn", "in_channels": 2, "pool": 1}),
        ("addition.st_fcn", {"pool": 2}, {"arch": "fcn", "in_channels": 2, "pool": 2}),
    ],
)
def test_networks_become_one_class(target, old, new):
    upgraded = upgrade_settings(old_config(target, **old))
    network = "spatial_transformer.networks.mnist.MnistNetwork"
    assert upgraded["model"] == {"_target_": network, **new}
    assert upgrade_settings(upgraded) == upgraded


def test_networks_of_users_are_unchanged():
    config = old_config("mnist.small_cnn", width=8)
    assert upgrade_settings(config)["model"] == config["model"]


def test_recipe_and_task_are_renamed():
    recipe = {
        "frozen_steps": 0,
        "theta_step": 0.15,
        "theta_noise": 0.03,
        "scheduler": {
            "_target_": f"{SCHEDULES}.falling_steps",
            "_partial_": True,
            "total_steps": 9,
            "parts": 3,
            "factor": 0.1,
        },
    }
    task = {"theta_noise": 0.03, "frozen_steps": 0, "margin": 1.0}
    config = old_config("svhn.cnn", recipe, task)
    before = copy.deepcopy(config)
    upgraded = upgrade_settings(config)
    assert config == before
    assert upgraded["data"] == {"_target_": "spatial_transformer.data.mnist.Mnist3dData"}
    scheduler = {
        "_target_": f"{SCHEDULES}.multi_step_decay",
        "_partial_": True,
        "total_steps": 9,
        "milestones": [50_000, 100_000],
        "reference_steps": 150_000,
        "gamma": 0.1,
    }
    renamed = {"spsa_delta": 0.15, "theta_noise": 0.03, "scheduler": scheduler}
    assert upgraded["recipe"] == renamed
    assert upgraded["task"] == {"_target_": CLASSIFICATION, "margin": 1.0}


@pytest.mark.parametrize("experiment", ["mnist_addition", "birds_2st", "colocalisation"])
def test_most_results_have_the_default_settings(experiment):
    records = read_records(REPOSITORY / "results" / experiment)
    differ = Counter(
        setting.partition("=")[0]
        for record in records
        for setting in changed_settings(record, CONF)
    )
    assert not {name for name in differ if name.startswith(("model.", "task."))}, differ
    assert sum(not changed_settings(record, CONF) for record in records) > len(records) / 2

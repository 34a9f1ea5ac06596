"""Read the settings of earlier versions under the names of this version.

Result files and run directories are never rewritten. With the same names, a new run counts as a
repetition of an earlier one.
"""

from __future__ import annotations

from typing import Any

_MNIST_NETWORK = "spatial_transformer.networks.mnist.MnistNetwork"
_SCHEDULES = "spatial_transformer.tasks.schedules"
_DATA = "spatial_transformer.data"
_MOVED = {
    f"{_DATA}.colocalisation.ColocalisationData": f"{_DATA}.mnist.ColocalisationData",
    f"{_DATA}.mnist_3d.Mnist3dData": f"{_DATA}.mnist.Mnist3dData",
    f"{_DATA}.mnist_addition.MnistAdditionData": f"{_DATA}.mnist.MnistAdditionData",
}
# Parts of the recipe that experiments repeated in the task.
_REPEATED = ("label_smoothing", "theta_noise", "theta_step", "frozen_steps")


def upgrade_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a result file under the names of this version.

    Args:
        config: the "config" of a result, with "data", "model", "recipe" and "task". It is not
            changed.
    """
    upgraded = dict(config)
    target = str(config["data"].get("_target_"))
    if target in _MOVED:
        upgraded["data"] = {**config["data"], "_target_": _MOVED[target]}
    upgraded["model"] = _upgrade_model(config["model"])
    upgraded["recipe"] = _upgrade_recipe(config["recipe"])
    upgraded["task"] = {key: value for key, value in config["task"].items() if key not in _REPEATED}
    if str(upgraded["task"].get("_target_")).endswith(".tasks.colocalisation.Colocalisation"):
        upgraded["task"]["_target_"] += "Task"
    return upgraded


def _upgrade_model(model: dict[str, Any]) -> dict[str, Any]:
    module, _, function = str(model.get("_target_")).rpartition(".")
    experiment = module.removeprefix("spatial_transformer.networks.")
    arch = function.removeprefix("st_")
    if experiment not in ("mnist", "addition") or arch not in ("fcn", "cnn"):
        return model
    upgraded = {**model, "_target_": _MNIST_NETWORK, "arch": arch}
    if experiment == "addition":
        upgraded["in_channels"] = 2
    if function == "cnn" or (experiment == "addition" and function == "fcn"):
        upgraded["pool"] = model.get("pool") or 1  # These networks pooled by nothing by default.
    return upgraded


def _upgrade_recipe(recipe: dict[str, Any]) -> dict[str, Any]:
    gone = ("frozen_steps", "theta_step")
    upgraded = {key: value for key, value in recipe.items() if key not in gone}
    if "theta_step" in recipe:
        upgraded["spsa_delta"] = recipe["theta_step"]
    scheduler = recipe.get("scheduler")
    if isinstance(scheduler, dict) and scheduler.get("_target_") == f"{_SCHEDULES}.falling_steps":
        # The learning rate fell after equal parts of the training, which were three in all results.
        upgraded["scheduler"] = {
            "_target_": f"{_SCHEDULES}.multi_step_decay",
            "_partial_": True,
            "total_steps": scheduler.get("total_steps"),
            "milestones": [50_000, 100_000],
            "reference_steps": 150_000,
            "gamma": scheduler.get("factor"),
        }
    return upgraded

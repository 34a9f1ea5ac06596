"""Every option composes, and other Hydra programs are left alone."""

import subprocess
import sys

import pytest
from conftest import REPOSITORY

from spatial_transformer.training.validation import validate

CONF = REPOSITORY / "conf"
OPTIONS = [(file.parent.name, file.stem) for file in sorted(CONF.glob("*/*.yaml"))]

WITH_EXPERIMENT = {
    "mnist_addition": "mnist_addition",
    "colocalisation": "colocalisation",
    "mnist_3d": "mnist_3d",
    "mnist_rotated": "mnist_rotated",
    "volume_st_fcn": "mnist_3d",
    "svhn": "svhn_cnn",
    "svhn_part": "svhn_cnn",
    "svhn_pairs": "svhn_registration",
    "cub": "birds_cnn",
    "cub_rotated": "birds_frozen",
    "frozen_birds": "birds_frozen",
    "birds_fast": "birds_cnn",
    "birds_differences": "birds_2st",
}
"""An experiment for each option that does not go with the default one."""
MORE = {"none": ["model=fcn"], "custom": ["model._target_=torchvision.models.resnet18"]}

FOREIGN = """
from dataclasses import dataclass
import hydra, sys
from hydra.core.config_store import ConfigStore

@dataclass
class Mine:
    lr: float = 0.1

names = ("schema", "evaluation", "prediction", "config", "train", "evaluate", "predict")
ConfigStore.instance().store("schema", Mine)

@hydra.main(version_base="1.3", config_path=None, config_name="schema")
def main(config):
    assert config == {"lr": 0.1}, config
    known = {"schema.yaml", "hydra", "_dummy_empty_config_.yaml"}
    stored = set(ConfigStore.instance().repo) - known
    assert not stored, stored
    loaded = {name.partition(".")[0] for name in sys.modules}
    assert not loaded & {"torch", "submitit", "joblib", "pydantic", "rich"}
    print("unchanged")

main()
"""


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_of_every_group_composes(composed, group, option):
    experiment = WITH_EXPERIMENT.get(option)
    chosen = [f"experiment={experiment}"] if experiment else []
    more = MORE.get(option, []) if group in ("transform", "model") else []
    validate(composed(f"{group}={option}", *chosen, *more))


def test_schedule_follows_the_length(composed):
    config = composed("trainer.max_steps=123")
    assert config.recipe.scheduler.total_steps == 123


def test_other_hydra_programs_are_unchanged(tmp_path):
    """Hydra imports our plugin in every program on the machine."""
    (tmp_path / "program.py").write_text(FOREIGN)
    command = [sys.executable, "program.py", "hydra.run.dir=."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "unchanged"
    assert not done.stderr

"""Composition: everything composes, and nothing misspelt does."""

import json
import signal
import subprocess
import sys
from functools import partial

import pytest
from conftest import REPOSITORY
from omegaconf import OmegaConf

from spatial_transformer.config import check, explained
from spatial_transformer.errors import UsageError
from spatial_transformer.paper import NETWORKS

CONF = REPOSITORY / "conf"
OPTIONS = [(file.parent.name, file.stem) for file in sorted(CONF.glob("*/*.yaml"))]

WITH_EXPERIMENT = {
    "mnist_addition": "mnist_addition",
    "colocalisation": "colocalisation",
    "mnist_3d": "mnist_3d",
    "volume_st_fcn": "mnist_3d",
    "svhn": "svhn_cnn",
    "svhn_part": "svhn_cnn",
    "cub": "birds_cnn",
    "birds_fast": "birds_cnn",
    "birds_differences": "birds_2st",
}
"""Options that do not go with the default experiment, and one with which they do."""


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_of_every_group_composes(composed, group, option):
    overrides = [f"{group}={option}"]
    if (group, option) == ("transform", "none"):
        overrides.append("model=fcn")
    if option in WITH_EXPERIMENT:
        overrides.append(f"experiment={WITH_EXPERIMENT[option]}")
    config = composed(*overrides)
    check(config)
    OmegaConf.to_container(config, resolve=True, throw_on_missing=True)


@pytest.mark.parametrize(("model", "transform"), NETWORKS.values())
@pytest.mark.parametrize("recipe", ["paper", "fast", "long"])
def test_every_row_of_table_1_composes(composed, model, transform, recipe):
    chosen = [] if transform == "none" else [f"transform={transform}"]
    config = composed("experiment=mnist", f"model={model}", f"recipe={recipe}", *chosen)
    check(config)
    assert (config.choices.model, config.choices.transform, config.choices.recipe) == (model, transform, recipe)


def test_the_length_of_a_run_sets_its_schedule(composed):
    config = composed("trainer.max_steps=123")
    assert config.recipe.scheduler.total_steps == 123


REFUSED = {
    "+data.batchsize=3": r"no setting 'batchsize'.*command line.*\n.*batch_size",
    "+model.widht=3": r"no setting 'widht'.*\n.*width",
    "+recipe.stepz=3": r"no setting 'recipe.stepz'",
    "+modle=3": r"no setting 'modle'.*\n.*model",
    "+transform.points=3": r"Affine has no setting 'points'",
    "data._target_=os.system": r"os.system is not a component",
    "recipe.optimizer._target_=torch.optim.Adamm": r"does not exist.\n.*Adam",
    "recipe.optimizer._target_=torch.optimm.Adam": r"torch.optimm.Adam is not a component",
    "trainer.max_steps=0": r"trainer.max_steps=0 is not a number of steps",
    "trainer.max_steps=-1": r"trainer.max_steps=-1 is not a number of steps",
    "recipe.validate_every=0": r"recipe.validate_every=0",
    "recipe.theta_step=0.1": r"recipe.theta_step has no effect",
    "recipe.frozen_steps=5": r"recipe.frozen_steps has no effect",
    "trainer.precision=bf16-true": r"trainer.precision=bf16-true is not for these runs",
    "trainer.check_val_every_n_epoch=1": r"check_val_every_n_epoch: these runs count steps",
    "trainer.val_check_interval=00:00:05:00": r"val_check_interval=.* is not a number of steps",
    "++trainer.limit_test_batches=0": r"limit_test_batches=0 would skip the test",
    "++trainer.overfit_batches=2": r"overfit_batches is not for these runs",
    "transform=none": r"model=st_fcn needs a transform",
}


@pytest.mark.parametrize("override", REFUSED)
def test_a_wrong_setting_is_refused_with_its_name_its_place_and_a_way_out(composed, override):
    with pytest.raises(UsageError, match=REFUSED[override]):
        check(composed(override))


def test_an_unknown_key_in_a_file_is_named_with_file_and_line(composed, monkeypatch, tmp_path):
    monkeypatch.chdir(REPOSITORY)
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - mnist\n\ndata:\n  distorsion: rts\n"
    )
    config = composed(f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine")
    with pytest.raises(UsageError, match=r"no setting 'distorsion', given in .*mine.yaml, line 6.\n.*distortion"):
        check(config)


def command(program: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, program, *arguments], cwd=REPOSITORY, capture_output=True, text=True)


WRONG_COMMANDS = {
    "experiment=mnst": ["experiment=mnst does not exist", "mnist"],
    "model=st_cn": ["model=st_cn does not exist", "st_cnn"],
    "modle=cnn": ["'modle', given on the command line", "model"],
    "data.batch_sise=3": ["'data.batch_sise'", "data.batch_size"],
    "seed=one": ["seed", "Integer"],
    "hydra.run.dir=/dev/null/run": ["/dev/null/run", "hydra.run.dir"],
    "data.root={": ["data.root={", "cannot be read"],
    "recipe.dropout=${nothing}": [
        "recipe.dropout=${nothing} cannot be resolved, given on the command line",
        "'nothing' not found",
    ],
    "seed=${nothing}": ["hydra.run.dir cannot be resolved, with seed=${nothing} on the command line", "'nothing' not found"],
    "logger=nine": ["logger=nine does not exist", "none"],
}


@pytest.mark.parametrize("argument", WRONG_COMMANDS)
def test_a_wrong_command_ends_in_one_clear_message(argument):
    result = command("train.py", argument)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    for part in WRONG_COMMANDS[argument]:
        assert part in result.stderr.partition("Error: ")[2]


def test_a_transform_for_a_network_without_transformer_is_refused():
    result = command("train.py", "model=fcn", "transform=tps")
    assert result.returncode == 1
    assert "model=fcn has no spatial transformer" in result.stderr


def test_an_experiment_file_with_an_unknown_group_is_named(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\ndefaults:\n  - mnist\nmodle: cnn\n")
    result = command("train.py", f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine")
    assert result.returncode == 1
    assert "'modle', given in conf/experiment/mine.yaml" in result.stderr
    assert "did you mean model" in result.stderr


def test_help_lists_examples_experiments_and_groups():
    result = command("train.py", "--help")
    assert result.returncode == 0
    for part in (
        "experiment=quickstart",
        "colocalisation, mnist, mnist_3d, mnist_addition, quickstart, svhn_cnn",
        "transform: affine",
        "data.root",
    ):
        assert part in result.stdout


def test_help_does_not_wait_for_torch():
    code = "import sys, runpy; sys.argv = ['train.py', '--help']\ntry: runpy.run_path('train.py', run_name='__main__')\n"
    code += "except SystemExit: pass\nassert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True).returncode == 0


def test_evaluate_refuses_what_is_no_run_folder(tmp_path):
    result = command("evaluate.py", f"run={tmp_path}")
    assert result.returncode == 1
    assert "is not a run folder" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(("program", "setting"), [("evaluate.py", "run"), ("predict.py", "images")])
def test_a_setting_that_has_no_default_is_asked_for(program, setting):
    result = command(program)
    assert result.returncode == 1
    assert f"Error: {setting} is not given" in result.stderr
    assert f"{setting}=... on the command line" in result.stderr


def test_a_run_that_is_interrupted_says_how_to_go_on(mnist_root, tmp_path):
    command = [sys.executable, "train.py", f"data.root={mnist_root}", "logger=none", f"hydra.run.dir={tmp_path}"]
    command += ["model.width=8", "recipe.validate_every=1", "++trainer.limit_val_batches=1"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A shell lets what it starts in the background ignore interrupts, and these tests with it.
    heeded = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, cwd=REPOSITORY, preexec_fn=heeded, **pipes)
    assert process.stdout is not None
    next(line for line in process.stdout if line.startswith("step 2 of"))
    for _ in range(4):  # Python can lose an interrupt that arrives within a callback of C code; one presses again
        process.send_signal(signal.SIGINT)
        try:
            _, errors = process.communicate(timeout=30)
            break
        except subprocess.TimeoutExpired:
            continue
    assert process.returncode == 130
    assert "stopped by hand at step" in errors
    assert f"hydra.run.dir={tmp_path}" in errors
    assert "Traceback" not in errors


def test_the_runs_of_a_sweep_have_folders_of_their_own(mnist_root, tmp_path):
    sweep = ["-m", "model=fcn", "model.width=4,8", "debug=short", f"data.root={mnist_root}", f"hydra.sweep.dir={tmp_path}"]
    result = command("train.py", *sweep)
    assert result.returncode == 0, result.stderr
    folders = sorted(path.parent.name for path in tmp_path.glob("*/metrics.json"))
    assert folders == ["debug-short_model.width-4_model-fcn", "debug-short_model.width-8_model-fcn"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("networks", "runs"),
    [(["model=fcn,cnn"], 2), (["model=st_fcn,st_cnn", "transform=affine,projective,tps"], 6)],
    ids=["without", "with a transformer"],
)
def test_every_network_of_table_1_trains_from_the_command_line(mnist_root, tmp_path, networks, runs):
    small = ["data.batch_size=32", "data.eval_batch_size=50", f"data.root={mnist_root}"]
    result = command("train.py", "-m", *networks, "debug=short", *small, f"hydra.sweep.dir={tmp_path}")
    assert result.returncode == 0, result.stderr
    steps = [json.loads(path.read_text())["steps"] for path in tmp_path.glob("*/metrics.json")]
    assert steps == [2] * runs


@pytest.mark.parametrize(("local", "told"), [("0", True), ("1", False)])
def test_an_error_is_told_by_the_first_process_of_each_machine(monkeypatch, capsys, local, told):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_RANK", local)

    @explained
    def main():
        raise UsageError("the data are missing here")

    with pytest.raises(SystemExit):
        main()
    assert ("the data are missing here" in capsys.readouterr().err) == told

"""Whose directory it is, whether the run is finished, and what it resumes from."""

import copy
import json

import pytest
import torch
import yaml

from spatial_transformer.training.fingerprint import fingerprint
from spatial_transformer.training.run_dir import RunDir
from spatial_transformer.utils.errors import UsageError
from spatial_transformer.utils.serialization import save_tensors

CONFIG = {
    "seed": 1,
    "ckpt_path": "auto",
    "run_dir": "somewhere",
    "data": {"root": "here", "batch_size": 2},
    "task": {},
    "model": {"width": 8},
    "recipe": {"dropout": 0.1},
    "trainer": {"max_steps": 3, "limit_test_batches": 2, "devices": 1},
    "logger": {"csv": {"_target_": "a.Logger"}},
    "callbacks": {"best": {"_target_": "a.Best", "dirpath": "x"}, "off": None},
}
RESULT = {
    **dict.fromkeys(("label", "experiment", "model", "transform", "recipe", "device"), "x"),
    **{"seed": 1, "steps": 3, "seconds": 1.0, "metrics": {"test/error": 1.0}},
    "config": {name: {} for name in ("data", "model", "recipe", "task")},
}


def changed(**groups):
    config = copy.deepcopy(CONFIG)
    for name, value in groups.items():
        config[name] = config[name] | value if isinstance(value, dict) else value
    return config


def save_checkpoint(run_dir, name, mark, step):
    content = {"fingerprint": mark, "global_step": step, "state_dict": {"w": torch.ones(3)}}
    save_tensors(content, run_dir.checkpoints / name)


@pytest.fixture
def finished(tmp_path):
    """The directory of a finished run with two checkpoints."""
    run_dir, mark = RunDir(tmp_path / "run"), fingerprint(CONFIG, "digits")
    run_dir.path.mkdir()
    assert run_dir.prepare(CONFIG, mark) is None
    save_checkpoint(run_dir, "previous.ckpt", mark, 1)
    save_checkpoint(run_dir, "last.ckpt", mark, 2)
    run_dir.result.write_text(json.dumps(RESULT))
    return run_dir


@pytest.mark.parametrize(
    "same",
    [
        {},
        {"trainer": {"devices": 2}},
        {"logger": {}},
        {"run_dir": "elsewhere"},
        {"callbacks": {"rate": {"_target_": "pytorch_lightning.callbacks.LearningRateMonitor"}}},
        {"callbacks": {"best": {"_target_": "a.Best", "dirpath": "y"}}},
    ],
)
def test_a_run_with_the_same_settings_is_finished(finished, same):
    assert finished.finished(changed(**same)) == RESULT


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"seed": 2}, "seed is 1 there and 2 here"),
        ({"model": {"width": 9}}, "model.width is 8 there and 9 here"),
        ({"callbacks": {"best": {"_target_": "a.Best", "mode": "max"}}}, "callbacks.best.mode"),
        ({"callbacks": {"stop": {"_target_": "mine.Stop"}}}, "callbacks.stop"),
    ],
)
def test_a_run_with_other_settings_is_refused_and_the_setting_named(finished, other, message):
    before = finished.config.read_bytes()
    with pytest.raises(UsageError, match=message):
        finished.finished(changed(**other))
    with pytest.raises(UsageError, match=message):
        finished.prepare(changed(**other), fingerprint(changed(**other), "digits"))
    assert finished.config.read_bytes() == before


def test_another_length_of_the_test_repeats_the_test_alone(finished):
    config = changed(trainer={"limit_test_batches": 4})
    assert finished.finished(config) is None
    path, checkpoint = finished.prepare(config, fingerprint(config, "digits"))
    assert (path, checkpoint["global_step"]) == (finished.last, 2)
    assert json.loads((finished.path / "metrics.1.json").read_text()) == RESULT
    assert not finished.result.exists()


def test_data_elsewhere_are_the_same_run_if_their_content_is(finished):
    config = changed(data={"root": "there"})
    assert finished.finished(config) is None, "what is there is not known yet"
    assert finished.finished(config, "digits") == RESULT
    assert finished.finished(config, "letters") is None
    with pytest.raises(UsageError, match="it was trained from other data"):
        finished.prepare(config, fingerprint(config, "letters"))


def test_the_initial_checkpoint_is_part_of_the_run(finished, tmp_path):
    start = tmp_path / "start.ckpt"
    start.write_bytes(b"weights")
    config = changed(ckpt_path=str(start))
    assert finished.finished(config) is None
    with pytest.raises(UsageError, match="it was trained from another checkpoint"):
        finished.prepare(config, fingerprint(config, "digits"))


@pytest.mark.parametrize("damage", [b"", b"PK" + bytes(100), "another run's", "no dict"])
def test_a_checkpoint_that_cannot_be_used_is_set_aside_and_the_one_before_it_used(finished, damage):
    if damage == "another run's":
        save_checkpoint(finished, "last.ckpt", {"settings": "x"}, 7)
    elif damage == "no dict":
        save_tensors(torch.ones(3), finished.last)
    else:
        finished.last.write_bytes(damage)
    path, checkpoint = finished.prepare(CONFIG, fingerprint(CONFIG, "digits"))
    assert (path, checkpoint["global_step"]) == (finished.previous, 1)
    assert finished.last.with_suffix(".broken").exists()


def test_a_flipped_bit_of_a_weight_is_noticed(finished):
    content = bytearray(finished.last.read_bytes())
    place = content.index(torch.ones(3).numpy().tobytes())
    content[place] ^= 1
    finished.last.write_bytes(content)
    path, _ = finished.prepare(CONFIG, fingerprint(CONFIG, "digits"))
    assert path == finished.previous


def test_without_a_usable_checkpoint_the_run_is_refused(finished):
    finished.last.write_bytes(b"")
    finished.previous.write_bytes(b"")
    with pytest.raises(UsageError, match="Use ckpt_path=null to train again from the start"):
        finished.prepare(CONFIG, fingerprint(CONFIG, "digits"))


def test_a_run_is_started_over_with_null_and_its_result_kept(finished):
    config = changed(ckpt_path=None, seed=2)
    assert finished.finished(config) is None
    assert finished.prepare(config, fingerprint(config, "digits")) is None
    assert not finished.has_checkpoint
    assert json.loads((finished.path / "metrics.1.json").read_text()) == RESULT


@pytest.mark.parametrize(
    "config", [None, "name: my other project\n", "- a list\n", "a: [", "fingerprint: 3\n"]
)
@pytest.mark.parametrize("ckpt_path", ["auto", None])
def test_the_directory_of_somebody_else_is_left_alone(tmp_path, config, ckpt_path):
    files = [
        tmp_path / name for name in ("checkpoints/a.ckpt", "crops/b.png", "wandb/c", "metrics.csv")
    ]
    for path in files:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    if config is not None:
        (tmp_path / "config.yaml").write_text(config)
    ours = changed(ckpt_path=ckpt_path)
    with pytest.raises(UsageError, match=r"hydra\.run\.dir=DIRECTORY"):
        RunDir(tmp_path).prepare(ours, fingerprint(ours, "digits"))
    assert all(path.read_text() == "mine" for path in files)
    assert config is None or (tmp_path / "config.yaml").read_text() == config


def test_the_configuration_is_written_with_the_fingerprint(finished):
    saved = yaml.safe_load(finished.config.read_text())
    assert saved.pop("fingerprint") == fingerprint(CONFIG, "digits")
    assert saved == CONFIG


def test_one_process_works_in_a_directory_that_need_not_exist(tmp_path):
    second = RunDir(tmp_path / "new").lock()
    with RunDir(tmp_path / "new").lock(), pytest.raises(UsageError, match="Another run"), second:
        pass
    with RunDir(tmp_path / "new").lock():
        pass


def test_the_state_of_a_run_is_read_off_its_files(finished):
    assert finished.state() == ("finished", "test error 1.00 %")
    finished.result.write_text("{")
    assert finished.state().name == "failed"
    finished.result.unlink()
    assert finished.state().name == "stopped"
    finished.write_error("Traceback (most recent call last):\n  ...\nValueError: why")
    assert finished.state() == ("failed", "ValueError: why")
    assert RunDir(finished.path / "none").state().name == "not started"

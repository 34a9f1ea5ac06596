"""Which run a directory holds, whether it is finished, and what it resumes from."""

import copy
import json
import shutil
from itertools import count

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spatial_transformer.loggers.csv import MetricsCSV
from spatial_transformer.training.fingerprint import fingerprint
from spatial_transformer.training.result import read_result
from spatial_transformer.training.run_dir import RunDir
from spatial_transformer.utils.errors import UsageError
from spatial_transformer.utils.serialization import save_tensors

CONFIG = {
    "seed": 1,
    "ckpt_path": "auto",
    "run_dir": "somewhere",
    "data": {"root": "here", "batch_size": 2},
    "task": {"root": "here"},
    "model": {"width": 8},
    "recipe": {"dropout": 0.1},
    "trainer": {"max_steps": 3, "limit_test_batches": 2, "devices": 1},
    "logger": {"csv": {"_target_": "a.Logger"}},
    "callbacks": {
        "best": {"_target_": "a.Best", "dirpath": "x"},
        "mine": {"_target_": "a.Callback", "file": "somewhere/mine.txt"},
        "off": None,
    },
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
        {
            "run_dir": "elsewhere",
            "callbacks": {"mine": {"_target_": "a.Callback", "file": "elsewhere/mine.txt"}},
        },
        {"callbacks": {"rate": {"_target_": "pytorch_lightning.callbacks.LearningRateMonitor"}}},
        {"callbacks": {"best": {"_target_": "a.Best", "dirpath": "y"}}},
    ],
)
def test_same_settings_are_the_same_run(finished, same):
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
def test_other_settings_are_refused_by_name(finished, other, message):
    before = finished.config.read_bytes()
    with pytest.raises(UsageError, match=message):
        finished.finished(changed(**other))
    with pytest.raises(UsageError, match=message):
        finished.prepare(changed(**other), fingerprint(changed(**other), "digits"))
    assert finished.config.read_bytes() == before


def test_other_test_limit_repeats_the_test_alone(finished):
    config = changed(trainer={"limit_test_batches": 4})
    assert finished.finished(config) is None
    path, checkpoint = finished.prepare(config, fingerprint(config, "digits"))
    assert (path, checkpoint["global_step"]) == (finished.last, 2)
    assert json.loads((finished.path / "metrics.1.json").read_text()) == RESULT
    assert not finished.result.exists()


def test_moved_data_are_the_same_run(finished):
    config = changed(data={"root": "there"}, task={"root": "there"})
    with pytest.raises(UsageError, match="it was trained from other data"):
        finished.prepare(config, fingerprint(config, "letters"))
    assert finished.finished(config) is None, "what is there is not known yet"
    path, _ = finished.prepare(config, fingerprint(config, "digits"))
    assert path == finished.last, "only the test is repeated"


def test_initial_checkpoint_is_part_of_the_run(finished, tmp_path):
    start = tmp_path / "start.ckpt"
    start.write_bytes(b"weights")
    config = changed(ckpt_path=str(start))
    assert finished.finished(config) is None
    with pytest.raises(UsageError, match="it was trained from another checkpoint"):
        finished.prepare(config, fingerprint(config, "digits"))


@pytest.mark.parametrize("place", ["", "~"])
def test_weights_of_the_model_are_part_of_the_run(tmp_path, monkeypatch, place):
    monkeypatch.setenv("HOME", str(tmp_path))
    file, marks = tmp_path / "classifier.pt", []
    config = changed(model={"weights": f"{place or tmp_path}/classifier.pt"})
    for content in (None, b"one", b"another"):
        if content:
            file.write_bytes(content)
        marks.append(fingerprint(config, "digits"))
    assert not marks[0]["start"]
    assert len({mark["start"] for mark in marks}) == 3
    run_dir = RunDir(tmp_path / "run")
    run_dir.path.mkdir()
    run_dir.prepare(config, marks[1])
    with pytest.raises(UsageError, match="it was trained from another checkpoint"):
        run_dir.prepare(config, marks[2])


@pytest.mark.parametrize("damage", [b"", b"PK" + bytes(100), "another run's", "no dict"])
def test_unusable_checkpoint_is_replaced_by_the_previous(finished, damage):
    if damage == "another run's":
        save_checkpoint(finished, "last.ckpt", {"settings": "x"}, 7)
    elif damage == "no dict":
        save_tensors(torch.ones(3), finished.last)
    else:
        finished.last.write_bytes(damage)
    path, checkpoint = finished.prepare(CONFIG, fingerprint(CONFIG, "digits"))
    assert (path, checkpoint["global_step"]) == (finished.previous, 1)
    assert finished.last.with_suffix(".broken").exists()


def test_no_usable_checkpoint_is_refused(finished):
    finished.last.write_bytes(b"")
    finished.previous.write_bytes(b"")
    with pytest.raises(UsageError, match="Use ckpt_path=null to train again from the start"):
        finished.prepare(CONFIG, fingerprint(CONFIG, "digits"))


def test_restart_keeps_the_result(finished):
    config = changed(ckpt_path=None, seed=2)
    assert finished.finished(config) is None
    assert finished.prepare(config, fingerprint(config, "digits")) is None
    assert finished.state().name == "not started"
    assert json.loads((finished.path / "metrics.1.json").read_text()) == RESULT


@pytest.mark.parametrize(
    "config", [None, "name: my other project\n", "- a list\n", "a: [", "fingerprint: 3\n"]
)
@pytest.mark.parametrize("ckpt_path", ["auto", None])
def test_other_directories_are_left_alone(tmp_path, config, ckpt_path):
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


def test_configuration_has_the_fingerprint(finished):
    saved = yaml.safe_load(finished.config.read_text())
    assert saved.pop("fingerprint") == fingerprint(CONFIG, "digits")
    assert saved == CONFIG


def test_one_process_locks_a_directory(tmp_path):
    second = RunDir(tmp_path / "new").lock()
    with RunDir(tmp_path / "new").lock(), pytest.raises(UsageError, match="Another run"), second:
        pass
    with RunDir(tmp_path / "new").lock():
        pass


def test_state_follows_from_the_files(finished):
    assert finished.state() == ("finished", "test error 1.00 %")
    finished.write_error(UsageError("An attempt to start over failed."))
    assert finished.state().name == "failed"
    assert finished.finished(CONFIG)
    assert finished.state().name == "finished"
    finished.result.write_text("{")
    assert finished.state().name == "failed"
    finished.result.unlink()
    assert finished.state().name == "stopped"
    finished.write_error(ValueError("why"))
    assert finished.state() == ("failed", "ValueError: why")
    finished.write_error(UsageError("why.\nSet another."))
    assert finished.state() == ("failed", "why.")
    assert RunDir(finished.path / "none").state().name == "not started"


DAMAGES = {
    "cut": lambda content, place, more: content[:place],
    "insert": lambda content, place, more: content[:place] + more + content[place:],
    "overwrite": lambda content, place, more: content[:place] + more + content[place + len(more) :],
}


@pytest.mark.parametrize("amount", [20, pytest.param(500, marks=pytest.mark.slow)])
def test_damaged_files_are_read_correctly_or_refused(finished, tmp_path, amount):
    (finished.path / "metrics.csv").write_text("step,val/error\n1,90.5\n2,80.25\n3,\n")
    mark, copies = fingerprint(CONFIG, "digits"), count()
    readers = {
        "config.yaml": lambda run_dir: run_dir.read_config(),
        "metrics.json": lambda run_dir: run_dir.state() and read_result(run_dir.result),
        "metrics.csv": lambda run_dir: MetricsCSV(run_dir.path / "metrics.csv").resume(3),
        "checkpoints/last.ckpt": lambda run_dir: run_dir.newest_checkpoint(mark),
    }

    def attempt(name, kind, share, more):
        run_dir = RunDir(shutil.copytree(finished.path, tmp_path / str(next(copies))))
        content = (run_dir.path / name).read_bytes()
        damaged = DAMAGES[kind](content, int(share * len(content)), more)
        (run_dir.path / name).write_bytes(damaged)
        refusal, result = "", None
        try:
            result = readers[name](run_dir)
        except UsageError as error:
            refusal = str(error)
        assert not refusal or name in refusal
        if result and name.endswith(".ckpt"):
            assert torch.equal(result[1]["state_dict"]["w"], torch.ones(3))
        shutil.rmtree(run_dir.path)

    options = settings(
        max_examples=amount,
        deadline=None,
        derandomize=amount == 20,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    draws = given(
        name=st.sampled_from(sorted(readers)),
        kind=st.sampled_from(sorted(DAMAGES)),
        share=st.floats(0, 1, exclude_max=True),
        more=st.binary(min_size=1, max_size=8),
    )
    options(draws(attempt))()

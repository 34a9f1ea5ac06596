"""Result files are added, read and compared; those of other people are not trusted."""

import json
import re

import make_tables
import pytest
from conftest import REPOSITORY

from spatial_transformer.reporting.records import (
    add_record,
    changed_settings,
    read_measurements,
    read_records,
    read_result,
    write_measurements,
)
from spatial_transformer.utils.errors import UsageError
from spatial_transformer.utils.files import write_json

CONF, RESULTS = REPOSITORY / "conf", REPOSITORY / "results"


@pytest.fixture
def add(tmp_path):
    """Write the result of a run and add it to the results."""

    def add_(record, into=None):
        write_result(tmp_path / "run", record)
        return add_record(tmp_path / "run", tmp_path / "results", CONF, into)

    return add_


def write_result(folder, record):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(record))
    return folder / "metrics.json"


def test_results_are_added_and_read(record, add, tmp_path):
    path = add(record(1.0))
    assert add(record(1.0)) == path, "the same result again changes nothing"
    assert read_records(tmp_path / "results") == [record(1.0)]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "holds the result of an earlier run of it"),
        (["trainer.precision=bf16-mixed"], "run with other settings"),
        (["recipe.dropout=0.5"], "run with other settings"),
    ],
)
def test_results_are_not_overwritten(record, add, overrides, message):
    path = add(record(1.0))
    with pytest.raises(UsageError, match=message):
        add(record(2.0, *overrides))
    assert json.loads(path.read_text()) == record(1.0)
    assert add(record(2.0, *overrides), into="recipes").parent.name == "recipes"


def test_a_run_under_another_label_is_refused(record, add):
    add(record(1.0))
    with pytest.raises(UsageError, match="is the same run under another label"):
        add(record(1.0) | {"label": "other"})


def test_measurements_are_numbered(tmp_path):
    measurements = [{"label": "run", "steps": 10, "rows": [{"value": n}]} for n in (1, 2, 3)]
    paths = [write_measurements(measurement, tmp_path) for measurement in measurements]
    assert [path.name for path in paths] == ["run-10.json", "run-10.1.json", "run-10.2.json"]
    assert [read_measurements(path) for path in paths] == measurements


def test_lists_of_numbers_are_on_one_line(tmp_path):
    value = {"curve": {"loss": [1.5e-07, -2.0]}, "names": ["a"], "nested": [[1], [2]], "none": []}
    write_json(value, tmp_path / "value.json")
    text = (tmp_path / "value.json").read_text()
    assert json.loads(text) == value
    assert '"loss": [ 1.5e-07, -2.0 ]' in text
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json({"loss": float("nan")}, tmp_path / "value.json")


def test_files_that_are_not_results_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"metrics.json is missing"):
        add_record(tmp_path, tmp_path / "results", CONF)
    (tmp_path / "odd.json").write_text("{}")
    with pytest.raises(UsageError, match=r"odd.json is not the result"):
        read_records(tmp_path)
    with pytest.raises(UsageError, match=r"odd.json is not a file of measurements: it has no rows"):
        read_measurements(tmp_path / "odd.json")


@pytest.mark.parametrize("group", ["experiment", "model", "transform", "recipe"])
def test_names_that_hydra_would_evaluate_are_refused(record, tmp_path, monkeypatch, group):
    monkeypatch.setenv("WANDB_API_KEY", "SECRET")
    result = record(1.0)
    names = ("${oc.env:WANDB_API_KEY}", "cnn,fcn", "../cnn", "cnn seed=2", "a\x1b[31m", "", "x\n")
    for name in names:
        path = write_result(tmp_path / "run", result | {group: name})
        expected = rf"metrics\.json .*{group} must be letters, digits and underscores"
        with pytest.raises(UsageError, match=expected) as error:
            read_result(path)
        assert "SECRET" not in str(error.value)
        assert str(error.value).isprintable()


LABELS = ("/tmp/x", "../x", "a/../../x", ".hidden", "red\x1b[31m", "a\nb", "", 7, "x" * 300)


@pytest.mark.parametrize("label", LABELS)
def test_labels_write_no_files_elsewhere(record, add, tmp_path, label):
    with pytest.raises(UsageError, match="label") as error:
        add(record(1.0) | {"label": label})
    assert "\x1b" not in str(error.value)
    with pytest.raises(UsageError, match="label must be"):
        write_measurements({"label": label, "steps": 1, "rows": []}, tmp_path / "results")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_folders_outside_the_results_are_refused(record, add, tmp_path):
    for into in ("../elsewhere", str(tmp_path / "elsewhere")):
        with pytest.raises(UsageError, match="must be inside"):
            add(record(1.0), into)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("name", ["seconds", "device", "seed", "config", "label"])
def test_missing_fields_are_named(record, tmp_path, name):
    result = record(1.0)
    del result[name]
    path = write_result(tmp_path / "run", result)
    with pytest.raises(UsageError, match=rf"run/metrics\.json is not .*{name}"):
        read_result(path)


def test_network_without_the_transform_of_its_experiment_is_standard(record):
    run = record(1.0, "model=rotated_cnn", "transform=none", experiment="mnist_rotated")
    assert changed_settings(run, CONF) == []


def test_result_with_unknown_options_is_not_added(record, add, tmp_path):
    with pytest.raises(UsageError, match=r"model=no_such_model.* is not in conf/"):
        add(record(1.0) | {"model": "no_such_model"})
    assert not (tmp_path / "results").exists()


def test_script_adds_all_valid_runs(record, tmp_path, monkeypatch, run_program):
    monkeypatch.setattr(make_tables, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(make_tables, "documents", dict)
    monkeypatch.setattr(make_tables, "charts", dict)
    (tmp_path / "unfinished").mkdir()
    write_result(tmp_path / "finished", record(1.0))
    runs = [tmp_path / name for name in ("unfinished", "finished")]
    error, *_ = run_program(make_tables.main, "--add", *runs)
    assert "unfinished is not the directory of a finished run" in error
    assert len(list((tmp_path / "results" / "mnist").iterdir())) == 1


def test_results_contain_no_paths():
    for path in RESULTS.rglob("*.json"):
        assert not re.search(r'"(~|/|[A-Z]:)[^"]*"', path.read_text()), path.name


def test_results_are_of_clean_commits():
    for kept in read_records(RESULTS / "mnist"):
        assert kept["commit"], kept["label"]
        assert kept["dirty"] is False, kept["label"]

"""Records of runs."""

import json
import re
import sys

import make_tables
import pytest
from conftest import REPOSITORY

from spatial_transformer.reporting.records import (
    add_record,
    read_records,
    read_result,
    standard_settings,
    write_measurements,
)
from spatial_transformer.utils.errors import UsageError
from spatial_transformer.utils.files import write_json

CONF = REPOSITORY / "conf"


def test_records_are_added_and_read_back(record, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(record(1.0)))
    added = add_record(tmp_path / "run", tmp_path / "results")
    assert read_records(tmp_path / "results") == [record(1.0)]
    added.unlink()
    assert read_records(tmp_path / "results") == []


def test_a_record_does_not_take_the_place_of_a_run_with_other_settings(record, tmp_path):
    (tmp_path / "run").mkdir()
    file = tmp_path / "run" / "metrics.json"
    file.write_text(json.dumps(record(1.0)))
    added = add_record(tmp_path / "run", tmp_path / "results")
    for other in ("trainer.precision=bf16-mixed", "recipe.dropout=0.5"):
        file.write_text(json.dumps(record(2.0, other)))
        with pytest.raises(UsageError, match="run with other settings"):
            add_record(tmp_path / "run", tmp_path / "results")
    assert json.loads(added.read_text())["metrics"]["test/error"] == 1.0
    assert add_record(tmp_path / "run", tmp_path / "results", "recipes").parent.name == "recipes"


def test_no_result_is_overwritten(record, tmp_path):
    (tmp_path / "run").mkdir()
    file = tmp_path / "run" / "metrics.json"
    file.write_text(json.dumps(record(1.0)))
    added = add_record(tmp_path / "run", tmp_path / "results")
    assert add_record(tmp_path / "run", tmp_path / "results") == added, (
        "the same result again changes nothing"
    )
    file.write_text(json.dumps(record(2.0)))
    with pytest.raises(UsageError, match="holds the result of an earlier run of it"):
        add_record(tmp_path / "run", tmp_path / "results")
    assert json.loads(added.read_text()) == record(1.0)


def test_measurements_are_numbered_and_not_overwritten(tmp_path):
    rows = [{"label": "run", "steps": 10, "rows": [{"value": value}]} for value in (1, 2, 3)]
    names = [write_measurements(measurement, tmp_path).name for measurement in rows]
    assert names == ["run-10.json", "run-10.1.json", "run-10.2.json"]
    assert [json.loads((tmp_path / name).read_text()) for name in names] == rows


def test_lists_of_numbers_are_written_on_one_line(tmp_path):
    value = {
        "curve": {"step": [1, 2], "loss": [1.5e-07, -2.0]},
        "names": ["a", "b"],
        "nested": [[1], [2]],
        "none": [],
    }
    write_json(value, tmp_path / "value.json")
    text = (tmp_path / "value.json").read_text()
    assert json.loads(text) == value
    assert '"loss": [ 1.5e-07, -2.0 ]' in text


def test_what_is_no_record_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"metrics.json is missing"):
        add_record(tmp_path, tmp_path / "results")
    (tmp_path / "odd.json").write_text("{}")
    with pytest.raises(UsageError, match=r"odd.json is not the result"):
        read_records(tmp_path)


def written(folder, result, **changed):
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "metrics.json"
    file.write_text(
        json.dumps({name: value for name, value in (result | changed).items() if value is not None})
    )
    return file


def test_a_name_that_hydra_would_evaluate_is_refused(record, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "SECRET")
    result = record(1.0)
    for group in ("experiment", "model", "transform", "recipe"):
        for name in (
            "${oc.env:WANDB_API_KEY}",
            "cnn,fcn",
            "../cnn",
            "cnn seed=2",
            "a\x1b[31m",
            "",
            "x\n",
        ):
            file = written(tmp_path / "run", result, **{group: name})
            expected = rf"metrics\.json .*{group} must be letters, digits and underscores"
            with pytest.raises(UsageError, match=expected) as refused:
                read_result(file)
            assert "SECRET" not in str(refused.value)
            assert str(refused.value).isprintable()


def test_a_label_writes_nothing_elsewhere_and_does_not_reach_the_terminal(record, tmp_path):
    result = record(1.0)
    for label in (
        "/tmp/owned",
        "../owned",
        "a/../../owned",
        ".hidden",
        "red\x1b[31m",
        "a\nb",
        "",
        7,
        "x" * 300,
    ):
        written(tmp_path / "run", result, label=label)
        with pytest.raises(UsageError, match="label") as refused:
            add_record(tmp_path / "run", tmp_path / "results")
        assert "\x1b" not in str(refused.value)
        with pytest.raises(UsageError, match="label must be"):
            write_measurements({"label": label, "steps": 1, "rows": []}, tmp_path / "results")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_folder_outside_of_the_results_is_refused(record, tmp_path):
    written(tmp_path / "run", record(1.0))
    for into in ("../elsewhere", str(tmp_path / "elsewhere")):
        with pytest.raises(UsageError, match="must be inside"):
            add_record(tmp_path / "run", tmp_path / "results", into)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_result_without_a_field_is_one_message_with_its_name(record, tmp_path):
    result = record(1.0)
    for name in ("seconds", "device", "seed", "config", "label"):
        file = written(tmp_path / "run", result, **{name: None})
        with pytest.raises(UsageError, match=rf"run/metrics\.json is not .*{name}"):
            read_result(file)


def test_options_that_the_configuration_does_not_have_are_named(record):
    with pytest.raises(UsageError, match=r"model=no_such_model.* is not in conf/"):
        standard_settings(record(1.0) | {"model": "no_such_model"}, CONF)


def test_a_run_without_a_record_is_named_and_the_others_are_taken(
    record, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(make_tables, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(make_tables, "documents", dict)
    monkeypatch.setattr(make_tables, "charts", dict)
    for name in ("whole", "half"):
        (tmp_path / name).mkdir()
    (tmp_path / "whole" / "metrics.json").write_text(json.dumps(record(1.0)))
    monkeypatch.setattr(
        sys, "argv", ["make_tables.py", "--add", str(tmp_path / "half"), str(tmp_path / "whole")]
    )
    with pytest.raises(SystemExit, match=r"half is not the directory of a finished run"):
        make_tables.main()
    assert len(list((tmp_path / "results" / "mnist").iterdir())) == 1


def test_no_record_speaks_of_the_machine_that_it_was_made_on():
    for path in (REPOSITORY / "results").rglob("*.json"):
        assert not re.search(r'"(~|/|[A-Z]:)[^"]*"', path.read_text()), f"{path.name} holds a path"


def test_every_record_was_made_by_a_clean_commit():
    for kept in read_records(REPOSITORY / "results" / "mnist"):
        assert kept["commit"], kept["label"]
        assert kept["dirty"] is False, kept["label"]

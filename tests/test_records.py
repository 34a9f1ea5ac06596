"""Records of runs."""

import json
import re
import sys

import make_tables
import pytest
from conftest import REPOSITORY

from spatial_transformer.errors import UsageError
from spatial_transformer.records import add_record, read_records

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


def test_the_same_run_of_newer_code_takes_the_place_of_its_record(record, tmp_path):
    (tmp_path / "run").mkdir()
    file = tmp_path / "run" / "metrics.json"
    of_old = record(1.0)
    del of_old["config"]["trainer"], of_old["config"]["recipe"]["theta_noise"], of_old["config"]["recipe"]["dropout"]
    for one in (of_old, record(2.0)):
        file.write_text(json.dumps(one))
        added = add_record(tmp_path / "run", tmp_path / "results")
    assert json.loads(added.read_text())["metrics"]["test/error"] == 2.0


def test_what_is_no_record_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"no metrics.json"):
        add_record(tmp_path, tmp_path / "results")
    (tmp_path / "odd.json").write_text("{}")
    with pytest.raises(UsageError, match=r"odd.json is not the record"):
        read_records(tmp_path)


def test_a_run_without_a_record_is_named_and_the_others_are_taken(record, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(make_tables, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(make_tables, "documents", dict)
    monkeypatch.setattr(make_tables, "charts", dict)
    for name in ("whole", "half"):
        (tmp_path / name).mkdir()
    (tmp_path / "whole" / "metrics.json").write_text(json.dumps(record(1.0)))
    monkeypatch.setattr(sys, "argv", ["make_tables.py", "--add", str(tmp_path / "half"), str(tmp_path / "whole")])
    with pytest.raises(SystemExit, match=r"half has no metrics.json"):
        make_tables.main()
    assert len(list((tmp_path / "results" / "mnist").iterdir())) == 1


def test_no_record_speaks_of_the_machine_that_it_was_made_on():
    for path in (REPOSITORY / "results").rglob("*.json"):
        assert not re.search(r'"(~|/|[A-Z]:)[^"]*"', path.read_text()), f"{path.name} holds a path"


def test_every_record_was_made_by_a_clean_commit():
    for kept in read_records(REPOSITORY / "results" / "mnist"):
        assert kept["commit"], kept["label"]
        assert kept["dirty"] is False, kept["label"]

"""Records and tables."""

import json
import sys

import pytest
from conftest import REPOSITORY
from scipy import stats

from spatial_transformer import paper
from spatial_transformer.errors import UsageError
from spatial_transformer.results import add_record, cell, interval, mnist_tables, read_records, with_tables

sys.path.insert(0, str(REPOSITORY / "scripts"))


def record(error, seed=1, model="st_fcn", transform="affine", distortion="rts", steps=100, **config):
    data = {"distortion": distortion, "canvas": None, "fresh": True}
    return {
        "label": f"{model}-{transform}-{distortion}-fast-seed{seed}",
        "experiment": "mnist",
        "model": model,
        "transform": transform,
        "recipe": "fast",
        "seed": seed,
        "steps": steps,
        "metrics": {"test/error": error},
        "config": {"data": data, "model": {"width": None}} | config,
    }


def test_the_interval_is_student_t():
    values = [1.2, 1.5, 1.1, 1.4]
    mean, half = interval(values)
    low, high = stats.t.interval(0.95, 3, loc=mean, scale=stats.sem(values))
    assert mean - half == pytest.approx(low, abs=1e-3)
    assert mean + half == pytest.approx(high, abs=1e-3)


def test_cells():
    assert cell([]) == "not run"
    assert cell([1.234]) == "1.23 (1)"
    assert cell([1.0, 1.2]) == "1.10 ± 1.27 (2)"


def test_a_table_has_every_network_the_papers_numbers_and_not_run():
    table = mnist_tables([record(1.0), record(1.2, seed=2)])
    for name in paper.NETWORKS:
        assert f"| **{name}** |" in table
    assert "*0.8*" in table
    assert "1.10 ± 1.27 (2)" in table
    assert "| | ours | not run | not run | not run | not run | not run |" in table


def test_runs_with_a_canvas_or_width_of_their_own_stay_out_of_the_table():
    odd = record(9.99, model="fcn", transform="none")
    odd["config"]["data"]["canvas"] = 50
    assert "9.99" not in mnist_tables([odd])


def test_records_are_added_and_read_back(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(record(1.0)))
    added = add_record(tmp_path / "run", tmp_path / "results")
    assert read_records(tmp_path / "results") == [record(1.0)]
    added.unlink()
    assert read_records(tmp_path / "results") == []


def test_what_is_no_record_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"no metrics.json"):
        add_record(tmp_path, tmp_path / "results")
    (tmp_path / "odd.json").write_text("{}")
    with pytest.raises(UsageError, match=r"odd.json is not the record"):
        read_records(tmp_path)


def test_tables_are_put_in_their_places():
    text = "a\n<!-- table x -->\nold\n<!-- end -->\nb"
    assert with_tables(text, {"x": "new"}) == "a\n<!-- table x -->\nnew\n<!-- end -->\nb"
    with pytest.raises(UsageError, match="no place for table y"):
        with_tables(text, {"y": "new"})


def test_the_readme_says_what_the_records_say():
    from make_tables import tables

    readme = (REPOSITORY / "README.md").read_text()
    assert with_tables(readme, tables()) == readme, "run `make tables`"


def test_every_record_was_made_by_a_clean_commit():
    for kept in read_records(REPOSITORY / "results" / "mnist"):
        assert kept["commit"], kept["label"]
        assert kept["dirty"] is False, kept["label"]

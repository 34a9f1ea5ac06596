"""The decision of ``make regress``."""

import pytest
import regress
from conftest import REPOSITORY

from spatial_transformer.reporting.records import read_records
from spatial_transformer.utils.errors import UsageError

RECORDED = (1.0, 1.1, 0.9, 1.05, 0.95)
FCN, ST_FCN = "fcn none on RTS, 1,000 steps", "st_fcn affine on RTS, 1,000 steps"


@pytest.fixture
def runs(record):
    """Return runs of FCN and of ST-FCN with these errors, with seeds from ``first`` on."""

    def make(fcn, st_fcn, first=1):
        return [
            record(error, f"model={model}", f"seed={seed}", "trainer.max_steps=1000")
            for model, errors in (("fcn", fcn), ("st_fcn", st_fcn))
            for seed, error in enumerate(errors, first)
        ]

    return make


def test_same_code_is_accepted(runs):
    lines, rejected = regress.compare(runs(RECORDED, RECORDED), runs((1.1, 0.9), (1.2, 0.9), 101))
    assert rejected == []
    assert lines[0] == f"{FCN}: 1.00 %, expected 0.70 to 1.30 %, accepted"


@pytest.mark.parametrize("error", [0.6, 1.4])
def test_a_change_outside_the_interval_is_rejected_by_name(runs, error):
    new = runs((1.0, 1.1), (error, error), 101)
    lines, rejected = regress.compare(runs(RECORDED, RECORDED), new)
    assert rejected == [ST_FCN]
    assert [line.endswith("REJECTED") for line in lines] == [False, True]


@pytest.mark.parametrize(
    ("recorded", "new", "first", "message"),
    [
        ((RECORDED, RECORDED), ((1.0,), ()), 101, f"differ in {ST_FCN}"),
        ((RECORDED, (1.0, 1.1)), ((1.0,), (1.0,)), 101, "needs at least 3 recorded runs, got 2"),
        ((RECORDED, RECORDED), ((1.0,), (1.0,)), 5, "must not be recorded ones, got 5 for fcn"),
    ],
)
def test_wrong_comparisons_are_refused(runs, recorded, new, first, message):
    with pytest.raises(UsageError, match=message):
        regress.compare(runs(*recorded), runs(*new, first))


def test_every_cell_has_recorded_runs():
    cells = regress._by_cell(read_records(REPOSITORY / "results" / "regress"))
    assert len(cells) == 4
    assert min(len(runs) for runs in cells.values()) >= 4


def test_damaged_results_are_refused_before_the_runs(tmp_path, monkeypatch):
    (tmp_path / "damaged.json").write_text("{")
    monkeypatch.setattr(regress, "RECORDED", tmp_path)
    monkeypatch.setattr("sys.argv", ["regress.py"])
    monkeypatch.setattr("subprocess.run", lambda *args, **options: pytest.fail("a run started"))
    with pytest.raises(SystemExit, match="is not the result of a run"):
        regress.main()

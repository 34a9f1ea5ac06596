"""Records and tables."""

import json
import re
import shlex
import sys

import make_tables
import orientation
import pytest
import slopes
import torch
from conftest import REPOSITORY
from omegaconf import OmegaConf
from PIL import Image
from scipy import stats

from spatial_transformer import paper
from spatial_transformer.config import check
from spatial_transformer.errors import UsageError
from spatial_transformer.results import (
    add_record,
    addition_poses,
    addition_table,
    birds_table,
    cell,
    colocalisation_choices,
    colocalisation_table,
    comparisons,
    gains_table,
    interval,
    mnist_table,
    orientation_table,
    parts_table,
    projective_table,
    read_records,
    recipe_table,
    slopes_table,
    steps_chart,
    svhn_table,
    svhn_windows,
    times_table,
    volumes_table,
    with_tables,
)

CONF = REPOSITORY / "conf"


@pytest.fixture
def record(composed):
    """Makes the record of a run with given overrides, as the runner does, but for the run."""

    def record_(error, *overrides, experiment="mnist"):
        config = composed(f"experiment={experiment}", *overrides)
        settings = OmegaConf.to_container(config, resolve=True)
        return {
            "label": config.label,
            **settings["choices"],
            "seed": config.seed,
            "steps": config.trainer.max_steps,
            "samples": {"train": 1824},
            "metrics": {"test/error": error, "val/best_error": 1.0},
            "config": {name: settings[name] for name in ("data", "transform", "model", "recipe", "task")},
        }

    return record_


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


def test_a_table_has_every_network_the_papers_numbers_and_not_run(record):
    table = mnist_table([record(1.0), record(1.2, "seed=2")], CONF).markdown()
    for name in paper.NETWORKS:
        assert f"| **{name}** |" in table
    assert "*0.8*" in table
    assert "1.10 ± 1.27 (2)" in table
    assert "| | ours | not run | not run | not run | not run | not run |" in table


def test_the_gain_is_that_over_the_base_network_of_the_same_recipe_and_length(record):
    runs = [record(5.0, "model=fcn"), record(1.0), record(1.5, "seed=2"), record(2.0, "trainer.max_steps=100")]
    table = gains_table(runs, CONF)
    assert "| **ST-FCN affine** | *paper, 150k* | *0.9* | *4.4* | *1.6* | *0.5* | *11.2* |" in table
    assert "| | fast, 15,000 | not run | 3.75 | not run | not run | not run |" in table
    assert "100" not in table


def test_the_table_of_p_tells_displacements_apart(record):
    at_default = [record(1.2, "data.distortion=p"), record(9.0, "data.distortion=r")]
    before = record(3.6, "data.distortion=p")
    del before["config"]["data"]["corner_std"]  # of the time when 5 px were each coordinate's
    wide = record(3.5, "data.distortion=p", "data.canvas=42")
    table = projective_table([before, wide, record(0.8, "data.distortion=p", "data.corner_std=2.5")], at_default, CONF)
    assert "| *paper* | | *150k* | *1.5* |" in table
    for row in (
        "2.50 | 28 | 15,000 | 0.80",
        "3.54 | 28 | 15,000 | 1.20",
        "5.00 | 28 | 15,000 | 3.60",
        "5.00 | 42 | 15,000 | 3.50",
    ):
        assert f"| {row} (1) |" in table
    assert "9.00" not in table


def test_the_spread_of_angles():
    assert orientation.spread(torch.tensor([10.0, 10.0, 370.0])) == pytest.approx(0, abs=0.2)
    angles = 20 * torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    assert orientation.spread(angles) == pytest.approx(20, rel=0.02)


def test_the_angles_of_a_shipped_network_are_measured_and_shown(mnist_root):
    record = orientation.measure(REPOSITORY / "checkpoints" / "st_cnn_mnist.pt", str(mnist_root))
    assert [row["class"] for row in record["rows"]] == list(range(10))
    assert all(24 < row["before"] < 29 for row in record["rows"]), "uniform in +-45 degrees has a deviation of 26"
    table = orientation_table([record]).splitlines()
    assert table[2].startswith("| `st_cnn-affine-rts-fast-seed1`, 4,000 steps | before | 26 |")
    assert table[3].startswith("|  | after |")


def test_the_table_of_times_has_the_median_of_alike_runs(record):
    runs = [
        record(1.0, f"seed={seed}") | {"seconds": 60.0 * seed, "device": "cpu (x86_64)", "threads": 1} for seed in (1, 2, 6)
    ]
    assert "| mnist | st_fcn | fast, 15,000 | cpu (x86_64), 1 thread | 3 | 2 |" in times_table(runs)


def test_the_table_of_svhn_says_on_how_many_images_a_row_was_trained(record):
    def run(error, experiment, *more):
        return record(error, "recipe=svhn_part", *more, experiment=experiment)

    runs = [run(31.0, "svhn_st_multi"), run(33.0, "svhn_st_multi", "seed=2"), run(40.0, "svhn_cnn", "data.size=128")]
    runs += [run(99.9, "svhn_cnn", "model.width=0.5"), run(99.8, "svhn_cnn", "data.augment=false")]
    table = svhn_table(runs, CONF).markdown()
    assert "| **ST-CNN Multi** | *paper, 400k* | *3.6* | *3.9* |\n" in table
    assert "; 1,824 images | 32.00 ± 12.71 (2) | not run |" in table
    assert "; 1,824 images | not run | 40.00 (1) |\n" in table
    assert "| **ST-CNN Single** | *paper, 400k* | *3.7* | *3.9* |\n| | ours | not run | not run |\n" in table
    assert "99." not in table


def test_the_tables_of_addition_have_errors_and_poses(record):
    def run(error, *more):
        return record(error, *more, experiment="mnist_addition")

    both = run(8.0), run(9.0, "seed=2")
    for n, made in enumerate(both):
        made["metrics"] |= {"test/pose_input_1": 8.0, "test/pose_input_2": 8.0}
        for k in (1, 2):
            made["metrics"] |= {
                f"test/pose_{k}_1": 2.0 + n,
                f"test/pose_{k}_2": 6.0,
                f"test/resolves_first_{k}": 100.0 - 80 * (k == 2),
            }
    runs = [*both, run(40.0, "model=addition_fcn"), run(9.99, "data.fresh=false")]
    table = addition_table(runs, CONF).markdown()
    assert "| **2 × ST-FCN affine** | *paper* | *9.0* |\n| | fast, 30,000 | 8.50 ± 6.35 (2) |\n" in table
    assert (
        "| **FCN** | *paper* | *47.7* |\n| | fast, 30,000 | 40.00 (1) |\n| **CNN** | *paper* | *14.7* |\n| | ours | not run |"
        in table
    )
    assert "9.99" not in table
    assert addition_poses(runs, CONF).splitlines()[2:] == [
        f"| 2 × ST-FCN affine | fast, 30,000 | {seed} | {row}"
        for seed in (1, 2)
        for row in (
            "nothing: the image | 8.0 | 8.0 | – |",
            f"transformer 1 | {1 + seed}.0 | 6.0 | 100 |",
            f"transformer 2 | {1 + seed}.0 | 6.0 | 20 |",
        )
    ]
    assert addition_poses(runs[2:3], CONF) == "not run"


def test_the_tables_of_colocalisation_have_a_column_for_each_digit_and_a_row_for_each_change(record):
    def run(error, digit, *more):
        return record(error, f"data.digit={digit}", *more, experiment="colocalisation")

    tried = [run(99.0, 3, "task.locate=0"), run(60.0, 5, "task.locate=0")]
    runs = [run(20.0, 3), run(10.0, 3, "seed=2"), run(4.0, 9), run(24.0, 3, "data.distortion=tc"), *tried]
    of_paper = "| **T** | *paper* |" + " *100* |" * 10
    missing = " | ".join(["not run"] * 3)
    ours = f"| | colocalisation, 2,000 | {missing} | 85.00 ± 63.53 (2) | {missing} | not run | not run | 96 |"
    table = colocalisation_table(runs, CONF).markdown()
    assert f"{of_paper}\n{ours}\n| **TC** | *paper* | *81* |" in table
    assert f"\n| | colocalisation, 2,000 | {missing} | 76 | not run |" in table
    tried.append(run(70.0, 3, "recipe.optimizer._target_=torch.optim.SGD"))
    assert colocalisation_choices([runs[0], runs[2], *tried], CONF).splitlines() == [
        "| changed | T, 3 | T, 5 |",
        "|---|---|---|",
        "| nothing | 80 | not run |",
        "| `recipe.optimizer._target_=SGD` | 30 | not run |",
        "| `task.locate=0` | 1 | 40 |",
    ]


def test_the_table_of_volumes_has_both_networks(record):
    runs = [record(4.0, f"seed={seed}", experiment="mnist_3d") for seed in (1, 2)]
    table = volumes_table([*runs, record(9.9, "data.fresh=false", experiment="mnist_3d")], CONF).markdown()
    assert table.splitlines()[2:] == [
        "| **projection, FCN** | ours | not run |",
        "| **3-D transformer, projection, FCN** | fast, 3,000 | 4.00 ± 0.00 (2) |",
    ]


def test_the_window_of_several_transformers_is_their_product(record):
    run = record(31.0, "recipe=svhn_part", experiment="svhn_st_multi")
    for name, scale in (("theta", 0.5), ("theta_2", 0.8), ("theta_3", 1.0), ("theta_4", 1.0)):
        turned = [0.6 * scale, -0.8 * scale, 0.3, 0.8 * scale, 0.6 * scale, 0.1]
        run["metrics"] |= {f"{name}/mean_{k}": value for k, value in enumerate(turned)}
    plain = record(40.0, "recipe=svhn_part", experiment="svhn_cnn")
    assert svhn_windows([run, plain], CONF).splitlines()[2:] == ["| ST-CNN Multi | svhn_part, 3,000 | 64 px | 40.00 (1) |"]
    assert svhn_windows([plain], CONF) == "not run"


def test_the_table_of_birds_says_what_it_was_trained_on(record):
    def run(accuracy, experiment, *more):
        made = record(100 - accuracy, "data.species=1-50", *more, experiment=experiment)
        made["metrics"]["test/accuracy"] = accuracy
        return made

    runs = [run(70.0, "birds_4st"), run(72.0, "birds_4st", "seed=2"), run(9.99, "birds_cnn", "model.backbone=googlenet")]
    table = birds_table(runs, CONF).markdown()
    steps = f"{runs[0]['steps']:,}"
    assert "| **4 × ST-CNN, 448 px** | *paper; all species* | *84.1* |\n" in table
    assert f"| efficientnet_lite0; birds_differences, {steps}; species 1-50, 1,824 images | 71.00 ± 12.71 (2) |" in table
    assert "| **CNN, 224 px** | *paper; all species* | *82.3* |\n| | ours | not run |\n" in table
    assert "9.99" not in table


def test_the_table_of_parts_has_the_mean_over_the_seeds(record):
    runs = [record(30.0, f"seed={seed}", "recipe=birds_fast", experiment="birds_2st") for seed in (1, 2)]
    for n, run in enumerate(runs):
        run["metrics"] |= {"test/parts_1/beak": 60.0 + 20 * n, "test/parts_2/beak": 5.0, "test/parts_random/beak": 33.0}
        run["metrics"] |= {"test/box_1": 40.0, "test/on_box_2": 90.0}
    assert parts_table(runs, CONF, "birds_2st").splitlines()[2:] == [
        "| part | crop 1 | crop 2 | random crop |",
        "|---|---|---|---|",
        "| beak | 70 | 5 | 33 |",
        "| *the box, of which the crop holds* | 40 | – | – |",
        "| *the crop, of which is box* | – | 90 | – |",
    ]
    runs[0]["recipe"] = "birds_differences"
    for group in ("recipe", "task"):
        runs[0]["config"][group]["theta_step"] = 0.15
    tables = parts_table(runs, CONF, "birds_2st").split("\n\n")
    assert [text.split(",")[0] for text in tables[::2]] == ["birds_differences", "birds_fast"]
    assert "| beak | 60 | 5 | 33 |" in tables[1]
    assert parts_table(runs, CONF, "birds_4st") == "not run"


def test_the_table_of_slopes_has_a_row_for_each_distance():
    row = {"distance": 0.1, "pixels": 22, "gradient": 131.0, "slope": 3.2, "correlation": 0.17, "same sign": 0.57}
    assert slopes_table([{"label": "x", "samples": 40, "rows": [row]}]).splitlines()[2:] == [
        "| `x` | 40 | 22 | 3.2 | 131.0 | 0.17 | 57 % |"
    ]
    assert slopes_table([]) == "not run"


def test_gradient_and_slopes_of_a_parabola_are_the_same_at_any_distance():
    theta = torch.tensor([[1.0, -2.0], [0.5, 0.0]])
    weights = torch.tensor([1.0, 3.0])
    found = slopes.gradient_and_slopes(lambda t: (weights * t.square()).sum(dim=1), theta, (0.1, 1.0))
    for values in found:
        torch.testing.assert_close(values, 2 * weights * theta)


def test_a_shorter_run_of_a_recipe_has_a_row_of_its_own(record):
    table = mnist_table([record(1.0), record(3.0, "trainer.max_steps=500", "data.root=elsewhere")], CONF).markdown()
    assert "| | fast, 500 | not run | 3.00 (1) |" in table


def test_a_run_of_before_a_setting_existed_counts_where_the_setting_is_off(record):
    run = record(1.0)
    del run["config"]["recipe"]["dropout"], run["config"]["model"]["dropout"]
    assert "1.00 (1)" in mnist_table([run], CONF).markdown()
    del run["config"]["recipe"]["localisation_lr_factor"]
    assert "1.00 (1)" not in mnist_table([run], CONF).markdown()


@pytest.mark.parametrize(
    "override",
    [
        "data.canvas=50",
        "data.fresh=false",
        "data.batch_size=64",
        "model.width=20",
        "model.pool=1",
        "recipe.optimizer.lr=0.1",
        "recipe.scheduler=null",
        "recipe.localisation_lr_factor=0.1",
    ],
)
def test_a_run_with_settings_of_its_own_stays_out_of_the_table(record, override):
    assert "9.99" not in mnist_table([record(9.99, override)], CONF).markdown()


def test_a_spline_with_another_grid_is_not_the_papers(record):
    assert "9.99" in mnist_table([record(9.99, "transform=tps")], CONF).markdown()
    assert "9.99" not in mnist_table([record(9.99, "transform=tps", "transform.points=[5,5]")], CONF).markdown()


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
    file.write_text(json.dumps(record(2.0, "recipe.dropout=0.5")))
    with pytest.raises(UsageError, match="run with other settings"):
        add_record(tmp_path / "run", tmp_path / "results")
    assert json.loads(added.read_text())["metrics"]["test/error"] == 1.0
    assert add_record(tmp_path / "run", tmp_path / "results", "recipes").parent.name == "recipes"


def test_the_recipe_table_says_what_was_different(record):
    table = recipe_table([record(1.5, "recipe.optimizer.lr=0.1", "recipe.dropout=0.5"), record(1.25, "seed=2")], CONF)
    assert "| ST-FCN affine | RTS | fast | dropout 0.5, optimizer.lr 0.1 | 15,000 | 1.00 | 1.50 |" in table
    assert "| ST-FCN affine | RTS | fast | – | 15,000 | 1.00 | 1.25 |" in table


def test_the_chart_of_lengths_has_a_line_for_each_recipe(record):
    runs = [record(1.0, "model=fcn"), record(8.0, "recipe.dropout=0.5")]
    for recipe in ("fast", "paper"):
        runs += [record(steps / 1000, f"recipe={recipe}", f"trainer.max_steps={steps}") for steps in (9, 99)]
    *lines, _ = steps_chart(runs, CONF).axes[0].lines
    assert [line.get_label() for line in lines] == [f"ST-FCN affine on RTS, {recipe} recipe" for recipe in ("fast", "paper")]
    assert lines[0].get_xydata().tolist() == [[9, 0.009], [99, 0.099]]


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


def test_the_documents_say_what_the_records_say():
    for document, text in make_tables.documents().items():
        assert document.read_text() == text, f"{document.name}: run `make tables`"


def test_the_charts_are_made_of_the_records():
    for chart, (_, digest) in make_tables.charts().items():
        assert Image.open(chart).info["Records"] == digest, f"{chart.name}: run `make tables`"


@pytest.mark.parametrize("table", ["mnist", "svhn", "addition", "colocalisation", "volumes", "birds"])
def test_the_command_of_a_cell_runs_what_its_records_are_of(composed, table):
    rows = [row for network in comparisons(REPOSITORY / "results", CONF)[table].networks for _, row in network.rows]
    places = [place for row in rows for place in row]
    assert any(place.runs for place in places)
    for place in places:
        words = shlex.split(place.command)
        assert words[:2] == ["python", "train.py"]
        overrides = [word.split(",")[0] for word in words[2:] if word != "-m"]
        config = composed(*overrides)
        check(config)
        settings = OmegaConf.to_container(config, resolve=True)
        for run in place.runs:
            assert settings["choices"] == {name: run[name] for name in settings["choices"]}
            assert settings["trainer"]["max_steps"] == run["steps"]
            for name in ("distortion", "digit", "size", "species"):
                assert settings["data"].get(name) == run["config"]["data"].get(name)
        assert {str(run["seed"]) for run in place.runs} <= set(words[-1].removeprefix("seed=").split(","))


def test_no_record_speaks_of_the_machine_that_it_was_made_on():
    for path in (REPOSITORY / "results").rglob("*.json"):
        assert not re.search(r'"(~|/|[A-Z]:)[^"]*"', path.read_text()), f"{path.name} holds a path"


def test_every_record_was_made_by_a_clean_commit():
    for kept in read_records(REPOSITORY / "results" / "mnist"):
        assert kept["commit"], kept["label"]
        assert kept["dirty"] is False, kept["label"]

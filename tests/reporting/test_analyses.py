"""What else the records say, in the documents."""

import class_orientation
import error_consistency
import gradient_vs_finite_difference
import make_tables
import pytest
import torch
from conftest import REPOSITORY
from PIL import Image

from spatial_transformer.reporting.analyses import (
    fill_table_markers,
    improvement_table,
    orientation_table,
    parts_table,
    pooling_table,
    projective_table,
    recipe_table,
    redraws_table,
    slopes_table,
    steps_chart,
    svhn_window_table,
    times_table,
)
from spatial_transformer.utils.errors import UsageError

CONF = REPOSITORY / "conf"
POOLED = ((18.0, "tc", 1), (11.0, "tc", 2), (4.0, "rts", 2))


def test_the_gain_is_that_over_the_base_network_of_the_same_recipe_and_length(record):
    runs = [
        record(5.0, "model=fcn"),
        record(1.0),
        record(1.5, "seed=2"),
        record(2.0, "trainer.max_steps=100"),
    ]
    table = improvement_table(runs, CONF)
    assert "| **ST-FCN affine** | *paper, 150k* | *0.9* | *4.4* | *1.6* | *0.5* | *11.2* |" in table
    assert "| | fast, 15,000 | not run | 3.75 | not run | not run | not run |" in table
    assert "100" not in table


def test_the_table_of_p_tells_displacements_apart(record):
    before = record(3.6, "data.distortion=p")
    del before["config"]["data"]["corner_std"]  # of the time when 5 px were each coordinate's
    wide = record(3.5, "data.distortion=p", "data.canvas=42")
    narrow = [
        record(error, "data.distortion=p", f"data.corner_std={std}")
        for error, std in ((1.2, 3.54), (0.8, 2.5))
    ]
    table = projective_table([before, wide, *narrow])
    assert "| *paper* | | *150k* | *1.5* |" in table
    for row in (
        "2.50 | 28 | 15,000 | 0.80",
        "3.54 | 28 | 15,000 | 1.20",
        "5.00 | 28 | 15,000 | 3.60",
        "5.00 | 42 | 15,000 | 3.50",
    ):
        assert f"| {row} (1) |" in table


def test_the_table_of_pooling_has_a_row_for_each(record):
    runs = [
        record(error, "model=fcn", f"data.distortion={d}", f"model.pool={pool}")
        for error, d, pool in POOLED
    ]
    assert pooling_table(runs).splitlines()[2:] == [
        "| **FCN** | *paper* | *150k* | *5.2* | *13.2* |",
        "| | 1 | 15,000 | not run | 18.00 (1) |",
        "| | 2 | 15,000 | 4.00 (1) | 11.00 (1) |",
    ]


def test_the_table_of_pooling_of_sums_has_the_papers_number(record):
    runs = [
        record(error, "model=addition_fcn", f"model.pool={p}", experiment="mnist_addition")
        for error, p in ((50, "null"), (30, 2))
    ]
    assert pooling_table(runs, addition=True).splitlines()[2:] == [
        "| **FCN** | *paper* | *150k* | *47.7* |",
        "| | 1 | 30,000 | 50.00 (1) |",
        "| | 2 | 30,000 | 30.00 (1) |",
    ]


def test_the_spread_of_angles():
    assert class_orientation.spread(torch.tensor([10.0, 10.0, 370.0])) == pytest.approx(0, abs=0.2)
    angles = 20 * torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    assert class_orientation.spread(angles) == pytest.approx(20, rel=0.02)


def test_the_angles_of_a_shipped_network_are_measured_and_shown(mnist_root):
    record = class_orientation.measure(
        REPOSITORY / "checkpoints" / "st_cnn_mnist.pt", str(mnist_root)
    )
    assert [row["class"] for row in record["rows"]] == list(range(10))
    assert all(24 < row["before"] < 29 for row in record["rows"]), (
        "uniform in +-45 degrees has a deviation of 26"
    )
    table = orientation_table([record]).splitlines()
    assert table[2].startswith("| `st_cnn-affine-rts-long-seed1`, 15,000 steps | before | 26 |")
    assert table[3].startswith("|  | after |")


def test_misread_digits_of_a_shipped_network_are_counted_and_shown(mnist_root):
    record = error_consistency.measure(
        REPOSITORY / "checkpoints" / "st_fcn_mnist.pt", str(mnist_root)
    )
    counts = [row["digits"] for row in record["rows"]]
    assert len(counts) == 1 + error_consistency.DRAWS
    assert sum(counts) == record["samples"] == 10_000
    assert 9_600 < counts[0] < 9_900, "it errs on 1 % of the test set"
    record["rows"] = [
        {"misread": n, "digits": digits} for n, digits in enumerate((995, 2, 0, 0, 1, 0, 0, 0, 2))
    ]
    assert redraws_table([record | {"samples": 1000}]).splitlines()[2:] == [
        "| `st_fcn-affine-rts-long-seed2`, 30,000 steps | 0.28 | 995 | 2 | 3 | 91 |"
    ]
    assert redraws_table([]) == "not run"


def test_the_table_of_times_has_the_median_of_alike_runs(record):
    runs = [
        record(1.0, f"seed={seed}")
        | {"seconds": 60.0 * seed, "device": "cpu (x86_64)", "threads": 1}
        for seed in (1, 2, 6)
    ]
    assert "| mnist | st_fcn | fast, 15,000 | cpu (x86_64), 1 thread | 3 | 2 |" in times_table(runs)


def test_the_window_of_several_transformers_is_their_product(record):
    run = record(31.0, "recipe=svhn_part", experiment="svhn_st_multi")
    for name, scale in (("theta", 0.5), ("theta_2", 0.8), ("theta_3", 1.0), ("theta_4", 1.0)):
        turned = [0.6 * scale, -0.8 * scale, 0.3, 0.8 * scale, 0.6 * scale, 0.1]
        run["metrics"] |= {f"{name}/mean_{k}": value for k, value in enumerate(turned)}
    plain = record(40.0, "recipe=svhn_part", experiment="svhn_cnn")
    assert svhn_window_table([run, plain], CONF).splitlines()[2:] == [
        "| ST-CNN Multi | svhn_part, 3,000 | 64 px | 40.00 (1) |"
    ]
    assert svhn_window_table([plain], CONF) == "not run"


def test_the_table_of_parts_has_the_mean_over_the_seeds(record):
    runs = [
        record(30.0, f"seed={seed}", "recipe=birds_fast", experiment="birds_2st") for seed in (1, 2)
    ]
    for n, run in enumerate(runs):
        run["metrics"] |= {
            "test/parts_1/beak": 60.0 + 20 * n,
            "test/parts_2/beak": 5.0,
            "test/parts_random/beak": 33.0,
        }
        run["metrics"] |= {"test/box_1": 40.0, "test/on_box_2": 90.0}
    assert parts_table(runs, CONF, "birds_2st").splitlines()[2:] == [
        "| part | crop 1 | crop 2 | random crop |",
        "|---|---|---|---|",
        "| beak | 70 | 5 | 33 |",
        "| *the box, of which the crop holds* | 40 | – | – |",
        "| *the crop, of which is box* | – | 90 | – |",
    ]
    runs[0]["recipe"] = "birds_differences"
    runs[0]["config"]["recipe"]["spsa_delta"] = 0.15
    tables = parts_table(runs, CONF, "birds_2st").split("\n\n")
    assert [text.split(",")[0] for text in tables[::2]] == ["birds_differences", "birds_fast"]
    assert "| beak | 60 | 5 | 33 |" in tables[1]
    assert parts_table(runs, CONF, "birds_4st") == "not run"


def test_the_table_of_slopes_has_a_row_for_each_distance():
    row = {
        "distance": 0.1,
        "pixels": 22,
        "gradient": 131.0,
        "slope": 3.2,
        "correlation": 0.17,
        "same sign": 0.57,
    }
    assert slopes_table([{"label": "x", "samples": 40, "rows": [row]}]).splitlines()[2:] == [
        "| `x` | 40 | 22 | 3.2 | 131.0 | 0.17 | 57 % |"
    ]
    assert slopes_table([]) == "not run"


def test_gradient_and_slopes_of_a_parabola_are_the_same_at_any_distance():
    theta = torch.tensor([[1.0, -2.0], [0.5, 0.0]])
    weights = torch.tensor([1.0, 3.0])
    found = gradient_vs_finite_difference.gradient_and_slopes(
        lambda t: (weights * t.square()).sum(dim=1), theta, (0.1, 1.0)
    )
    for values in found:
        torch.testing.assert_close(values, 2 * weights * theta)


def test_the_recipe_table_says_what_was_different(record):
    table = recipe_table(
        [record(1.5, "recipe.optimizer.lr=0.1", "recipe.dropout=0.5"), record(1.25, "seed=2")], CONF
    )
    assert (
        "| ST-FCN affine | RTS | fast | dropout 0.5, optimizer.lr 0.1 | 15,000 | 1.00 (1) | 1.50 (1) |"
        in table
    )
    assert "| ST-FCN affine | RTS | fast | – | 15,000 | 1.00 (1) | 1.25 (1) |" in table


def test_the_chart_of_lengths_has_a_line_for_each_recipe(record):
    runs = [record(1.0, "model=fcn"), record(8.0, "recipe.dropout=0.5")]
    for recipe in ("fast", "paper"):
        runs += [
            record(steps / 1000, f"recipe={recipe}", f"trainer.max_steps={steps}")
            for steps in (9, 99)
        ]
    *lines, _ = steps_chart(runs, CONF).axes[0].lines
    assert [line.get_label() for line in lines] == [
        f"ST-FCN affine on RTS, recipe={recipe}" for recipe in ("fast", "paper")
    ]
    assert lines[0].get_xydata().tolist() == [[9, 0.009], [99, 0.099]]


def test_a_transform_that_the_paper_has_not_is_called_by_its_name(record):
    runs = [record(1.0, "transform=attention", f"trainer.max_steps={steps}") for steps in (9, 99)]
    assert (
        steps_chart(runs, CONF).axes[0].lines[0].get_label()
        == "st_fcn attention on RTS, recipe=fast"
    )
    assert "| st_fcn attention | RTS | fast |" in recipe_table(runs, CONF)


def test_tables_are_put_in_their_places():
    text = "a\n<!-- table x -->\nold\n<!-- end -->\nb"
    assert fill_table_markers(text, {"x": "new"}) == "a\n<!-- table x -->\nnew\n<!-- end -->\nb"
    with pytest.raises(UsageError, match="no place for table y"):
        fill_table_markers(text, {"y": "new"})


def test_the_documents_say_what_the_records_say():
    for document, text in make_tables.documents().items():
        assert document.read_text() == text, f"{document.name}: run `make tables`"


def test_the_charts_are_made_of_the_records():
    for chart, (_, digest) in make_tables.charts().items():
        assert Image.open(chart).info["Records"] == digest, f"{chart.name}: run `make tables`"

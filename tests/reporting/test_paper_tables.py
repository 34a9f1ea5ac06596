"""The paper's tables with our numbers."""

import shlex

import pytest
from conftest import REPOSITORY
from omegaconf import OmegaConf
from scipy import stats

from spatial_transformer import paper
from spatial_transformer.reporting.paper_tables import (
    SPECS,
    build_table,
    confidence_interval,
    difference_table,
    format_mean,
    format_percent,
    paper_tables,
    summary_of_mnist,
)
from spatial_transformer.training.validation import validate

CONF = REPOSITORY / "conf"


def mnist_table(runs):
    return build_table(SPECS["mnist"], runs, CONF)


@pytest.fixture
def table(record):
    """Return the rows of a table, made from runs given as (metric, overrides)."""

    def make(name, *runs, **options):
        records = [record(value, *overrides, **options) for value, *overrides in runs]
        return build_table(SPECS[name], records, CONF).markdown().splitlines()[2:]

    return make


@pytest.mark.parametrize("n", [3, 4, 11])
def test_interval_is_student_t(n):
    values = [1.2, 1.5, 1.1, 1.4, 1.3, 1.0, 1.6, 1.2, 1.1, 1.3, 1.4][:n]
    mean, half = confidence_interval(values)
    low, high = stats.t.interval(0.95, n - 1, loc=mean, scale=stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx((low, high), abs=1e-3)


@pytest.mark.parametrize(
    ("values", "mean", "percent"),
    [
        ([], "not run", "not run"),
        ([1.234], "1.23", "1"),
        ([1.234, 20.5], "1.23, 20.50", "1, 20"),
        ([1.0, 1.2, 1.4], "1.20 ± 0.50 (3)", "1 ± 0 (3)"),
    ],
)
def test_fewer_than_three_seeds_are_listed(values, mean, percent):
    assert (format_mean(values), format_percent(values)) == (mean, percent)
    if 0 < len(values) < 3:
        assert confidence_interval(values)[1] is None


def test_mnist_table_has_all_networks(table):
    rows = table("mnist", (1.0,), (1.2, "seed=2"), (1.4, "seed=3"))
    for name in paper.NETWORKS:
        assert any(row.startswith(f"| **{name}** | *paper, 150k* |") for row in rows)
    assert "| | fast, 15,000 | not run | 1.20 ± 0.50 (3) | not run | not run | not run |" in rows
    assert "| | ours | not run | not run | not run | not run | not run |" in rows


def test_svhn_table_shows_the_number_of_images(table):
    part = "recipe=svhn_part"
    multi = "model=svhn_st_multi", "transform=affine"
    rows = table(
        "svhn",
        (40.0, part, "data.size=128"),
        (99.9, part, "model.width=0.5"),
        (99.8, part, "data.augment=false"),
        (99.6, part, *multi),
        experiment="svhn_cnn",
    )
    assert rows[1:3] == [
        "| **CNN** | *paper, 400k* | *4.0* | *5.6* |",
        "| | svhn_part, 3,000; 1,824 images | not run | 40.00 |",
    ]
    assert rows[4:6] == [
        "| **ST-CNN Single** | *paper, 400k* | *3.7* | *3.9* |",
        "| | ours | not run | not run |",
    ]
    assert "99." not in "".join(rows)


def test_addition_table(table):
    runs = [(8.0,), (9.0, "seed=2"), (40.0, "model=addition_fcn"), (9.99, "data.fresh=false")]
    rows = table("addition", *runs, experiment="mnist_addition")
    assert rows[:4] == [
        "| **FCN** | *paper* | *47.7* |",
        "| | fast, 30,000 | 40.00 |",
        "| **CNN** | *paper* | *14.7* |",
        "| | ours | not run |",
    ]
    assert "| | fast, 30,000 | 8.00, 9.00 |" in rows
    assert "9.99" not in "".join(rows)


def test_colocalisation_table_has_a_column_for_each_digit(table):
    digits = ("data.digit=3",), ("data.digit=3", "seed=2"), ("data.digit=9",)
    runs = [(error, *digit) for error, digit in zip((20.0, 10.0, 4.0), digits, strict=True)]
    other = (99.0, "data.digit=3", "task.locate=0")
    rows = table("colocalisation", *runs, other, experiment="colocalisation")
    missing = " | ".join(["not run"] * 3)
    assert rows[:2] == [
        "| **T** | *paper* |" + " *100* |" * 10,
        f"| | colocalisation, 6,000 | {missing} | 80, 90 | {missing} | not run | not run | 96 |",
    ]


def test_volumes_table_has_no_numbers_of_the_paper(table):
    runs = [(4.0,), (5.0, "seed=2"), (9.9, "data.fresh=false")]
    assert table("volumes", *runs, experiment="mnist_3d") == [
        "| **projection, FCN** | ours | not run |",
        "| **3-D transformer, projection, FCN** | fast, 3,000 | 4.00, 5.00 |",
    ]


def test_birds_table_shows_backbone_and_species(record):
    def run(accuracy, experiment, *overrides):
        made = record(100 - accuracy, "data.species=1-50", *overrides, experiment=experiment)
        made["metrics"]["test/accuracy"] = accuracy
        return made

    runs = [
        run(70.0, "birds_4st"),
        run(72.0, "birds_4st", "seed=2"),
        run(9.99, "birds_cnn", "model.backbone=googlenet"),
        run(9.98, "birds_4st", "transform=attention"),
        run(9.97, "birds_cnn", "data.size=448"),
    ]
    rows = build_table(SPECS["birds"], runs, CONF).markdown().splitlines()
    recipe = f"birds_differences, {runs[0]['steps']:,}"
    assert rows[-2:] == [
        "| **4 × ST-CNN, 448 px** | *paper; all species* | *84.1* |",
        f"| | efficientnet_lite0; {recipe}; species 1-50, 1,824 images | 70.00, 72.00 |",
    ]
    assert "9.9" not in "".join(rows)


def test_rows_differ_by_length_and_precision(record):
    shorter = ["trainer.max_steps=500", "data.root=elsewhere", "data.eval_batch_size=50"]
    runs = [record(1.0), record(3.0, *shorter), record(1.5, "trainer.precision=bf16-mixed")]
    (network,) = [n for n in mnist_table(runs).networks if n.name == "ST-FCN affine"]
    labels = ["fast, 500", "fast, 15,000", "fast, 15,000, bf16-mixed"]
    assert [label for label, _ in network.rows] == labels
    assert "trainer.precision=bf16-mixed" in network.rows[2][1][1].command


def test_missing_settings_count_as_off(record):
    run = record(1.0)
    del run["config"]["recipe"]["dropout"], run["config"]["model"]["dropout"]
    assert "| 1.00 |" in mnist_table([run]).markdown()
    del run["config"]["recipe"]["localisation_lr_factor"]
    assert "| 1.00 |" not in mnist_table([run]).markdown()


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
        "+trainer.accumulate_grad_batches=2",
        "+trainer.limit_test_batches=1",
        "recipe.scheduler.total_steps=99",
        "callbacks.best.monitor=val/loss",
        "+callbacks.stop._target_=pytorch_lightning.callbacks.EarlyStopping",
        "ckpt_path=some.ckpt",
    ],
)
def test_changed_settings_stay_out_of_the_table(table, override):
    assert "9.99" not in "".join(table("mnist", (9.99, override)))


def test_only_the_papers_spline_is_in_the_table(table):
    assert "9.99" in "".join(table("mnist", (9.99, "transform=tps")))
    assert "9.99" not in "".join(table("mnist", (9.99, "transform=tps", "transform.points=[5,5]")))


@pytest.mark.parametrize("name", SPECS)
def test_command_of_a_cell_repeats_its_runs(composed, name):
    table = paper_tables(REPOSITORY / "results", CONF)[name]
    rows = [row for network in table.networks for _, row in network.rows]
    cells = [next((cell for cell in row if cell.runs), row[0]) for row in rows]
    assert any(cell.runs for cell in cells)
    for cell in cells:
        words = shlex.split(cell.command)
        assert words[:2] == ["python", "train.py"]
        config = composed(*(word.split(",")[0] for word in words[2:] if word != "-m"))
        validate(config)
        settings = OmegaConf.to_container(config, resolve=True)
        seeds = words[-1].removeprefix("seed=").split(",")
        for run in cell.runs:
            assert settings["choices"] == {group: run[group] for group in settings["choices"]}
            assert settings["trainer"]["max_steps"] == run["steps"]
            assert str(run["seed"]) in seeds
            for option in ("distortion", "digit", "size", "species"):
                assert settings["data"].get(option) == run["config"]["data"].get(option)


def test_differences_from_the_paper_have_p(record):
    runs = [record(error, f"seed={n}") for n, error in enumerate((1.19, 1.2, 1.21))]
    runs += [record(0.5, f"seed={n}", "data.distortion=r") for n in range(2)]
    runs += [record(0.5, f"seed={n}", "trainer.precision=bf16-mixed") for n in range(3)]
    rows = difference_table(mnist_table(runs)).splitlines()
    assert rows[2:] == ["| **ST-FCN affine** | fast, 15,000 | – | +0.40, p = 0.0054 | – | – | – |"]
    assert difference_table(mnist_table(runs[:2])) == "not run"


def test_summary_has_one_recipe_length_and_precision_per_row(record):
    long = "recipe=long", "trainer.max_steps=15000", "trainer.precision=bf16-mixed"
    runs = [record(1.5), record(1.4, "recipe=long"), record(1.6, *long[:2])]
    runs += [record(1.8, *long[1:]), record(1.3, "recipe=paper"), record(1.7, *long)]
    rows = summary_of_mnist(mnist_table(runs)).partition("**ST-FCN affine**")[2].splitlines()[1:5]
    assert rows[:3] == [
        "| | paper, here | not run | 1.30 | not run | not run | not run |",
        "| | `fast` | not run | 1.50 | not run | not run | not run |",
        "| | `long` | not run | 1.70 | not run | not run | not run |",
    ]
    assert rows[3].startswith("| **ST-FCN projective** | *paper*")

"""The paper's tables with our numbers."""

import shlex

import pytest
from conftest import REPOSITORY
from omegaconf import OmegaConf
from scipy import stats

from spatial_transformer import paper
from spatial_transformer.reporting.analyses import (
    addition_pose_table,
    colocalisation_ablation_table,
)
from spatial_transformer.reporting.paper_tables import (
    SPECS,
    build_table,
    confidence_interval,
    format_mean,
    mnist_table,
    paper_tables,
)
from spatial_transformer.training.validation import validate

CONF = REPOSITORY / "conf"


def test_the_interval_is_student_t():
    values = [1.2, 1.5, 1.1, 1.4]
    mean, half = confidence_interval(values)
    low, high = stats.t.interval(0.95, 3, loc=mean, scale=stats.sem(values))
    assert mean - half == pytest.approx(low, abs=1e-3)
    assert mean + half == pytest.approx(high, abs=1e-3)


def test_cells():
    assert format_mean([]) == "not run"
    assert format_mean([1.234]) == "1.23 (1)"
    assert format_mean([1.0, 1.2]) == "1.10 ± 1.27 (2)"


def test_a_table_has_every_network_the_papers_numbers_and_not_run(record):
    table = mnist_table([record(1.0), record(1.2, "seed=2")], CONF).markdown()
    for name in paper.NETWORKS:
        assert f"| **{name}** |" in table
    assert "*0.8*" in table
    assert "1.10 ± 1.27 (2)" in table
    assert "| | ours | not run | not run | not run | not run | not run |" in table


def test_the_table_of_svhn_says_on_how_many_images_a_row_was_trained(record):
    def run(error, experiment, *more):
        return record(error, "recipe=svhn_part", *more, experiment=experiment)

    runs = [
        run(31.0, "svhn_st_multi"),
        run(33.0, "svhn_st_multi", "seed=2"),
        run(40.0, "svhn_cnn", "data.size=128"),
    ]
    runs += [run(99.9, "svhn_cnn", "model.width=0.5"), run(99.8, "svhn_cnn", "data.augment=false")]
    runs += [
        run(99.7, "svhn_st_multi", "transform=tps"),
        run(99.6, "svhn_cnn", "model=svhn_st_multi", "transform=affine"),
    ]
    table = build_table(SPECS["svhn"], runs, CONF).markdown()
    assert "| **ST-CNN Multi** | *paper, 400k* | *3.6* | *3.9* |\n" in table
    assert "; 1,824 images | 32.00 ± 12.71 (2) | not run |" in table
    assert "; 1,824 images | not run | 40.00 (1) |\n" in table
    assert (
        "| **ST-CNN Single** | *paper, 400k* | *3.7* | *3.9* |\n| | ours | not run | not run |\n"
        in table
    )
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
    table = build_table(SPECS["addition"], runs, CONF).markdown()
    assert (
        "| **2 × ST-FCN affine** | *paper* | *9.0* |\n| | fast, 30,000 | 8.50 ± 6.35 (2) |\n"
        in table
    )
    assert (
        "| **FCN** | *paper* | *47.7* |\n| | fast, 30,000 | 40.00 (1) |\n| **CNN** | *paper* | *14.7* |\n| | ours | not run |"
        in table
    )
    assert "9.99" not in table
    assert addition_pose_table(runs, CONF).splitlines()[2:] == [
        f"| 2 × ST-FCN affine | fast, 30,000 | {seed} | {row}"
        for seed in (1, 2)
        for row in (
            "nothing: the image | 8.0 | 8.0 | – |",
            f"transformer 1 | {1 + seed}.0 | 6.0 | 100 |",
            f"transformer 2 | {1 + seed}.0 | 6.0 | 20 |",
        )
    ]
    assert addition_pose_table(runs[2:3], CONF) == "not run"


def test_the_tables_of_colocalisation_have_a_column_for_each_digit_and_a_row_for_each_change(
    record,
):
    def run(error, digit, *more):
        return record(error, f"data.digit={digit}", *more, experiment="colocalisation")

    tried = [run(99.0, 3, "task.locate=0"), run(60.0, 5, "task.locate=0")]
    runs = [
        run(20.0, 3),
        run(10.0, 3, "seed=2"),
        run(4.0, 9),
        run(24.0, 3, "data.distortion=tc"),
        *tried,
    ]
    of_paper = "| **T** | *paper* |" + " *100* |" * 10
    missing = " | ".join(["not run"] * 3)
    ours = f"| | colocalisation, 6,000 | {missing} | 85 ± 64 (2) | {missing} | not run | not run | 96 |"
    table = build_table(SPECS["colocalisation"], runs, CONF).markdown()
    assert f"{of_paper}\n{ours}\n| **TC** | *paper* | *81* |" in table
    assert f"\n| | colocalisation, 6,000 | {missing} | 76 | not run |" in table
    sgd = "recipe.optimizer._target_=torch.optim.SGD"
    tried += [run(70.0, 3, sgd), run(55.0, 5, sgd), run(30.0, 3, "trainer.max_steps=2000")]
    assert colocalisation_ablation_table([runs[0], runs[2], *tried], CONF).splitlines() == [
        "| changed | steps | T, 3 | T, 5 |",
        "|---|---|---|---|",
        "| nothing | 2,000 | 70 | not run |",
        "| nothing | 6,000 | 80 | not run |",
        "| `recipe.optimizer._target_=SGD` | 6,000 | 30 | 45 |",
        "| `task.locate=0` | 6,000 | 1 | 40 |",
    ]


def test_the_table_of_volumes_has_both_networks(record):
    runs = [record(4.0, f"seed={seed}", experiment="mnist_3d") for seed in (1, 2)]
    table = build_table(
        SPECS["volumes"], [*runs, record(9.9, "data.fresh=false", experiment="mnist_3d")], CONF
    ).markdown()
    assert table.splitlines()[2:] == [
        "| **projection, FCN** | ours | not run |",
        "| **3-D transformer, projection, FCN** | fast, 3,000 | 4.00 ± 0.00 (2) |",
    ]


def test_the_table_of_birds_says_what_it_was_trained_on(record):
    def run(accuracy, experiment, *more):
        made = record(100 - accuracy, "data.species=1-50", *more, experiment=experiment)
        made["metrics"]["test/accuracy"] = accuracy
        return made

    runs = [
        run(70.0, "birds_4st"),
        run(72.0, "birds_4st", "seed=2"),
        run(9.99, "birds_cnn", "model.backbone=googlenet"),
    ]
    runs += [run(9.98, "birds_4st", "transform=attention"), run(9.97, "birds_cnn", "data.size=448")]
    table = build_table(SPECS["birds"], runs, CONF).markdown()
    steps = f"{runs[0]['steps']:,}"
    assert "| **4 × ST-CNN, 448 px** | *paper; all species* | *84.1* |\n" in table
    assert (
        f"| efficientnet_lite0; birds_differences, {steps}; species 1-50, 1,824 images | 71.00 ± 12.71 (2) |"
        in table
    )
    assert "| **CNN, 224 px** | *paper; all species* | *82.3* |\n| | ours | not run |\n" in table
    assert "9.9" not in table


def test_a_shorter_run_of_a_recipe_has_a_row_of_its_own(record):
    of_another_place = ["data.root=elsewhere", "data.eval_batch_size=50", "trainer.accelerator=cpu"]
    table = mnist_table(
        [record(1.0), record(3.0, "trainer.max_steps=500", *of_another_place)], CONF
    ).markdown()
    assert "| | fast, 500 | not run | 3.00 (1) |" in table


def test_a_run_of_another_precision_has_a_row_that_says_so(record):
    runs = [record(1.0), record(1.5, "trainer.precision=bf16-mixed")]
    (network,) = [one for one in mnist_table(runs, CONF).networks if one.name == "ST-FCN affine"]
    assert [about for about, _ in network.rows] == ["fast, 15,000", "fast, 15,000, bf16-mixed"]
    assert "trainer.precision=bf16-mixed" in network.rows[1][1][1].command


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
        "+trainer.accumulate_grad_batches=2",
        "+trainer.limit_test_batches=1",
        "recipe.scheduler.total_steps=99",
        "callbacks.best.monitor=val/loss",
        "+callbacks.stop._target_=pytorch_lightning.callbacks.EarlyStopping",
        "ckpt_path=some.ckpt",
    ],
)
def test_a_run_with_settings_of_its_own_stays_out_of_the_table(record, override):
    assert "9.99" not in mnist_table([record(9.99, override)], CONF).markdown()


def test_a_spline_with_another_grid_is_not_the_papers(record):
    assert "9.99" in mnist_table([record(9.99, "transform=tps")], CONF).markdown()
    assert (
        "9.99"
        not in mnist_table(
            [record(9.99, "transform=tps", "transform.points=[5,5]")], CONF
        ).markdown()
    )


@pytest.mark.parametrize(
    "table", ["mnist", "svhn", "addition", "colocalisation", "volumes", "birds"]
)
def test_the_command_of_a_cell_runs_what_its_records_are_of(composed, table):
    rows = [
        row
        for network in paper_tables(REPOSITORY / "results", CONF)[table].networks
        for _, row in network.rows
    ]
    places = [next((place for place in row if place.runs), row[0]) for row in rows]
    assert any(place.runs for place in places)
    for place in places:
        words = shlex.split(place.command)
        assert words[:2] == ["python", "train.py"]
        overrides = [word.split(",")[0] for word in words[2:] if word != "-m"]
        config = composed(*overrides)
        validate(config)
        settings = OmegaConf.to_container(config, resolve=True)
        for run in place.runs:
            assert settings["choices"] == {name: run[name] for name in settings["choices"]}
            assert settings["trainer"]["max_steps"] == run["steps"]
            for name in ("distortion", "digit", "size", "species"):
                assert settings["data"].get(name) == run["config"]["data"].get(name)
        assert {str(run["seed"]) for run in place.runs} <= set(
            words[-1].removeprefix("seed=").split(",")
        )

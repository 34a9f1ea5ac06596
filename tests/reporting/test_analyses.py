"""Tables and chart of the documents that the paper does not have."""

import class_orientation
import error_consistency
import gradient_vs_finite_difference
import make_tables
import pytest
import registered_pairs
import repeated_passes
import torch
import trivial_baselines
from conftest import REPOSITORY
from PIL import Image

from spatial_transformer.inference.load import Trained
from spatial_transformer.reporting import analyses
from spatial_transformer.reporting.paper_tables import SPECS, build_table
from spatial_transformer.reporting.records import read_measurements, write_measurements
from spatial_transformer.training.build import build
from spatial_transformer.utils.errors import UsageError

CONF = REPOSITORY / "conf"
ST_FCN = REPOSITORY / "checkpoints" / "st_fcn_mnist.pt"


def rows(table):
    return table.splitlines()[2:]


def test_frozen_classifier_has_runs_of_its_rows_alone(record):
    runs = [
        record(1.0, "data.distortion=r", *words, experiment="mnist_frozen")
        for words in (
            ["seed=1"],
            ["model.weights=null"],
            ["recipe.localisation_lr_factor=0", "trainer.max_steps=1"],
        )
    ]
    others = [
        record(9.0, "data.distortion=r", word, experiment="mnist_frozen")
        for word in ("transform=tps", "recipe=long", "trainer.max_steps=20", "model.weights=x.pt")
    ]
    assert analyses.frozen_table(runs + others, CONF) == analyses.frozen_table(runs, CONF)
    assert len(rows(analyses.frozen_table(runs, CONF))) == 3


def test_addition_poses_have_rows_for_each_run(record):
    run = record(8.0, experiment="mnist_addition")
    run["metrics"] |= {"test/pose_input_1": 8.0, "test/pose_input_2": 8.0}
    for transformer, nearer in ((1, 100.0), (2, 20.0)):
        run["metrics"] |= {
            f"test/pose_{transformer}_1": 2.0,
            f"test/pose_{transformer}_2": 6.0,
            f"test/resolves_first_{transformer}": nearer,
        }
    name = "| 2 × ST-FCN affine | fast, 30,000 | 1 |"
    assert rows(analyses.addition_pose_table([run], CONF)) == [
        f"{name} none: the image | 8.0 | 8.0 | – |",
        f"{name} transformer 1 | 2.0 | 6.0 | 100 |",
        f"{name} transformer 2 | 2.0 | 6.0 | 20 |",
    ]
    assert analyses.addition_pose_table([record(8.0)], CONF) == "not run"


def test_tables_without_columns_for_settings_have_standard_runs_alone(record, monkeypatch):
    changes = ((), ("trainer.max_steps=9",), ("trainer.precision=32-true",), ("model.width=9",))
    runs = [record(1.0, *words, experiment="mnist_rotated") for words in changes]
    monkeypatch.setattr(make_tables, "read_records", lambda folder: runs)
    assert make_tables._read_standard("mnist_rotated") == runs[:1]


def test_rotated_networks_are_compared_from_three_seeds_on(record):
    def runs(error, misclassified, n_seeds, *options):
        words = [f"model={options[0]}", f"transform={options[1]}"]
        run = record(error, *words, experiment="mnist_rotated")
        return n_seeds * [run | {"misclassified": misclassified}]

    cnn = runs(3.0, list(range(30)), 3, "rotated_cnn", "none")
    rotation = runs(2.0, list(range(10)), 3, "rotated_st_cnn", "rotation")
    affine = runs(2.5, list(range(25)), 2, "rotated_st_cnn", "affine")
    assert rows(analyses.rotated_table([*cnn, *rotation, *affine]))[:3] == [
        "| CNN | 3.00 ± 0.00 (3) | – |",
        "| ST-CNN rotation | 2.00 ± 0.00 (3) | p < 0.001 |",
        "| ST-CNN affine | 2.50, 2.50 | – |",
    ]


def test_colocalisation_ablations_have_a_row_for_each_change(record):
    settings = [
        (20.0, 3),
        (4.0, 9),
        (99.0, 3, "task.locate=0"),
        (60.0, 5, "task.locate=0"),
        (70.0, 3, "recipe.optimizer._target_=torch.optim.SGD"),
        (55.0, 5, "recipe.optimizer._target_=torch.optim.SGD"),
        (30.0, 3, "trainer.max_steps=2000"),
    ]
    runs = [
        record(error, f"data.digit={digit}", *overrides, experiment="colocalisation")
        for error, digit, *overrides in settings
    ]
    assert analyses.colocalisation_ablation_table(runs, CONF).splitlines() == [
        "| changed | steps | T, 3 | T, 5 |",
        "|---|---|---|---|",
        "| nothing | 2,000 | 70 | not run |",
        "| nothing | 6,000 | 80 | not run |",
        "| `recipe.optimizer._target_=SGD` | 6,000 | 30 | 45 |",
        "| `task.locate=0` | 6,000 | 1 | 40 |",
    ]


def improvement_table(runs):
    return analyses.improvement_table(build_table(SPECS["mnist"], runs, CONF))


def test_improvements_compare_runs_of_one_recipe_and_length(record):
    runs = [
        record(5.0, "model=fcn"),
        record(1.0),
        record(1.5, "seed=2"),
        record(2.0, "trainer.max_steps=100"),
    ]
    assert rows(improvement_table(runs))[:3] == [
        "| **ST-FCN affine** | *paper, 150k* | *0.9* | *4.4* | *1.6* | *0.5* | *11.2* |",
        "| | fast, 15,000 | not run | 3.75 | not run | not run | not run |",
        "| **ST-FCN projective** | *paper, 150k* | *0.8* | *4.3* | *1.7* | *0.6* | – |",
    ]


def test_gains_have_p_if_three_seeds_list_their_mistakes(record):
    runs = []
    for seed in (1, 2, 3):
        plain, transformer = record(4.0, "model=fcn", f"seed={seed}"), record(1.0, f"seed={seed}")
        plain["misclassified"], transformer["misclassified"] = list(range(40)), list(range(30, 40))
        runs += [plain, transformer]
    assert "| 3.00, p < 0.001 |" in improvement_table(runs)
    assert "| 3.00 |" in improvement_table(runs[:4])
    runs.append(record(1.0, "seed=4"))  # an old file without a list
    assert "| 3.00 |" in improvement_table(runs)


def test_definitions_table_has_a_row_for_each_definition(record):
    runs = [
        record(1.7, "model=fcn", "data.distortion=e"),
        record(3.1, "model=fcn", "data.distortion=e", "data.fresh=false"),
        record(2.2, "data.distortion=e", "data.point_std=2"),
        record(3.6, "data.distortion=p", "data.corner_std=5"),
        record(9.9, "data.distortion=p", "data.corner_std=5", "recipe=paper"),
        record(9.9, "data.distortion=p", "data.corner_std=5", "trainer.max_steps=100"),
        record(9.9, "data.distortion=p", "data.corner_std=5", "trainer.precision=bf16-mixed"),
    ]
    assert rows(analyses.definitions_table(runs, CONF))[5:] == [
        "| | `data.fresh=False` | not run | not run |",
        "| | `data.corner_std=5` | not run | 3.60 |",
        "| E | as in Table 1 | 1.70 | not run |",
        "| | `data.fresh=False` | 3.10 | not run |",
        "| | `data.point_std=2` | not run | 2.20 |",
        "| | `data.point_std=2.5` | not run | not run |",
    ]


def test_trivial_baselines_are_between_fcn_and_st_fcn(record):
    runs = [
        record(2.5, "model=moment_fcn"),
        record(6.0, "model=ink_fcn", "transform=attention", "data.distortion=tc"),
        record(9.9, "recipe=long"),
    ]
    assert rows(analyses.trivial_table(runs, CONF)) == [
        "| **FCN** | ours | not run | not run | not run |",
        "| **moments, FCN** | fast, 15,000 | not run | 2.50 | not run |",
        "| **window with most ink, FCN** | fast, 15,000 | not run | not run | 6.00 |",
        "| **ST-FCN affine** | ours | not run | not run | not run |",
    ]


def test_ink_window_finds_digits_without_clutter(mnist_root):
    found = trivial_baselines.measure(str(mnist_root))["rows"]
    lines = rows(analyses.ink_window_table(found))
    assert lines[0] == "| T |" + " 100 |" * 10 + " 100.0 |"
    recorded = read_measurements(REPOSITORY / "results" / "ink_window.json")["rows"]
    assert found == recorded


def test_projective_table_has_a_row_for_each_displacement(record):
    old = record(3.6, "data.distortion=p")
    del old["config"]["data"]["corner_std"]  # it was 5 px for each coordinate
    runs = [
        old,
        record(3.5, "data.distortion=p", "data.canvas=42"),
        record(1.2, "data.distortion=p", "data.corner_std=3.54"),
    ]
    assert rows(analyses.projective_table(runs)) == [
        "| *paper* | | *150k* | *1.5* |",
        "| 3.54 | 28 | 15,000 | 1.20 |",
        "| 5.00 | 28 | 15,000 | 3.60 |",
        "| 5.00 | 42 | 15,000 | 3.50 |",
    ]


def test_pooling_tables(record):
    settings = ((18.0, "tc", 1), (11.0, "tc", 2), (4.0, "rts", 2))
    runs = [
        record(error, "model=fcn", f"data.distortion={name}", f"model.pool={pool}")
        for error, name, pool in settings
    ]
    assert rows(analyses.pooling_table(runs)) == [
        "| **FCN** | *paper* | *150k* | *5.2* | *13.2* |",
        "| | 1 | 15,000 | not run | 18.00 |",
        "| | 2 | 15,000 | 4.00 | 11.00 |",
    ]
    runs = [
        record(error, "model=addition_fcn", f"model.pool={pool}", experiment="mnist_addition")
        for error, pool in ((50, 1), (30, "null"))
    ]
    assert rows(analyses.pooling_table(runs, addition=True)) == [
        "| **FCN** | *paper* | *150k* | *47.7* |",
        "| | 1 | 30,000 | 50.00 |",
        "| | 2 | 30,000 | 30.00 |",
    ]


def test_circular_spread():
    angles = torch.tensor([10.0, 10.0, 370.0])
    assert class_orientation.spread(angles) == pytest.approx(0, abs=0.2)
    angles = 20 * torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    assert class_orientation.spread(angles) == pytest.approx(20, rel=0.02)


def test_rotation_left():
    generator = torch.Generator().manual_seed(0)
    before = 180 * torch.rand(20_000, generator=generator) - 90
    slant = 10 * torch.randn(20_000, generator=generator)
    for share in (0.0, 0.3, 1.0):
        left = class_orientation.rotation_left(before, share * before + slant)
        assert left == pytest.approx(100 * share, abs=0.5)


@pytest.fixture(scope="module")
def orientation(mnist_root):
    return class_orientation.measure(ST_FCN, data_root=str(mnist_root))


def test_class_orientation_of_a_pretrained_network(orientation):
    assert [row["class"] for row in orientation["rows"]] == list(range(10))
    # Uniform angles in ±45 degrees have a standard deviation of 26.
    assert all(24 < row["before"] < 29 for row in orientation["rows"])
    before, after, left = rows(analyses.orientation_table([orientation]))
    assert before.startswith("| **RTS**, before | | spread, ° | 26 |")
    assert after.startswith("| `st_fcn-affine-rts-long`, 30,000 steps | 1 | spread, ° |")
    assert left.startswith("| | | left, % | 4")
    repeated = orientation | {"label": "st_fcn-affine-rts-long-seed3", "size_left": 99.0}
    assert rows(analyses.orientation_table([orientation, repeated]))[1:] == [
        after.replace("| 1 |", "| 2 |"),
        left,
    ]
    name, rotation, size, location = (
        cell.strip()
        for cell in rows(analyses.pose_table([orientation, repeated]))[0].split("|")[1:5]
    )
    assert name == "`st_fcn-affine-rts-long`, 30,000 steps"
    assert 40 < float(rotation.partition(",")[0]) < 55
    assert 5 < float(size.partition(", ")[0]) < 25
    assert size.endswith(", 99")
    assert abs(float(location.partition(", ")[0])) < 10
    old = [{name: row[name] for name in ("before", "after")} for row in orientation["rows"]]
    assert len(rows(analyses.orientation_table([orientation | {"rows": old}]))) == 2


def test_error_consistency_of_a_pretrained_network(mnist_root):
    record = error_consistency.measure(ST_FCN, data_root=str(mnist_root))
    counts = [row["digits"] for row in record["rows"]]
    assert len(counts) == 1 + error_consistency.DRAWS
    assert sum(counts) == record["samples"] == 10_000
    assert 9_600 < counts[0] < 9_900


def test_redraws_table():
    digits = enumerate((995, 2, 0, 0, 1, 0, 0, 0, 2))
    record = {"label": "x", "steps": 30_000, "samples": 1000}
    record["rows"] = [{"misread": n, "digits": count} for n, count in digits]
    assert rows(analyses.redraws_table([record])) == [
        "| `x`, 30,000 steps | 0.28 | 995 | 2 | 3 | 91 |"
    ]
    assert analyses.redraws_table([]) == "not run"


def test_times_are_medians(record):
    runs = [
        record(1.0, f"seed={seed}") | {"seconds": 60.0 * seed, "threads": 1} for seed in (1, 2, 6)
    ]
    assert rows(analyses.times_table(runs)) == [
        "| mnist | st_fcn | fast, 15,000 | cpu, 1 thread | 3 | 2 |"
    ]


def test_svhn_window_is_the_product_of_the_transformers(record):
    run = record(31.0, "recipe=svhn_part", experiment="svhn_st_multi")
    for name, scale in (("theta", 0.5), ("theta_2", 0.8), ("theta_3", 1.0), ("theta_4", 1.0)):
        matrix = [0.6 * scale, -0.8 * scale, 0.3, 0.8 * scale, 0.6 * scale, 0.1]
        run["metrics"] |= {f"{name}/mean_{k}": value for k, value in enumerate(matrix)}
    plain = record(40.0, "recipe=svhn_part", experiment="svhn_cnn")
    more = run | {"samples": {"train": 9000, "test": 700}}
    assert rows(analyses.svhn_window_table([run, plain, more], CONF)) == [
        "| ST-CNN Multi | svhn_part, 3,000; 1,824 images | 64 px | 40.00 |",
        "| ST-CNN Multi | svhn_part, 3,000; 9,000 images | 64 px | 40.00 |",
    ]
    assert analyses.svhn_window_table([plain], CONF) == "not run"


def test_parts_are_means_over_seeds_for_each_recipe(record):
    experiment = "birds_2st"
    runs = [
        record(30.0, f"seed={seed}", "recipe=birds_fast", experiment=experiment) for seed in (1, 2)
    ]
    for run, beak in zip(runs, (60.0, 80.0), strict=True):
        run["metrics"] |= {"test/parts_1/beak": beak, "test/parts_random/beak": 33.0}
        run["metrics"] |= {"test/box_1": 40.0, "test/on_box_random": 90.0}
    assert rows(analyses.parts_table(runs, CONF, experiment)) == [
        "| part | crop 1 | random crop |",
        "|---|---|---|",
        "| beak | 70 | 33 |",
        "| *share of the box in the crop* | 40 | – |",
        "| *share of the crop in the box* | – | 90 |",
    ]
    runs[0]["recipe"] = "birds_differences"
    runs[0]["config"]["recipe"]["spsa_delta"] = 0.15
    titles = analyses.parts_table(runs, CONF, experiment).split("\n\n")[::2]
    assert [title.split(",")[0] for title in titles] == ["birds_differences", "birds_fast"]
    assert analyses.parts_table(runs, CONF, "birds_4st") == "not run"


def test_slopes_table():
    row = {"pixels": 22, "gradient": 131.0, "slope": 3.2, "correlation": 0.17, "same sign": 0.57}
    table = analyses.slopes_table([{"label": "x", "samples": 40, "rows": [row]}])
    assert rows(table) == ["| `x` | 40 | 22 | 3.2 | 131.0 | 0.17 | 57 % |"]
    assert analyses.slopes_table([]) == "not run"


def test_gradient_and_slopes_of_a_parabola_are_equal():
    theta, weights = torch.tensor([[1.0, -2.0], [0.5, 0.0]]), torch.tensor([1.0, 3.0])

    def losses(t):
        return (weights * t.square()).sum(dim=1)

    for values in gradient_vs_finite_difference.gradient_and_slopes(losses, theta):
        torch.testing.assert_close(values, 2 * weights * theta)


def test_conformance_table():
    counts = {"passed": 2, "cases": 4, "not supported": 2, "largest error": 2.1e-7}
    none = {"passed": 0, "cases": 4, "not supported": 4, "largest error": None}
    rows = [
        {"library": "a", "version": "1", "group": "one"} | counts,
        {"library": "a", "version": "1", "group": "two"} | counts | {"not supported": 1},
        {"library": "b", "version": "2", "group": "one"} | none,
        {"library": "b", "version": "2", "group": "two"} | counts | {"largest error": None},
    ]
    assert analyses.conformance_table(rows).splitlines() == [
        "| group | cases | a 1 | b 2 |",
        "|---|---|---|---|",
        "| one | 4 | 2/2, 2e-7 | – |",
        "| two | 4 | **2/3**, 2e-7 | 2/2 |",
    ]


def test_bird_trials_have_a_row_for_each_change(record):
    birds = ("data.species=1-50", "model.weights=none")
    runs = [
        record(30.0, *birds, *words, experiment="birds_cnn")
        for words in ((), ("seed=2",), ("recipe.optimizer.lr=0.1",), ("data.size=448",))
    ]
    for run, accuracy in zip(runs, (70.0, 71.0, 60.0, 75.0), strict=True):
        run["metrics"] |= {"test/accuracy": accuracy, "val/best_error": 25.0}
    weights, name = "`model.weights=none`", "`birds_cnn` | `birds_cnn` | `birds_fast`"
    assert rows(analyses.bird_trials_table(runs, CONF)) == [
        f"| {name} | {weights} | 224 | 400 | 75.00, 75.00 | 70.00, 71.00 |",
        f"| {name} | {weights} | 448 | 400 | 75.00 | 75.00 |",
        f"| {name} | {weights}, `recipe.optimizer.lr=0.1` | 224 | 400 | 75.00 | 60.00 |",
    ]


def test_recipe_table_shows_changed_settings(record):
    runs = [
        record(1.5, "recipe.optimizer.lr=0.1", "recipe.dropout=0.5"),
        record(1.25, "seed=2"),
        record(1.75, "transform=attention"),
    ]
    changed = "dropout 0.5, optimizer.lr 0.1"
    assert rows(analyses.recipe_table(runs, CONF)) == [
        "| ST-FCN affine | RTS | fast | – | 15,000 | 1.00 | 1.25 |",
        f"| ST-FCN affine | RTS | fast | {changed} | 15,000 | 1.00 | 1.50 |",
        "| st_fcn attention | RTS | fast | – | 15,000 | 1.00 | 1.75 |",
    ]


def test_steps_chart_has_a_line_for_each_recipe(record):
    runs = [record(1.0, "model=fcn"), record(8.0, "recipe.dropout=0.5")]
    for recipe in ("fast", "paper"):
        for steps in (9, 99):
            overrides = (f"recipe={recipe}", f"trainer.max_steps={steps}")
            runs.append(record(steps / 1000, *overrides, "recipe.label_smoothing=0"))
    runs.append(record(1.0, "recipe=paper", "trainer.max_steps=50", "trainer.precision=bf16-mixed"))
    *lines, _ = analyses.steps_chart(runs, CONF).axes[0].lines
    assert [line.get_label() for line in lines] == [
        "ST-FCN affine on RTS, recipe=fast, no label smoothing",
        "ST-FCN affine on RTS, recipe=paper",
    ]
    assert lines[0].get_xydata().tolist() == [[9, 0.009], [99, 0.099]]
    assert lines[1].get_xydata().tolist() == [[9, 0.009], [99, 0.099]]


def test_table_markers_are_filled():
    text = "a\n<!-- table x -->\nold\n<!-- end -->\nb"
    assert (
        analyses.fill_table_markers(text, {"x": "new"})
        == "a\n<!-- table x -->\nnew\n<!-- end -->\nb"
    )
    with pytest.raises(UsageError, match="no place for table y"):
        analyses.fill_table_markers(text, {"y": "new"})


def test_documents_agree_with_the_results():
    for document, text in make_tables.documents().items():
        assert document.read_text() == text, f"{document.name}: run `make tables`"


def test_charts_agree_with_the_results():
    for chart, (_, digest) in make_tables.charts().items():
        assert Image.open(chart).info["Records"] == digest, f"{chart.name}: run `make tables`"


def test_registered_pairs_have_a_row_for_each_run():
    rows = {"before": torch.rand(10, 3, 28, 28), "affine": torch.rand(10, 3, 28, 28)}
    figure = registered_pairs.draw(rows)
    assert [axis.get_ylabel() for axis in figure.axes[::10]] == ["before", "affine"]
    assert len(figure.axes) == 20


def test_the_last_of_repeated_measurements_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(make_tables, "RESULTS", tmp_path)
    for value in range(12):
        write_measurements({"label": "st_fcn-seed1", "steps": 10, "rows": [{"n": value}]}, tmp_path)
    (record,) = make_tables._read_measurements(".")
    assert record["rows"] == [{"n": 11}]


def test_two_runs_of_a_transform_have_two_rows(composed, drawn_mnist, monkeypatch):
    config = composed("experiment=mnist_registration")
    data, task = build(config)
    trained = Trained(config, data, task.eval(), {})
    monkeypatch.setattr(registered_pairs, "load_trained", lambda run, data_root: trained)
    assert list(registered_pairs.overlays(["one", "two"])) == ["before", "affine", config.label]


def test_pairs_of_another_experiment_are_refused():
    with pytest.raises(UsageError, match=r"st_fcn_mnist\.pt is not a run of registration"):
        registered_pairs.overlays([ST_FCN])


def test_repeated_passes_of_a_pretrained_network(mnist_root, orientation, monkeypatch):
    monkeypatch.setattr(repeated_passes, "MAX_PASSES", 2)
    record = repeated_passes.measure(ST_FCN, data_root=str(mnist_root))
    first = record["rows"][0]
    assert record["trained_passes"] == 1
    assert [row["passes"] for row in record["rows"]] == [1, 2]
    spreads = [row["after"] for row in orientation["rows"]]
    assert first["spread"] == pytest.approx(sum(spreads) / len(spreads), abs=0.01)
    left = [row["left"] for row in orientation["rows"]]
    assert first["left"] == pytest.approx(sum(left) / len(left), abs=0.01)
    errors, *_ = rows(analyses.passes_table([record]))
    name = "`st_fcn-affine-rts-long`, 30,000 steps, 1 in training"
    assert errors.startswith(f"| {name} | error, % | {first['error']:.2f} |")
    others = [record, record | {"label": "st_cnn-affine-rts-long-seed1"}, record | {"steps": 10}]
    assert len(rows(analyses.passes_table(others))) == 9


def test_modern_errors_stand_next_to_published_ones(record):
    runs = [
        record(0.5, "data.distortion=r", f"seed={n}", experiment="mnist_modern") for n in (1, 2)
    ]
    long_run = ["model=st_cnn", "recipe=long", "data.distortion=rts"]
    others = [record(0.1, *long_run), record(0.9, "model=st_cnn"), record(0.8, "recipe=long")]
    others.append(record(0.7, *long_run, "trainer.max_steps=15000"))
    for run in (*runs, *others):
        run["parameters"] = 1234
    *published, table_1, modern = rows(analyses.modern_table([*runs, *others]))
    assert [row.split(" | ")[-2:] for row in published] == [
        ["*0.7*", "*0.5* |"],
        ["*0.61*", "*0.54* |"],
    ]
    assert table_1 == "| ST-CNN affine, `long` | 1,234 | not run | 0.70 |"
    assert modern == "| **this page** | 1,234 | 0.50, 0.50 | not run |"
    assert rows(analyses.modern_table([]))[-1] == "| **this page** | – | not run | not run |"


def test_trials_have_a_row_for_each_change(record):
    def trial(error, distortion, *changes):
        common = ["recipe.validate_every=1250", "trainer.max_steps=2500"]
        overrides = [f"data.distortion={distortion}", *common, *changes]
        run = record(9.0, *overrides, experiment="mnist_modern")
        run["metrics"]["val/best_error"] = error
        return run | {"parameters": 1234}

    decay = "callbacks.average.multi_avg_fn.decay=0.9"
    runs = [
        trial(0.9, "r", decay),
        trial(0.8, "rts", decay),
        trial(0.7, "rts", decay, "model.shared=true"),
        trial(0.6, "rts", decay, "transform=tps"),
        trial(0.5, "rts", "callbacks.average=null"),
    ]
    assert rows(analyses.modern_trials_table(runs, CONF)) == [
        "| nothing | 1,234 | 2,500 | 0.90 | 0.80 |",
        "| `callbacks.average=null` | 1,234 | 2,500 | not run | 0.50 |",
        "| `model.shared=True` | 1,234 | 2,500 | not run | 0.70 |",
        "| `transform=tps` | 1,234 | 2,500 | not run | 0.60 |",
    ]
    other = trial(0.4, "rts")
    nothing, other_decay, *_ = rows(analyses.modern_trials_table([*runs, other], CONF))
    assert nothing == "| nothing | 1,234 | 2,500 | not run | 0.40 |"
    assert other_decay == f"| `{decay}` | 1,234 | 2,500 | 0.90 | 0.80 |"
    assert "| R |" not in analyses.modern_trials_table([other], CONF)
    assert analyses.modern_trials_table([], CONF) == "not run"

"""Write the tables and charts of the documents from the files in results/.

python scripts/make_tables.py [--add RUN_DIRECTORY ...] [--into DIRECTORY]
"""

import hashlib
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from spatial_transformer.paper import BIRDS
from spatial_transformer.reporting import analyses
from spatial_transformer.reporting.benchmarks import benchmark_chart, benchmark_tables
from spatial_transformer.reporting.paper_tables import (
    difference_table,
    paper_tables,
    summary_of_mnist,
)
from spatial_transformer.reporting.records import (
    add_record,
    has_standard_length,
    matches_config,
    read_measurements,
    read_records,
)
from spatial_transformer.utils.errors import UsageError
from spatial_transformer.utils.files import atomic_write
from spatial_transformer.utils.text import one_line

ROOT = Path(__file__).parent.parent
CONF, RESULTS = ROOT / "conf", ROOT / "results"
BENCHMARKS, MNIST, RECIPES = (RESULTS / name for name in ("benchmarks", "mnist", "recipes"))


def documents() -> dict[Path, str]:
    """Return the text of each document, with its tables made from the results."""
    svhn, birds = _read_family("svhn"), _read_family("birds")
    mnist, addition = _read("mnist"), _read("mnist_addition")
    definitions = mnist + _read("definitions")
    trivial = mnist + _read("trivial_baselines")
    addition_pooling = _read("addition_pooling")
    colocalisation = _read("colocalisation")
    ablations = _read("colocalisation_choices")
    all_runs = [*_read_family("mnist"), *colocalisation, *svhn, *birds]
    paper = paper_tables(RESULTS, CONF)
    speed = benchmark_tables(BENCHMARKS, CONF / "recipe")
    conformance = read_measurements(RESULTS / "conformance.json")["rows"]
    tables: dict[str, dict[str, str]] = {
        "README.md": {"mnist summary": summary_of_mnist(paper["mnist"])},
        "docs/results.md": {name: table.markdown() for name, table in paper.items()},
        "docs/reproduction.md": {
            "differences": difference_table(paper["mnist"]),
            "gains": analyses.improvement_table(paper["mnist"]),
            "orientation": analyses.orientation_table(_read_measurements("orientation")),
            "poses": analyses.pose_table(_read_measurements("orientation")),
            "redraws": analyses.redraws_table(_read_measurements("redraws")),
            "times": analyses.times_table(all_runs),
        },
        "docs/experiments/distorted-mnist.md": {
            "pooling": analyses.pooling_table(_read("pooling")),
            "projective": analyses.projective_table(_read("projective")),
            "definitions": analyses.definitions_table(definitions, CONF),
            "trivial": analyses.trivial_table(trivial, CONF),
        },
        "docs/experiments/svhn.md": {
            "svhn windows": analyses.svhn_window_table(svhn, CONF),
        },
        "docs/experiments/addition.md": {
            "poses": analyses.addition_pose_table(addition, CONF),
            "addition pooling": analyses.pooling_table(addition_pooling, addition=True),
        },
        "docs/experiments/colocalisation.md": {
            "ink window": analyses.ink_window_table(
                read_measurements(RESULTS / "ink_window.json")["rows"]
            ),
            "choices": analyses.colocalisation_ablation_table(colocalisation + ablations, CONF),
        },
        "docs/experiments/frozen.md": {
            "frozen": analyses.frozen_table(_read("mnist_frozen"), CONF),
            "frozen birds": analyses.bird_trials_table(_read("birds_frozen"), CONF),
        },
        "docs/experiments/modern.md": {
            "modern": analyses.modern_table(mnist + _read_standard("mnist_modern")),
            "trials": analyses.modern_trials_table(_read("modern_trials"), CONF),
        },
        "docs/experiments/registration.md": {
            "registration": analyses.registration_table(_read_standard("mnist_registration")),
            "house numbers": analyses.registration_table(_read_standard("svhn_registration")),
        },
        "docs/experiments/rotated.md": {
            "rotated": analyses.rotated_table(_read_standard("mnist_rotated"))
        },
        "docs/experiments/iterated.md": {
            "passes": analyses.passes_table(_read_measurements("passes"))
        },
        "docs/experiments/birds.md": {
            "bird trials": analyses.bird_trials_table(_read("bird_trials"), CONF),
            "slopes": analyses.slopes_table(_read_measurements("slopes")),
            **{
                f"parts of {name}": analyses.parts_table(birds, CONF, name)
                for name in BIRDS
                if name != "birds_cnn"
            },
        },
        "docs/reference/benchmarks.md": speed,
        "docs/reference/conformance.md": {"conformance": analyses.conformance_table(conformance)},
        "docs/reference/recipes.md": {"recipes": analyses.recipe_table(_read("recipes"), CONF)},
    }
    return {
        ROOT / name: analyses.fill_table_markers((ROOT / name).read_text(), parts)
        for name, parts in tables.items()
    }


def _read(folder: str) -> list[dict[str, Any]]:
    return read_records(RESULTS / folder)


def _read_family(name: str) -> list[dict[str, Any]]:
    """Return the results of the experiment ``name`` and of those that begin with ``name_``."""
    folders = [*RESULTS.glob(name), *sorted(RESULTS.glob(f"{name}_*"))]
    return [record for folder in folders for record in read_records(folder)]


def _read_standard(folder: str) -> list[dict[str, Any]]:
    """Return the results in ``folder`` that have the settings and the length of conf/."""
    runs = [run for run in _read(folder) if matches_config(run, CONF)]
    return [run for run in runs if has_standard_length(run, CONF)]


def _read_measurements(folder: str) -> list[dict[str, Any]]:
    """Return the measurements in a folder. NAME.1.json repeats those of NAME.json: it counts."""
    paths = sorted((RESULTS / folder).glob("*.json"), key=lambda path: (len(path.stem), path.stem))
    found = map(read_measurements, paths)
    return list({(record["label"], record["steps"]): record for record in found}.values())


def charts() -> dict[Path, tuple[Figure | None, str]]:
    """Return each chart with a digest of the result files that it shows."""
    images = ROOT / "docs" / "images"
    steps = analyses.steps_chart(_read("mnist") + _read("recipes"), CONF)
    return {
        images / "benchmarks.png": (
            benchmark_chart(BENCHMARKS),
            _digest(BENCHMARKS.glob("*.json")),
        ),
        images / "steps.png": (steps, _digest([*MNIST.glob("*.json"), *RECIPES.glob("*.json")])),
    }


def _digest(files: Iterable[Path]) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files))).hexdigest()


def main() -> None:
    """Add results, then write the tables and charts."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument(
        "--add",
        nargs="+",
        type=Path,
        default=[],
        metavar="RUN_DIRECTORY",
        help="finished runs to copy to results/",
    )
    parser.add_argument(
        "--into",
        metavar="DIRECTORY",
        help="subdirectory of results/ for them (default: named after the experiment)",
    )
    options = parser.parse_args()
    errors = []
    for run in options.add:
        try:
            print(f"Added {add_record(run, RESULTS, CONF, options.into)}.")
        except UsageError as error:
            errors.append(f"error: {one_line(error)}")
    try:
        texts, figures = documents(), charts()
    except UsageError as error:
        sys.exit("\n".join([*errors, f"error: {one_line(error)}"]))
    for document, text in texts.items():
        with atomic_write(document) as path:
            path.write_text(text)
    for chart, (figure, digest) in figures.items():
        if figure is not None:
            with atomic_write(chart) as path:
                figure.savefig(path, format="png", dpi=110, metadata={"Records": digest})
    if errors:
        sys.exit("\n".join(errors))


if __name__ == "__main__":
    main()

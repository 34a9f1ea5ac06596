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
from spatial_transformer.reporting.analyses import (
    addition_pose_table,
    bird_trials_table,
    colocalisation_ablation_table,
    conformance_table,
    definitions_table,
    fill_table_markers,
    frozen_table,
    improvement_table,
    ink_window_table,
    modern_table,
    modern_trials_table,
    orientation_table,
    parts_table,
    passes_table,
    pooling_table,
    projective_table,
    recipe_table,
    redraws_table,
    registration_table,
    rotated_table,
    slopes_table,
    steps_chart,
    svhn_window_table,
    times_table,
    trivial_table,
)
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
    mnist, addition = read_records(MNIST), read_records(RESULTS / "mnist_addition")
    definitions = mnist + read_records(RESULTS / "definitions")
    trivial = mnist + read_records(RESULTS / "trivial_baselines")
    addition_pooling = read_records(RESULTS / "addition_pooling")
    colocalisation = read_records(RESULTS / "colocalisation")
    ablations = read_records(RESULTS / "colocalisation_choices")
    all_runs = [*_read_family("mnist"), *colocalisation, *svhn, *birds]
    paper = paper_tables(RESULTS, CONF)
    speed = benchmark_tables(BENCHMARKS, CONF / "recipe")
    conformance = read_measurements(RESULTS / "conformance.json")["rows"]
    tables: dict[str, dict[str, str]] = {
        "README.md": {"mnist summary": summary_of_mnist(paper["mnist"])},
        "docs/results.md": {name: table.markdown() for name, table in paper.items()},
        "docs/reproduction.md": {
            "differences": difference_table(paper["mnist"]),
            "gains": improvement_table(mnist, CONF),
            "orientation": orientation_table(_read_measurements("orientation")),
            "redraws": redraws_table(_read_measurements("redraws")),
            "times": times_table(all_runs),
        },
        "docs/experiments/distorted-mnist.md": {
            "pooling": pooling_table(read_records(RESULTS / "pooling")),
            "projective": projective_table(read_records(RESULTS / "projective")),
            "definitions": definitions_table(definitions, CONF),
            "trivial": trivial_table(trivial, CONF),
        },
        "docs/experiments/svhn.md": {
            "svhn windows": svhn_window_table(svhn, CONF),
        },
        "docs/experiments/addition.md": {
            "poses": addition_pose_table(addition, CONF),
            "addition pooling": pooling_table(addition_pooling, addition=True),
        },
        "docs/experiments/colocalisation.md": {
            "ink window": ink_window_table(read_measurements(RESULTS / "ink_window.json")["rows"]),
            "choices": colocalisation_ablation_table(colocalisation + ablations, CONF),
        },
        "docs/experiments/frozen.md": {
            "frozen": frozen_table(read_records(RESULTS / "mnist_frozen"), CONF),
            "frozen birds": bird_trials_table(read_records(RESULTS / "birds_frozen"), CONF),
        },
        "docs/experiments/modern.md": {
            "modern": modern_table(mnist + _read_standard("mnist_modern")),
            "trials": modern_trials_table(read_records(RESULTS / "modern_trials"), CONF),
        },
        "docs/experiments/registration.md": {
            "registration": registration_table(_read_standard("mnist_registration")),
            "house numbers": registration_table(_read_standard("svhn_registration")),
        },
        "docs/experiments/rotated.md": {"rotated": rotated_table(_read_standard("mnist_rotated"))},
        "docs/experiments/iterated.md": {"passes": passes_table(_read_measurements("passes"))},
        "docs/experiments/birds.md": {
            "bird trials": bird_trials_table(read_records(RESULTS / "bird_trials"), CONF),
            "slopes": slopes_table(_read_measurements("slopes")),
            **{
                f"parts of {name}": parts_table(birds, CONF, name)
                for name in BIRDS
                if name != "birds_cnn"
            },
        },
        "docs/reference/benchmarks.md": speed,
        "docs/reference/conformance.md": {"conformance": conformance_table(conformance)},
        "docs/reference/recipes.md": {"recipes": recipe_table(read_records(RECIPES), CONF)},
    }
    return {
        ROOT / name: fill_table_markers((ROOT / name).read_text(), parts)
        for name, parts in tables.items()
    }


def _read_family(name: str) -> list[dict[str, Any]]:
    """Return the results of the experiment ``name`` and of those that begin with ``name_``."""
    folders = [*RESULTS.glob(name), *sorted(RESULTS.glob(f"{name}_*"))]
    return [record for folder in folders for record in read_records(folder)]


def _read_standard(folder: str) -> list[dict[str, Any]]:
    """Return the results in ``folder`` that have the settings and the length of conf/."""
    records = read_records(RESULTS / folder)
    return [run for run in records if matches_config(run, CONF) and has_standard_length(run, CONF)]


def _read_measurements(folder: str) -> list[dict[str, Any]]:
    return [read_measurements(path) for path in sorted((RESULTS / folder).glob("*.json"))]


def charts() -> dict[Path, tuple[Figure | None, str]]:
    """Return each chart with a digest of the result files that it shows."""
    images = ROOT / "docs" / "images"
    steps = steps_chart(read_records(MNIST) + read_records(RECIPES), CONF)
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
            print(f"Added {add_record(run, RESULTS, options.into)}.")
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

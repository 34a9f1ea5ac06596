"""Makes the tables and charts of the documents from the records in results/.

python scripts/make_tables.py [--add RUN_FOLDER ...] [--into FOLDER]
"""

import argparse
import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path

from matplotlib.figure import Figure

from spatial_transformer.paper import BIRDS
from spatial_transformer.reporting.analyses import (
    addition_pose_table,
    colocalisation_ablation_table,
    conformance_table,
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
from spatial_transformer.reporting.benchmarks import benchmark_chart, benchmark_tables
from spatial_transformer.reporting.paper_tables import paper_tables
from spatial_transformer.reporting.records import add_record, read_measurements, read_records
from spatial_transformer.utils.errors import UsageError
from spatial_transformer.utils.files import atomic_write
from spatial_transformer.utils.text import printable

ROOT = Path(__file__).parent.parent
CONF, RESULTS = ROOT / "conf", ROOT / "results"
BENCHMARKS, MNIST, RECIPES = (RESULTS / name for name in ("benchmarks", "mnist", "recipes"))


def documents() -> dict[Path, str]:
    """What each document with tables must say."""
    svhn, birds, addition = (
        _records_of("svhn"),
        _records_of("birds"),
        read_records(RESULTS / "mnist_addition"),
    )
    found, tried = (
        read_records(RESULTS / name) for name in ("colocalisation", "colocalisation_choices")
    )
    of_paper = {name: table.markdown() for name, table in paper_tables(RESULTS, CONF).items()}
    parts = {
        f"parts of {name}": parts_table(birds, CONF, name) for name in BIRDS if name != "birds_cnn"
    }
    speed = benchmark_tables(BENCHMARKS, CONF / "recipe")
    conformance = read_measurements(RESULTS / "conformance.json")["rows"]
    tables = {
        "README.md": of_paper | {"networks": speed["networks"]},
        "docs/experiments/svhn.md": {
            "svhn": of_paper["svhn"],
            "svhn windows": svhn_window_table(svhn, CONF),
        },
        "docs/experiments/addition.md": {
            "addition": of_paper["addition"],
            "poses": addition_pose_table(addition, CONF),
            "addition pooling": pooling_table(
                read_records(RESULTS / "addition_pooling"), addition=True
            ),
        },
        "docs/experiments/colocalisation.md": {
            "colocalisation": of_paper["colocalisation"],
            "choices": colocalisation_ablation_table(found + tried, CONF),
        },
        "docs/experiments/volumes.md": {"volumes": of_paper["volumes"]},
        "docs/experiments/birds.md": {
            "birds": of_paper["birds"],
            "slopes": slopes_table(_rows_of("slopes")),
        }
        | parts,
        "docs/reference/benchmarks.md": speed,
        "docs/reference/conformance.md": {"conformance": conformance_table(conformance)},
        "docs/experiments/distorted-mnist.md": {
            "mnist": of_paper["mnist"],
            "pooling": pooling_table(read_records(RESULTS / "pooling")),
            "projective": projective_table(read_records(RESULTS / "projective")),
        },
        "docs/reproduction.md": {
            "gains": improvement_table(read_records(MNIST), CONF),
            "orientation": orientation_table(_rows_of("orientation")),
            "redraws": redraws_table(_rows_of("redraws")),
            "times": times_table([*_records_of("mnist"), *found, *svhn, *birds]),
        },
        "docs/reference/recipes.md": {"recipes": recipe_table(read_records(RECIPES), CONF)},
    }
    return {
        ROOT / name: fill_table_markers((ROOT / name).read_text(), parts)
        for name, parts in tables.items()
    }


def _records_of(family: str) -> list[dict]:
    """Records of the experiment of that name, and of all whose names begin so."""
    folders = [*RESULTS.glob(family), *sorted(RESULTS.glob(f"{family}_*"))]
    return [record for folder in folders for record in read_records(folder)]


def _rows_of(folder: str) -> list[dict]:
    """Records of measurements."""
    return [read_measurements(path) for path in sorted((RESULTS / folder).glob("*.json"))]


def charts() -> dict[Path, tuple[Figure | None, str]]:
    """Each chart with a digest of the records that it is made of."""
    return {
        ROOT / "docs" / "images" / "benchmarks.png": (
            benchmark_chart(BENCHMARKS),
            _digest(BENCHMARKS.glob("*.json")),
        ),
        ROOT / "docs" / "images" / "steps.png": (
            steps_chart(read_records(MNIST) + read_records(RECIPES), CONF),
            _digest([*MNIST.glob("*.json"), *RECIPES.glob("*.json")]),
        ),
    }


def _digest(files: Iterable[Path]) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files))).hexdigest()


def _line(error: Exception) -> str:
    """Return an error as one line that is safe to print."""
    return printable(" ".join(str(error).split()))


def main() -> None:
    """Adds records, then makes tables and charts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--add",
        nargs="+",
        type=Path,
        default=[],
        metavar="RUN_FOLDER",
        help="finished runs to take into results/",
    )
    parser.add_argument(
        "--into", metavar="FOLDER", help="folder of results/ for them; left out, the experiment's"
    )
    options = parser.parse_args()
    refused = []
    for run in options.add:
        try:
            print(f"added {add_record(run, RESULTS, options.into)}")
        except UsageError as error:
            refused.append(f"error: {_line(error)}")
    try:
        made, drawn = documents(), charts()
    except UsageError as error:
        sys.exit("\n".join([*refused, f"error: {_line(error)}"]))
    for document, text in made.items():
        with atomic_write(document) as path:
            path.write_text(text)
    for chart, (figure, digest) in drawn.items():
        if figure is not None:
            with atomic_write(chart) as path:
                figure.savefig(path, format="png", dpi=110, metadata={"Records": digest})
    if refused:
        sys.exit("\n".join(refused))


if __name__ == "__main__":
    main()

"""Makes the tables in README.md from the records in results/: python scripts/make_tables.py [--add RUN_FOLDER ...]"""

import argparse
from pathlib import Path

from spatial_transformer.files import replacing
from spatial_transformer.results import add_record, benchmark_table, mnist_tables, read_records, with_tables

ROOT = Path(__file__).parent.parent


def tables(results: Path = ROOT / "results") -> dict[str, str]:
    """Every table of the documents by its name."""
    return {
        "mnist": mnist_tables(read_records(results / "mnist"), ROOT / "conf"),
        "benchmark": benchmark_table(results / "benchmarks"),
    }


def main() -> None:
    """Adds records, then makes the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--add", nargs="+", type=Path, default=[], metavar="RUN_FOLDER", help="finished runs to take into results/"
    )
    for run in parser.parse_args().add:
        print(f"added {add_record(run, ROOT / 'results')}")
    readme = ROOT / "README.md"
    with replacing(readme) as path:
        path.write_text(with_tables(readme.read_text(), tables()))


if __name__ == "__main__":
    main()

"""Write the report: one HTML page with the paper's numbers, ours, and images of runs.

python scripts/report.py [--runs DIRECTORY ...] [--out report/index.html]
"""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from spatial_transformer.reporting.html import write_report
from spatial_transformer.utils.errors import UsageError
from spatial_transformer.utils.text import one_line

ROOT = Path(__file__).parent.parent


def main() -> None:
    """Write the page, and print its path and what is missing from it."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs",
        nargs="+",
        type=Path,
        metavar="DIRECTORY",
        help="directories of runs (default: runs/, if it exists)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "report" / "index.html",
        metavar="FILE",
        help="path of the page (default: report/index.html)",
    )
    options = parser.parse_args()
    runs = options.runs or [folder for folder in [ROOT / "runs"] if folder.is_dir()]
    try:
        problems = write_report(options.out, ROOT / "results", runs, ROOT / "conf", ROOT / "docs")
    except (UsageError, OSError) as error:
        sys.exit(f"error: {one_line(error)}")
    for problem in problems:
        print(f"left out: {one_line(problem)}", file=sys.stderr)
    print(f"Wrote {options.out} ({options.out.stat().st_size / 1e6:.1f} MB).")


if __name__ == "__main__":
    main()

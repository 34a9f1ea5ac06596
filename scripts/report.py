"""Makes the report: one HTML page of the paper's numbers and ours, from results/ and the run folders at hand.

python scripts/report.py [--runs FOLDER ...] [--out report/index.html]
"""

import argparse
import sys
from pathlib import Path

from spatial_transformer.reporting.html import write_report
from spatial_transformer.utils.errors import UsageError
from spatial_transformer.utils.text import printable

ROOT = Path(__file__).parent.parent


def _line(error: Exception) -> str:
    """Return an error as one line that is safe to print."""
    return printable(" ".join(str(error).split()))


def main() -> None:
    """Writes the page and says where it is, and what could not be shown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--runs",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="folders of runs; left out, runs/ if there is one",
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "report" / "index.html", metavar="FILE", help="the page"
    )
    options = parser.parse_args()
    runs = options.runs or [folder for folder in [ROOT / "runs"] if folder.is_dir()]
    try:
        problems = write_report(options.out, ROOT / "results", runs, ROOT / "conf", ROOT / "docs")
    except (UsageError, OSError) as error:
        sys.exit(f"error: {_line(error)}")
    for problem in problems:
        print(f"left out: {printable(problem)}", file=sys.stderr)
    print(f"{options.out} ({options.out.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()

"""Train several seeds of one network in one process, for speed on a GPU.

python scripts/train_stacked.py SETTING ... seed=1,2,3 [--out DIRECTORY] [--no-graph] [--no-vmap]

Settings are those of train.py. Each seed gets a result file in the directory. There are no
checkpoints, so an interrupted command starts over.
Example: python scripts/train_stacked.py data.distortion=r model=st_fcn transform=affine seed=1,2,3
"""

import logging
import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from spatial_transformer.reporting.records import write_measurements
from spatial_transformer.training.cli import explain
from spatial_transformer.training.config import compose_config
from spatial_transformer.training.stacked import train_stacked
from spatial_transformer.utils.errors import UsageError
from spatial_transformer.utils.text import one_line

CONF = Path(__file__).parents[1] / "conf"


def main() -> None:
    """Train the seeds that the command line names, and write their results."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="SETTING", help="as for train.py")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/stacked"),
        metavar="DIRECTORY",
        help="directory for the result files (default: runs/stacked)",
    )
    parser.add_argument("--no-graph", action="store_true", help="do not capture a CUDA graph")
    parser.add_argument(
        "--no-vmap", action="store_true", help="compute the losses of the seeds in turn"
    )
    options = parser.parse_intermixed_args()
    sys.path.append(os.getcwd())  # components there can be named, too
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        seeds = parse_seeds([word for word in options.settings if word.startswith("seed=")])
        others = [word for word in options.settings if not word.startswith("seed=")]
        config = compose_config(CONF, "run_dir=.", *others)
        options.out.mkdir(parents=True, exist_ok=True)  # fails before training, not after it
        for result in train_stacked(config, seeds, not options.no_graph, not options.no_vmap):
            path = write_measurements(result, options.out)
            print(f"test error {result['metrics']['test/error']:.2f} %   {path}")
    except (UsageError, HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {explain(error, CONF)}")
    except OSError as error:
        sys.exit(f"error: {one_line(error)}")


def parse_seeds(words: list[str]) -> list[int]:
    """Return the seeds of ``["seed=1,2,3"]``.

    Raises:
        UsageError: there is no such word, or a seed is not a number.
    """
    try:
        (word,) = words
        return [int(seed) for seed in word.removeprefix("seed=").split(",")]
    except ValueError:
        raise UsageError(f"seed must be set once, as seed=1,2,3, got {words}.") from None


if __name__ == "__main__":
    main()

"""Makes synthetic house numbers of MNIST digits in the format of SVHN, for where SVHN itself is not at hand.

python scripts/make_svhn.py FOLDER [--train N] [--test N] [--extra N]; then python train.py ... data.root=FOLDER.
A result on them is no result on SVHN.
"""

import argparse
import sys
from pathlib import Path

from spatial_transformer.data.svhn_synthetic import make
from spatial_transformer.errors import UsageError


def main() -> None:
    """Makes the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="gets train/ and test/")
    parser.add_argument("--train", type=int, default=10_000, metavar="N", help="training images (default %(default)s)")
    parser.add_argument("--test", type=int, default=2_000, metavar="N", help="test images (default %(default)s)")
    parser.add_argument("--extra", type=int, default=0, metavar="N", help="extra training images (default none)")
    parser.add_argument("--mnist", type=Path, metavar="ROOT", help="folder that holds MNIST/raw; left out, data/")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    sizes = {"train": options.train, "test": options.test} | ({"extra": options.extra} if options.extra else {})
    try:
        make(options.folder, options.mnist, sizes, options.seed)
    except UsageError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

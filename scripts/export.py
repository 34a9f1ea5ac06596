"""Export a trained network as ONNX, or as one small file for predict.py and evaluate.py.

python scripts/export.py RUN_DIRECTORY [--out FILE.onnx | FILE.pt]

An ONNX file takes "images" and returns "logits". For each spatial transformer it also returns
"theta" and "crop", or "theta_1", "crop_1", "theta_2" and so on for several in series. Transformers
in parallel count as one. It is written only if ONNX Runtime and PyTorch agree on test images.
"""

import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from spatial_transformer.inference.load import Trained, load_trained, pack
from spatial_transformer.inference.onnx import write_onnx
from spatial_transformer.utils.errors import UsageError


def main() -> None:
    """Export the network that the command line names."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument(
        "run", type=Path, metavar="RUN_DIRECTORY", help="or one of its checkpoints, or a .pt file"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="a .onnx or .pt file (default: LABEL.onnx)"
    )
    parser.add_argument(
        "--data-root", help="directory of the data for the check of an ONNX file, if it has moved"
    )
    parser.add_argument(
        "--trust",
        nargs="+",
        default=[],
        metavar="PACKAGE",
        help="other packages whose components the run may name",
    )
    options = parser.parse_args()
    sys.path.append(os.getcwd())  # modules there can be trusted, too
    try:
        trained = load_trained(options.run, data_root=options.data_root, trust=options.trust)
        file = options.out or Path(f"{trained.config.label}.onnx")
        print(f"{file}: {export(trained, file)}")
    except OSError as error:
        file = options.out or "the file"
        sys.exit(f"error: {file} cannot be written: {error}. Use --out=FILE to choose another.")
    except UsageError as error:
        sys.exit(f"error: {error}")


def export(trained: Trained, file: Path) -> str:
    """Write the file and return a description of it."""
    if file.suffix == ".onnx":
        return f"differs from PyTorch by at most {write_onnx(trained, file):.1e}"
    if file.suffix == ".pt":
        pack(trained, file)
        return f"test error {trained.record['metrics']['test/error']:.2f} %"
    raise UsageError(f"--out must end in .onnx or .pt, got {file}.")


if __name__ == "__main__":
    main()

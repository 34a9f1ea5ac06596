"""Export the best network of a run as ONNX, or as one file for predict.py and evaluate.py.

python scripts/export.py RUN_DIRECTORY [--out FILE.onnx | FILE.pt] [--data-root DIRECTORY]

An ONNX file takes "images" and returns "logits", and "theta" and "crop" of a spatial transformer
(theta_1, crop_1, theta_2, ... of several in a row). It appears once onnxruntime has computed the
same outputs as PyTorch for test images.
"""

import argparse
import sys
from pathlib import Path

from spatial_transformer.inference.load import Trained, load_trained, pack
from spatial_transformer.inference.onnx import write_onnx
from spatial_transformer.utils.errors import UsageError


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "run", type=Path, metavar="RUN_DIRECTORY", help="or, for ONNX, a packed .pt file"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="ends in .onnx or .pt; left out, LABEL.onnx in this folder",
    )
    parser.add_argument(
        "--data-root", help="where the data for the check lies, if not where the run had it"
    )
    options = parser.parse_args()
    try:
        trained = load_trained(options.run, data_root=options.data_root)
        file = options.out or Path(f"{trained.config.label}.onnx")
        try:
            print(f"{file}: {_written(trained, file)}")
        except OSError as error:
            raise UsageError(
                f"{file} cannot be written: {error}. Use --out=FILE to write it elsewhere."
            ) from error
    except UsageError as error:
        sys.exit(f"error: {error}")


def _written(trained: Trained, file: Path) -> str:
    """Write the file and return a description of it."""
    if file.suffix == ".onnx":
        return f"differs from PyTorch by {write_onnx(trained, file):.1e} at most"
    if file.suffix == ".pt":
        pack(trained, file)
        return f"test error {trained.record['metrics']['test/error']:.2f} %"
    raise UsageError(f"--out must end in .onnx or .pt, got {file}.")


if __name__ == "__main__":
    main()

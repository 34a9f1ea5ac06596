"""Takes the best network of a run out of its folder: as ONNX, or as one small file for predict.py, evaluate.py and torch.hub.

python scripts/export.py RUN_FOLDER [--out FILE.onnx | FILE.pt] [--data-root FOLDER]

An ONNX file is checked before it appears: onnxruntime must compute the same of test images.
"""

import argparse
import sys
from pathlib import Path

from spatial_transformer.building import load_trained, pack
from spatial_transformer.errors import UsageError
from spatial_transformer.onnx_file import write_onnx


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER", help="or, for ONNX, a file that was packed before")
    parser.add_argument("--out", type=Path, metavar="FILE", help="ends in .onnx or .pt; left out, LABEL.onnx in this folder")
    parser.add_argument("--data-root", help="where the data for the check lies, if not where the run had it")
    options = parser.parse_args()
    try:
        trained = load_trained(options.run, data_root=options.data_root)
        file = options.out or Path(f"{trained.config.label}.onnx")
        if file.suffix == ".onnx":
            difference = write_onnx(trained, file)
            print(f"{file}: differs from PyTorch by {difference:.1e} at most")
        elif file.suffix == ".pt":
            pack(trained, file)
            print(f"{file}: test error {trained.record['metrics']['test/error']:.2f} %")
        else:
            raise UsageError(f"--out={file}: what it is, is told by its end. Way out: .onnx or .pt.")
    except UsageError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

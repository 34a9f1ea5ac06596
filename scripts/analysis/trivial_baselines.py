"""Co-localise digits by a fixed rule: the window on the patch with the most ink (appendix A.2).

python scripts/analysis/trivial_baselines.py [--data-root DIRECTORY]

The images and the criterion are those of experiment=colocalisation. Writes results/ink_window.json.
`make tables` shows the result in docs/experiments/colocalisation.md. `python train.py
ablation=trivial_baselines` trains the other trivial baselines.
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

import torch

from spatial_transformer.utils.errors import UsageError
from spatial_transformer.utils.files import write_json

RESULT = Path(__file__).parents[2] / "results" / "ink_window.json"


def measure(data_root: str | None = None) -> dict[str, Any]:
    """Return the percentage of images whose digit is found, by distortion and digit.

    Raises:
        UsageError: MNIST is missing.
    """
    from spatial_transformer.data.mnist import ColocalisationData
    from spatial_transformer.networks.localisation import InkLocalisation
    from spatial_transformer.tasks.colocalisation import paired_iou

    network = InkLocalisation()
    rows = []
    for distortion in ("t", "tc"):
        for digit in range(10):
            data = ColocalisationData(digit, distortion, root=data_root)
            data.setup()
            images, boxes = data.samples("test", torch.arange(data.size("test")))
            is_found = paired_iou(network(images), boxes) > 0.5
            found = 100 * is_found.double().mean().item()
            rows.append({"distortion": distortion, "digit": digit, "found": found})
    return {"patch": network.patch, "window": network.window, "rows": rows}


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", help="directory that contains MNIST/raw")
    try:
        write_json(measure(parser.parse_args().data_root), RESULT)
    except UsageError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"Wrote {RESULT}. Run `make tables` to update the documents.")

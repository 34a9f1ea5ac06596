"""Export trained networks as ONNX files."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.errors import UsageError
from ..utils.files import atomic_write
from . import infer
from .load import Trained

RTOL, ATOL = 1e-5, 1e-4
"""Accepted relative and absolute difference of an output. Deep networks amplify rounding."""
_SAMPLES = 32  # number of test images for the check


@torch.inference_mode()
def write_onnx(trained: Trained, file: Path) -> float:
    """Write a network as an ONNX file that takes batches of any size.

    The input ``images`` is ``(B, C, H, W)``, as the ``samples`` of the data module are. The first
    output is ``logits``. A spatial transformer adds its ``theta`` and its output ``crop``. Several
    in a row add ``theta_1``, ``crop_1``, ``theta_2`` and so on. Transformers in parallel count as
    one: theta is ``(B, n, n_params)`` and the crop is ``(B, n C, H', W')``. The metadata has the
    names of the classes as JSON, and label, test error and commit of the run.

    The file is written only if ONNX Runtime and PyTorch agree on test images, in batches of several
    sizes.

    Args:
        trained: network and its data module.
        file: path of the file.

    Returns:
        The largest absolute difference over all outputs.

    Raises:
        UsageError: a package or the data is missing, or an output differs.
        OSError: the file cannot be written.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        raise UsageError(f"{error}. Run pip install -e '.[onnx]' to install it.") from error
    data = trained.data
    data.prepare_data()
    data.setup()
    size = data.size("test")
    index = torch.linspace(0, size - 1, min(_SAMPLES, size)).long()
    images = data.samples("test", index)[0]
    network = _ExportedNetwork(trained.task.network)
    expected = network(images)
    transformers = len(expected) // 2
    suffixes = [""] if transformers == 1 else [f"_{k + 1}" for k in range(transformers)]
    names = ["logits", *(f"{name}{suffix}" for suffix in suffixes for name in ("theta", "crop"))]
    with atomic_write(file) as path:
        program: Any = torch.onnx.export(
            network,
            (images,),
            dynamo=True,
            verbose=False,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["images"],
            output_names=names,
        )
        program.model.metadata_props.update(_metadata(trained))
        program.save(path)
        providers = ["CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(path.read_bytes(), providers=providers)
        return _largest_difference(session, names, images, expected)


class _ExportedNetwork(nn.Module):
    """A network that returns logits, theta and crop of each transformer in one tuple."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.training = network.training

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        logits, thetas, crops = infer(self.network, images)
        pairs = zip(thetas, crops, strict=True)
        return logits, *(output for pair in pairs for output in pair)


def _largest_difference(
    session: Any, names: Sequence[str], images: Tensor, expected: Sequence[Tensor]
) -> float:
    """Compare the outputs for batches of several sizes and return the largest difference."""
    largest = 0.0
    for n in (1, 5, len(images)):
        outputs = session.run(list(names), {"images": images[:n].numpy()})
        for name, array, reference in zip(names, outputs, expected, strict=True):
            output, reference = torch.from_numpy(array), reference[:n]
            has_same_shape = output.shape == reference.shape
            difference = float((output - reference).abs().max()) if has_same_shape else math.inf
            if not has_same_shape or not torch.allclose(output, reference, rtol=RTOL, atol=ATOL):
                raise UsageError(
                    f"onnxruntime and PyTorch disagree about {name!r}: got a difference of "
                    f"{difference:.1e}, expected at most {ATOL:.0e}. No file was written. Install "
                    "the versions of onnx, onnxscript and onnxruntime in requirements-dev.txt."
                )
            largest = max(largest, difference)
    return largest


def _metadata(trained: Trained) -> dict[str, str]:
    """Return the metadata of the file."""
    record = trained.record
    return {
        "classes": json.dumps(trained.data.names),
        "label": record.get("label", ""),
        "test_error": str(record.get("metrics", {}).get("test/error", "")),
        "commit": record.get("commit") or "",
    }

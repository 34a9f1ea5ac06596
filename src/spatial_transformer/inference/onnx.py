"""Trained networks as ONNX files, for programs without PyTorch."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..inference.load import Trained
from ..utils.errors import UsageError
from ..utils.files import atomic_write
from . import infer

SAMPLES = 32
"""Number of test images for the check of a file."""
RTOL, ATOL = 1e-5, 1e-4
"""Accepted relative and absolute difference of an output; deep networks amplify rounding."""


@torch.inference_mode()
def write_onnx(trained: Trained, file: Path) -> float:
    """Write a network as an ONNX file that takes a batch of any size.

    The input ``images`` is ``(B, C, H, W)``, as the ``samples`` of the data module are. The outputs
    are those of :func:`output_names`. The file appears once onnxruntime has computed the same
    outputs as PyTorch for test images, in batches of several sizes.

    Args:
        trained: network, and its data module for the test images.
        file: path of the file.

    Returns:
        The largest absolute difference between the two over all outputs.

    Raises:
        UsageError: a package or the data is missing, or an output differs.
        OSError: the file cannot be written.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        hint = "Run pip install -e '.[onnx]' to install it."
        raise UsageError(f"A package for ONNX is missing: {error}. {hint}") from error
    network, images = _ExportedNetwork(trained.task.network), _test_images(trained)
    expected = network(images)
    names = output_names(len(expected) // 2)
    with atomic_write(file) as path:
        program = _export(network, images, names)
        program.model.metadata_props.update(_metadata(trained))
        program.save(path)
        providers = ["CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(path.read_bytes(), providers=providers)
        return _largest_difference(session, names, images, expected)


def output_names(transformers: int) -> list[str]:
    """Return the names of a file's outputs.

    The first is ``logits``. A spatial transformer adds ``theta`` and ``crop``, its parameters and
    its output. Several in a row add ``theta_1``, ``crop_1``, ``theta_2`` and so on. Transformers in
    parallel count as one: theta is ``(B, n, n_params)`` and the crop is ``(B, n C, H', W')``.

    Args:
        transformers: number of transformers in a row.
    """
    suffixes = [""] if transformers == 1 else [f"_{k}" for k in range(1, transformers + 1)]
    return ["logits", *(f"{name}{suffix}" for suffix in suffixes for name in ("theta", "crop"))]


class _ExportedNetwork(nn.Module):
    """A network with the outputs of :func:`output_names`, in their order."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.training = network.training

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        logits, thetas, crops = infer(self.network, images)
        pairs = zip(thetas, crops, strict=True)
        return logits, *(output for pair in pairs for output in pair)


def _largest_difference(
    session: Any,
    names: Sequence[str],
    images: Tensor,
    expected: Sequence[Tensor],
) -> float:
    """Compare the outputs for batches of several sizes and return the largest difference.

    Raises:
        UsageError: an output has another shape, a NaN, or differs by more than the tolerance.
    """
    largest = 0.0
    for n in (1, 5, len(images)):
        outputs = session.run(list(names), {"images": images[:n].numpy()})
        for name, array, whole in zip(names, outputs, expected, strict=True):
            output, reference = torch.from_numpy(array), whole[:n]
            same_shape = output.shape == reference.shape
            difference = float((output - reference).abs().max()) if same_shape else math.inf
            if not same_shape or not torch.allclose(output, reference, rtol=RTOL, atol=ATOL):
                raise UsageError(
                    f"onnxruntime and PyTorch disagree about {name!r}: got a difference of "
                    f"{difference:.1e}, expected at most {ATOL:.0e}. No file was written. "
                    "Install the versions of onnx, onnxscript and onnxruntime in "
                    "requirements-dev.txt."
                )
            largest = max(largest, difference)
    return largest


def _test_images(trained: Trained) -> Tensor:
    """Return some test images, evenly spread over the set."""
    data: Any = trained.data
    data.prepare_data()
    data.setup()
    size = data.size("test")
    return data.samples("test", torch.linspace(0, size - 1, min(SAMPLES, size)).long())[0]


def _export(network: nn.Module, images: Tensor, names: Sequence[str]) -> Any:
    """Return torch's ONNX program of a network, without what the exporter prints."""
    batch = torch.export.Dim("batch")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.onnx.export(
            network,
            (images,),
            dynamo=True,
            dynamic_shapes=({0: batch},),
            input_names=["images"],
            output_names=list(names),
        )


def _metadata(trained: Trained) -> dict[str, str]:
    """Return the metadata of the file."""
    record = trained.record
    return {
        "classes": json.dumps(trained.data.names),
        "label": record.get("label", ""),
        "test_error": str(record.get("metrics", {}).get("test/error", "")),
        "commit": record.get("commit") or "",
    }

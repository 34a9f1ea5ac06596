"""Trained networks as ONNX files, for programs without PyTorch."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .building import Trained
from .errors import UsageError
from .files import replacing

SAMPLES = 32
"""Test images that a file is checked on."""
TOLERANCE = 1e-5
"""What is rounding of an output at any rate: absolute, or of the largest output where that is above 1."""


@torch.inference_mode()
def write_onnx(trained: Trained, file: Path) -> float:
    """Writes a network as a file that takes ``images`` as the data's ``samples`` are, in a batch of any size.

    The file appears once onnxruntime has computed the same ``output`` of test images as PyTorch, in batches of several sizes.

    Args:
        trained: the network, and its data for the test images.
        file: what is written.

    Returns:
        The largest difference between the two, in the units of :data:`TOLERANCE`.

    Raises:
        UsageError: the packages that it takes are not installed, the data is not there, or the outputs differ.
        OSError: the file cannot be written.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch's exporter takes it
    except ImportError as error:
        raise UsageError(f"ONNX needs packages that are not installed: {error}. Way out: pip install -e '.[onnx]'") from error
    network, images = trained.task.network, _test_images(trained)
    expected = network(images)  # before the conversion: it makes the constant bases of all grids, which the file takes over
    with replacing(file) as path:
        program = _converted(network, images)
        program.model.metadata_props.update(_facts(trained))
        program.save(path)
        session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
        difference = 0.0
        for n in (1, 5, len(images)):
            output = torch.from_numpy(session.run(None, {"images": images[:n].numpy()})[0])
            difference = max(difference, float((output - expected[:n]).abs().max()))
        scale = max(1.0, float(expected.abs().max()))
        difference /= scale
        if not difference <= TOLERANCE and not difference <= 3 * _rounding(network, images, expected) / scale:
            raise UsageError(
                f"onnxruntime {onnxruntime.__version__} computes other outputs than PyTorch: they differ by {difference:.1e}, "
                "which is more than rounding, so no file was written. Way out: the versions of onnx, onnxscript and "
                "onnxruntime in requirements-dev.txt."
            )
    return difference


def _rounding(network: nn.Module, images: Tensor, output: Tensor) -> float:
    """How far the network's own output lies from that of double precision: deep ones, and transformers, enlarge rounding."""
    return float((output - copy.deepcopy(network).double()(images.double())).abs().max())


def _test_images(trained: Trained) -> Tensor:
    """Some test images, evenly spread."""
    data: Any = trained.data
    data.prepare_data()
    data.setup()
    size = data.size("test")
    return data.samples("test", torch.linspace(0, size - 1, min(SAMPLES, size)).long())[0]


def _converted(network: nn.Module, images: Tensor) -> Any:
    """torch's ONNX program of a network; it prints much that is of no use here."""
    batch = torch.export.Dim("batch")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.onnx.export(
            network, (images,), dynamo=True, dynamic_shapes=({0: batch},), input_names=["images"], output_names=["output"]
        )


def _facts(trained: Trained) -> dict[str, str]:
    """What the file says of itself."""
    record = trained.record
    return {
        "classes": json.dumps(trained.data.names),
        "label": record.get("label", ""),
        "test_error": str(record.get("metrics", {}).get("test/error", "")),
        "commit": record.get("commit") or "",
    }

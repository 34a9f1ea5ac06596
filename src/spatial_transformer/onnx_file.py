"""Trained networks as ONNX files, for programs without PyTorch."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .building import Trained
from .errors import UsageError
from .files import replacing
from .inference import infer

SAMPLES = 32
"""Number of test images for the check of a file."""
TOLERANCE = 1e-5
"""Accepted difference of an output, relative to its largest value where that is above 1."""


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
        The largest difference between the two over all outputs, in the units of :data:`TOLERANCE`.

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
    with replacing(file) as path:
        program = _export(network, images, names)
        program.model.metadata_props.update(_metadata(trained))
        program.save(path)
        providers = ["CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(path.read_bytes(), providers=providers)
        differences = _differences(session, names, images, expected)
        if max(differences.values()) > TOLERANCE:
            rounding = _rounding(network, images, expected)
            limits = [max(TOLERANCE, 3 * one) for one in rounding]
            _check(differences, dict(zip(names, limits, strict=True)))
    return max(differences.values())


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


def _scale(reference: Tensor) -> float:
    return max(1.0, float(reference.abs().max()))


def _difference(output: Tensor, reference: Tensor, scale: float) -> float:
    """Return the largest difference of two outputs, infinite for another shape or a NaN."""
    if output.shape != reference.shape:
        return float("inf")
    return float((output - reference).abs().max().nan_to_num(nan=float("inf"))) / scale


def _differences(
    session: Any,
    names: Sequence[str],
    images: Tensor,
    expected: Sequence[Tensor],
) -> dict[str, float]:
    """Return for each output the largest difference over batches of several sizes."""
    differences = dict.fromkeys(names, 0.0)
    for n in (1, 5, len(images)):
        outputs = session.run(list(names), {"images": images[:n].numpy()})
        for name, output, reference in zip(names, outputs, expected, strict=True):
            scale = _scale(reference)
            difference = _difference(torch.from_numpy(output), reference[:n], scale)
            differences[name] = max(differences[name], difference)
    return differences


def _check(differences: dict[str, float], limits: dict[str, float]) -> None:
    """Raise a UsageError for the first output that differs by more than its limit."""
    for name, difference in differences.items():
        if not difference <= limits[name] < float("inf"):
            raise UsageError(
                f"onnxruntime and PyTorch disagree about {name!r}: got a difference of "
                f"{difference:.1e}, expected at most {limits[name]:.1e}. No file was written. "
                "Install the versions of onnx, onnxscript and onnxruntime in requirements-dev.txt."
            )


def _rounding(network: nn.Module, images: Tensor, outputs: Sequence[Tensor]) -> list[float]:
    """Return how much each output differs from double precision.

    Deep networks and transformers amplify rounding.
    """
    exact = copy.deepcopy(network).double()(images.double())
    return [_difference(a, b, _scale(a)) for a, b in zip(outputs, exact, strict=True)]


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

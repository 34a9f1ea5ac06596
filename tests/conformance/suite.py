"""Conformance suite for spatial-transformer samplers. It needs PyTorch only.

An adapter is a dictionary from "affine", "projective", "tps" or "affine3d" to a function
``warp(x, theta, size)``. Leave out the transforms that a library does not have::

    import torch.nn.functional as F
    from suite import run_suite

    def warp(x, theta, size, mode="bilinear"):
        shape = [*x.shape[:2], *size]
        grid = F.affine_grid(theta.view(-1, 2, 3), shape, align_corners=False)
        return F.grid_sample(x, grid, mode, align_corners=False)

    for result in run_suite({"affine": warp}):
        print(result)

Arguments of an adapter's function
    x: ``(B, C, H, W)`` float32, or ``(B, C, D, H, W)`` for "affine3d".
    theta: ``(B, n)`` float32; see :data:`TRANSFORMS`.
    size: ``(H', W')`` or ``(D', H', W')`` of the output.
    mode, fill: optional keywords. The suite passes them only in cases where they differ from
        "bilinear" and 0.0. A fill is one number, or a list with one number for each channel.

A case is *not supported* if the adapter lacks the transform, if its function lacks the keyword, or
if the function raises NotImplementedError. It is also not supported if the output has no gradient
that a case asks for. Any other exception is a failure.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

GOLDEN = Path(__file__).with_name("golden.json")
TRANSFORMS = {
    "affine": "6 numbers: the rows of a 2x3 matrix on (x, y, 1)",
    "projective": "8 numbers: the rows of a 3x3 matrix on (x, y, 1) whose last element is 1",
    "tps": "32 numbers: source x, then source y, of 4x4 control points from -1 to 1, row by row",
    "affine3d": "12 numbers: the rows of a 3x4 matrix on (x, y, z, 1)",
}
"""Theta of each transform. It maps points of the output to points of the input. Points are in
[-1, 1] with half-pixel centres: -1 and 1 are the outer edges of an image."""
PASSED, FAILED, NOT_SUPPORTED = "passed", "failed", "not supported"
DEFAULTS = {"mode": "bilinear", "fill": 0.0}

Warp = Callable[..., Tensor]
Adapter = Mapping[str, Warp]


@dataclass(frozen=True)
class Result:
    """The result of one case.

    Attributes:
        case: name of the case.
        group: name of its group.
        status: "passed", "failed" or "not supported".
        error: largest absolute error, relative to the largest expected value if that is above 1.
            None if there are no finite values to compare.
        message: why a case failed or is not supported.
    """

    case: str
    group: str
    status: str
    error: float | None = None
    message: str = ""


def load_cases(path: Path = GOLDEN) -> list[dict[str, Any]]:
    """Return the cases of a golden file."""
    return json.loads(path.read_text(encoding="utf-8"))["cases"]


def run_suite(adapter: Adapter, cases: Iterable[dict[str, Any]] | None = None) -> list[Result]:
    """Run an adapter on all cases and return one result for each.

    Args:
        adapter: functions by transform, as described above.
        cases: what to run instead of all cases of the golden file.
    """
    return [run_case(adapter, case) for case in (load_cases() if cases is None else cases)]


def run_case(adapter: Adapter, case: dict[str, Any]) -> Result:
    """Run an adapter on one case."""
    result = partial(Result, case["name"], case["group"])
    warp = adapter.get(case["transform"])
    if warp is None:
        return result(NOT_SUPPORTED, message=f"the adapter has no {case['transform']!r}")
    options = {name: case[name] for name, default in DEFAULTS.items() if case[name] != default}
    missing = [name for name in options if not _accepts(warp, name)]
    if missing:
        return result(NOT_SUPPORTED, message=f"the function has no keyword {missing[0]!r}")
    try:
        actual = compute(partial(warp, **options), case)
    except NotImplementedError as exception:
        return result(NOT_SUPPORTED, message=str(exception))
    except Exception as exception:  # one case must not stop the suite
        return result(FAILED, message=f"{type(exception).__name__}: {exception}")
    expected = as_tensor(case["expected"], torch.float64)
    if actual.shape != expected.shape:
        shapes = f"got {tuple(actual.shape)}, expected {tuple(expected.shape)}"
        return result(FAILED, message=f"wrong shape: {shapes}")
    scale = max(1.0, float(expected.abs().max()))
    error = float((actual.detach().double() - expected).abs().max()) / scale
    if not error < float("inf"):
        return result(FAILED, message="the result is not finite")
    if error > case["tolerance"]:
        message = f"error {error:.1e}, expected at most {case['tolerance']:.0e}"
        return result(FAILED, error, message)
    return result(PASSED, error)


def compute(warp: Warp, case: dict[str, Any]) -> Tensor:
    """Return the quantity that a case compares.

    - "output": the warped input.
    - "gradient of x", "gradient of theta": of ``sum(upstream * output)``.
    - "hessian-vector product": of ``sum(upstream * output**2) / 2`` with respect to theta, times
      ``direction``.

    Raises:
        NotImplementedError: the output has no such derivative.
    """
    x, theta, quantity = as_tensor(case["x"]), as_tensor(case["theta"]), case["quantity"]
    if quantity == "output":
        with torch.autocast("cpu", torch.bfloat16, enabled=case["autocast"]):
            return warp(x, theta, tuple(case["size"]))
    source = x if quantity == "gradient of x" else theta
    source.requires_grad_()
    output = warp(x, theta, tuple(case["size"]))
    upstream = as_tensor(case["upstream"])
    if quantity != "hessian-vector product":
        return _derivative(output, source, upstream)
    loss = (upstream * output.square()).sum() / 2
    gradient = _derivative(loss, theta, torch.ones(()), create_graph=True)
    return _derivative(gradient, theta, as_tensor(case["direction"]))


def summarize(results: Iterable[Result]) -> list[dict[str, Any]]:
    """Return one row for each group: numbers of cases by status, and the largest error."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.group, []).append(result)
    rows = []
    for group, members in groups.items():
        statuses = [member.status for member in members]
        errors = [member.error for member in members if member.error is not None]
        row = {"group": group, "passed": statuses.count(PASSED), "cases": len(members)}
        row |= {"not supported": statuses.count(NOT_SUPPORTED)}
        rows.append(row | {"largest error": max(errors, default=None)})
    return rows


def as_tensor(array: dict[str, Sequence], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a tensor of the ``shape`` and ``values`` of a golden file."""
    return torch.tensor(array["values"], dtype=dtype).view(array["shape"])


def _accepts(warp: Warp, name: str) -> bool:
    parameters = inspect.signature(warp).parameters.values()
    return any(p.name == name or p.kind is p.VAR_KEYWORD for p in parameters)


def _derivative(
    output: Tensor,
    source: Tensor,
    upstream: Tensor,
    create_graph: bool = False,
) -> Tensor:
    """Return the derivative of ``sum(upstream * output)`` with respect to ``source``."""
    derivative = None
    if output.requires_grad:
        (derivative,) = torch.autograd.grad(
            output,
            source,
            upstream,
            create_graph=create_graph,
            allow_unused=True,
        )
    if derivative is None:
        raise NotImplementedError("the output has no such derivative")
    return derivative

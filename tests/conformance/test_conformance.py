"""This project passes the conformance suite, and the suite finds faulty adapters."""

import json
import re
from functools import partial

import conformance
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import REPOSITORY
from make_golden import DECIMALS, make_golden
from suite import FAILED, GOLDEN, NOT_SUPPORTED, PASSED, load_cases, run_case, run_suite, summarize

from spatial_transformer import ThinPlateSpline

TIES = "ties, equation (4)"
KNOWN_DEVIATIONS = {TIES: "grid_sample rounds half to even, equation (4) half up"}
CASES = {f"{case['group']}: {case['name']}": case for case in load_cases()}
OWN_ADAPTER = conformance.spatial_transformer_adapter()


def failed_groups(adapter, transform="affine"):
    cases = [case for case in load_cases() if case["transform"] == transform]
    return {result.group for result in run_suite(adapter, cases) if result.status == FAILED}


# This project


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_this_project_passes(case):
    result = run_case(OWN_ADAPTER, case)
    expected = FAILED if case["group"] in KNOWN_DEVIATIONS else PASSED
    assert result.status == expected, result


# The suite finds faults


def plain_warp(x, theta, size, mode="bilinear", align_corners=False, padding_mode="zeros"):
    shape = [*x.shape[:2], *size]
    grid = F.affine_grid(theta.view(-1, 2, 3), shape, align_corners=align_corners)
    return F.grid_sample(x, grid, mode, padding_mode, align_corners=align_corners)


def transposed(x, theta, size, mode="bilinear"):
    matrix = theta.view(-1, 2, 3)[:, [1, 0]][:, :, [1, 0, 2]]
    return plain_warp(x, matrix, size, mode)


def inverted(x, theta, size, mode="bilinear"):
    last_row = torch.tensor([0.0, 0, 1]).expand(len(theta), 1, 3)
    matrix = torch.cat([theta.view(-1, 2, 3), last_row], dim=1)
    return plain_warp(x, matrix.inverse()[:, :2], size, mode)


def half_a_pixel_off(x, theta, size, mode="bilinear"):
    half_pixel = torch.tensor([0.0, 0, 1 / x.shape[3], 0, 0, 1 / x.shape[2]])
    return plain_warp(x, theta - half_pixel, size, mode)


SHIFT, TURN, ROTATION = "whole-pixel shift", "quarter turn", "rotation and scale, equation (5)"
SIZE, NEAREST = "output of another size", "nearest neighbour, equation (4)"
OF_X, OF_THETA = "gradient of the input, equation (6)", "gradient of theta, equation (7)"
SECOND, AUTOCAST = "second derivatives in theta", "bfloat16 autocast, 64 px"
OFF_CENTRE = {SHIFT, ROTATION, SIZE, NEAREST, OF_X, OF_THETA, SECOND}
"""Groups that a quarter turn about the centre of an image does not cover."""
FAULTS_OF_TORCH = {TIES, AUTOCAST}


@pytest.mark.filterwarnings("ignore:.*affine_grid behavior has changed for unit-size")
@pytest.mark.parametrize(
    ("warp", "groups"),
    [
        (plain_warp, set()),
        (partial(plain_warp, align_corners=True), OFF_CENTRE),
        (partial(plain_warp, padding_mode="border"), OFF_CENTRE),
        (transposed, OFF_CENTRE | {TURN}),
        (inverted, OFF_CENTRE | {TURN}),
        (half_a_pixel_off, OFF_CENTRE | {TURN, "identity"}),
    ],
    ids=["none", "aligned corners", "border", "transposed", "inverted", "half a pixel off"],
)
def test_faults_are_found(warp, groups):
    assert failed_groups({"affine": warp}) == groups | FAULTS_OF_TORCH


def test_fill_weighted_twice_is_found():
    def warp(x, theta, size, fill=0.0):
        fill = torch.tensor(fill).view(-1, 1, 1)
        inside = plain_warp(torch.ones_like(x), theta, size)
        return (plain_warp(x, theta, size) - fill) * inside + fill

    assert "fill outside the input" in failed_groups({"affine": warp})


def test_spline_without_affine_part_is_found():
    def warp(x, theta, size):
        control, source = ThinPlateSpline().identity().view(2, 16).T, theta.view(-1, 2, 16).mT
        y, x_axis = (torch.arange(1.0, 2 * n, 2) / n - 1 for n in size)
        points = torch.cartesian_prod(y, x_axis).flip(-1)

        def kernel(a):
            squared = torch.cdist(a, control).square()
            return torch.xlogy(squared, squared)

        grid = kernel(points) @ torch.linalg.solve(kernel(control), source)
        return F.grid_sample(x, grid.view(len(x), *size, 2), align_corners=False)

    assert "thin plate spline, SciPy's" in failed_groups({"tps": warp}, "tps")


# What the suite reports


def first_case(group):
    return next(case for case in load_cases() if case["group"] == group)


def refuse(x, theta, size):
    raise NotImplementedError("square outputs only")


@pytest.mark.parametrize(
    ("adapter", "group", "message"),
    [
        ({}, "identity", "the adapter has no 'affine'"),
        ({"affine": lambda x, theta, size: x}, NEAREST, "the function has no keyword 'mode'"),
        ({"affine": lambda x, theta, size: x}, OF_THETA, "the output has no such derivative"),
        ({"affine": refuse}, "identity", "square outputs only"),
    ],
)
def test_missing_features_are_not_supported(adapter, group, message):
    result = run_case(adapter, first_case(group))
    assert (result.status, result.error, result.message) == (NOT_SUPPORTED, None, message)


@pytest.mark.parametrize(
    ("warp", "message"),
    [
        (lambda x, theta, size: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda x, theta, size: x[..., 1:], r"wrong shape: got \(1, 1, 28, 27\), expected"),
        (lambda x, theta, size: x * float("nan"), "the result is not finite"),
        (lambda x, theta, size: x + 0.5, r"error 5.0e-01, expected at most 1e-05"),
    ],
)
def test_errors_are_failures_with_a_message(warp, message):
    result = run_case({"affine": warp}, first_case("identity"))
    assert result.status == FAILED
    assert re.match(message, result.message)


def test_the_summary_counts_cases_by_group():
    results = run_suite({"affine": plain_warp})
    rows = {row["group"]: row for row in summarize(results)}
    assert rows["identity"] | {"largest error": 0} == {
        "group": "identity",
        "passed": 4,
        "cases": 4,
        "not supported": 0,
        "largest error": 0,
    }
    assert rows["three dimensions"]["not supported"] == rows["three dimensions"]["cases"]
    assert rows["three dimensions"]["largest error"] is None


# Files


def test_golden_file_agrees_with_the_reference():
    stored, made = json.loads(GOLDEN.read_text()), json.loads(json.dumps(make_golden()))
    for old, new in zip(stored["cases"], made["cases"], strict=True):
        for field in old.keys() | new.keys():
            if not isinstance(old[field], dict):
                assert old[field] == new[field], (old["name"], field)
                continue
            assert old[field]["shape"] == new[field]["shape"], (old["name"], field)
            # Another BLAS may round the last decimal differently.
            values = (array[field]["values"] for array in (old, new))
            np.testing.assert_allclose(*values, rtol=0, atol=1.5 * 10**-DECIMALS)
    assert len(CASES) == len(stored["cases"]) == 58
    assert GOLDEN.stat().st_size < 150_000


def test_results_are_of_this_golden_file():
    recorded = json.loads(conformance.RESULT.read_text())
    assert recorded["golden"] == conformance.golden_digest(), "run scripts/dev/conformance.py"
    groups = list(dict.fromkeys(case["group"] for case in load_cases()))
    for library in conformance.ADAPTERS:
        rows = [row for row in recorded["rows"] if row["library"] == library]
        assert [row["group"] for row in rows] == groups
    own = [row for row in recorded["rows"] if row["library"] == "spatial-transformer"]
    failed = {row["group"] for row in own if row["passed"] < row["cases"]}
    assert failed == KNOWN_DEVIATIONS.keys()


def test_example_in_the_document_runs(capsys):
    text = (REPOSITORY / "docs" / "reference" / "conformance.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(example, {})
    assert "identity, 28 x 28 px passed" in capsys.readouterr().out

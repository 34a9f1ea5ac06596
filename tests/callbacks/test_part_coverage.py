"""Which parts crops contain, against manual cases and a simulation."""

import math
from types import SimpleNamespace

import pytest
import torch

from spatial_transformer import Affine, Attention
from spatial_transformer.callbacks.part_coverage import (
    PartCoverage,
    affine_matrices,
    contains,
    crop_box_overlap,
    part_table,
)


def windows(*rows):
    """Return crops of one sample, ``(1, K, 2, 3)``, from the half side and the centre of each."""
    return torch.tensor([[[[s, 0, x], [0, s, y]] for s, x, y in rows]], dtype=torch.float32)


def test_affine_matrices():
    theta = torch.tensor([[0.3, 0.1, -0.2, 0.4, 0.8, 0.5]])
    assert torch.allclose(affine_matrices(Affine(), theta), theta.view(1, 2, 3))
    assert torch.allclose(
        affine_matrices(Attention(0.5), torch.tensor([[0.2, -0.1]])), windows((0.5, 0.2, -0.1))[0]
    )


def test_a_rotated_crop_contains_the_points_in_it():
    angle = math.pi / 4
    cos, sin = math.cos(angle), math.sin(angle)
    turned = 0.5 * torch.tensor([[cos, -sin], [sin, cos]])
    crop = torch.cat([turned, torch.zeros(2, 1)], dim=1)[None, None]
    points = torch.tensor([[[0.69, 0.0], [0.72, 0.0], [0.45, 0.45], [0.0, -0.69]]])
    assert contains(crop, points).tolist() == [[[True, False, False, True]]]


def test_parts_are_counted_where_they_are_visible():
    crops = windows((0.5, -0.5, 0.0), (0.5, 0.5, 0.0)).expand(4, -1, -1, -1)
    part = [[-0.4, 0.1, 1], [0.4, 0.1, 1], [-0.4, 0.9, 1], [-0.4, 0.1, 0]]
    table = part_table(crops, torch.tensor(part)[:, None])
    assert table["1"].item() == pytest.approx(100 / 3)
    assert table["2"].item() == pytest.approx(100 / 3)
    assert table["centre"].item() == pytest.approx(200 / 3)


@pytest.mark.parametrize("half", [0.25, 0.5, 0.9, 1.0, 1.5])
def test_random_crops_contain_parts_as_often_as_in_a_simulation(half):
    places = (torch.rand(200_000, 2) * 2 - 1) * (1 - half)
    for x, y in ((0.0, 0.0), (0.6, -0.2), (-0.95, 0.95)):
        chance = part_table(windows((half, 0, 0)), torch.tensor([[[x, y, 1.0]]]))["random"].item()
        drawn = ((places - torch.tensor([x, y])).abs() <= half).all(1).float().mean().item()
        assert chance == pytest.approx(100 * drawn, abs=0.5)


def test_overlaps_of_squares():
    crops = windows((0.5, -0.5, -0.5), (0.5, 0.0, -0.5))
    shares = crop_box_overlap(crops, torch.tensor([[-1.0, -1.0, 0.0, 1.0]]))
    assert shares["box_1"] == pytest.approx(50)
    assert shares["on_box_1"] == pytest.approx(100)
    assert shares["box_2"] == pytest.approx(25)
    assert shares["on_box_2"] == pytest.approx(50)
    assert shares["overlap"] == pytest.approx(100 / 3)


@pytest.mark.parametrize("is_writable", [True, False])
def test_metrics_are_logged_also_if_the_table_cannot_be_written(tmp_path, caplog, is_writable):
    folder = tmp_path / "crops"
    if not is_writable:
        folder.touch()
    parts, boxes = torch.tensor([[[0.0, 0.0, 1.0]]]), torch.tensor([[-0.5, -0.5, 0.5, 0.5]])
    data = SimpleNamespace(parts=lambda _: parts, boxes=lambda _: boxes, part_names=["beak"])
    trainer = SimpleNamespace(datamodule=data, is_global_zero=True, loggers=[])
    logged = {}
    module = SimpleNamespace(log_dict=lambda values, sync_dist: logged.update(values))
    transformer = SimpleNamespace(transform=Attention(0.5))
    PartCoverage(folder).measure(trainer, module, transformer, torch.zeros(1, 2, 2))
    assert logged["test/parts_1/beak"] == logged["test/box_2"] == 100
    assert ("parts.csv" in caplog.text) is not is_writable
    if is_writable:
        head, row = (folder / "parts.csv").read_text().splitlines()
        assert head == "part,transformer 1,transformer 2,random,centre"
        assert row == "beak,100.0,100.0,100.0,100.0"

"""Read what a run leaves in its directory."""

import csv
import json

import torch


def rows(run, name="metrics.csv"):
    with (run / name).open(newline="") as file:
        return list(csv.DictReader(file))


def losses(run):
    return [float(row["train/loss"]) for row in rows(run) if row["train/loss"]]


def metrics(run):
    return json.loads((run / "metrics.json").read_text())["metrics"]


def checkpoint(run, name="last.ckpt"):
    return torch.load(run / "checkpoints" / name, weights_only=True)


def assert_bit_equal(run, expected):
    """Compare the weights, the metrics, the curve and the table of two finished runs."""
    names = {path.name for path in (expected / "checkpoints").glob("*t.ckpt")}  # last and best
    assert names == {path.name for path in (run / "checkpoints").glob("*t.ckpt")}
    for name in names:
        found, wanted = checkpoint(run, name), checkpoint(expected, name)
        assert found["global_step"] == wanted["global_step"], name
        for key, tensor in wanted["state_dict"].items():
            assert torch.equal(found["state_dict"][key], tensor), f"{name}: {key}"
    results = [json.loads((path / "metrics.json").read_text()) for path in (run, expected)]
    for key in ("metrics", "curve", "misclassified", "steps"):
        assert results[0][key] == results[1][key], key
    assert (run / "metrics.csv").read_text() == (expected / "metrics.csv").read_text()
    hidden = [path.name for path in run.rglob(".*") if path.is_file()]
    assert hidden == [".lock"], "half-written files"

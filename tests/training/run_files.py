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

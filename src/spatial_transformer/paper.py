"""The numbers of the paper's tables, and the names of its networks (arXiv:1506.02025v3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NETWORKS = {
    "FCN": ("fcn", "none"),
    "CNN": ("cnn", "none"),
    "ST-FCN affine": ("st_fcn", "affine"),
    "ST-FCN projective": ("st_fcn", "projective"),
    "ST-FCN TPS": ("st_fcn", "tps"),
    "ST-CNN affine": ("st_cnn", "affine"),
    "ST-CNN projective": ("st_cnn", "projective"),
    "ST-CNN TPS": ("st_cnn", "tps"),
}
"""Model and transform of each row of Table 1."""

TABLE_1 = {
    "FCN": {"r": 2.1, "rts": 5.2, "p": 3.1, "e": 3.2},
    "CNN": {"r": 1.2, "rts": 0.8, "p": 1.5, "e": 1.4},
    "ST-FCN affine": {"r": 1.2, "rts": 0.8, "p": 1.5, "e": 2.7},
    "ST-FCN projective": {"r": 1.3, "rts": 0.9, "p": 1.4, "e": 2.6},
    "ST-FCN TPS": {"r": 1.1, "rts": 0.8, "p": 1.4, "e": 2.4},
    "ST-CNN affine": {"r": 0.7, "rts": 0.5, "p": 0.8, "e": 1.2},
    "ST-CNN projective": {"r": 0.8, "rts": 0.6, "p": 0.8, "e": 1.3},
    "ST-CNN TPS": {"r": 0.7, "rts": 0.5, "p": 0.8, "e": 1.1},
}
"""Table 1: error on distorted MNIST in percent."""

CLUTTERED = {"FCN": 13.2, "CNN": 3.5, "ST-FCN affine": 2.0, "ST-CNN affine": 1.7}
"""Section 4.1: error on translated and cluttered MNIST in percent."""

ADDITION_NETWORKS = {
    "FCN": ("addition_fcn", "none"),
    "CNN": ("addition_cnn", "none"),
    "ST-FCN affine": ("addition_st_fcn", "affine"),
    "ST-FCN projective": ("addition_st_fcn", "projective"),
    "ST-FCN TPS": ("addition_st_fcn", "tps"),
    "2 × ST-FCN affine": ("addition_2st_fcn", "affine"),
    "2 × ST-FCN projective": ("addition_2st_fcn", "projective"),
    "2 × ST-FCN TPS": ("addition_2st_fcn", "tps"),
}
"""Model and transform of each row of appendix A.1."""

ADDITION = {
    "FCN": 47.7,
    "CNN": 14.7,
    "ST-FCN affine": 22.6,
    "ST-FCN projective": 18.5,
    "ST-FCN TPS": 19.1,
    "2 × ST-FCN affine": 9.0,
    "2 × ST-FCN projective": 5.9,
    "2 × ST-FCN TPS": 5.8,
}
"""Appendix A.1: error on MNIST addition in percent."""

COLOCALISATION = {"t": (100,) * 10, "tc": (81, 82, 88, 75, 94, 84, 93, 85, 89, 87)}
"""Appendix A.2: images with an IoU above 0.5 in percent, for the digits 0 to 9.

Without clutter ("t") and with clutter ("tc"), which is second-hand.
"""

VOLUME_NETWORKS = {
    "projection, FCN": ("volume_fcn", "none"),
    "3-D transformer, projection, FCN": ("volume_st_fcn", "affine3d"),
}
"""Model and transform of the networks of appendix A.3, for which the paper has no numbers."""

SVHN_NETWORKS = {
    "CNN": ("svhn_cnn", "none"),
    "ST-CNN Single": ("svhn_st_single", "affine"),
    "ST-CNN Multi": ("svhn_st_multi", "affine"),
}
"""Model and transform of the rows of Table 2 that are reproduced."""

TABLE_2 = {
    "Maxout CNN (Goodfellow et al. 2013)": {64: 4.0},
    "CNN": {64: 4.0, 128: 5.6},
    "DRAM (Ba et al. 2014)": {64: 3.9, 128: 4.5},
    "ST-CNN Single": {64: 3.7, 128: 3.9},
    "ST-CNN Multi": {64: 3.6, 128: 3.9},
}
"""Table 2: sequence error on SVHN in percent, by the size of the images in pixels."""

BIRDS = {
    "birds_cnn": "CNN, 224 px",
    "birds_2st": "2 × ST-CNN, 224 px",
    "birds_2st_448": "2 × ST-CNN, 448 px",
    "birds_4st": "4 × ST-CNN, 448 px",
}
"""Row of Table 3 of each experiment."""

TABLE_3 = {
    "Cimpoi et al. 2015": 66.7,
    "Zhang et al. 2014": 74.9,
    "Branson et al. 2014": 75.7,
    "Lin et al. 2015": 80.9,
    "Simon and Rodner 2015": 81.0,
    "CNN, 224 px": 82.3,
    "2 × ST-CNN, 224 px": 83.1,
    "2 × ST-CNN, 448 px": 83.9,
    "4 × ST-CNN, 448 px": 84.1,
}
"""Table 3: accuracy on CUB-200-2011 in percent."""

DATA_OPTIONS = {
    "distortion": "{}",
    "digit": "digit {}",
    "size": "{} px",
    "species": "species {}",
}
"""Settings of the data that distinguish the columns of a table, and their labels."""


def network_name(experiment: str, model: str, transform: str) -> str:
    """Return the paper's name of a network. Other networks are named by model and transform."""
    if experiment in BIRDS and transform in ("none", "location"):
        return BIRDS[experiment]
    for networks in (NETWORKS, ADDITION_NETWORKS, SVHN_NETWORKS, VOLUME_NETWORKS):
        for name, options in networks.items():
            if options == (model, transform):
                return name
    return model if transform == "none" else f"{model} {transform}"


def data_tags(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in ``DATA_OPTIONS`` that ``data`` has."""
    return {name: data[name] for name in DATA_OPTIONS if data.get(name) is not None}


def describe_data(data: Mapping[str, Any]) -> list[str]:
    """Return labels for :func:`data_tags`, such as ``["tc", "digit 3"]``."""
    return [
        DATA_OPTIONS[name].format(",".join(map(str, value)) if isinstance(value, list) else value)
        for name, value in data_tags(data).items()
    ]

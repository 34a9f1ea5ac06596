"""The numbers of the paper's tables, once (arXiv:1506.02025v3)."""

from __future__ import annotations

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
"""Rows of Table 1, and the model and transform that they are here."""

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

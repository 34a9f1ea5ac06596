"""What a run is called: by the paper's name of its network, and by its data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .paper import ADDITION_NETWORKS, BIRDS, NETWORKS, SVHN_NETWORKS, VOLUME_NETWORKS

DATA_OPTIONS = {"distortion": "{}", "digit": "digit {}", "size": "{} px", "species": "species {}"}
"""Options of the data that tell the columns of a table apart, and how each is said."""


def network_name(experiment: str, model: str, transform: str) -> str:
    """The paper's name of a network; of one that the paper has not, its model and transform."""
    if experiment in BIRDS and transform in ("none", "location"):
        return BIRDS[experiment]
    for networks in (NETWORKS, ADDITION_NETWORKS, SVHN_NETWORKS, VOLUME_NETWORKS):
        for name, options in networks.items():
            if options == (model, transform):
                return name
    return model if transform == "none" else f"{model} {transform}"


def chosen_data(data: Mapping[str, Any]) -> dict[str, Any]:
    """Of the data's settings those in ``DATA_OPTIONS`` that are given."""
    return {name: data[name] for name in DATA_OPTIONS if data.get(name) is not None}


def data_words(data: Mapping[str, Any]) -> list[str]:
    """What :func:`chosen_data` has, in words: ``["tc", "digit 3"]``."""
    chosen = chosen_data(data).items()
    return [
        DATA_OPTIONS[name].format(",".join(map(str, value)) if isinstance(value, list) else value) for name, value in chosen
    ]

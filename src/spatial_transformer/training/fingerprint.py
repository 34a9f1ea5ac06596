"""The fingerprint of a run: everything that changes its result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

IGNORED = {
    "": ("ckpt_path", "checkpoint_minutes", "run_dir", "label", "choices", "logger", "fingerprint"),
    "data": ("root", "cache", "workers", "resident", "eval_batch_size"),
    "task": ("root", "cache"),
    "trainer": (
        "accelerator",
        "default_root_dir",
        "devices",
        "enable_progress_bar",
        "limit_test_batches",  # the test is repeated without training again
        "log_every_n_steps",
        "num_nodes",
        "profiler",
        "strategy",
    ),
}
"""Settings that do not change what is trained: places, devices, and what is shown."""

_OBSERVERS = (
    "pytorch_lightning.callbacks.LearningRateMonitor",
    "pytorch_lightning.callbacks.DeviceStatsMonitor",
)
_ACTING_MODULES = ("checkpointing", "overfit")


def _is_observer(target: str) -> bool:
    """Return whether a callback only shows a run. A callback of a user counts as acting."""
    package, _, module = target.rpartition(".")[0].rpartition(".")
    is_ours = package == "spatial_transformer.callbacks"
    return target in _OBSERVERS or (is_ours and module not in _ACTING_MODULES)


def acting_callbacks(config: dict[str, Any]) -> dict[str, Any]:
    """Return the callbacks that change the result, without the directory that they write to."""
    found = {}
    for name, node in config["callbacks"].items():
        if node is None or not _is_observer(node["_target_"]):
            found[name] = node and {key: value for key, value in node.items() if key != "dirpath"}
    return found


def training_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that change what is trained, by their dotted names.

    Paths in the run directory are relative to it, as it may be moved.
    """
    settings = _flatten({**config, "callbacks": acting_callbacks(config)}, "")
    place = f"{config['run_dir']}/"
    return {n: v.removeprefix(place) if isinstance(v, str) else v for n, v in settings}


def fingerprint(config: dict[str, Any], data: str) -> dict[str, str]:
    """Return the fingerprint of a run.

    Args:
        config: the resolved configuration.
        data: digest of the content of the data, which does not depend on its directory.

    Raises:
        OSError: a file that the weights start from cannot be read.
    """
    files = [config["ckpt_path"]] if config["ckpt_path"] not in (None, "auto") else []
    weights = config["model"].get("weights")
    if isinstance(weights, str) and Path(weights).expanduser().is_file():
        files.append(Path(weights).expanduser())
    text = json.dumps(training_settings(config), sort_keys=True)
    return {
        "settings": _digest(text.encode()),
        "data": data,
        "start": _digest(b"".join(Path(file).read_bytes() for file in files)) if files else "",
    }


def first_difference(saved: dict[str, Any], config: dict[str, Any]) -> str:
    """Return the first training setting in which two configurations differ; "" if there is none."""
    there, here = training_settings(saved), training_settings(config)
    for name in sorted(there.keys() | here.keys()):
        values = [json.dumps(s[name]) if name in s else "not set" for s in (there, here)]
        if values[0] != values[1]:
            return f"{name} is {values[0]} there and {values[1]} here"
    return ""


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _flatten(node: dict[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if key in IGNORED.get(path, ()):
            continue
        name = f"{path}.{key}" if path else key
        if isinstance(value, dict):
            yield from _flatten(value, name)
        else:
            yield name, value

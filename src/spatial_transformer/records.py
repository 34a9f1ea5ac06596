"""Records of finished runs: reading and adding them, and how their settings differ from the configuration's."""

from __future__ import annotations

import argparse
import copy
import functools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .config import composed
from .errors import UsageError
from .files import free_path, write_json
from .run_folder import read_record, recorded_settings

_NOT_COMPARED = (
    "_partial_",
    "defaults",
    "distortion",
    "digit",
    "eval_batch_size",
    "size",
    "species",
    "max_steps",
    "root",
    "workers",
    "resident",
)


def read_records(folder: Path) -> list[dict[str, Any]]:
    """All records below ``folder``.

    Raises:
        UsageError: a file is not a record.
    """
    return [read_record(path) for path in sorted(folder.rglob("*.json"))]


def read_rows(path: Path) -> dict[str, Any]:
    """A record of measurements, those of ``scripts/slopes.py`` and ``scripts/benchmark.py``: a list of ``rows``, and more.

    Raises:
        UsageError: the file is no such record.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or not all(isinstance(row, dict) for row in record["rows"]):
            raise ValueError("it has no rows")
        return record
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise UsageError(f"{path} is not a record of measurements: {reason}.\nWay out: remove it, or measure again.") from error


def write_rows(record: dict[str, Any], folder: Path) -> Path:
    """Write such a record, of a run, to the ``folder`` of its kind; return its path. Earlier ones of this run stay."""
    target = folder / f"{record['label']}-{record['steps']}.json"
    if target.exists():
        target = free_path(target)
    write_json(record, target)
    return target


def measured(about: str, measure: Callable[[Path, str | None], dict[str, Any]], folder: Path) -> None:
    """The command line of a script that measures a finished run, and writes such a record of it.

    Args:
        about: what ``--help`` says.
        measure: from the run and the folder of its data, None where the run had it, to the record.
        folder: that of records of this kind.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER", help="or a file of checkpoints/")
    parser.add_argument("--data-root", help="folder that holds MNIST/raw, if not where the run had it")
    options = parser.parse_args()
    try:
        record = measure(options.run, options.data_root)
    except UsageError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{write_rows(record, folder)}; `make tables` shows it")


def add_record(run: Path, results: Path, into: str | None = None) -> Path:
    """Copies the record of a finished run to its place below ``results``; returns that.

    Args:
        run: the run's folder.
        results: the folder of all records.
        into: the record's folder in it; None is its experiment's.

    Raises:
        UsageError: the run has no record or a damaged one, or its place is taken by another result.
    """
    source = run / "metrics.json"
    if not source.is_file():
        raise UsageError(f"{run} has no metrics.json: it is not a run folder, or the run has not finished.")
    record = read_record(source)
    target = results / (into or record["experiment"]) / f"{record['label']}-{record['steps']}.json"
    if target.is_file() and read_record(target) != record:
        holder = "a run with other settings" if _settings_differ(read_record(target), record) else "an earlier run of it"
        raise UsageError(
            f"{target} holds the result of {holder}, and no result is overwritten. Use --into FOLDER to keep both, or set "
            "label=NAME for the run."
        )
    for path in target.parent.glob("*.json"):
        other = read_record(path)
        options = ("model", "transform", "recipe", "seed", "steps")
        if path != target and all(other[name] == record[name] for name in options) and not _settings_differ(other, record):
            raise UsageError(f"{path} is the same run under another label: its seed would count twice. Way out: one of them.")
    write_json(record, target)
    return target


def _settings_differ(one: dict[str, Any], other: dict[str, Any]) -> bool:
    groups = one["config"].keys() & other["config"].keys()  # the trainer's were not always kept
    all_of = [flattened({group: record["config"][group] or {} for group in groups}, without=()) for record in (one, other)]
    # Data that lay elsewhere may be other data, a part of it say.
    return bool(differing(*all_of)) or any(one.get(name) != other.get(name) for name in ("precision", "samples"))


def is_standard(record: dict[str, Any], conf: Path) -> bool:
    """Whether a run had the settings that its options have in the folder ``conf``, but for distortion, seed and length.

    Ablations, and runs of a recipe that has changed since, are not what a table calls by the option's name.
    """
    return not other_settings(record, conf)


def other_settings(record: dict[str, Any], conf: Path) -> list[str]:
    """What of a run's settings its options do not have in the folder ``conf``, each as ``name=value``."""
    expected = standard_settings(record, conf)
    settings = flattened({group: record["config"][group] or {} for group in expected})
    return [f"{name}={settings.get(name)}" for name in differing(flattened(expected), settings)]


def options_of(record: dict[str, Any], conf: Path) -> dict[str, Any]:
    """The options of ``train.py`` that a run had, but for its seed and :func:`other_settings`."""
    groups = {group: record[group] for group in ("experiment", "model", "transform", "recipe")}
    data = {f"data.{name}": record["config"]["data"].get(name) for name in ("distortion", "digit", "size", "species")}
    options = groups | {name: value for name, value in data.items() if value is not None}
    trainer = _composed(conf, *_chosen(record)).trainer
    had = {"max_steps": record["steps"], "precision": record["precision"]}
    return options | {f"trainer.{name}": value for name, value in had.items() if value != trainer[name]}


def differing(expected: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """Names of the settings that are not as expected. One that a run did not know yet was off."""
    return [name for name in expected | settings if (settings.get(name) or None) != (expected.get(name) or None)]


def standard_settings(record: dict[str, Any], conf: Path) -> dict[str, Any]:
    """The settings of a record's options as the files in ``conf`` have them."""
    whole = copy.deepcopy(_composed(conf, *_chosen(record)))
    whole.seed, whole.trainer.max_steps = record["seed"], record["steps"]
    settings = recorded_settings(whole)
    # Records of before the trainer's settings were kept lack them.
    return {group: of_group for group, of_group in settings.items() if of_group and group in record["config"]}


def _chosen(record: dict[str, Any]) -> list[str]:
    return [f"{group}={record[group]}" for group in ("experiment", "model", "transform", "recipe") if record[group] != "none"]


_composed = functools.cache(composed)


def flattened(settings: dict[str, Any], before: str = "", without: Iterable[str] = _NOT_COMPARED) -> dict[str, Any]:
    """Settings by their dotted names, but for those that a record need not share with a file."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= flattened(value, f"{before}{name}.", without)
        elif name == "_target_":
            flat[before + name] = value.rpartition(".")[2]  # whatever module it has moved to
        elif name not in without:
            flat[before + name] = value
    return flat

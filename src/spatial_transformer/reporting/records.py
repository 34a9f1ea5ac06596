"""Read, add and compare result files.

A result file may come from somebody else, so nothing in it is evaluated: it is read by ``json``,
its names must be plain words before they become options, and so must its label before it becomes
a file name.
"""

from __future__ import annotations

import copy
import functools
import json
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from ..training.config import compose_config
from ..training.result import is_file_name, read_result, result_settings
from ..utils.errors import UsageError
from ..utils.files import free_path, write_json

_GROUPS = ("experiment", "model", "transform", "recipe")
_NOT_COMPARED = (
    "distortion",
    "digit",
    "eval_batch_size",
    "size",
    "species",
    "max_steps",
    "workers",
    "resident",
)


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Return the results in all files below ``folder``.

    Raises:
        UsageError: a file is not the result of a run.
    """
    return [read_result(path) for path in sorted(folder.rglob("*.json"))]


def read_measurements(path: Path) -> dict[str, Any]:
    """Return a file of measurements, such as those in ``results/slopes``. It has ``rows``.

    Raises:
        UsageError: the file is damaged.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or not isinstance(record.get("rows"), list):
            raise ValueError("it has no rows")
        if not all(isinstance(row, dict) for row in record["rows"]):
            raise ValueError("a row is not a mapping")
        return record
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not a file of measurements: {error}.") from error


def write_measurements(record: dict[str, Any], folder: Path) -> Path:
    """Write measurements of a run to ``folder``, next to earlier ones of the same run.

    Returns:
        The path of the file.

    Raises:
        UsageError: the label of the run is not a file name.
    """
    if not is_file_name(record["label"]):
        raise UsageError(f"label must be printable and without slashes, got {record['label']!r}.")
    target = folder / f"{record['label']}-{int(record['steps'])}.json"
    if target.exists():
        target = free_path(target)
    write_json(record, target)
    return target


def measurement_cli(
    description: str,
    measure: Callable[..., dict[str, Any]],
    folder: Path,
    samples: int | None = None,
) -> None:
    """Run the command line of a script that measures a finished run and writes the measurements.

    Args:
        description: text of ``--help``.
        measure: called with the run and the keyword ``data_root``; returns the measurements.
        folder: directory of measurements of this kind.
        samples: default of ``--samples``, another keyword of ``measure``; None if it has none.
    """
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_DIRECTORY", help="or a file of checkpoints/")
    parser.add_argument("--data-root", help="directory of the data; default: the one of the run")
    if samples is not None:
        help_text = f"number of test samples, evenly spread (default: {samples})"
        parser.add_argument("--samples", type=int, default=samples, help=help_text)
    options = vars(parser.parse_args())
    try:
        target = write_measurements(measure(options.pop("run"), **options), folder)
    except (UsageError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    print(f"Wrote {target}. Run `make tables` to update the documents.")


def add_record(run: Path, results: Path, conf: Path, into: str | None = None) -> Path:
    """Copy the result file of a finished run to ``results``.

    Args:
        run: the run directory.
        results: directory of all results.
        conf: directory of the configuration, which must have the options of the run.
        into: subdirectory for the file; None for one named after the experiment.

    Returns:
        The path of the copy.

    Raises:
        UsageError: the result is missing or damaged, its options are not in ``conf``, the copy
            would be outside ``results``, or another result has this name.
    """
    source = run / "metrics.json"
    if not source.is_file():
        raise UsageError(f"{run} is not the directory of a finished run: metrics.json is missing.")
    record = read_result(source)
    standard_settings(record, conf)  # or no table could be made with it
    target = results / (into or record["experiment"]) / f"{record['label']}-{record['steps']}.json"
    if not target.resolve().is_relative_to(results.resolve()):
        raise UsageError(f"Results must be inside {results}, got --into={into}.")
    if target.is_file() and read_result(target) != record:
        is_other = _settings_differ(read_result(target), record)
        holder = "a run with other settings" if is_other else "an earlier run of it"
        raise UsageError(
            f"{target} holds the result of {holder}, and no result is overwritten. "
            "Use --into DIRECTORY to keep both, or set label=NAME for the run."
        )
    options = ("model", "transform", "recipe", "seed", "steps")
    for path in target.parent.glob("*.json"):
        other = read_result(path)
        is_same = all(other[name] == record[name] for name in options)
        if path != target and is_same and not _settings_differ(other, record):
            reason = "is the same run under another label: its seed would count twice"
            raise UsageError(f"{path} {reason}. Keep one of them.")
    write_json(record, target)
    return target


def _settings_differ(one: dict[str, Any], other: dict[str, Any]) -> bool:
    # Old results lack the settings of the trainer.
    groups = one["config"].keys() & other["config"].keys()
    settings = []
    for record in (one, other):
        config = {group: record["config"][group] or {} for group in groups}
        settings.append(flatten(config, exclude=()))
    if any(one.get(name) != other.get(name) for name in ("precision", "samples")):
        return True  # another number of samples: data.root held other data
    return bool(diff_keys(*settings))


def matches_config(record: dict[str, Any], conf: Path) -> bool:
    """Return whether a run had the settings that its options have in ``conf``.

    Distortion, seed and length may differ. Ablations do not match, nor do runs of a recipe that
    has changed since. The paper's tables leave them out.

    Args:
        record: the result of the run.
        conf: directory of the configuration.
    """
    return not changed_settings(record, conf)


def changed_settings(record: dict[str, Any], conf: Path) -> list[str]:
    """Return the settings of a run that differ from its options in ``conf``, as ``name=value``."""
    expected = standard_settings(record, conf)
    settings = flatten({group: record["config"][group] or {} for group in expected})
    return [f"{name}={settings.get(name)}" for name in diff_keys(flatten(expected), settings)]


def overrides_for(record: dict[str, Any], conf: Path) -> dict[str, Any]:
    """Return the options of ``train.py`` for a run, but for seed and :func:`changed_settings`."""
    groups = {group: record[group] for group in _GROUPS}
    names = ("distortion", "digit", "size", "species")
    data = {f"data.{name}": record["config"]["data"].get(name) for name in names}
    options = groups | {name: value for name, value in data.items() if value is not None}
    trainer = _compose(conf, _options(record)).trainer
    used = {"max_steps": record["steps"], "precision": record["precision"]}
    changed = {name: value for name, value in used.items() if value != trainer[name]}
    return options | {f"trainer.{name}": value for name, value in changed.items()}


def has_standard_length(record: dict[str, Any], conf: Path) -> bool:
    """Return whether a run had the length and the precision that its options have in ``conf``."""
    trainer = _compose(conf, _options(record)).trainer
    return (record["steps"], record["precision"]) == (trainer.max_steps, trainer.precision)


def recipe_steps(record: dict[str, Any], conf: Path) -> int:
    """Return the number of steps that the options of a run have in ``conf``."""
    return _compose(conf, _options(record)).trainer.max_steps


def diff_keys(expected: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """Return the names of settings that differ. A missing setting counts as switched off."""
    names = expected | settings
    return [name for name in names if (settings.get(name) or None) != (expected.get(name) or None)]


def standard_settings(record: dict[str, Any], conf: Path) -> dict[str, Any]:
    """Return the settings that the options of a run have in ``conf``."""
    settings = _settings(conf, _options(record), record["seed"], record["steps"])
    # Old results lack the trainer's settings.
    return {group: part for group, part in settings.items() if part and group in record["config"]}


def _options(record: dict[str, Any]) -> tuple[str, ...]:
    return tuple(f"{group}={record[group]}" for group in _GROUPS)


@functools.cache
def _settings(conf: Path, options: tuple[str, ...], seed: int, steps: int) -> dict[str, Any]:
    config = copy.deepcopy(_compose(conf, options))
    config.seed, config.trainer.max_steps, config.run_dir = seed, steps, "."
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return result_settings(plain)


@functools.cache
def _compose(conf: Path, options: tuple[str, ...]) -> DictConfig:
    try:
        return compose_config(conf, *options)
    except HydraException as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"{' '.join(options)} is not in {conf.name}/: {reason}") from error


def flatten(
    settings: dict[str, Any],
    prefix: str = "",
    exclude: Iterable[str] = _NOT_COMPARED,
) -> dict[str, Any]:
    """Return nested settings by dotted name, without the keys in ``exclude``."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.", exclude)
        elif name == "_target_":
            flat[prefix + name] = str(value).rpartition(".")[2]  # its module may have moved
        elif name not in exclude:
            flat[prefix + name] = value
    return flat

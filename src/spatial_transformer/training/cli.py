"""The entry points: Hydra programs that report configuration errors in one short message."""

from __future__ import annotations

import functools
import inspect
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

import spatial_transformer.training.config  # noqa: F401  registers the schemas

from ..utils.directories import remove_unused_run_dir
from ..utils.errors import Stopped, UsageError, did_you_mean
from ..utils.process import PipeTolerantStream, local_rank, rank
from .signals import StopSignals

Function = Callable[[DictConfig], Any]


def entry_point(name: str, *positional: str) -> Callable[[Function], Callable[[], None]]:
    """Return a decorator that makes a Hydra program of a function.

    A wrong configuration ends the program with one message and exit code 1, and leaves no run
    directory behind. Other errors keep their traceback. Modules in the working directory can be
    imported, and ``~`` at the start of a value is the home directory.

    Args:
        name: of its configuration file in ``conf``, which is next to the program.
        positional: settings that may be given by position, before all others.
    """

    def decorate(function: Function) -> Callable[[], None]:
        conf = Path(inspect.getfile(function)).absolute().parent / "conf"
        groups = conf if name == "train" else None
        is_short = is_started = False

        @functools.wraps(function)
        def job(config: DictConfig) -> Any:
            nonlocal is_started
            is_started = True
            hydra_config = HydraConfig.get()
            if not is_short or hydra_config.mode == RunMode.MULTIRUN:
                return function(config)
            try:
                with _short_messages(groups):  # before Hydra prints a line
                    return function(config)
            finally:
                remove_unused_run_dir(Path(hydra_config.runtime.output_dir))

        def main() -> None:
            nonlocal is_short, is_started
            is_started = False
            is_short = os.environ.get("HYDRA_FULL_ERROR", "0") in ("", "0")
            sys.path.append(os.getcwd())
            home = os.path.expanduser("~")
            words = [re.sub(r"(?<==)([\"']?)~(?=/)", rf"\1{home}", word) for word in sys.argv[1:]]
            words = _name_positional(words, positional)
            # Hydra's parser expects options before settings.
            sys.argv[1:] = sorted(words, key=lambda word: word not in ("-m", "--multirun"))
            program = hydra.main(version_base="1.3", config_path=str(conf), config_name=name)(job)
            if not is_short:
                return program()
            sys.stdout = PipeTolerantStream(sys.stdout)  # type: ignore[assignment]
            sys.stderr = PipeTolerantStream(sys.stderr)  # type: ignore[assignment]
            with (
                tempfile.TemporaryDirectory() as scratch,
                _short_messages(groups),
                StopSignals("Run the same command again."),
            ):
                _check_srun()
                _check_groups(sys.argv[1:], conf)
                if rank() > 0:  # only the first process has a run directory
                    sys.argv.append(f"hydra.run.dir={scratch}")
                os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise instead of exit
                try:
                    program()
                except HydraException:
                    raise  # also where it is an OSError
                except OSError as error:
                    is_known = HydraConfig.initialized()
                    if is_started or (is_known and HydraConfig.get().mode == RunMode.MULTIRUN):
                        raise
                    raise UsageError(f"The run directory cannot be created: {error}.") from error
                finally:
                    os.environ["HYDRA_FULL_ERROR"] = ""

        return main

    return decorate


@contextmanager
def _short_messages(groups: Path | None) -> Iterator[None]:
    try:
        yield
    except Stopped as stop:
        _print_error(str(stop))
        sys.exit(stop.code)
    except KeyboardInterrupt:
        sys.exit(130)
    except (UsageError, HydraException, OmegaConfBaseException) as error:
        if local_rank() == 0:
            _print_error(f"Error: {explain(error, groups)}")
            print("(HYDRA_FULL_ERROR=1 shows the traceback)", file=sys.stderr)
        else:
            time.sleep(5)  # torchrun would end the first process before it has reported the error
        sys.exit(1)


def _print_error(text: str) -> None:
    """Print to standard error, and to ``train.log`` if it can be written to."""
    print(f"\n{text}", file=sys.stderr)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            with suppress(OSError):
                handler.emit(logging.makeLogRecord({"msg": text}))


def _check_srun() -> None:
    """Refuse to wait for processes that SLURM has not started."""
    tasks = int(os.environ.get("SLURM_NTASKS") or 1)
    is_interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    is_srun = {"SLURM_STEP_ID", "SLURM_NTASKS_PER_NODE"} <= os.environ.keys()
    if tasks > 1 and not is_srun and not is_interactive and "TORCHELASTIC_RUN_ID" not in os.environ:
        raise UsageError(
            f"SLURM has reserved {tasks} tasks for one process. Set #SBATCH --ntasks-per-node to "
            "the number of devices and start the program by srun, or set #SBATCH --ntasks=1."
        )


def _name_positional(words: list[str], names: Sequence[str]) -> list[str]:
    """Return a command line with leading values written as ``name="value"``."""
    words = list(words)
    for n, (word, name) in enumerate(zip(words, names)):
        if word.startswith("-") or re.match(r"[+~]?[A-Za-z_][\w.]*=", word):
            break
        words[n] = f"{name}={QuotedString(word, Quote.double).with_quotes()}"
    return words


def _check_groups(words: list[str], conf: Path) -> None:
    """Refuse ``logger=null`` and ``--experiment mnist``, which Hydra answers with a traceback."""
    for n, word in enumerate(words):
        group, _, value = word.partition("=")
        if group.startswith("--") and (conf / group[2:]).is_dir():
            value = value or "".join(words[n + 1 : n + 2]) or "NAME"
            raise UsageError(f"{group} is not an option. Write {group[2:]}={value}.")
        if value == "null" and (conf / group).is_dir():
            options = [path.stem for path in (conf / group).glob("*.yaml")]
            raise UsageError(f"{word} does not exist.{did_you_mean(value, options)}")


def explain(error: Exception, groups: Path | None) -> str:
    """Return the message for a configuration error.

    Args:
        error: of Hydra or OmegaConf, or a UsageError.
        groups: directory of the groups of options, None if the program has none.
    """
    text = str(error).strip()
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} must be set: {error.full_key}=VALUE."
    if isinstance(error, OmegaConfBaseException):
        return f"{error.full_key or 'configuration'}: {text.splitlines()[0]}."
    if isinstance(error, OverrideParseException):
        word = error.override
        key, equals, value = word.partition("=")
        if equals:
            return f"{word} cannot be parsed. Quote the value: '{key}=\"{value}\"'."
        return f"{word} is not a setting. Write NAME=VALUE."
    if found := re.search(r"Could not find '([^'\n]+)/([^/'\n]+)'", text):
        options = re.findall(r"^\t(\S+)", text.partition("Config search path")[0], re.M)
        return f"{found[1]}={found[2]} does not exist.{did_you_mean(found[2], options)}"
    if found := re.search(r"Could not override '[+~]*([^'@]+)", text):
        cause: Any = error.__cause__  # knows the part of the configuration that lacks the key
        key, node = (found[1], None) if cause is None else (str(cause.key), cause.parent_node)
        if key in found[1].split("."):  # else a part of its value is wrong
            names = [str(name) for name in node or ()]
            if key == found[1] and groups:
                names += [path.name for path in groups.iterdir() if path.is_dir()]
            hint = did_you_mean(key, names)
            if "_target_" in names:
                hint += f" Use {text.rpartition('use ')[2]} for an argument that is not set yet."
            return f"There is no setting or group {found[1]}.{hint}"
    if isinstance(error.__cause__, OmegaConfBaseException):
        text = text.removeprefix("Error merging override ")
        return f"{text}: {str(error.__cause__).splitlines()[0]}."
    return text

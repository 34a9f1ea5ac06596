"""The entry points: Hydra programs that report configuration errors in one short message."""

from __future__ import annotations

import functools
import inspect
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..utils.errors import Stopped, UsageError, did_you_mean
from ..utils.process import PipeTolerantStream, local_rank, rank
from .config import compose_config
from .signals import StopSignals

Function = Callable[[DictConfig], Any]


def entry_point(name: str, *positional: str) -> Callable[[Function], Callable[[], None]]:
    """Return a decorator that makes a Hydra program of a function.

    A wrong configuration ends the program with one message and exit code 1. Other errors keep
    their traceback. Modules in the working directory can be imported.

    Args:
        name: of its configuration file in ``conf``, which is next to the program.
        positional: settings that may be given by position, before all others.
    """

    def decorate(function: Function) -> Callable[[], None]:
        conf = Path(inspect.getfile(function)).absolute().parent / "conf"
        state = {"shortens": False, "started": False}

        @functools.wraps(function)
        def job(config: DictConfig) -> Any:
            state["started"] = True
            if not state["shortens"] or HydraConfig.get().mode == RunMode.MULTIRUN:
                return function(config)
            with _short_messages(conf, name):  # before Hydra prints a line of its own
                if missing := sorted(OmegaConf.missing_keys(config)):
                    settings = " ".join(f"{key}=VALUE" for key in missing)
                    raise UsageError(f"{', '.join(missing)} must be set: {settings}.")
                return function(config)

        def main() -> None:
            sys.path.append(os.getcwd())
            program = hydra.main(version_base="1.3", config_path=str(conf), config_name=name)(job)
            full = os.environ.get("HYDRA_FULL_ERROR", "")
            state.update(shortens=full in ("", "0"), started=False)
            if not state["shortens"]:
                return program()
            sys.stdout = PipeTolerantStream(sys.stdout)  # type: ignore[assignment]
            sys.stderr = PipeTolerantStream(sys.stderr)  # type: ignore[assignment]
            with (
                tempfile.TemporaryDirectory() as scratch,
                _short_messages(conf, name),
                StopSignals("Run the same command again."),
            ):
                _check_srun()
                sys.argv[1:] = _name_positional(sys.argv[1:], positional)
                _check_words(sys.argv[1:], conf)
                if rank() > 0:  # only the first process has a run directory
                    sys.argv.append(f"hydra.run.dir={scratch}")
                os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise instead of exit
                try:
                    program()
                except (OSError, ValueError) as error:  # of the directory, or of a log file in it
                    if state["started"] or isinstance(error, HydraException):
                        raise
                    raise UsageError(
                        f"{error.__cause__ or error}. Choose another hydra.run.dir."
                    ) from error
                finally:
                    os.environ["HYDRA_FULL_ERROR"] = full

        return main

    return decorate


@contextmanager
def _short_messages(conf: Path, name: str) -> Iterator[None]:
    try:
        yield
    except Stopped as stop:
        print(f"\n{stop}", file=sys.stderr)
        sys.exit(stop.code)
    except KeyboardInterrupt:
        sys.exit(130)
    except (UsageError, HydraException, OmegaConfBaseException) as error:
        if local_rank() == 0:
            text = (
                f"\nError: {message(error, conf, name)}\n(HYDRA_FULL_ERROR=1 shows the traceback)"
            )
            print(text, file=sys.stderr)
        sys.exit(1)


def _check_srun() -> None:
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


def _check_words(words: list[str], conf: Path) -> None:
    """Refuse what Hydra would answer with a traceback."""
    groups = {path.name: path for path in conf.iterdir() if path.is_dir()}
    for word, following in zip(words, [*words[1:], ""]):
        key, equals, value = word.lstrip("-+").partition("=")
        if word.startswith("--") and key.partition(".")[0] in {"seed", *groups}:
            raise UsageError(f"Settings have no dashes: {key}={value or following}.")
        if equals and key in groups and re.fullmatch(r"|null|true|false|[\d.]+", value):
            options = [path.stem for path in groups[key].glob("*.yaml")]
            raise UsageError(f"{key}={value} does not exist.{did_you_mean(value, options)}")


def message(error: Exception, conf: Path, name: str) -> str:
    """Return the message for a configuration error."""
    text = str(error).strip()
    if isinstance(error, OmegaConfBaseException):
        return f"{error.full_key or 'configuration'}: {text.splitlines()[0]}."
    if isinstance(error, OverrideParseException):
        word = error.override
        key, equals, value = word.partition("=")
        if equals:
            return f"{word} cannot be parsed. Quote the value: '{key}=\"{value}\"'."
        files = sorted(conf.glob(f"*/{Path(word).name}.yaml"))
        options = [f"{file.parent.name}={word}" for file in files]
        hint = f"Did you mean {' or '.join(options)}?" if options else "Write NAME=VALUE."
        return f"{word} is not a setting. {hint}"
    if found := re.search(r"Could not find '([^'\n]+)/([^/'\n]+)'", text):
        options = re.findall(r"^\t(\S+)", text.partition("Config search path")[0], re.M)
        return f"{found[1]}={found[2]} does not exist.{did_you_mean(found[2], options)}"
    if found := re.search(r"Could not override '[+~]*([^'@]+)", text):
        hint = did_you_mean(found[1], _setting_names(conf, name, found[1]))
        return f"There is no setting or group {found[1]}.{hint}"
    if isinstance(error.__cause__, OmegaConfBaseException):
        text = text.removeprefix("Error merging override ")
        return f"{text}: {str(error.__cause__).splitlines()[0]}."
    return text


def _setting_names(conf: Path, program: str, name: str) -> list[str]:
    """Return all groups and dotted settings; if any ends as ``name`` does, only those."""
    if program == "train":
        names = [path.name for path in conf.iterdir() if path.is_dir()]
        config = compose_config(conf)
    else:
        names = []
        config = ConfigStore.instance().load(f"spatial_transformer_{program}.yaml").node
    nodes: dict[str, Any] = {"": OmegaConf.to_container(config)}
    while nodes:
        prefix, node = nodes.popitem()
        names += [prefix + key for key in node if key != "_target_"]
        nodes |= {f"{prefix}{key}.": value for key, value in node.items() if type(value) is dict}
    return [known for known in names if known.endswith(f".{name.rpartition('.')[2]}")] or names

"""The figures of a run as a CSV file."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from ..errors import UsageError
from ..files import replacing


class MetricsTable(Logger):
    """Keeps ``metrics.csv``: a row for each time that something was logged, a column for each figure, and the step.

    The file is replaced as a whole, so it can be read at any time. A run that goes on cuts it back to the rows that its
    checkpoint knows, so that none is there twice. (Lightning's own logger begins anew.)

    Args:
        path: the file.
        every: rows between two writings; it is also written with every checkpoint.
    """

    def __init__(self, path: str | Path, every: int = 10) -> None:
        super().__init__()
        self.path = Path(path)
        self.every = every
        self.rows: list[dict[str, Any]] = []

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run folder's ``config.yaml`` has them."""

    @rank_zero_only
    def go_on(self, rows: int) -> None:
        """Takes the first rows of the file for those before this run.

        Raises:
            UsageError: the file is damaged.
        """
        self.rows = []
        if rows and self.path.exists():
            try:
                self.rows = _read(self.path, rows)
            except (OSError, ValueError, csv.Error) as error:
                raise UsageError(
                    f"{self.path} is damaged: {error}.\nWay out: remove it, and the run goes on with a table that begins "
                    "where it was stopped; or ckpt_path=null starts it anew."
                ) from error

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append({"step": step, **{name: float(value) for name, value in metrics.items()}})
        if len(self.rows) % self.every == 0:
            self.save()

    @rank_zero_only
    def save(self, durable: bool = False) -> None:
        """Writes the file; ``durable``: to the disk."""
        if not self.rows:
            return
        columns = ["step", *sorted(set().union(*self.rows) - {"step"})]
        with replacing(self.path, durable) as path, path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)

    def finalize(self, status: str) -> None:
        self.save()


def _read(path: Path, rows: int) -> list[dict[str, Any]]:
    """The first rows of a table, as they were logged but for being text.

    Raises:
        OSError, ValueError, csv.Error: the file cannot be read, or is not such a table.
    """
    with path.open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file, restkey="", restval=None))[:rows]
    if len(found) < rows:
        raise ValueError(f"it has {len(found):,} of {rows:,} rows")
    for number, row in enumerate(found, 1):
        if "" in row or None in row.values() or not (row.get("step") or "").isdigit():
            raise ValueError(f"row {number:,} has not a step and a value or nothing for each column")
        for value in row.values():
            float(value or 0)
    return [{name: value for name, value in row.items() if value != ""} for row in found]

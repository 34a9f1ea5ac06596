"""The metrics of a run as a CSV file."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from ..utils.errors import UsageError
from ..utils.files import atomic_write


class MetricsCSV(Logger):
    """Append a row for each logged dict to ``metrics.csv``, with a column for each metric.

    A resumed run cuts the file to the rows that its checkpoint knows, so that no row is repeated.
    (Lightning's ``CSVLogger`` deletes the file.) A new metric rewrites it with one more column.

    Args:
        path: the file.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self._columns: list[str] = []
        self._count = 0

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Log nothing: the run directory has ``config.yaml``."""

    @rank_zero_only
    def resume(self, rows: int) -> None:
        """Cut the file to its first rows.

        Raises:
            UsageError: the file is damaged.
        """
        try:
            kept = self.read()[:rows]
            if len(kept) < rows:
                raise ValueError(f"it has {len(kept):,} of {rows:,} rows")
        except (OSError, ValueError, csv.Error) as error:
            raise UsageError(
                f"{self.path} is damaged: {error}.\n"
                "Restore it, or use ckpt_path=null to start over."
            ) from error
        self._rewrite(kept, durable=True)

    def read(self) -> list[dict[str, str]]:
        """Return the complete rows of the file, without empty cells.

        Raises:
            OSError, ValueError, csv.Error: the file cannot be read, or is not such a table.
        """
        if not self.path.exists():
            return []
        text = self.path.read_text(encoding="utf-8")
        complete = text[: text.rfind("\n") + 1]  # a killed process may leave a part of a row
        rows = []
        for n, row in enumerate(csv.DictReader(complete.splitlines(), restkey="", restval=None), 1):
            if "" in row or None in row.values() or not (row.get("step") or "").isdigit():
                raise ValueError(f"row {n:,} is incomplete")
            for value in row.values():
                float(value or 0)
            rows.append({name: value for name, value in row.items() if value != ""})
        return rows

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = {"step": step, **{name: float(value) for name, value in metrics.items()}}
        if row.keys() <= set(self._columns):
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns).writerow(row)
            self._count += 1
        else:
            self._rewrite([*(self.read() if self._count else []), row])

    @rank_zero_only
    def sync(self) -> int:
        """Wait until all rows are on the disk, and return their number."""
        if self._count:
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
        return self._count

    def _rewrite(self, rows: list[dict[str, Any]], durable: bool = False) -> None:
        names = {name for row in rows for name in row}
        self._columns = sorted(names, key=lambda name: (name != "step", name))
        self._count = len(rows)
        if not rows:
            return
        with (
            atomic_write(self.path, durable) as path,
            path.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)

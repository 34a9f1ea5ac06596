"""What a W&B file holds, read back with W&B's own messages."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

_BLOCK = 32 * 1024  # the file is LevelDB's log format: records in pieces, none across two blocks
_FULL, _LAST = 1, 4


def records(file: Path) -> Iterator[Record]:
    """The whole records of a .wandb file, in order; one that is not all there yet is left out."""
    data = file.read_bytes()
    assert data[:4] == b":W&B"
    place, pieces = 7, b""
    while place + 7 <= len(data):
        room = _BLOCK - place % _BLOCK
        if room < 7:
            place += room
            continue
        length, kind = struct.unpack_from("<4xHB", data, place)
        if kind == 0 or place + 7 + length > len(data):
            return
        pieces += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (_FULL, _LAST):
            yield Record.FromString(pieces)
            pieces = b""


def rows(file: Path) -> list[dict[str, Any]]:
    """Every logged row: its keys and values."""
    return [
        {
            item.key or "/".join(item.nested_key): json.loads(item.value_json)
            for item in record.history.item
        }
        for record in records(file)
        if record.HasField("history")
    ]


def ended(file: Path) -> bool:
    """Whether W&B's own process has written the end of the file; on a busy machine it does so a little after the run."""
    return any(record.HasField("exit") for record in records(file))


def newest(folder: Path) -> Path:
    """The last file of a run folder, when W&B's own process has ended it."""
    file = max(
        (folder / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime
    )
    end = time.monotonic() + 60
    while not ended(file):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
    return file


def config(file: Path) -> dict[str, Any]:
    """The run's configuration."""
    return {
        item.key: json.loads(item.value_json)
        for record in records(file)
        if record.HasField("config")
        for item in record.config.update
    }


def summary(file: Path) -> dict[str, Any]:
    """The run's summary at its end."""
    return {
        item.key or "/".join(item.nested_key): json.loads(item.value_json)
        for record in records(file)
        if record.HasField("summary")
        for item in record.summary.update
    }


def messages(file: Path, kind: str) -> list[Any]:
    """Of one kind all: "run", "metric", "artifact" or "exit"."""
    return [getattr(record, kind) for record in records(file) if record.HasField(kind)]

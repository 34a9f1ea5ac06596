"""Read W&B files with W&B's own messages."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

_BLOCK = 32 * 1024  # the file is a log of LevelDB: records in pieces, none across two blocks
_FULL, _LAST = 1, 4


def records(file: Path) -> Iterator[Record]:
    """Yield the complete records of a .wandb file, in order."""
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
    """Return all logged rows."""
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row.item}
        for row in messages(file, "history")
    ]


def newest(folder: Path) -> Path:
    """Return the last file of a run directory, once the process of W&B has completed it."""
    files = (folder / "wandb").glob("offline-run-*/*.wandb")
    file = max(files, key=lambda path: path.stat().st_mtime)
    end = time.monotonic() + 60
    while not messages(file, "exit"):
        assert time.monotonic() < end, "the file is not completed"
        time.sleep(0.1)
    return file


def config(file: Path) -> dict[str, Any]:
    """Return the configuration of the run."""
    updates = [item for message in messages(file, "config") for item in message.update]
    return {item.key: json.loads(item.value_json) for item in updates}


def summary(file: Path) -> dict[str, Any]:
    """Return the summary at the end of the run."""
    updates = [item for message in messages(file, "summary") for item in message.update]
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in updates}


def messages(file: Path, kind: str) -> list[Any]:
    """Return all messages of a kind, such as "run", "metric", "artifact" or "exit"."""
    return [getattr(record, kind) for record in records(file) if record.HasField(kind)]

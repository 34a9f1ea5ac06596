"""Files of tensors and plain values, written atomically and read only if they are intact."""

from __future__ import annotations

import pickle
import re
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from .files import atomic_write


def save_tensors(content: Any, path: Path, durable: bool = False, keep: Path | None = None) -> None:
    """Write what :func:`load_tensors` reads. The file is complete or absent at any time.

    Args:
        content: tensors and plain values.
        path: the file.
        durable: as for :func:`~spatial_transformer.utils.files.atomic_write`.
        keep: where an earlier file at ``path`` is moved to.

    Raises:
        ValueError: the content has other values.
        OSError: the file cannot be written.
    """
    buffer = BytesIO()  # torch reports a full disk as an error of its own format
    torch.save(content, buffer)
    buffer.seek(0)
    if others := torch.serialization.get_unsafe_globals_in_checkpoint(buffer):
        names = ", ".join(sorted(others)[:3])
        raise ValueError(f"only tensors and plain values can be saved, got {names}")
    with atomic_write(path, durable, keep) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load_tensors(path: Path) -> Any:
    """Return the contents of a file, on the CPU. Nothing in it is executed.

    Raises:
        ValueError: the file cannot be read, is damaged, or holds anything else.
    """
    try:
        if zipfile.is_zipfile(path):  # torch does not verify checksums: a flipped bit would pass
            with zipfile.ZipFile(path) as parts:
                damaged = parts.testzip()
            if damaged is not None:
                raise OSError(f"the checksum of {damaged} is wrong")
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(str(error)) from error
    except Exception as error:  # torch, zip and pickle have many errors for damaged files
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and wanted:
            raise ValueError(
                f"it asks for {wanted[1]}, which is not a tensor; nothing was run"
            ) from error
        reason = str(error).partition("\n")[0].partition(". ")[0]
        message = f"it is damaged or not written by torch.save ({type(error).__name__}: {reason})"
        raise ValueError(message) from error

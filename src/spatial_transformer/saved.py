"""What ``torch.save`` writes: whole or not there, and read back whole, and never more than tensors and plain values."""

from __future__ import annotations

import pickle
import re
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from .files import replacing


def save(content: Any, path: Path, durable: bool = False) -> None:
    """Writes what :func:`load_saved` reads. The file is whole or not there.

    Args:
        content: tensors and plain values.
        path: the file.
        durable: as for :func:`~spatial_transformer.files.replacing`.

    Raises:
        OSError: it cannot be written.
    """
    buffer = BytesIO()  # torch tells a full disk as an error of its own format
    torch.save(content, buffer)
    with replacing(path, durable) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load_saved(path: Path) -> Any:
    """The contents of a file, on the CPU. Nothing in it is executed, whoever made it.

    Raises:
        ValueError: it cannot be read, is damaged, or holds other things than tensors and plain values.
    """
    try:
        if zipfile.is_zipfile(path):  # all but the oldest; torch does not prove their checksums, so a flipped bit would pass
            with zipfile.ZipFile(path) as parts:
                damaged = parts.testzip()
            if damaged is not None:
                raise OSError(f"it is damaged: the checksum of {damaged} is wrong")
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(str(error)) from error
    except Exception as error:  # damaged in as many ways as torch, zip and pickle have errors
        asked = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and asked:
            raise ValueError(f"it asks for {asked[1]}, which tensors and plain values do not need; nothing was run") from error
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise ValueError(f"it is damaged, or not what torch.save writes ({type(error).__name__}: {reason})") from error

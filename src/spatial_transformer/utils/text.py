"""Convert text to forms that are safe on a terminal, in a spreadsheet and in a shell."""

from __future__ import annotations

import re
import shlex


def printable(text: str) -> str:
    r"""Escape characters that a terminal would act on, and bytes that are not text.

    Different texts stay different: a backslash is escaped, too.

    >>> print(printable("a\x1b[31mb\n"))
    a\x1b[31mb\n
    """
    return "".join(c if c.isprintable() and c != "\\" else _escape(c) for c in text)


def one_line(message: object) -> str:
    """Return a message or an error as one printable line."""
    return printable(" ".join(str(message).split()))


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def csv_cell(text: str) -> str:
    """Return text that no spreadsheet takes for a formula: one that begins like it gets a quote."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def quote_override(name: str, value: object) -> str:
    """Return a setting as it can be pasted into a shell: ``name=value``, quoted where necessary."""
    text = str(value)
    if not re.fullmatch(r"[A-Za-z0-9_./:+-]+", text):  # or Hydra would parse it
        text = '"' + text.replace('"', '\\"') + '"'
    return shlex.quote(f"{name}={text}")

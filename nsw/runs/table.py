"""Tables and colours for a terminal."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import TextIO

_COLOURS = {"green": "32", "red": "31", "yellow": "33", "bold": "1", "dim": "2"}
_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


def coloured(text: str, colour: str, stream: TextIO | None = None) -> str:
    """Return the text in colour when the stream is a terminal that wants it (NO_COLOR is respected)."""
    stream = stream or sys.stdout
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if stream.isatty() and not os.environ.get("NO_COLOR") else text


def short(value: float) -> str:
    """Return a number in four digits, and thousands as whole numbers.

    >>> short(27.12345), short(19867.858), short(0.00021)
    ('27.12', '19,868', '0.00021')
    """
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in aligned columns; cells may hold colours.

    >>> print(text_table(["name", "s"], [["nerf", "3"], ["dvgo", "12"]]))
    name  s
    ----  --
    nerf  3
    dvgo  12
    """
    lengths = [[len(_ESCAPE.sub("", cell)) for cell in row] for row in [head, *rows]]
    widths = [max(column) for column in zip(*lengths, strict=True)]
    lines = []
    for row, length in zip([head, *rows], lengths, strict=True):
        padded = (cell + " " * (width - n) for cell, width, n in zip(row, widths, length, strict=True))
        lines.append("  ".join(padded).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)

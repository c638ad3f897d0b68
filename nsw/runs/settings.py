"""Presets: one row a setting, one column a preset."""

from __future__ import annotations

import html
from types import SimpleNamespace
from typing import Any

from nsw.errors import InputError

PRESETS = ("smoke", "laptop", "gpu")


def check_preset(preset: Any) -> str:
    """Return the preset's name.

    Raises:
        InputError: naming the three presets.

    >>> check_preset("laptop")
    'laptop'
    """
    if preset not in PRESETS:
        raise InputError(f'Unknown preset "{preset}": expected "smoke", "laptop" or "gpu".')
    return preset


def check_seed(seed: Any) -> int:
    """Return the seed, a whole number from 0 to 2^32 - 1."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise InputError(f"The seed is {seed!r}: expected a whole number from 0 to {2**32 - 1}.")
    return seed


def column(name: str, values: Any, preset: str) -> Any:
    """Return the preset's entry of a (smoke, laptop, gpu) row.

    >>> column("n_steps", (100, 2000, 30000), "laptop")
    2000
    """
    if not isinstance(values, tuple | list) or len(values) != len(PRESETS):
        raise InputError(f"The setting {name} is {values!r}: expected three values (smoke, laptop, gpu).")
    return values[PRESETS.index(preset)]


class Settings(SimpleNamespace):
    """The chosen column; shown as the whole table with that column marked."""

    def __init__(self, preset: str, rows: dict[str, Any]) -> None:
        super().__init__(**{name: column(name, values, preset) for name, values in rows.items()})
        object.__setattr__(self, "_table", (preset, rows))

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"Settings do not change after the start: edit the row {name} of the table and run the cell again.")

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._table[1]}

    def __repr__(self) -> str:
        preset, rows = self._table
        head = ["", *(f"[{p}]" if p == preset else p for p in PRESETS)]
        body = [[name, *(str(v) for v in values)] for name, values in rows.items()]
        widths = [max(len(row[i]) for row in [head, *body]) for i in range(4)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [head, *body]
        )

    def _repr_html_(self) -> str:
        preset, rows = self._table

        def cell(tag: str, text: Any, active: bool) -> str:
            style = "text-align:left;" + ("font-weight:600;background:rgba(0,114,178,.14);" if active else "opacity:.75;")
            return f'<{tag} style="{style}">{html.escape(str(text))}</{tag}>'

        head = "".join(cell("th", f"{p} (this run)" if p == preset else p, p == preset) for p in PRESETS)
        body = "".join(
            f'<tr><th scope="row" style="text-align:left">{html.escape(name)}</th>'
            + "".join(cell("td", v, p == preset) for p, v in zip(PRESETS, values, strict=True))
            + "</tr>"
            for name, values in rows.items()
        )
        return f'<table><thead><tr><th style="text-align:left">setting</th>{head}</tr></thead><tbody>{body}</tbody></table>'

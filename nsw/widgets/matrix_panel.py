"""A matrix of measurements whose entries are clicked: each shows what it was measured on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nsw.errors import InputError
from nsw.widgets import pictures
from nsw.widgets.frontend import live

CELL = (110, 56)  # width and height of an entry in pixels


def matrix(
    draw: Callable[..., Any],
    values: Mapping[str, Mapping[str, float]],
    alt: str,
    notes: Mapping[str, Mapping[str, str]] | None = None,
    axes: tuple[str, str] = ("teacher", "student"),
    unit: str = "",
) -> None:
    """Show {row: {column: number}} as a heat map, and below it what `draw(row, column)` returns for the entry that is chosen.

    An entry is chosen by a click, with the arrow keys or in one of two lists.

    Args:
        draw: called with the names in `axes` as keywords; returns a picture, or {title: picture} to stand side by side.
        notes: a second line for every entry.
        axes: what the rows and the columns are.
    """
    pictures.need_alt(alt)
    rows, columns = list(values), list(next(iter(values.values()), {}))
    if not columns or any(list(row) != columns for row in values.values()):
        raise InputError("matrix() expects {row: {column: number}} with the same columns in every row, at least one.")
    start = (0, min(1, len(columns) - 1))
    sheet = heat_sheet(values, notes, axes, unit)

    def shown(**chosen):
        return _side_by_side(draw(**chosen), sheet.shape[1])

    first = shown(**dict(zip(axes, (rows[start[0]], columns[start[1]]), strict=True)))
    box = _live(shown, first, sheet, (rows, columns), axes, start, alt) if live() else None
    caption = f"{axes[0]} {rows[start[0]]}, {axes[1]} {columns[start[1]]}"
    pictures.emit_picture(np.concatenate([_marked(sheet, start), first]), alt, caption, box)


def heat_sheet(
    values: Mapping[str, Mapping[str, float]], notes: Mapping[str, Mapping[str, str]] | None, axes: tuple[str, str], unit: str = ""
) -> np.ndarray:
    """Return the heat map [H, W, 3] with names in its first row and column, and numbers in its entries."""
    from PIL import Image, ImageDraw, ImageFont

    from nsw.renderers.heat_colours import coloured

    rows, columns = list(values), list(next(iter(values.values())))
    numbers = np.array([[values[r][c] for c in columns] for r in rows], dtype=np.float64)
    colours = coloured(numbers, float(np.nanmin(numbers)), float(np.nanmax(numbers)))
    sheet = Image.new("RGB", (CELL[0] * (len(columns) + 1), CELL[1] * (len(rows) + 1)), "white")
    pen, large, small = ImageDraw.Draw(sheet), ImageFont.load_default(16), ImageFont.load_default(13)

    def write(i, j, text, font, ink, dy=0):
        return pen.text(((j + 0.5) * CELL[0], (i + 0.5) * CELL[1] + dy), pictures.drawable(text), ink, font, anchor="mm")

    write(0, 0, f"{axes[0]} \\ {axes[1]}", small, "black")
    for j, name in enumerate(columns):
        write(0, j + 1, name, large, "black")
    for i, row in enumerate(rows):
        write(i + 1, 0, row, large, "black")
        for j, column in enumerate(columns):
            colour = tuple(int(v) for v in colours[i, j])
            ink = "white" if sum(colour) < 380 else "black"
            left, top = (j + 1) * CELL[0], (i + 1) * CELL[1]
            pen.rectangle((left, top, left + CELL[0] - 1, top + CELL[1] - 1), fill=colour)
            write(i + 1, j + 1, f"{numbers[i, j]:.3g} {unit}".rstrip(), large, ink, -8 if notes else 0)
            if notes:
                write(i + 1, j + 1, notes[row][column], small, ink, 13)
    return np.asarray(sheet)


def _marked(sheet: np.ndarray, at: tuple[int, int]) -> np.ndarray:
    """Return the heat map with a frame around an entry, as the live one has it."""
    from PIL import Image, ImageDraw

    picture = Image.fromarray(sheet)
    left, top = (at[1] + 1) * CELL[0], (at[0] + 1) * CELL[1]
    for inset, ink in ((0, "black"), (2, "white")):
        box = (left + inset, top + inset, left + CELL[0] - 1 - inset, top + CELL[1] - 1 - inset)
        ImageDraw.Draw(picture).rectangle(box, outline=ink, width=2)
    return np.asarray(picture)


def _side_by_side(drawn: Any, width: int, gap: int = 10) -> np.ndarray:
    """Return a picture, or titled pictures in a row, as wide as the heat map."""
    if not isinstance(drawn, Mapping):
        return pictures.enlarged(pictures.to_array(drawn), width)
    room = (width - gap * (len(drawn) - 1)) // len(drawn)
    row = pictures.contact_sheet({t: pictures.enlarged(pictures.to_array(p), room) for t, p in drawn.items()}, len(drawn), gap)
    full = np.full((row.shape[0] + gap, width, 3), 255, dtype=np.uint8)
    full[gap:, : row.shape[1]] = row
    return full


def _live(shown: Callable[..., Any], first: Any, sheet: np.ndarray, names: Any, axes: tuple[str, str], start: Any, alt: str):
    """Return the box of heat map, lists and pictures; heat map and lists follow each other."""
    import ipywidgets

    from nsw.widgets.picture_widget import PixelPicker
    from nsw.widgets.slider_panel import _Panel

    lists = [ipywidgets.Dropdown(options=n, value=n[k], description=a) for n, k, a in zip(names, start, axes, strict=True)]
    panel = _Panel(shown, dict(zip(axes, lists, strict=True)), first, alt, False)
    size = dict(rows=len(names[0]) + 1, columns=len(names[1]) + 1, css_width=sheet.shape[1])
    picker = PixelPicker(png=pictures.png_bytes(sheet), alt=f"{alt} Rows are {axes[0]}s.", picked=[k + 1 for k in start], **size)

    def clicked(change: Any) -> None:
        for one, at in zip(lists, change["new"], strict=True):
            one.index = max(at - 1, 0)  # a click on a name chooses the first entry

    def listed(_: Any) -> None:
        picker.picked = [one.index + 1 for one in lists]

    picker.observe(clicked, names="picked")
    for one in lists:
        one.observe(listed, names="index")
    panel.box.children = (picker, *panel.box.children)
    return panel.box

"""Several maps of one number per pixel side by side, under one colour scale, each with its title and its mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nsw.renderers.heat_colours import coloured
from nsw.widgets import heatmaps, pictures


def heats(maps: Mapping[str, Any], alt: str, unit: str = "", low: float | None = 0.0, high: float | None = None) -> None:
    """Show maps [H, W] of one number in one scale, and below each its title and the mean over its finite pixels.

    Args:
        maps: title -> tensor or array; NaN is drawn grey ("no value").
        alt: one sentence for all.
        unit: of the numbers, in the titles and beside the bar.
        low, high: of the scale; None takes the finite minimum and maximum of all maps.
    """
    arrays = {name: np.asarray(each.detach().cpu() if hasattr(each, "detach") else each, np.float64) for name, each in maps.items()}
    low, high = heatmaps.scale(list(arrays.values()), low, high)
    room = (heatmaps.ROOM - 10 * (len(arrays) - 1)) // len(arrays)
    tiles = {}
    for name, array in arrays.items():
        finite = array[np.isfinite(array)]
        told = f"{name}: mean {finite.mean():.3g} {unit}".rstrip() if finite.size else name
        tiles[told] = pictures.enlarged(coloured(array, low, high), pictures.shown_width(array.shape[1], room))
    sheet = pictures.contact_sheet(tiles, len(tiles))
    heatmaps.emit_scaled(sheet, sheet.shape[1], low, high, unit, "", alt)

"""A picture beside bars for the numbers that were measured in it; drawn anew with every move of a slider."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from nsw.widgets import pictures
from nsw.widgets.charts import COLOURS


def gauged(picture: Any, values: Mapping[str, float], title: str = "", side: int = 200) -> np.ndarray:
    """Return a picture and, to its right, an upright bar a value, full at 1 and empty at 0, under titles that hold the numbers.

    Args:
        picture: anything `pictures.to_array` takes.
        values: name -> number; what lies outside [0, 1] fills the bar or leaves it empty, and its number says so.
        side: height in pixels of what is returned, titles aside.

    Returns:
        uint8 [H, W, 3].

    >>> gauged(np.ones((4, 4)), {"seam left": 0.5}, side=40).shape[2]
    3
    """
    from PIL import ImageColor

    array = pictures.to_array(picture)
    tiles = {title: pictures.enlarged(array, round(side * array.shape[1] / array.shape[0]), side)}
    for (name, value), colour in zip(values.items(), (COLOURS[1], COLOURS[0], *COLOURS[2:]), strict=False):
        bar = np.full((side, side // 2, 3), 236, np.uint8)
        bar[side - round(side * min(max(value, 0.0), 1.0)) :] = ImageColor.getrgb(colour)
        tiles[f"{name} {value:.2f}"] = bar
    return pictures.contact_sheet(tiles, len(tiles))


def gauged_rows(rows: Iterable[tuple[Any, Mapping[str, float], str]]) -> np.ndarray:
    """Return several `gauged` below each other, each from its picture, values and title; pictures and bars are equally many."""
    return np.concatenate([gauged(*row) for row in rows])

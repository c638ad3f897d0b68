"""A palette as a strip of colours, over pictures whose pixels are sorted into its bins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nsw.widgets import pictures

OPENED, IDLE = (213, 94, 0), (120, 120, 120)


def palette_panel(
    shown: Mapping[str, Any], colours: Any, shares: Any, opened: int, idle: Any, expired: int, side: int = 150
) -> np.ndarray:
    """Return pictures in a row, and below them the palette: a bar as wide as its share of the votes for each bin.

    An orange mark stands under a bin that the last batch opened, a grey one under a bin that it gave no vote.

    Args:
        shown: title -> picture (anything `pictures.to_array` takes), all of one size.
        colours: [P, 3] in [0, 1]; shares: of the votes [P]; idle: batches without votes [P].
        opened: how many of the last bins are new; expired: how many have gone so far.
        side: height of the pictures in pixels.

    Returns:
        uint8 [H, W, 3].

    >>> palette_panel({"a": np.ones((4, 4))}, np.eye(3), np.full(3, 1 / 3), 1, np.zeros(3), 0, side=40).shape[2]
    3
    """
    arrays = {name: pictures.to_array(picture) for name, picture in shown.items()}
    tiles = {name: pictures.enlarged(a, round(side * a.shape[1] / a.shape[0]), side) for name, a in arrays.items()}
    row = pictures.contact_sheet(tiles, len(tiles))
    colours, shares, idle = (np.asarray(values, dtype=float) for values in (colours, shares, idle))
    order = np.argsort(-shares, kind="stable")
    edges = _edges(shares[order], row.shape[1])
    strip = np.full((64, row.shape[1], 3), 255, np.uint8)
    for bin_, low, high in zip(order, edges[:-1], edges[1:], strict=True):
        strip[:48, low:high] = np.clip(colours[bin_] * 255, 0, 255).round()
        mark = OPENED if bin_ >= len(shares) - opened else IDLE if idle[bin_] > 0 else None
        if mark:
            strip[52:62, low : max(high - 1, low + 1)] = mark
    told = f"{len(shares)} bins, wide as their votes. Orange: {opened} new in this batch. Grey: no votes in it. Expired: {expired}"
    return np.concatenate([row, pictures.contact_sheet({told: strip}, 1)])


def _edges(shares: np.ndarray, width: int, least: int = 6) -> np.ndarray:
    """Return where bars begin and end: at least `least` pixels each, what is left of the width by share."""
    least = min(least, width // max(len(shares), 1))
    lengths = least + (width - least * len(shares)) * shares / max(shares.sum(), 1e-9)
    return np.concatenate([[0], np.cumsum(lengths).round().astype(int)])

"""Numbers as colours: the cividis scale, which colour-blind readers can read; dark blue is low, yellow is high."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

# Ten evenly spaced colours of cividis (Nunez, Anderton and Renslow 2018), as plotly has them.
ANCHORS = ("00224e", "123570", "3b496c", "575d6d", "707173", "8a8678", "a59c74", "c3b369", "e1cc55", "fee838")


@cache
def cividis() -> np.ndarray:
    """Return the 256 colours of the cividis scale, uint8 [256, 3]."""
    anchors = np.array([list(bytes.fromhex(colour)) for colour in ANCHORS], dtype=np.float64)
    at = np.linspace(0, len(anchors) - 1, 256)
    return np.stack([np.interp(at, np.arange(len(anchors)), anchors[:, i]) for i in range(3)], -1).round().astype(np.uint8)


def coloured(values: Any, low: float, high: float) -> np.ndarray:
    """Return a map [H, W] as uint8 colours [H, W, 3]; values outside [low, high] take its ends, NaN is grey.

    >>> coloured([[0.0, 2.0, float("nan")]], 0.0, 1.0).tolist()
    [[[0, 34, 78], [254, 232, 56], [160, 160, 160]]]
    """
    values = values.detach().cpu() if hasattr(values, "detach") else values
    values = np.asarray(values, dtype=np.float64)
    unit = np.clip((np.nan_to_num(values, nan=low) - low) / max(high - low, 1e-300), 0, 1)
    out = cividis()[(unit * 255 + 0.5).astype(np.int64)]
    out[np.isnan(values)] = 160
    return out

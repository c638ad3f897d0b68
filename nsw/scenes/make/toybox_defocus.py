"""Toybox through a wide-open lens: training views each focused at a depth of their own, sharp test views, white behind."""

from __future__ import annotations

import numpy as np

from nsw.scenes.exposures import Exposure
from nsw.scenes.make.describe import Description
from nsw.scenes.make.toybox_motion import photographed

APERTURE = 0.4  # radius of the lens; what lies 1 behind or before the focus becomes a disc of about 10 pixels in 112


def describe(size: int = 112, views: int | None = None, seed: int = 0) -> Description:
    """Return the scene: 26 training views focused on z from 3.1 to 4.9, and 8 sharp test views, around toybox."""
    focus = lambda rng: Exposure(aperture=APERTURE, focus=round(float(rng.uniform(3.1, 4.9)), 4))  # noqa: E731
    return photographed("toybox_defocus", focus, size, views, np.random.default_rng(seed + 1), seed)

"""Toybox from a shaking hand: every training view has a path of its own, test views are sharp, white behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from nsw.scenes.exposures import Exposure
from nsw.scenes.make import toybox
from nsw.scenes.make.describe import Description, looking, spiral_dome, split_views, thinned

LENGTH = 0.085  # half the way of the camera, world units: a path of about 7 pixels in 112


def describe(size: int = 112, views: int | None = None, seed: int = 0) -> Description:
    """Return the scene: 26 training views, each a curve of its own in the picture plane with a small turn, 8 sharp test views."""
    return photographed("toybox_motion", shake, size, views, np.random.default_rng(seed + 1), seed)


def shake(rng: np.random.Generator) -> Exposure:
    """Return a path in a random direction with a bend, moving by 0.7 to 1.3 times `LENGTH`, and turning a little."""
    a, bend = rng.uniform(0, 2 * np.pi), rng.uniform(-0.6, 0.6)
    length = LENGTH * rng.uniform(0.7, 1.3)
    along, across = np.array([np.cos(a), np.sin(a), 0.0]), np.array([-np.sin(a), np.cos(a), 0.0])
    rounded = lambda v: tuple(round(float(x), 5) for x in v)  # noqa: E731
    turn = 0.12 * length * rng.standard_normal((2, 3))
    return Exposure(shift=(rounded(length * along), rounded(length * bend * across)), turn=(rounded(turn[0]), rounded(turn[1])))


def photographed(
    name: str, expose: Callable[[np.random.Generator], Exposure], size: int, views: int | None, rng: np.random.Generator, seed: int
) -> Description:
    """Return toybox before a white wall, its training views exposed by `expose`; light is averaged, then made display sRGB."""
    counts = thinned(views, train=26, test=8)
    domes = ((8, 75, 0), (14, 62, 20))
    eyes = np.concatenate(
        [spiral_dome(n, low, high, 4.0, turn) for n, (low, high, turn) in zip(counts.values(), domes, strict=True)]
    )
    split = split_views(**counts)
    return replace(
        toybox.describe(size, seed=seed),
        name=name,
        cameras=looking(eyes, np.zeros(3), 32.0, size, size),
        views=split,
        exposures=[expose(rng) if which == "train" else Exposure() for which, _ in split],
        transparent=False,
        backdrop=1.0,
        maps=("depth",),
    )

"""Tea: a pewter tray that mirrors its lamps softly, a chequered pot, a cup and a wire stand with thin legs; no sky behind them.

Made for what changes with the viewer and for what is thin: the tray's highlights slide as the camera moves, and its surface
is flat, so no picture painted behind it could stand in for them.
"""

from __future__ import annotations

import numpy as np

from nsw.scenes.make import textures as tx
from nsw.scenes.make.describe import Description, Material, Things, looking, spiral_dome, split_views, thinned
from nsw.scenes.make.shapes import ball, disc, joined, placed, ring, rod, tube, turned

FLOOR = -0.40  # the tray's upper side
PORCELAIN, INK, BRASS = tx.colour("#f3eee2"), tx.colour("#2a5a8c"), (0.90, 0.72, 0.42)


def describe(size: int = 100, views: int | None = None, seed: int = 0) -> Description:
    """Return the scene; views (36 train, 4 val, 12 test) lie on a dome of radius 4 around the origin."""
    rng = np.random.default_rng(seed)
    things = Things()
    _tray(things)
    _pot(things)
    _cup(things, rng)
    _stand(things, rng)
    counts = thinned(views, train=36, val=4, test=12)
    domes = ((12, 70, 0), (18, 56, 50), (16, 62, 20))
    eyes = np.concatenate(
        [spiral_dome(n, low, high, 4.0, turn) for n, (low, high, turn) in zip(counts.values(), domes, strict=True)]
    )
    lamps = [(35, 46, 14, (26, 24, 21)), (155, 36, 14, (8, 9, 11)), (270, 42, 14, (14, 11, 8))]
    return Description(
        name="tea",
        items=things.items,
        id_names=things.names,
        id_classes=things.classes,
        cameras=looking(eyes, np.zeros(3), 33.0, size, size),
        views=split_views(**counts),
        aabb=np.array([[-1.05, -1.05, -0.55], [1.05, 1.05, 0.55]]),
        near=2.3,
        far=5.7,
        sky=tx.sky(lamps, (0.35, 0.45, 0.62), (0.62, 0.60, 0.56), (0.30, 0.27, 0.24)),
        transparent=True,
        max_depth=5,
        exposure=0.42,
        maps=("depth", "normals", "ids"),
    )


def _tray(things: Things) -> None:
    pewter = Material((0.62, 0.60, 0.57), "metal", 0.22)
    rim = Material(tx.colour("#3a2318"), "gloss", 0.2)
    edge = turned([(0.0, -0.08), (0.95, -0.08), (1.0, -0.05), (1.02, 0.05), (0.99, 0.055), (0.96, 0.0)], 96)
    things.add("tray", "tray", (placed(disc(0.965, 96), (0, 0, FLOOR)), pewter))
    things.add("rim", "tray", (placed(edge, (0, 0, FLOOR)), rim))


def _pot(things: Things) -> None:
    at = np.array([-0.28, 0.20, FLOOR])
    glaze = Material(tx.checks(PORCELAIN, INK, 8), "gloss", 0.12)
    plain, metal = Material(INK, "gloss", 0.12), Material(BRASS, "metal", 0.18)
    heights = np.linspace(0, 1, 24)
    body = [(0.20 + 0.16 * np.sin(np.pi * (0.12 + 0.78 * t)) ** 0.9 - 0.10 * t * t, 0.02 + 0.46 * t) for t in heights]
    lid = [(0.0, 0.0), (0.16, 0.0), (0.155, 0.03), (0.10, 0.065), (0.0, 0.085)]
    spout = tube([at + (0.26 + 0.24 * t, -0.10 - 0.10 * t, 0.17 + 0.26 * t * t) for t in np.linspace(0, 1, 10)], 0.045)
    angles = np.linspace(-1.15, 1.15, 16)
    handle = tube([at + (-0.27 - 0.19 * np.cos(a), 0.12 + 0.08 * np.cos(a), 0.26 + 0.15 * np.sin(a)) for a in angles], 0.028)
    foot = turned([(0.0, 0.0), (0.22, 0.0), (0.21, 0.03)], 48)
    things.add(
        "pot",
        "vessel",
        (placed(turned(body, 64, smooth=True), at), glaze),
        (joined([placed(foot, at), spout, handle, placed(turned(lid, 48), at + (0, 0, 0.475))]), plain),
        (placed(ball(0.045, 24), at + (0, 0, 0.60)), metal),
    )


def _cup(things: Things, rng: np.random.Generator) -> None:
    at = (0.45, -0.42, FLOOR)
    bowl = [(0.0, 0.03), (0.10, 0.03), (0.15, 0.08), (0.19, 0.20), (0.20, 0.26)]
    bowl += [(0.185, 0.26), (0.17, 0.20), (0.13, 0.10), (0.0, 0.09)]  # and down again inside
    saucer = [(0.0, 0.0), (0.16, 0.0), (0.29, 0.045), (0.28, 0.055), (0.15, 0.025), (0.0, 0.025)]
    white, band = Material(PORCELAIN, "gloss", 0.15), Material(INK, "gloss", 0.15)
    tea = Material(tx.colour("#8a4a14"), "gloss", 0.1)
    parts = joined([placed(turned(bowl, 48), at), placed(turned(saucer, 48), at)])
    things.add("cup", "vessel", (parts, white), (placed(ring(0.193, 0.01), (at[0], at[1], FLOOR + 0.255)), band))
    things.add("tea", "vessel", (placed(disc(0.183, 48), (at[0], at[1], FLOOR + 0.23)), tea))
    grain = Material(tx.wood(rng, 256, (0.86, 0.66, 0.42), (0.62, 0.40, 0.22), rings=7))
    things.add("wooden ball", "ball", (placed(ball(0.13), (-0.35, -0.52, FLOOR + 0.13), 40, 20), grain))


def _stand(things: Things, rng: np.random.Generator) -> None:
    x, y, top = 0.50, 0.36, FLOOR + 0.52
    wire = Material(BRASS, "metal", 0.22)
    feet = [(x + 0.24 * np.cos(a), y + 0.24 * np.sin(a), FLOOR + 0.012) for a in np.radians([45, 135, 225, 315])]
    heads = [(x + 0.15 * np.cos(a), y + 0.15 * np.sin(a), top) for a in np.radians([45, 135, 225, 315])]
    legs = [rod(foot, head, 0.014) for foot, head in zip(feet, heads, strict=True)]
    hoops = [placed(ring(0.15, 0.014), (x, y, top)), placed(ring(0.20, 0.010), (x, y, FLOOR + 0.22))]
    things.add("wire stand", "stand", (joined([*legs, *hoops]), wire))
    grain = Material(tx.wood(rng, 256, (0.93, 0.78, 0.55), (0.74, 0.52, 0.32), rings=5))
    things.add("board", "stand", (placed(turned([(0.0, 0.0), (0.145, 0.0), (0.145, 0.03), (0.0, 0.03)], 48), (x, y, top)), grain))
    fruit = Material(tx.colour("#e2791f"), "matte")
    things.add("orange", "ball", (placed(ball(0.105), (x, y, top + 0.135)), fruit))

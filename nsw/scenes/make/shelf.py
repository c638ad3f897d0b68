"""Shelf: a bookshelf against a papered wall, seen from the front; every pixel has a surface."""

from __future__ import annotations

import numpy as np

from nsw.scenes.make import props
from nsw.scenes.make import textures as tx
from nsw.scenes.make.describe import Description, Material, Things, looking, split_views, thinned
from nsw.scenes.make.shapes import ball, block, joined, panel, placed, ring, rod, rotation, tube, turned

LEVELS = (-1.0, -0.28, 0.44)  # upper sides of the boards
WIDTH, DEPTH, BOARD = 2.5, 0.5, 0.05


def describe(size: int = 160, views: int | None = None, seed: int = 0) -> Description:
    """Return the scene; 24 train and 8 test cameras stand on a plane in front of it and look at its middle."""
    rng = np.random.default_rng(seed)
    things = Things()
    _wall(things, rng)
    _boards(things, rng)
    _low(things, rng)
    _middle(things, rng)
    _high(things, rng)
    counts = thinned(views, train=24, test=8)
    eyes = np.concatenate([_plane(rng, counts["train"], 0.75, 0.42), _plane(rng, counts["test"], 0.6, 0.32)])
    targets = np.stack([0.25 * eyes[:, 0], np.full(len(eyes), 0.2), 0.25 * eyes[:, 2] + 0.06], -1)
    lamps = [(-115, 42, 16, (30, 27, 23)), (-40, 18, 26, (3.0, 3.4, 4.0))]
    return Description(
        name="shelf",
        items=things.items,
        id_names=things.names,
        id_classes=things.classes,
        cameras=looking(eyes, targets, 56.0, size, round(size * 3 / 4)),
        views=split_views(**counts),
        aabb=np.array([[-2.5, -0.6, -1.9], [2.5, 0.6, 1.9]]),
        near=1.7,
        far=5.5,
        sky=tx.sky(lamps, (0.7, 0.7, 0.7), (0.75, 0.72, 0.68), (0.5, 0.44, 0.38)),
        max_depth=6,
        spp=24,
        exposure=0.38,
    )


def _plane(rng: np.random.Generator, n: int, half_width: float, half_height: float) -> np.ndarray:
    """Return eyes [n, 3] on a jittered grid in front of the shelf."""
    columns = int(np.ceil(np.sqrt(n * 1.5)))
    rows = -(-n // columns)
    i = np.arange(n)
    x = ((i % columns) + 0.5) / columns * 2 - 1 + rng.uniform(-0.1, 0.1, n)
    z = ((i // columns) + 0.5) / rows * 2 - 1 + rng.uniform(-0.1, 0.1, n)
    return np.stack([x * half_width, -2.95 + rng.uniform(-0.12, 0.12, n), z * half_height], -1)


def _wall(things: Things, rng: np.random.Generator) -> None:
    n = 256
    v, u = np.meshgrid(np.arange(n) / n, np.arange(n) / n, indexing="ij")
    base = tx.speckled(rng, tx.colour("#7fa39b"), 0.05, 8)
    motif = np.cos(4 * np.pi * u) * np.cos(4 * np.pi * v) + 0.35 * np.cos(12 * np.pi * u) * np.cos(12 * np.pi * v)
    paper = tx.blend(base, tx.colour("#a6c4b8"), np.clip((motif - 0.45) * 5, 0, 0.8)[..., None][..., 0])
    things.add("wall", "wall", (panel((-4, 0.5, -3), (8, 0, 0), (0, 0, 6), (10, 7.5)), Material(paper)))


def _boards(things: Things, rng: np.random.Generator) -> None:
    oak = Material(tx.wood(rng, 512, (0.78, 0.58, 0.37), (0.52, 0.34, 0.19), rings=9), "gloss", 0.35)
    parts = [placed(block((WIDTH, DEPTH, BOARD), 0.008), (0, 0.25, z - BOARD / 2)) for z in (*LEVELS, 1.2 + BOARD)]
    sides = [placed(placed(block((2.3, DEPTH, BOARD), 0.008), turn=0), (0, 0, 0)) for _ in range(2)]
    turned_sides = []
    for s, side in zip((-1, 1), sides, strict=True):
        R = rotation("y", 90)
        upright = type(side)(side.vertices @ R.T, side.normals @ R.T, side.uvs, side.faces)
        turned_sides.append(placed(upright, (s * (WIDTH / 2 + BOARD / 2), 0.25, 0.1)))
    things.add("shelf", "furniture", (joined([*parts, *turned_sides]), oak))


def _low(things: Things, rng: np.random.Generator) -> None:
    z = LEVELS[0]
    things.add("low books", "book", *props.book_row(rng, (-1.2, 0.06, z), 1.0, 0.56, 0.36))
    basket = tx.tiles(rng, (0.72, 0.53, 0.32), (0.36, 0.24, 0.14), (14, 28), shift=True, vary=0.2)
    wall = [(0, 0), (0.23, 0), (0.29, 0.34), (0.31, 0.36), (0.27, 0.36), (0.22, 0.03), (0, 0.03)]
    handle = tube([(0.14 + 0.27 * np.cos(a), 0.22, z + 0.33 + 0.24 * np.sin(a)) for a in np.linspace(0, np.pi, 24)], 0.014)
    things.add("basket", "pot", (placed(turned(wall), (0.14, 0.22, z)), Material(basket)), (handle, Material((0.45, 0.30, 0.17))))
    wool = [((0.05, 0.2, 0.36), 0.11, "#d9644a"), ((0.22, 0.27, 0.37), 0.1, "#e8c15a"), ((0.18, 0.13, 0.39), 0.085, "#5f8fb0")]
    stripes = [placed(ball(r), (x, y, z + h)) for (x, y, h), r, _ in wool]
    things.add(
        "wool",
        "ball",
        *[
            (m, Material(tx.stripes([tx.colour(c), tuple(0.8 * k for k in tx.colour(c))] * 9)))
            for m, (_, _, c) in zip(stripes, wool, strict=True)
        ],
    )
    things.add("copper pot", "pot", props.vase((0.72, 0.2, z), 0.42, Material((0.93, 0.58, 0.42), "metal", 0.22)))
    things.add("globe", "ball", *_globe(rng, (1.02, 0.22, z)))


def _globe(rng: np.random.Generator, at: tuple[float, float, float]) -> list[props.Part]:
    x, y, z = at
    land = tx.noise(rng, 128, 256, (3, 5), 5)
    chart = np.where(
        (land > 0.12)[..., None], tx.blend(tx.colour("#c9b36a"), tx.colour("#5d8a4e"), (land - 0.12) * 3), tx.colour("#3d7ea8")
    )
    brass = Material((0.85, 0.68, 0.38), "metal", 0.2)
    arc = tube([(x + 0.19 * np.cos(a), y, z + 0.30 + 0.19 * np.sin(a)) for a in np.linspace(-1.7, 1.9, 24)], 0.01)
    foot = placed(turned([(0, 0), (0.12, 0), (0.11, 0.02), (0.03, 0.03), (0.015, 0.12), (0, 0.12)], 48), at)
    return [(placed(ball(0.17), (x, y, z + 0.30), 40, 20), Material(chart, "gloss", 0.15)), (joined([arc, foot]), brass)]


def _middle(things: Things, rng: np.random.Generator) -> None:
    z = LEVELS[1]
    glaze = tx.stripes([tx.colour("#dcd4c2"), tx.colour("#dcd4c2"), tx.colour("#2f6f9f"), tx.colour("#dcd4c2")] * 2)
    things.add("striped vase", "pot", props.vase((-0.98, 0.22, z), 0.5, Material(np.swapaxes(glaze, 0, 1), "gloss", 0.1)))
    twigs = [
        tube([(-0.98 + s * t * t, 0.22 + d * t, z + 0.45 + 0.21 * t) for t in np.linspace(0, 1, 8)], 0.006)
        for s, d in ((-0.16, 0.03), (0.02, -0.05), (0.17, 0.02))
    ]
    things.add("twigs", "plant", (joined(twigs), Material((0.36, 0.25, 0.17))))
    things.add("middle books", "book", *props.book_row(rng, (-0.62, 0.08, z), 0.72, 0.5, 0.34))
    things.add("clock", "clock", *props.clock((0.42, 0.24, z + 0.23), 0.2))
    feet = [rod((0.42 + s * 0.1, 0.24, z), (0.42 + s * 0.07, 0.24, z + 0.06), 0.015) for s in (-1, 1)]
    things.add("clock", "clock", (joined(feet), Material((0.80, 0.62, 0.38), "metal", 0.2)))
    things.add("plant", "plant", *props.plant(rng, (0.93, 0.22, z), 0.52, Material(tx.colour("#d7d2c6"), "gloss", 0.2), 18))


def _high(things: Things, rng: np.random.Generator) -> None:
    z = LEVELS[2]
    x = -0.85
    for i, (thick, tint) in enumerate(((0.085, "#33558f"), (0.07, "#b23a33"), (0.06, "#e5b94e"))):
        cover = Material(tx.speckled(rng, tx.colour(tint), 0.1, 8), "gloss", 0.3)
        base = z + sum((0.085, 0.07, 0.06)[:i])
        things.add(
            "stacked books",
            "book",
            (placed(block((0.5 - 0.05 * i, 0.34, thick * 0.96), 0.008), (x, 0.24, base + thick / 2), 4 * i - 5), cover),
        )
    mug = Material(tx.checks(tx.colour("#f2efe6"), tx.colour("#d9644a"), 8), "gloss", 0.12)
    things.add("mug", "pot", *props.mug((x + 0.02, 0.22, z + 0.215), 0.2, mug, -40))
    things.add("picture", "picture", *props.framed(rng, (-0.2, 0.34, z + 0.31), 0.52, 0.4, 0))
    for name, at, h in (("tall candlestick", 0.34, 0.34), ("short candlestick", 0.52, 0.22)):
        stick = [
            (0, 0),
            (0.075, 0),
            (0.07, 0.015),
            (0.02, 0.03),
            (0.013, h * 0.5),
            (0.022, h * 0.55),
            (0.013, h * 0.6),
            (0.013, h),
            (0.04, h + 0.01),
            (0.03, h + 0.02),
            (0, h + 0.02),
        ]
        candle = placed(turned([(0, 0), (0.022, 0), (0.022, 0.17), (0.016, 0.175), (0, 0.175)]), (at, 0.2, z + h + 0.02))
        things.add(
            name,
            "candle",
            (placed(turned(stick, 48), (at, 0.2, z)), Material((0.90, 0.75, 0.42), "metal", 0.18)),
            (candle, Material(tx.colour("#ddd2ba"))),
        )
    things.add("high books", "book", *props.book_row(rng, (0.68, 0.08, z), 0.5, 0.54, 0.34))
    hoops = [placed(ring(0.1, 0.012), (0.38 + 0.09, 0.11, z + 0.012))]
    things.add("bangle", "ring", (joined(hoops), Material((0.75, 0.76, 0.80), "metal", 0.15)))

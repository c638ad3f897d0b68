"""Room: a furnished living room seen from inside, with a window, and a walk through it as a second evaluation path."""

from __future__ import annotations

import numpy as np

from nsw.scenes.make import props
from nsw.scenes.make import textures as tx
from nsw.scenes.make.describe import Description, Material, Things, looking, split_views, thinned
from nsw.scenes.make.shapes import ball, block, disc, joined, panel, placed, rod, surface, turned

X, Y, HEIGHT = 2.2, 1.8, 2.5  # walls at x = +-X and y = +-Y, floor at z = 0


def describe(size: int = 160, views: int | None = None, seed: int = 0) -> Description:
    """Return the scene: 24 training views, 6 test views and the 12 views of the path "walk"."""
    rng = np.random.default_rng(seed)
    things = Things()
    _shell(things, rng)
    _window(things)
    _seats(things, rng)
    _table(things, rng)
    _along_walls(things, rng)
    counts = thinned(views, train=24, test=6, walk=12)
    train, test, walk = _around(counts["train"], 0.0), _around(counts["test"], 0.31), _walk(counts["walk"])
    eyes, targets = (np.concatenate([train[i], test[i], walk[i]]) for i in (0, 1))
    return Description(
        name="room",
        items=things.items,
        id_names=things.names,
        id_classes=things.classes,
        cameras=looking(eyes, targets, 76.0, size, round(size * 3 / 4)),
        views=split_views(**counts),
        aabb=np.array([[-X - 0.2, -Y - 0.1, -0.1], [X + 0.1, Y + 0.1, HEIGHT + 0.1]]),
        near=0.25,
        far=6.5,
        max_depth=6,
        exposure=0.8,
        spp=24,
    )


def _around(n: int, phase: float) -> tuple[np.ndarray, np.ndarray]:
    """Return eyes on an ellipse inside the room and targets across it: every wall is seen from many places."""
    i = np.arange(n) + phase
    a = 2 * np.pi * i / n * 3  # three rounds, each at its own height and with its own side glance
    lap = (3 * i / n).astype(int) % 3
    eyes = np.stack([1.25 * np.cos(a), 0.75 * np.sin(a), np.choose(lap, [1.25, 1.6, 0.95])], -1)
    glance = a + np.pi + np.choose(lap, [0.0, 0.75, -0.75])
    targets = np.stack([2.0 * np.cos(glance), 1.6 * np.sin(glance), np.choose(lap, [0.85, 0.75, 0.95])], -1)
    return eyes, targets


def _walk(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a walk from the door past the table to the window, looking ahead and a little to the side."""
    t = np.linspace(0, 1, n)
    eyes = np.stack([1.5 - 2.5 * t, -0.95 + 0.5 * np.sin(np.pi * t), 1.45 + 0.04 * np.sin(6 * np.pi * t)], -1)
    targets = np.stack([0.3 - 2.3 * t, 0.9 - 0.3 * t, 0.8 + 0.1 * t], -1)
    return eyes, targets


def _shell(things: Things, rng: np.random.Generator) -> None:
    planks = Material(tx.wood(rng, 512, (0.74, 0.55, 0.36), (0.50, 0.33, 0.20), planks=10, rings=22), "gloss", 0.3)
    things.add("floor", "floor", (panel((-X, -Y, 0), (2 * X, 0, 0), (0, 2 * Y, 0), (2, 2)), planks))
    things.add("ceiling", "ceiling", (panel((-X, Y, HEIGHT), (2 * X, 0, 0), (0, -2 * Y, 0)), Material((0.93, 0.92, 0.90))))
    plaster = Material(tx.speckled(rng, tx.colour("#e3d8c6"), 0.03, 8))
    back = Material(_papered(rng))
    things.add("back wall", "wall", (panel((-X, Y, 0), (2 * X, 0, 0), (0, 0, HEIGHT), (8, 4.5)), back))
    things.add("front wall", "wall", (panel((X, -Y, 0), (-2 * X, 0, 0), (0, 0, HEIGHT)), plaster))
    things.add(
        "right wall",
        "wall",
        (panel((X, Y, 0), (0, -2 * Y, 0), (0, 0, HEIGHT)), Material(tx.speckled(rng, tx.colour("#c9785a"), 0.05, 8))),
    )
    # The left wall leaves an opening for the window.
    pieces = [(-Y, -0.75, 0, HEIGHT), (0.75, Y, 0, HEIGHT), (-0.75, 0.75, 0, 0.8), (-0.75, 0.75, 2.1, HEIGHT)]
    wall = joined([panel((-X, a, low), (0, b - a, 0), (0, 0, high - low)) for a, b, low, high in pieces])
    things.add("left wall", "wall", (wall, plaster))
    white = Material((0.90, 0.89, 0.86), "gloss", 0.3)
    skirting = [placed(block((2 * X, 0.03, 0.1), 0.008, 2), (0, s * (Y - 0.015), 0.05)) for s in (-1, 1)] + [
        placed(block((0.03, 2 * Y, 0.1), 0.008, 2), (s * (X - 0.015), 0, 0.05)) for s in (-1, 1)
    ]
    things.add("skirting", "wall", (joined(skirting), white))


def _papered(rng: np.random.Generator) -> np.ndarray:
    """Return wallpaper of two stripes and small leaves."""
    n = 256
    v, u = np.meshgrid(np.arange(n) / n, np.arange(n) / n, indexing="ij")
    out = tx.blend(tx.colour("#4f7a7a"), tx.colour("#466e70"), (u * 2 % 1 > 0.5).astype(float))
    for cx, cy, s in ((0.25, 0.25, 1), (0.75, 0.75, -1)):
        for lean in (-1, 1):
            x, y = u - cx - 0.05 * lean, v - cy
            blade = (x * 0.8 + s * lean * y * 0.6) ** 2 / 0.0012 + (y * 0.8 - s * lean * x * 0.6) ** 2 / 0.012
            out = tx.blend(out, tx.colour("#a9bf9c"), np.clip(3 * (1 - blade), 0, 1))
    return np.clip(out * (1 + 0.04 * tx.noise(rng, n, n, (8, 8), 4))[..., None], 0, 1)


def _window(things: Things) -> None:
    # What is outside is a picture made of light, not brighter than paper in the room, so that it is not all white.
    glow = panel((-X - 0.18, -0.75, 0.8), (0, 1.5, 0), (0, 0, 1.3))
    things.add("daylight", "light", (glow, Material((0.88, 1.12, 1.42), "light")))

    def hills(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        top = 0.36 + 0.10 * np.sin(7 * u + 0.6) + 0.03 * np.sin(23 * u)
        return np.stack([0 * u - X - 0.17, 1.5 * u - 0.75, 0.8 + v * top], -1)

    things.add("garden", "light", (surface(hills, 32, 1), Material((0.16, 0.30, 0.11), "light")))
    white = Material((0.92, 0.91, 0.88), "gloss", 0.3)
    bars = [block((0.05, 0.05, 1.3), 0.008, 2), block((0.05, 1.5, 0.05), 0.008, 2)]
    frame = [placed(bars[0], (-X - 0.1, y, 1.45)) for y in (-0.725, 0, 0.725)] + [
        placed(bars[1], (-X - 0.1, 0, z)) for z in (0.825, 1.6, 2.075)
    ]
    reveal = [
        panel((-X - 0.18, -0.75, 0.8), (0.18, 0, 0), (0, 1.5, 0)),
        panel((-X - 0.18, 0.75, 2.1), (0.18, 0, 0), (0, -1.5, 0)),
        panel((-X - 0.18, -0.75, 2.1), (0.18, 0, 0), (0, 0, -1.3)),
        panel((-X - 0.18, 0.75, 0.8), (0.18, 0, 0), (0, 0, 1.3)),
    ]
    sill = placed(block((0.24, 1.64, 0.04), 0.01, 2), (-X + 0.06, 0, 0.79))
    things.add("window", "window", (joined([*frame, *reveal, sill]), white))
    lamp = placed(disc(0.42), (0, 0, HEIGHT - 0.13))
    down = type(lamp)(lamp.vertices, -lamp.normals, lamp.uvs, lamp.faces[:, ::-1])
    things.add("lamp glow", "light", (down, Material((56.0, 50.0, 42.0), "light")))
    rim = placed(turned([(0.42, -0.02), (0.45, -0.02), (0.45, 0.10), (0.0, 0.12)], 64), (0, 0, HEIGHT - 0.12))
    things.add("ceiling lamp", "lamp", (rim, Material((0.85, 0.68, 0.40), "metal", 0.25)))


def _seats(things: Things, rng: np.random.Generator) -> None:
    v, u = np.meshgrid(np.arange(128), np.arange(128), indexing="ij")
    weave = 0.06 * (np.sin(u * np.pi / 2) * np.sin(v * np.pi / 2)) + 0.05 * tx.noise(rng, 128, 128, (6, 6), 4)
    cloth = Material(np.clip(np.asarray(tx.colour("#3c5f8a")) * (1 + weave)[..., None], 0, 1))
    y = Y - 0.5
    soft = [
        ((1.9, 0.8, 0.22), (0, y, 0.28)),
        ((1.9, 0.22, 0.5), (0, y + 0.32, 0.6)),
        ((0.2, 0.8, 0.46), (-0.98, y, 0.4)),
        ((0.2, 0.8, 0.46), (0.98, y, 0.4)),
    ]
    cushions = [((0.86, 0.62, 0.16), (s * 0.44, y - 0.06, 0.46)) for s in (-1, 1)]
    things.add("sofa", "seat", (joined([placed(block(s, 0.07, 5), p) for s, p in soft + cushions]), cloth))
    feet = [rod((sx * 0.95, y + sy * 0.33, 0), (sx * 0.95, y + sy * 0.33, 0.2), 0.025) for sx in (-1, 1) for sy in (-1, 1)]
    things.add("sofa", "seat", (joined(feet), Material((0.32, 0.21, 0.13))))
    pillows = (("mustard pillow", tx.colour("#d9a63a"), -0.62, 14), ("striped pillow", None, 0.60, -16))
    for name, tint, x, turn in pillows:
        stripe = tx.stripes([tx.colour("#efe6d2"), tx.colour("#c4573f")] * 5)
        colour = tx.speckled(rng, tint, 0.08, 8) if tint else stripe
        things.add(name, "pillow", (placed(ball((0.23, 0.09, 0.21)), (x, y + 0.14, 0.72), turn, -16), Material(colour)))


def _table(things: Things, rng: np.random.Generator) -> None:
    n = 384
    v, u = np.meshgrid(np.linspace(-1, 1, n), np.linspace(-1, 1, n), indexing="ij")
    r, a = np.hypot(u, v), np.arctan2(v, u)
    bands = tx.blend(tx.colour("#efe3cd"), tx.colour("#a8433a"), ((r * 5).astype(int) % 2).astype(float))
    star = np.cos(12 * a) * 0.5 + 0.5
    rug = tx.blend(bands, tx.colour("#2f4a6b"), ((r > 0.42) & (r < 0.6) & (star > 0.5)).astype(float))
    rug = np.clip(rug * (1 + 0.08 * tx.noise(rng, n, n, (32, 32), 2))[..., None], 0, 1)
    things.add("rug", "floor", (placed(disc(0.98, 96), (0, 0.05, 0.012)), Material(rug)))
    walnut = Material(tx.wood(rng, 256, (0.56, 0.38, 0.24), (0.34, 0.21, 0.12), rings=8), "gloss", 0.18)
    top = placed(turned([(0, -0.035), (0.44, -0.035), (0.46, -0.02), (0.46, 0.0)], 96), (0, 0.1, 0.45))
    legs = [
        rod((0.22 * np.cos(b), 0.1 + 0.22 * np.sin(b), 0.42), (0.4 * np.cos(b), 0.1 + 0.4 * np.sin(b), 0.0), 0.02)
        for b in np.radians([30, 150, 270])
    ]
    things.add("table", "table", (placed(disc(0.46, 96), (0, 0.1, 0.45)), walnut), (joined([top, *legs]), walnut))
    bowl = [(0, 0), (0.07, 0.0), (0.16, 0.05), (0.2, 0.11), (0.19, 0.112), (0.15, 0.06), (0.06, 0.015), (0, 0.015)]
    things.add(
        "bowl", "pot", (placed(turned(bowl, 64, smooth=True), (-0.1, 0.2, 0.45)), Material((0.80, 0.82, 0.85), "metal", 0.2))
    )
    fruit = [placed(ball(0.05), (-0.1 + 0.06 * np.cos(b), 0.2 + 0.06 * np.sin(b), 0.53)) for b in (0.3, 2.4, 4.5)]
    things.add("oranges", "fruit", (joined(fruit), Material((0.93, 0.52, 0.12), "gloss", 0.25)))
    things.add("mug", "pot", *props.mug((0.18, -0.08, 0.45), 0.1, Material(tx.colour("#e8e3d8"), "gloss", 0.12), 30))
    cover = Material(tx.letter("N", (0.95, 0.9, 0.8), tx.colour("#2f7f86")), "gloss", 0.3)
    things.add("magazine", "book", (placed(block((0.22, 0.28, 0.02), 0.004, 2), (0.17, 0.25, 0.46), 24), cover))


def _along_walls(things: Things, rng: np.random.Generator) -> None:
    pine = Material(tx.wood(rng, 256, (0.83, 0.66, 0.44), (0.62, 0.44, 0.26), rings=7), "gloss", 0.35)
    levels = (0.06, 0.52, 0.98, 1.42)
    boards = [placed(block((1.1, 0.32, 0.03), 0.006, 2), (1.1, -Y + 0.17, z)) for z in levels]
    sides = [placed(block((0.03, 0.32, 1.46), 0.006, 2), (1.1 + s * 0.56, -Y + 0.17, 0.73)) for s in (-1, 1)]
    things.add("bookcase", "furniture", (joined(boards + sides), pine))
    for z, width in zip(levels[:3], (0.9, 0.62, 1.0), strict=True):
        row = [
            (placed(m, (0, 0, 0), 180), material)
            for m, material in props.book_row(rng, (-1.6, Y - 0.31, z + 0.016), width, 0.38, 0.26)
        ]
        things.add("books", "book", *row)
    things.add(
        "globe vase", "pot", props.vase((0.85, -Y + 0.17, levels[3] + 0.016), 0.3, Material(tx.colour("#2f7f86"), "gloss", 0.1))
    )
    things.add("plant", "plant", *props.plant(rng, (-1.75, 1.3, 0.0), 1.15, Material(tx.colour("#b8643c")), 24))
    stand = [
        rod((1.75, 1.4, 0.02), (1.75, 1.4, 1.5), 0.014),
        placed(turned([(0, 0), (0.16, 0), (0.15, 0.02), (0, 0.03)], 48), (1.75, 1.4, 0)),
    ]
    things.add("floor lamp", "lamp", (joined(stand), Material((0.20, 0.20, 0.22), "metal", 0.25)))
    shade = placed(turned([(0.24, 0.0), (0.17, 0.32)], 64), (1.75, 1.4, 1.42))
    things.add("floor lamp", "lamp", (shade, Material(tx.colour("#efe0bd"))))
    things.add("sofa picture", "picture", *props.framed(rng, (-0.35, Y - 0.03, 1.55), 0.8, 0.55, 0, hue=0))
    things.add("small picture", "picture", *props.framed(rng, (0.55, Y - 0.03, 1.6), 0.38, 0.48, 0, hue=2))
    things.add("right picture", "picture", *props.framed(rng, (X - 0.03, 0.3, 1.5), 0.7, 0.5, -90, hue=1))
    chest = [placed(block((0.4, 1.0, 0.62), 0.015), (X - 0.22, -0.1, 0.37))]
    things.add(
        "chest",
        "furniture",
        (joined(chest), Material(tx.wood(rng, 256, (0.50, 0.36, 0.25), (0.32, 0.21, 0.13), planks=3, rings=9), "gloss", 0.3)),
    )
    knobs = [placed(ball(0.022, 20), (X - 0.43, y, z)) for y in (-0.35, 0.15) for z in (0.2, 0.4, 0.58)]
    things.add("chest", "furniture", (joined(knobs), Material((0.85, 0.68, 0.40), "metal", 0.2)))
    things.add("chest vase", "pot", props.vase((X - 0.24, -0.35, 0.68), 0.34, Material((0.93, 0.60, 0.44), "metal", 0.2)))
    things.add(
        "clock", "clock", *[(placed(m, (-0.6, -Y + 0.03, 1.75), 180), material) for m, material in props.clock((0, 0, 0), 0.2)]
    )
    door = [placed(block((0.85, 0.05, 2.0), 0.01, 2), (-1.35, -Y + 0.02, 1.0))]
    inlay = [placed(block((0.6, 0.02, 0.75), 0.02, 3), (-1.35, -Y + 0.05, z)) for z in (0.55, 1.45)]
    things.add("door", "door", (joined(door + inlay), Material(tx.colour("#dfe3df"), "gloss", 0.3)))
    things.add("door", "door", (placed(ball(0.035, 24), (-1.02, -Y + 0.09, 1.0)), Material((0.85, 0.68, 0.40), "metal", 0.2)))

"""Things that stand in more than one scene: books, plants, pots, lamps and pictures."""

from __future__ import annotations

import numpy as np

from nsw.scenes.make import textures as tx
from nsw.scenes.make.describe import Material
from nsw.scenes.make.shapes import Mesh, ball, block, joined, panel, placed, ring, rod, surface, tube, turned

Part = tuple[Mesh, Material]
SPINES = ("#b23a33", "#d9822b", "#e5b94e", "#5b8a58", "#2f7f86", "#33558f", "#6a4a7d", "#8c5a3c", "#d8c9ab", "#3d4148")


def book_row(rng: np.random.Generator, start: tuple[float, float, float], width: float, height: float, depth: float) -> list[Part]:
    """Return upright books that fill `width` along +x from `start`, their spines towards -y; the last one leans."""
    parts, x = [], 0.0
    while True:
        thick = rng.uniform(0.045, 0.095) * height / 0.5
        if x + thick > width:
            return parts
        tall, deep = height * rng.uniform(0.74, 0.98), depth * rng.uniform(0.8, 1.0)
        ink, paper = tx.colour(SPINES[rng.integers(len(SPINES))]), tx.colour("#efe6cf")
        cover = Material(_cover(rng, ink), "gloss", 0.3)
        at = np.array([start[0] + x + thick / 2, start[1] + depth - deep / 2, start[2] + tall / 2])
        tilt = 0.0 if x + 2 * thick < width else 7.0
        shell = _leaning(block((thick * 0.96, deep, tall), 0.008, 2), tilt)
        pages = _leaning(placed(block((thick * 0.7, deep * 0.96, 0.02), 0.002, 2), (0, 0, tall / 2 - 0.004)), tilt)
        parts += [(placed(shell, at), cover), (placed(pages, at), Material(paper))]
        x += thick * 1.02


def _leaning(mesh: Mesh, degrees: float) -> Mesh:
    return (
        placed(placed(mesh, turn=90, tilt=0), turn=-90, tilt=0)
        if degrees == 0
        else placed(placed(placed(mesh, turn=90), tilt=degrees), turn=-90)
    )


def _cover(rng: np.random.Generator, ink: tuple[float, float, float]) -> np.ndarray:
    """Return a book's cloth with two bands and a block of lettering."""
    out = tx.speckled(rng, ink, 0.12, 10, 128)
    gold = np.array([0.88, 0.76, 0.45]) if sum(ink) < 1.6 else np.array([0.30, 0.22, 0.16])
    for row in (14, 18, 108, 112):
        out[row : row + 2] = gold
    top = int(rng.integers(30, 45))
    for line in range(int(rng.integers(3, 6))):
        half = int(rng.integers(12, 34))
        out[top + 9 * line : top + 9 * line + 5, 64 - half : 64 + half] = gold
    return out


def leaf(length: float, width: float, droop: float) -> Mesh:
    """Return a pointed leaf that starts at the origin, runs along +x and hangs down by `droop`."""

    def f(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        half = width * np.sin(np.pi * np.clip(u, 0.0, 1.0)) ** 0.8
        y = (v - 0.5) * half
        return np.stack([u * length, y, length * (0.35 * u - droop * u**2) + 1.2 * np.abs(y)], -1)

    return surface(f, 14, 6)


def plant(rng: np.random.Generator, at: tuple[float, float, float], size: float, pot: Material, leaves: int = 16) -> list[Part]:
    """Return a potted plant of about `size` height."""
    x, y, z = at
    green = tx.blend(tx.colour("#2f6b38"), tx.colour("#7fb45a"), 0.5 + 0.5 * tx.noise(rng, 64, 64, (4, 2), 3))
    vessel = [(0, 0), (0.15, 0), (0.2, 0.3), (0.215, 0.3), (0.215, 0.35), (0.185, 0.35), (0.18, 0.28), (0, 0.28)]
    parts = [(placed(turned(vessel, 48), at, scale=size), pot)]
    foliage = []
    for i in range(leaves):
        rise = rng.uniform(0.0, 0.32)
        blade = leaf(rng.uniform(0.38, 0.6) * size, rng.uniform(0.12, 0.2) * size, rng.uniform(0.2, 0.9))
        foliage.append(placed(blade, (x, y, z + (0.36 + rise) * size), turn=i * 137.5 + rng.uniform(-15, 15)))
    stem = rod((x, y, z + 0.25 * size), (x, y, z + 0.72 * size), 0.018 * size)
    return [*parts, (joined(foliage), Material(green, "gloss", 0.35)), (stem, Material(tx.colour("#5e7d3a")))]


def vase(at: tuple[float, float, float], height: float, material: Material) -> Part:
    """Return a bellied vase."""
    t = np.linspace(0, 1, 24)
    profile = np.stack(
        [0.16 + 0.16 * np.sin(np.pi * np.clip(t * 1.25, 0, 1)) ** 1.3 - 0.06 * t + 0.10 * np.clip(t - 0.85, 0, 1) / 0.15 * 0.6, t],
        -1,
    )
    profile = np.concatenate([[[0, 0]], profile, [[profile[-1, 0] - 0.02, 0.99], [0.05, 0.6], [0.0, 0.6]]])
    return placed(turned(profile, 64, smooth=True), at, scale=height), material


def mug(at: tuple[float, float, float], height: float, material: Material, turn: float = 0.0) -> list[Part]:
    """Return a mug with a handle at +x, turned about z."""
    wall = [(0, 0), (0.40, 0), (0.42, 0.03), (0.42, 1.0), (0.38, 1.0), (0.38, 0.08), (0, 0.08)]
    handle = tube([(0.40 + 0.30 * np.sin(a), 0, 0.5 - 0.34 * np.cos(a)) for a in np.linspace(0, np.pi, 20)], 0.055)
    return [(placed(joined([turned(wall), handle]), at, turn, scale=height), material)]


def framed(
    rng: np.random.Generator, centre: tuple[float, float, float], width: float, height: float, turn: float = 0.0, hue: int = 0
) -> list[Part]:
    """Return a framed landscape that hangs at `centre` and faces -y before it is turned about z."""
    bar = 0.05 * max(width, height)
    sides = [placed(block((width + 2 * bar, bar, bar), 0.01, 2), (0, 0, s * (height + bar) / 2)) for s in (-1, 1)] + [
        placed(block((bar, bar, height), 0.01, 2), (s * (width + bar) / 2, 0, 0)) for s in (-1, 1)
    ]
    canvas = panel((-width / 2, 0, -height / 2), (width, 0, 0), (0, 0, height))
    frame = Material(tx.wood(rng, 64, (0.42, 0.28, 0.18), (0.25, 0.15, 0.09)), "gloss", 0.3)
    return [(placed(joined(sides), centre, turn), frame), (placed(canvas, centre, turn), Material(_landscape(rng, hue)))]


def _landscape(rng: np.random.Generator, hue: int) -> np.ndarray:
    """Return a painted landscape: sky, sun, hills, each hill darker than the one behind it."""
    skies = (("#f7d9a8", "#6fa8c7"), ("#f4b9a0", "#5a6aa8"), ("#dbe8d8", "#88b7c9"))
    grounds = (("#8fae7a", "#2f5a4a"), ("#b58a90", "#3c2f5c"), ("#c2b06c", "#5a5a2e"))
    n = 192
    y = np.linspace(1, 0, n)[:, None] + np.zeros((1, n))
    out = tx.blend(
        tx.colour(skies[hue % 3][0]), tx.colour(skies[hue % 3][1]), (y - 0.35) / 0.65 + 0.08 * tx.noise(rng, n, n, (3, 2), 4)
    )
    x = np.linspace(0, 1, n)[None] + np.zeros((n, 1))
    out[(x - 0.68) ** 2 + (y - 0.74) ** 2 < 0.008] = (0.99, 0.95, 0.82)
    for i in range(4):
        ridge = 0.58 - 0.13 * i + 0.09 * tx.noise(rng, 1, n, (1, 2 + i), 4)
        shade = tx.blend(tx.colour(grounds[hue % 3][0]), tx.colour(grounds[hue % 3][1]), np.full((n, n), i / 3))
        out = np.where((y < ridge)[..., None], shade * (1 + 0.08 * tx.noise(rng, n, n, (8, 8), 3))[..., None], out)
    return np.clip(out, 0, 1)


def clock(centre: tuple[float, float, float], radius: float) -> list[Part]:
    """Return a round clock that faces -y, with hands that stand off its face."""
    x, y, z = centre
    n = 192
    v, u = np.meshgrid(np.linspace(1, -1, n), np.linspace(-1, 1, n), indexing="ij")
    angle, r = np.arctan2(u, v), np.hypot(u, v)
    face = np.full((n, n, 3), (0.80, 0.77, 0.69))
    step = np.abs((angle / (2 * np.pi) * 12 + 0.5) % 1 - 0.5)
    face[(r > 0.72) & (r < 0.9) & (step * r < 0.09)] = (0.12, 0.12, 0.14)
    dial = panel((-radius, 0, -radius), (2 * radius, 0, 0), (0, 0, 2 * radius))
    keep = np.arange(0, 2 * np.pi, 2 * np.pi / 64)
    rim = np.stack([np.cos(keep), 0 * keep, np.sin(keep)], -1) * radius
    fan = np.stack([np.full(64, 64), np.arange(64), (np.arange(64) + 1) % 64], 1)
    points = np.concatenate([rim, [[0, 0, 0]]])
    dial = Mesh(points, np.tile([0.0, -1, 0], (65, 1)), points[:, [0, 2]] / (2 * radius) + 0.5, fan)
    dark = Material((0.08, 0.08, 0.10), "gloss", 0.2)
    hands = [
        rod((x, y - 0.02, z), (x + r * radius * np.sin(a), y - 0.02, z + r * radius * np.cos(a)), 0.035 * radius)
        for r, a in ((0.75, np.radians(60)), (0.5, np.radians(305)))
    ]
    return [
        (placed(dial, centre), Material(face)),
        (placed(ring(radius, 0.09 * radius), centre, tilt=90), Material((0.80, 0.62, 0.38), "metal", 0.2)),
        (joined([*hands, placed(ball(0.05 * radius, 20), (x, y - 0.02, z))]), dark),
    ]

"""Town: a small block city seen from the air on a grid of oblique views; streets, houses, a park with a pond, trees, cars."""

from __future__ import annotations

import numpy as np

from nsw.scenes.make import textures as tx
from nsw.scenes.make.describe import Description, Material, Things, looking, split_views, thinned
from nsw.scenes.make.shapes import Mesh, ball, block, disc, extruded, joined, panel, placed, rod, rotation, turned

PITCH, STREET, BLOCKS = 1.0, 0.26, 9  # world units; BLOCKS x BLOCKS around the origin
WALLS = ("#d9c3a0", "#b5654a", "#c9d1d6", "#8f9aa6", "#e0b07a", "#a7b79a")
ROOFS = ("#8c4a3a", "#5d646c", "#b0573f", "#7a6a5a")
CARS = ("#c8362e", "#f0f0ee", "#2b4f9e", "#e3b23c", "#2f2f33", "#6fa37a")


def describe(size: int = 160, views: int | None = None, seed: int = 0) -> Description:
    """Return the scene: 30 training views on a grid 3.2 above the streets, 8 test views between them."""
    rng = np.random.default_rng(seed)
    things = Things()
    _ground(things, rng)
    parks = {(0, 1), (-2, -2), (3, -1)}
    walls = [Material(_facade(rng, tx.colour(c), i)) for i, c in enumerate(WALLS)]
    roofs = [
        Material(tx.tiles(rng, tx.colour(c), tuple(0.6 * x for x in tx.colour(c)), (10, 10), shift=True, vary=0.15)) for c in ROOFS
    ]
    flat = Material(tx.speckled(rng, tx.colour("#a7a49c"), 0.08, 8))
    reach = BLOCKS // 2
    for bx in range(-reach, reach + 1):
        for by in range(-reach, reach + 1):
            centre = np.array([bx * PITCH, by * PITCH, 0.0])
            if (bx, by) in parks:
                _park(things, rng, centre, pond=(bx, by) == (0, 1))
            else:
                _houses(things, rng, centre, walls, roofs, flat, tower=max(abs(bx), abs(by)) <= 1 or rng.random() < 0.15)
    _church(things, rng, walls[0])
    _streets(things, rng)
    counts = thinned(views, train=30, test=8)
    train, test = _grid(counts["train"], 1.55, 0.0), _grid(counts["test"], 1.1, 0.5)
    eyes, targets = (np.concatenate([train[i], test[i]]) for i in (0, 1))
    lamps = [(215, 42, 7, (118, 108, 92))]
    return Description(
        name="town",
        items=things.items,
        id_names=things.names,
        id_classes=things.classes,
        cameras=looking(eyes, targets, 54.0, size, round(size * 3 / 4)),
        views=split_views(**counts),
        aabb=np.array([[-4.6, -4.6, -0.05], [4.6, 4.6, 1.5]]),
        near=1.4,
        far=8.0,
        sky=tx.sky(lamps, (0.42, 0.60, 0.95), (0.85, 0.90, 0.95), (0.3, 0.3, 0.3)),
        max_depth=4,
        exposure=0.6,
        spp=16,
    )


def _grid(n: int, reach: float, phase: float) -> tuple[np.ndarray, np.ndarray]:
    """Return eyes [n, 3] and targets of an aerial survey: rows of oblique views in four directions by turns."""
    columns = max(1, round(np.sqrt(n)))
    rows = -(-n // columns)
    i = np.arange(n)
    x = ((i % columns) + 0.5) / columns * 2 - 1
    y = ((i // columns) + 0.5) / rows * 2 - 1
    ground = np.stack([x * reach, y * reach, np.zeros(n)], -1)
    a = np.radians(45 + 90 * ((i + i // columns) % 4)) + phase
    lean = np.where(i % 3 == 0, 0.25, 1.25)
    eyes = ground + np.stack([lean * np.cos(a), lean * np.sin(a), np.full(n, 3.2)], -1)
    return eyes, ground + [0, 0, 0.25]


def _ground(things: Things, rng: np.random.Generator) -> None:
    """Lay asphalt with lane markings, and a pavement around every block."""
    n = 384
    c = (np.arange(n) + 0.5) / n - 0.5  # one pitch, the block in the middle, half a street on either side
    v, u = np.meshgrid(c, c, indexing="ij")
    out = tx.speckled(rng, tx.colour("#55575a"), 0.10, 12, n)
    edge = 0.5 - np.abs(np.stack([u, v]))  # distance from the middle line of either street
    dash = (np.stack([v, u]) * 12 % 1) < 0.5
    crossing = np.stack([edge[1], edge[0]]) < STREET * 0.62
    out[((edge < 0.008) & dash & ~crossing).any(0)] = (0.92, 0.90, 0.82)
    zebra = (edge < STREET * 0.38) & (np.abs(np.stack([edge[1], edge[0]]) - STREET * 0.56) < 0.022) & ((edge * 40 % 1) < 0.5)
    out[zebra.any(0)] = (0.90, 0.90, 0.87)
    side = (BLOCKS + 4) * PITCH
    things.add(
        "streets", "ground", (panel((-side / 2, -side / 2, 0), (side, 0, 0), (0, side, 0), (BLOCKS + 4, BLOCKS + 4)), Material(out))
    )
    stone = Material(tx.tiles(rng, tx.colour("#b9b3a7"), tx.colour("#8d887e"), (12, 12)))
    width = PITCH - STREET
    reach = BLOCKS // 2
    slabs = [
        placed(block((width, width, 0.03), 0.012, 3), (x * PITCH, y * PITCH, 0.012))
        for x in range(-reach, reach + 1)
        for y in range(-reach, reach + 1)
    ]
    things.add("pavements", "ground", (joined(slabs), stone))


def _facade(rng: np.random.Generator, wall: tuple[float, float, float], kind: int) -> np.ndarray:
    """Return 4 x 4 windows in a wall."""
    n, cells = 256, 4
    out = (
        tx.tiles(rng, wall, tuple(0.85 * x for x in wall), (32, 16), n, shift=True, vary=0.05)
        if kind % 2
        else tx.speckled(rng, wall, 0.05, 8, n)
    )
    v, u = np.meshgrid(np.arange(n) * cells / n, np.arange(n) * cells / n, indexing="ij")
    fu, fv = np.abs(u % 1 - 0.5), np.abs(v % 1 - 0.5)
    half = (0.24, 0.30) if kind % 3 else (0.38, 0.26)
    frame, glass = (fu < half[0] + 0.05) & (fv < half[1] + 0.05), (fu < half[0]) & (fv < half[1])
    lit = rng.random((cells, cells))[v.astype(int), u.astype(int)]
    panes = tx.blend(tx.colour("#2d3f52"), tx.colour("#9db9cc"), lit * 0.7)
    out[frame] = tuple(min(1.0, 1.15 * x + 0.08) for x in wall)
    out = np.where(glass[..., None], panes, out)
    out[glass & ((fu < 0.02) | (fv < 0.015))] = (0.9, 0.9, 0.88)
    return np.clip(out, 0, 1)


def _houses(
    things: Things, rng: np.random.Generator, centre: np.ndarray, walls: list, roofs: list, flat: Material, tower: bool
) -> None:
    """Put one to four buildings on a block."""
    width = PITCH - STREET - 0.06
    cut = rng.uniform(0.42, 0.58, 2) * width
    lots = [(0, 0, cut[0], cut[1]), (cut[0], 0, width, cut[1]), (0, cut[1], cut[0], width), (cut[0], cut[1], width, width)]
    if rng.random() < 0.35:
        lots = [(0, 0, width, cut[1]), lots[2], lots[3]]
    for i, (x0, y0, x1, y1) in enumerate(lots):
        gap = 0.02
        sx, sy = x1 - x0 - 2 * gap, y1 - y0 - 2 * gap
        at = centre + [(x0 + x1 - width) / 2, (y0 + y1 - width) / 2, 0.027]
        high = rng.uniform(0.55, 1.05) if tower and i == int(rng.integers(len(lots))) else rng.uniform(0.16, 0.42)
        wall = walls[rng.integers(len(walls))]
        name = f"house {len([n for n in things.names if n.startswith('house')])}" if len(things.names) < 230 else "further houses"
        body = placed(block((sx, sy, high), 0.004, 2, uv_scale=2.6), at + [0, 0, high / 2])
        if high < 0.36 and rng.random() < 0.75:
            along_x = sx > sy
            span, run = (sy, sx) if along_x else (sx, sy)
            roof = extruded([(-span / 2 - 0.02, 0), (span / 2 + 0.02, 0), (0, 0.42 * span)], run + 0.03)
            roof = Mesh(roof.vertices, roof.normals, roof.uvs * 1.0, roof.faces)
            top = [(placed(roof, at + [0, 0, high], 90 if along_x else 0), roofs[rng.integers(len(roofs))])]
            chimney = placed(block((0.035, 0.035, 0.1), 0.003, 2), at + [0.2 * sx, 0.2 * sy, high + 0.25 * span])
            top.append((chimney, roofs[2]))
        else:
            rim = placed(block((sx + 0.012, sy + 0.012, 0.03), 0.004, 2), at + [0, 0, high])
            units = [
                placed(
                    block((*rng.uniform(0.04, 0.09, 2), 0.05), 0.004, 2),
                    at + [*rng.uniform(-0.25, 0.25, 2) * (sx, sy), high + 0.035],
                )
                for _ in range(3)
            ]
            mast = rod(at + [0.3 * sx, -0.3 * sy, high], at + [0.3 * sx, -0.3 * sy, high + 0.16], 0.006)
            top = [(joined([rim, *units]), flat)] + ([(mast, Material((0.75, 0.2, 0.15)))] if high > 0.5 else [])
        things.add(name, "house", (body, wall), *top)


def _tree(rng: np.random.Generator, at: np.ndarray, size: float) -> tuple[Mesh, Mesh]:
    crowns = [
        placed(ball(size * rng.uniform(0.5, 0.75), 14), at + size * np.array([*rng.uniform(-0.3, 0.3, 2), 1.0 + 0.5 * k]))
        for k in range(3)
    ]
    return joined(crowns), rod(at, at + [0, 0, size], 0.11 * size, 8)


def _leaves(rng: np.random.Generator) -> Material:
    return Material(tx.blend(tx.colour("#2f5f2c"), tx.colour("#86ad4c"), 0.5 + 0.6 * tx.noise(rng, 128, 128, (12, 12), 3)))


def _park(things: Things, rng: np.random.Generator, centre: np.ndarray, pond: bool) -> None:
    width = PITCH - STREET - 0.04
    lawn = Material(tx.speckled(rng, tx.colour("#6f9a4a"), 0.18, 12))
    name = f"park {len([n for n in things.names if n.startswith('park')])}"
    things.add(name, "park", (placed(block((width, width, 0.02), 0.006, 3), centre + [0, 0, 0.035]), lawn))
    if pond:
        shore = placed(turned([(0.19, 0.0), (0.21, 0.012), (0.225, 0.0)], 64), centre + [0.08, -0.06, 0.046])
        water = placed(disc(0.195, 64), centre + [0.08, -0.06, 0.051])
        things.add("pond", "water", (water, Material((0.16, 0.36, 0.42), "gloss", 0.08)), (shore, Material((0.72, 0.68, 0.6))))
    crowns, trunks = [], []
    while len(crowns) < 12:
        spot = rng.uniform(-0.42, 0.42, 2) * width
        if pond and np.hypot(*(spot - [0.08, -0.06])) < 0.28:
            continue
        crown, trunk = _tree(rng, centre + [*spot, 0.045], rng.uniform(0.07, 0.11))
        crowns.append(crown)
        trunks.append(trunk)
    things.add("park trees", "tree", (joined(crowns), _leaves(rng)), (joined(trunks), Material(tx.colour("#5a4030"))))


def _church(things: Things, rng: np.random.Generator, wall: Material) -> None:
    """Put a small church with a thin spire into a park."""
    at = np.array([-2 * PITCH, -2 * PITCH, 0.045])
    nave = placed(block((0.2, 0.4, 0.2), 0.004, 2, uv_scale=3.0), at + [0, 0.05, 0.1])
    tower = placed(block((0.14, 0.14, 0.46), 0.004, 2, uv_scale=3.0), at + [0, -0.2, 0.23])
    roof = placed(extruded([(-0.115, 0), (0.115, 0), (0, 0.13)], 0.42), at + [0, 0.05, 0.2])
    spire = placed(turned([(0.095, 0), (0.0, 0.38)], 8), at + [0, -0.2, 0.46])
    needle = rod(at + [0, -0.2, 0.82], at + [0, -0.2, 0.96], 0.006)
    things.add(
        "church",
        "church",
        (joined([nave, tower]), wall),
        (joined([roof, spire]), Material((0.36, 0.62, 0.53), "gloss", 0.3)),
        (needle, Material((0.9, 0.75, 0.4), "metal", 0.2)),
    )


def _streets(things: Things, rng: np.random.Generator) -> None:
    """Line the streets with trees, lamps and cars."""
    crowns, trunks, lamps = [], [], []
    bodies: dict[int, list[Mesh]] = {i: [] for i in range(len(CARS))}
    cabins = []
    reach = BLOCKS // 2
    edge = (PITCH - STREET) / 2
    for bx in range(-reach, reach + 1):
        for by in range(-reach, reach + 1):
            for side in range(4):
                R = rotation("z", 90 * side)
                if rng.random() < 0.5:
                    crown, trunk = _tree(
                        rng, np.array([bx, by, 0]) * PITCH + R @ [edge - 0.015, rng.uniform(-0.3, 0.3), 0.025], 0.05
                    )
                    crowns.append(crown)
                    trunks.append(trunk)
                post = np.array([bx, by, 0]) * PITCH + R @ [edge - 0.01, 0.36, 0.025]
                lamps += [rod(post, post + [0, 0, 0.15], 0.005, 8), rod(post + [0, 0, 0.15], post + R @ [0.05, 0, 0.155], 0.005, 8)]
                if rng.random() < 0.6:
                    spot = np.array([bx, by, 0]) * PITCH + R @ [edge + 0.045, rng.uniform(-0.25, 0.25), 0.0]
                    bodies[int(rng.integers(len(CARS)))].append(
                        placed(block((0.05, 0.11, 0.026), 0.01, 3), spot + [0, 0, 0.022], 90 * side)
                    )
                    cabins.append(placed(block((0.043, 0.06, 0.022), 0.009, 3), spot + [0, 0, 0.044], 90 * side))
    things.add("street trees", "tree", (joined(crowns), _leaves(rng)), (joined(trunks), Material(tx.colour("#5a4030"))))
    things.add("street lamps", "lamp", (joined(lamps), Material((0.25, 0.26, 0.28), "metal", 0.3)))
    paint = [(joined(meshes), Material(tx.colour(CARS[i]), "gloss", 0.15)) for i, meshes in bodies.items() if meshes]
    things.add("cars", "car", *paint, (joined(cabins), Material((0.12, 0.15, 0.19), "gloss", 0.1)))

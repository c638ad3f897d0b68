"""The toys of `toybox` in random places, sizes and colours among plain blocks, balls and rings: what a small 2D model learns from.

No arrangement here is that of `toybox`, so a model trained on these pictures has met its toys but not its scene.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from nsw.scenes.make import textures as tx
from nsw.scenes.make.describe import Description, Material, Things, looking, split_views
from nsw.scenes.make.shapes import Mesh, ball, block, placed, ring
from nsw.scenes.make.toybox import FLOOR, C, toys

Part = tuple[Mesh, Material]


def describe(seed: int, size: int = 64, views: int = 4) -> Description:
    """Return one random scene, seen from `views` places on the dome of `toybox`; the pictures are transparent off the board."""
    rng = np.random.default_rng([seed, 27])
    things = _scattered(rng)
    height, turn = rng.uniform(np.sin(np.radians(6)), np.sin(np.radians(72)), views), rng.uniform(0, 2 * np.pi, views)
    flat = np.sqrt(1 - height**2)
    eyes = rng.uniform(3.6, 4.4) * np.stack([flat * np.cos(turn), flat * np.sin(turn), height], -1)
    lamp = float(rng.uniform(0, 360))
    lamps = [(lamp, rng.uniform(35, 65), 13, (34, 31, 27)), (lamp + rng.uniform(120, 200), 28, 22, (2.4, 3.0, 3.8))]
    return Description(
        name=f"scattered_{seed}",
        items=things.items,
        id_names=things.names,
        id_classes=things.classes,
        cameras=looking(eyes, rng.uniform(-0.2, 0.2, (views, 3)), float(rng.uniform(30, 42)), size, size),
        views=split_views(train=views),
        aabb=np.array([[-1.1, -1.1, -0.65], [1.1, 1.1, 0.75]]),
        near=2.0,
        far=6.5,
        sky=tx.sky(lamps, (0.55, 0.62, 0.72), (0.75, 0.74, 0.72), (0.30, 0.27, 0.24)),
        transparent=True,
        max_depth=4,
        exposure=float(rng.uniform(0.4, 0.6)),
    )


def make_pictures(folder: Path, seeds: range, size: int = 80, views: int = 4, spp: int = 12) -> list[Path]:
    """Path-trace one .npz a seed, as `trace` writes it.

    Files that are there stay, so that a stopped call continues when it is repeated.
    """
    files = [Path(folder) / f"scattered_{seed:04d}.npz" for seed in seeds]
    for seed, file in zip(seeds, files, strict=True):
        if not file.is_file():
            trace(describe(seed, size, views), file, spp, seed)
    return files


def trace(description: Description, file: Path, spp: int, seed: int, denoise: bool = False) -> None:
    """Path-trace all views of a description into one .npz: pictures `rgba` [V, H, W, 4] uint8, `ids` [V, H, W] int16, `depth`
    [V, H, W] float32 (camera z, 0: nothing hit), and the names and classes of the ids."""
    from nsw.scenes.make.render import Studio

    studio = Studio(description, spp, seed, variant="scalar_rgb", denoise=denoise)  # compiling each scene anew takes longer
    maps = [studio.view(i) for i in range(len(description.cameras))]
    rgba, depth = (np.stack([view.rgba for view in maps]) * 255).round().astype(np.uint8), np.stack([view.depth for view in maps])
    names, classes, ids = np.array(description.id_names), np.array(description.id_classes), np.stack([view.ids for view in maps])
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part.npz")
    np.savez_compressed(part, rgba=rgba, ids=ids, depth=depth.astype(np.float32), names=names, classes=classes)
    part.replace(file)


def _scattered(rng: np.random.Generator) -> Things:
    """Return the board and some ten things on it, no two in one place; some stand on a block."""
    original, things = toys(rng), Things()
    parts = {name: [] for name in original.names}
    for item in original.items:
        parts[original.names[item.instance]].append((item.mesh, item.material))
    kinds = dict(zip(original.names, original.classes, strict=True))
    things.add("board", "board", *parts.pop("board"))
    chosen = [(name, kinds[name], parts[name]) for name in parts if rng.random() < 0.7] + _plain(rng)
    taken: list[tuple[float, float, float, float, bool]] = []  # x, y, radius, top, and whether a thing may stand on it
    for name, kind, own in (chosen[i] for i in rng.permutation(len(chosen))):
        own = [(mesh, _tinted(material, rng)) for mesh, material in own]
        low, high = (f([f(mesh.vertices, 0) for mesh, _ in own], 0) for f in (np.min, np.max))
        scale = rng.uniform(0.8, 1.25)
        radius = scale * float((high - low)[:2].max()) / 2
        place = _place(rng, radius, taken)
        if place is None:
            continue
        x, y, floor = place
        centre, turn = np.array([*(low + high)[:2] / 2, low[2]]), float(rng.uniform(0, 360))
        moved = [(placed(placed(mesh, -centre), (x, y, floor), turn, scale=scale), material) for mesh, material in own]
        things.add(name, kind, *moved)
        taken.append((x, y, radius, floor + scale * float(high[2] - low[2]), kind == "block" and name != "roof block"))
    return things


def _place(rng: np.random.Generator, radius: float, taken: list) -> tuple[float, float, float] | None:
    """Return where a thing of this radius may stand: on a block that is free, or on the board; None when there is no room."""
    free = [t for t in taken if t[4] and not any(o is not t and np.hypot(o[0] - t[0], o[1] - t[1]) < 0.05 for o in taken)]
    if free and rng.random() < 0.25:
        under = free[rng.integers(len(free))]
        return under[0], under[1], under[3]
    for _ in range(40):
        x, y = rng.uniform(-0.85, 0.85, 2)
        if np.hypot(x, y) < 0.95 - 0.5 * radius and all(np.hypot(x - t[0], y - t[1]) > 0.85 * (radius + t[2]) for t in taken):
            return float(x), float(y), FLOOR
    return None


def _plain(rng: np.random.Generator) -> list[tuple[str, str, list[Part]]]:
    """Return up to four blocks, balls and rings of one colour each, so that a class is more than the toys of `toybox`."""
    out = []
    for i in range(rng.integers(1, 5)):
        kind = ("block", "ball", "ring")[rng.integers(3)]
        if kind == "block":
            mesh = block(rng.uniform(0.2, 0.42, 3), 0.03)
        elif kind == "ball":
            mesh = ball(rng.uniform(0.1, 0.24))
        else:
            mesh = placed(ring(rng.uniform(0.14, 0.26), rng.uniform(0.02, 0.07)), tilt=float(rng.choice([0, 75, 90])))
        look = ("matte", "gloss", "gloss")[rng.integers(3)]
        out.append((f"plain {kind} {i}", kind, [(mesh, Material(_colour(rng), look, float(rng.uniform(0.1, 0.3))))]))
    return out


def _colour(rng: np.random.Generator) -> tuple[float, float, float]:
    base = np.array(list(C.values())[rng.integers(len(C))])
    return tuple(float(c) for c in np.clip(base + rng.normal(0, 0.05, 3), 0.02, 0.98))


def _tinted(material: Material, rng: np.random.Generator) -> Material:
    """Return the material, half the time in another colour: a new one, or its texture with the channels mixed."""
    if material.kind == "metal" or rng.random() < 0.5:
        return material
    if np.ndim(material.colour) == 1:
        return replace(material, colour=_colour(rng))
    mix = 0.6 * np.eye(3) + 0.4 * np.eye(3)[rng.permutation(3)]
    return replace(material, colour=np.clip(material.colour @ mix, 0, 1))

"""Toybox: eleven toys of four classes on a round board, seen from all around; what is not a toy or the board is transparent."""

from __future__ import annotations

import numpy as np

from nsw.scenes.make import textures as tx
from nsw.scenes.make.describe import Description, Material, Things, looking, spiral_dome, split_views, thinned
from nsw.scenes.make.shapes import ball, block, disc, extruded, joined, placed, ring, rod, rotation, tube, turned

FLOOR = -0.48  # the board's upper side
C = {
    "red": tx.colour("#d8412f"),
    "orange": tx.colour("#f08a24"),
    "yellow": tx.colour("#f6c531"),
    "green": tx.colour("#3f9b57"),
    "teal": tx.colour("#1f9aa5"),
    "blue": tx.colour("#2f62c4"),
    "pink": tx.colour("#e8799b"),
    "cream": tx.colour("#f5ead2"),
    "brown": tx.colour("#6b4328"),
    "dark": tx.colour("#2b2622"),
}


def describe(size: int = 160, views: int | None = None, seed: int = 0) -> Description:
    """Return the scene; views (60 train, 12 val, 24 test) lie on a dome of radius 4 around the origin."""
    things = toys(np.random.default_rng(seed))
    counts = thinned(views, train=60, val=12, test=24)
    eyes = np.concatenate(
        [
            spiral_dome(n, low, high, 4.0, turn)
            for (n, (low, high, turn)) in zip(counts.values(), ((8, 75, 0), (14, 60, 50), (12, 66, 20)), strict=True)
        ]
    )
    lamps = [(35, 52, 13, (34, 31, 27)), (200, 30, 22, (2.4, 3.0, 3.8)), (290, 22, 12, (4.2, 3.2, 2.4))]
    return Description(
        name="toybox",
        items=things.items,
        id_names=things.names,
        id_classes=things.classes,
        cameras=looking(eyes, np.zeros(3), 35.0, size, size),
        views=split_views(**counts),
        aabb=np.array([[-1.1, -1.1, -0.65], [1.1, 1.1, 0.75]]),
        near=2.3,
        far=5.7,
        sky=tx.sky(lamps, (0.55, 0.62, 0.72), (0.75, 0.74, 0.72), (0.30, 0.27, 0.24)),
        transparent=True,
        max_depth=5,
        exposure=0.5,
    )


def toys(rng: np.random.Generator) -> Things:
    """Return the board and the toys on it; the random numbers make the grain of wood and the giraffe's patches."""
    things = Things()
    for add in (_board, _blocks, _balls, _rings, _figures):
        add(things, rng)
    return things


def _board(things: Things, rng: np.random.Generator) -> None:
    planks = Material(tx.wood(rng, 512, (0.86, 0.70, 0.50), (0.66, 0.47, 0.29), planks=7, rings=16))
    rim = Material(tx.colour("#8a5c36"))
    edge = turned([(0.0, -0.09), (1.02, -0.09), (1.04, -0.07), (1.04, -0.02), (1.02, 0.0), (1.0, 0.0)], 96)
    things.add("board", "board", (placed(disc(1.0, 96), (0, 0, FLOOR)), planks), (placed(edge, (0, 0, FLOOR)), rim))


def _blocks(things: Things, rng: np.random.Generator) -> None:
    side = 0.36
    paper = tx.wood(rng, 256, (0.93, 0.80, 0.60), (0.80, 0.62, 0.40), rings=6)
    for name, text, ink, at, turn in (
        ("red letter block", "N", C["red"], (-0.42, 0.34, side / 2), 20),
        ("blue letter block", "S", C["blue"], (-0.05, 0.52, side / 2), -12),
    ):
        x, y, z = at
        material = Material(tx.letter(text, ink, paper, frame=ink))
        things.add(name, "block", (placed(block((side,) * 3, 0.03), (x, y, z + FLOOR), turn), material))
    chess = Material(tx.checks(C["cream"], C["teal"], 4), "gloss", 0.15)
    things.add("chequered block", "block", (placed(block((side,) * 3, 0.03), (-0.25, 0.42, FLOOR + 1.5 * side), 38), chess))
    roof = extruded([(-0.21, 0), (0.21, 0), (0, 0.22)], 0.34)
    things.add("roof block", "block", (placed(roof, (-0.25, 0.42, FLOOR + 2 * side), 62), Material(C["red"], "gloss", 0.25)))


def _balls(things: Things, rng: np.random.Generator) -> None:
    colours = [C["red"], C["cream"], C["yellow"], C["cream"], C["blue"], C["cream"], C["green"], C["cream"]]
    beach = Material(np.swapaxes(np.repeat(np.asarray(colours)[np.arange(256) * 8 // 256][None], 256, 0), 0, 0), "gloss", 0.12)
    things.add("beach ball", "ball", (placed(ball(0.24), (0.48, -0.42, FLOOR + 0.24), 30, 35), beach))
    things.add("metal ball", "ball", (placed(ball(0.15), (0.12, -0.72, FLOOR + 0.15)), Material((0.95, 0.80, 0.55), "metal", 0.14)))


def _rings(things: Things, rng: np.random.Generator) -> None:
    x, y = 0.55, 0.28
    pole = Material(tx.wood(rng, 128, (0.9, 0.75, 0.55), (0.72, 0.53, 0.33)))
    parts = [
        (placed(turned([(0, 0), (0.24, 0), (0.26, 0.02), (0.26, 0.05), (0.24, 0.07), (0, 0.07)]), (x, y, FLOOR)), pole),
        (rod((x, y, FLOOR), (x, y, FLOOR + 0.72), 0.035), pole),
        (placed(ball(0.065), (x, y, FLOOR + 0.74)), Material(C["red"], "gloss", 0.15)),
    ]
    z = FLOOR + 0.07
    for hue, radius, tube_radius in (
        ("blue", 0.165, 0.075),
        ("teal", 0.15, 0.068),
        ("yellow", 0.132, 0.06),
        ("orange", 0.115, 0.054),
    ):
        z += tube_radius
        parts.append((placed(ring(radius, tube_radius), (x, y, z)), Material(C[hue], "gloss", 0.2)))
        z += tube_radius
    things.add("ring tower", "ring", *parts)
    # A thin hoop leaning on the tower of blocks.
    hoop = placed(ring(0.27, 0.014), (-0.74, 0.18, FLOOR + 0.268), 62, 78)
    things.add("thin hoop", "ring", (hoop, Material(C["green"], "gloss", 0.2)))


def _figures(things: Things, rng: np.random.Generator) -> None:
    _duck(things)
    _giraffe(things, rng)
    _pail(things)


def _duck(things: Things) -> None:
    at, turn = np.array([-0.02, -0.22, FLOOR]), -35.0

    def part(mesh, x, y, z, tilt=0.0):
        return placed(mesh, at + rotation("z", turn) @ np.array([x, y, z]), turn, tilt)

    yellow, beak, eye = Material(C["yellow"], "gloss", 0.3), Material(C["orange"], "gloss", 0.3), Material(C["dark"], "gloss", 0.1)
    body = [
        part(ball((0.15, 0.21, 0.125)), 0, 0, 0.122),
        part(ball((0.07, 0.12, 0.05)), 0, 0.17, 0.19, 35),
        part(ball(0.11), 0, -0.13, 0.30),
    ]
    wings = [part(ball((0.03, 0.11, 0.065)), s * 0.145, 0.03, 0.15, 12) for s in (-1, 1)]
    eyes = [part(ball(0.02, 20), s * 0.055, -0.215, 0.335) for s in (-1, 1)]
    things.add(
        "duck",
        "figure",
        (joined(body + wings), yellow),
        (part(ball((0.055, 0.075, 0.022)), 0, -0.25, 0.285), beak),
        (joined(eyes), eye),
    )


def _giraffe(things: Things, rng: np.random.Generator) -> None:
    at, turn = np.array([-0.56, -0.42, FLOOR]), 35.0
    R = rotation("z", turn)

    def to(x, y, z):
        return at + R @ np.array([x, y, z])

    patches = tx.blend(tx.colour("#f3c063"), tx.colour("#a8612a"), 14 * (tx.noise(rng, 256, 256, (7, 7), 1) - 0.12) + 0.5)
    coat, plain, hoof = Material(patches), Material(tx.colour("#f0bd62")), Material(C["brown"])
    legs = [rod(to(x, y, 0.02), to(x * 0.8, y * 0.8, 0.3), 0.02) for x in (-0.06, 0.06) for y in (-0.13, 0.13)]
    hooves = [placed(ball((0.028, 0.028, 0.03), 20), to(x, y, 0.025)) for x in (-0.06, 0.06) for y in (-0.13, 0.13)]
    neck = tube([to(0, -0.13 - 0.13 * t, 0.36 + 0.42 * t + 0.05 * t * t) for t in np.linspace(0, 1, 12)], 0.042)
    tail = tube([to(0, 0.19 + 0.05 * np.sin(2.5 * t), 0.37 - 0.17 * t) for t in np.linspace(0, 1, 10)], 0.009)
    horns = [rod(to(s * 0.03, -0.25, 0.86), to(s * 0.035, -0.24, 0.95), 0.008) for s in (-1, 1)]
    tips = [placed(ball(0.017, 16), to(s * 0.035, -0.24, 0.955)) for s in (-1, 1)]
    ears = [placed(ball((0.05, 0.012, 0.022), 20), to(s * 0.075, -0.235, 0.865), turn) for s in (-1, 1)]
    eyes = [placed(ball(0.013, 16), to(s * 0.048, -0.3, 0.865)) for s in (-1, 1)]
    head = [
        placed(ball((0.052, 0.095, 0.05)), to(0, -0.29, 0.845), turn, 14),
        placed(ball((0.04, 0.05, 0.036)), to(0, -0.36, 0.82), turn),
    ]
    trunk = placed(ball((0.105, 0.2, 0.105)), to(0, 0, 0.36), turn)
    things.add(
        "giraffe",
        "figure",
        (joined([trunk, neck]), coat),
        (joined([*legs, *horns, *ears, *head]), plain),
        (joined([*hooves, *tips, tail]), hoof),
        (joined(eyes), Material(C["dark"], "gloss", 0.1)),
    )


def _pail(things: Things) -> None:
    x, y, h = 0.02, 0.02, 0.24
    x, y = 0.78, -0.06
    wall = [
        (0.0, 0.0),
        (0.095, 0.0),
        (0.135, h),
        (0.148, h + 0.006),
        (0.148, h + 0.018),
        (0.128, h + 0.012),
        (0.09, 0.015),
        (0.0, 0.015),
    ]
    arc = [(x + 0.14 * np.cos(a), y + 0.05 * np.sin(a), FLOOR + h - 0.01 + 0.23 * np.sin(a)) for a in np.linspace(0, np.pi, 25)]
    arc = np.array(arc)
    turn = rotation("z", 40)
    arc = (arc - [x, y, 0]) @ turn.T + [x, y, 0]
    things.add(
        "pail",
        "figure",
        (placed(turned(wall), (x, y, FLOOR)), Material(C["pink"], "gloss", 0.25)),
        (tube(arc, 0.009), Material((0.80, 0.80, 0.82), "metal", 0.2)),
    )

"""Procedural pictures for materials: arrays [H, W, 3] of display sRGB in [0, 1], tileable where it matters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Array = np.ndarray
Colour = Sequence[float]


def colour(code: str) -> tuple[float, float, float]:
    """Return sRGB in [0, 1] from a web colour.

    >>> colour("#ff0080")
    (1.0, 0.0, 0.5019607843137255)
    """
    return tuple(int(code[i : i + 2], 16) / 255 for i in (1, 3, 5))


def linear(srgb: Array) -> Array:
    """Return linear light from display sRGB (IEC 61966-2-1)."""
    srgb = np.asarray(srgb, float)
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def display(light: Array) -> Array:
    """Return display sRGB in [0, 1] from linear light, clipped."""
    light = np.clip(np.asarray(light, float), 0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def noise(rng: np.random.Generator, height: int, width: int, cells: tuple[int, int] = (4, 4), octaves: int = 4) -> Array:
    """Return tileable value noise [H, W] with mean 0 and values in about [-1, 1]."""
    out, weight = np.zeros((height, width)), 1.0
    for octave in range(octaves):
        rows, columns = cells[0] << octave, cells[1] << octave
        lattice = rng.uniform(-1, 1, (rows, columns))

        def along(n: int, count: int) -> tuple[Array, Array, Array]:
            x = np.arange(n) * count / n
            i, t = x.astype(int) % count, x % 1
            return i, (i + 1) % count, t * t * (3 - 2 * t)

        (r0, r1, t), (c0, c1, s) = along(height, rows), along(width, columns)
        t, s = t[:, None], s[None, :]
        top = lattice[np.ix_(r0, c0)] * (1 - s) + lattice[np.ix_(r0, c1)] * s
        low = lattice[np.ix_(r1, c0)] * (1 - s) + lattice[np.ix_(r1, c1)] * s
        out += weight * (top * (1 - t) + low * t)
        weight *= 0.5
    return out / 1.4


def blend(a: Colour | Array, b: Colour | Array, t: Array) -> Array:
    """Return colours between a (t = 0) and b (t = 1)."""
    t = np.clip(t, 0, 1)[..., None]
    return np.asarray(a) * (1 - t) + np.asarray(b) * t


def wood(
    rng: np.random.Generator,
    size: int = 256,
    light: Colour = (0.80, 0.62, 0.42),
    dark: Colour = (0.52, 0.34, 0.19),
    planks: int = 1,
    rings: float = 5.0,
) -> Array:
    """Return wood grain along u: growth rings bent by slow noise, fine fibres, and optional planks across v."""
    out = np.zeros((size, size, 3))
    edges = np.linspace(0, size, planks + 1).astype(int)
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        h = high - low
        y = np.linspace(0, 1, h, endpoint=False)[:, None] + 0.25 * noise(rng, h, size, (2, 2), 3)
        phase = (y * rings / max(planks, 1) + rng.uniform(0, 1)) % 1
        grain = np.where(phase < 0.8, phase / 0.8, (1 - phase) / 0.2) ** 1.5
        fibre = noise(rng, h, size, (max(h // 6, 2), 4), 2)
        board = blend(light, dark, 0.15 + 0.6 * grain + 0.22 * fibre) * (1 + 0.12 * rng.uniform(-1, 1))
        if planks > 1:
            board[: max(size // 200, 1)] *= 0.45
        out[low:high] = board
    return np.clip(out, 0, 1)


def checks(a: Colour, b: Colour, n: int = 4, size: int = 256) -> Array:
    """Return an n x n chess board (n even tiles without a seam)."""
    i = np.arange(size) * n // size
    return blend(a, b, (i[:, None] + i[None, :]) % 2)


def stripes(colours: Sequence[Colour], size: int = 256, caps: Colour | None = None) -> Array:
    """Return stripes along v, one a colour, with `caps` at both ends of v (the poles of a ball)."""
    i = np.arange(size) * len(colours) // size
    out = np.repeat(np.asarray(colours, float)[i][None], size, 0)
    if caps is not None:
        out[: size // 12] = out[-(size // 12) :] = caps
    return out


def letter(text: str, ink: Colour, paper: Array | Colour, frame: Colour | None = None, size: int = 256) -> Array:
    """Return one letter in the middle of `paper`, with a frame around it; drawn with Pillow's own font."""
    from PIL import Image, ImageDraw, ImageFont

    mask = Image.new("L", (size, size), 0)
    draw = ImageDraw.Draw(mask)
    try:
        font = ImageFont.load_default(size * 0.72)
    except TypeError:  # Pillow without FreeType has only a small bitmap font, which takes no size
        font = ImageFont.load_default()
    draw.text((size / 2, size / 2), text, fill=255, font=font, anchor="mm", stroke_width=size // 64)
    t = np.asarray(mask, float) / 255
    out = blend(np.broadcast_to(np.asarray(paper, float), (size, size, 3)), ink, t)
    if frame is not None:
        d = np.minimum(np.arange(size), np.arange(size)[::-1])
        d = np.minimum(d[:, None], d[None, :])
        out[(d > size * 0.06) & (d < size * 0.11)] = frame
    return out


def tiles(
    rng: np.random.Generator,
    a: Colour,
    joint: Colour,
    n: tuple[int, int] = (4, 4),
    size: int = 256,
    shift: bool = False,
    vary: float = 0.08,
) -> Array:
    """Return tiles (or bricks when `shift`ed by half a tile every second row) with joints and a shade of their own each."""
    v, u = np.meshgrid(np.arange(size) * n[0] / size, np.arange(size) * n[1] / size, indexing="ij")
    if shift:
        u = u + 0.5 * (v.astype(int) % 2)
    shade = rng.uniform(-1, 1, (n[0], n[1] + 1))[v.astype(int) % n[0], u.astype(int) % n[1]]
    edge = np.minimum(np.minimum(u % 1, 1 - u % 1) * n[0] / n[1], np.minimum(v % 1, 1 - v % 1))
    stone = np.asarray(a) * (1 + vary * shade + 0.06 * noise(rng, size, size, (8, 8), 3))[..., None]
    return np.clip(blend(joint, stone, np.clip((edge - 0.03) / 0.03, 0, 1)), 0, 1)


def speckled(rng: np.random.Generator, base: Colour, amount: float = 0.1, cells: int = 6, size: int = 256) -> Array:
    """Return a colour with soft blotches: plaster, cloth, asphalt, grass."""
    return np.clip(np.asarray(base) * (1 + amount * noise(rng, size, size, (cells, cells), 5))[..., None], 0, 1)


def sky(
    lamps: Sequence[tuple[float, float, float, Colour]], zenith: Colour, horizon: Colour, ground: Colour, height: int = 64
) -> Array:
    """Return an environment of linear light [H, 2H, 3], +z up: a gradient and round soft lamps.

    Args:
        lamps: (azimuth degrees, elevation degrees, radius degrees, radiance RGB) each; it falls smoothly to 0 at twice the radius.
    """
    elevation = np.pi * (0.5 - (np.arange(height) + 0.5) / height)[:, None]
    azimuth = 2 * np.pi * (np.arange(2 * height) + 0.5)[None] / (2 * height)
    up = np.broadcast_to(np.sin(elevation), (height, 2 * height))
    out = np.where(up[..., None] > 0, blend(horizon, zenith, np.abs(up)), blend(horizon, ground, np.clip(-3 * up, 0, 1)))
    toward = np.stack([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), up], -1)
    for a, e, radius, radiance in lamps:
        a, e = np.radians(a), np.radians(e)
        centre = np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)])
        angle = np.degrees(np.arccos(np.clip(toward @ centre, -1, 1)))
        t = np.clip(2 - angle / radius, 0, 1)
        out = out + (t * t * (3 - 2 * t))[..., None] * np.asarray(radiance)
    return out

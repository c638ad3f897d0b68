"""Photos of a made-up room: walls and a box with corner-rich textures, cast ray by ray with numpy."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from nsw.cameras import Cameras, camera_rays, intrinsics, look_at

LOW, HIGH = np.array([-3.0, -2.0, 0.0]), np.array([3.0, 2.5, 2.6])
BOX_LOW, BOX_HIGH = np.array([-0.6, 0.3, 0.0]), np.array([0.5, 1.1, 0.9])


@functools.lru_cache(maxsize=32)
def texture(seed: int, size: int = 768) -> np.ndarray:
    """Return [size, size, 3] in [0, 1]: overlapping rectangles and discs over noise, so that corners abound."""
    rng = np.random.default_rng(seed)
    out = np.full((size, size, 3), rng.uniform(0.3, 0.7, 3))
    y, x = np.mgrid[:size, :size]
    for _ in range(500):
        cx, cy, half = rng.integers(0, size), rng.integers(0, size), int(rng.exponential(14)) + 4
        rows, columns = slice(max(cy - half, 0), cy + half), slice(max(cx - half, 0), cx + half)
        if rng.random() < 0.5:
            out[rows, columns] = rng.uniform(0, 1, 3)
        else:
            inside = (x[rows, columns] - cx) ** 2 + (y[rows, columns] - cy) ** 2 < half**2
            out[rows, columns][inside] = rng.uniform(0, 1, 3)
    grain = np.kron(rng.normal(0, 0.05, (size // 4, size // 4, 1)), np.ones((4, 4, 1)))
    return np.clip(out + grain, 0, 1)


def cameras(eyes, target=(0.0, 1.5, 1.0), width: int = 400, height: int = 300) -> Cameras:
    """Return cameras at the eyes that look at the target, 60 degrees wide."""
    eyes = torch.tensor(eyes, dtype=torch.float32)
    return Cameras(look_at(eyes, target), intrinsics(60.0, width, height, len(eyes)), width, height)


def arc(n: int) -> list[tuple[float, float, float]]:
    """Return eye positions on an arc in front of the box."""
    return [(-1.6 + 3.2 * i / (n - 1), -1.5 + 0.4 * abs(2 * i / (n - 1) - 1), 1.3 + 0.15 * (i % 2)) for i in range(n)]


def render(views: Cameras, seed: int = 0) -> list[np.ndarray]:
    """Return one uint8 picture [H, W, 3] per camera; a texel is about a pixel, so one bilinear sample a pixel is enough."""
    return [_render_one(views[i], seed) for i in range(len(views))]


def _render_one(view: Cameras, seed: int) -> np.ndarray:
    rays = camera_rays(view)
    o, d = rays.origins.double().numpy()[0], rays.directions.double().numpy()
    d = np.where(np.abs(d) < 1e-9, 1e-9, d)
    leave = np.maximum((LOW - o) / d, (HIGH - o) / d)
    axis, t = leave.argmin(axis=1), leave.min(axis=1)
    wall = 2 * axis + (d[np.arange(len(d)), axis] > 0)
    first, second = np.minimum((BOX_LOW - o) / d, (BOX_HIGH - o) / d), np.maximum((BOX_LOW - o) / d, (BOX_HIGH - o) / d)
    enter = first.max(axis=1)
    hit = (enter > 0) & (enter < second.min(axis=1)) & (enter < t)
    t, axis = np.where(hit, enter, t), np.where(hit, first.argmax(axis=1), axis)
    wall = np.where(hit, 6 + axis, wall)
    points = o + t[:, None] * d
    colour = np.zeros((len(d), 3))
    for w in np.unique(wall):
        on = wall == w
        uv = np.delete(points[on], axis[on][0], axis=1) / (6.4 if w < 6 else 3.0)
        colour[on] = _bilinear(texture(100 * seed + int(w)), uv)
    return (colour.reshape(view.height, view.width, 3) * 255).round().astype(np.uint8)


def _bilinear(picture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    size = len(picture)
    x = uv * size
    low = np.floor(x).astype(int)
    f = (x - low)[..., None]
    (c0, r0), (c1, r1) = (low % size).T, ((low + 1) % size).T
    top = picture[r0, c0] * (1 - f[:, 0]) + picture[r0, c1] * f[:, 0]
    return top * (1 - f[:, 1]) + (picture[r1, c0] * (1 - f[:, 0]) + picture[r1, c1] * f[:, 0]) * f[:, 1]


def write(folder: Path, pictures: list[np.ndarray], first: int = 0) -> Path:
    """Write photos as photo_00.jpg and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"photo_{first + i:02d}.jpg", quality=95)
    return folder

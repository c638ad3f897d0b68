"""What a generator hands to the renderer: things, light and cameras, all of it plain arrays and free of Mitsuba."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from nsw.cameras import Cameras, intrinsics, look_at
from nsw.scenes.exposures import Exposure
from nsw.scenes.make.shapes import Mesh


@dataclass(frozen=True)
class Material:
    """A surface.

    Attributes:
        colour: display sRGB (3 numbers) or a texture [H, W, 3] of display sRGB in [0, 1]; for "light" linear radiance.
        kind: "matte" (diffuse), "gloss" (diffuse under rough varnish), "metal" (rough conductor) or "light".
        roughness: GGX alpha of "gloss" and "metal".
    """

    colour: Sequence[float] | np.ndarray
    kind: str = "matte"
    roughness: float = 0.2


@dataclass(frozen=True)
class Item:
    """A mesh of one material that belongs to instance number `instance`."""

    mesh: Mesh
    material: Material
    instance: int


@dataclass(frozen=True)
class Description:
    """One scene to render.

    Attributes:
        name: short name.
        items: what stands in it.
        id_names: name of every instance, for example "red ball"; `id_classes` the class of each, for example "ball".
        cameras: all views, in the order of `views`.
        views: (split, file stem) a camera.
        aabb: [2, 3] box around what is to be reconstructed.
        near, far: distances along a ray that hold every surface.
        sky: environment of linear light [H, 2H, 3] around the scene, or None.
        transparent: leave pixels that see only the sky transparent.
        max_depth: longest light path, in Mitsuba's count (2 is direct light).
        exposure: factor on linear light before it becomes sRGB.
        spp: samples a pixel of the bundled pictures.
        maps: which truth maps are stored beside the pictures.
        backdrop: linear light of a wall behind everything, seen by the camera alone; None shows the sky, or nothing.
        exposures: how each view is exposed; None takes pinholes that stand still.
    """

    name: str
    items: Sequence[Item]
    id_names: Sequence[str]
    id_classes: Sequence[str]
    cameras: Cameras
    views: Sequence[tuple[str, str]]
    aabb: np.ndarray
    near: float
    far: float
    sky: np.ndarray | None = None
    transparent: bool = False
    max_depth: int = 4
    exposure: float = 1.0
    spp: int = 64
    maps: Sequence[str] = field(default=("depth", "normals", "albedo", "ids"))
    backdrop: float | None = None
    exposures: Sequence[Exposure] | None = None

    def exposed(self, index: int) -> Exposure:
        """Return how view `index` is exposed."""
        return self.exposures[index] if self.exposures else Exposure()


class Things:
    """Collects items and gives every named thing the next instance number."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.names: list[str] = []
        self.classes: list[str] = []

    def add(self, name: str, kind: str, *parts: tuple[Mesh, Material]) -> None:
        """Add one thing made of parts; parts of the same name share an instance number."""
        if name not in self.names:
            self.names.append(name)
            self.classes.append(kind)
        self.items += [Item(mesh, material, self.names.index(name)) for mesh, material in parts]


def split_views(**counts: int) -> list[tuple[str, str]]:
    """Return (split, file stem) pairs.

    >>> split_views(train=1, test=1)
    [('train', 'train_000'), ('test', 'test_000')]
    """
    return [(split, f"{split}_{i:03d}") for split, n in counts.items() for i in range(n)]


def thinned(views: int | None, **counts: int) -> dict[str, int]:
    """Return the counts a split scaled so that they sum to about `views`, at least one each."""
    if views is None:
        return counts
    total = sum(counts.values())
    return {split: max(1, round(n * views / total)) for split, n in counts.items()}


def spiral_dome(n: int, low: float, high: float, radius: float, turn: float = 0.0) -> np.ndarray:
    """Return n points [n, 3] spread evenly over a dome between two elevations (degrees): equal area, golden-angle steps."""
    s = (np.arange(n) + 0.5) / n
    z = np.sin(np.radians(low)) + s * (np.sin(np.radians(high)) - np.sin(np.radians(low)))
    a = np.radians(turn) + np.arange(n) * np.pi * (3 - 5**0.5)
    r = np.sqrt(1 - z**2)
    return radius * np.stack([r * np.cos(a), r * np.sin(a), z], -1)


def looking(eyes: np.ndarray, targets: np.ndarray, fov: float, width: int, height: int) -> Cameras:
    """Return cameras at eyes [n, 3] that look at one target each, world +z up."""
    poses = [
        look_at(torch.tensor(e[None], dtype=torch.float32), tuple(map(float, t)))
        for e, t in zip(eyes, np.broadcast_to(targets, eyes.shape), strict=True)
    ]
    return Cameras(torch.cat(poses), intrinsics(fov, width, height, len(eyes)), width, height)

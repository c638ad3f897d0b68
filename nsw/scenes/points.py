"""Sparse points: from .ply files, and with the errors that structure from motion would make."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from nsw.errors import InputError
from nsw.scenes.scene import Points


def read_ply_points(path: Path) -> Points:
    """Return the vertices of a .ply file; grey where it has no colours.

    Raises:
        InputError: missing, damaged, or without vertices.
    """
    import trimesh

    if not path.is_file():
        raise InputError(f"{path}: the file of sparse points does not exist; restore it or remove ply_file_path.")
    try:
        with path.open("rb") as file:
            loaded = trimesh.load(file, file_type="ply", process=False)
        vertices = np.asarray(loaded.vertices, dtype=np.float32)
        colours = np.asarray(getattr(loaded, "colors", None) if hasattr(loaded, "colors") else loaded.visual.vertex_colors)
    except Exception as error:  # trimesh raises whatever its parser trips over
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{path}: not a .ply file of points ({reason}); write it again or remove ply_file_path.") from None
    if vertices.ndim != 2 or len(vertices) == 0 or not np.isfinite(vertices).all():
        raise InputError(f"{path}: expected points with finite positions, found {vertices.shape[0]} vertices; write it again.")
    if colours.shape[:1] != vertices.shape[:1]:
        colours = np.full((len(vertices), 3), 128, np.uint8)
    return Points(torch.from_numpy(vertices.copy()), torch.from_numpy(colours[:, :3].astype(np.float32) / 255.0))


def jittered(points: Points, size: float, seed: int = 0) -> Points:
    """Return the points moved at random, normally distributed with standard deviation `size` along each axis, world units.

    Points back-projected from exact depth lie on the surface; those that pictures alone give do not.

    >>> round(float(jittered(Points(torch.zeros(4000, 3), torch.zeros(4000, 3)), 0.1).xyz.std()), 2)
    0.1
    """
    generator = torch.Generator().manual_seed(seed)
    return Points(points.xyz + size * torch.randn(points.xyz.shape, generator=generator).to(points.xyz), points.rgb)

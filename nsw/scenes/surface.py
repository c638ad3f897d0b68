"""The true surface of a scene with known depth and normals: points of all its views, evenly thinned."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from nsw.cameras import camera_rays
from nsw.errors import InputError
from nsw.scenes.scene import Scene


def surface_points(scene: Scene, spacing: float, views=None) -> tuple[Float[Tensor, "P 3"], Float[Tensor, "P 3"]]:
    """Return points of the surface that the views see, and their unit normals: one in every cell of a grid.

    Args:
        spacing: side of the grid's cells, world units; take a small part of what is to be told apart.
        views: name of a split or frame indices; None takes all frames, so that what no training view sees counts too.

    Raises:
        InputError: when the scene has no true depth and normals.
    """
    if scene.depth is None or scene.normals is None:
        raise InputError(f"Scene {scene.name} has no true depth and normals: choose a bundled scene.")
    frames = torch.arange(len(scene)) if views is None else scene.frames(views)
    depth = scene.depth[frames].float().flatten()
    hit = (depth > 0).nonzero()[:, 0]
    rays = camera_rays(scene.cameras[frames])[hit]
    points = rays.at_depth(depth[hit])
    normals = scene.normals[frames].float().reshape(-1, 3)[hit]
    cells = ((points - points.amin(0)) / spacing).long()
    n_y, n_z = (cells.amax(0) + 1)[1:].tolist()
    key = (cells[:, 0] * n_y + cells[:, 1]) * n_z + cells[:, 2]
    order = key.argsort(stable=True)
    first = torch.ones_like(order, dtype=torch.bool)
    first[1:] = key[order][1:] != key[order][:-1]
    chosen = order[first]
    return points[chosen], normals[chosen]

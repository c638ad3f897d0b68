"""Dense voxel grids to pictures: densities first, and colours only for the samples that count."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nsw.cameras import Cameras, Rays
from nsw.kernels.packed_rays import packed_weights
from nsw.models.dense_grid import DenseGrid
from nsw.renderers.parts import assemble
from nsw.renderers.render import Render
from nsw.renderers.volume import march_cells, sum_on_rays


@dataclass(frozen=True)
class GridRender:
    """R rendered rays and the K samples that counted.

    Attributes:
        rgb: [R, 3] colour over the background.
        left: [R] transmittance behind the last sample, in [0, 1].
        depth: [R] expected distance t, 0 where nothing was hit.
        weights: [K]; rgbs: [K, 3]; t: [K]; ray_indices: [K], ascending.
        n_asked: samples whose density was asked, before the thin and hidden ones were dropped.
    """

    rgb: Float[Tensor, "R 3"]
    left: Float[Tensor, "R"]
    depth: Float[Tensor, "R"]
    weights: Float[Tensor, "K"]
    rgbs: Float[Tensor, "K 3"]
    t: Float[Tensor, "K"]
    ray_indices: Int[Tensor, "K"]
    n_asked: int


def render(
    model: DenseGrid,
    rays: Rays,
    near: float = 0.0,
    background: float | Tensor | None = None,
    jitter: torch.Generator | None = None,
    threshold: float = 1e-4,
) -> GridRender:
    """Render rays through a grid: half-voxel steps from `near` to the end of the box, in cells that are not known to be free.

    A first pass without gradients asks densities only. Samples with an opacity or a weight up to `threshold` are dropped
    before the second, which asks colours too (Improved DVGO, section 3).

    Args:
        background: grey level, colour [3] or [R, 3]; the rays' own by default.
        jitter: moves each ray's samples by a random part of a step; without it they are the same every time.
    """
    background = rays.background if background is None else background
    step = model.sample_length
    ray_indices, t, points = march_cells(model, rays, model.occupancy(), step, near, jitter)
    length = step / model.voxel
    with torch.no_grad():
        depth = model.sigma(points) * length
        weights, _ = packed_weights(depth, ray_indices, len(rays))
        kept = ((weights > threshold) & (depth > threshold)).nonzero()[:, 0]
    n_asked, t, ray_indices, points = len(t), t[kept], ray_indices[kept], points[kept]
    weights, left = packed_weights(model.sigma(points) * length, ray_indices, len(rays))
    rgbs = model.colour_at(points, rays.directions, ray_indices)
    rgb, distance = sum_on_rays(weights, left, rgbs, t, ray_indices, background)
    return GridRender(rgb, left, distance, weights, rgbs, t, ray_indices, n_asked)


def render_view(
    model: DenseGrid, cameras: Cameras, near: float = 0.0, background: float | Tensor | None = None, chunk: int = 16384
) -> Render:
    """Render whole pictures without gradients."""
    return assemble(lambda rays: render(model, rays, near, background), cameras, chunk)

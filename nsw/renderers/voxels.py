"""Sparse grids of harmonics to pictures: the march, the look-up and the compositing of a ray in one kernel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nsw.cameras import Cameras, Rays
from nsw.kernels.voxel_march import march_voxels, marks_rows
from nsw.models.plenoxel_grid import PlenoxelGrid
from nsw.renderers import volume
from nsw.renderers.render import Render
from nsw.renderers.volume import ray_bounds

SAMPLES_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class VoxelRender:
    """R rendered rays.

    Attributes:
        rgb: [R, 3] colour over the background, not clamped.
        left: [R] transmittance behind the last sample, in [0, 1].
        depth: [R] expected distance t, 0 where nothing was hit.
    """

    rgb: Float[Tensor, "R 3"]
    left: Float[Tensor, "R"]
    depth: Float[Tensor, "R"]

    @property
    def alpha(self) -> Float[Tensor, "R"]:
        """Opacity."""
        return 1.0 - self.left


def march_arguments(model: PlenoxelGrid, rays: Rays, near: float = 0.0, jitter: torch.Generator | None = None) -> dict:
    """Return what the march needs to know about rays: where they are in the box, half-voxel steps, an optional random start."""
    first, last, _ = ray_bounds(model, rays, near)
    offset = torch.full_like(first, 0.5) if jitter is None else torch.rand(first.shape, generator=jitter, device=first.device)
    where = dict(origins=rays.origins, directions=rays.directions, near=first, far=last, offset=offset, aabb=model.aabb)
    return where | dict(step=model.sample_length, delta=model.sample_length / model.unit)


def render(
    model: PlenoxelGrid,
    rays: Rays,
    near: float = 0.0,
    background: float | Tensor | None = None,
    jitter: torch.Generator | None = None,
    stop: float = 1e-4,
    skip: Tensor | None = None,
) -> VoxelRender:
    """Render rays through the grid; a gradient goes straight to `model.row_gradient()`.

    Args:
        near: distance at which rays begin, where the box lies before.
        background: grey level, colour [3] or [R, 3]; the rays' own by default.
        jitter: moves each ray's samples by a random part of a step; without it they sit in the middle.
        stop: transmittance below which a ray ends (1e-7 in the official code; nobody sees the difference to 1e-4).
        skip: `model.empty_space()`, where one table serves several calls.
    """
    background = rays.background if background is None else background
    training = torch.is_grad_enabled() and model.values.requires_grad
    where = march_arguments(model, rays, near, jitter)
    options = dict(sh_degree=model.settings.sh_degree, stop=stop, nearest=model.settings.nearest)
    if skip is None:
        skip = model.training_space() if training else model.empty_space()
    options |= dict(skip=skip, into=model.row_gradient() if training else None)
    rgb, left, depth = march_voxels(model.values, model.links, **where, **options)
    return VoxelRender(rgb + left[:, None] * background, left, depth)


def rays_at_once(model: PlenoxelGrid) -> int:
    """Return how many rays to render together: many in the kernels, few elsewhere."""
    return 1 << 17 if model.values.device.type == "cpu" or marks_rows(model.values) else rays_in_torch_calls(model)


def rays_in_torch_calls(model: PlenoxelGrid) -> int:
    """Return how many rays torch calls take together, in which each sample takes 0.3 kB, or 2 in fog."""
    longest = 2 * sum(n * n for n in model.shape) ** 0.5  # half-voxel steps along the diagonal
    return max(64, int(SAMPLES_AT_ONCE / longest))


@torch.no_grad()
def render_view(
    model: PlenoxelGrid,
    cameras: Cameras,
    near: float = 0.0,
    background: float | Tensor | None = None,
    chunk: int | None = None,
    stop: float = 1e-4,
) -> Render:
    """Render whole pictures without gradients.

    Args:
        chunk: rays rendered together; by default what `rays_at_once` says.
    """
    skip = model.empty_space()

    def march(field: PlenoxelGrid, rays: Rays, *, near: float, background: float | Tensor, **_) -> VoxelRender:
        return render(field, rays, near, background, stop=stop, skip=skip)

    at_once = chunk or rays_at_once(model)
    return volume.render_view(model, cameras, background=background, chunk=at_once, near=near, render=march)

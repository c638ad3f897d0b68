"""What the notebook of Plenoxels draws and tabulates: rates, close-ups, the depth error, a row of measurements for each grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from nsw import metrics
from nsw.cameras import Cameras
from nsw.methods import nerf_inspect, plenoxels
from nsw.methods.plenoxels_inspect import against_depth, middle
from nsw.models.plenoxel_grid import PlenoxelGrid
from nsw.renderers.render import Render
from nsw.scenes.scene import Scene


def rates(
    density: tuple[float, float], colour: tuple[float, float], n: int = 101
) -> dict[str, tuple[Sequence[float], Sequence[float]]]:
    """Return both learning rates over the share of the training, from their first and last values."""
    t = torch.linspace(0, 1, n).tolist()
    return {
        "density": (t, [plenoxels.lr_density(at, *density) for at in t]),
        "harmonics": (t, [plenoxels.lr_colour(at, *colour) for at in t]),
    }


def zoomed(grid: PlenoxelGrid, view: Cameras, near: float) -> Float[Tensor, "h w 3"]:
    """Return the middle of what a grid shows of a view, enlarged."""
    return middle(plenoxels.render_view(grid, view, near).rgb[0])


def depth_miss(picture: Render, scene: Scene) -> Float[Tensor, "H W"]:
    """Return by how many world units a picture of the first test view misses the true depth; 0 where there is no surface."""
    depth = scene.depth[int(scene.frames("test")[0])]
    return (picture.depth[0].cpu() - depth).abs() * (depth > 0)


def measured(
    grids: Mapping[str, PlenoxelGrid], shots: Mapping[str, Render], scene: Scene, part: str
) -> dict[str, dict[str, float | None]]:
    """Return a row for each render: PSNR, on a part of the scene too, depth error, floater mass, and the share of voxels kept.

    Args:
        grids: by name; floaters are measured of those as fine as the first.
        shots: renders of all test views, by the names of the grids and others.
        part: name of an instance, see `nerf_inspect.where_shown`.
    """
    truth, shown = scene.pixels("test"), nerf_inspect.where_shown(scene, part)
    floaters, depth_errors = against_depth(grids, shots, scene)
    return {
        name: {
            "PSNR (dB)": metrics.psnr(shot.rgb, truth),
            f"on the {part}": metrics.psnr(shot.rgb, truth, shown),
            "depth error": depth_errors.get(name),
            "floaters": floaters.get(name),
            "voxels kept": float(grids[name].kept.float().mean()) if name in grids else None,
        }
        for name, shot in shots.items()
    }

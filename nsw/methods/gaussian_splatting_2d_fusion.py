"""Play with the fusion of 2DGS: voxels, truncation and which depth, with what each mesh is off; and where views disagree."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nsw import metrics
from nsw.cameras import Cameras, camera_rays, project
from nsw.methods.gaussian_splatting_2d import DepthMaps
from nsw.renderers.render import Render
from nsw.renderers.tsdf import sample
from nsw.scenes.scene import Scene


@torch.no_grad()
def error_of_mesh(
    mesh, truth: tuple[Float[Tensor, "P 3"], Float[Tensor, "P 3"]], n: int = 30_000
) -> tuple[Float[Tensor, "F"], metrics.SurfaceScores]:
    """Return how far the middle of every face is from the true surface, world units, and the scores of the mesh.

    Args:
        truth: points of the true surface, and their normals.
        n: points drawn by the scores.
    """
    off = metrics.distances_to(torch.as_tensor(mesh.triangles_center.copy()), truth[0])
    return off, metrics.surface_scores(mesh, *truth, n=n)


@torch.no_grad()
def disagreement(
    depth: Float[Tensor, "H W"], solid: Bool[Tensor, "H W"], camera: Cameras, maps: DepthMaps, reach: float
) -> Float[Tensor, "H W"]:
    """Return how far the surface of a view is from what other views draw there, world units along their axes, the median of them.

    A view that draws something nearer by more than `reach` is blocked and does not count; one that sees through counts `reach`.

    Args:
        depth, solid: of the view: camera z, and where it shows a surface; NaN is returned elsewhere.
        camera: of the view.
        maps: of the others.
    """
    device = maps.expected.device
    solid = solid.to(device)
    points = camera_rays(camera.to(device)).at_depth(depth.float().to(device).flatten())
    others = torch.where(maps.solid, maps.expected, torch.inf)
    off, cameras = points.new_full((len(maps.cameras), len(points)), torch.nan), maps.cameras.to(device)
    for view, row in enumerate(off):
        pixels, z = project(cameras[view], points)
        seen, inside = sample(others[view], others[view] > 0, pixels[0], reach)
        counts = inside & (z[0] > 0) & (seen > z[0] - reach)
        row[counts] = (seen - z[0])[counts].abs().clamp(max=reach)
    return torch.where(solid, off.nanmedian(0).values.view(solid.shape), torch.nan).cpu()


def true_disagreement(scene: Scene, reach: float) -> Float[Tensor, "H W"]:
    """Return the `disagreement` of the first test view's exact depth with that of the training views: what pixels alone do."""
    (first, *_), frames = scene.frames("test"), scene.frames("train")
    depth = scene.depth[frames].float()
    exact = DepthMaps(depth, depth, depth > 0, scene.views("train"), scene.aabb)
    return disagreement(scene.depth[first], scene.depth[first] > 0, scene.cameras[int(first)], exact, reach)


def disagreements(
    drawn: Mapping[str, Render], maps: Mapping[str, DepthMaps], camera: Cameras, scene: Scene, reach: float
) -> dict[str, Float[Tensor, "H W"]]:
    """Return the `disagreement` of some models' pictures of the first test view with their own maps, and last that of the truth."""
    apart = {name: disagreement(r.depth[0], r.alpha[0] > 0.5, camera, maps[name], reach) for name, r in drawn.items()}
    return apart | {"truth": true_disagreement(scene, reach)}


def level(distance: Float[Tensor, "X Y Z"], views: Float[Tensor, "X Y Z"], k: int) -> Float[Tensor, "Y X"]:
    """Return the k-th level slice of a fused grid as a map seen from above, y upwards; NaN where no view spoke."""
    return torch.where(views > 0, distance, torch.nan)[:, :, k].T.flip(0)

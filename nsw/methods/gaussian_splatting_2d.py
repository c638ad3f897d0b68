"""2D Gaussian Splatting for geometrically accurate radiance fields (Huang, Yu, Chen, Geiger, Gao, SIGGRAPH 2024).

Discs instead of ellipsoids: every ray meets a disc in one point, so depth and normal are the same from all sides. Two terms turn a
cloud of discs into a surface: depth distortion pulls the discs of a ray together, normal consistency turns them into the surface
that their depth shows. Start, learning rates, image loss and schedule stay those of `gaussian_splatting.py`; the density control
differs in its statistic and prunes earlier. Discs are drawn by `nsw.renderers.surfels`, meshes made by `nsw.renderers.tsdf`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nsw.cameras import Cameras
from nsw.losses import loss_photometric
from nsw.methods import gaussian_splatting as gs
from nsw.methods.density_control import DensityControl, Refined
from nsw.models.surfels import Surfels
from nsw.renderers.render import Render
from nsw.renderers.splat_median import median_depth
from nsw.renderers.surfels import render_view
from nsw.renderers.tsdf import fused_mesh
from nsw.scenes.scene import Scene

PRUNE_OPACITY = 0.05  # ten times that of 3DGS: faint discs in front of a surface spoil its depth (official code)


@dataclass(frozen=True)
class Regularisers:
    """Weights of the two surface terms and when they begin; the defaults are the official code's, for 30,000 steps.

    Attributes:
        normal: lambda_n of the normal consistency.
        distortion: lambda_d of the depth distortion; the official scripts use 1000 (DTU), 100 or 10 (Tanks and Temples), 0 else.
        normal_from, distortion_from: steps from which they act.
        depth_range: near and far of the mapping of depth in the distortion, best those of the scene.
    """

    normal: float = 0.05
    distortion: float = 100.0
    normal_from: int = 7_000
    distortion_from: int = 3_000
    depth_range: tuple[float, float] = (0.2, 100.0)

    def at(self, step: int) -> tuple[float, float]:
        """Return the weights (normal, distortion) that hold at a step, 0 before their time."""
        return self.normal * (step >= self.normal_from), self.distortion * (step >= self.distortion_from)

    @classmethod
    def for_budget(cls, n_steps: int, scene: Scene, **changes) -> Regularisers:
        """Return the schedule shortened in proportion to n_steps of 30,000, with the depth range of a scene."""
        starts = dict(normal_from=round(7_000 / 30_000 * n_steps), distortion_from=round(3_000 / 30_000 * n_steps))
        return cls(**({"depth_range": (scene.near, scene.far)} | starts | changes))


def loss_normal(render: Render, mask: Bool[Tensor, "C H W"] | None = None) -> Float[Tensor, ""]:
    r"""Return how far the discs' normals are from those of the surface that their depth shows.

    $$L_n = \overline{A - n_r \cdot A\,n_s}, \qquad n_r = \sum_i w_i n_i$$  (Huang et al. 2024, eq. 14)

    with A the alpha of the picture without its gradient: else fading would be a way to agree.

    Args:
        mask: pixels that count, the object's; without it discs behind the border grow long and black.
    """
    alpha = render.alpha.detach()
    off = alpha - (render.extras["normals"] * render.extras["surface_normals"]).sum(-1) * alpha
    inside = torch.ones_like(alpha, dtype=torch.bool) if mask is None else mask
    return torch.where(inside & (render.extras["surface_normals"].abs().sum(-1) > 0), off, 0.0).mean()


def loss_distortion(render: Render, mask: Bool[Tensor, "C H W"] | None = None) -> Float[Tensor, ""]:
    r"""Return how far apart along their rays the discs lie that share a pixel.

    $$L_d = \overline{\textstyle\sum_{i>j} w_i w_j (m_i - m_j)^2}, \qquad m = \tfrac{far}{far - near}\big(1 - \tfrac{near}{z}\big)$$
    (Huang et al. 2024, eq. 13, squared as in the official code)
    """
    distortion = render.extras["distortion"]
    return (distortion if mask is None else torch.where(mask, distortion, 0.0)).mean()


def distortion_pairs(weights: Float[Tensor, "*r n"], m: Float[Tensor, "*r n"]) -> Float[Tensor, "*r"]:
    r"""Return the distortion of rays as the sum over all pairs, which is what the rasterizer computes in one pass.

    >>> distortion_pairs(torch.tensor([0.5, 0.5]), torch.tensor([0.2, 0.4])).item()
    0.0100...
    """
    squares = (m[..., :, None] - m[..., None, :]) ** 2
    return 0.5 * (weights[..., :, None] * weights[..., None, :] * squares).sum(dim=(-1, -2))


class Training(gs.Training):
    """Surfels being trained: `gaussian_splatting.Training` with the density statistic of discs.

    A disc's pull is half a picture times its depth times the gradient of where its centre stands in the picture; pixels in which
    the screen-space blob took over do not count (official code).
    """

    def step(self, step: int, meta: dict) -> Refined | None:
        """Take one Adam step after `backward`, then refine when density control is due; see `gaussian_splatting.Training.step`."""
        seen = {name: meta[name] for name in ("radii", "width", "height", "n_cameras")}
        return super().step(step, {**seen, "means2d": meta["gradient_2dgs"]})


def density_control(n_steps: int, **changes) -> DensityControl:
    """Return the density control of a run of n_steps: that of 3DGS, but faint discs go earlier."""
    return DensityControl(prune_opacity=PRUNE_OPACITY).for_budget(n_steps, **changes)


def object_mask(scene: Scene, step: int, seed: int = 0, device: torch.device | str = "cpu") -> Bool[Tensor, "1 H W"] | None:
    """Return where the picture of this training step shows the object; None for pictures without alpha."""
    if not scene.has_alpha:
        return None
    frames = scene.splits["train"]
    return (scene.alphas(frames[gs.frames_at(step, len(frames), seed)]) > 0.5).to(device)


def draw(surfels: Surfels, cameras: Cameras, step: int, regularisers: Regularisers, **options) -> Render:
    """Render what the terms that act at this step need, and no more."""
    normal, distortion = regularisers.at(step)
    reach = regularisers.depth_range if distortion else None
    return render_view(surfels, cameras, depth=normal > 0, distortion_range=reach, **options)


def surface_terms(render: Render, step: int, regularisers: Regularisers, mask: Tensor | None = None) -> dict[str, Tensor]:
    """Return the weighted terms that act at this step by name: "normal" and "distortion"."""
    normal, distortion = regularisers.at(step)
    terms = {"normal": normal * loss_normal(render, mask)} if normal else {}
    return terms | ({"distortion": distortion * loss_distortion(render, mask)} if distortion else {})


def fit(training: Training, scene: Scene, steps: Iterable[int], regularisers: Regularisers, seed: int = 0, **options) -> Training:
    """Train as the notebook's loop does, without watching; `options` go to the renderer."""
    surfels, n_steps = training.gaussians, training.n_steps
    device = surfels.means.device
    for step in steps:
        camera, target, behind = gs.training_view(scene, step, seed, device=device)
        degree = gs.sh_degree_at(step, n_steps, surfels.settings.sh_degree)
        render = draw(surfels, camera, step, regularisers, background=behind, sh_degree=degree, **options)
        terms = surface_terms(render, step, regularisers, object_mask(scene, step, seed, device))
        (loss_photometric(render.rgb, target) + sum(terms.values())).backward()
        training.step(step, render.extras["meta"])
    return training


@torch.no_grad()
def mesh_of(render, scene: Scene, voxel: float, which: str | Sequence[int] = "train", depth: str = "expected", **options):
    """Return the mesh fused from depth maps that a model draws for the given views.

    Args:
        render: `render(cameras) -> Render` for a batch of one camera; any model that draws depth will do.
        voxel: of the fusion, world units.
        depth: "expected" or "median"; the latter needs a render with that map.
        options: of `nsw.renderers.tsdf.fused_mesh`.
    """
    median = depth == "median"
    return drawn_maps(render, scene, which, median).mesh(voxel, float(median), **options)


@dataclass(frozen=True)
class DepthMaps:
    """What a model draws of the depth of C views.

    Attributes:
        expected, median: camera z; without a median the expected depth twice.
        solid: where the picture is more than half opaque.
        cameras, aabb: of the views and of the scene.
    """

    expected: Float[Tensor, "C H W"]
    median: Float[Tensor, "C H W"]
    solid: Bool[Tensor, "C H W"]
    cameras: Cameras
    aabb: Float[Tensor, "2 3"]

    def mesh(self, voxel: float, median: float = 0.0, truncation: float | None = None, **crumbs):
        """Return the mesh fused from (1 - median) times the expected and median times the median depth; see `fused_mesh`."""
        depth = torch.lerp(self.expected, self.median, median)
        depth = torch.where(self.solid, depth, 0.0)
        return fused_mesh(depth, self.cameras, self.aabb, voxel, truncation, empty=~self.solid, **crumbs)


@torch.no_grad()
def drawn_maps(render, scene: Scene, which: str | Sequence[int] = "train", median: bool = False) -> DepthMaps:
    """Draw the depth of the given views, one camera at a time.

    Args:
        median: ask 3D Gaussians for theirs too, which takes a while; discs draw it anyway.
    """
    cameras, maps = scene.views(which), []
    for camera in cameras:
        drawn = render(camera)
        halfway = drawn.extras.get("median", drawn.depth)
        if median and "conics" in drawn.extras.get("meta", {}):
            halfway = median_depth(drawn.extras["meta"], camera.width, camera.height)
        maps.append((drawn.depth, halfway, drawn.alpha > 0.5))
    return DepthMaps(*(torch.cat(column) for column in zip(*maps, strict=True)), cameras, scene.aabb)

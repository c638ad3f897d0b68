"""Look at 2D Gaussians: what one ray meets, the discs themselves, and how near normals and depth come to the truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from nsw import metrics
from nsw.cameras import Cameras, orbit
from nsw.kernels.projection_reference import rotation_from_quaternion
from nsw.kernels.rasterize_reference import TRANSMITTANCE_MIN
from nsw.kernels.surfels_reference import RayRules, distort, meet_disks
from nsw.methods import gaussian_splatting as gs
from nsw.methods import gaussian_splatting_2d as gs2d
from nsw.methods.gaussian_splatting_2d import DepthMaps, drawn_maps
from nsw.models.gaussians import Gaussians
from nsw.models.meshes import discs
from nsw.models.parts import part_of
from nsw.models.sh import sh0_from_rgb
from nsw.models.surfels import Surfels
from nsw.renderers import meshes, splats, surfels
from nsw.renderers.render import Render
from nsw.renderers.tsdf import fused_mesh
from nsw.scenes.scene import Scene

NORMALS = {"normals of the discs": "normals", "normals of their depth": "surface_normals"}  # title -> what a render calls it


@dataclass(frozen=True)
class RayHits:
    """The K discs that one ray blends, front to back: depth where it meets them, weights, and the ray's distortion."""

    depth: Float[Tensor, "K"]
    weight: Float[Tensor, "K"]
    distortion: float

    @property
    def expected(self) -> float:
        """Expected depth of the ray; 0 where nothing is met."""
        return float((self.weight * self.depth).sum() / self.weight.sum().clamp_min(1e-6))


@torch.no_grad()
def ray_hits(model: Surfels, camera: Cameras, row: int, column: int, depth_range: tuple[float, float]) -> RayHits:
    """Return what the ray of a pixel meets, by the rules of the rasterizer."""
    rules = RayRules(True, 0.01, True, depth_range, model.settings.low_pass)
    meta = surfels.render_view(model, camera[0], depth=False).extras["meta"]
    rows = [meta[name][0].cpu() for name in ("means2d", "ray_transforms", "opacities", "depths", "radii")]
    seen = (rows[4] > 0).all(-1)
    order = rows[3].masked_fill(~seen, torch.inf).argsort(stable=True)[: int(seen.sum())]
    pixel = torch.tensor([[column + 0.5, row + 0.5]])
    alphas, depth = meet_disks(pixel, *(values[order] for values in rows[:3]), rules)
    drawn = alphas[0] > 0
    alpha, depth = alphas[0, drawn], depth[0, drawn]
    after = torch.cumprod(1 - alpha, dim=0)
    alpha = torch.where(after > TRANSMITTANCE_MIN, alpha, 0.0)
    weight = alpha * torch.cumprod(torch.cat([torch.ones(1), 1 - alpha]), dim=0)[:-1]
    distortion, reached = float(distort(weight[None], depth[None], rules)[0]), weight > 0
    return RayHits(depth[reached], weight[reached], distortion)


@torch.no_grad()
def disc_picture(model: Gaussians, cameras: Cameras, radius: float = 1.0, least: float = 0.3) -> Float[Tensor, "H W 3"]:
    """Return the splats drawn as hard opaque discs in the plane of their two longer axes, in their own colours.

    Args:
        radius: of the discs, in standard deviations.
        least: fainter splats are left out.
    """
    shown = model.activated_opacities > least
    rotations, scales = rotation_from_quaternion(model.quats[shown]), model.activated_scales[shown]
    order = scales.argsort(dim=1, descending=True)
    axes = rotations.gather(2, order[:, None].expand(-1, 3, -1))
    sides = 10
    mesh = discs(model.means[shown], axes, scales.gather(1, order), radius, sides)
    rgb = model.base_rgb[shown].clamp(0, 1).cpu().repeat_interleave(sides, dim=0)
    return meshes.render_view(mesh, cameras[0].to("cpu"), rgb=rgb).rgb[0]


@torch.no_grad()
def tilted_disc(tilt: float, size: float, n_pixels: int = 72) -> dict[str, Float[Tensor, "H W"]]:
    """Return opacity and depth of one disc, exact and as 3DGS draws it, by EWA; depths 1.4 to 2.6 are 0 to 1, nothing is 1.

    The last is the exact opacity without the low-pass: no blob stands in for a disc that is seen from its edge.

    Args:
        tilt: degrees from facing the camera (0) to edge-on (90), about the picture's horizontal axis.
        size: standard deviation of the disc; the camera is 2 away.
    """
    camera = orbit(1, 2.0, 0.0, fov_x_degrees=60.0, width=n_pixels, height=n_pixels)
    half = math.radians(90 - tilt) / 2
    turn = [[math.cos(half), 0.0, math.sin(half), 0.0]]
    disc = Surfels.from_values([[0, 0, 0]], [[size, size, size]], turn, [0.95], [[0.0, 0.45, 0.7]])
    drawn = {"exact": surfels.render_view(disc, camera), "EWA": splats.render_view(disc, camera)}
    disc.settings = replace(disc.settings, low_pass=1e-3)
    depth = {name: torch.where(r.alpha[0] > 0.1, (r.depth[0] - 1.4) / 1.2, 1.0) for name, r in drawn.items()}
    maps = {f"{name} opacity": r.alpha[0] for name, r in drawn.items()} | {f"{name} depth": depth[name] for name in drawn}
    return maps | {"no low-pass": surfels.render_view(disc, camera).alpha[0]}


@torch.no_grad()
def thickness(model: Surfels, camera: Cameras, depth_range: tuple[float, float]) -> Float[Tensor, "H W*2 3"]:
    """Return two pictures side by side: how thick each ray is (five times the root of its distortion, white is 1), and normals."""
    render = surfels.render_view(model, camera[0], distortion_range=depth_range)
    grey = (5 * render.extras["distortion"][0, ..., None].clamp_min(0).sqrt()).clamp(0, 1).expand(-1, -1, 3)
    return torch.cat([grey, meshes.colours_of(render.extras["normals"][0])], dim=1).cpu()


def trained_on(model: Surfels, scene: Scene, regularisers: gs2d.Regularisers, n_steps: int = 40, seed: int = 0) -> Surfels:
    """Return a copy of trained discs after a few more steps with other weights of the surface terms, at the paper's rates."""
    training = gs2d.Training(part_of(model), scene.scale, n_steps, gs.LearningRates(), seed=seed)
    return gs2d.fit(training, scene, range(n_steps), regularisers, seed).gaussians


def tilted_profile(tilt: float, size: float) -> dict[str, tuple[Tensor, Tensor]]:
    """Return row and depth (camera z) down the middle of a `tilted_disc`, as a disc and as an ellipsoid."""
    maps = tilted_disc(tilt, size)
    bands = {name: maps[f"{kind} depth"][:, 36] for name, kind in (("disc", "exact"), ("ellipsoid", "EWA"))}
    return {name: ((band < 1).nonzero()[:, 0], 1.4 + 1.2 * band[band < 1]) for name, band in bands.items()}


@torch.no_grad()
def panes(render: Render) -> dict[str, Float[Tensor, "H W 3"]]:
    """Return what discs draw of the first camera by title: the picture, their normals, and the normals of their depth."""
    coloured = {title: meshes.colours_of(render.extras[key][0].detach().cpu()) for title, key in NORMALS.items()}
    return {"picture": render.rgb[0].detach().cpu()} | coloured


def film_panes(frame: Float[Tensor, "H W*3 3"], true_normals: Float[Tensor, "H W 3"]) -> dict[str, Float[Tensor, "H W 3"]]:
    """Return the three `panes` of a frame of the film, which holds them side by side, and the true normals, by title."""
    shown = zip(("picture", *NORMALS), frame.chunk(3, dim=1), strict=True)
    return dict(shown) | {"true normals": meshes.colours_of(true_normals)}


@torch.no_grad()
def normals_as_they_come(model: Surfels, cameras: Cameras) -> Float[Tensor, "H W 3"]:
    """Return the drawn world normals of the first camera without turning any disc's towards it: opposite ones cancel."""
    copy = part_of(model)
    copy.sh0[:, 0], copy.shN[:] = sh0_from_rgb(0.5 * model.normals + 0.5), 0.0
    drawn = surfels.render_view(copy, cameras[0], background=0.0, depth=False)
    return (2 * drawn.rgb[0] - drawn.alpha[0, ..., None]).cpu()


def angles(normals: Float[Tensor, "*n 3"], true: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n"]:
    """Return degrees between normals of any length and the true ones; NaN where there is no true one."""
    cosine = (torch.nn.functional.normalize(normals.cpu(), dim=-1) * true).sum(-1).clamp(-1, 1)
    return torch.where(true.norm(dim=-1) > 0.5, torch.rad2deg(torch.acos(cosine)), torch.nan)


def true_mesh(scene: Scene, voxel: float, truncation: float, split: str = "train", device: torch.device | str = "cpu"):
    """Return the mesh fused, on that device, from the exact depth maps: what the fusion itself can do at best."""
    depth = scene.depth[scene.frames(split)].float().to(device)
    return fused_mesh(depth, scene.views(split), scene.aabb, voxel, truncation, empty=depth == 0)


@dataclass(frozen=True)
class Judged:
    """A model's surface against the truth.

    Attributes:
        maps: depth of the training views.
        mesh: fused from them.
        surface: its scores.
        depth: mean error of expected depth over the test pixels that hit the true surface, world units.
        from_depth: mean angle of the normals of that depth there, degrees.
        rendered: the same for drawn normals; None for a model that draws none.
    """

    maps: DepthMaps
    mesh: object
    surface: metrics.SurfaceScores
    depth: float
    from_depth: float
    rendered: float | None


@torch.no_grad()
def judge(render: Callable, scene: Scene, truth: tuple[Tensor, Tensor], *, depth: str = "expected", **shape) -> Judged:
    """Fuse what a model draws for the training views, and compare it and the test views with the truth.

    Args:
        render: `render(cameras) -> Render` for a batch of one camera.
        scene: with true depth and normals; all maps are drawn at its size.
        truth: points of the true surface and their normals.
        depth, shape: of `gaussian_splatting_2d.mesh_of`.
    """
    maps = drawn_maps(render, scene, median=depth == "median")
    mesh = maps.mesh(median=float(depth == "median"), **shape)
    return Judged(maps, mesh, metrics.surface_scores(mesh, *truth), *compared(render, scene))


@torch.no_grad()
def compared(render: Callable, scene: Scene, split: str = "test") -> tuple[float, float, float | None]:
    """Return how far expected depth, that depth's normals and drawn normals are off in the views of a split, as in `Judged`."""
    frames = scene.frames(split)
    cameras = scene.cameras[frames]
    drawn: dict[str, list] = {"depth": [], "normals": []}
    for i in range(len(frames)):  # of each render the maps alone: the rasterizer's lists stay on a GPU
        out = render(cameras[i])
        drawn["depth"].append(out.depth.cpu())
        drawn["normals"] += [out.extras["normals"].cpu()] if "normals" in out.extras else []
    maps = torch.cat(drawn["depth"])
    from_depth, true = surfels.normals_from_depth(maps, cameras), scene.normals[frames].float()
    true = torch.where((from_depth.norm(dim=-1) > 0.5)[..., None], true, 0.0)  # the border has no differences
    error = metrics.normal_error_degrees
    rendered = error(torch.cat(drawn["normals"]), true) if drawn["normals"] else None
    return metrics.depth_error(maps, scene.depth[frames].float()), error(from_depth, true), rendered


def trade(render: Callable, scene: Scene, split: str = "val") -> tuple[float, float]:
    """Return what a model's pictures and its surface are worth on a split: PSNR, and how far the normals of its depth are off."""
    return metrics.evaluate(render, scene, split).psnr, compared(render, scene, split)[1]


def rows_of(judged: Mapping[str, Judged], true_mesh, truth: tuple[Tensor, Tensor]) -> list[dict[str, str | float]]:
    """Return rows of a table: mesh and depth of each model, and last the mesh that the same fusion makes of the exact depth."""

    def row(name: str, surface: metrics.SurfaceScores) -> dict[str, str | float]:
        return {"variant": name, "Chamfer": surface.chamfer, "normals of the mesh (degrees)": surface.normal_error}

    rows = [row(name, one.surface) | {"depth error": one.depth} for name, one in judged.items()]
    return [*rows, row("truth, fused alike", metrics.surface_scores(true_mesh, *truth))]

"""Looking at a grid without a network: slices, glyphs, what pruning takes, density where the pictures show free air."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nsw.cameras import Cameras, camera_rays, project
from nsw.kernels.harmonics import sh_basis
from nsw.kernels.voxel_march_reference import shade
from nsw.methods import plenoxels
from nsw.methods.dvgo_stages import RayBank
from nsw.methods.plenoxels_fit import Recipe, fit, new_grid
from nsw.models.plenoxel_grid import PlenoxelGrid, PlenoxelGridSettings
from nsw.scenes.scene import Scene


def density_slice(model: PlenoxelGrid, height: float) -> Float[Tensor, "Y X 3"]:
    """Return a horizontal slice seen from above, y upwards: vertices in their mean colour, as opaque as a voxel; pruned ones blue.

    Args:
        height: 0 is the bottom of the box, 1 its top.
    """
    k = round(height * (model.shape[2] - 1))
    rows = model.values.detach()[model.links[:, :, k].long()]
    opacity = model.alpha()[:, :, k, None]
    mean = (0.5 + 0.28209479 * rows[..., 1:4]).clamp(0, 1)
    air = torch.where(model.kept[:, :, k, None], torch.ones(3), torch.tensor([0.72, 0.82, 0.92]))
    return (opacity * mean + (1 - opacity) * air).transpose(0, 1).flip(0)


def glyphs(
    model: PlenoxelGrid, points: Float[Tensor, "P 3"], normals: Float[Tensor, "P 3"], degree: int = 2, size: int = 48
) -> Float[Tensor, "s w 3"]:
    """Return a row of small balls: the colours that the voxels at P points show to viewers all around, seen along the normals.

    A ball's spot with normal n has the colour for a viewer in direction n.

    Args:
        degree: harmonics above it are left out.
    """
    v, u = torch.meshgrid(*[torch.linspace(1, -1, size)] * 2, indexing="ij")
    inside = (u.square() + v.square() <= 1)[..., None]
    balls = []
    for point, normal in zip(points, normals, strict=True):
        up = torch.nn.functional.normalize(normal, dim=-1)
        side = torch.nn.functional.normalize(torch.linalg.cross(up, up.roll(1)), dim=-1)
        height = (1 - u.square() - v.square()).clamp_min(0).sqrt()
        towards = u[..., None] * side + v[..., None] * torch.linalg.cross(up, side) + height[..., None] * up
        basis = sh_basis(model.settings.sh_degree, -towards.reshape(-1, 3))
        basis[:, (degree + 1) ** 2 :] = 0
        with torch.no_grad():
            colour = shade(model.features(point[None]).expand(size * size, -1), basis).view(size, size, 3)
        balls.append(torch.where(inside, colour.clamp(0, 1), torch.ones(3)))
    return torch.cat(balls, dim=1)


def with_degree(model: PlenoxelGrid, degree: int) -> PlenoxelGrid:
    """Return a copy whose harmonics above `degree` are zero."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.values[:, 1 + 3 * (degree + 1) ** 2 :] = 0
    return twin


def with_lookup(model: PlenoxelGrid, nearest: bool) -> PlenoxelGrid:
    """Return the same numbers, read at the nearest vertex or between vertices."""
    twin = PlenoxelGrid(replace(model.settings, nearest=nearest)).to(model.aabb.device)
    twin.load_state_dict(model.state_dict())
    return twin


def pruned(model: PlenoxelGrid, weight: Float[Tensor, "X Y Z"], threshold: float, dilate: int = 2) -> PlenoxelGrid:
    """Return a copy without the voxels whose largest weight is below a threshold."""
    twin = copy.deepcopy(model)
    twin.prune(weight >= threshold, dilate)
    return twin


def at_size(model: PlenoxelGrid, n: int) -> PlenoxelGrid:
    """Return a copy, interpolated at about n voxels along an edge."""
    twin = copy.deepcopy(model)
    twin.resize(n**3)
    return twin


def shadows(kept: Bool[Tensor, "X Y Z"]) -> Float[Tensor, "h w"]:
    """Return how many voxels stand behind each other along z, y and x: a map from above and two from the sides, 1 for none."""
    maps = [kept.float().mean(axis) for axis in (2, 1, 0)]
    maps = [1 - picture.T.flip(0) / picture.max().clamp_min(1e-6) for picture in maps]
    tall = max(len(picture) for picture in maps)
    padded = [torch.nn.functional.pad(picture, (2, 2, tall - len(picture), 0), value=1.0) for picture in maps]
    return torch.cat(padded, dim=1)


@torch.no_grad()
def free_air(scene: Scene, points: Float[Tensor, "N 3"], margin: float, split: str = "train") -> Bool[Tensor, "N"]:
    """Return which points some picture's true depth shows to be empty: nearer than what is seen there, or before nothing.

    Args:
        margin: world units; two voxels keep the skin of surfaces out.
    """
    free = torch.zeros(len(points), dtype=torch.bool)
    for frame in scene.frames(split).tolist():
        camera = scene.cameras[frame]
        pixels, z = (value[0] for value in project(camera, points))
        column, row = pixels.floor().long().unbind(-1)
        inside = (z > 0) & (column >= 0) & (row >= 0) & (column < camera.width) & (row < camera.height)
        depth = scene.depth[frame][row.clamp(0, camera.height - 1), column.clamp(0, camera.width - 1)]
        free |= inside & ((depth == 0) | (z < depth - margin))
    return free


def floater_mass(model: PlenoxelGrid, scene: Scene) -> float:
    """Return the opacity of voxels in air that the true depth maps show to be free, summed, in voxels of 1 % of the box's edge.

    The depth maps of all training views count, also for a grid that was trained on a few of them.
    """
    free = free_air(scene, model.positions().reshape(-1, 3).cpu(), 2 * model.voxel).view(model.shape)
    unit = 0.01 * float((model.aabb[1] - model.aabb[0]).amax())
    return float(model.alpha().cpu()[free].sum()) * (model.voxel / unit) ** 3


def trace_psnr(score: Callable[[], float], every: float = 0.3) -> tuple[Callable[[int, float], None], list[tuple[float, float]]]:
    """Return a function for `fit`'s `watch` that scores about every so many seconds of training, and the list it fills."""
    trace: list[tuple[float, float]] = []

    def watch(step: int, spent: float) -> None:
        if not trace or spent - trace[-1][0] >= every:
            trace.append((spent, score()))

    return watch, trace


def seconds_to(trace: list[tuple[float, float]], level: float) -> float:
    """Return the seconds after which a level was first seen, infinity when never.

    >>> seconds_to([(1.0, 20.0), (3.0, 24.0)], 22.0)
    3.0
    """
    return next((t for t, value in trace if value >= level), float("inf"))


def ray_profile(density: Float[Tensor, "S"], delta: float) -> dict[str, Float[Tensor, "S"]]:
    """Return transmittance before, and weight of, each sample of a ray of given densities and step."""
    depth = density * delta
    before = torch.exp(-(depth.cumsum(0) - depth))
    return {"transmittance": before, "weight": before * -torch.expm1(-depth)}


def dead_cell(density: float, n_steps: int = 60) -> list[float]:
    """Return how the density of a single cube changes when one black pixel wants it opaque: with a ReLU, below zero, never.

    Args:
        density: of all voxels at the start.
    """
    model = PlenoxelGrid(PlenoxelGridSettings(n_voxels=2**3, sh_degree=0, density_init=density))
    camera = Cameras(*_one_pixel(), 1, 1)
    bank = RayBank(camera_rays(camera), torch.zeros(1, 3))
    values: list[float] = []
    recipe = Recipe(sizes=(2,), grow_at=(), n_steps=n_steps, n_rays=8, sh_degree=0, lr_density=(0.5, 0.5), lr_colour=(1e-6, 1e-6))
    recipe = replace(recipe, tv_density=0.0, tv_colour=0.0)
    fit(
        model,
        bank,
        recipe,
        torch.Generator().manual_seed(0),
        0.0,
        watch=lambda *_: values.append(float(model.values[1:, 0].detach().mean())),
    )
    return values


def _one_pixel() -> tuple[Tensor, Tensor]:
    """Return pose and intrinsics of a camera of one pixel in front of the box."""
    from nsw.cameras import intrinsics, look_at

    return look_at(torch.tensor([[0.0, -3.0, 0.0]])), intrinsics(10.0, 1, 1)


@torch.enable_grad()
def trained(
    scene: Scene, bank: RayBank, recipe: Recipe, generator: torch.Generator, box: Float[Tensor, "2 3"] | None = None
) -> PlenoxelGrid:
    """Return a grid trained by a recipe from the beginning."""
    model = new_grid(scene.aabb.to(bank.colours.device) if box is None else box, recipe)
    fit(model, bank, recipe, generator, scene.near)
    return model


def picture(model: PlenoxelGrid, view: Cameras, near: float) -> Float[Tensor, "H W 3"]:
    """Return one view as an image."""
    return plenoxels.render_view(model, view, near).rgb[0]

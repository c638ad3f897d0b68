"""Looking at a grid without a network: slices, glyphs, what pruning takes, density where the pictures show free air."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import max_pool2d

from nsw import metrics
from nsw.cameras import project
from nsw.kernels.harmonics import sh_basis
from nsw.kernels.voxel_march_reference import shade
from nsw.methods import plenoxels
from nsw.methods.dvgo_stages import RayBank
from nsw.methods.plenoxels_fit import Recipe, fit, new_grid
from nsw.models.plenoxel_grid import PlenoxelGrid, PlenoxelGridSettings
from nsw.renderers.render import Render
from nsw.renderers.volume import composite
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
    air = torch.where(model.kept[:, :, k, None], mean.new_ones(3), mean.new_tensor([0.72, 0.82, 0.92]))
    return (opacity * mean + (1 - opacity) * air).transpose(0, 1).flip(0)


def retuned_slice(retuned: Callable[[float], PlenoxelGrid], height: float, log_tv: float) -> Float[Tensor, "y x 3"]:
    """Return `density_slice` of the grid that a weight of total variation makes, enlarged."""
    return enlarged(density_slice(retuned(log_tv), height), 320)


def glyphs(
    model: PlenoxelGrid, points: Float[Tensor, "P 3"], normals: Float[Tensor, "P 3"], degree: int = 2, size: int = 48
) -> Float[Tensor, "s w 3"]:
    """Return a row of small balls: the colours that the voxels at P points show to viewers all around, seen along the normals.

    A ball's spot with normal n has the colour for a viewer in direction n.

    Args:
        degree: harmonics above it are left out.
    """
    v, u = torch.meshgrid(*[torch.linspace(1, -1, size, device=points.device)] * 2, indexing="ij")
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
        balls.append(torch.where(inside, colour.clamp(0, 1), colour.new_ones(3)))
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
    free = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    for frame in scene.frames(split).tolist():
        camera, depth = scene.cameras[frame].to(points.device), scene.depth[frame].to(points.device)
        pixels, z = (value[0] for value in project(camera, points))
        column, row = pixels.floor().long().unbind(-1)
        inside = (z > 0) & (column >= 0) & (row >= 0) & (column < camera.width) & (row < camera.height)
        depth = torch.where(depth > 0, depth, torch.inf)
        nearest = -max_pool2d(-depth[None, None], 3, stride=1, padding=1)[0, 0]  # a pixel at an outline is both near and far
        free |= inside & (z < nearest[row.clamp(0, camera.height - 1), column.clamp(0, camera.width - 1)] - margin)
    return free


def free_voxels(model: PlenoxelGrid, scene: Scene) -> Bool[Tensor, "X Y Z"]:
    """Return which voxels the true depth maps of all training views show to be air, two voxels away from surfaces."""
    return free_air(scene, model.positions().reshape(-1, 3), 2 * model.voxel).view(model.shape)


def floater_mass(model: PlenoxelGrid, free: Bool[Tensor, "X Y Z"]) -> float:
    """Return the opacity of voxels in free air, summed, in voxels of 1 % of the box's edge.

    Args:
        free: `free_voxels` of a grid of this shape.
    """
    unit = 0.01 * float((model.aabb[1] - model.aabb[0]).amax())
    return float(model.alpha()[free].sum()) * (model.voxel / unit) ** 3


def against_depth(
    grids: Mapping[str, PlenoxelGrid], shots: Mapping[str, Render], scene: Scene
) -> tuple[dict[str, float], dict[str, float]]:
    """Return floater masses of grids as fine as the first, and depth errors of test views, by name; nothing without true depth.

    Args:
        shots: renders of all test views.
    """
    if not scene.knows("depth"):
        return {}, {}
    first, depth = next(iter(grids.values())), scene.depth[scene.frames("test")]
    air = free_voxels(first, scene)
    floaters = {name: floater_mass(grid, air) for name, grid in grids.items() if grid.shape == first.shape}
    return floaters, {name: metrics.depth_error(shot.depth, depth) for name, shot in shots.items()}


@torch.enable_grad()
def trained(
    scene: Scene, bank: RayBank, recipe: Recipe, generator: torch.Generator, box: Float[Tensor, "2 3"] | None = None
) -> PlenoxelGrid:
    """Return a grid trained by a recipe from the beginning."""
    model = new_grid(scene.aabb.to(bank.colours.device) if box is None else box, recipe)
    fit(model, bank, recipe, generator, scene.near)
    return model


def lookup_picture(nearest: bool, n: int = 5, size: int = 120, seed: int = 0) -> Float[Tensor, "s s 3"]:
    """Return a slice through a small grid of random colours, read at the nearest vertex or between vertices."""
    grid = PlenoxelGrid(PlenoxelGridSettings(n_voxels=n**3, sh_degree=0, nearest=nearest))
    place = torch.linspace(-0.999, 0.999, size)
    points = torch.cat([torch.cartesian_prod(place, place), torch.full((size * size, 1), 0.5)], dim=-1)
    with torch.no_grad():
        grid.values[1:, 1:4] = 4 * torch.rand(n**3, 3, generator=torch.Generator().manual_seed(seed)) - 2
        colour = shade(grid.features(points), torch.full((size * size, 1), 0.28209479))
    return colour.view(size, size, 3).clamp(0, 1)


def random_balls(degree: int, n: int = 5, seed: int = 0) -> Float[Tensor, "s w 3"]:
    """Return the balls of some random harmonics, those above `degree` left out."""
    grid = PlenoxelGrid(PlenoxelGridSettings(n_voxels=n**3))
    points = grid.positions().reshape(-1, 3)[:n]
    with torch.no_grad():
        grid.values[1:, 1:28] = torch.randn(n**3, 27, generator=torch.Generator().manual_seed(seed)) * 0.5
    return glyphs(grid, points, torch.tensor([[0.3, -1.0, 0.5]]).expand(n, 3), degree, size=72)


def labelled(image: Float[Tensor, "H W 3"], text: str) -> Float[Tensor, "h W 3"]:
    """Return a picture with a line of text under it."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    strip = Image.new("RGB", (image.shape[1], 22), "white")
    ImageDraw.Draw(strip).text((4, 3), text, fill="black", font=ImageFont.load_default(14))
    return torch.cat([image.cpu(), torch.from_numpy(np.asarray(strip).astype(np.float32) / 255)], dim=0)


def prune_picture(
    model: PlenoxelGrid, weight: Float[Tensor, "X Y Z"], threshold: float, scene: Scene, dilate: int = 2, width: int = 360
) -> Float[Tensor, "h w 3"]:
    """Return the first test view of the pruned grid over the shadows of what is left, with the voxels kept and the PSNR."""
    small = pruned(model, weight, threshold, dilate)
    shot, error = test_shot(small, scene)
    share, maps = float(small.kept.float().mean()), enlarged(shadows(small.kept.cpu())[..., None].expand(-1, -1, 3), width)
    return labelled(
        torch.cat([enlarged(shot, width), maps]), f"{int(small.kept.sum()):,} voxels, {share:.0%} of the box, {error:.2f} dB"
    )


def test_shot(model: PlenoxelGrid, scene: Scene) -> tuple[Float[Tensor, "H W 3"], float]:
    """Return the first test view as a grid renders it, and its PSNR in dB."""
    view = scene.views("test")[0].to(model.aabb.device)
    shot = plenoxels.render_view(model, view, scene.near).rgb[0].cpu().clamp(0, 1)
    return shot, metrics.psnr(shot, scene.pixels(scene.frames("test")[:1])[0])


def middle(image: Float[Tensor, "H W 3"], size: int = 320) -> Float[Tensor, "h w 3"]:
    """Return the middle half of a picture, enlarged."""
    height, width = image.shape[:2]
    return enlarged(image[height // 4 : -(height // 4), width // 4 : -(width // 4)], size)


def enlarged(image: Float[Tensor, "H W 3"], size: int) -> Float[Tensor, "h w 3"]:
    """Return a picture enlarged without smoothing so that its longer side has `size` pixels."""
    height, width = (round(n * size / max(image.shape[:2])) for n in image.shape[:2])
    return torch.nn.functional.interpolate(image.permute(2, 0, 1)[None], size=(height, width))[0].permute(1, 2, 0)


def density_gradient(densities: Float[Tensor, "S"], colours: Float[Tensor, "S"], delta: float = 1.0) -> Float[Tensor, "S"]:
    """Return how a ray's grey value over black changes with the density of each of its samples, by autograd."""
    sigma = torch.as_tensor(densities, dtype=torch.float32).requires_grad_()
    edges = torch.arange(len(sigma) + 1)[None] * delta
    rgb = composite(sigma[None], torch.as_tensor(colours)[None, :, None].expand(1, -1, 3), edges, 0.0)[0]
    return torch.autograd.grad(rgb[0, 0], sigma)[0]


@torch.enable_grad()
def fit_opacity(activation: Callable[[Tensor], Tensor], start: float, target: float = 0.3, n_steps: int = 300) -> float:
    """Return the opacity that one voxel reaches when gradient descent pulls it from a raw value `start` towards `target`."""
    raw = torch.tensor(start, requires_grad=True)
    optimizer = torch.optim.RMSprop([raw], lr=0.02)
    for _ in range(n_steps):
        optimizer.zero_grad()
        (1 - torch.exp(-activation(raw)) - target).square().backward()
        optimizer.step()
    return float(1 - torch.exp(-activation(raw.detach())))

"""Looking at DVGO: one interpolated cell, a disc on a tiny grid, opacity across a surface, clouds near cameras, pictures."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nsw.cameras import Cameras, camera_rays, pixel_rays
from nsw.errors import InputError
from nsw.kernels.grid_lookup import grid_lookup
from nsw.methods import dvgo
from nsw.models.dense_grid import ACTIVATIONS, HALF_VOXEL, DenseGrid
from nsw.scenes.scene import Scene

SQUARE = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])


def opacity_on_square(raw: Float[Tensor, "X Y 1 1"], n: int, activation: Callable, shift: float = 0.0) -> Float[Tensor, "n n"]:
    """Return the opacity that a flat grid shows at n x n pixel centres, for samples half a voxel long."""
    place = (torch.arange(n) + 0.5) / n
    points = torch.cat([torch.cartesian_prod(place, place), torch.zeros(n * n, 1)], dim=-1)
    sigma = activation(lambda grid: grid_lookup(grid, points, SQUARE), raw, shift)
    return -torch.expm1(-HALF_VOXEL * sigma).view(n, n)


def one_cell(
    top_left: float, top_right: float, bottom_left: float, bottom_right: float, n: int = 96
) -> Float[Tensor, "n three_n_plus_gaps"]:
    """Return the opacity inside one cell with these raw values at its corners: pre-, in- and post-activation side by side."""
    raw = torch.tensor([[top_left, top_right], [bottom_left, bottom_right]], dtype=torch.float32)[..., None, None]
    post, inside, pre = (opacity_on_square(raw, n, activation) for activation in ACTIVATIONS)
    gap = torch.full((n, n // 12), 0.5)
    return torch.cat([pre, gap, inside, gap, post], dim=1)


def disc(n: int = 64, radius: float = 0.33) -> Float[Tensor, "n n"]:
    """Return a picture that is 1 inside of a disc around its middle and 0 outside."""
    place = (torch.arange(n) + 0.5) / n - 0.5
    return (place[:, None] ** 2 + place**2 < radius**2).float()


@torch.enable_grad()
def fit_picture(
    target: Float[Tensor, "n n"], activation: Callable, n_grid: int = 7, n_steps: int = 400, lr: float = 0.5
) -> Float[Tensor, "n n"]:
    """Fit n_grid x n_grid raw values to an opacity picture and return what they show."""
    raw = torch.zeros(n_grid, n_grid, 1, 1, requires_grad=True)
    optimizer = torch.optim.Adam([raw], lr=lr)
    for _ in range(n_steps):
        optimizer.zero_grad()
        (opacity_on_square(raw, len(target), activation) - target).square().mean().backward()
        optimizer.step()
    return opacity_on_square(raw, len(target), activation).detach()


def overlap(a: Float[Tensor, "n n"], b: Float[Tensor, "n n"]) -> float:
    """Return intersection over union of what is above one half in two pictures.

    >>> overlap(torch.tensor([[0.9, 0.8]]), torch.tensor([[1.0, 0.0]]))
    0.5
    """
    a, b = a > 0.5, b > 0.5
    return float((a & b).sum() / (a | b).sum().clamp_min(1))


def surface_points(
    scene: Scene, n: int = 400, split: str = "test", seed: int = 0
) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"]]:
    """Return random points on true surfaces and their outward normals, from a scene's depth and normal maps."""
    frames = scene.frames(split)
    depth, normals = scene.depth[frames], scene.normals[frames]
    known = ((depth > 0) & (normals.norm(dim=-1) > 0.5)).nonzero()
    camera, row, column = known[torch.randperm(len(known), generator=torch.Generator().manual_seed(0))[:n]].unbind(-1)
    points = pixel_rays(scene.views(split), camera, row, column).at_depth(depth[camera, row, column])
    return points, torch.nn.functional.normalize(normals[camera, row, column], dim=-1)


@torch.no_grad()
def opacity_profile(
    model: DenseGrid, points: Float[Tensor, "n 3"], normals: Float[Tensor, "n 3"], reach: float = 4.0, n_samples: int = 161
) -> tuple[Float[Tensor, "S"], Float[Tensor, "n S"]]:
    """Return the opacity that has built up on the way through each surface, from outside to inside.

    Args:
        reach: how far outside and inside to go, in present voxels.

    Returns:
        Depths below the surface in present voxels, and opacities in [0, 1].
    """
    voxel = model.sample_length / HALF_VOXEL
    points, normals = points.to(model.aabb), normals.to(model.aabb)
    t = torch.linspace(-reach, reach, n_samples, device=points.device)
    where = points[:, None] - (t * voxel)[None, :, None] * normals[:, None]
    density = model.density(where.reshape(-1, 3)).view(len(points), n_samples)
    return t, -torch.expm1(-(density * voxel * (t[1] - t[0])).cumsum(-1))


def transition_width(t: Float[Tensor, "S"], opacity: Float[Tensor, "n S"]) -> float:
    """Return the median distance between 10 and 90 % opacity, over the profiles that get there; in the unit of t."""
    whole = opacity[opacity[:, -1] > 0.9]
    first, last = ((whole > level).float().argmax(-1) for level in (0.1, 0.9))
    return float((t[last] - t[first]).median()) if len(whole) else float("nan")


@torch.no_grad()
def near_mass(model: DenseGrid, cameras: Cameras, near: float, far: float, share: float = 0.1) -> float:
    """Return the mean opacity of the voxels in the first `share` of the way from near to far of any camera.

    Nothing real is there when near and far were chosen well: what is, is a cloud.
    """
    distance = torch.cdist(model.vertices().reshape(-1, 3), cameras.origins.to(model.aabb)).amin(1).view(model.shape)
    close = (distance > near) & (distance < near + share * (far - near))
    return float(model.alpha()[close].mean())


def side_view(values: Float[Tensor, "X Y Z"]) -> Float[Tensor, "Z X"]:
    """Return the largest value along y, seen from the side with z upwards."""
    return values.amax(1).T.flip(0)


def box_in_side_view(model: DenseGrid, box: Float[Tensor, "2 3"]) -> Bool[Tensor, "Z X"]:
    """Return the outline of a box in the side view of a model's voxels."""
    vertices = model.vertices()[:, 0]
    x, z = vertices[..., 0].T.flip(0), vertices[..., 2].T.flip(0)
    edge_x, edge_z = (float((model.aabb[1, a] - model.aabb[0, a]) / (model.shape[a] - 1)) for a in (0, 2))
    within = (x >= box[0, 0] - edge_x) & (x <= box[1, 0] + edge_x) & (z >= box[0, 2] - edge_z) & (z <= box[1, 2] + edge_z)
    inner = (x >= box[0, 0]) & (x <= box[1, 0]) & (z >= box[0, 2]) & (z <= box[1, 2])
    return within & ~inner


@torch.no_grad()
def samples_a_ray(model: DenseGrid, cameras: Cameras, near: float, chunk: int = 16384) -> float:
    """Return the mean number of samples whose density a ray of these pictures asks for."""
    rays = camera_rays(cameras.to(model.aabb.device))
    asked = sum(dvgo.render(model, rays[i : i + chunk], near).n_asked for i in range(0, len(rays), chunk))
    return asked / len(rays)


def at_size(model: DenseGrid, n: int) -> DenseGrid:
    """Return a copy of a grid, interpolated to about n voxels along an edge."""
    small = copy.deepcopy(model)
    small.resize(n**3)
    return small


def without_mask(model: DenseGrid) -> DenseGrid:
    """Return a copy of a grid that takes every cell for possibly solid."""
    whole = copy.deepcopy(model)
    whole.occupied = torch.ones(1, 1, 1, dtype=torch.bool, device=model.occupied.device)
    return whole


def complaint(function: Callable, *inputs: object) -> str:
    """Call a function with input that it has to refuse, and return what it says."""
    try:
        function(*inputs)
    except InputError as error:
        return str(error)
    return "It found nothing to complain about."

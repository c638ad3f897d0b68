"""DVGO (Sun, Sun, Chen, CVPR 2022): what the paper adds to a voxel grid and volume rendering.

The grid with its post-activation is `nsw.models.dense_grid`, its renderer `nsw.renderers.grids`, the optimiser that skips
zero gradients `nsw.kernels.masked_adam`; the two stages as functions are in `nsw.methods.dvgo_stages`. Written from the papers.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import max_pool3d

from nsw.cameras import Cameras, Rays, pixel_rays, project
from nsw.errors import InputError
from nsw.kernels.masked_adam import MaskedAdam
from nsw.models.dense_grid import DenseGrid, lattice
from nsw.renderers.grids import GridRender
from nsw.renderers.grids import render as render
from nsw.renderers.grids import render_view as render_view
from nsw.renderers.volume import hits_cells

EPSILON = 1e-10  # of Adam: a transparent start has gradients near 1e-10, which the usual 1e-8 would drown
HIDDEN = -100.0  # a raw density that stays transparent whatever the shift


def loss_per_point(out: GridRender, colours: Float[Tensor, "R 3"]) -> Float[Tensor, ""]:
    r"""Return how far the colour of each sample is from its pixel's, weighted by its share of that pixel.

    $$\frac1R \sum_i \mathrm{sg}(w_i) \lVert c_i - C_{r(i)} \rVert^2$$  (DVGO, eq. 12; sg stops the gradient)
    """
    error = (out.rgbs - colours[out.ray_indices]).square().sum(-1)
    return (out.weights.detach() * error).sum() / len(colours)


def frusta_box(cameras: Cameras, near: float, far: float) -> Float[Tensor, "2 3"]:
    """Return the box around all training frusta, from rays through corners, edges and middle of every picture.

    Distances count along the rays, so a frustum ends in a bulge: the middle ray reaches farther than the corners' box.

    Args:
        near, far: distances between which a frustum counts, world units.
    """
    rows, columns = (torch.tensor([0, n // 2, n - 1], device=cameras.Ks.device) for n in (cameras.height, cameras.width))
    index = torch.cartesian_prod(torch.arange(len(cameras), device=rows.device), rows, columns)
    rays = pixel_rays(cameras, *index.unbind(-1))
    ends = torch.cat([rays.origins + distance * rays.directions for distance in (near, far)])
    return torch.stack([ends.amin(0), ends.amax(0)])


@torch.no_grad()
def count_views(model: DenseGrid, cameras: Cameras, near: float, far: float) -> Int[Tensor, "X Y Z"]:
    """Return for each voxel how many cameras have it in their picture, between the distances `near` and `far`."""
    points = model.vertices().reshape(-1, 3)
    counts = torch.zeros(len(points), dtype=torch.long, device=points.device)
    for i in range(len(cameras)):
        pixels, z = project(cameras[i], points)
        t = (points - cameras.origins[i]).norm(dim=-1)
        inside = (pixels[0] >= 0).all(-1) & (pixels[0, :, 0] <= cameras.width) & (pixels[0, :, 1] <= cameras.height)
        counts += inside & (z[0] > 0) & (t >= near) & (t <= far)
    return counts.view(model.shape)


@torch.no_grad()
def hide_voxels(model: DenseGrid, cameras: Cameras, near: float, counts: Int[Tensor, "X Y Z"] | None = None) -> None:
    """Make voxels nearer than `near` to a camera transparent, and those that two views or fewer see."""
    distance = torch.cdist(model.vertices().reshape(-1, 3), cameras.origins).amin(1).view(model.shape)
    hidden = distance <= near
    if counts is not None:
        hidden |= counts <= 2
    model.raw_density[hidden] = HIDDEN


def view_rate(counts: Int[Tensor, "X Y Z"]) -> Float[Tensor, "X Y Z 1"]:
    r"""Return each voxel's learning rate relative to the best seen one's.

    $$\mathrm{lr}_v = \mathrm{lr} \cdot n_v / n_{\max}$$  (DVGO, section 4.2)
    """
    return (counts / counts.max().clamp_min(1)).float()[..., None]


def make_optimizer(model: DenseGrid, lr: float = 0.1, lr_network: float = 1e-3, counts: Tensor | None = None) -> MaskedAdam:
    """Return the optimiser of both grids (zero gradients skipped) and of the colour network.

    Args:
        counts: views of each voxel; given, they scale the density's learning rate.
    """
    groups = [dict(params=[model.raw_density, model.features], lr=lr)]
    if model.mlp is not None:
        groups.append(dict(params=list(model.mlp.parameters()), lr=lr_network, skip_zero=False))
    optimizer = MaskedAdam(groups, eps=EPSILON)
    if counts is not None:
        optimizer.rates[model.raw_density] = view_rate(counts)
    model.gradients_in_place = True  # this optimiser empties the gradients that the lookups add to
    for group in optimizer.param_groups:
        group["start"] = group["lr"]
    return optimizer


def decay(optimizer: MaskedAdam, progress: float, factor: float = 0.1) -> None:
    """Set learning rates to `factor` to the power of `progress` times their start."""
    for group in optimizer.param_groups:
        group["lr"] = group["start"] * factor**progress


def tight_box(coarse: DenseGrid, threshold: float = 1e-3, margin: float = 1.05) -> Float[Tensor, "2 3"]:
    """Return the box around voxels more opaque than `threshold`, enlarged about its middle.

    Raises:
        InputError: when the coarse stage found nothing.
    """
    solid = coarse.vertices()[coarse.alpha() > threshold]
    if len(solid) == 0:
        raise InputError(
            f"The coarse stage found no voxel more opaque than {threshold:g}, so there is nothing to refine: check that near "
            "and far hold the scene and that the background colour is the pictures' (a white scene over white looks empty), "
            "or train more coarse steps."
        )
    low, high = solid.amin(0), solid.amax(0)
    half = ((high - low) / 2).clamp_min(float(coarse.voxel) / 2)  # a single layer of voxels still has a thickness
    return torch.stack([(low + high) / 2 - margin * half, (low + high) / 2 + margin * half])


def spread(alpha: Float[Tensor, "X Y Z"]) -> Float[Tensor, "X Y Z"]:
    """Return the largest opacity among each voxel and its 26 neighbours."""
    return max_pool3d(alpha[None, None], 3, stride=1, padding=1)[0, 0]


@torch.no_grad()
def free_space_mask(
    coarse: DenseGrid, aabb: Float[Tensor, "2 3"], shape: tuple[int, int, int], threshold: float = 1e-3
) -> Bool[Tensor, "x y z"]:
    """Return which cells of a grid over `aabb` are not free: next to a coarse voxel at least as opaque as `threshold`."""
    near_solid = spread(coarse.alpha()) >= threshold
    centres = lattice(aabb, shape, centres=True).reshape(-1, 3)
    size = torch.tensor(coarse.shape, device=centres.device)
    unit = (centres - coarse.aabb[0]) / (coarse.aabb[1] - coarse.aabb[0])
    i, j, k = (unit * (size - 1)).round().long().clamp_min(0).minimum(size - 1).unbind(-1)
    return near_solid[i, j, k].view(shape)


@torch.no_grad()
def inherit_density(fine: DenseGrid, coarse: DenseGrid, most: float = 0.9) -> None:
    r"""Begin a fine grid with the densities of a coarse one, where these are above its own start.

    $$\ddot\sigma = \max\big(0,\ \mathrm{softplus}^{-1}(\sigma_{\rm coarse}\, v_{\rm fine} / v_{\rm coarse}) - b\big)$$

    The paper begins with even fog, which takes hundreds of steps to clear: a run of seconds has no time to find everything twice.

    Args:
        most: opacity of a fine voxel at most, so that a coarse voxel that is too large can still be carved.
    """
    sigma = coarse.sigma(fine.vertices().reshape(-1, 3)) * fine.voxel / coarse.voxel
    sigma = sigma.clamp(1e-9, -math.log1p(-most))
    raw = sigma + torch.log(-torch.expm1(-sigma)) - fine.shift
    fine.raw_density.copy_(raw.clamp_min(0).view_as(fine.raw_density))


@torch.no_grad()
def refresh_mask(model: DenseGrid, threshold: float = 1e-3) -> float:
    """Call cells free where opacity has gone, and return the share that is left. The mask only ever shrinks."""
    centres = lattice(model.aabb, tuple(model.occupied.shape), centres=True).reshape(-1, 3)
    alpha = -torch.expm1(-model.sigma(centres)).view(model.occupied.shape)
    model.occupied &= spread(alpha) > threshold
    return float(model.occupied.float().mean())


def hits_mask(model: DenseGrid, rays: Rays, near: float = 0.0) -> Bool[Tensor, "R"]:
    """Return which rays pass through a cell that is not free; the others can only show the background."""
    return hits_cells(model, rays, model.occupancy(), model.sample_length, near)

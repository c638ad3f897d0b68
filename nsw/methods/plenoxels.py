"""Plenoxels (Fridovich-Keil, Yu et al., CVPR 2022): what the paper adds to a sparse voxel grid and volume rendering.

The grid is `nsw.models.plenoxel_grid`, its renderer `nsw.renderers.voxels` around the march of `nsw.kernels.voxel_march`,
the optimiser `nsw.kernels.row_rmsprop`; whole trainings as functions are in `nsw.methods.plenoxels_fit`. Written from the
paper, with the official code's constants.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from nsw.cameras import Rays
from nsw.errors import InputError
from nsw.kernels.row_rmsprop import RowRMSProp
from nsw.kernels.voxel_march import RowGradient, max_weights
from nsw.kernels.voxel_tv import total_variation
from nsw.models.plenoxel_grid import PlenoxelGrid
from nsw.models.rebuilding import rebuild
from nsw.renderers.voxels import VoxelRender as VoxelRender
from nsw.renderers.voxels import march_arguments, rays_in_torch_calls
from nsw.renderers.voxels import render as render
from nsw.renderers.voxels import render_view as render_view


def lr_density(progress: float, start: float = 30.0, end: float = 0.05, warm_up: float = 0.06) -> float:
    r"""Return the learning rate of density when a share `progress` of all steps is done.

    $$\mathrm{lr}(k) = \mathrm{lr}_0^{1-k}\,\mathrm{lr}_1^{k}\, \big(0.01 + 0.99 \sin(\tfrac\pi2 \min(k / k_w, 1))\big)$$
    (official code)

    >>> round(lr_density(0.0), 3), round(lr_density(0.06), 1), round(lr_density(1.0), 3)
    (0.3, 20.4, 0.05)
    """
    rate = math.exp((1 - progress) * math.log(start) + progress * math.log(end))
    warm = math.sin(0.5 * math.pi * min(progress / warm_up, 1.0)) if warm_up > 0 else 1.0
    return rate * (0.01 + 0.99 * warm)


def lr_colour(progress: float, start: float = 1e-2, end: float = 5e-6) -> float:
    """Return the learning rate of the harmonics, log-linear from `start` to `end`.

    >>> round(lr_colour(0.5), 6)
    0.000224
    """
    return math.exp((1 - progress) * math.log(start) + progress * math.log(end))


def loss_tv(
    model: PlenoxelGrid, generator: torch.Generator, density: float = 1e-5, colour: float = 1e-3, share: float = 0.01
) -> Float[Tensor, ""]:
    r"""Return the total variation of density and harmonics on a random contiguous share of the voxels.

    $$\frac1{|\mathcal V|} \sum_{v \in \mathcal V,\, q} \lambda_q \sqrt{\Delta_x^2 + \Delta_y^2 + \Delta_z^2 + \epsilon}$$
    (Plenoxels, eq. 3)

    Args:
        density, colour: lambda of either.
        share: of the rows; small grids want all of them, or the term is noise.
    """
    rates = model.values.new_full((model.values.shape[1],), colour)
    rates[:1].fill_(density)  # `rates[0] = density` would copy it from the host's memory
    n_rows = len(model.values) - 1
    first = torch.randint(1, n_rows + 1, (1,), generator=generator, device=generator.device)
    first = first if first.is_cuda else int(first)  # a GPU's number stays there: fetching it would be waiting for all else
    count = max(1, round(share * n_rows))
    return total_variation(model.values, model.links, model.vertices, first, count, rates, model.row_gradient())


def loss_beta(left: Float[Tensor, "R"], eps: float = 1e-3) -> Float[Tensor, ""]:
    r"""Return how far rays are from being opaque or empty, the mean over rays: least where each lets all light pass or none.

    $$\log(T_{\rm end} + \epsilon) + \log(1 - T_{\rm end} + \epsilon)$$  (Plenoxels, for real scenes; the paper has no epsilon, and
    no least value)

    Args:
        left: transmittance behind the last sample, in [0, 1].

    >>> [round(float(loss_beta(torch.tensor([left]))), 1) for left in (0.0, 0.5, 1.0)]
    [-6.9, -1.4, -6.9]
    """
    return ((left + eps).log() + (1 - left + eps).log()).mean()


def loss_sparsity(model: PlenoxelGrid, generator: torch.Generator, share: float = 0.01) -> Float[Tensor, ""]:
    r"""Return the mean of the Cauchy prior over a random contiguous share of the voxels.

    $$\frac1{|\mathcal V|} \sum_{v \in \mathcal V} \log(1 + 2\, \max(0, \sigma_v)^2)$$  (Plenoxels, for real scenes, with the
    samples of rays in the place of voxels)
    """
    n_rows = len(model.values) - 1
    first = torch.randint(n_rows, (1,), generator=generator, device=generator.device)
    rows = (first + torch.arange(max(1, round(share * n_rows)), device=first.device)) % n_rows + 1
    return _Cauchy.apply(model.values, rows, model.row_gradient())


class _Cauchy(torch.autograd.Function):
    """The Cauchy prior of some rows' densities; the gradient goes straight into the buffer, as that of rays does."""

    @staticmethod
    def forward(ctx, values: Tensor, rows: Int[Tensor, "n"], into: RowGradient) -> Tensor:
        sigma = values[rows, 0].clamp_min(0)
        ctx.kept = rows, sigma, into
        return (2 * sigma.square()).log1p().mean()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[None, None, None]:
        rows, sigma, into = ctx.kept
        into.values[rows, 0] += grad / len(rows) * 4 * sigma / (1 + 2 * sigma.square())
        into.touched[rows] |= (sigma > 0).byte()
        return None, None, None


@torch.no_grad()
def visible_weight(model: PlenoxelGrid, rays: Rays, near: float = 0.0, chunk: int = 1 << 14) -> Float[Tensor, "X Y Z"]:
    r"""Return for each vertex the largest weight $T_i \alpha_i$ that any of the rays gives to a sample in its cells.

    All training rays have to be asked: a single view from behind decides whether the back of an object survives.
    """
    if model.values.device.type != "cpu":
        return _visible_weight_reference(model, rays, near, chunk)
    best, skip = torch.zeros(model.shape), model.empty_space()
    for i in range(0, len(rays), chunk):
        where = march_arguments(model, rays[i : i + chunk], near)
        max_weights(model.values, model.links, **where, skip=skip, best=best)
    return best


def _visible_weight_reference(model: PlenoxelGrid, rays: Rays, near: float, chunk: int) -> Tensor:
    """Return the same from torch calls, a few rays at a time."""
    from nsw.kernels.voxel_march_reference import corners

    best, few = torch.zeros(model.links.numel(), device=rays.origins.device), min(chunk, rays_in_torch_calls(model))
    places = torch.arange(best.numel(), device=best.device).view(model.shape)
    for i in range(0, len(rays), few):
        where = march_arguments(model, rays[i : i + few], near)
        n = int(((where["far"] - where["near"]).max() / where["step"]).ceil()) + 1
        t = where["near"][:, None] + (torch.arange(n, device=best.device) + 0.5) * where["step"]
        points = where["origins"][:, None] + t[..., None] * where["directions"][:, None]
        depth = model.density(points.reshape(-1, 3)).view(t.shape) * (t < where["far"][:, None]) * where["step"]
        weight = torch.exp(-(depth.cumsum(1) - depth)) * -torch.expm1(-depth)
        cell = corners(places, points.reshape(-1, 3), model.aabb)[0]
        best.scatter_reduce_(0, cell.reshape(-1), weight.reshape(-1, 1).expand(-1, 8).reshape(-1), "amax")
    return best.view(model.shape)


def prune_threshold(n_voxels_z: int) -> float:
    """Return the weight below which a voxel goes: 0.256 over the resolution to come (official code).

    >>> prune_threshold(512)
    0.0005
    """
    return 0.256 / n_voxels_z


def prune(
    model: PlenoxelGrid, optimizer: RowRMSProp | None, weight: Float[Tensor, "X Y Z"], threshold: float, dilate: int = 2
) -> float:
    """Drop voxels that no ray gives a weight of `threshold`, but for those within `dilate`; return the share that is kept.

    Raises:
        InputError: when nothing would be left.
    """
    keep = weight >= threshold
    if not bool(keep.any()):
        raise InputError(
            f"No voxel has a weight of {threshold:g} on any training ray, so pruning would leave nothing: train longer before "
            "it, or check near, the box and the background (a white scene over white looks empty)."
        )
    rebuild(model, optimizer, lambda: model.prune(keep, dilate))
    return float(model.kept.float().mean())

"""What the fused march through a sparse voxel grid means, in plain torch of any precision and on any device.

The grid: `links` [X, Y, Z] names for every vertex a row of `values` [K, C]. Row 0 is all zeros and stands for every vertex that
was pruned, so that a look-up needs no question. Channel 0 is raw density, channel 1 + 3 k + c the coefficient of harmonic k for
colour c; what follows fills up to `CHANNELS_STEP`, so that a row is made of whole cache lines.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nsw.kernels.harmonics import sh_basis

CHANNELS_STEP = 16  # 16 floats are one cache line
DENSITY_MIN = 1e-8  # at and below it a sample is skipped: this is the ReLU (official code)


def n_channels(sh_degree: int) -> int:
    """Return the length of a row: density and three sets of harmonics, filled up to whole cache lines.

    >>> n_channels(0), n_channels(1), n_channels(2)
    (16, 16, 32)
    """
    used = 1 + 3 * (sh_degree + 1) ** 2
    return -(-used // CHANNELS_STEP) * CHANNELS_STEP


def corners(
    links: Int[Tensor, "X Y Z"], points: Float[Tensor, "N 3"], aabb: Float[Tensor, "2 3"], nearest: bool = False
) -> tuple[Int[Tensor, "N 8"], Float[Tensor, "N 8"]]:
    """Return the rows of the 8 vertices around each point, and the trilinear weight of each.

    Args:
        points: world coordinates; outside of the box the border's vertices answer.
        nearest: give all weight to the nearest vertex.
    """
    size = torch.tensor(links.shape, device=points.device)
    unit = (points - aabb[0]) / (aabb[1] - aabb[0])
    place = (unit * (size - 1)).clamp_min(0).minimum((size - 1).to(points))
    first = place.long().minimum(size - 2)
    part = place - first
    if nearest:
        part = (part >= 0.5).to(part)
    rows, weights = [], []
    for corner in torch.cartesian_prod(*[torch.arange(2, device=points.device)] * 3):
        rows.append(links[tuple((first + corner).unbind(-1))])
        weights.append(torch.where(corner == 1, part, 1 - part).prod(-1))
    return torch.stack(rows, -1).long(), torch.stack(weights, -1)


def sparse_lookup(values: Float[Tensor, "K C"], rows: Int[Tensor, "N 8"], weights: Float[Tensor, "N 8"]) -> Float[Tensor, "N C"]:
    """Return the weighted sum of each point's 8 rows."""
    return torch.einsum("nec,ne->nc", values[rows], weights)


def shade(features: Float[Tensor, "N C"], basis: Float[Tensor, "N B"]) -> Float[Tensor, "N 3"]:
    r"""Return colours from interpolated coefficients.

    $$c = \max\Big(0,\ \tfrac12 + \sum_k Y_k(d)\,\theta_k(x)\Big)$$  (Plenoxels, section 3.1; no upper bound)

    >>> shade(torch.zeros(1, 16), torch.full((1, 4), 0.3)).tolist()
    [[0.5, 0.5, 0.5]]
    """
    theta = features[:, 1 : 1 + 3 * basis.shape[1]].view(-1, basis.shape[1], 3)
    return (0.5 + torch.einsum("nb,nbc->nc", basis, theta)).clamp_min(0.0)


def march_voxels_reference(
    values: Float[Tensor, "K C"],
    links: Int[Tensor, "X Y Z"],
    origins: Float[Tensor, "R 3"],
    directions: Float[Tensor, "R 3"],
    near: Float[Tensor, "R"],
    far: Float[Tensor, "R"],
    offset: Float[Tensor, "R"],
    aabb: Float[Tensor, "2 3"],
    step: float,
    delta: float,
    sh_degree: int,
    stop: float = 1e-7,
    nearest: bool = False,
) -> tuple[Float[Tensor, "R 3"], Float[Tensor, "R"], Float[Tensor, "R"]]:
    """Return colour without background, transmittance behind the last sample, and expected distance; see `march_voxels`."""
    n_samples = max(1, int(((far - near).max() / step).ceil()) + 1) if len(near) else 1
    t = near[:, None] + (torch.arange(n_samples, device=near.device) + offset[:, None]) * step
    where = origins[:, None] + t[..., None] * directions[:, None]
    with torch.no_grad():
        rows, weights = corners(links, where.reshape(-1, 3), aabb, nearest)
        density = (values[:, 0][rows] * weights).sum(-1).view(t.shape)
        density = torch.where((t < far[:, None]) & (density > DENSITY_MIN), density, torch.zeros_like(density))
        reaching = torch.exp(-delta * (density.cumsum(1) - density))
        ray, sample = ((density > 0) & (reaching >= stop)).nonzero(as_tuple=True)
    flat = ray * n_samples + sample
    features = sparse_lookup(values, rows[flat], weights[flat])
    depth = values.new_zeros(t.shape).index_put((ray, sample), delta * features[:, 0])
    weight = torch.exp(-(depth.cumsum(1) - depth)) * -torch.expm1(-depth)
    colour = shade(features, sh_basis(sh_degree, directions)[ray])
    rgb = torch.zeros_like(origins).index_add(0, ray, weight[ray, sample][:, None] * colour)
    left = torch.exp(-depth.sum(1))
    distance = (weight.detach() * t).sum(1) / (1 - left.detach()).clamp_min(1e-10)
    return rgb, left, torch.where(left < 1, distance, torch.zeros_like(distance))


def total_variation_reference(
    values: Float[Tensor, "K C"],
    links: Int[Tensor, "X Y Z"],
    rows: Int[Tensor, "n"],
    rates: Float[Tensor, "C"],
    epsilon: float = 1e-9,
) -> Float[Tensor, ""]:
    """Return the total variation at the vertices of the given rows; see `total_variation`."""
    size = links.shape
    flat = torch.zeros(len(values), dtype=torch.long, device=values.device)
    flat[links.reshape(-1).long()] = torch.arange(links.numel(), device=values.device)
    place = torch.stack(torch.unravel_index(flat[rows], size), -1)
    own, square = values[rows], epsilon
    for axis in range(3):
        beside = place.clone()
        beside[:, axis] = (beside[:, axis] + 1).clamp_max(size[axis] - 1)
        neighbour = links[tuple(beside.unbind(-1))].long()
        there = (neighbour > 0)[:, None] & (beside != place).any(-1, keepdim=True)
        square = square + torch.where(there, (values[neighbour] - own) * (size[axis] / 256), torch.zeros_like(own)).square()
    return (square.sqrt() * rates).sum() / max(1, len(rows))

"""What the fused march through a sparse voxel grid means, in plain torch of any precision and on any device.

The grid: `links` [X, Y, Z] names for every vertex a row of `values` [K, C]. Row 0 is all zeros and stands for every vertex that
was pruned, so that a look-up needs no question. Channel 0 is raw density, channel 1 + 3 k + c the coefficient of harmonic k for
colour c; what follows fills up to `CHANNELS_STEP`, so that a row is made of whole cache lines.
"""

from __future__ import annotations

from functools import lru_cache

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
    size, steps = _sizes(tuple(links.shape), points.device)
    unit = (points - aabb[0]) / (aabb[1] - aabb[0])
    place = (unit * (size - 1)).clamp_min(0).minimum((size - 1).to(points))
    first = place.long().minimum(size - 2)
    part = place - first
    if nearest:
        part = (part >= 0.5).to(part)
    # Either vertex of each axis alone, and then all eight: a GPU is called a few times and not eight times as often.
    i, j, k = (torch.stack([first, first + 1], -1) * steps[:, None]).unbind(-2)
    x, y, z = torch.stack([1 - part, part], -1).unbind(-2)
    rows = links.reshape(-1)[(i[:, :, None, None] + j[:, None, :, None] + k[:, None, None, :]).flatten(1)]
    return rows.long(), (x[:, :, None, None] * y[:, None, :, None] * z[:, None, None, :]).flatten(1)


@lru_cache(maxsize=64)
def _sizes(shape: tuple[int, ...], device: torch.device) -> tuple[Int[Tensor, "3"], Int[Tensor, "3"]]:
    """Return a grid's vertices along each axis, and how far apart in its memory neighbours along each axis lie."""
    return torch.tensor(shape, device=device), torch.tensor([shape[1] * shape[2], shape[2], 1], device=device)


def sparse_lookup(values: Float[Tensor, "K C"], rows: Int[Tensor, "N 8"], weights: Float[Tensor, "N 8"]) -> Float[Tensor, "N C"]:
    """Return the weighted sum of each point's 8 rows."""
    found = values.index_select(0, rows.reshape(-1)).view(*rows.shape, values.shape[1])  # `values[rows]` sorts rows on the way back
    return torch.einsum("nec,ne->nc", found, weights)


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
        flat = ((density > 0) & (reaching >= stop)).view(-1).nonzero()[:, 0]
        ray = flat // n_samples
    features = sparse_lookup(values, rows.index_select(0, flat), weights.index_select(0, flat))
    depth = values.new_zeros(t.numel()).index_copy(0, flat, delta * features[:, 0]).view(t.shape)
    weight = torch.exp(-(depth.cumsum(1) - depth)) * -torch.expm1(-depth)
    colour = shade(features, sh_basis(sh_degree, directions).index_select(0, ray))
    rgb = torch.zeros_like(origins).index_add(0, ray, weight.view(-1).index_select(0, flat)[:, None] * colour)
    left = torch.exp(-depth.sum(1))
    distance = (weight.detach() * t).sum(1) / (1 - left.detach()).clamp_min(1e-10)
    return rgb, left, torch.where(left < 1, distance, torch.zeros_like(distance))


def total_variation_reference(
    values: Float[Tensor, "K C"],
    links: Int[Tensor, "X Y Z"],
    rows: Int[Tensor, "n"],
    rates: Float[Tensor, "C"],
    epsilon: float = 1e-9,
    vertices: Int[Tensor, "K"] | None = None,
) -> Float[Tensor, ""]:
    """Return the total variation at the vertices of the given rows; see `total_variation`.

    Args:
        vertices: place of each row's vertex in `links.view(-1)`; looked for where it is not given.
    """
    size, stride, flat = links.shape, links.stride(), links.reshape(-1)
    if vertices is None:
        vertices = torch.zeros(len(values), dtype=torch.long, device=values.device)
        vertices[flat.long()] = torch.arange(links.numel(), device=values.device)
    place, asked = vertices[rows], [rows]
    for axis in range(3):
        last = place // stride[axis] % size[axis] == size[axis] - 1
        neighbour = flat[place + stride[axis] * ~last].long()
        asked.append(torch.where(last | (neighbour == 0), rows, neighbour))  # a row's difference to itself is nothing
    own, *beside = values.index_select(0, torch.cat(asked)).split(len(rows))  # at once: each one's gradient is a whole table
    square = sum((((b - own) * (n / 256)).square() for b, n in zip(beside, size, strict=True)), epsilon)
    return (square.sqrt() * rates).sum() / max(1, len(rows))

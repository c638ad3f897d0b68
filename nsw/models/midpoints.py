"""Points between points: curvature of a cloud, and midpoints where it is flat.

Ververas, Potamias, Song, Deng, Zafeiriou, "SAGS: Structure-Aware 3D Gaussian Splatting", ECCV 2024, section 3.1; numbers of
neighbours as in the official code.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nsw.models.neighbours import nearest


def snapped(points: Float[Tensor, "N 3"], voxel: float = 0.0) -> Float[Tensor, "M 3"]:
    """Return one point for every cell of a lattice that holds any, at the lattice's own place.

    Args:
        voxel: the lattice's spacing, world units; 0 takes the median distance to the nearest other point.

    >>> snapped(torch.tensor([[0.1, 0, 0], [0.2, 0, 0], [0.9, 0, 0]]), 1.0)
    tensor([[0., 0., 0.],
            [1., 0., 0.]])
    """
    voxel = voxel or float(nearest(points, points, 2)[0][:, 1].median())
    return torch.unique((points / voxel).round().long(), dim=0) * voxel


def curvature(points: Float[Tensor, "N 3"], k: int = 10) -> Float[Tensor, "N"]:
    r"""Return how far each neighbourhood is from a plane, in [0, 1/3]: 0 is flat.

    $$\kappa = \varsigma_3 / (\varsigma_1 + \varsigma_2 + \varsigma_3)$$  (Ververas et al. 2024, section 3.1)

    with the singular values of the k nearest points around their mean, the point itself among them. They are the roots of the
    eigenvalues of a 3x3 matrix, which come in one batch: on the CPU, because cuSOLVER refuses batches of a hundred thousand.
    """
    around = points.detach().cpu().double()[nearest(points, points, k)[1].cpu()]
    centred = around - around.mean(dim=1, keepdim=True)
    values = torch.linalg.eigvalsh(centred.mT @ centred).clamp_min(0)  # ascending
    values = torch.where(values > 1e-14 * values[:, 2:], values, 0.0).sqrt()  # beneath: rounding of a flat neighbourhood
    return (values[:, 0] / values.sum(dim=1).clamp_min(1e-30)).to(points)


def low_curvature(kappa: Float[Tensor, "N"], below: float = -1.0) -> Bool[Tensor, "N"]:
    r"""Return where curvature is low here: $\hat\kappa = (\kappa - \bar\kappa)/\mathrm{std}(\kappa) < -1$ (section 3.1)."""
    return (kappa - kappa.mean()) / kappa.std().clamp_min(1e-12) < below


def point_pairs(points: Float[Tensor, "N 3"], flat: Bool[Tensor, "N"], k_flat: int = 10, k_other: int = 2) -> Int[Tensor, "P 2"]:
    """Return the pairs i < j that get a midpoint: every point with the nearest others, flat ones with more of them.

    Args:
        k_flat, k_other: neighbours that a point looks at, itself among them: k - 1 others.

    >>> point_pairs(torch.tensor([[0.0, 0, 0], [1, 0, 0], [3, 0, 0]]), torch.zeros(3, dtype=torch.bool))
    tensor([[0, 1],
            [1, 2]])
    """
    near = nearest(points, points, max(k_flat, k_other))[1]
    wanted = torch.arange(near.shape[1], device=near.device) < torch.where(flat, k_flat, k_other)[:, None]
    here = torch.arange(len(points), device=near.device)[:, None].expand_as(near)
    both = torch.stack([here[wanted], near[wanted]], dim=1).sort(dim=1).values
    return torch.unique(both[both[:, 0] != both[:, 1]], dim=0)


def with_midpoints(values: Float[Tensor, "N C"], pairs: Int[Tensor, "P 2"]) -> Float[Tensor, "N+P C"]:
    r"""Return the values of all points, then those of the pairs' midpoints, $\tfrac12 (v_i + v_j)$."""
    return torch.cat([values, 0.5 * (values[pairs[:, 0]] + values[pairs[:, 1]])])

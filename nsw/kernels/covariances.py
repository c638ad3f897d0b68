"""`quat_scale_to_covar_preci`: gsplat's call from rotation and size of a splat to its covariance and precision matrices.

A splat's covariance is `Sigma = M M^T` with `M = R(q) diag(s)` (Kerbl et al. 2023, eq. 6). Its inverse needs no matrix inversion:
R is orthogonal, so `Sigma^-1 = P P^T` with `P = R diag(1 / s)`. Both are symmetric, and `triu` keeps the six numbers on and above
the diagonal, row by row: xx, xy, xz, yy, yz, zz.

Where a product is too large for its type, the diagonal is inf and an entry off it whose terms are inf - inf is 0.

Plain torch, in any float type: a dozen element-wise products a splat are bound by memory, and autograd differentiates them.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from nsw.errors import CallError
from nsw.kernels.projection_reference import rotation_from_quaternion
from nsw.kernels.settled_gradient import settle_gradient

UPPER = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))


def quat_scale_to_covar_preci(
    quats: Float[Tensor, "*n 4"],
    scales: Float[Tensor, "*n 3"],
    compute_covar: bool = True,
    compute_preci: bool = True,
    triu: bool = False,
) -> tuple[Tensor | None, Tensor | None]:
    """Turn quaternions (w, x, y, z, any length) and scales into covariances and precisions.

    Args:
        compute_covar, compute_preci: what is not asked for comes back as None.
        triu: return [..., 6] upper triangles instead of [..., 3, 3] matrices.

    Raises:
        CallError: when quats and scales do not have the same leading dimensions.

    >>> covar, preci = quat_scale_to_covar_preci(torch.tensor([1.0, 0, 0, 0]), torch.tensor([1.0, 2.0, 4.0]), triu=True)
    >>> covar.tolist(), preci.tolist()
    ([1.0, 0.0, 0.0, 4.0, 0.0, 16.0], [1.0, 0.0, 0.0, 0.25, 0.0, 0.0625])
    """
    if quats.shape[-1] != 4 or scales.shape != quats.shape[:-1] + (3,):
        raise CallError(f"quats must be [..., 4] and scales [..., 3], got {list(quats.shape)} and {list(scales.shape)}.")
    rotation, scales = rotation_from_quaternion(settle_gradient(quats)), settle_gradient(scales)
    largest = torch.finfo(scales.dtype).max

    def square(sizes: Tensor) -> Tensor:
        M = rotation * sizes[..., None, :]
        matrix = M @ M.transpose(-1, -2)
        matrix = torch.where(matrix.isnan(), torch.zeros_like(matrix), matrix)
        return upper_triangle(matrix) if triu else matrix

    return square(scales) if compute_covar else None, square((1 / scales).clamp(-largest, largest)) if compute_preci else None


def upper_triangle(matrices: Float[Tensor, "*n 3 3"]) -> Float[Tensor, "*n 6"]:
    """Keep the six numbers of a symmetric matrix; mirrored entries are averaged, so that a gradient reaches both alike."""
    return torch.stack([0.5 * (matrices[..., i, j] + matrices[..., j, i]) for i, j in UPPER], dim=-1)


def from_upper_triangle(six: Float[Tensor, "*n 6"]) -> Float[Tensor, "*n 3 3"]:
    """Build the symmetric matrix again.

    >>> from_upper_triangle(torch.arange(6.0))[2].tolist()
    [2.0, 4.0, 5.0]
    """
    places = [UPPER.index((min(i, j), max(i, j))) for i in range(3) for j in range(3)]
    return six[..., places].unflatten(-1, (3, 3))

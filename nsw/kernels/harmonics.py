"""Real spherical harmonics up to degree 4: view-dependent colour as a short sum over direction.

A splat whose colour changes with the viewing direction stores one coefficient per basis function and channel. The basis is
orthonormal on the sphere, degree l has 2l+1 functions, and degree 0 is a constant: with no other coefficient the splat has
one colour. Signs follow the splatting papers (Condon-Shortley phase), so coefficients can be exchanged with gsplat and PLY files.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from nsw.errors import CallError
from nsw.kernels.settled_gradient import settle_gradient

MAX_DEGREE = 4
HEADROOM = 128.0  # above the sum of all bases, and a power of two, which changes no rounding


def _basis_degree_2(x: Tensor, y: Tensor, z: Tensor) -> list[Tensor]:
    return [
        1.0925484305920792 * x * y,
        -1.0925484305920792 * y * z,
        0.9461746957575601 * z * z - 0.31539156525252,
        -1.0925484305920792 * x * z,
        0.5462742152960396 * (x * x - y * y),
    ]


def _basis_degree_3(x: Tensor, y: Tensor, z: Tensor) -> list[Tensor]:
    xx, yy, zz = x * x, y * y, z * z
    return [
        -0.5900435899266435 * y * (3 * xx - yy),
        2.890611442640554 * x * y * z,
        # On the unit sphere 4zz-xx-yy = 5zz-1 and 2zz-3xx-3yy = 5zz-3; gsplat uses the right-hand forms, and for unit
        # directions they agree. Off the sphere their derivatives differ, but normalisation projects that part away.
        -0.4570457994644658 * y * (5 * zz - 1),
        0.3731763325901154 * z * (5 * zz - 3),
        -0.4570457994644658 * x * (5 * zz - 1),
        1.445305721320277 * z * (xx - yy),
        -0.5900435899266435 * x * (xx - 3 * yy),
    ]


def _basis_degree_4(x: Tensor, y: Tensor, z: Tensor) -> list[Tensor]:
    xx, yy, zz = x * x, y * y, z * z
    return [
        2.5033429417967046 * x * y * (xx - yy),
        -1.7701307697799304 * y * z * (3 * xx - yy),
        0.9461746957575601 * x * y * (7 * zz - 1),
        -0.6690465435572892 * y * z * (7 * zz - 3),
        0.10578554691520431 * (35 * zz * zz - 30 * zz + 3),
        -0.6690465435572892 * x * z * (7 * zz - 3),
        0.47308734787878004 * (xx - yy) * (7 * zz - 1),
        -1.7701307697799304 * x * z * (xx - 3 * yy),
        0.6258357354491761 * (xx * (xx - 3 * yy) - yy * (3 * xx - yy)),
    ]


def sh_basis(degree: int, unit_directions: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n k"]:
    """Evaluate the (degree+1)^2 basis functions at unit directions.

    >>> sh_basis(1, torch.tensor([[0.0, 0.0, 1.0]])).round(decimals=4)
    tensor([[0.2821, -0.0000, 0.4886, -0.0000]])
    """
    if not 0 <= degree <= MAX_DEGREE:
        raise CallError(f"sh_degree must be 0 to {MAX_DEGREE}, got {degree}")
    if degree > 1 and unit_directions.is_cuda and not unit_directions.requires_grad:  # five calls in the place of up to eighty
        return _products(unit_directions, degree) @ _coefficients(degree, unit_directions.dtype, unit_directions.device)
    x, y, z = unit_directions.unbind(-1)
    columns = [torch.full_like(x, 0.28209479177387814)]
    if degree >= 1:
        columns += [-0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x]
    if degree >= 2:
        columns += _basis_degree_2(x, y, z)
    if degree >= 3:
        columns += _basis_degree_3(x, y, z)
    if degree >= 4:
        columns += _basis_degree_4(x, y, z)
    return torch.stack(columns, dim=-1)


def _products(directions: Float[Tensor, "*n 3"], degree: int) -> Float[Tensor, "*n p"]:
    """Return all products of `degree` factors out of (1, x, y, z), some of them more than once."""
    factors = F.pad(directions, (1, 0), value=1.0)
    products = factors
    for _ in range(degree - 1):
        products = (products[..., :, None] * factors[..., None, :]).flatten(-2)
    return products


@lru_cache(maxsize=32)
def _coefficients(degree: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "p k"]:
    """Return what each of `_products` contributes to each basis function, found by asking the formulas at some places."""
    places = torch.rand(256, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double) - 0.5
    return (torch.linalg.pinv(_products(places, degree)) @ sh_basis(degree, places)).to(device, dtype)


def spherical_harmonics(
    degrees_to_use: int,
    dirs: Float[Tensor, "*n 3"],
    coeffs: Float[Tensor, "*n k 3"],
    masks: Bool[Tensor, "*n"] | None = None,
) -> Float[Tensor, "*n 3"]:
    """Sum coefficients times basis, with gsplat's call: `c(d) = sum_k B_k(d / |d|) h_k`.

    Args:
        degrees_to_use: highest degree evaluated, 0 to 4; later coefficients are ignored.
        dirs: directions from the camera to the splat, any length; a zero direction counts as (0, 0, 0).
        coeffs: K >= (degrees_to_use+1)^2 coefficients per channel.
        masks: rows to evaluate; the others get 0.

    Returns:
        Colours before the +0.5 and the clamp at 0 which `rasterization` applies.
    """
    n_bases = (degrees_to_use + 1) ** 2
    if n_bases > coeffs.shape[-2]:
        raise CallError(f"sh_degree {degrees_to_use} needs {n_bases} coefficients, colors has {coeffs.shape[-2]}")
    basis = sh_basis(degrees_to_use, F.normalize(settle_gradient(dirs), dim=-1))
    # Parts of the sum may be too large where the sum is not: they are made smaller meanwhile.
    colors = (basis[..., None] / HEADROOM * settle_gradient(coeffs)[..., :n_bases, :]).sum(dim=-2) * HEADROOM
    return colors if masks is None else torch.where(masks[..., None], colors, torch.zeros_like(colors))

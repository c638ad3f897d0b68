"""Gaussians moved, turned and scaled as one body, their view-dependent colours with them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from nsw.errors import InputError
from nsw.models.gaussians import Gaussians
from nsw.models.sh import sh_basis


def harmonics_rotation(rotation: Float[Tensor, "3 3"], degree: int) -> Float[Tensor, "K K"]:
    """Return the matrix D that turns coefficients with the body: sum_k B_k(R d) (D h)_k = sum_k B_k(d) h_k for every d.

    D is block diagonal with one block a band (the Wigner matrices of the real basis). It is found from the basis itself: the
    functions B_k(R^T d) are combinations of the B_k(d), and more directions than coefficients say which.

    >>> D = harmonics_rotation(torch.diag(torch.tensor([1.0, -1, -1])), 1)  # half a turn about x: y and z change sign
    >>> D.diagonal().tolist()
    [1.0, -1.0, -1.0, 1.0]
    """
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(64, 3, generator=generator, dtype=torch.float64), dim=-1)
    seen, turned = sh_basis(degree, directions), sh_basis(degree, directions @ rotation.double().cpu())
    # 12 digits: quarter and half turns then hold exact zeros and ones, and change no other coefficient's last bit
    return torch.linalg.lstsq(seen, turned).solution.round(decimals=12)


def quaternion_of(rotation: Float[Tensor, "3 3"]) -> Float[Tensor, "4"]:
    """Return the unit quaternion (w, x, y, z) of a rotation, in float64."""
    from scipy.spatial.transform import Rotation

    x, y, z, w = Rotation.from_matrix(rotation.double().cpu().numpy()).as_quat()
    return torch.tensor([w, x, y, z], dtype=torch.float64)


def quaternion_product(a: Float[Tensor, "*n 4"], b: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
    """Return the rotation b followed by a, as quaternions (w, x, y, z) of any length.

    >>> i, j = torch.tensor([0.0, 1, 0, 0]), torch.tensor([0.0, 0, 1, 0])
    >>> quaternion_product(i, j)
    tensor([0., 0., 0., 1.])
    """
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    rows = (
        aw * bw - ax * bx - ay * by - az * bz,
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
    )
    return torch.stack(rows, dim=-1)


@torch.no_grad()
def placed(
    gaussians: Gaussians,
    rotation: Float[Tensor, "3 3"] | None = None,
    translation: Float[Tensor, "3"] | None = None,
    scale: float = 1.0,
) -> Gaussians:
    """Return a copy under the similarity x -> scale * rotation x + translation.

    Centres move with it, log scales grow by log(scale), quaternions are q_R q, and the harmonics turn band by band
    (`harmonics_rotation`): seen from a camera that moves along, the picture stays the same.

    Args:
        rotation: a proper rotation; None for none.
        translation: world units; None for none.
        scale: factor > 0.

    Raises:
        InputError: for a mirror, a shear or a scale that is not positive.
    """
    device = gaussians.means.device
    R = torch.eye(3, dtype=torch.float64) if rotation is None else torch.as_tensor(rotation).detach().cpu().double()
    if not (torch.allclose(R @ R.T, torch.eye(3, dtype=torch.float64), atol=1e-4) and float(torch.linalg.det(R)) > 0):
        raise InputError("Gaussians can be turned by a proper rotation only: got a matrix that mirrors, shears or scales.")
    if not 0 < scale < float("inf"):
        raise InputError(f"Gaussians can be scaled by a positive factor only, got {scale}.")
    t = torch.zeros(3, dtype=torch.float64) if translation is None else torch.as_tensor(translation).detach().cpu().double()
    D = harmonics_rotation(R, gaussians.settings.sh_degree)[1:, 1:].to(device)
    raw = {name: value.detach() for name, value in gaussians.params.items()}
    raw["means"] = (scale * raw["means"].double() @ R.T.to(device) + t.to(device)).float()
    raw["scales"] = raw["scales"] + torch.tensor(scale, dtype=torch.float64).log().float().to(device)
    raw["quats"] = quaternion_product(quaternion_of(R).to(device), raw["quats"].double()).float()
    raw["shN"] = torch.einsum("jk,nkc->njc", D.float(), raw["shN"])
    return Gaussians(gaussians.settings).fill(**raw)

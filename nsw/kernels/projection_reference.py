"""Project 3D Gaussians to 2D ones in plain torch: the readable form of `projection.py`, in any float type.

Zwicker et al., "EWA splatting" (2002): a perspective camera does not map a Gaussian to a Gaussian, but its linearisation at the
centre does. With camera-space centre p, rotation R_w and the Jacobian J of the projection at p,

    Sigma_2 = J R_w Sigma R_w^T J^T + eps2d I        (Kerbl et al. 2023, eq. 5, plus the low-pass dilation)

Culling decides first, without gradients, which (camera, splat) pairs are drawn; only those enter the differentiated graph. So a
splat behind the camera, or one so large that float overflows, cannot leak a NaN into anybody's gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

ALPHA_MIN = 1.0 / 255.0  # a splat fainter than one grey level at a pixel is skipped there
MAX_EXTENT = 3.33  # standard deviations: sqrt(2 ln 255), where an opaque splat falls below ALPHA_MIN


@dataclass(frozen=True)
class View:
    """What a camera asks of projection besides its pose: picture size, culling, dilation and lens."""

    width: int
    height: int
    near_plane: float = 0.01
    far_plane: float = 1e10
    radius_clip: float = 0.0
    eps2d: float = 0.3
    antialiased: bool = False
    camera_model: str = "pinhole"


@dataclass(frozen=True)
class Projected:
    """Splats on the image plane: `...` is [images, N] when every pair is kept, [nnz] when only visible ones are."""

    radii: Int[Tensor, "... 2"]  # half sizes of the bounding box in pixels, 0 = culled
    means2d: Float[Tensor, "... 2"]
    depths: Float[Tensor, "..."]  # camera z of the centre
    conics: Float[Tensor, "... 3"]  # a, b, c of the inverse covariance
    compensations: Float[Tensor, "..."] | None  # opacity factor of the antialiased mode


def rotation_from_quaternion(quats: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 3 3"]:
    """Turn quaternions (w, x, y, z), normalised here, into rotation matrices.

    >>> rotation_from_quaternion(torch.tensor([2.0, 0.0, 0.0, 0.0])).diagonal().tolist()
    [1.0, 1.0, 1.0]
    """
    w, x, y, z = F.normalize(quats, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def covariance(quats: Float[Tensor, "*n 4"], scales: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3 3"]:
    """Build `Sigma = M M^T`, `M = R diag(s)` (Kerbl et al. 2023, eq. 6): symmetric and positive by construction."""
    M = rotation_from_quaternion(quats) * scales[..., None, :]
    return M @ M.transpose(-1, -2)


def _jacobian(rows: list[Tensor]) -> Float[Tensor, "p 2 3"]:
    return torch.stack(rows, dim=-1).unflatten(-1, (2, 3))


def project_pinhole(means_cam: Float[Tensor, "p 3"], Ks: Float[Tensor, "p 3 3"], view: View) -> tuple[Tensor, Tensor]:
    """Return pixel positions and the projection's Jacobian; inside J alone, x/z and y/z are clamped to 1.15 picture widths.

    Far outside the frustum the linearisation explodes (a splat beside the camera would cover the whole picture), hence the clamp;
    its gradient is zero where it holds.
    """
    x, y, z = means_cam.unbind(-1)
    fx, fy, cx, cy = Ks[:, 0, 0], Ks[:, 1, 1], Ks[:, 0, 2], Ks[:, 1, 2]
    margin_x, margin_y = 0.15 * view.width / fx, 0.15 * view.height / fy
    slope_x = torch.clamp(x / z, min=-(cx / fx + margin_x), max=(view.width - cx) / fx + margin_x)
    slope_y = torch.clamp(y / z, min=-(cy / fy + margin_y), max=(view.height - cy) / fy + margin_y)
    zero = torch.zeros_like(z)
    J = _jacobian([fx / z, zero, -fx * slope_x / z, zero, fy / z, -fy * slope_y / z])
    return torch.stack([fx * x / z + cx, fy * y / z + cy], dim=-1), J


def project_ortho(means_cam: Float[Tensor, "p 3"], Ks: Float[Tensor, "p 3 3"], view: View) -> tuple[Tensor, Tensor]:
    """Return pixel positions and Jacobian of a parallel projection, where fx, fy are pixels per unit of length."""
    x, y, _ = means_cam.unbind(-1)
    fx, fy, cx, cy = Ks[:, 0, 0], Ks[:, 1, 1], Ks[:, 0, 2], Ks[:, 1, 2]
    zero = torch.zeros_like(x)
    return torch.stack([fx * x + cx, fy * y + cy], dim=-1), _jacobian([fx, zero, zero, zero, fy, zero])


def project_fisheye(means_cam: Float[Tensor, "p 3"], Ks: Float[Tensor, "p 3 3"], view: View) -> tuple[Tensor, Tensor]:
    """Return pixel positions and Jacobian of the equidistant fisheye: radius on the picture = f * angle to the axis.

    The small eps (gsplat's) keeps the axis itself, where direction is undefined, finite.
    """
    eps = 1e-7
    x, y, z = means_cam.unbind(-1)
    fx, fy, cx, cy = Ks[:, 0, 0], Ks[:, 1, 1], Ks[:, 0, 2], Ks[:, 1, 2]
    # sqrt has an infinite slope at 0: on the axis the length is treated as a constant 0.
    squared = x * x + y * y
    on_axis = squared == 0
    length = torch.where(on_axis, torch.zeros_like(x), torch.where(on_axis, torch.ones_like(x), squared).sqrt()) + eps
    ratio = torch.atan2(length, z + eps) / length
    x2, y2, xy = x * x + eps, y * y, x * y
    inverse = 1.0 / (x2 + y2 + z * z)
    b = torch.atan2(length, z) / length / (x2 + y2)
    a = z * inverse / (x2 + y2)
    J = _jacobian(
        [fx * (x2 * a + y2 * b), fx * xy * (a - b), -fx * x * inverse, fy * xy * (a - b), fy * (y2 * a + x2 * b), -fy * y * inverse]
    )
    return torch.stack([x * fx * ratio + cx, y * fy * ratio + cy], dim=-1), J


LENSES = {"pinhole": project_pinhole, "ortho": project_ortho, "fisheye": project_fisheye}


def project_pairs(means, covars, viewmats, Ks, view: View) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Project P splats, each by its own camera: means [P,3], covars [P,3,3], viewmats [P,4,4], Ks [P,3,3].

    Returns:
        means2d [P,2], depths [P], conics [P,3], the dilated covariance's diagonal and determinant [P,3], compensations [P].
    """
    R_w, t = viewmats[:, :3, :3], viewmats[:, :3, 3]
    means_cam = (R_w @ means[..., None]).squeeze(-1) + t
    means2d, J = LENSES[view.camera_model](means_cam, Ks, view)
    A = J @ R_w
    cov2d = A @ covars @ A.transpose(-1, -2)
    a, b, c = cov2d[:, 0, 0], 0.5 * (cov2d[:, 0, 1] + cov2d[:, 1, 0]), cov2d[:, 1, 1]
    a_wide, c_wide = a + view.eps2d, c + view.eps2d
    det = a_wide * c_wide - b * b
    conics = torch.stack([c_wide / det, -b / det, a_wide / det], dim=-1)
    # A needle's own determinant rounds to 0 or below, where the square root has no slope: it is then treated as a constant.
    ratio = (a * c - b * b) / det
    compensations = torch.where(ratio > 0, torch.where(ratio > 0, ratio, torch.ones_like(ratio)).sqrt(), torch.zeros_like(ratio))
    return means2d, means_cam[:, 2], conics, torch.stack([a_wide, c_wide, det], dim=-1), compensations


@torch.no_grad()
def visible_radii(means2d, depths, conics, wide, compensations, opacities, view: View) -> Int[Tensor, "p 2"]:
    """Return the half sizes of each splat's box, 0 for those that are culled (gsplat's CUDA rule, not differentiated).

    A splat of opacity o falls below 1/255 at sqrt(2 ln(255 o)) standard deviations, so its box needs to reach no further.
    """
    if view.antialiased:
        opacities = opacities * compensations
    extent = torch.sqrt(2.0 * torch.log((opacities / ALPHA_MIN).clamp(min=1.0))).clamp(max=MAX_EXTENT)
    radii = torch.ceil(extent[:, None] * wide[:, :2].clamp(min=0).sqrt())
    x, y = means2d.unbind(-1)
    keep = (depths >= view.near_plane) & (depths <= view.far_plane) & (wide[:, 2] > 0) & (opacities >= ALPHA_MIN)
    keep &= (radii > view.radius_clip).any(dim=-1)
    keep &= (x + radii[:, 0] > 0) & (x - radii[:, 0] < view.width) & (y + radii[:, 1] > 0) & (y - radii[:, 1] < view.height)
    finite = torch.isfinite(means2d).all(-1) & torch.isfinite(conics).all(-1) & torch.isfinite(wide).all(-1)
    keep &= finite & (radii < 2**30).all(-1)
    return torch.where(keep[:, None], radii, torch.zeros_like(radii)).to(torch.int32)


def _pair_inputs(means, covars, quats, scales, viewmats, Ks, batch_ids, camera_ids, gaussian_ids):
    """Gather each pair's own splat and camera: the step that makes packed and unpacked the same computation."""
    if covars is None:
        pair_covars = covariance(quats[batch_ids, gaussian_ids], scales[batch_ids, gaussian_ids])
    else:
        pair_covars = covars[batch_ids, gaussian_ids]
    return means[batch_ids, gaussian_ids], pair_covars, viewmats[batch_ids, camera_ids], Ks[batch_ids, camera_ids]


def project_visible(means, covars, quats, scales, opacities, viewmats, Ks, view: View):
    """Project B batches of N splats into C cameras each and keep the visible pairs, ordered by batch, camera, splat.

    Args:
        means [B,N,3], covars [B,N,3,3] or None with quats [B,N,4] and scales [B,N,3], opacities [B,N].
        viewmats [B,C,4,4], Ks [B,C,3,3].

    Returns:
        A `Projected` over nnz pairs, and (batch_ids, camera_ids, gaussian_ids), each [nnz] int64.
    """
    B, N = means.shape[:2]
    C = viewmats.shape[1]
    every = torch.cartesian_prod(*(torch.arange(n, device=means.device) for n in (B, C, N))).reshape(-1, 3).unbind(-1)
    with torch.no_grad():
        flat = project_pairs(*_pair_inputs(means, covars, quats, scales, viewmats, Ks, *every), view)
        all_radii = visible_radii(*flat, opacities[every[0], every[2]], view)
        rows = torch.nonzero((all_radii > 0).all(dim=-1)).squeeze(-1)
    ids = tuple(index[rows] for index in every)
    means2d, depths, conics, _, compensations = project_pairs(*_pair_inputs(means, covars, quats, scales, viewmats, Ks, *ids), view)
    return Projected(all_radii[rows], means2d, depths, conics, compensations if view.antialiased else None), ids


def spread(packed: Projected, ids: tuple[Tensor, Tensor, Tensor], shape: tuple[int, int, int]) -> Projected:
    """Put packed rows back to their places in [B,C,N,...] arrays; culled pairs are 0."""

    def place(rows: Tensor) -> Tensor:
        return rows.new_zeros(shape + rows.shape[1:]).index_put(ids, rows)

    compensations = None if packed.compensations is None else place(packed.compensations)
    return Projected(place(packed.radii), place(packed.means2d), place(packed.depths), place(packed.conics), compensations)

"""`fully_fused_projection`, `proj` and `world_to_cam`: gsplat's calls from splats in the world to splats on the picture.

Three steps that `fully_fused_projection` takes at once:

1. to the camera: `p = R_w mu + t`, `V = R_w Sigma R_w^T` (`world_to_cam`);
2. on the picture: `m = project(p)`, `Sigma_2 = J V J^T`, J the projection's Jacobian at p (`proj`; Zwicker et al. 2002);
3. dilated by eps2d, inverted to the conic, boxed, culled; what the dilation added to the area is the compensation.

Float32 splats under a pinhole run through the compiled projection, everything else through its plain torch reference; culled
pairs enter neither graph. In gsplat 1.5.3 a culled pair's means2d, depths and conics are whatever lay in memory, here they are 0.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from nsw.errors import CallError
from nsw.kernels import engines
from nsw.kernels.covariances import from_upper_triangle
from nsw.kernels.projection_reference import LENSES, Projected, View, covariance, project_pairs, project_visible
from nsw.kernels.sparse_rows import gather_rows

NO_LENS = 'camera_model must be "pinhole", "ortho" or "fisheye" on the CPU, got {!r}.'
BEYOND_EVERY_BOX = 2.0  # an opacity above 1 makes the box the full 3.33 standard deviations, as gsplat does without opacities


def fully_fused_projection(
    means: Float[Tensor, "*b n 3"], covars: Float[Tensor, "*b n 6"] | None, quats: Float[Tensor, "*b n 4"] | None,
    scales: Float[Tensor, "*b n 3"] | None, viewmats: Float[Tensor, "*b c 4 4"], Ks: Float[Tensor, "*b c 3 3"],
    width: int, height: int, eps2d: float = 0.3, near_plane: float = 0.01, far_plane: float = 1e10, radius_clip: float = 0.0,
    packed: bool = False, sparse_grad: bool = False, calc_compensations: bool = False, camera_model: str = "pinhole",
    opacities: Float[Tensor, "*b n"] | None = None,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Project N Gaussians into C cameras.

    Args:
        covars: upper triangles of covariances; None to take quats and scales.
        eps2d: variance in px^2 added to every projected splat. radius_clip: splats no larger than this (px) are culled.
        packed: return only visible pairs. sparse_grad: with `packed`, gradients of the splats come as sparse COO tensors.
        calc_compensations: also return by what factor the dilation should dim each splat.
        opacities: given, a faint splat gets a smaller box, and one below 1/255 none.

    Returns:
        radii [..., C, N, 2] int32 (0 = culled), means2d [..., C, N, 2], depths [..., C, N], conics [..., C, N, 3] (a, b, c),
        compensations [..., C, N] or None. Packed: batch_ids, camera_ids, gaussian_ids [nnz], then the same five as [nnz, ...].

    Raises:
        CallError: when shapes or options do not fit together.

    >>> radii, means2d, depths, conics, _ = fully_fused_projection(
    ...     torch.tensor([[0.0, 0.0, 2.0]]), None, torch.eye(4)[:1], torch.full((1, 3), 0.1), torch.eye(4)[None],
    ...     torch.tensor([[[32.0, 0, 16], [0, 32, 16], [0, 0, 1]]]), 32, 32)
    >>> radii.tolist(), means2d.tolist(), depths.tolist()
    ([[[6, 6]]], [[[16.0, 16.0]]], [[2.0]])
    """
    batch, N, C = check_splats(means, quats, scales, viewmats, Ks, covars)
    if opacities is not None and opacities.shape != batch + (N,):
        raise CallError(f"opacities must be {list(batch + (N,))}, got {list(opacities.shape)}.")
    if sparse_grad and not packed:
        raise CallError("sparse_grad is only supported when packed is True.")
    if sparse_grad and batch:
        raise CallError("sparse_grad does not support batch dimensions.")
    if camera_model not in LENSES:
        raise CallError(NO_LENS.format(camera_model))
    view = View(int(width), int(height), near_plane, far_plane, radius_clip, eps2d, calc_compensations, camera_model)
    if opacities is None:
        opacities = torch.full(batch + (N,), BEYOND_EVERY_BOX, dtype=means.dtype, device=means.device)
    if sparse_grad:
        full = None if covars is None else from_upper_triangle(covars)
        projected, ids = project_sparse(means, full, quats, scales, opacities, viewmats, Ks, view)
        return (*ids, projected.radii, projected.means2d, projected.depths, projected.conics, projected.compensations)
    B = math.prod(batch)
    means, quats, scales, opacities, viewmats, Ks = (
        None if t is None else t.reshape((B,) + t.shape[len(batch) :]) for t in (means, quats, scales, opacities, viewmats, Ks)
    )
    if covars is not None:
        covars = from_upper_triangle(covars.reshape(B, N, 6))
    splats = (means, quats, scales, covars, opacities, None, viewmats, Ks, None)
    engine = engines.choose(splats, view, tile_size=16)
    projected, ids = engine.project(means, covars, quats, scales, opacities, viewmats, Ks, view, packed)
    rows = (projected.radii, projected.means2d, projected.depths, projected.conics, projected.compensations)
    if packed:
        return (*ids, *rows)
    return tuple(None if row is None else row.view(batch + (C, N) + row.shape[1:]) for row in rows)


def check_splats(means, quats, scales, viewmats, Ks, covars=None) -> tuple[tuple[int, ...], int, int]:
    """Compare shapes with gsplat's contract; return the batch dimensions, N and C."""
    if means.dim() < 2 or viewmats.dim() < 3:
        raise CallError(f"means must be [..., N, 3] and viewmats [..., C, 4, 4], got {list(means.shape)}, {list(viewmats.shape)}.")
    batch, N, C = tuple(means.shape[:-2]), means.shape[-2], viewmats.shape[-3]
    expected = {"means": (means, (N, 3)), "viewmats": (viewmats, (C, 4, 4)), "Ks": (Ks, (C, 3, 3))}
    if covars is None:
        if quats is None or scales is None:
            raise CallError("covars, or quats and scales, are required.")
        expected |= {"quats": (quats, (N, 4)), "scales": (scales, (N, 3))}
    else:
        expected["covars"] = (covars, (N, 6))
    for name, (tensor, tail) in expected.items():
        if tuple(tensor.shape) != batch + tail:
            raise CallError(f"{name} must be {list(batch + tail)}, got {list(tensor.shape)}.")
    return batch, N, C


def project_sparse(means, covars, quats, scales, opacities, viewmats, Ks, view: View):
    """Project visible pairs only, with gradients of the splats as sparse tensors; inputs without batch dimensions."""
    with torch.no_grad():
        batched = (None if t is None else t[None] for t in (means, covars, quats, scales, opacities, viewmats, Ks))
        projected, ids = project_visible(*batched, view)
    _, camera_ids, gaussian_ids = ids
    rows = [None if t is None else gather_rows(t, gaussian_ids) for t in (means, covars, quats, scales)]
    pair_covars = covariance(rows[2], rows[3]) if rows[1] is None else rows[1]
    means2d, depths, conics, _, compensations = project_pairs(rows[0], pair_covars, viewmats[camera_ids], Ks[camera_ids], view)
    return Projected(projected.radii, means2d, depths, conics, compensations if view.antialiased else None), ids


def world_to_cam(
    means: Float[Tensor, "*b n 3"], covars: Float[Tensor, "*b n 3 3"], viewmats: Float[Tensor, "*b c 4 4"]
) -> tuple[Float[Tensor, "*b c n 3"], Float[Tensor, "*b c n 3 3"]]:
    """Carry centres and covariances into the axes of each camera: `R_w mu + t` and `R_w Sigma R_w^T`."""
    batch, N = tuple(means.shape[:-2]), means.shape[-2]
    if covars.shape != batch + (N, 3, 3) or viewmats.shape[:-3] != batch or viewmats.shape[-2:] != (4, 4):
        raise CallError(f"means [..., N, 3], covars [..., N, 3, 3], viewmats [..., C, 4, 4] do not fit: "
                         f"{list(means.shape)}, {list(covars.shape)}, {list(viewmats.shape)}.")  # fmt: skip
    R, t = viewmats[..., :, None, :3, :3], viewmats[..., :, None, :3, 3]
    means_cam = (R @ means[..., None, :, :, None]).squeeze(-1) + t
    return means_cam, R @ covars[..., None, :, :, :] @ R.transpose(-1, -2)


def proj(
    means: Float[Tensor, "*b c n 3"],
    covars: Float[Tensor, "*b c n 3 3"],
    Ks: Float[Tensor, "*b c 3 3"],
    width: int,
    height: int,
    camera_model: str = "pinhole",
) -> tuple[Float[Tensor, "*b c n 2"], Float[Tensor, "*b c n 2 2"]]:
    """Project splats given in camera axes: positions in pixels and 2 x 2 covariances `J V J^T`, neither dilated nor culled."""
    lead = tuple(means.shape[:-1])
    if covars.shape != lead + (3, 3) or Ks.shape != lead[:-1] + (3, 3):
        raise CallError(f"means [..., C, N, 3], covars [..., C, N, 3, 3], Ks [..., C, 3, 3] do not fit: "
                         f"{list(means.shape)}, {list(covars.shape)}, {list(Ks.shape)}.")  # fmt: skip
    if camera_model not in LENSES:
        raise CallError(NO_LENS.format(camera_model))
    every_K = Ks[..., None, :, :].expand(lead + (3, 3)).reshape(-1, 3, 3)
    means2d, J = LENSES[camera_model](means.reshape(-1, 3), every_K, View(int(width), int(height)))
    covars2d = J @ covars.reshape(-1, 3, 3) @ J.transpose(-1, -2)
    return means2d.view(lead + (2,)), covars2d.view(lead + (2, 2))

r"""`fully_fused_projection_2dgs`: from flat splats in the world to what a pixel needs to meet them.

A surfel (Huang et al., "2D Gaussian Splatting", 2024) is a disk: the point $p+us_ut_u+vs_vt_v$ has weight $e^{-(u^2+v^2)/2}$. With
camera-space tangents and centre, the matrix

$$T=K\,[\,s_ut_u,\ s_vt_v,\ p\,]\qquad(3\times3,\ \text{rows }T_u,T_v,T_w)$$

takes (u, v, 1) to homogeneous pixels: nothing is linearised, and its inverse takes a pixel to the point of the disk that its ray
meets. The picture of the circle of radius 1 lies in a box that follows from T alone: with
$f=(1,1,-1)/(T_{w0}^2+T_{w1}^2-T_{w2}^2)$ its middle is $c=(f\cdot T_u\circ T_w,\ f\cdot T_v\circ T_w)$, and its squared half sides
are $c_x^2-f\cdot T_u\circ T_u$, same for y.

Here in plain torch, in any float type: culling decides first, without gradients; only visible pairs enter the differentiated
graph. Float32 splats run through `surfels_projection_fast.py`.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from nsw.errors import CallError
from nsw.kernels import engine_reference, engines
from nsw.kernels.projecting import check_splats
from nsw.kernels.projection_reference import View, rotation_from_quaternion
from nsw.kernels.sparse_rows import gather_rows

EXTENT = 3.33  # standard deviations in the box


def project_disks(means, quats, scales, viewmats, Ks) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Project P surfels, each by its own camera ([P,...] or [1,...] for one camera).

    Returns:
        means2d [P,2] and squared half sides [P,2] of the unit circle's box, depths [P], transforms [P,3,3], normals [P,3] in camera
        axes, towards the camera.
    """
    R_w, t = viewmats[:, :3, :3], viewmats[:, :3, 3]
    axes = R_w @ rotation_from_quaternion(quats)
    centre = (R_w @ means[..., None]).squeeze(-1) + t
    tangents = axes[..., :2] * scales[:, None, :2]
    transforms = Ks @ torch.cat([tangents, centre[..., None]], dim=-1)
    away = (axes[..., 2] * centre).sum(-1, keepdim=True) >= 0
    normals = torch.where(away, -axes[..., 2], axes[..., 2])
    Tu, Tv, Tw = transforms.unbind(-2)
    signs = Tw.new_tensor([1.0, 1.0, -1.0])
    f = signs / (signs * Tw * Tw).sum(-1, keepdim=True)
    middle = torch.stack([(f * Tu * Tw).sum(-1), (f * Tv * Tw).sum(-1)], dim=-1)
    half = middle.detach() ** 2 - torch.stack([(f * Tu * Tu).sum(-1), (f * Tv * Tv).sum(-1)], dim=-1).detach()
    return middle, half, centre[:, 2], transforms, normals


@torch.no_grad()
def disk_radii(means2d, half, depths, transforms, view: View):
    """Half sizes of the boxes in pixels, int32 [P,2]; 0 for what is culled."""
    radii = torch.ceil(EXTENT * half.clamp(min=1e-4).sqrt())
    x, y = means2d.unbind(-1)
    keep = (depths > view.near_plane) & (depths < view.far_plane) & (radii > view.radius_clip).any(-1)
    keep &= (x + radii[:, 0] > 0) & (x - radii[:, 0] < view.width) & (y + radii[:, 1] > 0) & (y - radii[:, 1] < view.height)
    keep &= torch.isfinite(means2d).all(-1) & torch.isfinite(transforms).flatten(1).all(-1) & (radii < 2**30).all(-1)
    return torch.where(keep[:, None], radii, torch.zeros_like(radii)).to(torch.int32)


def project_surfels(means, quats, scales, viewmats, Ks, view: View, packed: bool, sparse: bool = False):
    """Project [B,N] surfels into [B,C] cameras: (radii, means2d, depths, transforms, normals) as rows, and ids or None.

    Rows are the visible pairs (`packed`), or all B*C*N pairs with zeros for the culled.
    """
    (B, N), C = means.shape[:2], viewmats.shape[1]
    every = torch.cartesian_prod(*(torch.arange(n, device=means.device) for n in (B, C, N))).reshape(-1, 3).unbind(-1)

    def rows(batch_ids, camera_ids, gaussian_ids, take=None):
        cameras = (batch_ids, camera_ids) if B * C > 1 else (batch_ids[:1], camera_ids[:1])
        if take is not None:
            splats = [take(t[0], gaussian_ids) for t in (means, quats, scales)]
        elif B * C == 1 and len(gaussian_ids) == N:
            splats = [means[0], quats[0], scales[0]]
        else:
            splats = [t[batch_ids, gaussian_ids] for t in (means, quats, scales)]
        return (*splats, viewmats[cameras], Ks[cameras])

    with torch.no_grad():
        means2d, half, depths, transforms, _ = project_disks(*rows(*every))
        radii = disk_radii(means2d, half, depths, transforms, view)
        seen = torch.nonzero((radii > 0).all(-1)).squeeze(-1)
    ids = tuple(index[seen] for index in every)
    means2d, _, depths, transforms, normals = project_disks(*rows(*ids, take=gather_rows if sparse else None))
    if packed:
        return (radii[seen], means2d, depths, transforms, normals), ids
    if len(seen) == B * C * N:
        return (radii, means2d, depths, transforms, normals), None
    spread = (x.new_zeros((B * C * N,) + x.shape[1:]).index_copy(0, seen, x) for x in (means2d, depths, transforms, normals))
    return (radii, *spread), None


def fully_fused_projection_2dgs(
    means: Float[Tensor, "*b n 3"],
    quats: Float[Tensor, "*b n 4"],
    scales: Float[Tensor, "*b n 3"],
    viewmats: Float[Tensor, "*b c 4 4"],
    Ks: Float[Tensor, "*b c 3 3"],
    width: int,
    height: int,
    eps2d: float = 0.3,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    packed: bool = False,
    sparse_grad: bool = False,
) -> tuple[Tensor, ...]:
    """Project N surfels into C cameras, with the call and the returns of gsplat 1.5.3.

    Args:
        scales: the third is not used. eps2d: not used either, as in gsplat; the low-pass is the compositor's.
        packed, sparse_grad: as in `fully_fused_projection`.

    Returns:
        radii [..., C, N, 2], means2d [..., C, N, 2], depths [..., C, N], ray_transforms T [..., C, N, 3, 3], and normals
        [..., C, N, 3] in camera axes. Packed: batch_ids, camera_ids, gaussian_ids [nnz], then the same five as [nnz, ...].

    >>> out = fully_fused_projection_2dgs(torch.tensor([[0.0, 0.0, 2.0]]), torch.eye(4)[:1], torch.full((1, 3), 0.1),
    ...     torch.eye(4)[None], torch.tensor([[[32.0, 0, 16], [0, 32, 16], [0, 0, 1]]]), 32, 32)
    >>> out[0].tolist(), out[1].tolist(), out[4].tolist()
    ([[[6, 6]]], [[[16.0, 16.0]]], [[[-0.0, -0.0, -1.0]]])
    """
    batch, N, C = check_splats(means, quats, scales, viewmats, Ks)
    if sparse_grad and not packed:
        raise CallError("sparse_grad is only supported when packed is True.")
    if sparse_grad and batch:
        raise CallError("sparse_grad does not support batch dimensions.")
    view = View(int(width), int(height), near_plane, far_plane, radius_clip, eps2d)
    B = math.prod(batch)
    flat = [t if sparse_grad else t.reshape((B,) + t.shape[len(batch) :]) for t in (means, quats, scales)]
    cameras = [t.reshape((B,) + t.shape[len(batch) :]) for t in (viewmats, Ks)]
    if sparse_grad:
        rows, ids = project_surfels(*(_Unbatched(t) for t in flat), *cameras, view, packed, sparse=True)
    elif engines.choose((*flat, None, *cameras), view, 16).project is not engine_reference.project:
        from nsw.kernels import surfels_projection_fast

        rows, ids = surfels_projection_fast.project_surfels(*flat, *cameras, view, packed)
    else:
        rows, ids = project_surfels(*flat, *cameras, view, packed)
    return (*ids, *rows) if packed else tuple(row.view(batch + (C, N) + row.shape[1:]) for row in rows)


class _Unbatched:
    """A tensor that reads as a batch of one but gives out the tensor itself: a sparse gradient cannot pass through a view."""

    def __init__(self, tensor: Tensor):
        self.tensor, self.shape, self.device = tensor, (1, *tensor.shape), tensor.device

    def __getitem__(self, index):
        return self.tensor if index == 0 else self.tensor[index[1]]

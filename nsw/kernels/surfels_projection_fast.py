"""Project surfels, compiled: values of `surfels_projection.py` and their gradients, one pass over the splats each.

The box's middle is c = f . (T_u o T_w) with f = (1, 1, -1) / d, d = T_w0^2 + T_w1^2 - T_w2^2. Counted from the picture s of the
centre (T'_u = T_u - s_x T_w) it is s + c', the same function with small numbers, and so is its gradient:

    dL/dT'_u = g_x f o T_w      dL/dT_w = g_x f o T'_u + g_y f o T'_v - 2 (g . c') / d (T_w0, T_w1, -T_w2) - s_x dL/dT'_u - ...
"""

from __future__ import annotations

import math

import numpy as np
import torch

from nsw.kernels.compiling import helper, kernel
from nsw.kernels.projection import (
    BLOCK,
    N_VIEW_GRADS,
    ONE,
    TWO,
    ZERO,
    quaternion_gradient,
    rotate,
    rotate_back,
    rotation_columns,
    unit_quaternion,
)
from nsw.kernels.projection_reference import View
from nsw.kernels.saturation import settle
from nsw.kernels.surfels_lists import centred_rows
from nsw.kernels.threads import n_threads, run_shares

f4 = np.float32
EXTENT, SMALLEST, LARGEST = f4(3.33), f4(1e-4), f4(1e9)


@helper
def transform_rows(V, K, mean, quat, scale, T):
    """Write T = K [s_u t_u, s_v t_v, p] (row by row) into nine floats; return depth and the normal towards the camera."""
    p = rotate(V, mean)
    x, y, z = p[0] + V[0, 3], p[1] + V[1, 3], p[2] + V[2, 3]
    w, qx, qy, qz, _ = unit_quaternion(quat[0], quat[1], quat[2], quat[3])
    axes = rotation_columns(w, qx, qy, qz)
    a, b, n = rotate(V, axes[0]), rotate(V, axes[1]), rotate(V, axes[2])
    for row in range(3):
        k0, k1, k2 = K[row, 0], K[row, 1], K[row, 2]
        T[3 * row] = scale[0] * (k0 * a[0] + k1 * a[1] + k2 * a[2])
        T[3 * row + 1] = scale[1] * (k0 * b[0] + k1 * b[1] + k2 * b[2])
        T[3 * row + 2] = k0 * x + k1 * y + k2 * z
    sign = -ONE if n[0] * x + n[1] * y + n[2] * z >= ZERO else ONE
    return z, sign * n[0], sign * n[1], sign * n[2], sign


@helper
def disk_box(T, z, view):
    """Middle of the unit circle's box and the half sizes of the splat's, (0, 0) when it is culled."""
    width, height, near, far, radius_clip = view[0], view[1], view[2], view[3], view[4]
    sx, sy, Tu, Tv, Tw = centred_rows(T)
    d = Tw[0] * Tw[0] + Tw[1] * Tw[1] - Tw[2] * Tw[2]
    if not (z > near and z < far) or d == ZERO:
        return ZERO, ZERO, 0, 0
    f = ONE / d
    cx = f * (Tu[0] * Tw[0] + Tu[1] * Tw[1] - Tu[2] * Tw[2])
    cy = f * (Tv[0] * Tw[0] + Tv[1] * Tw[1] - Tv[2] * Tw[2])
    hx = cx * cx - f * (Tu[0] * Tu[0] + Tu[1] * Tu[1] - Tu[2] * Tu[2])
    hy = cy * cy - f * (Tv[0] * Tv[0] + Tv[1] * Tv[1] - Tv[2] * Tv[2])
    rx, ry = np.ceil(EXTENT * math.sqrt(max(hx, SMALLEST))), np.ceil(EXTENT * math.sqrt(max(hy, SMALLEST)))
    x, y = sx + cx, sy + cy
    # Written so that a NaN anywhere makes the condition false.
    inside = x + rx > ZERO and x - rx < width and y + ry > ZERO and y - ry < height and hx < LARGEST and hy < LARGEST
    if inside and (rx > radius_clip or ry > radius_clip) and rx < LARGEST and ry < LARGEST:
        return x, y, int(rx), int(ry)
    return ZERO, ZERO, 0, 0


@helper
def three(rows, b, n):
    """A row's numbers as a tuple: unlike the row itself, it costs nothing to hand down."""
    return rows[b, n, 0], rows[b, n, 1], rows[b, n, 2]


@helper
def four(rows, b, n):
    return rows[b, n, 0], rows[b, n, 1], rows[b, n, 2], rows[b, n, 3]


@kernel
def project_disks_forward(means, quats, scales, viewmats, Ks, view, radii, means2d, depths, transforms, normals, share, n_shares):
    """Project N surfels of B scenes into C cameras each; outputs have rows B*C*N, zeros for culled pairs. transforms: [R, 9]."""
    N, C = means.shape[1], viewmats.shape[1]
    n_rows = means.shape[0] * C * N
    T = np.empty(9, np.float32)
    for task in range(share, (n_rows + BLOCK - 1) // BLOCK, n_shares):
        for row in range(task * BLOCK, min((task + 1) * BLOCK, n_rows)):
            image, n = row // N, row % N
            b, k = image // C, image % C
            disk = three(means, b, n), four(quats, b, n), three(scales, b, n)
            z, n0, n1, n2, _ = transform_rows(viewmats[b, k], Ks[b, k], disk[0], disk[1], disk[2], T)
            x, y, rx, ry = disk_box(T, z, view)
            for i in range(9):
                if not math.isfinite(T[i]):
                    rx, ry = 0, 0
            seen = rx > 0 and ry > 0
            radii[row, 0], radii[row, 1] = (rx, ry) if seen else (0, 0)
            means2d[row, 0], means2d[row, 1], depths[row] = (x, y, z) if seen else (ZERO, ZERO, ZERO)
            normals[row, 0], normals[row, 1], normals[row, 2] = (n0, n1, n2) if seen else (ZERO, ZERO, ZERO)
            for i in range(9):
                transforms[row, i] = T[i] if seen else ZERO


@helper
def add_box_gradient(T, g, v_T):
    """Add the gradient of the box's middle, g, to that of T."""
    sx, sy, Tu, Tv, Tw = centred_rows(T)
    f = ONE / (Tw[0] * Tw[0] + Tw[1] * Tw[1] - Tw[2] * Tw[2])
    cx = f * (Tu[0] * Tw[0] + Tu[1] * Tw[1] - Tu[2] * Tw[2])
    cy = f * (Tv[0] * Tw[0] + Tv[1] * Tw[1] - Tv[2] * Tw[2])
    v_d = -TWO * f * (g[0] * cx + g[1] * cy)
    for i in range(3):
        signed = f if i < 2 else -f
        v_u, v_v = g[0] * signed * Tw[i], g[1] * signed * Tw[i]
        v_T[i] += v_u
        v_T[3 + i] += v_v
        v_T[6 + i] += signed * (g[0] * Tu[i] + g[1] * Tv[i]) - sx * v_u - sy * v_v + (v_d if i < 2 else -v_d) * Tw[i]


@helper
def columns_gradient(K, v_T):
    """K^T dL/dT: gradients of the two scaled tangents and of the centre, in camera axes."""
    a = (
        K[0, 0] * v_T[0] + K[1, 0] * v_T[3] + K[2, 0] * v_T[6],
        K[0, 1] * v_T[0] + K[1, 1] * v_T[3] + K[2, 1] * v_T[6],
        K[0, 2] * v_T[0] + K[1, 2] * v_T[3] + K[2, 2] * v_T[6],
    )
    b = (
        K[0, 0] * v_T[1] + K[1, 0] * v_T[4] + K[2, 0] * v_T[7],
        K[0, 1] * v_T[1] + K[1, 1] * v_T[4] + K[2, 1] * v_T[7],
        K[0, 2] * v_T[1] + K[1, 2] * v_T[4] + K[2, 2] * v_T[7],
    )
    c = (
        K[0, 0] * v_T[2] + K[1, 0] * v_T[5] + K[2, 0] * v_T[8],
        K[0, 1] * v_T[2] + K[1, 1] * v_T[5] + K[2, 1] * v_T[8],
        K[0, 2] * v_T[2] + K[1, 2] * v_T[5] + K[2, 2] * v_T[8],
    )
    return a, b, c


@kernel
def project_disks_backward(
    means, quats, scales, viewmats, Ks, radii, v_means2d, v_depths, v_transforms, v_normals, v_means, v_quats, v_scales,
    v_views, share, n_shares,
):  # fmt: skip
    """Sum each surfel's gradient over its cameras; see `project_backward` for the shapes."""
    B, N, C = means.shape[0], means.shape[1], viewmats.shape[1]
    n_tasks = (N + BLOCK - 1) // BLOCK
    T, v_T, out = np.empty(9, np.float32), np.empty(9, np.float32), np.empty(9, np.float32)
    for task in range(share, B * n_tasks, n_shares):
        b, first = task // n_tasks, (task % n_tasks) * BLOCK
        for k in range(C):
            V, K, total = viewmats[b, k], Ks[b, k], v_views[b, task % n_tasks, k]
            for n in range(first, min(first + BLOCK, N)):
                row = (b * C + k) * N + n
                if radii[row, 0] <= 0 or radii[row, 1] <= 0:
                    continue
                mean, quat, scale = three(means, b, n), four(quats, b, n), three(scales, b, n)
                _, _, _, _, sign = transform_rows(V, K, mean, quat, scale, T)
                for i in range(9):
                    v_T[i] = v_transforms[row, i]
                add_box_gradient(T, (v_means2d[row, 0], v_means2d[row, 1]), v_T)
                a, c, p = columns_gradient(K, v_T)
                p = (p[0], p[1], p[2] + v_depths[row])
                n_cam = (sign * v_normals[row, 0], sign * v_normals[row, 1], sign * v_normals[row, 2])
                w, x, y, z, inverse = unit_quaternion(quat[0], quat[1], quat[2], quat[3])
                axes = rotation_columns(w, x, y, z)
                ra, rc = rotate(V, axes[0]), rotate(V, axes[1])
                s0, s1 = a[0] * ra[0] + a[1] * ra[1] + a[2] * ra[2], c[0] * rc[0] + c[1] * rc[1] + c[2] * rc[2]
                a = (scale[0] * a[0], scale[0] * a[1], scale[0] * a[2])
                c = (scale[1] * c[0], scale[1] * c[1], scale[1] * c[2])
                d0, d1 = rotate_back(V, a[0], a[1], a[2]), rotate_back(V, c[0], c[1], c[2])
                d2 = rotate_back(V, n_cam[0], n_cam[1], n_cam[2])
                out[0], out[1], out[2] = rotate_back(V, p[0], p[1], p[2])
                out[3], out[4], out[5], out[6] = quaternion_gradient(w, x, y, z, inverse, d0, d1, d2)
                out[7], out[8] = s0, s1
                finite = True
                for i in range(9):
                    finite = finite and math.isfinite(out[i])
                if not finite:  # beyond the range of float32 no step can be taken
                    continue
                for i in range(3):
                    v_means[b, n, i] += out[i]
                for i in range(4):
                    v_quats[b, n, i] += out[3 + i]
                v_scales[b, n, 0] += s0
                v_scales[b, n, 1] += s1
                for i in range(3):
                    for j in range(3):
                        total[i * 4 + j] += p[i] * mean[j] + a[i] * axes[0][j] + c[i] * axes[1][j] + n_cam[i] * axes[2][j]
                    total[i * 4 + 3] += p[i]


def _shares(n_rows: int) -> int:
    return n_threads() if n_rows > 2000 else 1


class _ProjectDisks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, means, quats, scales, viewmats, Ks, view: View):
        settings = np.array([view.width, view.height, view.near_plane, view.far_plane, view.radius_clip], np.float32)
        inputs = [t.detach().contiguous().numpy() for t in (means, quats, scales, viewmats, Ks)]
        n_rows = viewmats.shape[0] * viewmats.shape[1] * means.shape[1]
        radii = np.empty((n_rows, 2), np.int32)
        outputs = [np.empty((n_rows,) + tail, np.float32) for tail in ((2,), (), (9,), (3,))]
        run_shares(project_disks_forward, _shares(n_rows), *inputs, settings, radii, *outputs)
        ctx.arrays = (inputs, radii)
        tensors = [torch.from_numpy(array) for array in (radii, *outputs)]
        ctx.mark_non_differentiable(tensors[0])
        tensors[3] = tensors[3].view(-1, 3, 3)
        return tuple(tensors)

    @staticmethod
    def backward(ctx, _, v_means2d, v_depths, v_transforms, v_normals):
        inputs, radii = ctx.arrays
        means, quats, scales, viewmats, _ = inputs
        (B, N), C = means.shape[:2], viewmats.shape[1]
        grads = [np.zeros_like(array) for array in (means, quats, scales)]
        v_views = np.zeros((B, -(-N // BLOCK), C, N_VIEW_GRADS), np.float32)
        given = [v.contiguous().numpy() for v in (v_means2d, v_depths, v_transforms.reshape(-1, 9), v_normals)]
        run_shares(project_disks_backward, _shares(B * N), *inputs, radii, *given, *grads, v_views)
        v_viewmats = torch.zeros(B, C, 4, 4)
        v_viewmats[..., :3, :] = torch.from_numpy(settle(v_views.sum(axis=1))).view(B, C, 3, 4)
        return (*(torch.from_numpy(grad) for grad in grads), v_viewmats, None, None)


def project_surfels(means, quats, scales, viewmats, Ks, view: View, packed: bool):
    """Do what `surfels_projection.project_surfels` does, for float32 on the CPU and dense gradients."""
    radii, *rows = _ProjectDisks.apply(means, quats, scales, viewmats, Ks, view)
    if not packed:
        return (radii, *rows), None
    seen = torch.nonzero((radii > 0).all(dim=-1)).squeeze(-1)
    sizes = (viewmats.shape[0], viewmats.shape[1], means.shape[1])
    ids = torch.unravel_index(seen, sizes) if len(seen) else (seen, seen, seen)
    return (radii[seen], *(row[seen] for row in rows)), ids

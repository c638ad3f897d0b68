"""The gradient of `projection.project_forward`: from the picture plane back to centres, rotations, sizes and cameras."""

from __future__ import annotations

import math

from nsw.kernels.compiling import helper, kernel
from nsw.kernels.projection import (
    BLOCK,
    ZERO,
    axis_gradient,
    centre_gradient,
    clamped_slopes,
    covariance_gradient,
    project_axes,
    quaternion_gradient,
    rotate,
    rotate_back,
    rotation_columns,
    unit_quaternion,
)


@helper
def add_view_gradient(total, mean, centre, axes, cameras):
    """d loss / d [R_w | t]: the centre enters as R_w mean + t, each axis as R_w axis."""
    for i in range(3):
        for j in range(3):
            total[i * 4 + j] += (
                centre[i] * mean[j] + cameras[0][i] * axes[0][j] + cameras[1][i] * axes[1][j] + cameras[2][i] * axes[2][j]
            )
        total[i * 4 + 3] += centre[i]


@helper
def finite3(a, b, c):
    return math.isfinite(a) and math.isfinite(b) and math.isfinite(c)


@helper
def project_one_backward(mean, quat, scale, V, K, view, conic, compensation, v_mean2d, v_depth, v_conic, v_comp):
    """Gradients of one splat in one camera: centre (world), quaternion, scale, and what the camera's own gradient is made of."""
    width, height, eps2d = view[0], view[1], view[5]
    p = rotate(V, mean)
    x, y, z = p[0] + V[0, 3], p[1] + V[1, 3], p[2] + V[2, 3]
    w, qx, qy, qz, inverse = unit_quaternion(quat[0], quat[1], quat[2], quat[3])
    axes = rotation_columns(w, qx, qy, qz)
    slopes = clamped_slopes(x, y, z, K, width, height)
    u, v = slopes[0], slopes[1]
    row_x, row_y, turned = project_axes(V, K, z, u, v, axes, (scale[0], scale[1], scale[2]))
    h = covariance_gradient(conic, v_conic, compensation, v_comp, eps2d)
    fx_z, fy_z = K[0, 0] / z, K[1, 1] / z
    s0, d0, j0, c0 = axis_gradient(V, h, row_x[0], row_y[0], turned[0], scale[0], fx_z, fy_z, u, v)
    s1, d1, j1, c1 = axis_gradient(V, h, row_x[1], row_y[1], turned[1], scale[1], fx_z, fy_z, u, v)
    s2, d2, j2, c2 = axis_gradient(V, h, row_x[2], row_y[2], turned[2], scale[2], fx_z, fy_z, u, v)
    dJ = (j0[0] + j1[0] + j2[0], j0[1] + j1[1] + j2[1], j0[2] + j1[2] + j2[2], j0[3] + j1[3] + j2[3])
    centre = centre_gradient(x, y, z, slopes, K, v_mean2d, v_depth, dJ)
    v_quat = quaternion_gradient(w, qx, qy, qz, inverse, d0, d1, d2)
    return rotate_back(V, centre[0], centre[1], centre[2]), v_quat, (s0, s1, s2), centre, axes, (c0, c1, c2)


@kernel
def project_backward(
    means, quats, scales, viewmats, Ks, view, radii, conics, compensations,
    v_means2d, v_depths, v_conics, v_compensations, v_means, v_quats, v_scales, v_views, share, n_shares,
):  # fmt: skip
    """Sum each splat's gradient over its cameras.

    Args:
        v_means2d, v_depths, v_conics, v_compensations: gradients of `project_forward`'s outputs, rows B*C*N.
        v_means, v_quats, v_scales: written, shaped like the inputs.
        v_views: [B, tasks, C, 12], zeros, added to: parts of the cameras' gradients (rows of [R_w | t]) to be summed over tasks.
    """
    B, N, C = means.shape[0], means.shape[1], viewmats.shape[1]
    n_tasks = (N + BLOCK - 1) // BLOCK
    for task in range(share, B * n_tasks, n_shares):
        b, first = task // n_tasks, (task % n_tasks) * BLOCK
        views = v_views[b, task % n_tasks]
        for n in range(first, min(first + BLOCK, N)):
            m0, m1, m2, q0, q1, q2, q3, s0, s1, s2 = ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO
            for k in range(C):
                row = (b * C + k) * N + n
                if radii[row, 0] <= 0 or radii[row, 1] <= 0:
                    continue
                v_mean, v_quat, v_scale, centre, axes, cameras = project_one_backward(
                    means[b, n], quats[b, n], scales[b, n], viewmats[b, k], Ks[b, k], view, conics[row], compensations[row],
                    v_means2d[row], v_depths[row], v_conics[row], v_compensations[row],
                )  # fmt: skip
                # A splat at the edge of float's range can be drawn and still have no representable slope: it stays where it is.
                if not (finite3(v_mean[0], v_mean[1], v_mean[2]) and finite3(v_scale[0], v_scale[1], v_scale[2])
                        and finite3(v_quat[0], v_quat[1], v_quat[2] + v_quat[3])):  # fmt: skip
                    continue
                m0, m1, m2 = m0 + v_mean[0], m1 + v_mean[1], m2 + v_mean[2]
                q0, q1, q2, q3 = q0 + v_quat[0], q1 + v_quat[1], q2 + v_quat[2], q3 + v_quat[3]
                s0, s1, s2 = s0 + v_scale[0], s1 + v_scale[1], s2 + v_scale[2]
                add_view_gradient(views[k], means[b, n], centre, axes, cameras)
            v_means[b, n, 0], v_means[b, n, 1], v_means[b, n, 2] = m0, m1, m2
            v_quats[b, n, 0], v_quats[b, n, 1], v_quats[b, n, 2], v_quats[b, n, 3] = q0, q1, q2, q3
            v_scales[b, n, 0], v_scales[b, n, 1], v_scales[b, n, 2] = s0, s1, s2

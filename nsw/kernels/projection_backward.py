"""The gradient of `projection.project_forward`: from the picture plane back to centres, rotations, sizes and cameras."""

from __future__ import annotations

import numpy as np

from nsw.kernels.compiling import helper, kernel
from nsw.kernels.projection import (
    BLOCK,
    N_VIEW_GRADS,
    ZERO,
    axis_gradient,
    centre_gradient,
    clamped_slopes,
    covariance_gradient,
    load3,
    load4,
    project_axes,
    quaternion_gradient,
    rotate,
    rotate_back,
    rotation_columns,
    unit_quaternions,
)
from nsw.kernels.saturation import STEEPEST
from nsw.kernels.simd import LANES, absolute, broadcast, load, select, store, sum_lanes
from nsw.kernels.simd_rows import first_lanes, load_rows, store_rows, take

f4 = np.float32
INFINITY = f4(np.inf)


@helper
def add_to(total, place, value, counts):
    at = place * LANES
    store(total, at, load(total, at) + select(counts & (absolute(value) < STEEPEST), value, broadcast(ZERO)))


@helper
def add_view_gradient(total, counts, mean, centre, axes, cameras):
    """d loss / d [R_w | t]: the centre enters as R_w mean + t, each axis as R_w axis."""
    for i in range(3):
        for j in range(3):
            value = centre[i] * mean[j] + cameras[0][i] * axes[0][j] + cameras[1][i] * axes[1][j] + cameras[2][i] * axes[2][j]
            add_to(total, i * 4 + j, value, counts)
        add_to(total, i * 4 + 3, centre[i], counts)


@helper
def finite3(v):
    return (absolute(v[0]) < INFINITY) & (absolute(v[1]) < INFINITY) & (absolute(v[2]) < INFINITY)


@helper
def project_lanes_backward(mean, quat, scale, V, K, view, conic, compensation, v_mean2d, v_depth, v_conic, v_comp):
    """Gradients of LANES splats in one camera: centre (world), quaternion, scale, and what the camera's own is made of."""
    width, height, eps2d = view[0], view[1], view[5]
    p = rotate(V, mean)
    x, y, z = p[0] + V[0, 3], p[1] + V[1, 3], p[2] + V[2, 3]
    w, qx, qy, qz, inverse = unit_quaternions(quat[0], quat[1], quat[2], quat[3])
    axes = rotation_columns(w, qx, qy, qz)
    slopes = clamped_slopes(x, y, z, K, width, height)
    u, v = slopes[0], slopes[1]
    row_x, row_y, turned = project_axes(V, K, z, u, v, axes, scale)
    h = covariance_gradient(conic, v_conic, compensation, v_comp, eps2d)
    fx_z, fy_z = K[0, 0] / z, K[1, 1] / z
    s0, d0, j0, c0 = axis_gradient(V, h, row_x[0], row_y[0], turned[0], scale[0], fx_z, fy_z, u, v)
    s1, d1, j1, c1 = axis_gradient(V, h, row_x[1], row_y[1], turned[1], scale[1], fx_z, fy_z, u, v)
    s2, d2, j2, c2 = axis_gradient(V, h, row_x[2], row_y[2], turned[2], scale[2], fx_z, fy_z, u, v)
    dJ = (j0[0] + j1[0] + j2[0], j0[1] + j1[1] + j2[1], j0[2] + j1[2] + j2[2], j0[3] + j1[3] + j2[3])
    centre = centre_gradient(x, y, z, slopes, K, v_mean2d, v_depth, dJ)
    v_quat = quaternion_gradient(w, qx, qy, qz, inverse, d0, d1, d2)
    return rotate_back(V, centre[0], centre[1], centre[2]), v_quat, (s0, s1, s2), centre, axes, (c0, c1, c2)


@helper
def chosen3(mask, new, old):
    """old + new where the mask holds."""
    zero = broadcast(ZERO)
    return old[0] + select(mask, new[0], zero), old[1] + select(mask, new[1], zero), old[2] + select(mask, new[2], zero)


@kernel
def project_backward(
    next_task, n_splats, means, quats, scales, viewmats, Ks, view, radii, conics, compensations,
    v_means2d, v_depths, v_conics, v_compensations, v_means, v_quats, v_scales, v_views, want_views,
):  # fmt: skip
    """Sum each splat's gradient over its cameras; called by every thread at once.

    Args:
        v_means2d, v_depths, v_conics, v_compensations: gradients of `project_forward`'s outputs, flat.
        v_means, v_quats, v_scales: flat, written.
        v_views: [B, tasks, C, 12], written if want_views is not None: parts of the cameras' gradients (rows of [R_w | t]), to be
            summed over tasks.
    """
    B, N, C, zero = viewmats.shape[0], n_splats, viewmats.shape[1], broadcast(ZERO)
    tasks, total = (N + BLOCK - 1) // BLOCK, np.empty(C * N_VIEW_GRADS * LANES, np.float32)
    task = take(next_task)
    while task < B * tasks:
        b, block = task // tasks, task % tasks
        last = (b + 1) * N - 1
        total[:] = ZERO
        for n in range(b * N + block * BLOCK, min(b * N + (block + 1) * BLOCK, last + 1), LANES):
            mean, quat, scale = load3(means, n, last), load4(quats, n, last), load3(scales, n, last)
            v_mean, v_scale, v_xyz, v_w = (zero, zero, zero), (zero, zero, zero), (zero, zero, zero), zero
            for k in range(C):
                row, end = n + (b * (C - 1) + k) * N, last + (b * (C - 1) + k) * N
                new_mean, new_quat, new_scale, centre, axes, cameras = project_lanes_backward(
                    mean, quat, scale, viewmats[b, k], Ks[b, k], view,
                    load3(conics, row, end), load_rows(compensations, row, end, 1, 0),
                    (load_rows(v_means2d, row, end, 2, 0), load_rows(v_means2d, row, end, 2, 1)),
                    load_rows(v_depths, row, end, 1, 0), load3(v_conics, row, end), load_rows(v_compensations, row, end, 1, 0),
                )  # fmt: skip
                # A splat at the edge of float's range can be drawn and still have no representable slope: it stays where it is.
                new_xyz = (new_quat[1], new_quat[2], new_quat[3])
                drawn = (load_rows(radii, row, end, 2, 0) > ZERO) & (load_rows(radii, row, end, 2, 1) > ZERO)
                drawn = drawn & finite3(new_mean) & finite3(new_scale) & finite3(new_xyz) & (absolute(new_quat[0]) < INFINITY)
                v_mean, v_scale = chosen3(drawn, new_mean, v_mean), chosen3(drawn, new_scale, v_scale)
                v_xyz, v_w = chosen3(drawn, new_xyz, v_xyz), v_w + select(drawn, new_quat[0], zero)
                if want_views is not None:
                    counts = drawn & first_lanes(f4(last + 1 - n))
                    add_view_gradient(total[k * N_VIEW_GRADS * LANES :], counts, mean, centre, axes, cameras)
            for i, v in enumerate(v_mean):
                store_rows(v_means, n, last, 3, i, v)
            for i, v in enumerate(v_scale):
                store_rows(v_scales, n, last, 3, i, v)
            for i, v in enumerate((v_w, v_xyz[0], v_xyz[1], v_xyz[2])):
                store_rows(v_quats, n, last, 4, i, v)
        if want_views is not None:
            for k in range(C):
                for i in range(N_VIEW_GRADS):
                    v_views[b, block, k, i] = sum_lanes(load(total, (k * N_VIEW_GRADS + i) * LANES))
        task = take(next_task)

"""Project 3D Gaussians to 2D ones, compiled: values of `projection_reference.py` and their gradients in one pass over the splats.

With camera-space centre p = (x, y, z), world rotation R_w, M = R(q) diag(s) and J the projection's Jacobian, let A = J R_w M
(2 x 3, one column for each axis of the splat). Then Sigma_2 = A A^T + eps2d I, so neither Sigma nor its camera-space form is ever
built, and backward goes the same way: dA = 2 G A with G = d loss / d Sigma_2, and from dA to M, J and R_w column by column.

The formulas are written once and used for LANES splats at a time: `x`, `scale[0]` and so on are vectors, one lane a splat; only the
camera's numbers are scalars. What a plain program would skip is computed for all lanes and then not selected.
"""

from __future__ import annotations

import math

import numpy as np

from nsw.kernels.compiling import helper, kernel
from nsw.kernels.simd import LANES, absolute, broadcast, maximum, minimum, select
from nsw.kernels.simd_rows import ceil, load_rows, log2, square_root, store_rows, take

f4 = np.float32
LOG2_255, LN2 = f4(math.log2(255.0)), f4(math.log(2.0))
ALPHA_MIN, MAX_EXTENT = f4(1.0 / 255.0), f4(3.33)
ZERO, HALF, ONE, TWO = f4(0), f4(0.5), f4(1), f4(2)
BLOCK = 512  # rows a task: fixed, so that sums over tasks do not depend on how many threads share them
N_VIEW_GRADS = 12


@helper
def unit_quaternion(w, x, y, z):
    """The unit quaternion and 1/length; a zero quaternion stays zero, which is no rotation."""
    length = math.sqrt(w * w + x * x + y * y + z * z)
    inverse = ONE / max(length, f4(1e-12))
    return w * inverse, x * inverse, y * inverse, z * inverse, inverse


@helper
def unit_quaternions(w, x, y, z):
    """`unit_quaternion` on vectors."""
    inverse = ONE / maximum(square_root(w * w + x * x + y * y + z * z), broadcast(f4(1e-12)))
    return w * inverse, x * inverse, y * inverse, z * inverse, inverse


@helper
def rotation_columns(w, x, y, z):
    """The three columns of the rotation matrix: the directions of the splat's axes in the world."""
    first = (ONE - TWO * (y * y + z * z), TWO * (x * y + w * z), TWO * (x * z - w * y))
    second = (TWO * (x * y - w * z), ONE - TWO * (x * x + z * z), TWO * (y * z + w * x))
    third = (TWO * (x * z + w * y), TWO * (y * z - w * x), ONE - TWO * (x * x + y * y))
    return first, second, third


@helper
def rotate(V, v):
    """R_w v, the rotation part of world-to-camera."""
    return (
        V[0, 0] * v[0] + V[0, 1] * v[1] + V[0, 2] * v[2],
        V[1, 0] * v[0] + V[1, 1] * v[1] + V[1, 2] * v[2],
        V[2, 0] * v[0] + V[2, 1] * v[1] + V[2, 2] * v[2],
    )


@helper
def rotate_back(V, a, b, c):
    """R_w^T (a, b, c): a gradient in camera axes, seen in world axes."""
    return (
        V[0, 0] * a + V[1, 0] * b + V[2, 0] * c,
        V[0, 1] * a + V[1, 1] * b + V[2, 1] * c,
        V[0, 2] * a + V[1, 2] * b + V[2, 2] * c,
    )


@helper
def clamped_slopes(x, y, z, K, width, height):
    """x/z and y/z as J uses them, clamped to 15 % of the picture beyond its borders; and whether they were left as they are."""
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    margin_x, margin_y = f4(0.15) * width / fx, f4(0.15) * height / fy
    slope_x, slope_y = x / z, y / z
    u = minimum(maximum(slope_x, broadcast(-(cx / fx + margin_x))), broadcast((width - cx) / fx + margin_x))
    v = minimum(maximum(slope_y, broadcast(-(cy / fy + margin_y))), broadcast((height - cy) / fy + margin_y))
    return u, v, u == slope_x, v == slope_y


@helper
def project_axes(V, K, z, u, v, axes, sizes):
    """The columns of A: where each axis of the splat, at its length, points to on the picture (px)."""
    fx_z, fy_z = K[0, 0] / z, K[1, 1] / z
    r0, r1, r2 = rotate(V, axes[0]), rotate(V, axes[1]), rotate(V, axes[2])
    row_x = (sizes[0] * fx_z * (r0[0] - u * r0[2]), sizes[1] * fx_z * (r1[0] - u * r1[2]), sizes[2] * fx_z * (r2[0] - u * r2[2]))
    row_y = (sizes[0] * fy_z * (r0[1] - v * r0[2]), sizes[1] * fy_z * (r1[1] - v * r1[2]), sizes[2] * fy_z * (r2[1] - v * r2[2]))
    return row_x, row_y, (r0, r1, r2)


@helper
def box_radii(px, py, a, c, opacity, view):
    """Half sizes of the box where the splat is at least 1/255, rounded up; and whether it is bright, large enough, inside."""
    width, height, radius_clip = view[0], view[1], view[4]
    extent = minimum(square_root(TWO * LN2 * (log2(opacity) + LOG2_255)), broadcast(MAX_EXTENT))
    rx, ry = ceil(extent * square_root(a)), ceil(extent * square_root(c))
    # Written so that a NaN anywhere makes the condition false.
    seen = (opacity >= ALPHA_MIN) & (px + rx > ZERO) & (px - rx < width) & (py + ry > ZERO) & (py - ry < height)
    return rx, ry, seen & (maximum(rx, ry) > radius_clip) & (rx < f4(1e9)) & (ry < f4(1e9)) & (rx > ZERO) & (ry > ZERO)


@helper
def determinants(row_x, row_y, eps2d):
    """Entries a, b, c of the dilated Sigma_2, its determinant, and the compensation sqrt(det before / det after).

    det(A A^T) is a sum of squared 2 x 2 minors (Cauchy-Binet): unlike ac - b^2 it cannot come out negative.
    """
    a = row_x[0] * row_x[0] + row_x[1] * row_x[1] + row_x[2] * row_x[2]
    b = row_x[0] * row_y[0] + row_x[1] * row_y[1] + row_x[2] * row_y[2]
    c = row_y[0] * row_y[0] + row_y[1] * row_y[1] + row_y[2] * row_y[2]
    m0 = row_x[0] * row_y[1] - row_x[1] * row_y[0]
    m1 = row_x[0] * row_y[2] - row_x[2] * row_y[0]
    m2 = row_x[1] * row_y[2] - row_x[2] * row_y[1]
    before = m0 * m0 + m1 * m1 + m2 * m2
    after = before + eps2d * (a + c) + eps2d * eps2d
    return a + eps2d, b, c + eps2d, after, square_root(maximum(before / after, broadcast(ZERO)))


@helper
def load3(array, first, last):
    return load_rows(array, first, last, 3, 0), load_rows(array, first, last, 3, 1), load_rows(array, first, last, 3, 2)


@helper
def load4(array, first, last):
    x, y = load_rows(array, first, last, 4, 0), load_rows(array, first, last, 4, 1)
    return x, y, load_rows(array, first, last, 4, 2), load_rows(array, first, last, 4, 3)


@helper
def project_lanes(mean, quat, scale, opacity, V, K, view):
    """Project LANES splats into one camera: which are drawn, radii, position, depth, conic, compensation."""
    width, height, near, far, eps2d = view[0], view[1], view[2], view[3], view[5]
    p = rotate(V, mean)
    x, y, z = p[0] + V[0, 3], p[1] + V[1, 3], p[2] + V[2, 3]
    w, qx, qy, qz, _ = unit_quaternions(quat[0], quat[1], quat[2], quat[3])
    u, v, _, _ = clamped_slopes(x, y, z, K, width, height)
    row_x, row_y, _ = project_axes(V, K, z, u, v, rotation_columns(w, qx, qy, qz), scale)
    a, b, c, det, compensation = determinants(row_x, row_y, eps2d)
    px, py = K[0, 0] * x / z + K[0, 2], K[1, 1] * y / z + K[1, 2]
    rx, ry, seen = box_radii(px, py, a, c, opacity * compensation if view[6] > ZERO else opacity, view)
    seen = seen & (z >= near) & (z <= far) & (absolute(z) > ZERO) & (det > ZERO) & (det < f4(3e38))
    inverse = ONE / det
    return seen, rx, ry, px, py, z, c * inverse, -b * inverse, a * inverse, compensation


@kernel
def project_forward(
    next_task, n_splats, means, quats, scales, opacities, viewmats, Ks, view, radii, means2d, depths, conics, compensations
):  # fmt: skip
    """Project N splats of B scenes into C cameras each; called by every thread at once.

    Args:
        n_splats: N. means [B*N*3], quats [B*N*4], scales [B*N*3], opacities [B*N]: flat. viewmats [B,C,4,4], Ks [B,C,3,3].
        view: width, height, near, far, radius_clip, eps2d, 1 if antialiased else 0.
        radii int32 [B*C*N*2], means2d, depths, conics, compensations: flat, written, 0 for culled pairs.
    """
    N, C = n_splats, viewmats.shape[1]
    tasks, zero = (N + BLOCK - 1) // BLOCK, broadcast(ZERO)
    task = take(next_task)
    while task < viewmats.shape[0] * C * tasks:
        image, block = task // tasks, task % tasks
        b, k = image // C, image % C
        V, K, shift = viewmats[b, k], Ks[b, k], (image - b) * N
        last = (b + 1) * N - 1
        for n in range(b * N + block * BLOCK, min(b * N + (block + 1) * BLOCK, last + 1), LANES):
            mean, quat, scale = load3(means, n, last), load4(quats, n, last), load3(scales, n, last)
            out = project_lanes(mean, quat, scale, load_rows(opacities, n, last, 1, 0), V, K, view)
            seen, row, end = out[0], n + shift, last + shift
            store_rows(radii, row, end, 2, 0, select(seen, out[1], zero))
            store_rows(radii, row, end, 2, 1, select(seen, out[2], zero))
            store_rows(means2d, row, end, 2, 0, select(seen, out[3], zero))
            store_rows(means2d, row, end, 2, 1, select(seen, out[4], zero))
            store_rows(depths, row, end, 1, 0, select(seen, out[5], zero))
            store_rows(conics, row, end, 3, 0, select(seen, out[6], zero))
            store_rows(conics, row, end, 3, 1, select(seen, out[7], zero))
            store_rows(conics, row, end, 3, 2, select(seen, out[8], zero))
            store_rows(compensations, row, end, 1, 0, select(seen, out[9], zero))
        task = take(next_task)


@helper
def covariance_gradient(conic, v_conic, compensation, v_compensation, eps2d):
    """From gradients of the inverse (a, b, c) and of the compensation to that of Sigma_2, as a symmetric matrix (G00, G01, G11).

    G = -Q G_Q Q, and for rho = sqrt(det before / det after): drho = ((1 - rho^2) Q - eps2d det(Q) I) / (2 rho).
    """
    A, B, C = conic[0], conic[1], conic[2]
    g00, g01, g11 = v_conic[0], HALF * v_conic[1], v_conic[2]
    p00, p01, p10, p11 = A * g00 + B * g01, A * g01 + B * g11, B * g00 + C * g01, B * g01 + C * g11
    h00, h01, h11 = -(p00 * A + p01 * B), -(p00 * B + p01 * C), -(p10 * B + p11 * C)
    half = select(compensation > ZERO, HALF * v_compensation / compensation, broadcast(ZERO))
    rest, det_conic = ONE - compensation * compensation, A * C - B * B
    h00 = h00 + half * (rest * A - eps2d * det_conic)
    h11 = h11 + half * (rest * C - eps2d * det_conic)
    return h00, h01 + half * rest * B, h11


@helper
def quaternion_gradient(w, x, y, z, inverse, d0, d1, d2):
    """From gradients of the rotation's columns to that of the raw quaternion (the part along it falls to normalisation)."""
    vw = TWO * (x * (d1[2] - d2[1]) + y * (d2[0] - d0[2]) + z * (d0[1] - d1[0]))
    vx = TWO * (-TWO * x * (d1[1] + d2[2]) + y * (d1[0] + d0[1]) + z * (d2[0] + d0[2]) + w * (d1[2] - d2[1]))
    vy = TWO * (x * (d1[0] + d0[1]) - TWO * y * (d0[0] + d2[2]) + z * (d2[1] + d1[2]) + w * (d2[0] - d0[2]))
    vz = TWO * (x * (d2[0] + d0[2]) + y * (d2[1] + d1[2]) - TWO * z * (d0[0] + d1[1]) + w * (d0[1] - d1[0]))
    along = vw * w + vx * x + vy * y + vz * z
    return (vw - along * w) * inverse, (vx - along * x) * inverse, (vy - along * y) * inverse, (vz - along * z) * inverse


@helper
def centre_gradient(x, y, z, slopes, K, v_mean2d, v_depth, dJ):
    """From gradients of the pixel position, the depth and J (J00, J02, J11, J12) to that of the camera-space centre.

    Inside the clamp J02 = -fx x / z^2; where it holds, J02 = -fx u / z with u constant: x drops out, and half of the pull on z.
    """
    u, v, free_x, free_y = slopes
    fx, fy = K[0, 0], K[1, 1]
    r = ONE / z
    gx, gy = fx * r * v_mean2d[0], fy * r * v_mean2d[1]
    gz = v_depth - (x * r) * gx - (y * r) * gy - fx * r * r * dJ[0] - fy * r * r * dJ[2]
    pull_x, pull_y, zero = fx * r * r * dJ[1], fy * r * r * dJ[3], broadcast(ZERO)
    gz = gz + u * pull_x + v * pull_y + select(free_x, u * pull_x, zero) + select(free_y, v * pull_y, zero)
    return gx - select(free_x, pull_x, zero), gy - select(free_y, pull_y, zero), gz


@helper
def axis_gradient(V, h, row_x, row_y, rotated, size, fx_z, fy_z, u, v):
    """One column of A: gradients of its length, of its world direction, of J, and of the rotated direction."""
    ex, ey = TWO * (h[0] * row_x + h[1] * row_y), TWO * (h[1] * row_x + h[2] * row_y)
    unit_x, unit_y = fx_z * (rotated[0] - u * rotated[2]), fy_z * (rotated[1] - v * rotated[2])
    v_size = ex * unit_x + ey * unit_y
    ex, ey = ex * size, ey * size
    dJ = (ex * rotated[0], ex * rotated[2], ey * rotated[1], ey * rotated[2])
    camera = (ex * fx_z, ey * fy_z, -(ex * fx_z * u + ey * fy_z * v))
    return v_size, rotate_back(V, camera[0], camera[1], camera[2]), dJ, camera

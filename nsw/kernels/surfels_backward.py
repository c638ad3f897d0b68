r"""The gradient of `surfels_forward`: walk each tile's list back to front and undo one surfel at a time.

Everything a ray sums up is linear in the weights $w_i=\alpha_iT_i$ except the distortion, and that has a derivative too, so one
number collects what a splat's weight is worth to the loss:

$$\ell_i=g\cdot c_i+g_D\,d_i+g_L\,\frac{\partial L}{\partial w_i},\qquad
\frac{\partial\,\mathrm{loss}}{\partial\alpha_i}=T_i\ell_i-\frac{S_i}{1-\alpha_i},\qquad
S_i=\sum_{j>i}w_j\ell_j+T_{end}(g\cdot b-g_A)$$

With $A,M_1,M_2$ the ray's whole sums of $w,wm,wm^2$, the paper's distortion has $\partial L/\partial w_i=M_2+m_i^2A-2m_iM_1$ and
$\partial L/\partial m_i=2w_i(m_iA-M_1)$. gsplat's also needs $A_i,D_i$, the sums of $w,wd$ in front:
$\partial L/\partial w_i=2(2(d_iA_i-D_i)+D-d_iA)$ and $\partial L/\partial d_i=2w_i(2A_i-A+w_i)$.

From $\rho$ the gradient goes through (u, v) to $\zeta$, linear in the pixel: its sums over pixels against 1, x and y are those of
C, A and B. A pair's sums leave as one record in its own slot; `gather_surfels` adds a splat's slots up in order.
"""

from __future__ import annotations

import numpy as np

from nsw.kernels.compiling import helper, kernel
from nsw.kernels.saturation import STEEPEST, settled
from nsw.kernels.simd import (
    BLOCK_H,
    BLOCK_W,
    LANES,
    absolute,
    any_lane,
    broadcast,
    channel_add,
    channel_dot,
    channel_load,
    channel_read,
    channel_store_sums,
    channel_zeros,
    exp2,
    load,
    minimum,
    select,
    store,
    sum_lanes,
)
from nsw.kernels.simd_blocks import block_x
from nsw.kernels.splat_forward import BLOCKS_X, ONE, PIXELS, ZERO, in_lines
from nsw.kernels.surfels_forward import (
    ALPHA_MAX,
    ALPHA_MIN,
    CENTRE_DISTORTION,
    HALF,
    HALF_LOG2E,
    NO_DISTORTION,
    block_span,
    depth_on_ray,
    largest_rho,
    meet_block,
    meet_row,
    place_in,
)
from nsw.kernels.surfels_lists import BLOB, CENTRE, COLOR, OPACITY, TW, A, centred_rows, cross
from nsw.kernels.tiles import TILE

f4 = np.float32
TWO, FOUR = f4(2), f4(4)
N_SUMS = 17  # opacity, zeta (3), zeta x (3), zeta y (3), blob (2), |blob| (2), depth, depth u, depth v; channels follow
# Places in a block of the state; T is at 0. LEFT is the light that reached the end, IN_FRONT the running sum of w d.
S, STOP, G_SUM, G_DISTORT, G_MEDIAN, LEFT, M1, M2, IN_FRONT, FIRST = (i * LANES for i in range(1, 11))


@helper
def distortion_slopes(state, at, kind, drawn, weight, depth, opaque, ray):
    """dL/dw and dL/dd of the distortion; also takes the splat out of the running sum."""
    total, first = ONE - load(state, LEFT + at), load(state, M1 + at)
    if kind == CENTRE_DISTORTION:
        front = load(state, IN_FRONT + at) - weight * depth
        store(state, IN_FRONT + at, front)
        to_weight = TWO * (TWO * (depth * opaque - front) + first - depth * total)
        return to_weight, TWO * weight * (TWO * opaque - total + weight)
    safe = select(drawn, depth, broadcast(ONE))
    m = ray[1] - ray[2] / safe
    to_weight = load(state, M2 + at) + m * m * total - TWO * (m * first)
    return to_weight, TWO * weight * (m * total - first) * ray[2] / (safe * safe)


@helper
def depth_slopes(state, at, drawn, weight, depth, T, light):
    """Add to `light`, a weight's worth, what it is worth through the ray's depth; also return what the splat's depth is worth."""
    g_sum, g_median = load(state, G_SUM + at), load(state, G_MEDIAN + at)
    median = drawn & (T > HALF)  # from behind, the first such splat is the last one that was drawn
    light, v_depth = light + g_sum * depth, weight * g_sum + select(median, g_median, broadcast(ZERO))
    store(state, G_MEDIAN + at, g_median * select(median, broadcast(ZERO), broadcast(ONE)))
    return light, v_depth


@helper
def write_sums(sums, at, opacity, zeta, zeta_x, zeta_y, blob, absolutes, depth, color):
    """Add up the lanes of a pair's sums and write them in the order of the record."""
    sums[at] = sum_lanes(opacity)
    for i in range(3):
        sums[at + 1 + i], sums[at + 4 + i], sums[at + 7 + i] = sum_lanes(zeta[i]), sum_lanes(zeta_x[i]), sum_lanes(zeta_y[i])
        sums[at + 14 + i] = sum_lanes(depth[i])
    for i in range(2):
        sums[at + 10 + i], sums[at + 12 + i] = sum_lanes(blob[i]), sum_lanes(absolutes[i])
    channel_store_sums(sums, at + N_SUMS, color)


@helper
def reopen(state, at, record, color, disc, place, ray_depth, kind, ray, like):
    """Give a block the light back that a surfel took, and collect what the surfel's weight is worth.

    Returns where it was drawn, its weight, the picture's gradient, and what its depth and the logarithm of its alpha are worth.
    """
    u, v, z2, rho, on_disk, in_blob = disc
    zero = broadcast(ZERO)
    raw = exp2(rho * HALF_LOG2E + record[OPACITY])
    alpha = minimum(raw, broadcast(ALPHA_MAX))
    drawn = (alpha >= ALPHA_MIN) & (absolute(z2) > ZERO) & (load(state, STOP + at) > f4(place))
    drawn, depth = depth_on_ray(record, u, v, on_disk, in_blob, drawn, ray_depth, ray)
    depth = select(drawn, depth, zero)
    T, behind = load(state, at), load(state, S + at)
    widen = ONE / (ONE - alpha)
    T = T * select(drawn, widen, broadcast(ONE))
    weight = select(drawn, alpha * T, zero)
    g = channel_load(state, FIRST + at, LANES, like)
    light, v_depth = depth_slopes(state, at, drawn, weight, depth, T, channel_dot(g, color))
    if ray is not None and kind != NO_DISTORTION:
        to_weight, to_depth = distortion_slopes(state, at, kind, drawn, weight, depth, ONE - T, ray)
        g_distort = load(state, G_DISTORT + at)
        light, v_depth = light + g_distort * to_weight, v_depth + g_distort * to_depth
    v_raw = select(drawn & (raw <= ALPHA_MAX), raw * (T * light - behind * widen), zero)
    store(state, at, T)
    store(state, S + at, behind + select(drawn, weight * light, zero))
    return drawn, weight, g, v_depth, v_raw


@helper
def pass_surfel(state, record, color, span, left, top, place, sharp, ray_depth, kind, ray, like):
    """Take one frozen surfel out of a tile's state: what `undo_surfel` does, without the sums that nobody asks for."""
    y0, y1, x0, x1 = span
    a0, a1, a2 = record[A], record[A + 1], record[A + 2]
    shift, reach = record[CENTRE] - record[BLOB], largest_rho(record[OPACITY])
    for y in range(y0, y1):
        _, _, row0, row1, row2, far_y = meet_row(record, f4(top + y * BLOCK_H), sharp)
        for block in range(x0, x1):
            at = (y * BLOCKS_X + block) * (FIRST + len(color) * LANES)
            dx = block_x() + (f4(left + block * BLOCK_W) - record[CENTRE])
            u, v, z2, _, on_disk, in_blob = meet_block(dx, dx + shift, a0, a1, a2, row0, row1, row2, far_y, sharp)
            rho = minimum(on_disk, in_blob)
            if any_lane((rho < reach) & (load(state, STOP + at) > f4(place))):
                reopen(state, at, record, color, (u, v, z2, rho, on_disk, in_blob), place, ray_depth, kind, ray, like)


@helper
def undo_surfel(state, record, color, span, left, top, place, sharp, ray_depth, kind, ray, want_absolute, like, sums, at_sums):
    """Take one surfel out of a tile's state and write its sums over the pixels."""
    y0, y1, x0, x1 = span
    zero = broadcast(ZERO)
    s_o, blob_sx, blob_sy, abs_x, abs_y, s_d, s_du, s_dv = zero, zero, zero, zero, zero, zero, zero, zero
    z0s, z1s, z2s, z0x, z1x, z2x, z0y, z1y, z2y = zero, zero, zero, zero, zero, zero, zero, zero, zero
    v_color = channel_zeros(like)
    a0, a1, a2 = record[A], record[A + 1], record[A + 2]
    shift, reach = record[CENTRE] - record[BLOB], largest_rho(record[OPACITY])
    for y in range(y0, y1):
        dy, blob_y, row0, row1, row2, far_y = meet_row(record, f4(top + y * BLOCK_H), sharp)
        row_z0, row_z1, row_z2, row_blob = zero, zero, zero, zero
        for block in range(x0, x1):
            at = (y * BLOCKS_X + block) * (FIRST + len(color) * LANES)
            dx = block_x() + (f4(left + block * BLOCK_W) - record[CENTRE])
            blob_x = dx + shift
            u, v, z2, inverse, on_disk, in_blob = meet_block(dx, blob_x, a0, a1, a2, row0, row1, row2, far_y, sharp)
            rho, disk = minimum(on_disk, in_blob), on_disk <= in_blob
            if not any_lane((rho < reach) & (load(state, STOP + at) > f4(place))):
                continue
            disc = (u, v, z2, rho, on_disk, in_blob)
            drawn, weight, g, v_depth, v_raw = reopen(state, at, record, color, disc, place, ray_depth, kind, ray, like)
            v_color = channel_add(v_color, weight, g)
            s_o, s_d = s_o + v_raw, s_d + select(drawn, v_depth, zero)
            v_u, v_v = zero - v_raw * u, zero - v_raw * v
            if ray is not None and ray_depth:
                v_u, v_v = v_u + v_depth * record[TW], v_v + v_depth * record[TW + 1]
                s_du = s_du + select(drawn & disk, v_depth * u, zero)
                s_dv = s_dv + select(drawn & disk, v_depth * v, zero)
            v_z0, v_z1 = select(drawn & disk, v_u * inverse, zero), select(drawn & disk, v_v * inverse, zero)
            v_z2 = select(drawn & disk, zero - (u * v_z0 + v * v_z1), zero)
            row_z0, row_z1, row_z2 = row_z0 + v_z0, row_z1 + v_z1, row_z2 + v_z2
            z0x, z1x, z2x = z0x + v_z0 * dx, z1x + v_z1 * dx, z2x + v_z2 * dx
            v_blob = select(disk, zero, v_raw) * sharp  # dalpha/dc = raw (pixel - c) / variance
            blob_sx, row_blob = blob_sx + v_blob * blob_x, row_blob + v_blob
            if want_absolute:
                abs_x, abs_y = abs_x + absolute(v_blob * blob_x), abs_y + absolute(v_blob * blob_y)
        z0s, z1s, z2s, blob_sy = z0s + row_z0, z1s + row_z1, z2s + row_z2, blob_sy + row_blob * blob_y
        z0y, z1y, z2y = z0y + row_z0 * dy, z1y + row_z1 * dy, z2y + row_z2 * dy
    zeta, zeta_x, zeta_y = (z0s, z1s, z2s), (z0x, z1x, z2x), (z0y, z1y, z2y)
    write_sums(sums, at_sums, s_o, zeta, zeta_x, zeta_y, (blob_sx, blob_sy), (abs_x, abs_y), (s_d, s_du, s_dv), v_color)


@helper
def read_surfel_tile(state, block, left, top, background, maps, v_picture, v_maps):
    """Load a tile's end state and its gradients; pixels beyond the border get none."""
    height, width, n_channels = v_picture.shape
    for place in range(PIXELS):
        x, y, pixel = left + place % TILE, top + place // TILE, place_in(place % TILE, place // TILE, block)
        inside = x < width and y < height
        for i in range(1, 10):
            state[i * LANES + pixel] = ZERO
        state[pixel], state[STOP + pixel], state[LEFT + pixel] = ONE, -ONE, ONE
        for c in range(n_channels):
            state[FIRST + c * LANES + pixel] = v_picture[y, x, c] if inside else ZERO
        if not inside:
            continue
        T, behind = maps[0, y, x], -v_maps[0, y, x]
        for c in range(n_channels):
            behind += v_picture[y, x, c] * background[c]
        state[pixel], state[S + pixel], state[STOP + pixel], state[LEFT + pixel] = T, T * behind, maps[1, y, x], T
        state[G_SUM + pixel], state[G_DISTORT + pixel], state[G_MEDIAN + pixel] = v_maps[1, y, x], v_maps[2, y, x], v_maps[3, y, x]
        state[M1 + pixel], state[M2 + pixel], state[IN_FRONT + pixel] = maps[5, y, x], maps[6, y, x], maps[5, y, x]


@kernel
def surfels_backward(
    tile_start, tile_stop, members, slots, records, boxes, background, sharp, ray_depth, kind, ray, maps, v_picture, v_maps,
    want_absolute, like, n_trained, sums, share, n_shares,
):  # fmt: skip
    """Write every (splat, tile) pair's sums into its slot, but for splats from `n_trained` on: those are frozen.

    A tile is walked up to the nearest splat that is trained: what is frozen in front of it takes no part in any gradient asked for.

    Args:
        maps [7,H,W]: as `surfels_forward` wrote them. v_picture [H,W,D], v_maps [4,H,W]: gradients of the picture and of alpha,
        depth, distortion, median. sums: [M * (17+D)], written completely for trained splats. The rest as in `surfels_forward`.
    """
    width = maps.shape[2]
    tiles_x, n_tiles, size = (width + TILE - 1) // TILE, tile_start.shape[0] - 1, N_SUMS + len(like)
    block = FIRST + len(like) * LANES
    state = in_lines(PIXELS // LANES * block)
    for tile in range(share, n_tiles, n_shares):
        left, top, first = (tile % tiles_x) * TILE, (tile // tiles_x) * TILE, tile_start[tile]
        for k in range(tile_stop[tile], tile_start[tile + 1]):  # behind the last pixel's stop
            for i in range(slots[k] * size, (slots[k] + 1) * size):
                sums[i] = ZERO
        nearest = first
        while nearest < tile_stop[tile] and members[nearest] >= n_trained:
            nearest += 1
        if nearest == tile_stop[tile]:
            continue
        read_surfel_tile(state, block, left, top, background, maps, v_picture, v_maps)
        for k in range(tile_stop[tile] - 1, nearest - 1, -1):
            j = members[k]
            span = block_span(boxes[j], left, top)
            if j >= n_trained:
                if span[0] < span[1]:
                    color = channel_read(records[j], COLOR, like)
                    pass_surfel(state, records[j], color, span, left, top, k - first, sharp, ray_depth, kind, ray, like)
            elif span[0] < span[1]:
                color = channel_read(records[j], COLOR, like)
                undo_surfel(
                    state, records[j], color, span, left, top, k - first, sharp, ray_depth, kind, ray, want_absolute, like, sums,
                    slots[k] * size,
                )  # fmt: skip
            else:
                for i in range(slots[k] * size, (slots[k] + 1) * size):
                    sums[i] = ZERO


@helper
def write_transform_gradient(total, T, scale, ray_depth, v_T):
    """From sums against 1, x, y of dL/dzeta to the nine numbers of T, through A = T'_v x T_w, B = T_w x T'_u, C = T'_u x T'_v."""
    sx, sy, Tu, Tv, Tw = centred_rows(T)
    vC = (total[1] * scale, total[2] * scale, total[3] * scale)
    vA = (total[4] * scale, total[5] * scale, total[6] * scale)
    vB = (total[7] * scale, total[8] * scale, total[9] * scale)
    bw, vc = cross(vB, Tw), cross(Tv, vC)
    wa, cu = cross(Tw, vA), cross(vC, Tu)
    av, ub = cross(vA, Tv), cross(Tu, vB)
    for i in range(3):
        v_u, v_v = bw[i] + vc[i], wa[i] + cu[i]
        v_T[i], v_T[3 + i], v_T[6 + i] = v_u, v_v, av[i] + ub[i] - sx * v_u - sy * v_v
    if ray_depth:
        v_T[6] += total[15]
        v_T[7] += total[16]
        v_T[8] += total[14]
    finite = True
    for i in range(9):
        finite = finite and abs(v_T[i]) < STEEPEST
    if not finite:  # beyond the range of float32 no step can be taken
        for i in range(9):
            v_T[i] = ZERO


@kernel
def gather_surfels(
    first_row, first_slot, sums, transforms, records, opacities, ray_depth, want_absolute, n_trained, v_means2d, v_transforms,
    v_opacities, v_depths, v_colors, absgrad, share, n_shares,
):  # fmt: skip
    """Add each splat's slots up, in order, into gradients of its rows.

    Splats in no list, and those from `n_trained` on, keep the zeros of the outputs.
    """
    n, n_channels = min(first_slot.shape[0] - 1, n_trained), v_colors.shape[1]
    size = N_SUMS + n_channels
    part = (n + n_shares - 1) // n_shares
    total = np.empty(size, np.float32)
    for i in range(share * part, min((share + 1) * part, n)):
        if first_slot[i] == first_slot[i + 1]:
            continue
        row = first_row + i
        for s in range(size):
            total[s] = ZERO
        for slot in range(first_slot[i], first_slot[i + 1]):
            for s in range(size):
                total[s] += sums[slot * size + s]
        for s in range(n_channels):
            v_colors[row, s] = settled(total[N_SUMS + s], STEEPEST)
        if not opacities[row] >= ALPHA_MIN:
            continue
        v_opacities[row] = settled(total[0] / opacities[row], STEEPEST)
        v_means2d[row, 0], v_means2d[row, 1] = settled(total[10], STEEPEST), settled(total[11], STEEPEST)
        if want_absolute:
            absgrad[row, 0], absgrad[row, 1] = settled(total[12], STEEPEST), settled(total[13], STEEPEST)
        if not ray_depth:
            v_depths[row] = settled(total[14], STEEPEST)
        drawn = False
        for s in range(1, 17):
            drawn = drawn or total[s] != ZERO
        if drawn:
            write_transform_gradient(total, transforms[row], records[i, 18], ray_depth, v_transforms[row])

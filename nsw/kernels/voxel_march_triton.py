"""The march through a sparse voxel grid on a CUDA device: a ray a program, its samples side by side, nothing stored a sample.

A program walks along its ray in stretches of `SAMPLES` samples. All their densities are asked at once, so that memory answers many
questions at a time; coefficients only where light arrives and density is positive, channels side by side, so that a row is one
access. Backward walks the same way again: what is left behind a sample is the ray's total less what came before it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from nsw.kernels.triton_launch import launch
from nsw.kernels.voxel_march_reference import DENSITY_MIN

SAMPLES = 16  # of a stretch
WARPS = 2  # of a program; with 16 samples and 32 channels registers suffice
_THIN = tl.constexpr(DENSITY_MIN)
_OPAQUE = tl.constexpr(128.0)  # optical depth behind which float32 holds no light
_WHOLE_NUMBERS = ["X", "Y", "Z"]  # else a grid that grows would be compiled for again


class TritonMarch(torch.autograd.Function):
    """Autograd around the kernels; gradients are added up by atomics, in no fixed order."""

    @staticmethod
    def forward(ctx, values, links, rays, aabb, settings, into):
        out = _forward(values.detach(), links, rays, aabb, settings)
        rgb, left, depth = out
        ctx.mark_non_differentiable(depth)
        ctx.save_for_backward(values, rgb, left)
        ctx.kept = links, rays, aabb, settings, into
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_rgb, grad_left, _):
        values, rgb, left = ctx.saved_tensors
        links, rays, aabb, settings, into = ctx.kept
        if into is None:
            target, touched = torch.zeros_like(values), torch.zeros(len(values), dtype=torch.uint8, device=values.device)
        else:
            target, touched = into.values, into.touched
        pixels = rgb, left, grad_rgb.contiguous(), grad_left.contiguous()
        _launch(_march_backward, values.detach(), links, rays, aabb, (*pixels, target, touched), settings)
        return (target if into is None else None,) + (None,) * 5


def march(values, links, origins, directions, near, far, offset, aabb, step, delta, sh_degree, stop, nearest, into=None):
    """Return what `nsw.kernels.voxel_march.march_voxels` returns, for contiguous float32 `values` and int32 `links`.

    Rows need no more channels than density and harmonics take, 1 + 3 (degree + 1)^2.
    """
    rays = tuple(x.detach().float().contiguous() for x in (origins, directions, near, far, offset))
    settings = (float(step), float(delta), float(stop), int(sh_degree), bool(nearest))
    return TritonMarch.apply(values, links.contiguous(), rays, aabb.detach().float().contiguous(), settings, into)


def _forward(values, links, rays, aabb, settings) -> tuple[Tensor, Tensor, Tensor]:
    n = len(rays[0])
    out = values.new_empty(n, 3), values.new_empty(n), values.new_empty(n)
    _launch(_march_forward, values, links, rays, aabb, out, settings)
    return out


def _launch(kernel, values, links, rays, aabb, pixels, settings) -> None:
    *lengths, degree, nearest = settings
    width = triton.next_power_of_2(1 + 3 * (degree + 1) ** 2)
    constants = dict(C=values.shape[1], DEGREE=degree, NEAREST=nearest, WIDTH=width, S=SAMPLES, num_warps=WARPS)
    if len(rays[0]):
        launch(kernel, (len(rays[0]),), values, links, *rays, aabb, *pixels, *links.shape, *lengths, **constants)


@triton.jit
def _one_minus_exp(tau):
    """Return 1 - exp(-tau) to the last digits also where tau is small."""
    series = tau * (1.0 - tau * (1.0 / 2 - tau * (1.0 / 6 - tau * (1.0 / 24 - tau * (1.0 / 120 - tau * (1.0 / 720))))))
    return tl.where(tau < 0.25, series, 1.0 - tl.exp(-tau))


@triton.jit
def _axis(origins, directions, aabb, ray, N, AXIS: tl.constexpr):
    """Return where a ray begins and how fast it goes along one axis, in voxels; in float64, as coordinates may be large."""
    low, high = tl.load(aabb + AXIS).to(tl.float64), tl.load(aabb + 3 + AXIS).to(tl.float64)
    scale = (N - 1).to(tl.float64) / (high - low)
    o, d = tl.load(origins + ray * 3 + AXIS).to(tl.float64), tl.load(directions + ray * 3 + AXIS).to(tl.float64)
    return ((o - low) * scale).to(tl.float32), (d * scale).to(tl.float32)


@triton.jit
def _cell(place, N, NEAREST: tl.constexpr):
    """Return the lower vertex along one axis and the part of the way to the next."""
    p = tl.minimum(tl.maximum(place, 0.0), (N - 1).to(tl.float32))
    first = tl.minimum(p.to(tl.int32), N - 2)
    part = p - first.to(tl.float32)
    if NEAREST:
        part = tl.where(part >= 0.5, 1.0, 0.0)
    return first, part


@triton.jit
def _way(origins, directions, aabb, ray, X, Y, Z):
    """Return where a ray begins and how fast it goes along the three axes, in voxels."""
    ox, dx = _axis(origins, directions, aabb, ray, X, 0)
    oy, dy = _axis(origins, directions, aabb, ray, Y, 1)
    oz, dz = _axis(origins, directions, aabb, ray, Z, 2)
    return ox, oy, oz, dx, dy, dz


@triton.jit
def _places(px, py, pz, X, Y, Z, NEAREST: tl.constexpr):
    """Return the samples' lower vertices along the three axes, and the parts of the way to the next."""
    i, x = _cell(px, X, NEAREST)
    j, y = _cell(py, Y, NEAREST)
    k, z = _cell(pz, Z, NEAREST)
    return i, j, k, x, y, z


@triton.jit
def _light(tau, T, stop):
    """Return what counts of a stretch's optical depths, the transmittance before each sample, and which samples count."""
    tau = tl.minimum(tau, _OPAQUE)
    before = T * tl.exp(tau - tl.cumsum(tau, axis=0))
    lit = (tau > 0.0) & (before >= stop)  # a sample that light still reaches counts, also when it is the last one
    return tl.where(lit, tau, 0.0), before, lit


@triton.jit
def _corner(links, i, j, k, x, y, z, Y, Z, there, CORNER: tl.constexpr):
    """Return the row and the trilinear weight of one of a cell's eight vertices."""
    right: tl.constexpr = CORNER // 4
    back: tl.constexpr = CORNER // 2 % 2
    up: tl.constexpr = CORNER % 2
    weight = (x if right else 1.0 - x) * (y if back else 1.0 - y) * (z if up else 1.0 - z)
    at = ((i + right).to(tl.int64) * Y + (j + back)) * Z + (k + up)
    return tl.load(links + at, mask=there, other=0).to(tl.int64), weight


@triton.jit
def _density(values, links, i, j, k, x, y, z, Y, Z, C: tl.constexpr, there):
    """Return the samples' density, 0 where it is none or there is no sample."""
    density = x * 0.0
    for corner in tl.static_range(8):
        row, weight = _corner(links, i, j, k, x, y, z, Y, Z, there, corner)
        density += weight * tl.load(values + row * C, mask=there, other=0.0)
    return tl.where(there & (density > _THIN), density, 0.0)


@triton.jit
def _basis(directions, ray, channel, DEGREE: tl.constexpr):
    """Return each channel's harmonic in the ray's direction, 0 for density and what fills up a row."""
    dx, dy, dz = tl.load(directions + ray * 3), tl.load(directions + ray * 3 + 1), tl.load(directions + ray * 3 + 2)
    k = (channel + 2) // 3 - 1  # -1 for density
    basis = tl.where(k == 0, 0.28209479177387814, 0.0)
    if DEGREE >= 1:
        basis = tl.where(k == 1, -0.4886025119029199 * dy, basis)
        basis = tl.where(k == 2, 0.4886025119029199 * dz, basis)
        basis = tl.where(k == 3, -0.4886025119029199 * dx, basis)
    if DEGREE >= 2:
        basis = tl.where(k == 4, 1.0925484305920792 * dx * dy, basis)
        basis = tl.where(k == 5, -1.0925484305920792 * dy * dz, basis)
        basis = tl.where(k == 6, 0.9461746957575601 * dz * dz - 0.31539156525252, basis)
        basis = tl.where(k == 7, -1.0925484305920792 * dx * dz, basis)
        basis = tl.where(k == 8, 0.5462742152960396 * (dx * dx - dy * dy), basis)
    return basis


@triton.jit
def _colours(values, links, i, j, k, x, y, z, Y, Z, C: tl.constexpr, there, channel, used, basis):
    """Return the samples' three colours before the clamp at 0."""
    theta = x[:, None] * 0.0 + basis[None, :] * 0.0
    for corner in tl.static_range(8):
        row, weight = _corner(links, i, j, k, x, y, z, Y, Z, there, corner)
        at = values + row[:, None] * C + channel[None, :]
        theta += weight[:, None] * tl.load(at, mask=there[:, None] & used[None, :], other=0.0)
    theta *= basis[None, :]
    colour = ((channel + 2) % 3)[None, :]
    red = tl.sum(tl.where(colour == 0, theta, 0.0), axis=1)
    green = tl.sum(tl.where(colour == 1, theta, 0.0), axis=1)
    blue = tl.sum(tl.where(colour == 2, theta, 0.0), axis=1)
    return 0.5 + red, 0.5 + green, 0.5 + blue


@triton.jit(do_not_specialize=_WHOLE_NUMBERS)
def _march_forward(
    values, links, origins, directions, near, far, offset, aabb, out_rgb, out_left, out_depth, X, Y, Z, step, delta, stop,
    C: tl.constexpr, DEGREE: tl.constexpr, NEAREST: tl.constexpr, WIDTH: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    ray = tl.program_id(0).to(tl.int64)
    ox, oy, oz, dx, dy, dz = _way(origins, directions, aabb, ray, X, Y, Z)
    first, last = tl.load(near + ray) + tl.load(offset + ray) * step, tl.load(far + ray)
    sample, channel = tl.arange(0, S), tl.arange(0, WIDTH)
    used = channel < C
    basis = _basis(directions, ray, channel, DEGREE)
    T = tl.full((), 1.0, tl.float32)
    red = tl.full((), 0.0, tl.float32)
    green = tl.full((), 0.0, tl.float32)
    blue = tl.full((), 0.0, tl.float32)
    distance = tl.full((), 0.0, tl.float32)
    begin = tl.full((), 0, tl.int32)
    while (stop <= T) & (first + begin.to(tl.float32) * step < last):
        t = first + (begin + sample).to(tl.float32) * step
        i, j, k, x, y, z = _places(ox + t * dx, oy + t * dy, oz + t * dz, X, Y, Z, NEAREST)
        tau, before, lit = _light(_density(values, links, i, j, k, x, y, z, Y, Z, C, t < last) * delta, T, stop)
        total = tl.sum(tau, axis=0)
        if total > 0.0:
            weight = before * _one_minus_exp(tau)
            r, g, b = _colours(values, links, i, j, k, x, y, z, Y, Z, C, lit, channel, used, basis)
            red += tl.sum(weight * tl.maximum(r, 0.0), axis=0)
            green += tl.sum(weight * tl.maximum(g, 0.0), axis=0)
            blue += tl.sum(weight * tl.maximum(b, 0.0), axis=0)
            distance += tl.sum(weight * t, axis=0)
            T = T * tl.exp(-total)
        begin += S
    tl.store(out_rgb + ray * 3, red)
    tl.store(out_rgb + ray * 3 + 1, green)
    tl.store(out_rgb + ray * 3 + 2, blue)
    tl.store(out_left + ray, T)
    tl.store(out_depth + ray, tl.where(T < 1.0, distance / tl.maximum(1.0 - T, 1e-10), 0.0))


@triton.jit(do_not_specialize=_WHOLE_NUMBERS)
def _march_backward(
    values, links, origins, directions, near, far, offset, aabb, rgb, left, grad_rgb, grad_left, into, touched, X, Y, Z,
    step, delta, stop, C: tl.constexpr, DEGREE: tl.constexpr, NEAREST: tl.constexpr, WIDTH: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    """Add dL/dtau_i = T_{i+1} g.c_i - sum_{j>i} w_j g.c_j - g_left T_end, and w_i g for the colours, to the samples' corners."""
    ray = tl.program_id(0).to(tl.int64)
    ox, oy, oz, dx, dy, dz = _way(origins, directions, aabb, ray, X, Y, Z)
    first, last = tl.load(near + ray) + tl.load(offset + ray) * step, tl.load(far + ray)
    sample, channel = tl.arange(0, S), tl.arange(0, WIDTH)
    used = channel < C
    basis = _basis(directions, ray, channel, DEGREE)
    colour = ((channel + 2) % 3)[None, :]
    g_red, g_green, g_blue = tl.load(grad_rgb + ray * 3), tl.load(grad_rgb + ray * 3 + 1), tl.load(grad_rgb + ray * 3 + 2)
    behind = g_red * tl.load(rgb + ray * 3) + g_green * tl.load(rgb + ray * 3 + 1) + g_blue * tl.load(rgb + ray * 3 + 2)
    behind += tl.load(grad_left + ray) * tl.load(left + ray)
    T = tl.full((), 1.0, tl.float32)
    begin = tl.full((), 0, tl.int32)
    while (stop <= T) & (first + begin.to(tl.float32) * step < last):
        t = first + (begin + sample).to(tl.float32) * step
        i, j, k, x, y, z = _places(ox + t * dx, oy + t * dy, oz + t * dz, X, Y, Z, NEAREST)
        tau, before, lit = _light(_density(values, links, i, j, k, x, y, z, Y, Z, C, t < last) * delta, T, stop)
        total = tl.sum(tau, axis=0)
        if total > 0.0:
            weight = before * _one_minus_exp(tau)
            r, g, b = _colours(values, links, i, j, k, x, y, z, Y, Z, C, lit, channel, used, basis)
            along = g_red * tl.maximum(r, 0.0) + g_green * tl.maximum(g, 0.0) + g_blue * tl.maximum(b, 0.0)
            seen = weight * along
            d_density = delta * (before * tl.exp(-tau) * along - (behind - tl.cumsum(seen, axis=0)))
            behind -= tl.sum(seen, axis=0)
            T = T * tl.exp(-total)
            d_red, d_green = tl.where(r > 0.0, weight * g_red, 0.0), tl.where(g > 0.0, weight * g_green, 0.0)
            d_blue = tl.where(b > 0.0, weight * g_blue, 0.0)
            mixed = tl.where(colour == 0, d_red[:, None], tl.where(colour == 1, d_green[:, None], d_blue[:, None]))
            share = tl.where(channel[None, :] == 0, d_density[:, None], mixed * basis[None, :])
            for corner in tl.static_range(8):
                row, w = _corner(links, i, j, k, x, y, z, Y, Z, lit, corner)
                kept = lit & (row > 0)
                tl.store(touched + row, tl.full((S,), 1, tl.uint8), mask=kept)
                wanted = (kept & (w > 0.0))[:, None] & used[None, :]
                tl.atomic_add(into + row[:, None] * C + channel[None, :], w[:, None] * share, mask=wanted, sem="relaxed")
        begin += S

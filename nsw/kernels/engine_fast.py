"""The steps of `rasterization` through the compiled kernels, as autograd functions on float32 CPU tensors.

Nothing is kept between calls and kernels write only into arrays made here, so a viewer's thread may draw while another one trains.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nsw.kernels import engine_reference, harmonics_fast, projection
from nsw.kernels.memory import empty, zeros
from nsw.kernels.meta import Meta, rows_of_pairs
from nsw.kernels.projection_backward import project_backward
from nsw.kernels.projection_reference import Projected, View
from nsw.kernels.rasterize_autograd import CompositeImage, draw_album
from nsw.kernels.saturation import settle
from nsw.kernels.threads import n_threads, run_shared, run_shares
from nsw.kernels.tiles import TILE

__all__ = ["TILE", "composite", "project", "shade"]


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [t.detach().contiguous().numpy() for t in tensors]


def _flat(*arrays: np.ndarray) -> list[np.ndarray]:
    return [array.reshape(-1) for array in arrays]


def learns(*tensors: Tensor | None) -> bool:
    """Say whether autograd must hear of a call with these inputs; it costs 10 us, which a small picture feels."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def shares(n_rows: int) -> int:
    """Into how many shares work on so many rows is cut: one, where waking a thread would cost more than it saves."""
    return n_threads() if n_rows > 2000 else 1


class _Project(torch.autograd.Function):
    """[(B,) N] splats and [(B,) C] cameras to rows of pairs: radii, means2d, depths, conics, compensations."""

    @staticmethod
    def values(means, quats, scales, opacities, viewmats, Ks, view: View):
        """Return the rows, and what backward needs besides."""
        settings = np.array(
            [view.width, view.height, view.near_plane, view.far_plane, view.radius_clip, view.eps2d, view.antialiased], np.float32
        )
        inputs = _arrays(means, quats, scales, opacities, viewmats, Ks)
        n_scenes, n_cameras, n_splats = 1 if means.dim() == 2 else len(means), viewmats.shape[-3], means.shape[-2]
        inputs[4], inputs[5] = (inputs[i].reshape(n_scenes, n_cameras, n, n) for i, n in ((4, 4), (5, 3)))
        n_rows = n_scenes * n_cameras * n_splats
        radii = empty((n_rows, 2), np.int32)
        outputs = [empty((n_rows,) + tail, np.float32) for tail in ((2,), (), (3,), ())]
        flat = _flat(*inputs[:4], radii, *outputs)
        run_shared(projection.project_forward, shares(n_rows), n_splats, *flat[:4], *inputs[4:], settings, *flat[4:])
        return tuple(torch.from_numpy(array) for array in (radii, *outputs)), (inputs, settings, radii, outputs[2], outputs[3])

    @staticmethod
    def forward(ctx, *given):
        ctx.set_materialize_grads(False)
        rows, ctx.arrays = _Project.values(*given)
        ctx.mark_non_differentiable(rows[0])
        return rows

    @staticmethod
    def backward(ctx, _, v_means2d, v_depths, v_conics, v_compensations):
        (means, quats, scales, _, viewmats, Ks), settings, radii, conics, compensations = ctx.arrays
        N, (B, C) = means.shape[-2], viewmats.shape[:2]
        want_views = True if ctx.needs_input_grad[4] else None
        v_splats = [empty(array.shape) for array in (means, quats, scales)]
        v_views = empty((B, -(-N // projection.BLOCK), C, projection.N_VIEW_GRADS) if want_views else (0, 0, 0, 0), np.float32)
        pulls = ((v_means2d, 2), (v_depths, 1), (v_conics, 3), (v_compensations, 1))
        pulls = [zeros(width * len(radii), np.float32) if v is None else _arrays(v)[0].reshape(-1) for v, width in pulls]
        run_shared(
            project_backward, shares(B * N), N, *_flat(means, quats, scales), viewmats, Ks, settings,
            *_flat(radii, conics, compensations), *pulls, *_flat(*v_splats), v_views, want_views,
        )  # fmt: skip
        v_viewmats = None
        if want_views:
            v_viewmats = torch.zeros(B, C, 4, 4)
            v_viewmats[..., :3, :] = torch.from_numpy(settle(v_views.sum(axis=1))).view(B, C, 3, 4)
            v_viewmats = v_viewmats if means.ndim == 3 else v_viewmats[0]
        return *(torch.from_numpy(v) for v in v_splats), None, v_viewmats, None, None


def project(means, covars, quats, scales, opacities, viewmats, Ks, view: View, packed: bool):
    """Do what `engine_reference.project` does, for a pinhole and splats given by quats and scales.

    Dimensions are added and taken away in numpy: in torch, each of them would be a step of autograd, there and back.
    """
    given = (means, quats, scales, opacities, viewmats, Ks, view)
    radii, *rows = _Project.apply(*given) if learns(*given[:3], viewmats) else _Project.values(*given)[0]
    ids = None
    if packed:
        sizes = (viewmats.shape[0] if viewmats.dim() == 4 else 1, viewmats.shape[-3], means.shape[-2])
        visible = torch.nonzero((radii > 0).all(dim=-1)).squeeze(-1)
        ids = torch.unravel_index(visible, sizes) if len(visible) else (visible, visible, visible)
        radii, rows = radii[visible], [row[visible] for row in rows]
    means2d, depths, conics, compensations = rows
    return Projected(radii, means2d, depths, conics, compensations if view.antialiased else None), ids


class _Shade(torch.autograd.Function):
    """Spherical harmonics of every (camera, splat) pair: [(B,) N, 3] means, [B, C or 1, N, K, 3] coefficients to colours [R,3]."""

    @staticmethod
    def values(degree: int, means, coefficients, centres, seen):
        """Return the colours, and what backward needs."""
        inputs = _arrays(means, coefficients, centres, seen)
        inputs[0] = inputs[0].reshape(len(centres), -1, 3)
        colors = empty((len(seen), 3), np.float32)
        run_shares(harmonics_fast.shade_forward, shares(len(colors)), degree, *inputs, colors)
        return torch.from_numpy(colors), (inputs, colors)

    @staticmethod
    def forward(ctx, degree: int, *given):
        colors, ctx.arrays = _Shade.values(degree, *given)
        ctx.degree, ctx.shape = degree, given[0].shape
        return colors

    @staticmethod
    def backward(ctx, v_colors):
        inputs, colors = ctx.arrays
        means, coefficients, centres, _ = inputs
        make = empty if centres.shape[1] else zeros  # without a camera, nothing is written
        v_coefficients, v_directions = make(coefficients.shape), empty(colors.shape)
        gradients = (*_arrays(v_colors), v_coefficients, v_directions)
        run_shares(harmonics_fast.shade_backward, shares(len(colors)), ctx.degree, *inputs, colors, *gradients)
        pulls = torch.from_numpy(v_directions).view(means.shape[0], centres.shape[1], means.shape[1], 3)
        v_means = pulls[:, 0] if pulls.shape[1] == 1 else pulls.sum(dim=1)
        v_centres = -pulls.sum(dim=2) if ctx.needs_input_grad[3] else None
        return None, v_means.view(ctx.shape), torch.from_numpy(v_coefficients), v_centres, None


def shade(sh_degree: int, means, coefficients, viewmats, radii, ids) -> Tensor:
    """Do what `engine_reference.shade` does, up to degree 3 (degree 4 is rare and left to it)."""
    if sh_degree > harmonics_fast.MAX_DEGREE:
        return engine_reference.shade(sh_degree, means, coefficients, viewmats, radii, ids)
    B, C, N = len(coefficients), viewmats.shape[-3], means.shape[-2]
    seen = (radii[:, 0] > 0) & (radii[:, 1] > 0)
    if ids is not None:  # the kernel walks all pairs; only the kept ones are worked on
        seen = torch.zeros(B, C, N, dtype=torch.bool).index_put(ids, seen).flatten()
    if viewmats.requires_grad:
        centres = torch.inverse(viewmats)[..., :3, 3].reshape(B, C, 3)
    else:  # numpy's takes a tenth of the time for one small matrix
        centres = torch.from_numpy(np.linalg.inv(viewmats.numpy())[..., :3, 3].reshape(B, C, 3))
    given = (sh_degree, means, coefficients, centres, seen)
    colors = _Shade.apply(*given) if learns(means, coefficients, centres) else _Shade.values(*given)[0]
    return colors if ids is None else rows_of_pairs(colors.view(B, C, N, 3), ids, C)


def composite(meta: Meta, channels, backgrounds, absgrad: bool, channel_chunk: int) -> tuple[Tensor, Tensor]:
    """Do what `engine_reference.composite` does, picture by picture."""
    n_images, width, height = meta["n_batches"] * meta["n_cameras"], meta["width"], meta["height"]
    target = meta["means2d"]
    if absgrad:
        target.absgrad = torch.zeros_like(target)
    if meta["gaussian_ids"] is None:
        n_splats = len(channels) // max(n_images, 1)
        bounds = [image * n_splats for image in range(n_images + 1)]
    else:
        bounds = [0, *torch.bincount(meta.image_ids(), minlength=n_images).cumsum(0).tolist()]
    rows = [dict.__getitem__(meta, key) for key in ("means2d", "conics", "opacities", "depths", "radii")]
    pictures, alphas = [], None
    for begin in range(0, channels.shape[-1], channel_chunk):
        part, behind = channels, backgrounds
        if channels.shape[-1] > channel_chunk:
            part = channels[:, begin : begin + channel_chunk]
            behind = None if backgrounds is None else backgrounds[:, begin : begin + channel_chunk]
        absolute = target.absgrad.view(-1, 2) if absgrad else None
        given = (*rows[:3], part, behind, *rows[3:], bounds, width, height)
        if learns(*given[:5]):
            picture, alpha = CompositeImage.apply(*given, absolute, n_threads())
        else:
            picture, alpha, _ = draw_album(*given, n_threads(), False)
        pictures.append(picture)
        alphas = alpha if alphas is None else alphas
    return pictures[0] if len(pictures) == 1 else torch.cat(pictures, dim=-1), alphas

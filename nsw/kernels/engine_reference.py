"""The steps of `rasterization` in plain torch, on rows of (camera, splat) pairs: what the fast kernels are tested against."""

from __future__ import annotations

import torch
from torch import Tensor

from nsw.kernels.harmonics import spherical_harmonics
from nsw.kernels.meta import Meta, rows_of_pairs
from nsw.kernels.projection_reference import Projected, View, project_visible, spread
from nsw.kernels.rasterize_reference import rasterize_to_pixels
from nsw.kernels.settled_gradient import settle_gradient


def project(means, covars, quats, scales, opacities, viewmats, Ks, view: View, packed: bool):
    """Project [(B,) N] splats into [(B,) C] cameras; rows are the visible pairs with their ids, or all B*C*N pairs and None."""
    if means.dim() == 2:
        given = (means, covars, quats, scales, opacities, viewmats, Ks)
        means, covars, quats, scales, opacities, viewmats, Ks = (None if t is None else t[None] for t in given)
    means, covars, quats, scales, viewmats = (settle_gradient(t) for t in (means, covars, quats, scales, viewmats))
    projected, ids = project_visible(means, covars, quats, scales, opacities, viewmats, Ks, view)
    if packed:
        return projected, ids
    full = spread(projected, ids, (means.shape[0], viewmats.shape[1], means.shape[1]))
    flat = {name: value if value is None else value.flatten(0, 2) for name, value in vars(full).items()}
    return Projected(**flat), None


def shade(sh_degree: int, means, coefficients, viewmats, radii, ids) -> Tensor:
    """Colours [R,3] seen from each camera: max(0, 0.5 + harmonics); 0 for culled pairs.

    Args:
        means [(B,) N, 3], coefficients [B, C or 1, N, K, 3], viewmats [(B,) C, 4, 4], radii [R,2].
    """
    means, viewmats = (t if t.dim() > n else t[None] for t, n in ((means, 2), (viewmats, 3)))
    n_cameras = viewmats.shape[1]
    camera_centres = torch.inverse(settle_gradient(viewmats))[..., :3, 3]
    directions = rows_of_pairs(means[:, None] - camera_centres[:, :, None], ids, n_cameras)
    seen = (radii > 0).all(dim=-1)
    values = spherical_harmonics(sh_degree, directions, rows_of_pairs(coefficients, ids, n_cameras), masks=seen)
    return torch.where(seen[:, None], torch.clamp(values + 0.5, 0.0, torch.finfo(values.dtype).max), torch.zeros_like(values))


def composite(meta: Meta, channels, backgrounds, absgrad: bool, channel_chunk: int) -> tuple[Tensor, Tensor]:
    """Blend rows into pictures [I,H,W,D] and alphas [I,H,W,1], `channel_chunk` channels at a time."""
    n_images = meta["n_batches"] * meta["n_cameras"]
    offsets = meta["isect_offsets"].reshape(n_images, meta["tile_height"], meta["tile_width"])
    if absgrad:
        meta["means2d"].absgrad = torch.zeros_like(meta["means2d"])
    pictures, alphas = [], None
    for begin in range(0, channels.shape[-1], channel_chunk):
        part = slice(begin, begin + channel_chunk)
        picture, alpha = rasterize_to_pixels(
            meta.rows("means2d"), meta.rows("conics"), channels[:, part], meta.rows("opacities"),
            meta["width"], meta["height"], meta["tile_size"], offsets, meta["flatten_ids"],
            None if backgrounds is None else backgrounds[:, part],
            absgrad_out=meta["means2d"].absgrad.view(-1, 2) if absgrad else None,
        )  # fmt: skip
        pictures.append(picture)
        alphas = alpha if alphas is None else alphas
    return torch.cat(pictures, dim=-1), alphas

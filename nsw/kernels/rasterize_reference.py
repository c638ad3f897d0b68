"""Composite projected splats into pictures in plain torch: the readable form of the fast kernels, in any float type.

At a pixel, splat i (front to back) has opacity `alpha_i = min(0.999, o_i exp(-sigma_i))`, where sigma is half the squared
Mahalanobis distance, and

    C = sum_i c_i alpha_i T_i + T_end background,     T_i = prod_{j<i} (1 - alpha_j)          (Kerbl et al. 2023, eq. 3)

with three rules that every implementation must share to be comparable: a splat with sigma < 0 or alpha < 1/255 is skipped; the
splat that would bring the transmittance to 1e-4 or less ends the pixel and is NOT added; the order is the tile's.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nsw.kernels.projection_reference import ALPHA_MIN

ALPHA_MAX = 0.999  # an opaque splat would divide by zero in the backward pass
TRANSMITTANCE_MIN = 1e-4


def splat_alphas(pixels, means2d, conics, opacities) -> Float[Tensor, "p n"]:
    """Opacity of N splats at P pixel centres, 0 where the skip rule holds. means2d is [N,2], or [P,N,2] to follow each pixel."""
    dx, dy = (means2d - pixels[:, None, :]).unbind(-1)
    a, b, c = conics.unbind(-1)
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    # The clamp at 0 only touches skipped values: without it exp could overflow and 0 * inf would poison the gradient.
    alpha = torch.clamp(opacities * torch.exp(-sigma.clamp(min=0.0)), max=ALPHA_MAX)
    return torch.where((sigma >= 0) & (alpha >= ALPHA_MIN), alpha, torch.zeros_like(alpha))


def composite(alphas: Float[Tensor, "p n"], colors: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "p d"], Float[Tensor, "p"]]:
    """Blend front to back with the stop rule; return the sum over splats and what transmittance is left.

    >>> composite(torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0], [0.0]]))
    (tensor([[0.5000]]), tensor([0.2500]))
    """
    with torch.no_grad():
        # T only falls, so "the first splat that would reach the limit, and all behind it" is one comparison.
        alive = torch.cumprod(1 - alphas, dim=1) > TRANSMITTANCE_MIN
    alphas = torch.where(alive, alphas, torch.zeros_like(alphas))
    after = torch.cumprod(1 - alphas, dim=1)
    before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], dim=1)
    return (alphas * before) @ colors, after[:, -1]


def _follow_absolute_gradient(means2d: Tensor, rows: Tensor, n_pixels: int, absgrad_out: Tensor) -> Tensor:
    """Give each pixel its own copy of the centres, so that a hook can sum |gradient| over pixels before autograd sums gradients."""
    per_pixel = means2d[rows].expand(n_pixels, -1, -1)
    if per_pixel.requires_grad:

        def add_absolute(grad: Tensor) -> None:  # returns None: a hook that returns a tensor would replace the gradient
            absgrad_out.index_add_(0, rows, grad.abs().sum(0))

        per_pixel.register_hook(add_absolute)
    return per_pixel


def _tile_pixels(tile: int, tiles_x: int, tile_size: int, width: int, height: int, like: Tensor):
    """Pixel indices (row, column) of a tile, cut at the picture's border, and their centres as (x, y)."""
    top, left = (tile // tiles_x) * tile_size, (tile % tiles_x) * tile_size
    ys = torch.arange(top, max(top, min(top + tile_size, height)), device=like.device)
    xs = torch.arange(left, max(left, min(left + tile_size, width)), device=like.device)
    row, column = (grid.flatten() for grid in torch.meshgrid(ys, xs, indexing="ij"))
    return row, column, torch.stack([column, row], dim=-1).to(like) + 0.5


def rasterize_to_pixels(
    means2d: Float[Tensor, "r 2"],
    conics: Float[Tensor, "r 3"],
    colors: Float[Tensor, "r d"],
    opacities: Float[Tensor, "r"],
    width: int,
    height: int,
    tile_size: int,
    isect_offsets: Int[Tensor, "i th tw"],
    flatten_ids: Int[Tensor, "m"],
    backgrounds: Float[Tensor, "i d"] | None = None,
    absgrad_out: Float[Tensor, "r 2"] | None = None,
) -> tuple[Float[Tensor, "i h w d"], Float[Tensor, "i h w 1"]]:
    """Composite rows of splats, listed by tile, into I pictures; differentiable by autograd, one tile at a time.

    Args:
        means2d, conics, colors, opacities: projected splats of all images as flat rows.
        isect_offsets, flatten_ids: each tile's list of rows, as `isect_offset_encode` and `isect_tiles` make them.
        backgrounds: one colour an image, or None for black.
        absgrad_out: where backward adds the sums over pixels of |d loss / d means2d|.

    Returns:
        Colours with the background added, and alphas (1 - transmittance).
    """
    n_images, tiles_y, tiles_x = isect_offsets.shape
    bounds = torch.cat([isect_offsets.flatten().long(), torch.tensor([len(flatten_ids)], device=isect_offsets.device)]).tolist()
    # Empty pieces tie the picture to its inputs even when no splat is drawn, so that backward gives zeros instead of an error.
    pieces, lefts, places = [colors[:0]], [opacities[:0] + means2d[:0, 0] + conics[:0, 0]], [flatten_ids[:0].long()]
    for index in range(n_images * tiles_y * tiles_x):
        begin, end = bounds[index], bounds[index + 1]
        if begin == end:
            continue
        image, tile = divmod(index, tiles_y * tiles_x)
        row, column, centres = _tile_pixels(tile, tiles_x, tile_size, width, height, means2d)
        rows = flatten_ids[begin:end].long()
        positions = means2d[rows]
        if absgrad_out is not None:
            positions = _follow_absolute_gradient(means2d, rows, len(centres), absgrad_out)
        color, left = composite(splat_alphas(centres, positions, conics[rows], opacities[rows]), colors[rows])
        pieces.append(color)
        lefts.append(left)
        places.append((image * height + row) * width + column)
    renders = colors.new_zeros(n_images * height * width, colors.shape[-1])
    transmittance = means2d.new_ones(n_images * height * width)
    place = torch.cat(places)
    renders = renders.index_put((place,), torch.cat(pieces))
    transmittance = transmittance.index_put((place,), torch.cat(lefts))
    renders = renders.view(n_images, height, width, -1)
    transmittance = transmittance.view(n_images, height, width, 1)
    if backgrounds is not None:
        renders = renders + transmittance * backgrounds[:, None, None, :]
    return renders, 1 - transmittance

"""`isect_tiles` and `isect_offset_encode`: gsplat's calls that list the splats of every tile.

A picture is cut into tiles of `tile_size` pixels. Every (splat, tile) pair gets a 64-bit key `image | tile | depth`, in which the
depth is the bit pattern of a positive float: read as an integer it sorts like the number. One sort of all keys then puts each
tile's splats side by side, front to back, and `isect_offset_encode` says where each tile begins. The bookkeeping is in
`tiles_reference.py`; here are gsplat's shapes, packed and not.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nsw.errors import CallError
from nsw.kernels import tiles_reference


@torch.no_grad()
def isect_tiles(
    means2d: Float[Tensor, "*i n 2"],
    radii: Int[Tensor, "*i n 2"],
    depths: Float[Tensor, "*i n"],
    tile_size: int,
    tile_width: int,
    tile_height: int,
    sort: bool = True,
    segmented: bool = False,
    packed: bool = False,
    n_images: int | None = None,
    image_ids: Int[Tensor, "nnz"] | None = None,
    gaussian_ids: Int[Tensor, "nnz"] | None = None,
) -> tuple[Int[Tensor, "*i n"], Int[Tensor, "m"], Int[Tensor, "m"]]:
    """List all intersections of splats' boxes with tiles.

    Args:
        means2d, radii, depths: projected splats, [..., N, ...] with the pictures in front, or [nnz, ...] if `packed`.
        sort: order by image, tile and depth; otherwise the pairs come splat by splat.
        segmented: another sorting algorithm on CUDA; the result is the same, and here nothing changes.
        n_images, image_ids, gaussian_ids: required if `packed`.

    Returns:
        tiles_per_gauss int32 [..., N] or [nnz]; isect_ids int64 [M] (image, tile, 32 bits of depth); flatten_ids int32 [M], the
        place of each pair's splat among all [..., N] or [nnz].
    """
    if packed:
        for name, value in {"image_ids": image_ids, "gaussian_ids": gaussian_ids, "n_images": n_images}.items():
            if value is None:
                raise CallError(f"{name} is required if packed is True.")
        lead = (means2d.shape[0],)
    else:
        lead = tuple(means2d.shape[:-1])
        images = math.prod(lead[:-1])
        image_ids = torch.arange(images, device=means2d.device).repeat_interleave(lead[-1])
    for name, tensor, tail in (("means2d", means2d, (2,)), ("radii", radii, (2,)), ("depths", depths, ())):
        if tuple(tensor.shape) != lead + tail:
            raise CallError(f"{name} must be {list(lead + tail)}, got {list(tensor.shape)}.")
    rows = (means2d.reshape(-1, 2), radii.reshape(-1, 2), depths.reshape(-1), image_ids)
    counts, isect_ids, flatten_ids = tiles_reference.isect_tiles(*rows, tile_size, tile_width, tile_height, sort=sort)
    return counts.view(lead), isect_ids, flatten_ids


@torch.no_grad()
def isect_offset_encode(isect_ids: Int[Tensor, "m"], n_images: int, tile_width: int, tile_height: int) -> Int[Tensor, "i h w"]:
    """Return where each tile's list begins among the sorted intersections, int32 [n_images, tile_height, tile_width].

    >>> counts, isect_ids, _ = isect_tiles(torch.tensor([[[20.0, 8.0]]]), torch.tensor([[[5, 5]]]), torch.ones(1, 1), 16, 2, 1)
    >>> counts.tolist(), isect_offset_encode(isect_ids, 1, 2, 1).tolist()
    ([[2]], [[[0, 1]]])
    """
    return tiles_reference.isect_offset_encode(isect_ids, n_images, tile_width, tile_height)

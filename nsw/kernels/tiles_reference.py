"""List, for every 16 x 16 tile of the picture, the splats that may touch it, front to back: plain torch.

One key a (splat, tile) pair, `image | tile | depth`, and one sort give all lists at once. The depth is that of the centre, so the
order is the same in the whole tile: cheap, and the cause of the popping one sees when the camera turns.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def _tile_boxes(means2d, radii, tile_size: int, tile_width: int, tile_height: int) -> tuple[Tensor, Tensor]:
    """First tile (inclusive) and last tile (exclusive) in x and y of each splat's box, both [R,2] int64."""
    limit = torch.tensor([tile_width, tile_height], device=means2d.device)
    low = torch.floor(means2d / tile_size - radii / tile_size).clamp(min=0)
    high = torch.ceil(means2d / tile_size + radii / tile_size).clamp(min=0)
    return torch.minimum(low, limit.to(low)).long(), torch.minimum(high, limit.to(high)).long()


def _ordered_depth_bits(depths: Tensor) -> Tensor:
    """The float32 bits of positive depths, as int64: as integers they sort like the numbers."""
    return depths.to(torch.float32).view(torch.int32).long() & 0xFFFFFFFF


@torch.no_grad()
def isect_tiles(
    means2d: Float[Tensor, "r 2"],
    radii: Int[Tensor, "r 2"],
    depths: Float[Tensor, "r"],
    image_ids: Int[Tensor, "r"],
    tile_size: int,
    tile_width: int,
    tile_height: int,
    sort: bool = True,
) -> tuple[Int[Tensor, "r"], Int[Tensor, "m"], Int[Tensor, "m"]]:
    """List all (splat, tile) intersections sorted by image, tile, depth.

    Args:
        means2d, radii, depths: projected splats as flat rows; radii 0 = culled, in no list.
        image_ids: the image of each row.
        sort: False leaves the pairs splat by splat.

    Returns:
        tiles_per_gauss int32 [r]; isect_ids int64 [m] (image, tile and depth bits); flatten_ids int32 [m] (row of each entry).
    """
    low, high = _tile_boxes(means2d.detach(), radii, tile_size, tile_width, tile_height)
    size = (high - low).clamp(min=0) * (radii > 0).all(dim=-1, keepdim=True)
    counts = size.prod(dim=-1)
    rows = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    first = torch.cumsum(counts, 0) - counts
    within = torch.arange(len(rows), device=rows.device) - first[rows]
    tile_x = low[rows, 0] + within % size[rows, 0].clamp(min=1)
    tile_y = low[rows, 1] + within // size[rows, 0].clamp(min=1)
    tile_bits = (tile_width * tile_height).bit_length()
    tile_key = (image_ids[rows].long() << tile_bits) | (tile_y * tile_width + tile_x)
    isect_ids = (tile_key << 32) | _ordered_depth_bits(depths.detach())[rows]
    if not sort:
        return counts.to(torch.int32), isect_ids, rows.to(torch.int32)
    # The key keeps 24 bits of mantissa; float64 depths that agree to float32 must still be ordered by their own value.
    if depths.dtype == torch.float64:
        by_depth = torch.argsort(depths.detach()[rows], stable=True)
        order = by_depth[torch.argsort(tile_key[by_depth], stable=True)]
    else:
        order = torch.argsort(isect_ids, stable=True)
    return counts.to(torch.int32), isect_ids[order], rows[order].to(torch.int32)


@torch.no_grad()
def isect_offset_encode(isect_ids: Int[Tensor, "m"], n_images: int, tile_width: int, tile_height: int) -> Int[Tensor, "i h w"]:
    """Return where each tile's list begins in the sorted intersections, int32 [n_images, tile_height, tile_width]."""
    tile_bits = (tile_width * tile_height).bit_length()
    tiles = torch.arange(tile_width * tile_height, device=isect_ids.device)
    keys = (torch.arange(n_images, device=isect_ids.device)[:, None] << tile_bits) | tiles
    starts = torch.searchsorted(isect_ids >> 32, keys.flatten())
    return starts.to(torch.int32).view(n_images, tile_height, tile_width)

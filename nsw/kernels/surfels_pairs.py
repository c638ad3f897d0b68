"""`rasterize_to_indices_in_range_2dgs` and `accumulate_2dgs`: surfels composited pair by pair, in torch that anybody can rewrite.

The first says which surfel is drawn in which pixel, the second blends such triples: the twins of the calls in `pixel_lists.py`,
with the weight of `surfels_reference.py`.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nsw.kernels.pixel_lists import blend_pairs, check_lists, drawn_pairs
from nsw.kernels.surfels_reference import RayRules, meet_disks


@torch.no_grad()
def rasterize_to_indices_in_range_2dgs(
    range_start: int,
    range_end: int,
    transmittances: Float[Tensor, "*i h w"],
    means2d: Float[Tensor, "*i n 2"],
    ray_transforms: Float[Tensor, "*i n 3 3"],
    opacities: Float[Tensor, "*i n"],
    image_width: int,
    image_height: int,
    tile_size: int,
    isect_offsets: Int[Tensor, "*i th tw"],
    flatten_ids: Int[Tensor, "m"],
) -> tuple[Int[Tensor, "k"], Int[Tensor, "k"], Int[Tensor, "k"]]:
    """Say which surfel is drawn in which pixel; arguments and returns as in `rasterize_to_indices_in_range`."""
    lead = tuple(means2d.shape[:-1])
    expected = {"means2d": (means2d, lead + (2,)), "ray_transforms": (ray_transforms, lead + (3, 3))}
    expected |= {"opacities": (opacities, lead), "transmittances": (transmittances, lead[:-1] + (image_height, image_width))}
    check_lists(expected, image_width, image_height, tile_size, isect_offsets)
    flat = (means2d.reshape(-1, 2), ray_transforms.reshape(-1, 3, 3), opacities.reshape(-1))

    def alphas_of(pixels, rows):
        return meet_disks(pixels, *(values[rows] for values in flat), RayRules())[0]

    lists = (tile_size, isect_offsets, flatten_ids)
    return drawn_pairs(alphas_of, range_start, range_end, transmittances, lead[-1], image_width, image_height, *lists)


def accumulate_2dgs(
    means2d: Float[Tensor, "*i n 2"],
    ray_transforms: Float[Tensor, "*i n 3 3"],
    opacities: Float[Tensor, "*i n"],
    colors: Float[Tensor, "*i n d"],
    normals: Float[Tensor, "*i n 3"],
    gaussian_ids: Int[Tensor, "k"],
    pixel_ids: Int[Tensor, "k"],
    image_ids: Int[Tensor, "k"],
    image_width: int,
    image_height: int,
) -> tuple[Float[Tensor, "*i h w d"], Float[Tensor, "*i h w 1"], Float[Tensor, "*i h w 3"]]:
    """Blend (surfel, pixel, image) triples in the order given: colours, alphas and normals, without a background."""
    lead = tuple(means2d.shape[:-1])
    rows = image_ids * lead[-1] + gaussian_ids
    centres = torch.stack([pixel_ids % image_width, pixel_ids // image_width], dim=-1).to(means2d) + 0.5
    flat = (means2d.reshape(-1, 2), ray_transforms.reshape(-1, 3, 3), opacities.reshape(-1))
    # One pixel and one disk a pair: each pixel's list of disks has length 1.
    alphas, _ = meet_disks_of_pairs(centres, *(values[rows] for values in flat))
    where = image_ids * image_height * image_width + pixel_ids
    n_pixels, shape = math.prod(lead[:-1]) * image_width * image_height, lead[:-1] + (image_height, image_width)
    values = torch.cat([colors, normals], dim=-1).reshape(-1, colors.shape[-1] + 3)[rows]
    sums, opaque = blend_pairs(alphas, values, where, n_pixels)
    sums = sums.view(shape + (-1,))
    return sums[..., :-3], opaque.view(shape + (1,)), sums[..., -3:]


def meet_disks_of_pairs(pixels, means2d, transforms, opacities) -> tuple[Float[Tensor, "k"], Float[Tensor, "k"]]:
    """`meet_disks` for K pairs of a pixel and a disk."""
    alphas, depth = torch.vmap(lambda p, m, T, o: meet_disks(p[None], m[None], T[None], o[None], RayRules()))(
        pixels, means2d, transforms, opacities
    )
    return alphas.reshape(-1), depth.reshape(-1)

"""The median depth of 3D Gaussians: that of the splat behind which less than half of a pixel's light is left."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from nsw.kernels.pixel_lists import alphas_of_pairs, light_before


@torch.no_grad()
def median_depth(meta: dict, width: int, height: int) -> Float[Tensor, "C H W"]:
    """Return the depth of the last splat that is blended while more than half of the light is left, 0 where there is none.

    The depth of a splat is the camera z of its centre. 2DGS (Huang et al. 2024) takes this depth of its discs, where the expected
    one smears edges over the way from one surface to the next.

    Args:
        meta: of a render that was not packed (`Render.extras`).
        width, height: of the pictures in pixels.
    """
    splats = meta["means2d"], meta["conics"], meta["opacities"]
    n_images, n_splats = meta["depths"].shape
    full = meta["depths"].new_ones(n_images, height, width)
    lists = width, height, meta["tile_size"], meta["isect_offsets"], meta["flatten_ids"]
    ids, pixels, images = _pairs(full.device)(0, 1 << 16, full, *splats, *lists)
    rows, where = images * n_splats + ids, images * (height * width) + pixels
    light = light_before(alphas_of_pairs(*splats, rows, pixels, width), where)
    kept = (light > 0.5).nonzero()[:, 0]
    last = kept.new_full((n_images * height * width,), -1).scatter_reduce(0, where[kept], kept, "amax")
    depths = meta["depths"].reshape(-1)[rows[last.clamp_min(0)]] if len(rows) else full.new_zeros(len(last))
    return torch.where(last >= 0, depths, 0.0).view(full.shape)


def _pairs(device: torch.device):
    if device.type == "cuda":
        from gsplat import rasterize_to_indices_in_range
    else:
        from nsw.kernels import rasterize_to_indices_in_range
    return rasterize_to_indices_in_range

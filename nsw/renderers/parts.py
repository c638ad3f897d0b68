"""Whole pictures a part at a time: 24 views of 800 pixels are 15 million rays, and no memory holds all of their samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from nsw.cameras import Cameras, Rays, camera_rays
from nsw.renderers.render import Render


def rays_of_some(cameras: Cameras, most: int = 1 << 21) -> Iterator[Rays]:
    """Yield the rays of all pixels in order, those of a few cameras at a time: their matrices alone take 100 bytes a ray.

    Args:
        most: rays at once; a camera's own are never parted.
    """
    n = max(most // (cameras.height * cameras.width), 1)
    for i in range(0, len(cameras), n):
        yield camera_rays(cameras[slice(i, i + n)])


def all_rays(cameras: Cameras, device: torch.device | str) -> Rays:
    """Return the rays of all pixels on a device, in memory of their own."""
    cameras = cameras.to(device)
    parts = [[x.contiguous() for x in (r.origins, r.directions, r.z_per_t)] for r in rays_of_some(cameras)]
    return Rays(*(torch.cat(part) for part in zip(*parts, strict=True)), cameras.background)


def parts_of_counts(counts: Int[Tensor, "R"], most: int) -> list[slice]:
    """Return the longest parts, in order, whose counts sum to at most `most`; what is larger alone is a part of its own.

    >>> parts_of_counts(torch.tensor([3, 1, 9, 2, 2]), 4)
    [slice(0, 2, None), slice(2, 3, None), slice(3, 5, None)]
    """
    ends, parts, begin, before = counts.cumsum(0).cpu(), [], 0, 0
    while begin < len(ends):
        end = max(int(torch.searchsorted(ends, before + most, right=True)), begin + 1)
        parts.append(slice(begin, end))
        begin, before = end, int(ends[end - 1])
    return parts


@torch.no_grad()
def assemble(render: Callable[[Rays], Any], cameras: Cameras, chunk: int) -> Render:
    """Render whole pictures without gradients, so many rays at a time.

    Args:
        render: from rays to something with rgb [R, 3], left [R] (transmittance) and depth [R] (distance t).
    """
    found = []
    for rays in rays_of_some(cameras):
        for i in range(0, len(rays), chunk):
            part = render(rays[i : i + chunk])
            found.append((part.rgb, part.left, part.depth * rays.z_per_t[i : i + chunk]))
    shape = (len(cameras), cameras.height, cameras.width)
    rgb, left, depth = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Render(rgb.view(*shape, 3), 1.0 - left.view(shape), depth.view(shape))

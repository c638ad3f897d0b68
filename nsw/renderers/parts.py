"""Whole pictures a part at a time: 24 views of 800 pixels are 15 million rays, and no memory holds all of their samples."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from nsw.cameras import Cameras, Rays, camera_rays
from nsw.renderers.render import Render

MOST_RAYS = 1 << 21


def few_cameras(cameras: Cameras, most: int = MOST_RAYS) -> Iterator[Cameras]:
    """Yield cameras in order, a few at a time, so that they have at most so many pixels; one is never parted."""
    n = max(most // (cameras.height * cameras.width), 1)
    for i in range(0, len(cameras), n):
        yield cameras[slice(i, i + n)]


def rays_of_some(cameras: Cameras, most: int = MOST_RAYS) -> Iterator[Rays]:
    """Yield the rays of all pixels in order, those of a few cameras at a time: their matrices alone take 100 bytes a ray."""
    return map(camera_rays, few_cameras(cameras, most))


def a_few_cameras_at_a_time(draw: Callable[..., Render]) -> Callable[..., Render]:
    """Return a function like `draw(field, cameras, **options)` that never sees more cameras at once than memory has room for."""

    @functools.wraps(draw)
    def in_parts(field: Any, cameras: Cameras, **options: Any) -> Render:
        return in_order([draw(field, some, **options) for some in few_cameras(cameras)])

    return in_parts


def in_order(renders: Sequence[Render]) -> Render:
    """Return the pictures of several renders as one; a single one keeps its extras."""
    if len(renders) == 1:
        return renders[0]
    return Render(*(torch.cat([getattr(render, name) for render in renders]) for name in ("rgb", "alpha", "depth")))


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

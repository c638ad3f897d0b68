"""Points as structure from motion finds them: many where pictures have texture, almost none where they are flat, some wrong."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from nsw.cameras import camera_rays, project
from nsw.errors import InputError
from nsw.scenes.scene import Points, Scene


def local_contrast(images: Float[Tensor, "n H W 3"], reach: int = 2) -> Float[Tensor, "n H W"]:
    r"""Return the standard deviation of grey around every pixel, $\sqrt{\overline{Y^2} - \bar Y^2}$: 0 where a picture is flat.

    Args:
        reach: pixels to each side of the square window.

    >>> local_contrast(torch.full((1, 6, 6, 3), 0.4)).max().item()
    0.0
    """
    grey = pad(images.double().mean(dim=-1)[:, None], [reach] * 4, mode="replicate")
    mean, mean_square = (avg_pool2d(x, 2 * reach + 1, stride=1)[:, 0] for x in (grey, grey.square()))
    variance = mean_square - mean.square()
    return torch.where(variance > 1e-12, variance, 0.0).sqrt().to(images)  # beneath: rounding of equal numbers


def sfm_points(
    scene: Scene, n: int, seed: int = 0, *, flat: float = 0.02, noise: float = 0.5, outliers: float = 0.02, views="train"
) -> Points:
    """Return n coloured points of a scene with true depth, drawn and spoilt as structure from motion would.

    A pixel is drawn with a probability that grows with the contrast around it, beyond a floor, and goes back to its true
    depth. Every point is then off by some noise, and a few are wrong matches: on the right ray at a random depth.

    Args:
        flat: contrast, as a standard deviation of grey, up to which a pixel has no point at all.
        noise: standard deviation of a place along each axis, in pixels of the view that found it.
        outliers: share of wrong points in [0, 1]; they come last.
        views: name of a split or frame indices: the pictures that are searched.

    Returns:
        The points; fewer than n when fewer pixels have contrast.

    Raises:
        InputError: when the scene has no true depth.
    """
    if scene.depth is None:
        raise InputError(
            f"Scene {scene.name} has no true depth to draw points from: choose a bundled scene, or use its own points."
        )
    frames, generator = scene.frames(views), torch.Generator().manual_seed(seed)
    cameras, images, depth = scene.cameras[frames], scene.pixels(frames), scene.depth[frames].float().flatten()
    chance = (local_contrast(images).flatten() - flat).clamp_min(0) * (depth > 0)
    order = (chance.log() - torch.rand(len(chance), generator=generator).log().neg().log()).topk(min(n, int((chance > 0).sum())))
    pixels, n = order.indices[torch.randperm(len(order.indices), generator=generator)], len(order.indices)
    z = depth[pixels].clone()
    n_wrong = round(outliers * n)
    z[n - n_wrong :] = scene.near + torch.rand(n_wrong, generator=generator) * (scene.far - scene.near)
    footprint = z / cameras.Ks[pixels // (cameras.width * cameras.height), 0, 0]
    error = noise * footprint[:, None] * torch.randn(n, 3, generator=generator)
    return Points(camera_rays(cameras)[pixels].at_depth(z) + error, images.reshape(-1, 3)[pixels])


def seen_in(scene: Scene, points_world: Float[Tensor, "N 3"], views="train", tolerance: float = 0.03) -> Bool[Tensor, "V N"]:
    """Return which points each view sees: inside of the picture, and not behind its true depth by more than a share of it."""
    frames = scene.frames(views)
    cameras = scene.cameras[frames]
    pixels, z = project(cameras, points_world)
    column, row = pixels.nan_to_num(-1, -1, -1).clamp(-1, max(cameras.width, cameras.height)).floor().long().unbind(-1)
    inside = (z > 0) & (column >= 0) & (row >= 0) & (column < cameras.width) & (row < cameras.height)
    at = row.clamp(0, cameras.height - 1) * cameras.width + column.clamp(0, cameras.width - 1)
    there = scene.depth[frames].float().flatten(1).gather(1, at)
    return inside & ((there == 0) | (z <= there * (1 + tolerance)))

"""Take the last noise out of a path-traced picture without blurring its edges, textures, shadows or highlights."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def denoised(
    halves: Array, radius: int = 4, strength: float = 0.6, sigma_normal: float = 0.12, sigma_albedo: float = 0.08
) -> Array:
    """Return the denoised mean of two independent renderings of one view.

    A non-local mean over the neighbourhood, in the manner of Rousselle, Manzi and Zwicker, "Robust Denoising using
    Feature and Color Information", 2013: light is divided by albedo first (textures carry no noise), neighbours count by
    how well their patches agree beyond what the measured noise explains, and by normals, albedo and coverage. Weights
    from one half filter the other, so that noise never votes for itself.

    Args:
        halves: [2, H, W, 10], linear premultiplied RGB, alpha, albedo RGB, normal XYZ.
        radius: of the neighbourhood in pixels.
        strength: how many standard deviations of disagreement still count as agreement; 0 switches the filter off.

    Returns:
        linear premultiplied RGB and alpha [H, W, 4]; alpha is the plain mean.
    """
    halves = halves.astype(np.float32)
    mean = halves.mean(0)
    if strength <= 0:
        return mean[..., :4]
    alpha, albedo, normal = mean[..., 3:4], mean[..., 4:7], mean[..., 7:10]
    divisor = albedo + 0.04
    light = halves[..., :3] / divisor
    squares = (light[0] - light[1]) ** 2
    variance = _box(squares.mean(-1), 3) / 2  # of one half, a channel
    # The spike of a single pixel is noise as well: do not let a neighbour's calm hide it.
    variance = np.maximum(variance, 0.1 * _box(squares.mean(-1), 1) / 2) + 1e-8
    sums, weights = np.zeros_like(light), np.zeros(light.shape[:3])
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            near_variance = _moved(variance, dy, dx)
            features = (
                ((normal - _moved(normal, dy, dx)) ** 2).sum(-1) / (2 * sigma_normal**2)
                + ((albedo - _moved(albedo, dy, dx)) ** 2).sum(-1) / (2 * sigma_albedo**2)
                + ((alpha - _moved(alpha, dy, dx)) ** 2)[..., 0] / (2 * 0.05**2)
            )
            for one in (0, 1):
                difference = ((light[one] - _moved(light[one], dy, dx)) ** 2).mean(-1)
                excess = (difference - variance - near_variance) / (strength**2 * (variance + near_variance))
                w = np.exp(-np.maximum(_box(excess, 1), 0) - features)
                sums[1 - one] += w[..., None] * _moved(light[1 - one], dy, dx)
                weights[1 - one] += w
    return np.concatenate([(sums / weights[..., None]).mean(0) * divisor, alpha], -1)


def _moved(a: Array, dy: int, dx: int) -> Array:
    """Return a picture shifted so that [y, x] shows [y + dy, x + dx]; the border repeats itself."""
    rows = np.clip(np.arange(a.shape[0]) + dy, 0, a.shape[0] - 1)
    columns = np.clip(np.arange(a.shape[1]) + dx, 0, a.shape[1] - 1)
    return a[rows][:, columns]


def _box(a: Array, r: int) -> Array:
    """Return the mean over a (2r + 1)^2 window of a map [H, W], border repeated."""
    for axis in (0, 1):
        pad = [(r + 1, r) if i == axis else (0, 0) for i in range(2)]
        total = np.cumsum(np.pad(a, pad, mode="edge"), axis=axis)
        n = a.shape[axis]
        take = [slice(None)] * 2
        take[axis] = slice(2 * r + 1, 2 * r + 1 + n)
        low = [slice(None)] * 2
        low[axis] = slice(0, n)
        a = (total[tuple(take)] - total[tuple(low)]) / (2 * r + 1)
    return a

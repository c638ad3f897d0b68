"""Where the cameras look: the upright world, the box to reconstruct, near and far, from cameras and points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

_SYNTHETIC_RADIUS, _SYNTHETIC_HALF, _SYNTHETIC_NEAR, _SYNTHETIC_FAR = 4.0, 1.5, 2.0, 6.0


@dataclass(frozen=True)
class Bounds:
    """The box [2, 3] to reconstruct and the distances along a ray between which it lies, world units."""

    aabb: Float[np.ndarray, "2 3"]
    near: float
    far: float


def focus(world_from_cam: Float[np.ndarray, "n 4 4"]) -> tuple[Float[np.ndarray, "3"], bool]:
    """Return the point nearest to all optical axes, and whether the cameras look at it together.

    Least squares: sum_i (I - d_i d_i^T) (x - o_i) = 0. They look at it together when the axes' directions differ enough
    to fix the point and nine in ten cameras have it in front of them, within 30 degrees of their axis.
    """
    o, d = world_from_cam[:, :3, 3], world_from_cam[:, :3, 2]
    across = np.eye(3) - d[:, :, None] * d[:, None, :]
    A = across.mean(axis=0)
    point = np.linalg.lstsq(A, (across @ o[..., None])[..., 0].mean(axis=0), rcond=1e-4)[0]
    to_point = point - o
    cosine = (to_point * d).sum(axis=1) / np.maximum(np.linalg.norm(to_point, axis=1), 1e-9)
    spread = np.linalg.norm(o - o.mean(axis=0), axis=1).mean()
    together = (
        np.linalg.eigvalsh(A)[0] > 0.01 and (cosine > 0.86).mean() >= 0.9 and np.linalg.norm(point - o.mean(axis=0)) < 20 * spread
    )
    return point, bool(together)


def upright_rotation(world_from_cam: Float[np.ndarray, "n 4 4"], tolerance_degrees: float = 0.0) -> Float[np.ndarray, "3 3"]:
    """Return the smallest rotation that turns the mean upward direction of the cameras to +z.

    The identity when the mean is already within the tolerance, or when the cameras have no common upward direction.
    """
    up = -world_from_cam[:, :3, 1].mean(axis=0)
    length = np.linalg.norm(up)
    if length < 0.2:
        return np.eye(3)
    up = up / length
    if up[2] >= np.cos(np.radians(tolerance_degrees)):
        return np.eye(3)
    axis = np.cross(up, [0.0, 0.0, 1.0])
    sine = np.linalg.norm(axis)
    if sine < 1e-9:
        return np.diag([1.0, -1.0, -1.0])
    x, y, z = axis / sine
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + sine * cross + (1.0 - up[2]) * (cross @ cross)


def transformed(
    world_from_cam: Float[np.ndarray, "n 4 4"], rotation: Float[np.ndarray, "3 3"], centre: Float[np.ndarray, "3"], scale: float
) -> Float[np.ndarray, "n 4 4"]:
    """Return poses in the world x' = scale * rotation (x - centre)."""
    out = world_from_cam.copy()
    out[:, :3, :3] = rotation @ world_from_cam[:, :3, :3]
    out[:, :3, 3] = scale * (world_from_cam[:, :3, 3] - centre) @ rotation.T
    return out


def synthetic_bounds(world_from_cam: Float[np.ndarray, "n 4 4"]) -> Bounds:
    """Return the bounds of an object that cameras surround, after NeRF-synthetic.

    There the cameras stand 4 away from the origin, the objects lie in [-1.5, 1.5]^3, and rays run from 2 to 6. Cameras
    at another distance, or around another point (further than a tenth of that distance from the origin), get the same
    box in proportion, around the point that they look at.
    """
    point, together = focus(world_from_cam)
    if not together:
        return camera_bounds(world_from_cam)
    distances = np.linalg.norm(world_from_cam[:, :3, 3] - point, axis=1)
    factor = np.median(distances) / _SYNTHETIC_RADIUS
    if 0.8 < factor < 1.25:
        factor = 1.0
    if np.linalg.norm(point) < 0.1 * _SYNTHETIC_RADIUS * factor:
        point = np.zeros(3)
    half = _SYNTHETIC_HALF * factor
    near = max(min(_SYNTHETIC_NEAR * factor, distances.min() - half), 0.02 * factor)
    far = max(_SYNTHETIC_FAR * factor, distances.max() + 3**0.5 * half)
    if factor == 1.0 and distances.max() < 4.6 and distances.min() > 3.4:
        near, far = _SYNTHETIC_NEAR, _SYNTHETIC_FAR
    return Bounds(np.stack([point - half, point + half]), near, far)


def camera_bounds(world_from_cam: Float[np.ndarray, "n 4 4"], points: Float[np.ndarray, "p 3"] | None = None) -> Bounds:
    """Return bounds for a capture of unknown extent.

    With points: the box of their middle 96 percent in each axis, widened by a tenth and cut at eight times the cameras'
    spread from the cameras' focus (or mean); near and far from the points' distances to the cameras, 0.1 to 99.9
    percent, widened by a fifth. Without points: around the focus of cameras that look inwards, a box that reaches three
    quarters of the way to the median camera; else, for cameras that look outwards, three times the cameras' own box.
    """
    origins = world_from_cam[:, :3, 3]
    spread = max(float(np.linalg.norm(origins - origins.mean(axis=0), axis=1).max()), 1e-6)
    point, together = focus(world_from_cam)
    centre = point if together else origins.mean(axis=0)
    if points is not None and len(points) >= 20:
        low, high = np.percentile(points, [2, 98], axis=0)
        margin = 0.1 * (high - low) + 1e-3 * spread
        low, high = np.maximum(low - margin, centre - 8 * spread), np.minimum(high + margin, centre + 8 * spread)
        if (high > low).all():
            near, far = _distances_seen(world_from_cam, points)
            return Bounds(np.stack([low, high]), max(near / 1.2, 1e-3 * spread), far * 1.2)
    if together:
        distances = np.linalg.norm(origins - point, axis=1)
        half = 0.75 * np.median(distances)
        return Bounds(
            np.stack([point - half, point + half]), max(0.1 * distances.min(), 1e-4), float(distances.max() + 3**0.5 * half)
        )
    half = 3.0 * spread
    return Bounds(np.stack([centre - half, centre + half]), 0.02 * spread, float(spread + 3**0.5 * half))


def _distances_seen(world_from_cam: Float[np.ndarray, "n 4 4"], points: Float[np.ndarray, "p 3"]) -> tuple[float, float]:
    """Return the 0.1 and 99.9 percent distances between cameras and the points within 45 degrees of their axis."""
    some = points[:: max(1, len(points) // 4000)]
    seen = []
    for pose in world_from_cam[:: max(1, len(world_from_cam) // 100)]:
        to = some - pose[:3, 3]
        distance = np.linalg.norm(to, axis=1)
        seen.append(distance[(to @ pose[:3, 2]) > 0.7 * distance])
    distances = np.concatenate(seen)
    if len(distances) == 0:
        distances = np.linalg.norm(some - world_from_cam[:, :3, 3].mean(axis=0), axis=1)
    low, high = np.percentile(distances, [0.1, 99.9])
    return float(low), float(max(high, low + 1e-6))

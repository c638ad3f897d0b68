"""Real lenses to pinhole cameras: the distortion models of OpenCV, and the picture resampled without it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

Bend = Callable[[Float[np.ndarray, "n 2"]], Float[np.ndarray, "n 2"]]


@dataclass(frozen=True)
class Lens:
    """The intrinsics of one picture of width x height pixels.

    `bend` maps (x/z, y/z) of a pinhole to where the real lens images it, in units of the focal lengths around the
    principal point; None for a pinhole.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int
    bend: Bend | None = None

    def resized(self, width: int, height: int) -> Lens:
        """Return the same lens for the picture at another size."""
        sx, sy = width / self.width, height / self.height
        return replace(self, fx=self.fx * sx, fy=self.fy * sy, cx=self.cx * sx, cy=self.cy * sy, width=width, height=height)

    @property
    def K(self) -> Float[np.ndarray, "3 3"]:
        return np.array([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])


def brown(xy: Float[np.ndarray, "n 2"], k1=0.0, k2=0.0, p1=0.0, p2=0.0, k3=0.0) -> Float[np.ndarray, "n 2"]:
    """Bend points of the plane z = 1 by radial and tangential distortion, OpenCV's model.

    x' = x (1 + k1 r^2 + k2 r^4 + k3 r^6) + 2 p1 x y + p2 (r^2 + 2 x^2), and alike for y (Brown 1971).

    >>> brown(np.array([[1.0, 0.0]]), k1=0.1)
    array([[1.1, 0. ]])
    """
    x, y = xy[:, 0], xy[:, 1]
    r2 = x * x + y * y
    radial = 1.0 + r2 * (k1 + r2 * (k2 + r2 * k3))
    return np.stack(
        [x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x), y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y], axis=1
    )


def fisheye(xy: Float[np.ndarray, "n 2"], k1=0.0, k2=0.0, k3=0.0, k4=0.0) -> Float[np.ndarray, "n 2"]:
    """Bend points of the plane z = 1 by an equidistant fisheye with OpenCV's polynomial in the angle.

    theta' = theta (1 + k1 theta^2 + k2 theta^4 + k3 theta^6 + k4 theta^8), theta = atan(r) (Kannala and Brandt 2006).
    """
    r = np.linalg.norm(xy, axis=1)
    theta = np.arctan(r)
    t2 = theta * theta
    bent = theta * (1.0 + t2 * (k1 + t2 * (k2 + t2 * (k3 + t2 * k4))))
    return xy * np.where(r > 1e-9, bent / np.maximum(r, 1e-9), 1.0)[:, None]


@functools.lru_cache(maxsize=256)
def brown_lens(fx, fy, cx, cy, width, height, k1=0.0, k2=0.0, p1=0.0, p2=0.0, k3=0.0) -> Lens:
    """Return a lens with OpenCV's distortion; the same numbers give the same object, so that its map is made once."""
    if not any((k1, k2, p1, p2, k3)):
        return Lens(fx, fy, cx, cy, width, height)
    return Lens(fx, fy, cx, cy, width, height, functools.partial(brown, k1=k1, k2=k2, p1=p1, p2=p2, k3=k3))


@functools.lru_cache(maxsize=256)
def fisheye_lens(fx, fy, cx, cy, width, height, k1=0.0, k2=0.0, k3=0.0, k4=0.0) -> Lens:
    """Return a fisheye lens; the same numbers give the same object, so that its map is made once."""
    return Lens(fx, fy, cx, cy, width, height, functools.partial(fisheye, k1=k1, k2=k2, k3=k3, k4=k4))


@functools.lru_cache(maxsize=8)
def straight_map(lens: Lens) -> tuple[Float[Tensor, "H W 2"], Bool[np.ndarray, "H W"]]:
    """Return where each pixel of the pinhole picture is found in the distorted one, and which of them are there.

    The pinhole keeps size, focal lengths and principal point. A pixel is valid when it comes from inside the stored
    picture and from the part around the principal point in which the model does not fold back on itself: a polynomial
    fitted to the picture can turn round outside of it.

    Returns:
        grid: [H, W, 2] (x, y) in [-1, 1] over the stored picture, as `grid_sample` takes it.
        valid: [H, W].
    """
    from scipy.ndimage import label

    columns, rows = np.meshgrid(np.arange(lens.width) + 0.5, np.arange(lens.height) + 0.5)
    plane = np.stack([(columns - lens.cx) / lens.fx, (rows - lens.cy) / lens.fy], axis=-1)
    bent = lens.bend(plane.reshape(-1, 2)).reshape(plane.shape)
    pixels = bent * [lens.fx, lens.fy] + [lens.cx, lens.cy]
    with np.errstate(invalid="ignore"):
        along_x, along_y = np.gradient(pixels, axis=1), np.gradient(pixels, axis=0)
        unfolded = (along_x[..., 0] * along_y[..., 1] - along_x[..., 1] * along_y[..., 0]) > 1e-3
    pieces, _ = label(unfolded)
    centre = (int(np.clip(lens.cy, 0, lens.height - 1)), int(np.clip(lens.cx, 0, lens.width - 1)))
    inside = ((pixels >= 0) & (pixels <= [lens.width, lens.height])).all(axis=-1)
    valid = inside & unfolded & (pieces == pieces[centre])
    grid = np.nan_to_num(2.0 * pixels / [lens.width, lens.height] - 1.0, nan=2.0)
    return torch.from_numpy(grid.astype(np.float32)), valid


def straighten(picture: np.ndarray, lens: Lens) -> tuple[np.ndarray, Bool[np.ndarray, "H W"]]:
    """Return the picture that a pinhole of the same K would have taken, bilinearly resampled, and its valid pixels.

    Args:
        picture: uint8 [H, W, c] of the lens's size; c = 4 is straight alpha, which weighs the colours.
        lens: with `bend`.
    """
    from torch.nn.functional import grid_sample

    grid, valid = straight_map(lens)
    x = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255.0
    if x.shape[1] == 4:
        x = torch.cat([x[:, :3] * x[:, 3:], x[:, 3:]], dim=1)
    x = grid_sample(x, grid[None], mode="bilinear", padding_mode="border", align_corners=False)
    if x.shape[1] == 4:
        x = torch.cat([x[:, :3] / x[:, 3:].clamp_min(1e-6), x[:, 3:]], dim=1)
    out = (x[0].clamp(0, 1) * 255.0).round().byte().permute(1, 2, 0).numpy()
    return np.where(valid[..., None], out, 0).astype(np.uint8), valid

r"""MVGS: multi-view-regulated Gaussian splatting (Du, Wang, Yu, arXiv 2410.02103, 2024).

3DGS follows one picture a step, so a splat is pulled to where that picture wants it. The recipe draws M pictures a step
and sums their losses; around this it trains coarse to fine with more views while pictures are small, clones splats where
the rays through the worst windows of two views meet, and halves the growth threshold when the views of a step differ
much. Everything else is 3DGS. Here stands the geometry; `mvgs_train.py` is the schedule and the training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nsw.cameras import Cameras


@dataclass(frozen=True)
class Guard:
    """What a box of crossing rays must satisfy, in shares of the scene's extent; the official code asks for none of it.

    Attributes:
        gap: corner rays must pass each other this closely.
        size: longest side of the box.
    """

    gap: float = 0.1
    size: float = 0.5

    def __call__(
        self,
        t0: Float[Tensor, "B 4"],
        t1: Float[Tensor, "B 4"],
        p0: Float[Tensor, "B 4 3"],
        p1: Float[Tensor, "B 4 3"],
        extent: float,
    ) -> Bool[Tensor, "B"]:
        """Say which pairs of windows can show the same thing: rays pass closely, before both cameras, around a small box.

        Args:
            t0, t1: how far along the rays of both cameras their closest points lie.
            p0, p1: these points.
        """
        x = (p0 + p1) / 2
        close = (t0 > 0) & (t1 > 0) & ((p0 - p1).norm(dim=-1) <= self.gap * extent)
        return close.all(dim=1) & ((x.amax(dim=1) - x.amin(dim=1)).amax(dim=1) <= self.size * extent)


def worst_windows(errors: Float[Tensor, "M H W"], rows: int, columns: int) -> tuple[Float[Tensor, "M 4 2"], Float[Tensor, "M"]]:
    """Return for each error map the corners of the window with the largest mean, and that mean (section 3.3).

    Windows stand side by side, `rows` x `columns` pixels each. Corners are pixel coordinates (x, y), clockwise from the
    top left one. An error that is NaN, of a pixel that must not be used, counts as none: a mask must not steer growth.
    """
    errors = errors.masked_fill(errors.isnan(), 0.0)
    means = torch.nn.functional.avg_pool2d(errors[:, None], (rows, columns), stride=(rows, columns))
    value, place = means.flatten(1).max(dim=1)
    top, left = place // means.shape[-1] * rows, place % means.shape[-1] * columns
    x, y = torch.stack([left, left + columns], dim=1), torch.stack([top, top + rows], dim=1)
    return torch.stack([x[:, [0, 1, 1, 0]], y[:, [0, 0, 1, 1]]], dim=-1).float(), value


def corner_rays(cameras: Cameras, corners: Float[Tensor, "M 4 2"]) -> Float[Tensor, "M 4 3"]:
    """Return the unit directions, in the world, from each camera through its corners."""
    pixel = torch.cat([corners, torch.ones_like(corners[..., :1])], dim=-1)
    in_world = cameras.world_from_cam[:, :3, :3] @ torch.linalg.inv(cameras.Ks)
    return torch.nn.functional.normalize(pixel @ in_world.transpose(1, 2), dim=-1)


def closest_points(
    o0: Float[Tensor, "*n 3"], d0: Float[Tensor, "*n 3"], o1: Float[Tensor, "*n 3"], d1: Float[Tensor, "*n 3"]
) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n"], Bool[Tensor, "*n"]]:
    r"""Return how far along two lines they come closest, and whether they are crossed at all.

    $$n = d_0 \times d_1, \qquad t_0 = \frac{((o_1 - o_0) \times d_1) \cdot n}{\|n\|^2}, \qquad
    t_1 = \frac{((o_1 - o_0) \times d_0) \cdot n}{\|n\|^2}$$  (Du et al. 2024, section 3.3)

    >>> o0, o1 = torch.tensor([0.0, 0, 0]), torch.tensor([2.0, 0, -3])
    >>> closest_points(o0, torch.tensor([1.0, 0, 0]), o1, torch.tensor([0.0, 0, 1]))
    (tensor(2.), tensor(3.), tensor(True))
    """
    n = torch.linalg.cross(d0, d1)
    squared, between = n.square().sum(-1), o1 - o0
    crossed = squared.sqrt() > 1e-6
    safe = squared.where(crossed, 1.0)
    t0 = (torch.linalg.cross(between, d1) * n).sum(-1) / safe
    t1 = (torch.linalg.cross(between, d0) * n).sum(-1) / safe
    return t0, t1, crossed


def crossing_boxes(
    cameras: Cameras, corners: Float[Tensor, "M 4 2"], extent: float, guard: Callable | None = None
) -> Float[Tensor, "B 2 3"]:
    r"""Return a box (minimum, maximum) for every pair of views whose windows can show the same thing (section 3.3).

    $$x = \tfrac12\,(o_0 + t_0 d_0 + o_1 + t_1 d_1)$$  for each of the four pairs of corner rays

    Args:
        extent: the scene's, which the guard is measured in.
        guard: a `Guard`, or another function of the same arguments; None takes every box whose rays are not parallel, as
            the official code does, even behind a camera.
    """
    first, second = torch.combinations(torch.arange(len(cameras), device=corners.device)).unbind(-1)
    d = corner_rays(cameras, corners)
    d0, d1 = d[first], d[second]
    o = cameras.origins[:, None].expand_as(d)
    o0, o1 = o[first], o[second]
    t0, t1, crossed = closest_points(o0, d0, o1, d1)
    p0, p1 = o0 + t0[..., None] * d0, o1 + t1[..., None] * d1
    x = (p0 + p1) / 2
    boxes = torch.stack([x.amin(dim=1), x.amax(dim=1)], dim=1)
    good = crossed.all(dim=1)
    if guard is not None:
        good &= guard(t0, t1, p0, p1, extent)
    return boxes[good]


def inside(points: Float[Tensor, "N 3"], boxes: Float[Tensor, "B 2 3"]) -> Bool[Tensor, "N"]:
    """Return which points lie in at least one box; no box holds none."""
    within = (points[:, None] >= boxes[None, :, 0]) & (points[:, None] <= boxes[None, :, 1])
    return within.all(dim=-1).any(dim=-1)


def spread(cameras: Cameras, centre: Float[Tensor, "3"]) -> float:
    """Return the largest distance between camera centres on the unit sphere around the scene's centre: 1 is 60 degrees.

    The official code takes the world's origin for the centre, which means nothing where the scene is elsewhere.
    """
    places = torch.nn.functional.normalize(cameras.origins - centre, dim=-1)
    return float(torch.cdist(places, places).max())


def growth_threshold(beta: float, r: float, tau: float = 1.0) -> float:
    r"""Return the gradient above which splats grow: half of beta when the views of the step differ much.

    $$\hat\beta = \beta - \tfrac\beta2\,H(r/\tau - 1)$$  (Du et al. 2024, section 3.4)

    >>> growth_threshold(2e-4, 0.9), growth_threshold(2e-4, 1.1)
    (0.0002, 0.0001)
    """
    return beta / 2 if r > tau else beta

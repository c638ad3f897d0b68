"""A level-of-detail tree over Gaussians: a million splats while the camera moves, each as fine as it is seen.

Cells of an octree nest, so splats sorted along a Z-order curve are a tree: a cell is a range of its children. The splats of a
cell are merged into one by their moments. With weight w = opacity x area of every child,

    mu = sum w mu_i / W,   Sigma = sum w (Sigma_i + mu_i mu_i^T) / W - mu mu^T,   o = W / area(Sigma),

the merged splat covers what its children covered, area(Sigma) = sqrt(I_2(Sigma) / 3) with the second invariant I_2 (s^2 for a
ball, s_1 s_2 / sqrt(3) for a disk). A picture is drawn from a cut: cells are opened from the top while the centres inside them
lie further apart than some pixels, those that spread most first, until a budget of splats is spent. Cells outside the picture
are dropped on the way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nsw.cameras import Cameras
from nsw.models.gaussians import Gaussians
from nsw.models.morton import interleave
from nsw.renderers.render import Render

_BITS = 11  # of a cell's place on each axis, at the finest
_SHRINK = 2.5  # a level is kept when it has that many times fewer cells than the one below
_TOP = 2_000  # cells at the top, where every cut begins
_MOST_OPAQUE = 0.99
_WIDER = 2.5  # of a cell's spread: splats as wide as their cell (h^2 / 12) leave gaps to the next


@dataclass(frozen=True)
class Level:
    """Cells of one level: a merged splat each, and the range of its children in the level below.

    Attributes:
        splats: the merged splats.
        first: index of the first child [n + 1]; the last entry closes the last range.
        spread: root mean square distance of the splats inside from their mean, world units [n].
        reach: distance from the mean that nothing inside exceeds by much, world units [n].
    """

    splats: Gaussians
    first: Int[Tensor, "n1"]
    spread: Float[Tensor, "n"]
    reach: Float[Tensor, "n"]


@dataclass(frozen=True)
class _Moments:
    """Sums over splats; sums of sums are sums over more splats."""

    weight: Tensor  # [n]
    first: Tensor  # [n, 3]
    within: Tensor  # [n, 3, 3] of the splats' own covariances
    between: Tensor  # [n, 3, 3] of their centres' outer products
    colour: Tensor  # [n, K, 3]

    def over(self, lengths: Tensor) -> _Moments:
        return _Moments(*(torch.segment_reduce(getattr(self, name), "sum", lengths=lengths, axis=0) for name in self.__dict__))


class DetailTree:
    """Gaussians with merged copies of themselves; `render_view` takes it wherever it takes Gaussians, without gradients.

    Args:
        gaussians: the splats; the tree refers to them and keeps only the merged ones besides.
        budget: splats drawn for one picture, at most.
        pixels: cells whose centres spread over less than this stay closed.
    """

    def __init__(self, gaussians: Gaussians, budget: int = 100_000, pixels: float = 0.7):
        self.gaussians, self.budget, self.pixels = gaussians, budget, pixels
        with torch.no_grad():
            self.order, self.levels = _build(gaussians)

    def parameters(self):
        return self.gaussians.parameters()

    @torch.no_grad()
    def cut(self, cameras: Cameras) -> Gaussians:
        """Return the splats to draw for one camera, merged ones and leaves.

        Starts from all cells of the top level; a level is opened where it spreads over more than `pixels`, the widest
        first as long as the budget lasts, and the leaves under a cell of the lowest level count as its children.
        """
        chosen: list[tuple[Gaussians, Tensor]] = []
        n_chosen, ids = 0, torch.arange(len(self.levels[0].spread)) if self.levels else torch.arange(len(self.gaussians))
        for level in self.levels:
            ids, z = _seen(level, ids.to(level.spread.device), cameras)
            pixels = float(cameras.Ks[0, 0, 0]) * level.spread[ids] / z
            children = level.first[ids + 1] - level.first[ids]
            opened = _widest(pixels, children, self.pixels, self.budget - n_chosen - len(ids))
            chosen.append((level.splats, ids[~opened]))
            n_chosen += int((~opened).sum())
            ids = _ranges(level.first[ids[opened]], children[opened])
        chosen.append((self.gaussians, self.order[ids]))
        return _gathered(chosen)

    def render_view(self, cameras: Cameras, **options) -> Render:
        """Draw the cut for a camera; options as `nsw.renderers.splats.render_view`."""
        from nsw.renderers import splats

        return splats.render_view(self.cut(cameras), cameras, **options)


def _z_order(means: Float[Tensor, "n 3"]) -> Int[Tensor, "n"]:
    """Return each centre's cell along the Z-order curve, bits of x, y and z in turn.

    The box in which most splats lie, |u| <= 1, is divided evenly; beyond it places go by 0.5 - 0.15 / |u|, so that cells grow
    with the distance and a far background costs few of them.
    """
    step = max(1, len(means) // 100_000)
    low, high = torch.quantile(means[::step], torch.tensor([0.02, 0.98], device=means.device), dim=0)
    u = (means - (low + high) / 2) / ((high - low) / 2).clamp_min(1e-6)
    inside = torch.where(u.abs() <= 1, 0.35 * u, u.sign() * (0.5 - 0.15 / u.abs().clamp_min(1)))
    place = ((inside + 0.5) * 2**_BITS).long().clamp(0, 2**_BITS - 1)
    return interleave(place.flip(1), _BITS)


def _build(gaussians: Gaussians) -> tuple[Tensor, list[Level]]:
    """Return the splats' order along the curve, and the levels, coarsest first."""
    code, order = _z_order(gaussians.means).sort()
    covariances = gaussians.covariances[order]
    weight = gaussians.activated_opacities[order] * _area(covariances)
    w, mu = weight.double(), gaussians.means[order].double()  # the spread is a small difference of large squares
    sums = _Moments(
        w,
        w[:, None] * mu,
        w[:, None, None] * covariances,
        w[:, None, None] * mu[:, :, None] * mu[:, None, :],
        weight[:, None, None] * gaussians.sh[order],
    )
    levels: list[Level] = []
    n = len(order)
    for shift in range(3, 3 * _BITS + 1, 3):
        cell, lengths = torch.unique_consecutive(code >> shift, return_counts=True)
        if n <= _TOP:
            break
        if len(cell) * _SHRINK > n:
            continue
        sums = sums.over(lengths)
        levels.append(_merged(gaussians, sums, lengths))
        n, code = len(cell), cell << shift
    return order, levels[::-1]


def _area(covariances: Float[Tensor, "n 3 3"]) -> Float[Tensor, "n"]:
    a = covariances
    second = a[:, 0, 0] * a[:, 1, 1] + a[:, 1, 1] * a[:, 2, 2] + a[:, 0, 0] * a[:, 2, 2]
    second = second - a[:, 0, 1] ** 2 - a[:, 1, 2] ** 2 - a[:, 0, 2] ** 2
    return (second.clamp_min(1e-30) / 3).sqrt()


def _merged(gaussians: Gaussians, sums: _Moments, lengths: Tensor) -> Level:
    """Return one level: a splat with the moments of every cell."""
    from scipy.spatial.transform import Rotation

    weight = sums.weight.clamp_min(1e-30)
    mu = sums.first / weight[:, None]
    between = sums.between / weight[:, None, None] - mu[:, :, None] * mu[:, None, :]
    covariances = sums.within / weight[:, None, None] + _WIDER * between
    variances, axes = torch.linalg.eigh(covariances)
    axes = axes * torch.linalg.det(axes).sign()[:, None, None]
    quats = torch.from_numpy(Rotation.from_matrix(axes.cpu().double().numpy()).as_quat()[:, [3, 0, 1, 2]]).to(mu)
    variances = variances.clamp_min(1e-14)
    opacity = (sums.weight / _area(covariances)).clamp(1e-6, _MOST_OPAQUE)
    colour = sums.colour / weight.float()[:, None, None]
    raw = dict(means=mu, scales=0.5 * variances.log(), quats=quats, opacities=opacity.logit(), sh0=colour[:, :1], shN=colour[:, 1:])
    first = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    spread = between.diagonal(dim1=1, dim2=2).sum(1).clamp_min(0).sqrt()
    splats = _of(gaussians, {name: value.float().contiguous() for name, value in raw.items()})
    return Level(splats, first, spread.float(), 3 * variances.sum(1).sqrt().float())


def _of(like: Gaussians, raw: dict[str, Tensor]) -> Gaussians:
    """Return Gaussians that hold these very tensors: `fill` would copy them, and there is one such model a picture."""
    model = Gaussians(like.settings)
    for name, value in raw.items():
        model.params[name] = torch.nn.Parameter(value, requires_grad=False)
    return model


def _seen(level: Level, ids: Tensor, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Return the cells of which something may fall into the picture, and their depth, at least as far as they reach."""
    pose, K = cameras.cam_from_world[0].to(level.spread), cameras.Ks[0].to(level.spread)
    reach = level.reach[ids]
    x, y, z = (level.splats.means[ids] @ pose[:3, :3].T + pose[:3, 3]).unbind(-1)
    keep = z > -reach
    for place, focal, middle, size in ((x, K[0, 0], K[0, 2], cameras.width), (y, K[1, 1], K[1, 2], cameras.height)):
        left, right = -middle / focal, (size - middle) / focal  # tangents of the angles to the picture's edges
        keep &= place - left * z > -reach * (1 + left**2).sqrt()
        keep &= right * z - place > -reach * (1 + right**2).sqrt()
    return ids[keep], torch.maximum(z, 0.3 * reach)[keep].clamp_min(1e-3)


def _widest(pixels: Tensor, children: Tensor, least: float, room: int) -> Tensor:
    """Return which cells to open: those wider than `least`, the widest first, as long as their children find room."""
    opened = pixels > least
    grown = children - 1
    if int(grown[opened].sum()) <= room:
        return opened
    order = pixels.argsort(descending=True)
    fits = grown[order].cumsum(0) <= room
    return opened & torch.zeros_like(opened).scatter(0, order, fits)


def _ranges(first: Tensor, lengths: Tensor) -> Tensor:
    """Return first[0], first[0] + 1, ... of every range, one after the other."""
    ends = lengths.cumsum(0)
    return torch.arange(int(ends[-1]) if len(ends) else 0, device=first.device) + (first - ends + lengths).repeat_interleave(
        lengths
    )


def _gathered(chosen: list[tuple[Gaussians, Tensor]]) -> Gaussians:
    """Return the chosen rows of several models as one, each row copied once."""
    like = chosen[0][0]
    n = sum(len(ids) for _, ids in chosen)
    raw = {name: value.new_empty(n, *value.shape[1:]) for name, value in like.params.items()}
    begin = 0
    for part, ids in chosen:
        for name, value in part.params.items():
            torch.index_select(value, 0, ids, out=raw[name][begin : begin + len(ids)])
        begin += len(ids)
    return _of(like, raw)

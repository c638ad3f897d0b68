"""Towards realistic example-based modeling via 3D Gaussian stitching (Gao, Yang, Gong, Han, Yang, Jin, CVPR 2025).

A part of one scene of splats, the target, is pasted onto another, the source. Where they touch, the seam shows. The target is
recoloured until it fits: splats at the boundary take the colour of their neighbours in the source, all others are driven by
boundary splats while the gradients of the original picture are kept (sampling-based cloning), and a palette of the source pulls the
tone of the whole (clustering-based tuning). Only the target's harmonics change. There is no public code: constants that the paper
does not give are marked as inferred.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nsw.errors import InputError
from nsw.models.gaussians import Gaussians
from nsw.models.neighbours import nearest
from nsw.models.sh import sh_basis


@dataclass(frozen=True)
class Boundary:
    """Target splats that touch the source, and what they should look like.

    Attributes:
        rows: their indices in the target [B].
        wanted: mean harmonics of their nearest source splats [B, K, 3].
    """

    rows: Int[Tensor, "B"]
    wanted: Float[Tensor, "B K 3"]


@dataclass(frozen=True)
class Drivers:
    """Who drives whom: for each target splat inside, the boundary splats nearest to its shaken place.

    Attributes:
        rows: indices of the driven splats in the target [M].
        driving: for each of them, indices into the boundary's rows [M, k].
    """

    rows: Int[Tensor, "M"]
    driving: Int[Tensor, "M k"]


@torch.no_grad()
def gaps(source: Gaussians, target: Gaussians, k: int = 8) -> tuple[Float[Tensor, "N"], Int[Tensor, "N k"]]:
    r"""Return how far each target splat is from the source, $\tfrac1k \sum_i \|b_i - a\| / L$, and its k nearest source splats.

    L is the diagonal of the box around both parts.
    """
    both = torch.cat([source.means, target.means])
    size = (both.amax(dim=0) - both.amin(dim=0)).norm()
    distances, ids = nearest(target.means, source.means, k)
    return distances.mean(dim=1) / size, ids


@torch.no_grad()
def find_boundary(source: Gaussians, target: Gaussians, beta: float = 0.05, tau: float = 0.5, k: int = 8) -> Boundary:
    r"""Return the target splats a that lie within beta of the source and are opaque, with the harmonics they should take.

    $$\tfrac1k \textstyle\sum_i \|b_i - a\| < \beta L, \qquad o(a) > \tau, \qquad \tilde h_a = \tfrac1k \sum_i h_{b_i}$$

    over the k nearest source splats. The paper has beta = 0.05 and tau = 0.95; k = 8 is inferred, and tau is lower here because
    short trainings leave splats less opaque.

    Raises:
        InputError: when no splat qualifies.
    """
    gap, ids = gaps(source, target, k)
    near = (gap < beta) & (target.activated_opacities > tau)
    if not bool(near.any()):
        raise InputError(
            f"No target splat is nearer to the source than {beta:.3g} sizes of the object and more opaque than {tau}: "
            "move the parts together, raise beta or lower tau."
        )
    return Boundary(near.nonzero()[:, 0], source.sh[ids[near]].mean(dim=1))


def shaken_place(x: Float[Tensor, "M 3"], distance: Float[Tensor, "M"], gamma: float = 10.0) -> Float[Tensor, "M 3"]:
    r"""Return where a splat at x asks for its drivers: phi(x) = x + sin(gamma delta x), delta x its distance to the boundary.

    The same number is added to every coordinate. With gamma = 0 the boundary's colours run into the part in streaks.
    """
    return x + torch.sin(gamma * distance)[:, None]


@torch.no_grad()
def find_drivers(target: Gaussians, boundary: Boundary, gamma: float = 10.0, k: int = 8) -> Drivers:
    """Return the k boundary splats that drive each splat inside: those nearest to its shaken place."""
    inside = torch.ones(len(target), dtype=torch.bool, device=target.means.device)
    inside[boundary.rows] = False
    rows = inside.nonzero()[:, 0]
    edge = target.means[boundary.rows]
    distance, _ = nearest(target.means[rows], edge, 1)
    _, driving = nearest(shaken_place(target.means[rows], distance[:, 0], gamma), edge, k)
    return Drivers(rows, driving)


def loss_feature(harmonics: Float[Tensor, "N K 3"], boundary: Boundary) -> Float[Tensor, ""]:
    r"""Return the mean over the boundary of $\|h_a - \tilde h_a\|^2$ (norm inferred)."""
    return (harmonics[boundary.rows] - boundary.wanted).square().sum(dim=(1, 2)).mean()


def loss_color(
    harmonics: Float[Tensor, "N K 3"],
    directions: Float[Tensor, "N 3"],
    boundary: Boundary,
    drivers: Drivers,
    weights: Float[Tensor, "N"],
) -> Float[Tensor, ""]:
    r"""Return how far splats inside are from the colour of their drivers, all seen in the splat's own direction d.

    $$\sum_a w_a\,\Big\|c_a(d) - \mathrm{sg}\big[\tfrac1k \textstyle\sum_j c_{b_j}(d)\big]\Big\|^2 \Big/ \sum_a w_a$$

    sg stops the gradient. Weights by opacity are inferred: hidden splats would otherwise outvote those that are seen.

    Args:
        directions: unit, from the camera to each target splat.
    """
    basis = sh_basis(round(harmonics.shape[1] ** 0.5) - 1, directions[drivers.rows])
    own = torch.einsum("mk,mkc->mc", basis, harmonics[drivers.rows])
    edge = harmonics[boundary.rows].detach()
    wanted = torch.einsum("mk,mkc->mc", basis, edge[drivers.driving].mean(dim=1))
    w = weights[drivers.rows]
    return (w * (own - wanted).square().sum(dim=1)).sum() / w.sum().clamp_min(1e-9)


def sobel(image: Float[Tensor, "n H W 3"]) -> Float[Tensor, "n H W 6"]:
    """Return the Sobel gradients along x and y of every channel, 1 where a step of 1 is crossed; the border repeats its pixels."""
    n, height, width, _ = image.shape
    flat = image.permute(0, 3, 1, 2).reshape(3 * n, 1, height, width)
    smooth, slope = image.new_tensor([1.0, 2, 1]) / 4, image.new_tensor([-1.0, 0, 1])
    kernels = torch.stack([smooth[:, None] * slope[None], slope[:, None] * smooth[None]])[:, None]
    out = F.conv2d(F.pad(flat, (1, 1, 1, 1), mode="replicate"), kernels)
    return out.reshape(n, 6, height, width).permute(0, 2, 3, 1)


def loss_grad(
    rendered: Float[Tensor, "1 H W 3"], original: Float[Tensor, "1 H W 6"], covered: Bool[Tensor, "1 H W"]
) -> Float[Tensor, ""]:
    r"""Return the mean over the target's pixels of $\|\nabla\hat I_T - \nabla I_T^{orig}\|^2$, all channels and both directions.

    Gradients in the picture act on what is seen; those between splats in space would act on all of them (norm inferred).
    """
    return (sobel(rendered) - original)[covered].square().sum(dim=-1).mean() if bool(covered.any()) else rendered.sum() * 0.0


@dataclass
class Palette:
    """Colours of the source by streaming clustering.

    Each batch of pixels votes: a pixel goes to its nearest centre, or opens a new one when that is further than `reach` (inferred).
    Centres are running means of their voters; one without `least` votes in a batch for `patience` batches expires.

    Attributes:
        centres: [P, 3]; three at first, as in the paper.
        votes: running number of votes [P].
        idle: batches since a centre last had enough votes [P].
        opened: bins that the last batch opened; they are the last ones.
    """

    centres: Float[Tensor, "P 3"]
    votes: Float[Tensor, "P"]
    idle: Int[Tensor, "P"]
    reach: float = 0.1
    patience: int = 20
    least: int = 1
    opened: int = 0

    @classmethod
    def start(cls, pixels: Float[Tensor, "M 3"], reach: float = 0.1) -> Palette:
        """Return three bins: the darkest, the middle and the brightest pixel."""
        order = pixels.sum(dim=1).argsort()
        three = pixels[order[[0, len(order) // 2, -1]]]
        return cls(three.clone(), torch.zeros(3), torch.zeros(3, dtype=torch.long), reach)

    @property
    def weights(self) -> Float[Tensor, "P"]:
        """Shares of the votes; they sum to 1."""
        return self.votes / self.votes.sum().clamp_min(1)

    def see(self, pixels: Float[Tensor, "M 3"]) -> Palette:
        """Take a batch of pixels in; return the palette itself."""
        self.opened = 0
        while True:  # open bins until every pixel has one within reach, the furthest pixel first
            distance, bins = torch.cdist(pixels, self.centres).min(dim=1)
            if float(distance.max()) <= self.reach:
                break
            self._append(pixels[int(distance.argmax())])
        counts = torch.bincount(bins, minlength=len(self.centres)).float()
        sums = torch.zeros_like(self.centres).index_add_(0, bins, pixels)
        total = self.votes + counts
        moved = (self.centres * self.votes[:, None] + sums) / total.clamp_min(1)[:, None]
        self.centres = torch.where(total[:, None] > 0, moved, self.centres)
        self.votes, self.idle = total, torch.where(counts >= self.least, torch.zeros_like(self.idle), self.idle + 1)
        stays = self.idle < self.patience
        self.centres, self.votes, self.idle = self.centres[stays], self.votes[stays], self.idle[stays]
        return self

    def _append(self, pixel: Float[Tensor, "3"]) -> None:
        self.centres = torch.cat([self.centres, pixel[None]])
        self.votes = F.pad(self.votes, (0, 1))
        self.idle = F.pad(self.idle, (0, 1))
        self.opened += 1


def loss_tune(image: Float[Tensor, "1 H W 3"], seen: Bool[Tensor, "1 H W"], palette: Palette) -> Float[Tensor, ""]:
    r"""Return the mean over target pixels p of $w_{i(p)} \|\hat I(p) - c_{i(p)}\|^2$, i(p) the palette's nearest colour."""
    pixels = image[seen]
    if len(pixels) == 0:
        return image.sum() * 0.0
    near = torch.cdist(pixels.detach(), palette.centres.to(pixels)).argmin(dim=1)
    weights, centres = palette.weights.to(pixels)[near], palette.centres.to(pixels)[near]
    return (weights * (pixels - centres).square().sum(dim=1)).mean()

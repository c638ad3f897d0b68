"""How far to trust a grid of voxels: what the pictures say about each number, shown where a camera sees it."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nsw.cameras import Cameras, Rays
from nsw.methods import plenoxels
from nsw.models.plenoxel_grid import PlenoxelGrid
from nsw.models.sh import sh0_from_rgb
from nsw.renderers.heat_colours import coloured
from nsw.scenes.scene import Scene


@torch.enable_grad()
def information(
    model: PlenoxelGrid, rays: Rays, near: float, generator: torch.Generator, chunk: int = 4096
) -> Float[Tensor, "K C"]:
    r"""Return how much rays say about each number of a grid: the squared gradients of their colours, summed.

    $$h_k = \sum_r \Big(\frac{\partial\hat C_r}{\partial\theta_k}\Big)^2 = \mathbb E_s\Big[\Big(\sum_r s_r
    \frac{\partial\hat C_r}{\partial\theta_k}\Big)^2\Big]$$

    with random signs s, so that one backward pass serves a chunk of rays. Its inverse is a number's variance by Laplace's method,
    all other numbers held.
    """
    total, skip = torch.zeros_like(model.values), model.empty_space()
    for i in range(0, len(rays), chunk):
        rgb = plenoxels.render(model, rays[i : i + chunk], near, skip=skip).rgb
        signs = torch.randint(2, rgb.shape, generator=generator, device=rgb.device) * 2.0 - 1
        into = model.row_gradient()
        (rgb * signs).sum().backward()
        total += into.values.square()
        into.values.zero_()
        into.touched.zero_()
    return total.detach()


@torch.no_grad()
def seen(model: PlenoxelGrid, numbers: Float[Tensor, "K"], cameras: Cameras, near: float) -> Float[Tensor, "n H W"]:
    """Return what cameras see of one number a row, as they see colour: its mean along rays by their weights, NaN in the air.

    Args:
        numbers: any; row 0 stands for all pruned voxels.
    """
    twin, low, high = copy.deepcopy(model), numbers.amin(), numbers.amax()
    twin.values[1:, 1:] = 0
    twin.values[1:, 1:4] = sh0_from_rgb((numbers[1:] - low) / (high - low).clamp_min(1e-12))[:, None]
    shot = plenoxels.render_view(twin, cameras, near, background=0.0)
    mean = shot.rgb[..., 0] / shot.alpha.clamp_min(1e-6)
    return torch.where(shot.alpha > 0.5, low + (high - low) * mean, torch.nan)


def measures(square: Float[Tensor, "K C"], said: Float[Tensor, "K C"], least: float = 1e-3) -> dict[str, Float[Tensor, "K"]]:
    r"""Return three measures of doubt a voxel, by the name of what they ask, as logarithms: the larger, the less sure.

    "little said" is 1 / h, the variance of Laplace's method for mean colour. "still pulled" is the running square v of the loss's
    gradient. "pulled for what is said" is v / h: the squared error, in colour, of the pixels that a voxel has a say in.

    Args:
        square: running mean of squared gradients, as RMSProp keeps it.
        said: `information`.
        least: added to information.
    """
    pulled, h = (x[:, 1:4].sum(1).clamp_min(1e-30) for x in (square, said + least / 3))
    return {"little said": -h.log(), "still pulled": pulled.log(), "pulled for what is said": (pulled / h).log()}


def doubt_map(model: PlenoxelGrid, doubt: Float[Tensor, "K"], cameras: Cameras, near: float) -> np.ndarray:
    """Return doubt as a camera sees it, coloured [H, W, 3]: dark is sure, yellow is not, grey is air."""
    found = seen(model, doubt, cameras, near)[0].cpu()
    there = found[found.isfinite()]
    low, high = there.quantile(torch.tensor([0.02, 0.98])).tolist() if len(there) else (0.0, 1.0)
    return coloured(found.numpy(), low, high)


@torch.no_grad()
def agreement(model: PlenoxelGrid, doubts: Mapping[str, Float[Tensor, "K"]], scene: Scene) -> dict[str, float]:
    """Return the rank correlation of each doubt and the colour error over the opaque pixels of all test views."""
    views = scene.views("test").to(model.aabb.device)
    error = (plenoxels.render_view(model, views, scene.near).rgb.cpu() - scene.pixels("test")).abs().sum(-1)
    found = {}
    for name, doubt in doubts.items():
        doubted = seen(model, doubt, views, scene.near).cpu()
        there = doubted.isfinite()
        found[name] = rank_correlation(doubted[there], error[there])
    return found


def rank_correlation(a: Float[Tensor, "N"], b: Float[Tensor, "N"]) -> float:
    """Return Spearman's rank correlation, in [-1, 1].

    >>> rank_correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 8.0, 27.0]))
    1.0
    """
    return float(torch.corrcoef(torch.stack([x.argsort().argsort().double() for x in (a, b)]))[0, 1].round(decimals=12))

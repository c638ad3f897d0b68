"""HollowNeRF (Xie et al., ICCV 2023): a constraint on a hash grid's saliency, held by a multiplier that finds its own size.

Saliency grid and gate are in `nsw.models.hollow_grid`, what is stored in the end in `nsw.methods.hollownerf_pack`. No code
was published. Written from summaries of the paper; what they leave open, and where this differs, is said at each place.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import max_pool3d, pad

from nsw.kernels.masked_adam import MaskedAdam
from nsw.methods import instant_ngp as ngp
from nsw.models.dense_grid import lattice
from nsw.models.hollow_grid import HollowGrid
from nsw.scenes.scene import Scene

LOWEST = -15.0  # logit of a saliency of 3e-7, at which the gate is shut


@dataclass(frozen=True)
class Pruning:
    """How a saliency grid is made sparse.

    Attributes:
        limit: C, mean saliency allowed. Far below the share of vertices beside a visible surface, see `shell`, it carves holes; one
            that training undercuts by itself is no limit: the price falls to 0, and what no picture misses fills again.
        rho: size of the multiplier's step, and half the weight of the squared excess.
        ceiling: largest multiplier. It adds up what was too much while nothing could be done about it, and would overshoot.
        start: share of the steps in which nothing is asked: before, no saliency is worth more than another.
        lr: of the logits.
        every, below: in how many steps rays learn once which cells the saliency has emptied, and what counts as empty.
        weight: a fixed price in place of the multiplier, the L1 penalty that the paper replaces; 0 for the multiplier.
    """

    limit: float = 0.08
    rho: float = 5e-4
    ceiling: float = 0.2
    start: float = 0.1
    lr: float = 1.0
    every: int = 8
    below: float = 0.05
    weight: float = 0.0


def mean_saliency(logits: Float[Tensor, "T T T 1"]) -> Float[Tensor, ""]:
    r"""Return $m(\mathcal G) = \lVert \mathrm{sig}(\mathcal G) \rVert_1 / T^3$, the share of the box that is in use.

    >>> mean_saliency(torch.zeros(2, 2, 2, 1)).item()
    0.5
    """
    return logits.sigmoid().mean()


def loss_constraint(mean: Float[Tensor, ""], limit: float, multiplier: float | Tensor, rho: float) -> Float[Tensor, ""]:
    r"""Return what the augmented Lagrangian adds to the picture's loss.

    $$\tfrac{\rho}{2}\,[m - C]_+^2 + \gamma\,(m - C)$$

    >>> round(loss_constraint(torch.tensor(0.5), 0.25, 0.0, 2.0).item(), 4)
    0.0625
    """
    excess = mean - limit
    return 0.5 * rho * excess.clamp_min(0.0).square() + multiplier * excess


def dual_step(
    multiplier: Float[Tensor, ""], mean: Float[Tensor, ""], limit: float, rho: float, ceiling: float = float("inf")
) -> Float[Tensor, ""]:
    r"""Return the next multiplier: it rises while there is too much saliency and falls while there is less than allowed.

    $$\gamma \leftarrow [\gamma + \rho\,(m - C)]_+$$

    >>> round(dual_step(torch.tensor(0.1), torch.tensor(0.5), 0.3, 1.0).item(), 4)
    0.3
    """
    return (multiplier + rho * (mean.detach() - limit)).clamp(0.0, ceiling)


def constraint(model: HollowGrid, pruning: Pruning, progress: float) -> Float[Tensor, ""]:
    """Return the term of a training step at a share `progress` of the steps; takes the multiplier's step too."""
    mean = mean_saliency(model.logits)
    if progress < pruning.start:
        return 0.0 * mean
    if pruning.weight:
        return pruning.weight * mean
    term = loss_constraint(mean, pruning.limit, model.multiplier.clone(), pruning.rho)
    model.multiplier.copy_(dual_step(model.multiplier, mean, pruning.limit, pruning.rho, pruning.ceiling))
    return term


@torch.no_grad()
def salient_cells(model: HollowGrid, below: float = 0.05) -> Bool[Tensor, "n n n"]:
    """Return the cells of the occupancy grid in which saliency reaches `below` somewhere.

    It is asked at the corners alone: a trilinear function is largest at a corner, and the saliency is one in each cell where
    its own vertices are corners too, that is where T - 1 divides the number of cells.
    """
    n = model.settings.n_cells
    corners = model.saliency(lattice(model.aabb, (n + 1,) * 3).reshape(-1, 3)).view(1, 1, n + 1, n + 1, n + 1)
    return max_pool3d(corners, 2, stride=1)[0, 0] >= below


def skip_empty(model: HollowGrid, pruning: Pruning, step: int, progress: float) -> None:
    """Let rays skip what the saliency has emptied, when the step is due; a cell that fills again is asked again.

    This differs from the paper, which has an occupancy grid beside the saliency: here the saliency is the occupancy grid.
    """
    if step % pruning.every == 0 and progress >= pruning.start:
        model.occupancy.binaries[0] = salient_cells(model, pruning.below)


@torch.no_grad()
def settle(model: HollowGrid) -> None:
    """Measure the table's length anew, and keep logits where a sigmoid still has a slope: saturated ones feel no price."""
    model.logits.clamp_(LOWEST, model.settings.first_logit)
    model.measure_length()


def make_optimizer(model: HollowGrid, lr: float, lr_network: float, lr_logits: float, eps: float = ngp.EPSILON) -> MaskedAdam:
    """Return the hash grid's optimiser with the saliency beside it, which is plain Adam: the constraint reaches every vertex.

    Its moments are short. The inside of a thing is lit while it still is fog; a long memory of those gradients would make all
    later steps under the price alone too small to empty it within a short run.
    """
    optimizer = ngp.make_optimizer(model, lr, lr_network, eps)
    optimizer.add_param_group(dict(params=[model.logits], lr=lr_logits, skip_zero=False, start=lr_logits, betas=(0.8, 0.8)))
    return optimizer


def shell(
    scene: Scene, aabb: Float[Tensor, "2 3"], n_vertices: int, split: str = "train"
) -> tuple[Bool[Tensor, "T T T"], Bool[Tensor, "T T T"]]:
    """Return which vertices of a saliency grid stand beside a surface that some camera sees, and which far from all of them.

    Between the two lies a ring of one cell that belongs to neither. What is far is air, the inside of things, and what no
    camera sees: nothing there has a say in any picture.
    """
    cells = pad(ngp.true_cells(scene, aabb, n_vertices - 1, split=split)[None, None].float(), (1,) * 6)
    beside = max_pool3d(cells, 2, stride=1)
    return beside[0, 0] > 0, max_pool3d(beside, 3, stride=1, padding=1)[0, 0] == 0

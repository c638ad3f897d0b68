"""TensoRF (Chen et al., ECCV 2022): what the paper adds to volume rendering, besides the factored grid.

The grid is `nsw.models.vm_grid`, its lookups are `nsw.kernels.vm_lookup` and `cp_lookup`. Rays are marched and composited as
Instant-NGP's are (`nsw.methods.instant_ngp.render`); training as one function is in `nsw.methods.tensorf_fit`. Written from the
paper and the card of its official settings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import max_pool3d

from nsw.kernels.masked_adam import MaskedAdam
from nsw.losses import loss_size, loss_tv
from nsw.methods.instant_ngp import Pixels, meets
from nsw.models.dense_grid import lattice
from nsw.models.rebuilding import rebuild
from nsw.models.vm_grid import VMGrid

EPSILON = 1e-15  # of Adam: a field that starts nearly empty has gradients which the usual 1e-8 would drown


@dataclass(frozen=True)
class Plan:
    """How a factored grid is trained; the defaults suit some hundred steps, `PAPER` has the paper's.

    Attributes:
        n_steps: optimiser steps.
        n_samples: samples in occupied cells a batch; the number of rays follows.
        n_voxels: voxels of the grid in the end; it begins with the settings' own number.
        grow_at: shares of the training at which the grid gets more voxels, by equal factors.
        mask_at: shares at which the alpha mask is renewed; the first also shrinks the box.
        lr, lr_network: learning rates of the factors, and of basis and network.
        momentum: of Adam. The gradient of a factor turns when its partners do: a run of a few hundred steps wants a shorter
            memory than the paper's.
        last_rate: factor to which both fall over the whole training; growing sets them back to their start.
        l1, l1_later: weight of the density factors' size before and after the first mask.
        tv_density, tv_colour: weights of the factors' roughness.
        threshold: weight below which a sample is left out, its gradient with it. It must lie below the weights of an untrained
            field, or nothing is ever learned: 3e-5 with the paper's shift of -10 and 128^3 voxels.
        opaque: opacity of a sample from which on a cell counts as occupied.
        random_background: whether transparent pixels get another background every time.
    """

    n_steps: int = 400
    n_samples: int = 1 << 14
    n_voxels: int = 64**3
    grow_at: tuple[float, ...] = (0.2, 0.35, 0.5)
    mask_at: tuple[float, ...] = (0.1, 0.15, 0.2, 0.28, 0.35, 0.42, 0.5, 0.6, 0.7, 0.8)
    lr: float = 0.05
    lr_network: float = 1e-2
    momentum: float = 0.9
    last_rate: float = 0.1
    l1: float = 8e-5
    l1_later: float = 4e-5
    tv_density: float = 0.0
    tv_colour: float = 0.0
    threshold: float = 1e-4
    opaque: float = 1e-2
    random_background: bool = True


PAPER = Plan(
    n_steps=30_000,
    n_samples=1 << 18,
    n_voxels=300**3,
    grow_at=(2 / 30, 3 / 30, 4 / 30, 5.5 / 30, 7 / 30),
    mask_at=(2 / 30, 4 / 30),
    lr=0.02,
    lr_network=1e-3,
    threshold=1e-6,  # the official 1e-4 leaves out colours alone
    opaque=1e-4,
    random_background=False,
)


def losses(model: VMGrid, plan: Plan, progress: float) -> dict[str, Tensor]:
    r"""Return what is added to the colour's error, weighted; terms of weight 0 are left out.

    $$\lambda_1 \textstyle\sum_m \overline{|M^m|} + \overline{|v^m|}$$  (TensoRF, eq. 9) and the factors' total variation (eq. 10),
    times 1e-2 as in the official code.
    """
    first = plan.mask_at[0] if plan.mask_at else 1.0
    terms = {
        "size": (plan.l1 if progress <= first else plan.l1_later, lambda: loss_size(model.factors.density)),
        "tv_density": (plan.tv_density, lambda: 1e-2 * loss_tv(model.factors.density)),
        "tv_colour": (plan.tv_colour, lambda: 1e-2 * loss_tv(model.factors.colour)),
    }
    return {name: weight * term() for name, (weight, term) in terms.items() if weight > 0}


def make_optimizer(model: VMGrid, lr: float = 0.02, lr_network: float = 1e-3, momentum: float = 0.9) -> MaskedAdam:
    """Return Adam with the paper's two learning rates, for factors and for basis and network, and its momentum of 0.9 or less."""
    others = [p for name, p in model.named_parameters() if not name.startswith("factors.")]
    groups = [dict(params=list(model.factors.parameters()), lr=lr), dict(params=others, lr=lr_network, skip_zero=False)]
    optimizer = MaskedAdam(groups, betas=(momentum, 0.99), eps=EPSILON)
    model.gradients_in_place = True  # this optimiser empties the gradients that the lookups add to
    for group in optimizer.param_groups:
        group["start"] = group["lr"]
    return optimizer


def set_rate(optimizer: MaskedAdam, plan: Plan, progress: float) -> None:
    """Let both learning rates fall tenfold a training, from their start again after each growth."""
    begun = max([share for share in plan.grow_at if share <= progress], default=0.0)
    for group in optimizer.param_groups:
        group["lr"] = group["start"] * plan.last_rate ** (progress - begun)


def voxels_at(plan: Plan, n_start: int, n_growths: int) -> int:
    """Return how many voxels a grid has after so many growths: equal factors from `n_start` to the plan's.

    >>> [voxels_at(Plan(n_voxels=64**3, grow_at=(0.2, 0.3, 0.4)), 16**3, n) for n in (0, 1, 3)]
    [4096, 16384, 262144]
    """
    return round(n_start * (plan.n_voxels / n_start) ** (n_growths / max(len(plan.grow_at), 1)))


@torch.no_grad()
def opaque_cells(model: VMGrid, threshold: float = 1e-4, chunk: int = 1 << 18) -> Bool[Tensor, "n n n"]:
    r"""Return which cells of the mask have, or touch one that has, $\alpha = 1 - e^{-\sigma\delta} > $ threshold at its centre.

    Where no cell has, the threshold is divided by 10 up to three times: too short a training, or too small a box, has left the
    field emptier than the paper's. If there is still none, all are returned: a mask that hides everything ends the training.
    """
    shape = tuple(model.occupancy.binaries.shape[1:])
    centres = lattice(model.aabb, shape, centres=True).reshape(-1, 3)
    density = torch.cat([model.density(part) for part in centres.split(chunk)]).view(1, 1, *shape)
    alpha = max_pool3d(-torch.expm1(-density * model.sample_length), 3, stride=1, padding=1)[0, 0]
    for bar in (threshold / 10**k for k in range(4)):
        if bool((alpha > bar).any()):
            return alpha > bar
    return torch.ones_like(alpha, dtype=torch.bool)


def box_around(cells: Bool[Tensor, "n n n"], aabb: Float[Tensor, "2 3"]) -> Float[Tensor, "2 3"]:
    """Return the box of all cells that are on, in world units."""
    index, n = cells.nonzero(), aabb.new_tensor(cells.shape)
    unit = torch.stack([index.amin(0) / n, (index.amax(0) + 1) / n])
    return aabb[0] + unit * (aabb[1] - aabb[0])


def refresh_mask(model: VMGrid, threshold: float = 1e-4) -> float:
    """Renew the alpha mask, and return the share of its cells that are on."""
    model.occupancy.binaries = opaque_cells(model, threshold)[None]
    return float(model.occupancy.binaries.float().mean())


def shrink(model: VMGrid, optimizer: MaskedAdam, threshold: float = 1e-4) -> None:
    """Crop the grid to what the alpha mask leaves, and mask what is left."""
    box = box_around(opaque_cells(model, threshold), model.aabb)
    rebuild(model, optimizer, lambda: model.shrink(box))
    refresh_mask(model, threshold)


def maintain(
    model: VMGrid, optimizer: MaskedAdam, plan: Plan, before: float, now: float, watch: Callable[[str], object] | None = None
) -> bool:
    """Do what has become due between two shares of the training, shrink, mask, grow, and set the learning rates.

    Args:
        watch: called with a few words just before and just after the grid grows.

    Returns:
        Whether anything was done.
    """
    masks, growths = ([share for share in shares if before < share <= now] for shares in (plan.mask_at, plan.grow_at))
    if plan.mask_at and plan.mask_at[0] in masks:
        shrink(model, optimizer, plan.opaque)
    elif masks:
        refresh_mask(model, plan.opaque)
    if growths:
        if watch is not None:
            watch(f"{grid_name(model)} before")
        n_voxels = voxels_at(plan, model.settings.n_voxels, plan.grow_at.index(growths[-1]) + 1)
        rebuild(model, optimizer, lambda: model.resize(n_voxels))
        if watch is not None:
            watch(f"{grid_name(model)} after")
    set_rate(optimizer, plan, now)
    return bool(masks or growths)


def grid_name(model: VMGrid) -> str:
    """Return the number of vertices along each axis in words."""
    return " x ".join(str(n) for n in model.shape)


@dataclass(frozen=True)
class SomePixels:
    """Some pixels of many: their numbers alone, because a copy of tens of millions of rays takes gigabytes."""

    pixels: Pixels
    index: Int[Tensor, "n"]

    def __len__(self) -> int:
        return len(self.index)

    def draw(self, n_rays: int, generator: torch.Generator) -> Pixels:
        """Return random ones of them, the same as a copy would give."""
        drawn = torch.randint(len(self), (n_rays,), generator=generator, device=self.index.device)
        return self.pixels.at(self.index[drawn].long())


def in_box(pixels: Pixels, model: VMGrid, chunk: int = 1 << 22) -> SomePixels:
    """Return the pixels whose rays meet the present box: a shrunken one is missed by rays that the first one met."""
    hits = torch.cat([meets(pixels.rays[i : i + chunk], model.aabb) for i in range(0, len(pixels), chunk)])
    return SomePixels(pixels, hits.nonzero()[:, 0].int())

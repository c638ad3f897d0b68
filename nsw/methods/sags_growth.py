"""When and where anchors are added and removed: growth of SAGS, after Scaffold-GS.

Ververas et al., "SAGS: Structure-Aware 3D Gaussian Splatting", ECCV 2024, as the official code does it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nsw.methods import density_control as density
from nsw.models.anchored_splats import AnchoredSplats


@dataclass(frozen=True)
class Growth:
    """When and where anchors are added and removed; the defaults are the official code's for 30,000 steps.

    Attributes:
        voxel: side of the finest cells, world units; at most one new anchor a cell.
        gradient: mean screen gradient, in half picture widths, above which a splat asks for company.
        coarse: sides of cells, in voxels, level after level; each level doubles the gradient that it asks for.
        count_from: step at which statistics begin.
        start, stop, every: anchors change at steps start < step < stop that `every` divides.
        success: share of `every` steps that an anchor must have been in view to be judged (half of it to grow).
        min_opacity: anchors whose mean opacity is less are removed.
        max_anchors: never grow beyond this; 0 is no limit.
    """

    voxel: float = 0.01
    gradient: float = 2e-4
    coarse: tuple[int, ...] = (16, 4, 1)
    count_from: int = 500
    start: int = 1500
    stop: int = 15_000
    every: int = 100
    success: float = 0.8
    min_opacity: float = 0.005
    max_anchors: int = 0

    def for_budget(self, n_steps: int, every: int, **changes) -> Growth:
        """Return the schedule shortened in proportion to n_steps of 30,000, with `changes` applied."""
        share = n_steps / 30_000
        times = {name: round(getattr(self, name) * share) for name in ("count_from", "start", "stop")}
        return replace(self, every=every, **times, **changes)

    def due(self, step: int) -> bool:
        """Say whether anchors change after this step."""
        return self.start < step < self.stop and step % self.every == 0


def new_rows(n: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Return fresh statistics of n anchors: summed gradients and pictures with a splat; summed opacity and pictures in view."""
    return {name: torch.zeros(n, device=device) for name in ("grad2d", "count", "opacity", "in_view")}


@torch.no_grad()
def accumulate(rows: dict[str, Tensor], meta: dict) -> None:
    """Add one picture to the statistics; splats come and go with the camera, so each is scattered back to its anchor."""
    seen, anchors, opacities = {}, meta["anchors"], meta["seen"].activated_opacities
    seen = {name: torch.zeros_like(opacities) for name in ("grad2d", "count")}
    density.accumulate(seen, meta)
    there = opacities > 0
    for name, values in (*seen.items(), ("opacity", opacities), ("in_view", torch.ones_like(opacities))):
        keep = there if name in seen else torch.ones_like(there)
        rows[name].index_add_(0, anchors, torch.where(keep, values, 0.0))


def free_cells(
    wanted: Float[Tensor, "M 3"], taken: Float[Tensor, "N 3"], size: float
) -> tuple[Float[Tensor, "C 3"], Int[Tensor, "M"]]:
    """Return the centres of the cells that hold wanted points and no taken one, and the cell of each wanted point, -1 for none."""
    both = torch.cat([wanted, taken]).div(size).round().long()
    cells, of = torch.unique(both, dim=0, return_inverse=True)
    free = torch.ones(len(cells), dtype=torch.bool, device=cells.device)
    free[of[len(wanted) :]] = False
    number = torch.where(free, free.cumsum(0) - 1, -1)
    return cells[free] * size, number[of[: len(wanted)]]


@torch.no_grad()
def sprouts(model: AnchoredSplats, rows: dict[str, Tensor], growth: Growth, generator: torch.Generator) -> dict[str, Tensor]:
    r"""Return the parameters of new anchors, where splats are pulled hard and no anchor stands.

    $$g > 2^i \tau \text{ and } u > 2^{-(i+1)},\quad \text{cells of } (16, 4, 1)_i\,v,\quad i = 0, 1, 2$$ (official code)

    A new anchor takes the largest features of those that asked for it, and the cell's side as its reach and size.
    """
    n, taken = len(model), model.positions
    pull = rows["grad2d"] / rows["count"].clamp_min(1)
    judged = rows["count"] > 0.5 * growth.success * growth.every
    splats, features = model.positions + model.displacements()[:n], model.features
    made = []
    for level, coarse in enumerate(growth.coarse):
        chance = torch.rand(n, generator=generator, device=generator.device).to(pull.device)
        chosen = judged & (pull >= growth.gradient * 2**level) & (chance > 0.5 ** (level + 1))
        size = coarse * growth.voxel
        places, cell = free_cells(splats[chosen], taken, size)
        lowest = features.new_full((len(places), features.shape[1]), -torch.inf)
        asked = cell >= 0
        into = cell[asked, None].expand(-1, features.shape[1])
        feature = lowest.scatter_reduce(0, into, features[chosen][asked], "amax")
        made.append((places, feature, places.new_full((len(places), 6), size).log()))
        taken = torch.cat([taken, places])
    return dict(zip(("positions", "features", "scales"), (torch.cat(parts) for parts in zip(*made, strict=True)), strict=True))


@torch.no_grad()
def doomed(rows: dict[str, Tensor], growth: Growth) -> Bool[Tensor, "N"]:
    r"""Return which anchors to remove: often in view and hardly ever opaque, $\sum o < 0.005\,n$."""
    judged = rows["in_view"] > growth.success * growth.every
    return judged & (rows["opacity"] < growth.min_opacity * rows["in_view"])


@dataclass(frozen=True)
class Regrown:
    """What one change of the anchors did."""

    added: int
    removed: int
    n: int

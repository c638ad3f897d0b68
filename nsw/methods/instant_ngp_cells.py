"""Looking at Instant-NGP's occupancy grid: kept while it learns, seen from two sides, over the truth."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nsw.models.hash_grid import HashGrid

# Of a cell that is on where no camera sees a surface, one that is off where there is one, one that is on where there is one.
KINDS = {"on, no surface seen": "#E69F00", "off, a surface": "#000000", "on, a surface": "#0072B2"}
OPACITY = 0.4  # of a cell in the pictures


class Snapshots:
    """Occupancy grids kept while training goes on; part of a loop's checkpoint, so that a resumed run shows all of them.

    Attributes:
        grids: step -> cells that are on [n, n, n] before it, in the CPU's memory.
    """

    def __init__(self) -> None:
        self.grids: dict[int, Bool[Tensor, "n n n"]] = {}

    def __len__(self) -> int:
        return len(self.grids)

    def take(self, step: int, model: HashGrid) -> None:
        """Keep the grid as it is now."""
        self.grids[step] = model.occupancy.binaries[0].to("cpu", copy=True)

    def state_dict(self) -> dict[str, Tensor]:
        return {str(step): grid for step, grid in self.grids.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.grids = {int(step): grid for step, grid in state.items()}


def overlay(found: Bool[Tensor, "X Y Z"], truth: Bool[Tensor, "X Y Z"] | None, above: bool) -> Float[Tensor, "up right 3"]:
    """Return a picture of half-transparent cells, each kind in its colour of `KINDS`, on white; from the side z is upwards.

    Args:
        truth: cells that truly hold a surface; None paints all cells that are on alike.
        above: look down; otherwise along the y axis.
    """
    truth, axis = found if truth is None else truth, 2 if above else 1
    kinds = found.long() + 2 * truth.long()
    colours = torch.tensor([[1.0, 1.0, 1.0], *([int(c[k : k + 2], 16) / 255 for k in (1, 3, 5)] for c in KINDS.values())])
    kinds = kinds.flip(2) if above else kinds  # the cells that are met first come first
    left = (1 - OPACITY * (kinds > 0)).cumprod(axis)
    weights = torch.cat([torch.ones_like(left.narrow(axis, 0, 1)), left], axis).diff(dim=axis).neg()
    rgb = (weights[..., None] * colours[kinds]).sum(axis) + left.select(axis, -1)[..., None]
    return rgb.transpose(0, 1).flip(0)

"""What a hollow field has to store: the cells that are on, and the entries and saliencies that such cells ask for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from nsw.kernels.hash_encoding import hash_rows
from nsw.methods.hollownerf import salient_cells
from nsw.methods.instant_ngp_inspect import all_vertices
from nsw.models.hash_grid import HashGrid
from nsw.models.hollow_grid import HollowGrid


@torch.no_grad()
def hollow_out(model: HollowGrid, below: float = 0.05) -> None:
    """Switch off the cells that the saliency has emptied: rays no longer ask them, and what only they read may go."""
    model.occupancy.binaries &= salient_cells(model, below)


def _touching(low: Tensor, high: Tensor, cells: Bool[Tensor, "n n n"]) -> Bool[Tensor, "V"]:
    """Return which of V boxes, corners in cells, meet a cell that is on; by sums over all cells below a corner."""
    n = len(cells)
    low, high = low.floor().long().clamp(0, n), high.ceil().long().clamp(0, n)
    sums = pad(cells.long().cumsum(0).cumsum(1).cumsum(2), (1, 0) * 3)
    count = torch.zeros(len(low), dtype=torch.long, device=cells.device)
    for corner in torch.cartesian_prod(*[torch.arange(2, device=cells.device)] * 3):
        i, j, k = torch.where(corner.bool(), high, low).unbind(-1)
        count += (-1) ** (3 - int(corner.sum())) * sums[i, j, k]
    return count > 0


def read_vertices(model: HashGrid, level: int) -> Int[Tensor, "V 3"]:
    """Return the vertices of a level that a point in a cell which is on reads."""
    cells, vertices = model.occupancy.binaries[0], all_vertices(model.levels, level).to(model.aabb.device)
    to_cells = len(cells) / model.levels.scales[level]
    return vertices[_touching((vertices - 1.5) * to_cells, (vertices + 0.5) * to_cells, cells)]


def read_rows(model: HashGrid) -> Bool[Tensor, "rows"]:
    """Return the rows of the table that some cell which is on reads; no picture depends on the others."""
    found = torch.zeros(len(model.table), dtype=torch.bool, device=model.table.device)
    for level in range(len(model.levels)):
        found[hash_rows(read_vertices(model, level), model.levels, level)] = True
    return found


def read_logits(model: HollowGrid) -> Bool[Tensor, "T T T"]:
    """Return the vertices of the saliency grid that some cell which is on reads."""
    n, cells = model.settings.n_saliency, model.occupancy.binaries[0]
    vertices = torch.cartesian_prod(*[torch.arange(n, device=cells.device)] * 3)
    to_cells = len(cells) / (n - 1)
    return _touching((vertices - 1) * to_cells, (vertices + 1) * to_cells, cells).view(n, n, n)


@dataclass(frozen=True)
class Packed:
    """What is left of a hollow grid, in the order in which the cells that are on ask for it.

    Attributes:
        cells: [n, n, n], on or off: a bit each.
        entries: [K, F] of the table; logits: [M] of the saliency grid.
        networks: everything else that was learned.
    """

    cells: Bool[Tensor, "n n n"]
    entries: Float[Tensor, "K F"]
    logits: Float[Tensor, "M"]
    networks: dict[str, Tensor]

    @property
    def n_parameters(self) -> int:
        """Numbers to store, 32 bits of cells counted as one."""
        return self.entries.numel() + len(self.logits) + sum(t.numel() for t in self.networks.values()) + self.cells.numel() // 32


@torch.no_grad()
def pack(model: HollowGrid) -> Packed:
    """Return what pictures depend on; `unpack` makes a model of it that renders the same."""
    networks = {name: value.clone() for name, value in model.state_dict().items() if "_net." in name}
    entries, logits = model.table[read_rows(model)], model.logits[read_logits(model)][:, 0]
    return Packed(model.occupancy.binaries[0].clone(), entries, logits, networks | {"length": model.length.clone()})


@torch.no_grad()
def unpack(packed: Packed, settings) -> HollowGrid:
    """Return a model of these settings with the packed values, and zeros where nothing is read: rows need no list of their own."""
    model = HollowGrid(settings).to(packed.entries.device)
    model.occupancy.binaries[0] = packed.cells
    model.table.zero_()
    model.table[read_rows(model)] = packed.entries
    model.logits.fill_(-1e4)
    model.logits[read_logits(model)] = packed.logits[:, None]
    model.load_state_dict(packed.networks, strict=False)
    return model


def n_parameters(model: HashGrid) -> int:
    """Return the numbers that were learned."""
    return sum(p.numel() for p in model.parameters())


def n_stored(model: HashGrid) -> int:
    """Return the numbers that pictures depend on, for a hash grid with or without saliency; 32 bits of cells count as one."""
    if isinstance(model, HollowGrid):
        return pack(model).n_parameters
    unread = int((~read_rows(model)).sum()) * model.settings.n_features
    return n_parameters(model) - unread + model.occupancy.binaries.numel() // 32

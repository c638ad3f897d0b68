"""What a hollow field has to store: the cells that are on, and the entries and saliencies that such cells ask for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nsw.kernels.hash_encoding import hash_rows
from nsw.methods.hollownerf import salient_cells
from nsw.models.hash_grid import HashGrid
from nsw.models.hollow_grid import HollowGrid, HollowGridSettings


@torch.no_grad()
def hollow_out(model: HollowGrid, below: float = 0.05) -> None:
    """Switch off the cells that the saliency has emptied: rays no longer ask them, and what only they read may go."""
    model.occupancy.binaries &= salient_cells(model, below)


def _around(cells: Bool[Tensor, "n n n"], scale: float, offset: float, most: int = 1 << 22) -> Iterator[Int[Tensor, "V 3"]]:
    """Yield the vertices that points in the cells which are on interpolate, some cells at a time; some come more than once.

    Args:
        scale, offset: a point at a share u of the way through the box lies at u * scale + offset among the vertices.
        most: vertices at once; the finest level of a large table has billions, of which few are ever near.
    """
    n = len(cells)
    span = int(scale / n) + 3
    steps = torch.cartesian_prod(*[torch.arange(span, device=cells.device)] * 3)
    for some in cells.nonzero().split(max(most // span**3, 1)):
        low = (some / n * scale + offset).floor().long()
        high = ((some + 1) / n * scale + offset).ceil().long()
        vertices = low[:, None] + steps
        yield vertices[(vertices <= high[:, None]).all(-1)]


def read_rows(model: HashGrid) -> Bool[Tensor, "rows"]:
    """Return the rows of the table that some cell which is on reads; no picture depends on the others."""
    found = torch.zeros(len(model.table), dtype=torch.bool, device=model.table.device)
    first = model.levels.first_rows
    for level, scale in enumerate(model.levels.scales):
        own = found[first[level] : first[level + 1]]
        for vertices in _around(model.occupancy.binaries[0], scale, 0.5):  # the half is the encoding's own
            found[hash_rows(vertices, model.levels, level)] = True
            if bool(own.all()):  # where all cells are on, the first of thousands of parts have read everything
                break
    return found


def read_logits(model: HollowGrid) -> Bool[Tensor, "T T T"]:
    """Return the vertices of the saliency grid that some cell which is on reads."""
    last = model.settings.n_saliency - 1
    found = torch.zeros((last + 1,) * 3, dtype=torch.bool, device=model.logits.device)
    for vertices in _around(model.occupancy.binaries[0], float(last), 0.0):
        i, j, k = vertices.clamp(max=last).unbind(-1)
        found[i, j, k] = True
    return found


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
def unpack(packed: Packed, settings: HollowGridSettings) -> HollowGrid:
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


def count_rows(large: HashGrid, model: HollowGrid, packed: Packed, scores: Mapping[str, float]) -> list[dict[str, object]]:
    """Return a row for a hash grid, a hollow grid and what is packed of it: the name in `scores`, numbers, and PSNR in dB."""
    numbers = (n_parameters(large), n_parameters(model), packed.n_parameters)
    return [{"field": name, "numbers": n, "PSNR (dB)": db} for (name, db), n in zip(scores.items(), numbers, strict=True)]

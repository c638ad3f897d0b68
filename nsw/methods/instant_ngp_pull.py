"""Who pulls at a hash table's entries: the vertices that training pixels reach, and all that share one entry with them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nsw.kernels.hash_encoding import HashLevels, hash_rows


def sharing(levels: HashLevels, level: int, row: int) -> Int[Tensor, "n 3"]:
    """Return all vertices of a level that read and write one row of the table, in ascending order.

    A fine level has billions of vertices. Their first index enters the hash as it is, so each (j, k) leaves one remainder for i.
    """
    n, first, end = levels.n_vertices[level], levels.first_rows[level], levels.first_rows[level + 1]
    vertices = torch.cartesian_prod(torch.arange(1), torch.arange(n), torch.arange(n))
    if not levels.hashed[level]:
        place = row - first
        return torch.tensor([[place // n**2, place // n % n, place % n]])
    remainder = (hash_rows(vertices, levels, level) - first) ^ (row - first)
    found = []
    for i in range(0, n, end - first):
        fits = remainder + i < n
        found.append(torch.stack([remainder[fits] + i, *vertices[fits, 1:].T], dim=1))
    found = torch.cat(found)
    return found[((found[:, 0] * n + found[:, 1]) * n + found[:, 2]).argsort()]


@dataclass(frozen=True)
class Pull:
    """How strongly vertices of one level were pulled by training pixels; in the CPU's memory.

    Attributes:
        level: which one.
        vertices: [V, 3] those that were pulled at all, in ascending order; a fine level has billions of others.
        rows: [V] row of each.
        mass: [V] sum over samples of trilinear weight times the gradient's length at the sample, above 0.
    """

    level: int
    vertices: Int[Tensor, "V 3"]
    rows: Int[Tensor, "V"]
    mass: Float[Tensor, "V"]

    @property
    def colliding(self) -> float:
        """Share of the pulled vertices whose entry another one pulls at too."""
        _, inverse, count = self.rows.unique(return_inverse=True, return_counts=True)
        return float((count[inverse] > 1).float().mean()) if len(self.rows) else 0.0

    @property
    def strongest(self) -> float:
        """Share of the gradient that the strongest vertex of each shared entry holds, weighted by gradient."""
        _, inverse, count = self.rows.unique(return_inverse=True, return_counts=True)
        largest = torch.zeros(len(count)).scatter_reduce(0, inverse, self.mass, "amax")
        total = torch.zeros(len(count)).scatter_add(0, inverse, self.mass)
        shared = count > 1
        return float(largest[shared].sum() / total[shared].sum()) if bool(shared.any()) else 1.0

    def shared_row(self, rank: int = 0) -> int:
        """Return the row at which several vertices pull and which is pulled most in all; rank 1 is the next, and so on.

        Rows at which one vertex pulls come last: of a level that is stored there are no others.
        """
        rows, inverse, count = self.rows.unique(return_inverse=True, return_counts=True)
        totals = torch.zeros(len(rows)).scatter_add(0, inverse, self.mass)
        alone_last = torch.where(count > 1, totals + totals.sum(), totals)
        return int(rows[alone_last.argsort(descending=True)[min(rank, len(rows) - 1)]])

    def hashed_into(self, levels: HashLevels) -> Pull:
        """Return the same pull on the same vertices, sent to the rows of another table."""
        return replace(self, rows=hash_rows(self.vertices, levels, self.level))


def pull_of(levels: HashLevels, level: int, points_unit: Float[Tensor, "K 3"], length: Float[Tensor, "K"]) -> Pull:
    """Return the pull of gradients of the given lengths at points of the unit cube."""
    position, n = points_unit * levels.scales[level] + 0.5, levels.n_vertices[level]
    cell = position.floor()
    corners = torch.cartesian_prod(*[torch.arange(2, device=cell.device)] * 3)
    weights = torch.stack([torch.where(c.bool(), position - cell, 1 - (position - cell)).prod(-1) for c in corners])
    i, j, k = (cell.long() + corners[:, None]).unbind(-1)
    places, inverse = ((i * n + j) * n + k).flatten().unique(return_inverse=True)
    mass = length.new_zeros(len(places)).index_add_(0, inverse, (weights * length).flatten())
    places, mass = places[mass > 0].cpu(), mass[mass > 0].cpu()
    vertices = torch.stack([places // n**2, places // n % n, places % n], dim=1)
    return Pull(level, vertices, hash_rows(vertices, levels, level), mass)

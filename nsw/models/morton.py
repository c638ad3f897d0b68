"""Morton's order (Z-order): one number for a cell of a lattice, so that near cells get near numbers."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor


def interleave(cells: Int[Tensor, "N 3"], bits: int) -> Int[Tensor, "N"]:
    """Return Morton's number of each cell: its `bits` lowest bits of x, y and z in turn, x the highest of the three.

    Args:
        bits: of an axis, at most 21.

    >>> interleave(torch.tensor([[1, 0, 0], [0, 1, 0], [3, 3, 3]]), 2).tolist()
    [4, 2, 63]
    """
    code = torch.zeros_like(cells[:, 0])
    for place in range(bits):
        for axis in range(3):
            code |= ((cells[:, axis] >> place) & 1) << (3 * place + 2 - axis)
    return code


def separate(code: Int[Tensor, "N"], bits: int) -> Int[Tensor, "N 3"]:
    """Undo `interleave`.

    >>> separate(torch.tensor([4, 2, 63]), 2).tolist()
    [[1, 0, 0], [0, 1, 0], [3, 3, 3]]
    """
    cells = code.new_zeros(len(code), 3)
    for place in range(bits):
        for axis in range(3):
            cells[:, axis] |= ((code >> (3 * place + 2 - axis)) & 1) << place
    return cells

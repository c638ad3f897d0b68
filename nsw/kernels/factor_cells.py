"""What the lookups of factored grids share: the place of a point between two vertices of an axis, and how work is cut up."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from nsw.errors import InputError
from nsw.kernels.compiling import helper
from nsw.kernels.threads import n_threads

BLOCK = 512  # points that one thread takes at a time
ZERO, ONE = np.float32(0.0), np.float32(1.0)


@helper
def place(x, lower, scale, n):
    """Return the lower of two vertices along an axis and the position between them in [0, 1]; a broken number goes to 0."""
    along = (x - lower) * scale
    along = along if along > ZERO else ZERO
    last = np.float32(n - 1)
    along = along if along < last else last
    first = min(np.int64(along), n - 2)
    return first, along - np.float32(first)


@helper
def within(x, lower, scale, n):
    """Return whether moving a point along an axis changes what it reads: outside of the box the border's value holds."""
    along = (x - lower) * scale
    return along >= ZERO and along <= np.float32(n - 1)


def affine(aabb: Tensor, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the box's lower corner, vertices' distances a world unit, and vertices along each axis, as kernels take them."""
    lower, upper = aabb.detach().double().numpy()
    n = np.array(shape, np.int64)
    return lower.astype(np.float32), ((n - 1) / (upper - lower)).astype(np.float32), n


def channels_of(rank: int) -> tuple[int, ...]:
    """Return a tuple as long as the vectors that kernels work with: the largest power of two up to 16 that divides the rank.

    Its type tells the compiler how wide a vector is, so a kernel is compiled once for each width and not for each rank.

    >>> len(channels_of(24)), len(channels_of(48)), len(channels_of(3))
    (8, 16, 1)
    """
    return (0,) * math.gcd(rank, 16)


def flat(tensor: Tensor) -> np.ndarray:
    """Return a tensor's memory as one row of numbers."""
    return tensor.detach().contiguous().numpy().reshape(-1)


def shares(n_points: int) -> int:
    """Return into how many pieces points are worth cutting."""
    return n_threads() if n_points >= 2 * BLOCK else 1


def runs_compiled(*tensors: Tensor) -> bool:
    """Return whether float32 kernels of the CPU may take these."""
    return all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)


def gradients_for(factors: tuple[Tensor, ...], wanted: tuple[bool, ...], into: tuple[Tensor, ...] | None):
    """Return where kernels add the gradients of factors, and what autograd is handed: nothing where `into` takes them."""
    if into is not None:
        return into, (None,) * len(factors)
    made = tuple(torch.zeros(f.shape) for f in factors)
    return made, tuple(g if w else None for g, w in zip(made, wanted, strict=True))


def check_factors(shape: tuple[int, int, int], rank: int, factors: tuple[Tensor, ...], expected: tuple[tuple[int, ...], ...]):
    """Refuse factors that do not belong to one grid, or to a grid of less than a cell.

    Raises:
        InputError: saying which sizes were found.
    """
    if min(shape) < 2 or rank < 1 or tuple(tuple(f.shape) for f in factors) != expected:
        found = ", ".join(str(list(f.shape)) for f in factors)
        raise InputError(f"These factors make no grid of at least 2 vertices along each axis and one rank: {found}.")

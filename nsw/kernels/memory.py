"""Arrays for the kernels, out of memory that is used again and again.

A fresh array of some megabytes costs about as much as filling it: the system hands it out in pages, each cleared first, and takes
them back when the array dies. Here the memory of an array that nobody refers to any more is kept for the next array of its size.
These arrays begin with a cache line: numpy's own begin anywhere, and vectors would straddle two lines.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque

import numpy as np

LINE = 64
LEAST = 1 << 14  # bytes; smaller arrays are numpy's own, whose memory the C library keeps for itself
MOST = 1 << 28  # bytes kept in all; beyond, the oldest pieces go back to the system

_guard = threading.Lock()
Block = tuple[np.ndarray, int]  # bytes, and the address of the first one that begins a cache line: numpy takes long to tell it
_kept: list[Block] = []
_returned: deque[Block] = deque()  # appended to by whichever thread drops an array, at any moment: hence no lock


def _new_guard() -> None:
    """A child may be forked while another thread holds the lock."""
    global _guard
    _guard = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_guard)


class _Loan:
    """What an array lies on; numpy keeps it as long as the array or any view of it, and its end gives the memory back."""

    __slots__ = ("__array_interface__", "block")

    def __init__(self, block: Block, shape: tuple[int, ...], typestr: str):
        self.block = block
        self.__array_interface__ = {"version": 3, "shape": shape, "typestr": typestr, "data": (block[1], False)}

    def __del__(self, give_back=_returned.append):
        give_back(self.block)


def _block(n_bytes: int) -> Block:
    """A kept piece of about this size, or a new one with room to grow: the number of splats changes from step to step."""
    with _guard:
        while _returned:
            _kept.append(_returned.popleft())
        for place in range(len(_kept) - 1, -1, -1):
            if n_bytes <= len(_kept[place][0]) <= 2 * n_bytes:
                return _kept.pop(place)
        while _kept and sum(len(block) for block, _ in _kept) > MOST:
            _kept.pop(0)
    block = np.empty(n_bytes + n_bytes // 8, np.uint8)
    return block, block.ctypes.data + -block.ctypes.data % LINE


def empty(shape: int | tuple[int, ...], dtype=np.float32) -> np.ndarray:
    """Return an array of any content; the memory of a large one is used again after its end.

    >>> array = empty((3000, 2))
    >>> array.shape, array.dtype.name, array.ctypes.data % 64
    ((3000, 2), 'float32', 0)
    """
    n = shape if isinstance(shape, int) else math.prod(shape)
    if n < LEAST >> 3:  # whatever the type, at most eight bytes each
        return np.empty(shape, dtype)
    shape, dtype = (shape,) if isinstance(shape, int) else shape, np.dtype(dtype)
    n_bytes = n * dtype.itemsize
    return np.empty(shape, dtype) if n_bytes < LEAST else np.asarray(_Loan(_block(n_bytes + LINE), shape, dtype.str))


def zeros(shape: int | tuple[int, ...], dtype=np.float32) -> np.ndarray:
    """Return an array of zeros, made like `empty`."""
    array = empty(shape, dtype)
    array.fill(0)
    return array

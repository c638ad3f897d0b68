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
_kept: list[np.ndarray] = []
_returned: deque[np.ndarray] = deque()  # appended to by whichever thread drops an array, at any moment: hence no lock


def _new_guard() -> None:
    """A child may be forked while another thread holds the lock."""
    global _guard
    _guard = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_guard)


class _Loan:
    """What an array lies on; numpy keeps it as long as the array or any view of it, and its end gives the memory back."""

    __slots__ = ("__array_interface__", "block")

    def __init__(self, block: np.ndarray, shape: tuple[int, ...], dtype: np.dtype):
        start = block.ctypes.data
        self.block = block
        where = (start + -start % LINE, False)
        self.__array_interface__ = {"version": 3, "shape": shape, "typestr": dtype.str, "data": where}

    def __del__(self, give_back=_returned.append):
        give_back(self.block)


def _block(n_bytes: int) -> np.ndarray:
    """A kept piece of about this size, or a new one with room to grow: the number of splats changes from step to step."""
    with _guard:
        while _returned:
            _kept.append(_returned.popleft())
        fitting = (i for i in range(len(_kept) - 1, -1, -1) if n_bytes <= len(_kept[i]) <= 2 * n_bytes)
        place = next(fitting, None)
        if place is not None:
            return _kept.pop(place)
        while _kept and sum(map(len, _kept)) > MOST:
            _kept.pop(0)
    return np.empty(n_bytes + n_bytes // 8, np.uint8)


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
    return np.empty(shape, dtype) if n_bytes < LEAST else np.asarray(_Loan(_block(n_bytes + LINE), shape, dtype))


def zeros(shape: int | tuple[int, ...], dtype=np.float32) -> np.ndarray:
    """Return an array of zeros, made like `empty`."""
    array = empty(shape, dtype)
    array.fill(0)
    return array

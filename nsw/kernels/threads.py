"""Run one compiled kernel on all cores: n calls that differ in their share of the work, on a pool of plain threads.

Kernels let go of Python's lock, so threads are enough. numba has parallel loops of its own; they take about as long to compile as
the rest of a kernel, and on some systems they break when two Python threads, such as a viewer and a training loop, start one at
once.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import torch

_guard = threading.Lock()
_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    """A forked child inherits the pool object but none of its threads."""
    global _pool, _guard
    _pool, _guard = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def n_threads() -> int:
    """How many threads a kernel may use: torch's own setting, `torch.set_num_threads`."""
    return torch.get_num_threads()


def _shared_pool(size: int) -> ThreadPoolExecutor:
    global _pool
    with _guard:
        if _pool is None or _pool._max_workers < size:
            _pool = ThreadPoolExecutor(max_workers=size, thread_name_prefix="nsw-kernels")
        return _pool


def run_shares(kernel, n_shares: int, *arguments) -> None:
    """Call `kernel(*arguments, share, n_shares)` for every share; the calling thread does share 0 itself.

    >>> done = []
    >>> run_shares(lambda share, n_shares: done.append((share, n_shares)), 2)
    >>> sorted(done)
    [(0, 2), (1, 2)]
    """
    if n_shares <= 1:
        kernel(*arguments, 0, 1)
        return
    pool = _shared_pool(n_shares - 1)
    others = [pool.submit(kernel, *arguments, share, n_shares) for share in range(1, n_shares)]
    try:
        kernel(*arguments, 0, n_shares)
    finally:
        for other in others:
            other.result()

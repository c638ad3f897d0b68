"""Run one compiled kernel on all cores, on plain threads that wait between calls.

Kernels let go of Python's lock, so threads are enough. With `run_shared`, a kernel is called once in every thread and takes pieces
of its work from a counter until none are left: a thread that wakes up late, or whose core is busy elsewhere, takes fewer, and one
that has not woken up when the work is done is called off.

numba has parallel loops of its own; they take about as long to compile as the rest of a kernel, and on some systems they break when
two Python threads, such as a viewer and a training loop, start one at once.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from queue import SimpleQueue
from typing import TypeVar

import numpy as np
import torch

T, Key = TypeVar("T"), TypeVar("Key")
Going = Callable[[Iterable[int]], Iterator[int]]

_guard = threading.Lock()
_calls: SimpleQueue = SimpleQueue()
_n_workers = 0


def _forget_workers() -> None:
    """A forked child inherits the queue but none of the threads, of ours and of torch's: GNU's OpenMP would wait for those forever.

    Hence one thread, as in the workers of torch's own loaders.
    """
    global _calls, _n_workers, _guard
    _calls, _n_workers, _guard = SimpleQueue(), 0, threading.Lock()
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_workers)


def n_threads() -> int:
    """How many threads a kernel may use: torch's own setting, `torch.set_num_threads`."""
    return torch.get_num_threads()


class _Call:
    """One invitation to help: begun by whoever gets hold of `claim`, a worker, or the caller who takes it back."""

    __slots__ = ("arguments", "claim", "done", "error", "kernel")

    def __init__(self, kernel, arguments):
        self.kernel, self.arguments, self.error = kernel, arguments, None
        self.claim, self.done = threading.Lock(), threading.Lock()
        self.done.acquire()


def _work(calls: SimpleQueue) -> None:
    while True:
        call = calls.get()
        if not call.claim.acquire(blocking=False):
            continue
        try:
            call.kernel(*call.arguments)
        except BaseException as error:  # handed to the thread that waits for it
            call.error = error
        call.kernel = call.arguments = None
        call.done.release()


def _ensure_workers(n: int) -> SimpleQueue:
    global _n_workers
    if _n_workers < n:
        with _guard:
            while _n_workers < n:
                threading.Thread(target=_work, args=(_calls,), name=f"nsw-kernels-{_n_workers}", daemon=True).start()
                _n_workers += 1
    return _calls


def _invite(calls: list[_Call]) -> None:
    queue = _ensure_workers(len(calls))
    for call in calls:
        queue.put(call)


def _finish(calls: list[_Call], do_the_rest: bool) -> None:
    """Wait for the calls that a worker has begun; the others are done here, or called off."""
    for call in calls:
        if not call.claim.acquire(blocking=False):
            call.done.acquire()
        elif do_the_rest:
            call.kernel(*call.arguments)
    for call in calls:
        if call.error is not None:
            raise call.error


def run_shared(kernel, threads: int, *arguments) -> None:
    """Call `kernel(counter, *arguments)` in up to so many threads, this one included; `counter` is a fresh int64 [1] of 0.

    >>> done = []
    >>> run_shared(lambda counter, word: done.append(word), 1, "once")
    >>> done
    ['once']
    """
    counter = np.zeros(1, np.int64)
    if threads <= 1:
        kernel(counter, *arguments)
        return
    calls = [_Call(kernel, (counter, *arguments)) for _ in range(threads - 1)]
    _invite(calls)
    try:
        kernel(counter, *arguments)
    finally:
        _finish(calls, do_the_rest=False)


def run_shares(kernel, n_shares: int, *arguments) -> None:
    """Call `kernel(*arguments, share, n_shares)` for every share; this thread does share 0, and those that no other has begun.

    >>> done = []
    >>> run_shares(lambda share, n_shares: done.append((share, n_shares)), 2)
    >>> sorted(done)
    [(0, 2), (1, 2)]
    """
    if n_shares <= 1:
        kernel(*arguments, 0, 1)
        return
    calls = [_Call(kernel, (*arguments, share, n_shares)) for share in range(1, n_shares)]
    _invite(calls)
    try:
        kernel(*arguments, 0, n_shares)
    finally:
        _finish(calls, do_the_rest=True)


class CalledOff(Exception):
    """Raised inside of work that nobody waits for any more; let it pass."""


def side_by_side(jobs: Mapping[Key, Callable[[Going], T]], threads: int) -> Iterator[tuple[Key, T]]:
    """Call functions that do not depend on each other, so many at once; yield name and result in the order of the names.

    For trainings of many small steps: a second core hardly helps one of them, a second training it helps a lot. Torch has one core
    in each; with 1 for `threads` it has all. What draws from generators of its own, and sums in an order that does not hang on the
    number of threads, ends the same in any company. An error of one, Ctrl-C, or a caller that stops asking ends all at their next
    step.

    Args:
        jobs: each gets a function through which it goes through its steps, `for step in going(range(n))`.

    >>> list(side_by_side({"sum": lambda going: sum(going(range(3))), "most": lambda going: max(going(range(9)))}, 2))
    [('sum', 3), ('most', 8)]
    """
    if threads <= 1 or len(jobs) <= 1:
        for name, job in jobs.items():
            yield name, job(iter)
        return
    n, stop = n_threads(), threading.Event()

    def going(steps: Iterable[int]) -> Iterator[int]:
        for step in steps:
            if stop.is_set():
                raise CalledOff
            yield step

    pool = ThreadPoolExecutor(threads, "nsw-side-by-side", torch.set_num_threads, (1,))
    try:
        futures = {name: pool.submit(job, going) for name, job in jobs.items()}
        for name, future in futures.items():
            while not future.done():  # in short waits: on Windows Ctrl-C does not end a long one
                done, _ = wait(futures.values(), timeout=0.2, return_when=FIRST_EXCEPTION)
                if failed := next((error for other in done if (error := other.exception())), None):
                    raise failed
            yield name, future.result()
    finally:
        stop.set()
        try:
            pool.shutdown(cancel_futures=True)
        finally:
            torch.set_num_threads(n)  # part of that setting is all threads'

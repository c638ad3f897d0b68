"""Seeds, seconds and memory of this process."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass
class Timer:
    """What `Run.timed` yields; `seconds` is final once its block has ended."""

    name: str
    seconds: float = 0.0


def numbers(values: Iterable[Tensor | float]) -> list[float]:
    """Return values as numbers; those on a GPU are fetched together, because each time it is waited for.

    >>> numbers([torch.tensor(0.5), 2])
    [0.5, 2.0]
    """
    values = [value.detach() if isinstance(value, Tensor) else value for value in values]
    there = [value.reshape(()).double() for value in values if isinstance(value, Tensor) and value.is_cuda]
    fetched = iter(torch.stack(there).tolist() if there else [])
    return [next(fetched) if isinstance(value, Tensor) and value.is_cuda else float(value) for value in values]


def peak_memory_mb() -> float:
    """Return the most memory this process has held so far, in MB (2^20 bytes)."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**20
    if sys.platform.startswith("linux"):  # what getrusage says of a new process may be the peak of the one that started it
        with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 2**10
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def forget_peak() -> None:
    """Let `peak_memory_mb` begin anew, with what this process holds now; only Linux can."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as refs:
        refs.write("5")


def seed_everything(seed: int, device: torch.device) -> torch.Generator:
    """Seed torch, numpy and Python, ask for repeatable CPU operations, and return a seeded generator on `device`."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    # On the CPU accumulating index_put_ adds in parallel, in any order, unless asked not to. On CUDA the same switch would
    # warn about, and slow down, operations that have no repeatable form. torch.use_deterministic_algorithms says the same and
    # loads torch's compiler for it, which takes longer than anything else at the start of a run.
    torch.set_deterministic_debug_mode("warn" if device.type == "cpu" else "default")
    torch.utils.deterministic.fill_uninitialized_memory = False
    return torch.Generator(device).manual_seed(seed)

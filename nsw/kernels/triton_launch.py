"""Where Triton's kernels run, and how they are started. Triton comes with torch's CUDA builds for Linux; nothing else needs it."""

from __future__ import annotations

import functools
import warnings

import torch
from torch import Tensor

from nsw import metrics

_started: set[tuple] = set()


def serves(first: Tensor, *others: Tensor) -> bool:
    """Return whether these are float32 tensors of one GPU on which Triton's kernels run."""
    alike = first.is_cuda and all(t.dtype == torch.float32 and t.device == first.device for t in (first, *others))
    return alike and runs_triton()


@functools.cache
def runs_triton() -> bool:
    """Return whether Triton's kernels run on this machine's GPU: tried once, as they want a C compiler and Python's headers."""
    try:
        with metrics.left_out():
            from nsw.kernels.adam_triton import step

            step(*torch.ones(4, 1024, device="cuda"), None, 0.1, 0.9, 0.99, 1.0, 1e-8, True)
    except ImportError:  # torch for Windows comes without it
        return False
    except Exception as error:
        warnings.warn(f"Triton does not run here ({error}): hash grids and Adam train several times slower.", stacklevel=2)
        return False
    return True


def launch(kernel, grid: tuple[int, ...], on: Tensor, *args, **constants) -> None:
    """Start a kernel on the device of `on`; compiling it, once for its constants, is left out of the clocks."""
    key = (kernel, *constants.values())
    with torch.cuda.device_of(on):
        if key in _started:
            kernel[grid](on, *args, **constants)
            return
        with metrics.left_out():
            kernel[grid](on, *args, **constants)
        _started.add(key)

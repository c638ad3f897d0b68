"""NSW, the Neural Scene Workbench: models, renderers, scenes and widgets behind the notebooks.

`import nsw` stays light: submodules load on first use.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from nsw.errors import InputError

if TYPE_CHECKING:
    import torch

# Threads of torch that wait spin for up to seconds by default: on a busy machine they then wait for each other, and a step
# that takes 40 ms takes 800. GNU's OpenMP reads this when torch is loaded, here and in the kernels that are started from here.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

T = TypeVar("T")

__version__ = "0.1.0"
__all__ = ["InputError", "device", "start", "track"]

_SUBMODULES = frozenset(
    {"cameras", "errors", "export", "kernels", "losses", "methods", "metrics", "models", "renderers", "runs", "scenes", "widgets"}
)


def device(name: str = "auto") -> torch.device:
    """Return the device that a run uses: CUDA when it is present and asked for, else the CPU.

    Args:
        name: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        InputError: for an unknown name, or for CUDA on a machine without it.

    >>> import nsw
    >>> nsw.device("cpu")
    device(type='cpu')
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not (kind == "cuda" and index.isdigit())):
        raise InputError(f'Unknown device "{name}": expected "auto", "cpu", "cuda" or "cuda:N".')
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f'Device "{name}" was asked for, but torch finds no CUDA GPU here: use "auto" or "cpu", or see `nsw doctor`.'
        )
    return torch.device(name)


def start(slug: str, **settings):
    """Begin a run of a notebook; see `nsw.runs.run.start` for the arguments."""
    from nsw.runs.run import start as start_run

    return start_run(slug, **settings)


def track(items: Iterable[T], name: str, total: int | None = None) -> Iterator[T]:
    """Yield items with a bar and the time left; see `nsw.runs.progress.track`."""
    from nsw.runs.progress import track as track_items

    return track_items(items, name, total)


def __getattr__(name: str):
    if name in _SUBMODULES:
        return importlib.import_module(f"nsw.{name}")
    raise AttributeError(f"module 'nsw' has no attribute '{name}'")

"""Which code does each step of a rasterization: the compiled kernels where they apply, plain torch elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch

from nsw.kernels import engine_reference as reference
from nsw.kernels.projection_reference import View


@dataclass(frozen=True)
class Engine:
    """The three steps between splats and pictures, as functions on rows of (camera, splat) pairs."""

    project: Callable
    shade: Callable
    composite: Callable


_FORCED: ContextVar[str] = ContextVar("nsw_kernels_engine", default="auto")


@contextmanager
def forced(name: str):
    """Use the "reference" engine inside the block, or "auto" choice; the tests and the benchmarks compare the two this way."""
    token = _FORCED.set(name)
    try:
        yield
    finally:
        _FORCED.reset(token)


def choose(splats, view: View, tile_size: int) -> Engine:
    """Pick the fast engine for float32 tensors on the CPU, step by step; `NSW_KERNELS=reference` turns it off."""
    plain = Engine(reference.project, reference.shade, reference.composite)
    if "reference" in (_FORCED.get(), os.environ.get("NSW_KERNELS", "")):
        return plain
    tensors = [t for t in splats if t is not None]
    if any(t.dtype != torch.float32 or t.device.type != "cpu" for t in tensors):
        return plain
    try:
        from nsw.kernels import engine_fast as fast
    except ImportError:
        return plain
    has_covars = splats[3] is not None
    return Engine(
        reference.project if has_covars or view.camera_model != "pinhole" else fast.project,
        fast.shade,
        fast.composite if tile_size == fast.TILE else reference.composite,
    )

"""Models: everything that has parameters. `nsw.models.save` and `load` move them to disk and back."""

from __future__ import annotations

import importlib

__all__ = ["load", "save"]

_SUBMODULES = frozenset({"dense_grid", "encodings", "field", "gaussians", "io", "mlp", "sh", "state"})


def __getattr__(name: str):
    if name in __all__:
        return getattr(importlib.import_module("nsw.models.io"), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"nsw.models.{name}")
    raise AttributeError(f"module 'nsw.models' has no attribute '{name}'")

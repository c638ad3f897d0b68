"""CPU twins of gsplat's and nerfacc's CUDA calls: same names, same arguments, same returns. Nothing loads before it is used."""

from __future__ import annotations

import importlib

# No module bears the name of a call it holds: importing `nsw.kernels.x` would hide the function `x` behind the module.
_HOMES = {
    "rasterization": "nsw.kernels.splatting",
    "rasterization_reference": "nsw.kernels.splatting",
    "spherical_harmonics": "nsw.kernels.harmonics",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'nsw.kernels' has no attribute '{name}'")

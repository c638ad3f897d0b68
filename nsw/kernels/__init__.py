"""CPU twins of gsplat's and nerfacc's CUDA calls: same names, same arguments, same returns. Nothing loads before it is used."""

from __future__ import annotations

import importlib

# No module bears the name of a call it holds: importing `nsw.kernels.x` would hide the function `x` behind the module.
_HOMES = {
    "rasterization": "nsw.kernels.splatting",
    "rasterization_reference": "nsw.kernels.splatting",
    "spherical_harmonics": "nsw.kernels.harmonics",
    "pack_info": "nsw.kernels.packed",
    "inclusive_sum": "nsw.kernels.packed",
    "exclusive_sum": "nsw.kernels.packed",
    "inclusive_prod": "nsw.kernels.packed",
    "exclusive_prod": "nsw.kernels.packed",
    "render_transmittance_from_density": "nsw.kernels.volume",
    "render_transmittance_from_alpha": "nsw.kernels.volume",
    "render_weight_from_density": "nsw.kernels.volume",
    "render_weight_from_alpha": "nsw.kernels.volume",
    "render_visibility_from_density": "nsw.kernels.volume",
    "render_visibility_from_alpha": "nsw.kernels.volume",
    "accumulate_along_rays": "nsw.kernels.volume",
    "rendering": "nsw.kernels.volume",
    "OccGridEstimator": "nsw.kernels.occupancy",
    "ray_aabb_intersect": "nsw.kernels.occupancy",
    "RayIntervals": "nsw.kernels.sampling",
    "RaySamples": "nsw.kernels.sampling",
    "importance_sampling": "nsw.kernels.sampling",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'nsw.kernels' has no attribute '{name}'")

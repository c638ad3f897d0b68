"""CPU twins of gsplat's and nerfacc's CUDA calls: same names, same arguments, same returns. Nothing loads before it is used.

What they answer where numbers are too large for float32 is said once, in `nsw.kernels.saturation`.
"""

from __future__ import annotations

import importlib

# No module bears the name of a call it holds: importing `nsw.kernels.x` would hide the function `x` behind the module.
_HOMES = {
    "rasterization": "nsw.kernels.splatting",
    "rasterization_reference": "nsw.kernels.splatting",
    "spherical_harmonics": "nsw.kernels.harmonics",
    "fully_fused_projection": "nsw.kernels.projecting",
    "world_to_cam": "nsw.kernels.projecting",
    "proj": "nsw.kernels.projecting",
    "quat_scale_to_covar_preci": "nsw.kernels.covariances",
    "isect_tiles": "nsw.kernels.tile_lists",
    "isect_offset_encode": "nsw.kernels.tile_lists",
    "rasterize_to_pixels": "nsw.kernels.pixel_lists",
    "rasterize_to_indices_in_range": "nsw.kernels.pixel_lists",
    "accumulate": "nsw.kernels.pixel_lists",
    "compute_relocation": "nsw.kernels.relocating",
    "SelectiveAdam": "nsw.kernels.visible_adam",
    "adam": "nsw.kernels.visible_adam",
    "rasterization_2dgs": "nsw.kernels.surfels_rasterization",
    "rasterize_to_pixels_2dgs": "nsw.kernels.surfels_rasterization",
    "fully_fused_projection_2dgs": "nsw.kernels.surfels_projection",
    "rasterize_to_indices_in_range_2dgs": "nsw.kernels.surfels_pairs",
    "accumulate_2dgs": "nsw.kernels.surfels_pairs",
    "install": "nsw.kernels.installing",
    "uninstall": "nsw.kernels.installing",
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
    "accumulate_along_rays": "nsw.kernels.accumulation",
    "rendering": "nsw.kernels.volume",
    "ray_aabb_intersect": "nsw.kernels.boxes",
    "traverse_grids": "nsw.kernels.traversal",
    "OccGridEstimator": "nsw.kernels.occupancy",
    "PropNetEstimator": "nsw.kernels.proposals",
    "get_proposal_requires_grad_fn": "nsw.kernels.proposals",
    "RayIntervals": "nsw.kernels.ray_segments",
    "RaySamples": "nsw.kernels.ray_segments",
    "importance_sampling": "nsw.kernels.sampling",
    "searchsorted": "nsw.kernels.sampling",
    "hash_encode": "nsw.kernels.hash_encoding",
    "hash_levels": "nsw.kernels.hash_encoding",
    "march_voxels": "nsw.kernels.voxel_march",
    "total_variation": "nsw.kernels.voxel_tv",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'nsw.kernels' has no attribute '{name}'")

"""Two calls for trainers of voxel grids: marching through a mask of cells, and weights with the light that is left behind a ray.

They are thin doors to the kernels behind `OccGridEstimator.sampling` (`traversal.py`) and `render_weight_from_density`
(`compositing.py`).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nsw.kernels import compositing
from nsw.kernels.chunks import compiled, index_chunks
from nsw.kernels.occupancy import OccGridEstimator
from nsw.kernels.packed import pack_info
from nsw.kernels.traversal import walk

MaskedOccGrid = OccGridEstimator  # the name from the time when only this one was compiled


def sampler_for(occupancy: OccGridEstimator) -> torch.nn.Module:
    """Return the estimator that packed sampling asks: the grid itself, or nerfacc's with the same cells on CUDA."""
    if not occupancy.binaries.is_cuda:
        return occupancy
    import nerfacc

    estimator = nerfacc.OccGridEstimator(occupancy.aabbs[0].tolist(), list(occupancy.binaries.shape[1:]))
    estimator = estimator.to(occupancy.binaries.device)
    estimator.binaries, estimator.occs = occupancy.binaries, occupancy.occs
    return estimator


def march(
    origins: Float[Tensor, "R 3"],
    directions: Float[Tensor, "R 3"],
    near: Float[Tensor, "R"],
    far: Float[Tensor, "R"],
    occupied: Bool[Tensor, "x y z"],
    aabb: Float[Tensor, "2 3"],
    step: float,
) -> tuple[Int[Tensor, "M"], Float[Tensor, "M"], Float[Tensor, "M"]]:
    """Return ray index, start and end of the intervals near + k step whose middle lies before `far` in an occupied cell.

    >>> box, cells = torch.tensor([[0.0, 0, 0], [2, 1, 1]]), torch.tensor([False, True]).reshape(2, 1, 1)
    >>> ray = torch.tensor([[0.0, 0.5, 0.5]]), torch.tensor([[1.0, 0, 0]]), torch.zeros(1), torch.full((1,), 9.0)
    >>> march(*ray, cells, box, 0.5)[1].tolist()
    [1.0, 1.5]
    """
    found = walk(origins, directions, occupied[None], aabb.reshape(1, 6), near, far, step)
    return found.rays, found.starts, found.ends


def packed_weights(
    optical_depth: Float[Tensor, "M"], ray_indices: Int[Tensor, "M"], n_rays: int
) -> tuple[Float[Tensor, "M"], Float[Tensor, "n_rays"]]:
    r"""Return each sample's weight and the transmittance behind each ray's last sample.

    $$w_i = T_i (1 - e^{-\sigma_i\delta_i}),\quad T_i = e^{-\sum_{j<i}\sigma_j\delta_j}$$  (NeRF, eq. 3)

    Args:
        optical_depth: sigma times delta, >= 0.
        ray_indices: ray of each sample, ascending.

    >>> w, left = packed_weights(torch.tensor([0.6931472, 0.6931472]), torch.tensor([0, 0]), 2)
    >>> w.tolist(), left.tolist()
    ([0.5, 0.25], [0.25, 1.0])
    """
    chunks = index_chunks(ray_indices, n_rays) if compiled(optical_depth) else None
    if chunks is None:
        return packed_weights_reference(optical_depth, ray_indices, n_rays)
    weights, _, _, left = compositing.weights_from_density(optical_depth, chunks)
    return weights, left


def packed_weights_reference(optical_depth: Tensor, ray_indices: Tensor, n_rays: int) -> tuple[Tensor, Tensor]:
    """Return the same from plain torch calls."""
    weights, _, _ = compositing.weights_from_density_reference(optical_depth, pack_info(ray_indices, n_rays))
    total = optical_depth.new_zeros(n_rays).index_add(0, ray_indices, optical_depth)
    return weights, torch.exp(-total)

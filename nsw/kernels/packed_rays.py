"""For trainers of fields: weights with the light that is left behind a ray, a thin door to the kernels of `compositing.py`; and the
estimator that samples rays in occupied cells, whichever the device has."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nsw.kernels import compositing
from nsw.kernels.chunks import compiled, index_chunks
from nsw.kernels.occupancy import OccGridEstimator
from nsw.kernels.packed import pack_info


def sampler_for(occupancy: OccGridEstimator) -> torch.nn.Module:
    """Return the estimator that packed sampling asks: the grid itself, or nerfacc's with the same cells on CUDA."""
    if not occupancy.binaries.is_cuda:
        return occupancy
    import nerfacc

    estimator = nerfacc.OccGridEstimator(occupancy.aabbs[0].tolist(), 1)  # at full size it would list every cell, in each step
    estimator = estimator.to(occupancy.binaries.device)
    estimator.binaries, estimator.occs = occupancy.binaries, occupancy.occs
    return estimator


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

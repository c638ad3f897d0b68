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


def samples_in_cells(
    occupancy: torch.nn.Module,
    rays_o: Float[Tensor, "n_rays 3"],
    rays_d: Float[Tensor, "n_rays 3"],
    near: Float[Tensor, "n_rays"],
    far: Float[Tensor, "n_rays"],
    step: float,
) -> tuple[Int[Tensor, "M"], Float[Tensor, "M"]]:
    """Return ray (ascending) and distance of the samples of length `step` whose middles lie in occupied cells.

    On CUDA nerfacc's traversal is asked for the middles themselves: its estimator would look for the ends of all intervals, and
    the CPU would wait for the GPU twice more.

    Args:
        occupancy: with buffers `binaries` and `aabbs`, nsw.kernels' estimator or nerfacc's.
    """
    if not rays_o.is_cuda:
        march = dict(t_min=near, t_max=far, render_step_size=step, early_stop_eps=0.0)
        ray_indices, t_starts, t_ends = occupancy.sampling(rays_o, rays_d, **march)
        return ray_indices, (t_starts + t_ends) / 2
    if len(rays_o) == 0:  # its kernels cannot be started for none
        return torch.zeros(0, dtype=torch.long, device=near.device), near
    from nerfacc import traverse_grids

    _, samples, _ = traverse_grids(rays_o, rays_d, occupancy.binaries, occupancy.aabbs, near, far, step)
    return samples.ray_indices, samples.vals


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
    """Return the same from torch calls; on CUDA sums along rays are nerfacc's, which need no table as wide as the longest ray."""
    packed_info = pack_info(ray_indices, n_rays)
    total = optical_depth.new_zeros(n_rays).index_add(0, ray_indices, optical_depth)
    if optical_depth.is_cuda and optical_depth.dtype == torch.float32:
        from nerfacc import exclusive_sum

        weights = torch.exp(-exclusive_sum(optical_depth, packed_info)) * -torch.expm1(-optical_depth)
    else:
        weights, _, _ = compositing.weights_from_density_reference(optical_depth, packed_info)
    return weights, torch.exp(-total)

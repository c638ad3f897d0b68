"""Compositing along rays on the CPU: nerfacc's rendering calls, by the same names, arguments and returns.

Samples are either batched, [n_rays, n_samples], or packed, [M] with `packed_info` or `ray_indices` and `n_rays`.
With sigma the density and delta = t_end - t_start of a sample (NeRF, Mildenhall et al. 2020, eq. 3):

    alpha_i = 1 - exp(-sigma_i delta_i),  T_i = exp(-sum_{j<i} sigma_j delta_j),  w_i = T_i alpha_i.

float32 tensors in the CPU's memory go through the compiled passes of `compositing.py` and `accumulation.py`; all others through
the plain torch references beside them. `prefix_trans` is the transmittance in front of samples that were composited elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nsw.kernels import compositing
from nsw.kernels.accumulation import accumulate_along_rays
from nsw.kernels.chunks import Chunks, batched_chunks, compiled, index_chunks, packed_chunks
from nsw.kernels.packed import pack_info
from nsw.kernels.settled_gradient import settle_gradient


def _from_density(t_starts, t_ends, sigmas, packed_info, ray_indices, n_rays, prefix_trans) -> tuple[Tensor, Tensor, Tensor]:
    """Return weights, transmittances and opacities: what each density call gives a part of."""
    depth = sigmas * _length(t_starts, t_ends)
    chunks = _chunks(depth, packed_info, ray_indices, n_rays)
    if chunks is not None:
        weights, trans, alphas, _ = compositing.weights_from_density(depth, chunks)
    else:
        info = _packing(packed_info, ray_indices, n_rays)
        weights, trans, alphas = compositing.weights_from_density_reference(depth, info)
    if prefix_trans is None:
        return weights, trans, alphas
    trans = trans * prefix_trans
    return trans * alphas, trans, alphas


def _length(t_starts: Tensor, t_ends: Tensor) -> Tensor:
    """Return how long the intervals are; between the ends of float32, as long as it can say."""
    length = t_ends - t_starts
    largest = torch.finfo(length.dtype).max
    return length.clamp(-largest, largest) if length.requires_grad else length.clamp_(-largest, largest)


def _from_alpha(alphas, packed_info, ray_indices, n_rays, prefix_trans) -> tuple[Tensor, Tensor]:
    """Return weights and transmittances: what each opacity call gives a part of."""
    chunks = _chunks(alphas, packed_info, ray_indices, n_rays)
    if chunks is not None:
        weights, trans = compositing.weights_from_alpha(alphas, chunks)
    else:
        weights, trans = compositing.weights_from_alpha_reference(alphas, _packing(packed_info, ray_indices, n_rays))
    if prefix_trans is None:
        return weights, trans
    trans = trans * prefix_trans
    return trans * alphas, trans


def _chunks(values: Tensor, packed_info: Tensor | None, ray_indices: Tensor | None, n_rays: int | None) -> Chunks | None:
    """Return where each ray's samples lie, or None where the plain torch version has to serve."""
    if not compiled(values):
        return None
    if packed_info is not None:
        return packed_chunks(packed_info, len(values))
    if ray_indices is None:
        return batched_chunks(values.shape)
    if n_rays is None:
        n_rays = int(ray_indices.max()) + 1 if len(ray_indices) else 0
    return index_chunks(ray_indices, n_rays)


def _packing(packed_info: Tensor | None, ray_indices: Tensor | None, n_rays: int | None) -> Tensor | None:
    return pack_info(ray_indices, n_rays) if packed_info is None and ray_indices is not None else packed_info


def _visible(trans: Tensor, alphas: Tensor, early_stop_eps: float, alpha_thre: float) -> Bool[Tensor, "*s"]:
    visible = trans >= early_stop_eps
    return visible & (alphas >= alpha_thre) if alpha_thre > 0 else visible


def render_transmittance_from_density(
    t_starts: Float[Tensor, "*s"],
    t_ends: Float[Tensor, "*s"],
    sigmas: Float[Tensor, "*s"],
    packed_info: Int[Tensor, "n_rays 2"] | None = None,
    ray_indices: Int[Tensor, "M"] | None = None,
    n_rays: int | None = None,
    prefix_trans: Float[Tensor, "*s"] | None = None,
) -> tuple[Float[Tensor, "*s"], Float[Tensor, "*s"]]:
    """Return transmittance in front of each sample and its opacity, both in [0, 1].

    >>> T, alpha = render_transmittance_from_density(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 2.0]]), torch.ones(1, 2))
    >>> [round(x, 3) for x in T[0].tolist() + alpha[0].tolist()]
    [1.0, 0.368, 0.632, 0.632]
    """
    return _from_density(t_starts, t_ends, sigmas, packed_info, ray_indices, n_rays, prefix_trans)[1:]


def render_transmittance_from_alpha(
    alphas: Float[Tensor, "*s"],
    packed_info: Int[Tensor, "n_rays 2"] | None = None,
    ray_indices: Int[Tensor, "M"] | None = None,
    n_rays: int | None = None,
    prefix_trans: Float[Tensor, "*s"] | None = None,
) -> Float[Tensor, "*s"]:
    """Return transmittance in front of each sample from the samples' opacities."""
    return _from_alpha(alphas, packed_info, ray_indices, n_rays, prefix_trans)[1]


def render_weight_from_density(
    t_starts: Float[Tensor, "*s"],
    t_ends: Float[Tensor, "*s"],
    sigmas: Float[Tensor, "*s"],
    packed_info: Int[Tensor, "n_rays 2"] | None = None,
    ray_indices: Int[Tensor, "M"] | None = None,
    n_rays: int | None = None,
    prefix_trans: Float[Tensor, "*s"] | None = None,
) -> tuple[Float[Tensor, "*s"], Float[Tensor, "*s"], Float[Tensor, "*s"]]:
    """Return weights w = T alpha, transmittance T and opacity alpha of each sample."""
    return _from_density(t_starts, t_ends, sigmas, packed_info, ray_indices, n_rays, prefix_trans)


def render_weight_from_alpha(
    alphas: Float[Tensor, "*s"],
    packed_info: Int[Tensor, "n_rays 2"] | None = None,
    ray_indices: Int[Tensor, "M"] | None = None,
    n_rays: int | None = None,
    prefix_trans: Float[Tensor, "*s"] | None = None,
) -> tuple[Float[Tensor, "*s"], Float[Tensor, "*s"]]:
    """Return weights w = T alpha and transmittance T of each sample."""
    return _from_alpha(alphas, packed_info, ray_indices, n_rays, prefix_trans)


@torch.no_grad()
def render_visibility_from_density(
    t_starts: Float[Tensor, "*s"],
    t_ends: Float[Tensor, "*s"],
    sigmas: Float[Tensor, "*s"],
    packed_info: Int[Tensor, "n_rays 2"] | None = None,
    ray_indices: Int[Tensor, "M"] | None = None,
    n_rays: int | None = None,
    early_stop_eps: float = 1e-4,
    alpha_thre: float = 0.0,
    prefix_trans: Float[Tensor, "*s"] | None = None,
) -> Bool[Tensor, "*s"]:
    """Return which samples are seen: transmittance >= early_stop_eps and opacity >= alpha_thre."""
    _, trans, alphas = _from_density(t_starts, t_ends, sigmas, packed_info, ray_indices, n_rays, prefix_trans)
    return _visible(trans, alphas, early_stop_eps, alpha_thre)


@torch.no_grad()
def render_visibility_from_alpha(
    alphas: Float[Tensor, "*s"],
    packed_info: Int[Tensor, "n_rays 2"] | None = None,
    ray_indices: Int[Tensor, "M"] | None = None,
    n_rays: int | None = None,
    early_stop_eps: float = 1e-4,
    alpha_thre: float = 0.0,
    prefix_trans: Float[Tensor, "*s"] | None = None,
) -> Bool[Tensor, "*s"]:
    """Return which samples are seen: transmittance >= early_stop_eps and opacity >= alpha_thre."""
    trans = _from_alpha(alphas, packed_info, ray_indices, n_rays, prefix_trans)[1]
    return _visible(trans, alphas, early_stop_eps, alpha_thre)


def rendering(
    t_starts: Float[Tensor, "*s"],
    t_ends: Float[Tensor, "*s"],
    ray_indices: Int[Tensor, "M"] | None = None,
    n_rays: int | None = None,
    rgb_sigma_fn: Callable | None = None,
    rgb_alpha_fn: Callable | None = None,
    render_bkgd: Float[Tensor, "3"] | None = None,
) -> tuple[Float[Tensor, "n_rays 3"], Float[Tensor, "n_rays 1"], Float[Tensor, "n_rays 1"], dict[str, Tensor]]:
    """Return colours, opacities, expected distances and intermediate values of each ray.

    Args:
        rgb_sigma_fn: (t_starts, t_ends, ray_indices) -> colours [..., 3] and densities [...].
        rgb_alpha_fn: the same with opacities instead of densities; without `rgb_sigma_fn` only.
        render_bkgd: colour behind everything; without it colours stay premultiplied.
    """
    if ray_indices is not None:
        assert t_starts.shape == t_ends.shape == ray_indices.shape, "t_starts, t_ends and ray_indices must have the same shape."
    if rgb_sigma_fn is None and rgb_alpha_fn is None:
        raise ValueError("rendering needs `rgb_sigma_fn` or `rgb_alpha_fn`.")
    if t_starts.shape[0] == 0:
        rgbs, values = t_starts.new_zeros(*t_starts.shape, 3), t_starts.new_zeros(t_starts.shape)
    else:
        rgbs, values = (rgb_sigma_fn or rgb_alpha_fn)(t_starts, t_ends, ray_indices)
    assert rgbs.shape[-1] == 3, f"rgbs must have 3 channels, got {tuple(rgbs.shape)}"
    assert values.shape == t_starts.shape, f"one density or opacity is needed for each sample, got {tuple(values.shape)}"
    t_starts, t_ends = settle_gradient(t_starts), settle_gradient(t_ends)  # both as borders and as distances
    where = dict(packed_info=_packing(None, ray_indices, n_rays))
    if rgb_sigma_fn is not None:
        weights, trans, alphas = render_weight_from_density(t_starts, t_ends, values, **where)
        extras = {"weights": weights, "alphas": alphas, "trans": trans, "sigmas": values, "rgbs": rgbs}
    else:
        weights, trans = render_weight_from_alpha(values, **where)
        extras = {"weights": weights, "trans": trans, "rgbs": rgbs, "alphas": values}
    colors = accumulate_along_rays(weights, rgbs, ray_indices, n_rays)
    opacities = accumulate_along_rays(weights, None, ray_indices, n_rays)
    middles = t_starts / 2 + t_ends / 2
    depths = accumulate_along_rays(weights, middles[..., None], ray_indices, n_rays)
    depths = depths / opacities.clamp_min(torch.finfo(rgbs.dtype).eps)
    if render_bkgd is not None:
        colors = colors + render_bkgd * (1.0 - opacities)
    return colors, opacities, depths, extras

"""Compositing along rays on the CPU: nerfacc's rendering calls, by the same names, arguments and returns.

Samples are either batched, [n_rays, n_samples], or packed, [M] with `packed_info` or `ray_indices` and `n_rays`.
With sigma the density and delta = t_end - t_start of a sample (NeRF, Mildenhall et al. 2020, eq. 3):

    alpha_i = 1 - exp(-sigma_i delta_i),  T_i = exp(-sum_{j<i} sigma_j delta_j),  w_i = T_i alpha_i.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nsw.kernels.packed import exclusive_prod, exclusive_sum, pack_info


def _packing(packed_info: Tensor | None, ray_indices: Tensor | None, n_rays: int | None) -> Tensor | None:
    return pack_info(ray_indices, n_rays) if packed_info is None and ray_indices is not None else packed_info


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
    sigmas_dt = sigmas * (t_ends - t_starts)
    alphas = -torch.expm1(-sigmas_dt)  # 1 - exp(-x) loses all digits of thin samples in float32
    trans = torch.exp(-exclusive_sum(sigmas_dt, _packing(packed_info, ray_indices, n_rays)))
    return trans if prefix_trans is None else trans * prefix_trans, alphas


def render_transmittance_from_alpha(
    alphas: Float[Tensor, "*s"],
    packed_info: Int[Tensor, "n_rays 2"] | None = None,
    ray_indices: Int[Tensor, "M"] | None = None,
    n_rays: int | None = None,
    prefix_trans: Float[Tensor, "*s"] | None = None,
) -> Float[Tensor, "*s"]:
    """Return transmittance in front of each sample from the samples' opacities."""
    trans = exclusive_prod(1 - alphas, _packing(packed_info, ray_indices, n_rays))
    return trans if prefix_trans is None else trans * prefix_trans


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
    trans, alphas = render_transmittance_from_density(t_starts, t_ends, sigmas, packed_info, ray_indices, n_rays, prefix_trans)
    return trans * alphas, trans, alphas


def render_weight_from_alpha(
    alphas: Float[Tensor, "*s"],
    packed_info: Int[Tensor, "n_rays 2"] | None = None,
    ray_indices: Int[Tensor, "M"] | None = None,
    n_rays: int | None = None,
    prefix_trans: Float[Tensor, "*s"] | None = None,
) -> tuple[Float[Tensor, "*s"], Float[Tensor, "*s"]]:
    """Return weights w = T alpha and transmittance T of each sample."""
    trans = render_transmittance_from_alpha(alphas, packed_info, ray_indices, n_rays, prefix_trans)
    return trans * alphas, trans


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
    trans, alphas = render_transmittance_from_density(t_starts, t_ends, sigmas, packed_info, ray_indices, n_rays, prefix_trans)
    visible = trans >= early_stop_eps
    return visible & (alphas >= alpha_thre) if alpha_thre > 0 else visible


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
    trans = render_transmittance_from_alpha(alphas, packed_info, ray_indices, n_rays, prefix_trans)
    visible = trans >= early_stop_eps
    return visible & (alphas >= alpha_thre) if alpha_thre > 0 else visible


def accumulate_along_rays(
    weights: Float[Tensor, "*s"],
    values: Float[Tensor, "*s D"] | None = None,
    ray_indices: Int[Tensor, "M"] | None = None,
    n_rays: int | None = None,
) -> Float[Tensor, "n_rays D"]:
    """Return the weighted sum of values along each ray, or of the weights themselves (D = 1) without values."""
    source = weights[..., None] if values is None else weights[..., None] * values
    if ray_indices is None:
        return source.sum(-2)
    out = source.new_zeros(n_rays, source.shape[-1])
    return out.scatter_add(0, ray_indices[:, None].expand_as(source), source)


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
        rgb_alpha_fn: the same with opacities instead of densities; one of the two is needed.
        render_bkgd: colour behind everything; without it colours stay premultiplied.
    """
    if (rgb_sigma_fn is None) == (rgb_alpha_fn is None):
        raise ValueError("rendering needs exactly one of rgb_sigma_fn and rgb_alpha_fn")
    if t_starts.shape[0] == 0:
        rgbs, values = t_starts.new_zeros(*t_starts.shape, 3), t_starts.new_zeros(t_starts.shape)
    else:
        rgbs, values = (rgb_sigma_fn or rgb_alpha_fn)(t_starts, t_ends, ray_indices)
    if rgb_sigma_fn is not None:
        weights, trans, alphas = render_weight_from_density(t_starts, t_ends, values, ray_indices=ray_indices, n_rays=n_rays)
        extras = {"weights": weights, "alphas": alphas, "trans": trans, "sigmas": values, "rgbs": rgbs}
    else:
        weights, trans = render_weight_from_alpha(values, ray_indices=ray_indices, n_rays=n_rays)
        extras = {"weights": weights, "trans": trans, "rgbs": rgbs, "alphas": values}
    colors = accumulate_along_rays(weights, rgbs, ray_indices, n_rays)
    opacities = accumulate_along_rays(weights, None, ray_indices, n_rays)
    depths = accumulate_along_rays(weights, ((t_starts + t_ends) / 2)[..., None], ray_indices, n_rays)
    depths = depths / opacities.clamp_min(torch.finfo(rgbs.dtype).eps)
    if render_bkgd is not None:
        colors = colors + render_bkgd * (1.0 - opacities)
    return colors, opacities, depths, extras

"""Rendering models that are asked once a ray: a ray distribution is composited, a light field's answer is the pixel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nsw.cameras import Cameras, Rays
from nsw.models.ray_distribution import LightField, RayDistribution
from nsw.renderers import volume
from nsw.renderers.render import Render
from nsw.renderers.volume import RayRender, composite, edges_around, ray_bounds, stratified


@dataclass(frozen=True)
class SeriesRender(RayRender):
    """R rays with their samples, and what the network said of them.

    Attributes:
        coefficients: [R, 4, K] weights of the series for density, red, green and blue; None where there are none.
        tau: [S] positions of the samples in [0, 1] of the way through the box.
    """

    coefficients: Float[Tensor, "R 4 K"] | None = None
    tau: Float[Tensor, "S"] | None = None


def positions(n: int, device: torch.device | str, jitter: torch.Generator | None = None) -> Float[Tensor, "n"]:
    """Return one position in each of n equal parts of [0, 1]: a random one, or the middle without a generator.

    All rays of a batch share them, so that the basis is worked out once for all.
    """
    zero = torch.zeros(1, device=device)
    return stratified(zero, zero + 1, n, jitter)[0]


def distances(
    model: RayDistribution | LightField, rays: Rays, tau: Float[Tensor, "S"], near: float | None = None
) -> Float[Tensor, "R S"]:
    """Return the distances at which positions tau in [0, 1] lie on each ray's way through the model's box."""
    first, last, _ = ray_bounds(model, rays, near)
    return first[:, None] + tau * (last - first)[:, None]


def render_rays(
    model: RayDistribution | LightField,
    rays: Rays,
    *,
    near: float | None = None,
    far: float | None = None,
    background: float | Tensor | None = None,
    tau: Float[Tensor, "S"] | None = None,
    place: Float[Tensor, "P"] | None = None,
) -> SeriesRender:
    """Render rays, each with a single evaluation of the network.

    Args:
        near, far: bounds besides the box.
        background: grey level, colour [3] or [R, 3]; the rays' own by default. A light field has no idea of it: what it
            learned is in its answer.
        tau: positions in [0, 1] of the way through the box at which density and colour are added up, ascending.
        place: positions of the points that the network is told, as for `RayNetwork.encode`.

    Returns:
        A light field's has no samples, opacity one and depth zero.
    """
    background = rays.background if background is None else background
    first, last, hit = ray_bounds(model, rays, near, far)
    if isinstance(model, LightField):
        rgb, none = model.colours(rays, first, last, place), first.new_zeros(len(rays), 0)
        return SeriesRender(rgb, torch.ones_like(first), torch.zeros_like(first), none, none, none, none, none, none[..., None])
    tau = positions(model.settings.n_samples, first.device) if tau is None else tau
    length = (last - first)[:, None]
    coefficients = model.coefficients(rays, first, last, place)
    optical, rgbs = model.decode(coefficients, model.at(tau))
    optical = optical * hit[:, None]
    edges = edges_around(tau[None], torch.zeros_like(tau[:1]), torch.ones_like(tau[:1]))
    rgb, alpha, weights = composite(optical, rgbs, edges, background)
    t, t_edges = first[:, None] + tau * length, first[:, None] + edges * length
    depth = (weights * t).sum(-1) / alpha.clamp_min(torch.finfo(alpha.dtype).eps)
    samples = (weights, t, t_edges[:, :-1], t_edges[:, 1:], optical / length.clamp_min(1e-6), rgbs)
    return SeriesRender(rgb, alpha, depth, *samples, coefficients=coefficients, tau=tau)


def render_view(model: RayDistribution | LightField, cameras: Cameras, **options) -> Render:
    """Render whole pictures, without gradients; options as for `volume.render_view` and `render_rays` of this module."""
    return volume.render_view(model, cameras, render=render_rays, **options)

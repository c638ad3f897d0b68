"""Volume rendering: a density and colour field in, pixels out.

Two layouts of samples: the same number on every ray, [R, S], or packed [M] where an occupancy grid skips empty space.
Packed samples go through nerfacc on CUDA and through nsw.kernels elsewhere; both give the same numbers.
The integral is bounded by the field's box and finished by an explicit background, never by an infinite last interval.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

import nsw.kernels.volume as cpu_kernels
from nsw.cameras import Cameras, Rays, camera_rays
from nsw.errors import InputError
from nsw.kernels.occupancy import OccGridEstimator, ray_aabb_intersect
from nsw.kernels.packed import counts_of, exclusive_sum
from nsw.kernels.packed_rays import samples_in_cells
from nsw.models.field import Field
from nsw.renderers.parts import a_few_cameras_at_a_time, parts_of_counts
from nsw.renderers.render import Render, backdrop

MOST_SAMPLES = 1 << 21  # of a field at once where no gradient is asked: a network 256 wide makes 2 GB of them a layer


@dataclass(frozen=True)
class RayRender:
    """R rendered rays and their samples; sample tensors are [R, S], or packed [M] where `ray_indices` is set.

    Attributes:
        rgb: [R, 3] colour over the background.
        alpha: [R] opacity, the sum of the weights.
        depth: [R] expected distance t along the ray in world units, 0 where alpha is 0.
        weights: share of each sample in its pixel, in [0, 1].
        t: distance at which each sample was evaluated.
        t_starts, t_ends: the interval that a sample stands for.
        densities: field density at the samples.
        rgbs: field colours at the samples, [..., 3].
        ray_indices: ray of each packed sample, None for [R, S].
        coarse: the pass that told this one where to sample, where there was one.
    """

    rgb: Float[Tensor, "R 3"]
    alpha: Float[Tensor, "R"]
    depth: Float[Tensor, "R"]
    weights: Float[Tensor, "*s"]
    t: Float[Tensor, "*s"]
    t_starts: Float[Tensor, "*s"]
    t_ends: Float[Tensor, "*s"]
    densities: Float[Tensor, "*s"]
    rgbs: Float[Tensor, "*s 3"]
    ray_indices: Int[Tensor, "M"] | None = None
    coarse: RayRender | None = None


def composite(
    densities: Float[Tensor, "R S"],
    rgbs: Float[Tensor, "R S 3"],
    t_edges: Float[Tensor, "R S+1"],
    background: float | Tensor = 1.0,
) -> tuple[Float[Tensor, "R 3"], Float[Tensor, "R"], Float[Tensor, "R S"]]:
    r"""Composite the samples of each ray in front of a background.

    $$\alpha_i = 1 - e^{-\sigma_i\delta_i},\quad T_i = e^{-\sum_{j<i}\sigma_j\delta_j},\quad w_i = T_i\alpha_i,\quad
    \hat C = \sum_i w_i c_i + (1 - \sum_i w_i)\,c_{bg}$$  (NeRF, Mildenhall et al. 2020, eq. 3)

    Args:
        densities: sigma >= 0 in 1 / world unit.
        rgbs: colours of the samples.
        t_edges: interval edges along the ray, ascending; delta is their difference.
        background: grey level, colour [3] or one colour for each ray [R, 3].

    Returns:
        Colours [R, 3], opacities [R] in [0, 1] and weights [R, S], each ray's summing to at most 1.

    >>> rgb, alpha, w = composite(torch.tensor([[1e9]]), torch.tensor([[[1.0, 0.0, 0.0]]]), torch.tensor([[2.0, 3.0]]))
    >>> rgb.tolist(), alpha.tolist()
    ([[1.0, 0.0, 0.0]], [1.0])
    """
    optical_depth = densities * (t_edges[..., 1:] - t_edges[..., :-1])
    alphas = -torch.expm1(-optical_depth)
    # A running product of (1 - alpha) would say the same, but its gradient divides by factors that reach zero.
    transmittance = torch.exp(-exclusive_sum(optical_depth))
    weights = transmittance * alphas
    opacity = weights.sum(-1)
    rgb = (weights[..., None] * rgbs).sum(-2) + (1.0 - opacity)[..., None] * backdrop(background, rgbs)
    return rgb, opacity, weights


def ray_bounds(
    field: Field, rays: Rays, near: float | Tensor | None = None, far: float | Tensor | None = None
) -> tuple[Float[Tensor, "R"], Float[Tensor, "R"], Bool[Tensor, "R"]]:
    """Return where each ray enters and leaves the field's box, not nearer than `near` nor beyond `far`, and whether it hits.

    A ray that misses gets an interval of length zero, which renders as background. A field without a box
    (`aabb` None) needs both bounds.
    """
    aabb = getattr(field, "aabb", None)
    ones = torch.ones_like(rays.origins[:, 0])
    if aabb is None:
        if near is None or far is None:
            raise InputError("This field has no bounding box, so rendering it needs near and far: pass both.")
        first, last = near * ones, far * ones
    else:
        t_min, t_max, _ = ray_aabb_intersect(rays.origins, rays.directions, aabb.to(ones).reshape(1, 6), 0.0, 1e10, 0.0)
        first, last = t_min[:, 0], t_max[:, 0]
        first = first if near is None else torch.maximum(first, near * ones)
        last = last if far is None else torch.minimum(last, far * ones)
    hit = last > first
    miss = ~hit  # filled, as `where` would fetch its zero from the host's memory
    return first.masked_fill(miss, 0.0), last.masked_fill(miss, 0.0), hit


def stratified(
    near: Float[Tensor, "R"], far: Float[Tensor, "R"], n_samples: int, generator: torch.Generator | None = None
) -> Float[Tensor, "R S"]:
    r"""Return one distance in each of S equal bins between near and far: a random one, or the middle without a generator.

    $$t_i \sim U\big[t_n + \tfrac{i-1}{S}(t_f - t_n),\ t_n + \tfrac{i}{S}(t_f - t_n)\big]$$  (NeRF, eq. 2)

    >>> stratified(torch.tensor([0.0]), torch.tensor([4.0]), 2).tolist()
    [[1.0, 3.0]]
    """
    shape = (len(near), n_samples)
    if generator is None:
        place = torch.full(shape, 0.5, device=near.device, dtype=near.dtype)
    else:
        place = torch.rand(shape, generator=generator, device=near.device, dtype=near.dtype)
    bins = torch.arange(n_samples, device=near.device, dtype=near.dtype)
    return near[:, None] + (bins + place) / n_samples * (far - near)[:, None]


def edges_around(t: Float[Tensor, "R S"], near: Float[Tensor, "R"], far: Float[Tensor, "R"]) -> Float[Tensor, "R S+1"]:
    """Return interval edges half-way between neighbouring samples, closed by near and far: together they cover the ray once.

    >>> edges_around(torch.tensor([[1.0, 2.0]]), torch.tensor([0.0]), torch.tensor([4.0])).tolist()
    [[0.0, 1.5, 4.0]]
    """
    return torch.cat([near[:, None], (t[:, 1:] + t[:, :-1]) / 2, far[:, None]], dim=-1)


@torch.no_grad()
def importance_samples(
    t_edges: Float[Tensor, "R B+1"], weights: Float[Tensor, "R B"], n_samples: int, generator: torch.Generator | None = None
) -> Float[Tensor, "R n"]:
    r"""Return ascending distances drawn from the histogram of weights over the intervals; no gradient flows.

    $$p_i = \frac{w_i + 10^{-5}}{\sum_j (w_j + 10^{-5})},\quad F_i = \sum_{j<i} p_j,\quad t = F^{-1}(u)$$  (NeRF, section 5.2)

    Args:
        t_edges: bin edges, ascending.
        weights: not normalised, >= 0.
        generator: draws one u in each of n equal bins of [0, 1]; without it u is the bins' middles.
    """
    # Without the 1e-5 an empty ray has no distribution at all, and a bin of zero width divides by zero.
    p = weights + 1e-5
    cdf = torch.nn.functional.pad((p / p.sum(-1, keepdim=True)).cumsum(-1), (1, 0))
    cdf = cdf / cdf[:, -1:]
    zero, one = torch.zeros_like(cdf[:, 0]), torch.ones_like(cdf[:, 0])
    u = stratified(zero, one, n_samples, generator)
    right = torch.searchsorted(cdf, u, right=True).clamp(1, weights.shape[-1])
    low, high = cdf.gather(-1, right - 1), cdf.gather(-1, right)
    t_low, t_high = t_edges.gather(-1, right - 1), t_edges.gather(-1, right)
    return t_low + ((u - low) / (high - low)).clamp(0, 1) * (t_high - t_low)


def render_rays(
    field: Field,
    rays: Rays,
    *,
    n_samples: int = 64,
    n_fine: int = 0,
    proposal: Field | None = None,
    t: Float[Tensor, "R S"] | None = None,
    near: float | Tensor | None = None,
    far: float | Tensor | None = None,
    background: float | Tensor | None = None,
    jitter: torch.Generator | None = None,
    occupancy: torch.nn.Module | None = None,
    step: float | None = None,
    early_stop: float = 0.0,
    colour_threshold: float = 0.0,
) -> RayRender:
    """Render rays through a field.

    Args:
        field: what is rendered; `field.aabb` bounds the integral.
        n_samples: samples of each ray, uniform between its bounds.
        n_fine: further samples, drawn where the weights of a first pass over `proposal` are.
        proposal: field of the first pass; `field` itself by default. Its samples are reused for the second pass.
        t: distances [R, S] to sample at instead, ascending.
        near, far: bounds besides the box, floats or [R].
        background: grey level, colour [3] or [R, 3]; the rays' own by default.
        jitter: generator for stratified sampling; None samples the middles, the same every time.
        occupancy: `OccGridEstimator` (nsw.kernels' or nerfacc's): samples only in its occupied cells, packed.
        step: length of a packed sample in world units; by default the box's diagonal over `n_samples`.
        early_stop: packed samples behind less transmittance than this are dropped (costs a density query, saves colours).
        colour_threshold: without gradients, colours are evaluated only for samples that weigh at least this.

    Returns:
        A `RayRender`; its `coarse` is the first pass when `n_fine` > 0.
    """
    background = rays.background if background is None else background
    first, last, _ = ray_bounds(field, rays, near, far)
    if occupancy is not None:
        step = step or float((field.aabb[1] - field.aabb[0]).norm()) / n_samples
        return _render_packed(field, rays, occupancy, first, last, step, background, jitter, early_stop)
    t = stratified(first, last, n_samples, jitter) if t is None else t
    coarse = None
    if n_fine:
        coarse = render_at(proposal or field, rays, t, first, last, background, colour_threshold)
        edges = edges_around(t, first, last)
        t = torch.cat([t, importance_samples(edges, coarse.weights.detach(), n_fine, jitter)], dim=-1).sort(dim=-1).values
    return render_at(field, rays, t, first, last, background, colour_threshold, coarse)


def render_at(
    field: Field,
    rays: Rays,
    t: Float[Tensor, "R S"],
    near: Float[Tensor, "R"],
    far: Float[Tensor, "R"],
    background: float | Tensor | None = None,
    colour_threshold: float = 0.0,
    coarse: RayRender | None = None,
) -> RayRender:
    """Render rays with samples at the given distances, [R, S] on the batched path, over their own background by default."""
    edges = edges_around(t, near, far)
    points = (rays.origins[:, None] + t[..., None] * rays.directions[:, None]).reshape(-1, 3)
    directions = rays.directions[:, None].expand(*t.shape, 3).reshape(-1, 3)
    if colour_threshold > 0 and not torch.is_grad_enabled():
        densities = field.density(points).view(t.shape)
        seen = (cpu_kernels.render_weight_from_density(edges[:, :-1], edges[:, 1:], densities)[0] >= colour_threshold).view(-1)
        rgbs = densities.new_zeros(len(points), 3)
        rgbs[seen] = field.query(points[seen], directions[seen]).rgb
    else:
        densities, rgbs = field.query(points, directions)[:2]
    densities, rgbs = densities.view(t.shape), rgbs.view(*t.shape, 3)
    rgb, alpha, weights = composite(densities, rgbs, edges, rays.background if background is None else background)
    depth = (weights * t).sum(-1) / alpha.clamp_min(torch.finfo(alpha.dtype).eps)
    return RayRender(rgb, alpha, depth, weights, t, edges[:, :-1], edges[:, 1:], densities, rgbs, coarse=coarse)


def packed_backend(device: torch.device) -> ModuleType:
    """Return the module with the packed rendering calls: nerfacc on CUDA, nsw.kernels.volume elsewhere."""
    if device.type != "cuda":
        return cpu_kernels
    import nerfacc

    return nerfacc


def occupancy_grid(aabb: Float[Tensor, "2 3"], resolution: int = 64, levels: int = 1) -> torch.nn.Module:
    """Return an `OccGridEstimator` over the box, on the box's device: nerfacc's on CUDA, nsw.kernels' elsewhere.

    Both have the same buffers and calls. It starts empty: update it before rendering with it.

    >>> grid = occupancy_grid(torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]), 8)
    >>> grid.update_every_n_steps(0, lambda points: (points.norm(dim=-1) < 0.5).float())
    >>> 0 < int(grid.binaries.sum()) < 8**3
    True
    """
    if aabb.device.type == "cuda":
        import nerfacc

        return nerfacc.OccGridEstimator(aabb.reshape(6), resolution, levels).to(aabb.device)
    return OccGridEstimator(aabb.reshape(6), resolution, levels)


def march_cells(
    field: Field, rays: Rays, occupancy: torch.nn.Module, step: float, near: float = 0.0, jitter: torch.Generator | None = None
) -> tuple[Int[Tensor, "M"], Float[Tensor, "M"], Float[Tensor, "M 3"]]:
    """Return ray indices (ascending), distances t and points of the samples that stand in occupied cells, one a step.

    Args:
        step: length of a sample in world units.
        jitter: moves each ray's samples by a random part of a step; without it they are the same every time.
    """
    first, last, _ = ray_bounds(field, rays, near)
    if jitter is not None:  # here and not by `stratified`, whose random numbers come from torch's global generator
        first = first + torch.rand(first.shape, generator=jitter, device=first.device, dtype=first.dtype) * step
    ray_indices, t = samples_in_cells(occupancy, rays.origins, rays.directions, first, last, step)
    return ray_indices, t, rays.origins.index_select(0, ray_indices) + t[:, None] * rays.directions.index_select(0, ray_indices)


@torch.no_grad()
def parts_of(
    field: Field, rays: Rays, occupancy: torch.nn.Module, step: float, near: float = 0.0, most: int = MOST_SAMPLES
) -> list[slice]:
    """Return in which parts rays are marched, in their order, so that none has more than `most` samples, or is one ray.

    A field that has learned where nothing is asks for few samples; one that has not fills its box with them.
    """
    first, last, _ = ray_bounds(field, rays, near)
    if float((last - first).sum()) / step + len(rays) <= most:
        return [slice(0, len(rays))]
    return parts_of_counts(counts_of(march_cells(field, rays, occupancy, step, near)[0], len(rays)), most)


@torch.no_grad()
def hits_cells(
    field: Field, rays: Rays, occupancy: torch.nn.Module, step: float, near: float = 0.0, chunk: int = 1 << 16
) -> Bool[Tensor, "R"]:
    """Return which rays have a sample in an occupied cell; the others can only show the background."""
    hit = torch.zeros(len(rays), dtype=torch.bool, device=rays.origins.device)
    for i in range(0, len(rays), chunk):
        hit[i + march_cells(field, rays[i : i + chunk], occupancy, step, near)[0]] = True
    return hit


def sum_on_rays(
    weights: Float[Tensor, "K"],
    left: Float[Tensor, "R"],
    rgbs: Float[Tensor, "K D"],
    t: Float[Tensor, "K"],
    ray_indices: Int[Tensor, "K"],
    background: float | Float[Tensor, "R D"],
) -> tuple[Float[Tensor, "R D"], Float[Tensor, "R"]]:
    """Return each ray's colour over the background and its expected distance, 0 where nothing was hit.

    Args:
        rgbs: of the samples; any number of channels will do.
        left: transmittance behind each ray's last sample.
    """
    rgb = left[:, None] * background + left.new_zeros(len(left), rgbs.shape[1]).index_add(0, ray_indices, weights[:, None] * rgbs)
    distance = torch.zeros_like(left).index_add(0, ray_indices, weights.detach() * t) / (1 - left.detach()).clamp_min(1e-6)
    return rgb, distance


def _render_packed(
    field, rays: Rays, occupancy, near: Tensor, far: Tensor, step: float, background, jitter, early_stop: float
) -> RayRender:
    """Render rays with samples of length `step` in occupied cells only."""
    if jitter is not None:  # here and not by `stratified`, whose random numbers come from torch's global generator
        near = near + torch.rand(near.shape, generator=jitter, device=near.device, dtype=near.dtype) * step

    def density(t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor) -> Tensor:
        along = rays[ray_indices]
        return field.density(along.origins + ((t_starts + t_ends) / 2)[:, None] * along.directions)

    ray_indices, t_starts, t_ends = occupancy.sampling(
        rays.origins,
        rays.directions,
        sigma_fn=density if early_stop > 0 else None,
        t_min=near,
        t_max=far,
        render_step_size=step,
        early_stop_eps=early_stop,
    )
    t, along = (t_starts + t_ends) / 2, rays[ray_indices]
    densities, rgbs = field.query(along.origins + t[:, None] * along.directions, along.directions)[:2]
    backend, where = packed_backend(near.device), dict(ray_indices=ray_indices, n_rays=len(rays))
    weights, _, _ = backend.render_weight_from_density(t_starts, t_ends, densities, **where)
    alpha = backend.accumulate_along_rays(weights, None, **where)
    rgb = backend.accumulate_along_rays(weights, rgbs, **where) + (1.0 - alpha) * backdrop(background, rgbs)
    depth = backend.accumulate_along_rays(weights, t[:, None], **where) / alpha.clamp_min(torch.finfo(alpha.dtype).eps)
    return RayRender(rgb, alpha[:, 0], depth[:, 0], weights, t, t_starts, t_ends, densities, rgbs, ray_indices)


@torch.no_grad()
@a_few_cameras_at_a_time
def render_view(
    field: Field,
    cameras: Cameras,
    *,
    background: float | Float[Tensor, "3"] | None = None,
    chunk: int = 4096,
    near: float | None = None,
    far: float | None = None,
    render: Callable[..., RayRender] = render_rays,
    **options,
) -> Render:
    """Render whole pictures, without gradients.

    Args:
        background: grey level or colour [3]; the cameras' own by default.
        chunk: rays rendered at once; bounds the memory.
        render: what renders those of them that meet the box.
        options: as for `render`; a field's own `render_defaults` (a dict) stand for what is not given.
    """
    options = {**getattr(field, "render_defaults", {}), **options}
    background = cameras.background if background is None else background
    rays = camera_rays(cameras)
    rgb = backdrop(background, rays.origins).expand(3).repeat(len(rays), 1)
    alpha, depth = torch.zeros_like(rays.z_per_t), torch.zeros_like(rays.z_per_t)
    hits = ray_bounds(field, rays, near, far)[2].nonzero()[:, 0]
    where = [options.get(name) for name in ("occupancy", "step")]
    for some in hits.split(chunk):
        for part in [slice(None)] if None in where else parts_of(field, rays[some], *where, near or 0.0):
            few = some[part]
            out = render(field, rays[few], near=near, far=far, background=background, **options)
            rgb[few], alpha[few], depth[few] = out.rgb, out.alpha, out.depth * rays.z_per_t[few]
    shape = (len(cameras), cameras.height, cameras.width)
    return Render(rgb.view(*shape, 3), alpha.view(shape), depth.view(shape))

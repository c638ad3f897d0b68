"""Looking into NeRDF: one ray's series beside its teacher, how many terms a surface needs, what happens from view to view."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from nsw.cameras import Cameras, Rays, camera_rays, look_at, pixel_rays
from nsw.methods import nerdf
from nsw.models.field import Field
from nsw.models.ray_basis import gaussian_basis
from nsw.models.ray_distribution import RayDistribution
from nsw.renderers import whole_rays
from nsw.renderers.volume import RayRender, ray_bounds, render_at
from nsw.renderers.whole_rays import SeriesRender


def with_terms(student: RayDistribution, n: int) -> RayDistribution:
    """Return a copy of which only the first n terms of each series speak."""
    copied = copy.deepcopy(student)
    k = student.settings.n_terms
    with torch.no_grad():
        silent = torch.arange(4 * k, device=student.aabb.device) % k >= n
        copied.network.head.weight[silent], copied.network.head.bias[silent] = 0.0, 0.0
    return copied


@torch.no_grad()
def teacher_ray(teacher: Field, rays: Rays, near: float, n_samples: int = 256) -> RayRender:
    """Render rays of a teacher with samples evenly spread from where they enter its box to where they leave it."""
    first, last, _ = ray_bounds(teacher, rays, near)
    tau = whole_rays.positions(n_samples, first.device)
    return render_at(teacher, rays, first[:, None] + tau * (last - first)[:, None], first, last)


@torch.no_grad()
def ray_chart(student: RayDistribution, teacher: Field, camera: Cameras, near: float, row: int, column: int, terms: int):
    """Return a chart of one pixel's ray: the series' weights, the density they add up to, and who sees what of it.

    Above, the 4 x K numbers that the network answered; in the middle, density along the ray, student against teacher; below,
    the share of light that each part of the ray gives the pixel.

    Args:
        terms: how many of the K terms speak.
    """
    from nsw.widgets.charts import COLOURS, figure

    rays = pixel_rays(camera, *(torch.tensor([value], device=camera.Ks.device) for value in (0, row, column)))
    first, last, hit = ray_bounds(student, rays, near)
    if not bool(hit[0]):
        return figure([], title=f"The ray of pixel (row {row}, column {column}) misses the box: choose another one", height=560)
    fewer = with_terms(student, terms)
    numbers = fewer.coefficients(rays, first, last)[0].cpu()
    tau = whole_rays.positions(256, first.device)
    ours, theirs = whole_rays.render_rays(fewer, rays, near=near, tau=tau), teacher_ray(teacher, rays, near)
    names, colours = ("density", "red", "green", "blue"), ("#000000", COLOURS[1], COLOURS[2], COLOURS[0])
    data = [
        dict(type="bar", x=list(range(len(w))), y=w.tolist(), name=name, marker=dict(color=colour), xaxis="x", yaxis="y")
        for name, w, colour in zip(names, numbers, colours, strict=True)
    ]
    for who, out, colour, dash in (("student", ours, COLOURS[0], "solid"), ("teacher", theirs, COLOURS[1], "dash")):
        style = dict(type="scatter", mode="lines", line=dict(color=colour, dash=dash, width=2), x=out.t[0].tolist(), xaxis="x2")
        share = out.densities[0] / out.densities[0].max().clamp_min(1e-9)
        data.append(style | dict(y=share.tolist(), name=who, yaxis="y2"))
        per_length = out.weights[0] / (out.t_ends - out.t_starts)[0].clamp_min(1e-9)
        data.append(style | dict(y=per_length.tolist(), name=who, yaxis="y3", showlegend=False))
    chart = figure(data, title=_headline(ours, theirs, row, column), height=620, margin=dict(l=65, r=15, t=110, b=50))
    chart.update_layout(
        barmode="group",
        xaxis=dict(title="term k", anchor="y", domain=[0, 1]),
        yaxis=dict(title="W", domain=[0.74, 1.0]),
        xaxis2=dict(title="distance t (world units)", anchor="y3", domain=[0, 1]),
        yaxis2=dict(title="\u03c3 / max", domain=[0.34, 0.62], anchor="x2"),
        yaxis3=dict(title="w per unit", domain=[0.0, 0.28], anchor="x2"),
    )
    return chart


def _headline(ours: RayRender, theirs: RayRender, row: int, column: int) -> str:
    """Return what a chart's title says of both pixels."""
    off = float((ours.rgb - theirs.rgb).abs().mean())
    depths = f"depth {float(ours.depth[0]):.2f} and {float(theirs.depth[0]):.2f}" if float(theirs.alpha[0]) > 0.5 else "mostly air"
    return f"row {row}, column {column}: colour off by {off:.3f}, {depths}"


def slab_chart(
    terms: int,
    place: float,
    thickness: float,
    margin: float,
    basis: Callable[[Float[Tensor, "S"], int], Float[Tensor, "S K"]],
):
    """Return a chart of a slab of density, and the nearest sum of the first `terms` functions of a basis to it.

    Args:
        place: where the slab begins, in [0, 1]; it is cut off at 1.
        thickness: of the slab.
        margin: share of the period that is left unused at either end.
    """
    from nsw.widgets.charts import COLOURS, figure

    tau, slab, summed = slab_fit(terms, place, thickness, margin, basis)
    data = [
        dict(type="scatter", mode="lines", x=tau.tolist(), y=y.tolist(), name=name, line=dict(color=colour, dash=dash, width=2))
        for name, y, colour, dash in (
            ("the slab", slab, COLOURS[6], "dot"),
            ("sum of the series", summed, COLOURS[5], "solid"),
            ("density, never below zero", summed.clamp_min(0), COLOURS[1], "solid"),
        )
    ]
    ghost = float(summed.clamp_min(0)[slab == 0].mean() / slab.mean())
    return figure(
        data, title=f"density where none should be: {ghost:.0%} of the slab's", xaxis_title="\u03c4", yaxis_title="\u03c3"
    )


def slab_fit(
    terms: int,
    place: float,
    thickness: float,
    margin: float,
    basis: Callable[[Float[Tensor, "S"], int], Float[Tensor, "S K"]],
    n: int = 400,
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"], Float[Tensor, "n"]]:
    """Return positions in [0, 1], a slab of height one there, and the sum of a basis that is nearest to it; see `slab_chart`."""
    tau = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    slab = ((tau >= place) & (tau < place + thickness)).double()
    columns = basis(margin + (1 - 2 * margin) * tau, terms).double()
    return tau, slab, columns @ torch.linalg.lstsq(columns, slab[:, None], driver="gelsd").solution[:, 0]


def loss_paper(out: SeriesRender, lesson: nerdf.Lesson, background: float | Tensor, weight: float = 0.5) -> Float[Tensor, ""]:
    """Return the loss with the constraint on densities themselves, as the paper has it."""
    colour = nerdf.loss_terms(out, lesson, background, 0.0)["colour"]
    return colour + weight * nerdf.loss_profile(out.densities, lesson.densities, lesson.alpha)


def loss_released(out: SeriesRender, lesson: nerdf.Lesson, background: float | Tensor, weight: float = 0.5) -> Float[Tensor, ""]:
    """Return the loss of the released code, whose constraint reads the weights as those of Gaussian bumps, whatever the basis.

    The function that is held to the teacher's shape is then another one than the one that is rendered.
    """
    bumps = gaussian_basis(out.tau, out.coefficients.shape[-1])
    colour = nerdf.loss_terms(out, lesson, background, 0.0)["colour"]
    return colour + weight * nerdf.loss_profile((out.coefficients[:, 0] @ bumps.T).relu(), lesson.densities, lesson.alpha)


@torch.no_grad()
def depth_flicker(
    render: Callable[[Rays], Float[Tensor, "R"]],
    points_world: Float[Tensor, "P 3"],
    eyes: Float[Tensor, "E 3"],
    chunk: int = 1 << 12,
) -> Float[Tensor, "P"]:
    """Return by how much the depth of each point changes with the eye that looks at it: the standard deviation over eyes.

    A field has one surface for all eyes. A network that is asked ray by ray may place it elsewhere for each of them.

    Args:
        render: from rays to the distances at which they end.
        points_world: points that all eyes see.
        chunk: rays rendered together.
    """
    towards = points_world[None] - eyes[:, None]
    distance = towards.norm(dim=-1)
    rays = Rays(
        eyes[:, None].expand_as(towards).reshape(-1, 3),
        (towards / distance[..., None]).reshape(-1, 3),
        torch.ones_like(distance).reshape(-1),
    )
    found = torch.cat([render(rays[i : i + chunk]) for i in range(0, len(rays), chunk)])
    return (found.view(distance.shape) - distance).std(dim=0)


def sway(cameras: Cameras, n: int, amount: float = 0.7) -> Cameras:
    """Return n cameras on a closed curve inside the box of the given ones' centres, all looking where those look on average."""
    centres, axes = cameras.origins, cameras.world_from_cam[:, :3, 2]
    angle = torch.arange(n, device=centres.device) * (2 * torch.pi / n)
    middle, low, high = centres.mean(0), centres.amin(0), centres.amax(0)
    circle = torch.stack([angle.cos(), angle.sin(), (2 * angle).sin() * 0.3], dim=-1)
    eyes = middle + amount / 2 * (high - low) * circle
    reach = centres.norm(dim=-1).mean()
    target = (centres + reach * axes).mean(0)
    return Cameras(look_at(eyes, target.tolist()), cameras.Ks[:1].expand(n, -1, -1), cameras.width, cameras.height)


def questions_a_pixel(student: RayDistribution, cameras: Cameras, near: float) -> float:
    """Return how often a pixel of these pictures asks the network, by counting the rows that go through its last layer."""
    rows: list[int] = []
    handle = student.network.head.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    whole_rays.render_view(student, cameras, near=near)
    handle.remove()
    return sum(rows) / (len(cameras) * cameras.width * cameras.height)


def seen_points(camera: Cameras, depth: Float[Tensor, "H W"], about: int = 8192) -> Float[Tensor, "P 3"]:
    """Return the surface points that the pixels of a camera see, where their depth is known, not 0.

    Args:
        about: with twice as many pixels or more, only every k-th point, so that there are about so many.
    """
    rays = camera_rays(camera)
    depth = depth.to(rays.origins.device).reshape(-1)
    known = (depth > 0).nonzero()[:, 0]
    known = known[:: max(1, len(known) // about)]
    return rays[known].at_depth(depth[known])


def shaded(depths: Mapping[str, Float[Tensor, "H W"]]) -> dict[str, Float[Tensor, "H W"]]:
    """Return maps of depth as grey, from 0, the nearest of the first map, to 0.85, its farthest; 1 where the depth is not known."""
    first = next(iter(depths.values()))
    seen = first[first > 0] if bool((first > 0).any()) else first.new_ones(1)
    low, high = seen.min(), seen.max()
    scaled = {name: (0.85 * (depth - low) / (high - low).clamp_min(1e-6)).clamp(0, 0.85) for name, depth in depths.items()}
    return {name: torch.where(depths[name] > 0, grey, 1.0) for name, grey in scaled.items()}

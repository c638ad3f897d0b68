"""Densities along a ray as sums of waves: a slab, a teacher's ray, and a student's ray that may be changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from nsw.cameras import Cameras, pixel_ray
from nsw.methods.nerdf_inspect import slab_fit, teacher_ray, terms_fit, with_changes
from nsw.models.field import Field
from nsw.models.ray_basis import fourier_basis
from nsw.models.ray_distribution import RayDistribution
from nsw.renderers import whole_rays
from nsw.renderers.volume import RayRender, ray_bounds
from nsw.widgets.charts import COLOURS, css, figure

Basis = Callable[[Float[Tensor, "S"], int], Float[Tensor, "S K"]]


def slab_chart(terms: int, place: float, thickness: float, margin: float, basis: Basis = fourier_basis):
    """Return a chart of a slab of density, and the nearest sum of the first `terms` functions of a basis to it.

    Args:
        place: where the slab begins, in [0, 1]; it is cut off at 1.
        thickness: of the slab.
        margin: share of the period that is left unused at either end.
    """
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


@torch.no_grad()
def teacher_chart(
    teacher: Field,
    camera: Cameras,
    near: float,
    row: int,
    column: int,
    terms: int,
    basis: Basis = fourier_basis,
    most: int = 48,
):
    """Return a chart of what a teacher shows along one pixel's ray, the best series of it, and the pixel's error by terms.

    Above, the density that light reaches and the sum of the series' first `terms`; below, how far the pixel of the series is
    from the teacher's, for every number of terms, and the two pixels themselves.

    Args:
        basis: see `nerdf_inspect.terms_fit`.
        most: the largest number of terms.
    """
    rays = pixel_ray(camera, row, column)
    if not bool(ray_bounds(teacher, rays, near)[2][0]):
        return figure([], title=_missed(row, column), height=520)
    ray = teacher_ray(teacher, rays, near)
    seen, sums, pixels = terms_fit(ray, most, basis)
    error = (pixels - ray.rgb).abs().mean(-1).tolist()
    top, series, t = float(seen.max().clamp_min(1e-9)), sums[terms - 1], ray.t[0].tolist()
    curve = dict(type="scatter", mode="lines", x=t, xaxis="x", yaxis="y")
    by_terms = dict(type="scatter", xaxis="x2", yaxis="y2", showlegend=False)
    data = [
        curve | dict(y=(seen / top).tolist(), name="teacher", line=dict(color=COLOURS[6], dash="dot", width=2)),
        curve | dict(y=(series / top).tolist(), name="sum of the series", line=dict(color=COLOURS[5], width=2)),
        curve | dict(y=(series / top).clamp_min(0).tolist(), name="never below zero", line=dict(color=COLOURS[1], width=2)),
        by_terms | dict(mode="lines", x=list(range(1, most + 1)), y=error, line=dict(color=COLOURS[0], width=2)),
        by_terms | dict(mode="markers", x=[terms], y=[error[terms - 1]], marker=dict(color=COLOURS[1], size=12)),
        _pixels({"series": pixels[terms - 1], "teacher": ray.rgb[0]}, "3"),
    ]
    title = f"row {row}, column {column}, {terms} terms: pixel off by {error[terms - 1]:.3f}"
    chart = figure(data, title=title, height=520, margin=dict(l=65, r=20, t=85, b=55))
    chart.update_layout(
        xaxis=dict(title="distance t (world units)", anchor="y"),
        yaxis=dict(title="\u03c3 / teacher's peak", domain=[0.56, 1.0]),
        xaxis2=dict(title="terms", anchor="y2", domain=[0.0, 0.74]),
        yaxis2=dict(title="pixel error", domain=[0.0, 0.34], anchor="x2"),
        **_pixel_axes("3", [0.88, 1.0], [0.0, 0.34]),
    )
    return chart


@torch.no_grad()
def ray_chart(
    student: RayDistribution,
    teacher: Field,
    camera: Cameras,
    near: float,
    row: int,
    column: int,
    changes: Sequence[Sequence[float]] | None = None,
):
    """Return a chart of one pixel's ray: the series' weights, the density and colours they add up to, and who sees what of it.

    Above, the 4 x K numbers that the network answered, with `changes` added, and three pixels: the network's, the changed one,
    the teacher's. Below, density along the ray, the colours, and the share of light that each part of the ray gives the pixel.

    Args:
        changes: 4 x K numbers, for density, red, green and blue.
    """
    rays = pixel_ray(camera, row, column)
    first, last, hit = ray_bounds(student, rays, near)
    if not bool(hit[0]):
        return figure([], title=_missed(row, column), height=560)
    tau, changed = whole_rays.positions(192, first.device), with_changes(student, torch.tensor(changes)) if changes else student
    plain, ours = (whole_rays.render_rays(model, rays, near=near, tau=tau) for model in (student, changed))
    theirs = teacher_ray(teacher, rays, near)
    names, colours = ("density", "red", "green", "blue"), ("#000000", COLOURS[1], COLOURS[2], COLOURS[0])
    data = [
        dict(type="bar", x=list(range(len(w))), y=w.tolist(), name=name, marker=dict(color=colour), xaxis="x", yaxis="y")
        for name, w, colour in zip(names, ours.coefficients[0].cpu(), colours, strict=True)
    ]
    for who, out, peak, colour, dash in (
        ("student", ours, plain, COLOURS[0], "solid"),
        ("teacher", theirs, theirs, COLOURS[1], "dash"),
    ):
        style = dict(type="scatter", mode="lines", line=dict(color=colour, dash=dash, width=2), x=out.t[0].tolist(), xaxis="x2")
        share = out.densities[0] / peak.densities[0].max().clamp_min(1e-9)
        data.append(style | dict(y=share.tolist(), name=who, yaxis="y2"))
        per_length = out.weights[0] / (out.t_ends - out.t_starts)[0].clamp_min(1e-9)
        data.append(style | dict(y=per_length.tolist(), name=who, yaxis="y3", showlegend=False))
        strip = dict(size=9, symbol="square", color=css(out.rgbs[0, ::3]))
        place = dict(x=out.t[0, ::3].tolist(), y=[who] * len(out.t[0, ::3]), xaxis="x2", yaxis="y4", showlegend=False)
        data.append(dict(type="scatter", mode="markers", marker=strip) | place)
    data.append(_pixels({"teacher": theirs.rgb[0], "changed": ours.rgb[0], "network": plain.rgb[0]}, "5"))
    chart = figure(data, title=_headline(ours, theirs, row, column), height=680, margin=dict(l=75, r=15, t=110, b=50))
    chart.update_layout(
        barmode="group",
        xaxis=dict(title="term k", anchor="y", domain=[0, 0.78]),
        yaxis=dict(title="W", domain=[0.78, 1.0]),
        xaxis2=dict(title="distance t (world units)", anchor="y3", domain=[0, 1]),
        yaxis2=dict(title="\u03c3 / peak", domain=[0.42, 0.66], anchor="x2"),
        yaxis4=dict(domain=[0.29, 0.37], anchor="x2", type="category"),
        yaxis3=dict(title="w per unit", domain=[0.0, 0.24], anchor="x2"),
        **_pixel_axes("5", [0.9, 1.0], [0.78, 1.0]),
    )
    return chart


def _missed(row: int, column: int) -> str:
    return f"The ray of pixel (row {row}, column {column}) misses the box: choose another one"


def _pixels(named: dict[str, Float[Tensor, "3"]], axis: str) -> dict:
    """Return a trace of large dots in the colours of pixels, upwards in their order."""
    look = dict(size=26, color=css(torch.stack(list(named.values()))), line=dict(color="#444", width=1))
    place = dict(x=[0.0] * len(named), y=list(named), xaxis=f"x{axis}", yaxis=f"y{axis}")
    return dict(type="scatter", mode="markers", marker=look, showlegend=False) | place


def _pixel_axes(axis: str, across: list[float], up: list[float]) -> dict:
    hidden = dict(domain=across, anchor=f"y{axis}", showticklabels=False, range=[-1, 1], showgrid=False, zeroline=False)
    return {f"xaxis{axis}": hidden, f"yaxis{axis}": dict(domain=up, anchor=f"x{axis}", type="category")}


def _headline(ours: RayRender, theirs: RayRender, row: int, column: int) -> str:
    """Return what a chart's title says of both pixels."""
    off = float((ours.rgb - theirs.rgb).abs().mean())
    depths = f"depth {float(ours.depth[0]):.2f} and {float(theirs.depth[0]):.2f}" if float(theirs.alpha[0]) > 0.5 else "mostly air"
    return f"row {row}, column {column}: colour off by {off:.3f}, {depths}"

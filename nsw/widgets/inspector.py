"""One ray under the glass: click a pixel, see its samples, density, transmittance, weights and colours."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from nsw.cameras import Cameras, Rays, pixel_ray
from nsw.errors import InputError
from nsw.widgets import pictures
from nsw.widgets.charts import COLOURS, css, figure
from nsw.widgets.frontend import Latest, emit, live


@dataclass(frozen=True)
class RaySamples:
    """What one ray met: S samples in order of distance.

    Attributes:
        t: distances [S] where the field was asked, world units.
        density: sigma [S], 1 / world unit.
        transmittance: T [S], the share of light left before each sample.
        weights: w [S], the share of the pixel that each sample gives.
        rgb: colours [S, 3] in [0, 1].
        depth: expected distance of the ray.
        skipped: [G, 2] where stretches begin and end in which no sample stands for the field, ascending.
    """

    t: np.ndarray
    density: np.ndarray
    transmittance: np.ndarray
    weights: np.ndarray
    rgb: np.ndarray
    depth: float
    skipped: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))


def samples_of(answer: Any, between: tuple[float, float] | None = None) -> RaySamples:
    """Return the samples of one ray from a `RayRender` of one ray, or a mapping with the same names.

    Needed: t (or t_starts and t_ends), densities, weights, rgbs. What lies between one sample's t_ends and the next one's
    t_starts was skipped.

    Args:
        between: where the ray enters and leaves the field; what lies before the first and behind the last sample was skipped too.
    """

    def get(name: str) -> np.ndarray | None:
        value = answer.get(name) if isinstance(answer, Mapping) else getattr(answer, name, None)
        return None if value is None else torch.as_tensor(value).detach().cpu().double().numpy()

    weights, rgb, density = get("weights"), get("rgbs"), get("densities")
    starts, ends, t = get("t_starts"), get("t_ends"), get("t")
    if t is None and starts is not None and ends is not None:
        t = 0.5 * (starts + ends)
    if t is None or weights is None or density is None or rgb is None:
        raise InputError("ray_inspector() needs t (or t_starts and t_ends), densities, weights and rgbs of the ray's samples.")
    t, weights, density, rgb = t.reshape(-1), weights.reshape(-1), density.reshape(-1), rgb.reshape(-1, 3)
    # T_i = 1 - sum of the weights before i, which holds for every way of compositing.
    transmittance = 1.0 - np.concatenate([[0.0], np.cumsum(weights)[:-1]]) if len(weights) else weights
    total = weights.sum()
    depth = float((weights * t).sum() / total) if total > 1e-6 else 0.0
    skipped = np.zeros((0, 2)) if starts is None or ends is None else gaps(starts.reshape(-1), ends.reshape(-1), between)
    return RaySamples(t, density, transmittance, weights, rgb, depth, skipped)


def gaps(starts: np.ndarray, ends: np.ndarray, between: tuple[float, float] | None = None) -> np.ndarray:
    """Return the stretches [G, 2] between intervals [S] in ascending order; what is shorter than half an interval is none.

    >>> gaps(np.array([1.0, 2.0, 5.0]), np.array([2.0, 3.0, 6.0]), (0.0, 6.1)).tolist()
    [[0.0, 1.0], [3.0, 5.0]]
    """
    first, last = between or ((starts[0], ends[-1]) if len(starts) else (0.0, 0.0))
    stretches = np.stack([np.concatenate([[first], ends]), np.concatenate([starts, [last]])], axis=-1)
    least = 0.5 * float(np.median(ends - starts)) if len(starts) else 0.0
    return stretches[stretches[:, 1] - stretches[:, 0] > least]


def with_skipped(samples: RaySamples) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return distances, densities, transmittances and weights with two points more at each gap: nothing stands in it."""
    edges = samples.skipped.reshape(-1)
    t = np.concatenate([samples.t, edges])
    order, nothing = np.argsort(t, kind="stable"), np.zeros(len(edges))
    density, weights = (np.concatenate([values, nothing])[order] for values in (samples.density, samples.weights))
    return t[order], density, 1.0 - np.concatenate([[0.0], np.cumsum(weights)])[: len(t)], weights


def ray_figure(samples: RaySamples, true_t: float | None, title: str):
    """Return the chart of one ray: density above, transmittance and weights below it, and the colours as a strip."""
    import plotly.graph_objects as go

    along, density, transmittance, weights = with_skipped(samples)
    shown = [*along[:1], *along[-1:], *([] if true_t is None else [true_t])]
    t, colours = samples.t.tolist(), css(samples.rgb)

    def curve(y: np.ndarray, name: str, axis: str, colour: str, **more: Any):
        line = dict(color=colour, width=2)
        return go.Scatter(x=along.tolist(), y=y.tolist(), name=name, yaxis=axis, mode="lines", line=line, **more)

    data = [
        *_bands(samples.skipped, "y", float(density.max(initial=0.0)) or 1.0),
        *_bands(samples.skipped, "y2", 1.0, name="skipped"),
        curve(density, "density \u03c3(t)", "y", COLOURS[0], fill="tozeroy"),
        curve(transmittance, "transmittance T(t)", "y2", COLOURS[2], line_dash="dash"),
        curve(weights, "weight w(t)", "y2", COLOURS[1]),
        go.Scatter(
            x=t,
            y=[0.5] * len(t),
            name="colour",
            yaxis="y3",
            mode="markers",
            showlegend=False,
            marker=dict(size=9, symbol="square", color=colours),
        ),
    ]
    for name, at, colour, dash in (
        ("expected depth", samples.depth or None, COLOURS[3], "dot"),
        ("true depth", true_t, COLOURS[6], "dashdot"),
    ):
        if at is not None:
            data.append(
                go.Scatter(x=[at, at], y=[0, 1], name=name, yaxis="y2", mode="lines", line=dict(color=colour, dash=dash, width=2))
            )
    chart = figure(data, title=title, width=520, height=460, margin=dict(l=65, r=15, t=95, b=55), showlegend=True)
    chart.update_layout(
        xaxis=dict(title="distance t along the ray (world units)", anchor="y3", range=[min(shown), max(shown)] if shown else None),
        yaxis=dict(title="\u03c3", domain=[0.58, 1.0]),
        yaxis2=dict(title="T, w", domain=[0.12, 0.5], range=[-0.03, 1.05], anchor="x", gridcolor="#e3e3e3"),
        yaxis3=dict(domain=[0.0, 0.06], range=[0, 1], showticklabels=False, anchor="x"),
    )
    return chart


def _bands(skipped: np.ndarray, axis: str, top: float, name: str | None = None) -> list[dict[str, Any]]:
    """Return a grey area from 0 to `top` over each stretch that was skipped; none where there are none."""
    x = [v for a, b in skipped.tolist() for v in (a, b, b, a, a, None)]
    y = [v for _ in skipped for v in (0.0, 0.0, top, top, 0.0, None)]
    look = dict(mode="lines", fill="toself", fillcolor="#dddddd", line=dict(color="#bbbbbb", width=0), hoverinfo="skip")
    return [dict(type="scatter", x=x, y=y, yaxis=axis, name=name, showlegend=name is not None, **look)] if x else []


def ray_inspector(
    sample: Callable[[Rays], Any] | Any,
    scene: Any,
    alt: str,
    frame: int | None = None,
    row: int | None = None,
    column: int | None = None,
    picture: Any = None,
    **options: Any,
) -> None:
    """Show one picture and, for the pixel marked in it, what its ray meets.

    Click the picture, or move the mark with the arrow keys or the two sliders.

    Args:
        sample: from `Rays` of one ray to a `RayRender` (or a mapping with t, densities, weights, rgbs); or a field, which
            `nsw.renderers.volume.render_rays` then samples with `options`.
        scene: a `Scene`; its true depth, where it has one, is drawn as a line.
        alt: what the chart shows.
        frame: frame index in the scene; the first test view by default.
        row, column: the first pixel; the middle by default.
        picture: shown instead of the scene's own picture of that frame.
    """
    alt = pictures.need_alt(alt)
    frame = int(scene.splits["test"][0]) if frame is None else frame
    cameras = scene.views([frame])
    shown = pictures.to_array(scene.pixels([frame])[0] if picture is None else picture)
    if shown.shape[:2] != (cameras.height, cameras.width):
        raise InputError(f"ray_inspector(): the picture is {shown.shape[:2]}, but the camera is {(cameras.height, cameras.width)}.")
    glass = _Glass(_sampler(sample, options), scene, frame, cameras, _bounds(sample, options))
    row = cameras.height // 2 if row is None else max(0, min(cameras.height - 1, row))
    column = cameras.width // 2 if column is None else max(0, min(cameras.width - 1, column))
    chart = glass.chart(row, column)
    box = _box(glass, shown, alt, row, column, chart) if live() else None
    _emit_still(shown, chart, alt, row, column, box)


def _sampler(sample: Any, options: dict[str, Any]) -> Callable[[Rays], Any]:
    if not hasattr(sample, "query"):
        if options:
            raise InputError(f"ray_inspector(): {', '.join(options)} belongs to a field, but a function was given; set it inside.")
        return sample
    from nsw.renderers import beside
    from nsw.renderers.volume import render_rays

    settings = {"n_samples": 96, **options}
    return lambda rays: render_rays(sample, beside(sample, rays), **settings)


def _bounds(sample: Any, options: dict[str, Any]) -> Callable[[Rays], tuple[float, float] | None]:
    """Return the function that says where a ray enters and leaves a field with a box; nothing is known of other functions."""
    from nsw.renderers import beside
    from nsw.renderers.volume import ray_bounds

    def between(rays: Rays) -> tuple[float, float]:
        first, last, _ = ray_bounds(sample, beside(sample, rays), options.get("near"), options.get("far"))
        return float(first), float(last)

    return between if getattr(sample, "aabb", None) is not None else lambda rays: None


class _Glass:
    """Answers a pixel with the chart of its ray."""

    def __init__(self, sample: Callable[[Rays], Any], scene: Any, frame: int, cameras: Cameras, between: Callable[[Rays], Any]):
        self.sample, self.scene, self.frame, self.cameras, self.between = sample, scene, frame, cameras, between

    def chart(self, row: int, column: int):
        rays = pixel_ray(self.cameras, row, column)
        with torch.no_grad():
            samples = samples_of(self.sample(rays), self.between(rays))
        true_t = None
        if self.scene.depth is not None:
            z = float(self.scene.depth[self.frame, row, column])
            true_t = z / float(rays.z_per_t[0]) if z > 0 else None
        return ray_figure(samples, true_t, f"Ray of pixel (row {row}, column {column})")


def _box(glass: _Glass, shown: np.ndarray, alt: str, row: int, column: int, chart: Any):
    """Return the live inspector."""
    import ipywidgets

    from nsw.widgets.frontend import failure_line
    from nsw.widgets.picture_widget import pixel_picker
    from nsw.widgets.slider_panel import figure_view, set_figure

    view = pixel_picker(shown, "The picture whose rays are shown.", row, column)
    error = ipywidgets.HTML()
    plot = figure_view(chart, alt)
    look = dict(style={"description_width": "60px"}, layout={"width": "320px"})
    rows = ipywidgets.IntSlider(value=row, min=0, max=shown.shape[0] - 1, description="row", **look)
    columns = ipywidgets.IntSlider(value=column, min=0, max=shown.shape[1] - 1, description="column", **look)

    def draw(at: tuple[int, int], coarse: bool) -> None:
        try:
            set_figure(plot, glass.chart(*at), alt)
        except Exception as problem:  # the learner's own field: show what it raised and stay alive
            error.value = f'<span role="alert" style="color:#b00020">{html.escape(failure_line(problem))}</span>'
            return
        error.value = ""

    latest = Latest(draw, coarse=False)

    def picked(change: Any) -> None:
        rows.value, columns.value = change["new"]
        latest.submit(tuple(change["new"]))

    def slid(_: Any) -> None:
        if [rows.value, columns.value] != view.picked:
            view.picked = [rows.value, columns.value]

    view.observe(picked, names="picked")
    for slider in (rows, columns):
        slider.observe(slid, names="value")
    left = ipywidgets.VBox([view, rows, columns])
    text = ipywidgets.HTML(f'<span style="font-size:0.85em;opacity:0.8">{html.escape(alt)}</span>')
    box = ipywidgets.VBox([ipywidgets.HBox([left, plot], layout={"flex_flow": "row wrap"}), text, error])
    box.add_class("nsw-inspector")
    return box


def _emit_still(shown: np.ndarray, chart: Any, alt: str, row: int, column: int, box: Any) -> None:
    """Display the picture with its mark beside the chart."""
    from nsw.widgets.svg_still import svg

    width = pictures.shown_width(shown.shape[1], room=360)
    big = pictures.enlarged(shown, width).copy()
    scale = width / shown.shape[1]
    y, x = int((row + 0.5) * scale), int((column + 0.5) * scale)
    for reach, value in ((7, 0), (5, 255)):
        top, left = max(0, y - reach), max(0, x - reach)
        inner = big[max(0, y - 3) : y + 4, max(0, x - 3) : x + 4].copy()
        big[top : y + reach + 1, left : x + reach + 1] = value
        big[max(0, y - 3) : y + 4, max(0, x - 3) : x + 4] = inner
    text = (
        f'<figure style="margin:0.3em 0" role="group" aria-label="{html.escape(alt, quote=True)}">'
        '<div style="display:flex;gap:8px;flex-wrap:wrap">'
        f"<div>{pictures.img_tag(big, 'The picture with the pixel marked.', width)}</div>"
        f"<div>{svg(chart, alt)}</div></div></figure>"
    )
    emit({"text/html": text, "text/plain": alt}, box)

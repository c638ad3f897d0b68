"""Line and bar charts in the house style: plotly where a front end draws it, an SVG still everywhere else."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nsw.runs.table import short
from nsw.widgets.frontend import emit
from nsw.widgets.pictures import need_alt

# Okabe and Ito's palette, told apart with every common form of colour blindness; the yellow is last: it is weak on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "solid", "dash", "dot")
WIDTH, HEIGHT = 720, 360
MOST = 20_000  # points of a curve


def css(colours: Any) -> list[str]:
    """Return colours [n, 3] in [0, 1] as a page writes them; what lies outside is cut off.

    >>> css([[0.0, 0.5, 2.0]])
    ['rgb(0,128,255)']
    """
    colours = np.clip(np.asarray(_numbers(colours), dtype=np.float64), 0, 1) * 255  # tensors may be on a GPU
    return [f"rgb({r},{g},{b})" for r, g, b in colours.round().astype(int).tolist()]


def figure(data: Sequence[Any] = (), **layout: Any):
    """Return a plotly figure with the house layout; `layout` overrides it.

    The title stands at the top, the legend over the axes; the figure is taller where there are both, so that they do not touch.
    """
    import plotly.graph_objects as go

    title = layout.pop("title", None)
    rows = _legend_rows(data, layout.get("width", WIDTH) - 90, layout.get("showlegend"))
    room = 11 + 19 * rows if title and rows else 0
    axis = dict(showline=True, linecolor="#444", ticks="outside", gridcolor="#e3e3e3", zerolinecolor="#bbb", automargin=True)
    house = dict(
        width=WIDTH,
        height=HEIGHT + room,
        title=dict(text=title, yref="container", y=1, yanchor="top", pad=dict(t=14)),
        paper_bgcolor="white",
        plot_bgcolor="white",
        font=dict(family="Arial, Helvetica, sans-serif", size=14, color="#222"),
        margin=dict(l=70, r=20, t=50 + room if title else 20, b=60),
        colorway=list(COLOURS),
        colorscale=dict(sequential="Cividis"),
        legend=dict(orientation="h", yanchor="bottom", y=1.0, xanchor="left", x=0),
        xaxis=axis,
        yaxis=axis,
    )
    # An empty template keeps the default one, which is ten times larger than a small chart, out of the notebook file.
    return go.Figure(list(data), layout=go.Layout(template="none", **house)).update_layout(**layout)


def _legend_rows(data: Sequence[Any], width: float, shown: bool | None = None) -> int:
    """Return in how many rows plotly writes the names of traces: in columns as wide as the longest, where one row is too short.

    Args:
        shown: what the layout says of the legend; by default one of several names is shown.

    >>> _legend_rows([dict(name="a"), dict(name="b"), dict(x=[1])], 200), _legend_rows([dict(name="a long name")] * 5, 300)
    (1, 3)
    """
    entries = [trace if isinstance(trace, Mapping) else trace.to_plotly_json() for trace in data]
    lengths = [45 + 7.5 * len(trace["name"]) for trace in entries if trace.get("name") and trace.get("showlegend", True)]
    if not lengths or not (len(lengths) > 1 if shown is None else shown):
        return 0
    return 1 if sum(lengths) <= width else math.ceil(len(lengths) / max(1, width // max(lengths)))


def _numbers(values: Any) -> list:
    """Return values as a plain list: a base64 array would tie the stored notebook to one plotly version."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    return values.tolist() if hasattr(values, "tolist") else list(values)


def some_of(values: Any, most: int = 5000) -> Any:
    """Return the values, or so many of them, evenly picked: no browser draws each of a million points.

    >>> some_of(range(10), 4)
    [0, 3, 6, 9]
    """
    if len(values) <= most:
        return values
    picked = np.linspace(0, len(values) - 1, most).round().astype(int).tolist()
    return [values[i] for i in picked] if isinstance(values, Sequence) else values[picked]


def lines_figure(
    series: Mapping[str, tuple[Any, Any]],
    x: str,
    y: str,
    title: str | None = None,
    markers: bool = False,
    log_x: bool = False,
    log_y: bool = False,
):
    """Return a chart of curves {name: (x values, y values)} with named axes; colour and dash both tell them apart."""
    data = [
        dict(
            type="scatter",
            x=some_of(_numbers(xs), MOST),
            y=some_of(_numbers(ys), MOST),
            name=name,
            mode="lines+markers" if markers else "lines",
            line=dict(color=COLOURS[i % 8], dash=DASHES[i % 8], width=2.5),
        )
        for i, (name, (xs, ys)) in enumerate(series.items())
    ]
    chart = figure(data, title=title, showlegend=len(data) > 1)
    chart.update_xaxes(title=x, **(log_axis([v for trace in data for v in trace["x"]]) if log_x else {}))
    return chart.update_yaxes(title=y, **(log_axis([v for trace in data for v in trace["y"]]) if log_y else {}))


def lines(
    series: Mapping[str, tuple[Any, Any]],
    x: str,
    y: str,
    alt: str,
    title: str | None = None,
    caption: str | None = None,
    markers: bool = False,
    log_x: bool = False,
    log_y: bool = False,
) -> None:
    """Show the curves of `lines_figure`."""
    show_figure(lines_figure(series, x, y, title, markers, log_x, log_y), alt, caption)


def log_axis(values: Sequence[float]) -> dict[str, Any]:
    """Return plotly's settings of a logarithmic axis whose tick labels do not touch each other.

    Over one or two decades plotly writes every digit from 2 to 9, closer than their height: here only 2 and 5. Small
    powers are written as powers, not with the prefix of a unit.

    >>> log_axis([0.003, 0.08])["dtick"], "dtick" in log_axis([1e-6, 1.0])
    ('D2', False)
    """
    positive = [v for v in values if v is not None and 0 < v < math.inf]
    decades = math.log10(max(positive) / min(positive)) if positive else 0.0
    return dict(type="log", exponentformat="power") | (dict(dtick="D2") if 0.8 <= decades <= 2.8 else {})


def bars(
    values: Mapping[str, float | Mapping[str, float]],
    alt: str,
    y: str = "",
    title: str | None = None,
    caption: str | None = None,
    stacked: bool = False,
):
    """Show bars {name: value}, or groups {name: {series: value}}, each with its number written on it.

    Args:
        stacked: put the series of a group on top of each other; the number written is their sum.
    """
    import plotly.graph_objects as go

    grouped = any(isinstance(value, Mapping) for value in values.values())
    names = list(dict.fromkeys(key for value in values.values() for key in value)) if grouped else [""]
    data, tops = [], [0.0] * len(values)
    for i, name in enumerate(names):
        heights = [
            float(value[name]) if grouped and name in value else None if grouped else float(value) for value in values.values()
        ]
        labels = ["" if height is None else _label(height) for height in heights]
        look = dict(textposition="outside", cliponaxis=False, marker_color=COLOURS[i % 8])
        if stacked:
            look["base"], heights = tops, [height or 0.0 for height in heights]
            tops = [top + height for top, height in zip(tops, heights, strict=True)]
            labels = [_label(top) if name == names[-1] else "" for top in tops]
        data.append(go.Bar(x=list(values), y=heights, name=name, text=labels, **look))
    chart = figure(data, title=title, showlegend=grouped, barmode="overlay" if stacked else "group")
    chart.update_xaxes(type="category")  # else plotly takes "#734125" and "1%" for numbers
    chart.update_yaxes(title=y)
    show_figure(chart, alt, caption)


def bubbles(
    points: Mapping[str, tuple[float, float, float]],
    x: str,
    y: str,
    alt: str,
    title: str | None = None,
    caption: str | None = None,
    log_x: bool = False,
    largest: float = 60.0,
):
    """Show bubbles {name: (x value, y value, size)} whose areas are as their sizes, named above, or below beside another one.

    Args:
        largest: diameter of the largest bubble in pixels.
    """
    most = max(size for _, _, size in points.values())
    ordered = sorted(points.items(), key=lambda item: -item[1][2])  # small ones in front
    across = [largest * math.sqrt(size / most) for _, (_, _, size) in ordered]
    heights = [height for _, (_, height, _) in ordered]
    room = 0.35 * ((max(heights) - min(heights)) or 1.0)
    low, high = min(heights) - room, max(heights) + room
    per_pixel = (high - low) / (HEIGHT - 110)
    data = [
        dict(type="scatter", mode="markers", x=[at], y=[height], marker=dict(size=[size], color=COLOURS[i % 8], opacity=0.8))
        for i, ((_, (at, height, _)), size) in enumerate(zip(ordered, across, strict=True))
    ]
    names, places = [name for name, _ in ordered], [at for _, (at, _, _) in ordered]
    along = [math.log10(at) if log_x else at for at in places]
    ends = [min(along), max(along)]
    margin = 0.15 * ((ends[1] - ends[0]) or 1.0)
    tops: list[float] = []
    for i, (height, size) in enumerate(zip(heights, across, strict=True)):
        beside = any(abs(along[i] - along[j]) < margin and abs(height - heights[j]) < room / 2 for j in range(i))
        tops.append(height - (size / 2 + 20) * per_pixel if beside else height + (size / 2 + 2) * per_pixel)
    data.append(dict(type="scatter", mode="text", x=places, y=tops, text=names, textposition="top center"))
    chart = figure(data, title=title, showlegend=False)
    chart.update_xaxes(title=x, **(log_axis(places) if log_x else {}), range=[ends[0] - margin, ends[1] + margin])
    chart.update_yaxes(title=y, range=[low, high])
    show_figure(chart, alt, caption)


def _label(height: float) -> str:
    """Return the number on a bar in three digits, thousands as whole numbers.

    >>> _label(97.56), _label(1536.0), _label(19867.858)
    ('97.6', '1536', '19,868')
    """
    return short(height) if abs(height) >= 1000 else f"{height:.3g}"


def show_figure(chart: Any, alt: str, caption: str | None = None) -> None:
    """Display a plotly figure: interactive where plotly's renderer is installed, as an SVG still elsewhere."""
    need_alt(alt)
    emit(figure_bundle(chart, alt), metadata={"image/svg+xml": {"alt": alt}})
    if caption:
        emit({"text/html": f'<p style="margin:0;font-size:0.9em;opacity:0.85">{html.escape(caption)}</p>', "text/plain": caption})


def figure_bundle(chart: Any, alt: str) -> dict[str, Any]:
    """Return the mime bundle of a figure; nothing in it needs the network."""
    from nsw.widgets.svg_still import svg

    return {
        "application/vnd.plotly.v1+json": {**json.loads(chart.to_json()), "config": {"displaylogo": False, "responsive": False}},
        "image/svg+xml": svg(chart, alt),
        "text/plain": alt,
    }

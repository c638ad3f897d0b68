"""A plotly figure as a plain SVG still, for the places where no plotly renderer runs (converted notebooks, GitHub, mail).

It draws what the notebooks use: scatter, bar, heatmap and image traces on one or several pairs of axes, and 3D scatter and mesh
traces as a parallel projection. Other traces are named in the still instead of being left out silently.
"""

from __future__ import annotations

import base64
import html
import json
import math
from typing import Any

import numpy as np

_DASH = {"dash": "8,5", "dot": "2,4", "dashdot": "8,4,2,4", "longdash": "14,6"}
_ROW = 18  # height of a row of the legend
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")


def svg(figure: Any, alt: str) -> str:
    """Return the figure as an SVG document with `alt` as its accessible name."""
    spec = json.loads(figure.to_json())
    layout, data = spec.get("layout", {}), [t for t in spec.get("data", []) if t.get("visible", True) is True]
    width, height = layout.get("width", 720), layout.get("height", 360)
    margin = {"l": 70, "r": 20, "t": 50, "b": 60, **layout.get("margin", {})}
    legend = _legend_rows(layout, data, width - margin["l"])
    margin["t"] += _ROW * max(len(legend) - 1, 0)  # rows of a long legend grow upwards from the axes
    parts: list[str] = []
    for x_ref, y_ref in dict.fromkeys((t.get("xaxis", "x"), t.get("yaxis", "y")) for t in data if not _is_3d(t)):
        traces = [t for t in data if not _is_3d(t) and (t.get("xaxis", "x"), t.get("yaxis", "y")) == (x_ref, y_ref)]
        parts += _panel(traces, layout, x_ref, y_ref, width, height, margin, data)
    solid = [t for t in data if _is_3d(t)]
    if solid:
        parts += _projected(solid, width, height, margin)
    parts += _annotations(layout, legend, width, height, margin)
    label = html.escape(alt, quote=True)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{label}" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" style="max-width:100%;height:auto" font-family="Arial, Helvetica, sans-serif" '
        'font-size="13" fill="#222">'
        f'<title>{label}</title><rect width="{width}" height="{height}" fill="white"/>{"".join(parts)}</svg>'
    )


def _is_3d(trace: dict) -> bool:
    return trace.get("type", "scatter").endswith("3d") or trace.get("type") in ("cone", "surface")


def values(field: Any) -> np.ndarray:
    """Return a JSON field of a trace as an array; plotly stores arrays as base64 with a dtype."""
    if field is None:
        return np.zeros(0)
    if isinstance(field, dict) and "bdata" in field:
        array = np.frombuffer(base64.b64decode(field["bdata"]), dtype=np.dtype(field["dtype"]))
        shape = field.get("shape")
        return array.reshape([int(n) for n in str(shape).split(",")]) if shape else array
    return np.asarray(field, dtype=object) if _texts(field) else np.asarray(field, dtype=np.float64)


def _texts(field: Any) -> bool:
    return isinstance(field, list) and any(isinstance(value, str) for value in field)


def _title(layout_item: Any) -> str:
    title = (layout_item or {}).get("title")
    return (title.get("text") or "") if isinstance(title, dict) else (title or "")


class _Axis:
    """One axis: data values to pixels, with its ticks."""

    def __init__(self, layout_axis: dict, arrays: list[np.ndarray], start: float, end: float, from_zero: bool, pad: float):
        self.start, self.end, self.log = start, end, layout_axis.get("type") == "log"
        self.categories = list(dict.fromkeys(str(v) for a in arrays if a.dtype == object for v in a))
        if self.categories:
            self.low, self.high = -0.5, len(self.categories) - 0.5
            return
        flat = np.concatenate([a.astype(np.float64).ravel() for a in arrays] or [np.zeros(1)])
        flat = flat[np.isfinite(flat) & ((flat > 0) | (not self.log))]
        flat = np.log10(flat) if self.log else flat
        low, high = (float(flat.min()), float(flat.max())) if flat.size else (0.0, 1.0)
        low, high = (min(low, 0.0), max(high, 0.0)) if from_zero else (low, high)
        span = (high - low) or max(abs(high), 1.0)
        self.low, self.high = low - pad * span * (not (from_zero and low == 0)), high + pad * span
        if layout_axis.get("range") and layout_axis["range"][0] is not None:
            self.low, self.high = (float(v) for v in layout_axis["range"])
        elif layout_axis.get("autorange") == "reversed":
            self.low, self.high = self.high, self.low

    def __call__(self, field: np.ndarray) -> np.ndarray:
        if self.categories:
            at = np.array([self.categories.index(str(v)) for v in field], dtype=np.float64)
        else:
            at = field.astype(np.float64)
            if self.log:
                with np.errstate(divide="ignore", invalid="ignore"):
                    at = np.log10(at)
        return self.start + (at - self.low) / ((self.high - self.low) or 1.0) * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        if self.categories:
            return list(zip(self(np.array(self.categories, dtype=object)).tolist(), self.categories, strict=True))
        low, high = sorted((self.low, self.high))
        numbers = _log_ticks(low, high) if self.log else _linear_ticks(low, high)
        return [(float(p), f"{v:.6g}".replace("e+0", "e")) for p, v in zip(self(numbers), numbers, strict=True)]


def _linear_ticks(low: float, high: float) -> np.ndarray:
    """Return at most eight round numbers between low and high."""
    step = 10 ** math.floor(math.log10((high - low) or 1.0))
    step = next(step * m for m in (0.1, 0.2, 0.5, 1, 2, 5) if (high - low) / (step * m) <= 7)
    return np.arange(math.ceil(low / step), math.floor(high / step) + 1) * step


def _log_ticks(low: float, high: float) -> np.ndarray:
    """Return round numbers between 10^low and 10^high: powers of ten over many decades, then 1, 2 and 5 times them.

    >>> _log_ticks(0.0, 1.1).tolist(), _log_ticks(-3.0, 1.0).tolist()
    ([1.0, 2.0, 5.0, 10.0], [0.001, 0.01, 0.1, 1.0, 10.0])
    """
    first, last = math.ceil(low - 1e-9), math.floor(high + 1e-9)
    decades = [float(f"1e{e}") for e in range(first, last + 1, max(1, -(-(last - first) // 7)))]
    if len(decades) > 2:
        return np.array(decades)
    finer = [float(f"{m}e{e}") for e in range(first - 1, last + 1) for m in (1, 2, 5)]
    finer = [v for v in finer if low - 1e-9 <= math.log10(v) <= high + 1e-9]
    return np.array(finer) if len(finer) > 2 else _linear_ticks(10**low, 10**high)


def _panel(
    traces: list[dict], layout: dict, x_ref: str, y_ref: str, width: float, height: float, margin: dict, everything: list
) -> list[str]:
    """Return the SVG of one pair of axes and the traces on it."""
    x_layout = layout.get("xaxis" + x_ref[1:], {})
    y_layout = layout.get("yaxis" + y_ref[1:], {})
    x_domain, y_domain = x_layout.get("domain", [0, 1]), y_layout.get("domain", [0, 1])
    inner_width, inner_height = width - margin["l"] - margin["r"], height - margin["t"] - margin["b"]
    left, right = (margin["l"] + d * inner_width for d in x_domain)
    bottom, top = (margin["t"] + (1 - d) * inner_height for d in y_domain)
    is_bar, is_map = any(t["type"] == "bar" for t in traces), any(t["type"] in ("heatmap", "image") for t in traces)
    if is_map:
        return _map_panel(traces, x_layout, y_layout, left, right, bottom, top)
    xs = [values(t.get("x")) if t.get("x") is not None else np.arange(len(values(t.get("y"))), dtype=float) for t in traces]
    bases = [values(t["base"]).astype(np.float64) if t.get("base") is not None else 0.0 for t in traces]
    ys = [values(t.get("y")) if np.isscalar(base) else values(t["y"]) + base for t, base in zip(traces, bases, strict=True)]
    x_axis = _Axis(x_layout, xs, left, right, False, 0.0 if not is_bar else 0.05)
    y_axis = _Axis(y_layout, ys, bottom, top, is_bar, 0.08)
    # A shared x axis is drawn once, under the panel that it is anchored to.
    x_shown = x_layout.get("anchor", "y") == y_ref and x_layout.get("showticklabels", True)
    y_shown = y_layout.get("showticklabels", True)
    titles = (_title(x_layout) if x_shown else "", _title(y_layout))
    parts = _frame(x_axis, y_axis, titles, (x_shown, y_shown), left, right, bottom, top)
    frame, parts = parts, []
    drawn_bars = [t for t in traces if t["type"] == "bar"]
    beside = 1 if layout.get("barmode") == "overlay" else len(drawn_bars)
    for i, (trace, x, y, base) in enumerate(zip(traces, xs, ys, bases, strict=True)):
        colour = _colour(trace, everything.index(trace))
        if trace["type"] == "bar":
            index, slot = drawn_bars.index(trace) % beside, (right - left) / max(len(x), 1)
            parts += _bar_marks(x_axis(x), y, base, y_axis, trace, colour, index, beside, slot)
        elif trace["type"] in ("scatter", "scattergl"):
            parts += _scatter_marks(x_axis(x), y_axis(y), trace, colour)
        else:
            parts.append(f'<text x="{left + 8}" y="{top + 18 * (i + 1)}">({trace["type"]} trace: see the live figure)</text>')
    parts.sort(key=lambda mark: mark.startswith("<text"))  # a number is not hidden by the next series' bar
    has_range = x_layout.get("range") or y_layout.get("range")
    return frame + (_clipped(parts, left, right, bottom, top) if has_range else parts)


def _clipped(marks: list[str], left: float, right: float, bottom: float, top: float, room: float = 8.0) -> list[str]:
    """Return marks that end a little outside of their axes: a fixed range may leave some of the data beyond its numbers.

    A nested drawing clips without a name, of which two on one page would be taken for each other.
    """
    box = (left - room, top - room, right - left + 2 * room, bottom - top + 2 * room)
    x, y, width, height = (f"{v:.1f}" for v in box)
    place = f'x="{x}" y="{y}" width="{width}" height="{height}" viewBox="{x} {y} {width} {height}"'
    return [f'<svg {place} overflow="hidden">', *marks, "</svg>"]


def _frame(
    x_axis: _Axis,
    y_axis: _Axis,
    titles: tuple[str, str],
    shown: tuple[bool, bool],
    left: float,
    right: float,
    bottom: float,
    top: float,
) -> list[str]:
    """Return grid, ticks, axis lines and axis titles of one panel."""
    parts = []
    for at, label in x_axis.ticks():
        if not x_axis.categories:
            parts.append(f'<line x1="{at:.1f}" y1="{top}" x2="{at:.1f}" y2="{bottom}" stroke="#e3e3e3"/>')
        if shown[0]:
            parts.append(f'<text x="{at:.1f}" y="{bottom + 18}" text-anchor="middle">{html.escape(label)}</text>')
    for at, label in y_axis.ticks() if shown[1] else ():
        parts.append(f'<line x1="{left}" y1="{at:.1f}" x2="{right}" y2="{at:.1f}" stroke="#e3e3e3"/>')
        parts.append(f'<text x="{left - 7}" y="{at + 4:.1f}" text-anchor="end">{html.escape(label)}</text>')
    parts.append(f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="#444"/>')
    middle = (top + bottom) / 2
    if titles[0]:
        parts.append(f'<text x="{(left + right) / 2:.1f}" y="{bottom + 42}" text-anchor="middle">{_plain(titles[0])}</text>')
    if titles[1]:
        at = left - 52
        parts.append(
            f'<text x="{at}" y="{middle:.1f}" text-anchor="middle" '
            f'transform="rotate(-90 {at} {middle:.1f})">{_plain(titles[1])}</text>'
        )
    return parts


def _plain(text: str) -> str:
    """Return plotly's title text escaped; its few HTML tags are dropped."""
    import re

    return html.escape(re.sub(r"<[^>]*>", " ", text))


def _colour(trace: dict, index: int) -> str:
    for part in ("line", "marker"):
        colour = trace.get(part, {}).get("color")
        if isinstance(colour, str):
            return html.escape(colour, quote=True)
    return _COLOURS[index % len(_COLOURS)]


def _scatter_marks(x: np.ndarray, y: np.ndarray, trace: dict, colour: str) -> list[str]:
    mode = trace.get("mode") or ("lines" if len(x) >= 20 else "lines+markers")
    ok = np.isfinite(x) & np.isfinite(y)
    parts = []
    if "lines" in mode:
        path, pen = [], "M"
        for px, py, good in zip(x.tolist(), y.tolist(), ok.tolist(), strict=True):
            if good:
                path.append(f"{pen}{px:.1f} {py:.1f}")
            pen = "L" if good else "M"
        line = trace.get("line", {})
        if trace.get("fill") in ("tozeroy", "toself") and path:
            opaque = trace.get("fillcolor", "").startswith("#")  # without a colour of its own an area is see-through
            fill, opacity = (html.escape(trace["fillcolor"], quote=True), 1) if opaque else (colour, 0.15)
            parts.append(f'<path d="{"".join(path)}" fill="{fill}" fill-opacity="{opacity}" stroke="none"/>')
        dash = _DASH.get(line.get("dash", ""), "")
        parts.append(
            f'<path d="{"".join(path)}" fill="none" stroke="{colour}" '
            f'stroke-width="{line.get("width", 2)}" stroke-dasharray="{dash}"/>'
        )
    if "markers" in mode:
        marker = trace.get("marker", {})
        size = marker.get("size", 6)
        colours = marker.get("color") if isinstance(marker.get("color"), list) else None
        for i in np.flatnonzero(ok)[:4000]:
            fill = colours[i] if colours and isinstance(colours[i], str) else colour
            radius = (size[i] if isinstance(size, list) else size if isinstance(size, int | float) else 6) / 2
            parts.append(f'<circle cx="{x[i]:.1f}" cy="{y[i]:.1f}" r="{radius:.1f}" fill="{html.escape(fill, quote=True)}"/>')
    if "text" in mode:
        texts = trace.get("text") or []
        texts = texts if isinstance(texts, list) else [texts] * len(x)
        parts += [
            f'<text x="{px:.1f}" y="{py - 6:.1f}" text-anchor="middle">{_plain(str(t))}</text>'
            for px, py, t in zip(x, y, texts, strict=False)
        ]
    return parts


def _bar_marks(
    x: np.ndarray, ends: np.ndarray, base: Any, y_axis: _Axis, trace: dict, colour: str, index: int, count: int, slot: float
) -> list[str]:
    bar = slot * 0.8 / count
    starts = y_axis(np.broadcast_to(base, (len(x),)).astype(np.float64))
    texts = trace.get("text") or [""] * len(x)
    parts = []
    for px, start, value, text in zip(x, starts, ends, texts, strict=False):
        if value is None or not np.isfinite(float(value)):
            continue
        left, end = px - slot * 0.4 + index * bar, float(y_axis(np.array([float(value)]))[0])
        parts.append(
            f'<rect x="{left:.1f}" y="{min(end, start):.1f}" width="{bar:.1f}" height="{abs(end - start):.1f}" fill="{colour}"/>'
        )
        at = end - 5 if end <= start else end + 15
        size = min(12.0, max(8.0, bar / (0.55 * max(len(str(text)), 1))))  # no wider than its bar, and readable
        place = f'x="{left + bar / 2:.1f}" y="{at:.1f}" text-anchor="middle" font-size="{size:.3g}"'
        parts.append(f"<text {place}>{_plain(str(text))}</text>")
    return parts


def _map_panel(
    traces: list[dict], x_layout: dict, y_layout: dict, left: float, right: float, bottom: float, top: float
) -> list[str]:
    """Return a heatmap or image trace as one embedded picture, row 0 at the top when its y axis is reversed."""
    from nsw.renderers.heat_colours import coloured
    from nsw.widgets.pictures import data_url, png_bytes

    trace = next(t for t in traces if t["type"] in ("heatmap", "image"))
    z = values(trace.get("z")) if trace.get("z") is not None else np.zeros((1, 1))
    if trace["type"] == "image":
        source = trace.get("source") or data_url(png_bytes(z[..., :3].astype(np.uint8)))
    else:
        z = z.astype(np.float64)
        picture = coloured(z, trace.get("zmin", float(np.nanmin(z))), trace.get("zmax", float(np.nanmax(z))))
        source = data_url(png_bytes(picture if y_layout.get("autorange") == "reversed" else picture[::-1].copy()))
    fit = "none" if trace["type"] == "heatmap" and not y_layout.get("scaleanchor") else "xMidYMid"
    parts = [
        f'<image href="{source}" x="{left}" y="{top}" width="{right - left:.1f}" height="{bottom - top:.1f}" '
        f'preserveAspectRatio="{fit}" style="image-rendering:pixelated"/>'
    ]
    if _title(x_layout):
        parts.append(f'<text x="{(left + right) / 2:.1f}" y="{bottom + 20}" text-anchor="middle">{_plain(_title(x_layout))}</text>')
    return parts


def _projected(traces: list[dict], width: float, height: float, margin: dict) -> list[str]:
    """Return 3D points, lines and meshes seen along a fixed oblique direction (world z up); meshes from their front."""
    solid = any(t["type"] == "mesh3d" for t in traces)
    azimuth, elevation = math.radians(-90 if solid else -60), math.radians(30 if solid else 25)
    right = np.array([-math.sin(azimuth), math.cos(azimuth), 0.0])
    up = np.array([-math.sin(elevation) * math.cos(azimuth), -math.sin(elevation) * math.sin(azimuth), math.cos(elevation)])
    points = [np.stack([values(t.get(k)).astype(np.float64) for k in "xyz"], -1) for t in traces]
    flat = [np.stack([p @ right, -(p @ up)], -1) for p in points]
    every = np.concatenate(flat)
    every = every[np.isfinite(every).all(1)]
    if not len(every):
        return []
    low, span = every.min(0), np.maximum(every.max(0) - every.min(0), 1e-9)
    room = np.array([width - margin["l"] - margin["r"], height - margin["t"] - margin["b"]])
    scale = float((room / span).min())
    offset = np.array([margin["l"], margin["t"]]) + (room - span * scale) / 2
    parts: list[str] = []
    places = [(xy - low) * scale + offset for xy in flat]
    if solid:
        towards = -np.cross(right, up)
        meshes = [(t, at, scale * (p @ towards)) for t, at, p in zip(traces, places, points, strict=True) if t["type"] == "mesh3d"]
        parts.append(_painted(meshes, width, height))
    for i, (trace, at) in enumerate(zip(traces, places, strict=True)):
        if trace["type"] == "mesh3d":
            continue
        if trace["type"] == "scatter3d":
            parts += _scatter_marks(at[:, 0], at[:, 1], {"mode": "markers", **trace}, _colour(trace, i))
        else:
            parts.append(f'<text x="{margin["l"]}" y="{margin["t"] + 18 * i}">({trace["type"]} trace: see the live figure)</text>')
    return parts


def _painted(meshes: list, width: float, height: float) -> str:
    from nsw.widgets.mesh_still import painting
    from nsw.widgets.pictures import data_url, png_bytes

    source = data_url(png_bytes(painting(meshes, width, height)))
    return f'<image href="{source}" x="0" y="0" width="{width}" height="{height}"/>'


def _annotations(layout: dict, legend: list[list], width: float, height: float, margin: dict) -> list[str]:
    """Return title, legend and the annotations placed in paper coordinates (titles of subplots)."""
    parts = []
    if _title(layout):
        text = _plain(_title(layout))
        size = min(17.0, (width - margin["l"]) / (0.55 * len(text)))  # a long title is set smaller, not cut off
        parts.append(f'<text x="{margin["l"]}" y="22" font-size="{size:.1f}">{text}</text>')
    for note in layout.get("annotations", []):
        if note.get("xref") == "paper" and note.get("yref") == "paper":
            x = margin["l"] + note["x"] * (width - margin["l"] - margin["r"])
            y = margin["t"] + (1 - note["y"]) * (height - margin["t"] - margin["b"])
            colour = note.get("font", {}).get("color", "#222")
            place = f'x="{x:.1f}" y="{y - 6:.1f}" text-anchor="middle" font-size="15" fill="{colour}"'
            parts.append(f"<text {place}>{_plain(note.get('text', ''))}</text>")
    for n, row in enumerate(reversed(legend)):
        for x, i, trace in row:
            parts += _legend_entry(margin["l"] + x, margin["t"] - 8.0 - _ROW * n, trace, i)
    return parts


def _legend_rows(layout: dict, data: list[dict], room: float) -> list[list[tuple[float, int, dict]]]:
    """Return the named traces in rows that fit into the room: where each begins, its index, the trace."""
    named = [(i, t) for i, t in enumerate(data) if t.get("name") and t.get("showlegend", True)]
    rows: list[list[tuple[float, int, dict]]] = [[]]
    x = 0.0
    for i, trace in named if layout.get("showlegend", len(named) > 1) else ():
        step = 52 + 7.2 * len(trace["name"])
        if rows[-1] and x + step > room:
            rows.append([])
            x = 0.0
        rows[-1].append((x, i, trace))
        x += step
    return rows


def _legend_entry(x: float, y: float, trace: dict, index: int) -> list[str]:
    words = f'<text x="{x + 32:.0f}" y="{y:.0f}">{_plain(trace["name"])}</text>'
    if trace.get("mode") == "markers":
        return [f'<circle cx="{x + 13:.0f}" cy="{y - 4:.0f}" r="4" fill="{_colour(trace, index)}"/>', words]
    dash = _DASH.get(trace.get("line", {}).get("dash", ""), "")
    thick = 10 if trace.get("type") == "bar" else 3
    stroke = f'stroke="{_colour(trace, index)}" stroke-width="{thick}" stroke-dasharray="{dash}"'
    line = f'<line x1="{x:.0f}" y1="{y - 4:.0f}" x2="{x + 26:.0f}" y2="{y - 4:.0f}" {stroke}/>'
    return [line, words]

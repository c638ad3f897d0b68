"""Curves of a training in stages: each stage is a shaded band."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def staged(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    ends: Mapping[str, float],
    x: str,
    y: str,
    log_x: bool = False,
    log_y: bool = False,
    title: str | None = None,
):
    """Return a chart of curves {name: (x values, y values)} over one shaded band a stage.

    Args:
        ends: where each stage ends on the x axis, in order, the last one last; a stage that takes no time has no band.
    """
    from nsw.widgets.charts import COLOURS, DASHES, figure, log_axis

    data = [
        dict(
            type="scatter", x=list(xs), y=list(ys), name=name, mode="lines", line=dict(color=COLOURS[i], dash=DASHES[i], width=2.5)
        )
        for i, (name, (xs, ys)) in enumerate(curves.items())
    ]
    at, values = ([v for curve in data for v in curve[axis]] or [1.0] for axis in ("x", "y"))
    edges, bands = (min(values), max(values)), []
    begin = min(at)
    for i, (name, end) in enumerate(ends.items()):
        end = min(max(end, begin), max(max(at), begin))
        if end > begin:
            corners = dict(x=[begin, end, end, begin, begin], y=[edges[0], edges[0], edges[1], edges[1], edges[0]])
            grey = ("#56B4E9", "#E69F00", "#999999")[i % 3]
            fill = dict(fill="toself", fillcolor=f"rgba({','.join(str(int(grey[k : k + 2], 16)) for k in (1, 3, 5))},0.15)")
            look = dict(mode="lines", line=dict(color=grey, width=0.5), hoverinfo="skip")
            bands.append(dict(type="scatter", name=name, **corners, **fill, **look))
        begin = max(begin, end)
    axes = [log_axis(v) if log else {} for v, log in ((at, log_x), (values, log_y))]
    return figure(
        bands + data,
        title=title,
        showlegend=True,
        xaxis=dict(title=x, **axes[0]),
        yaxis=dict(title=y, **axes[1]),
        margin=dict(t=90),
    )

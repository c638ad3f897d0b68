"""Quality over size: fields as dots, and one of them with fewer and fewer components."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from nsw.widgets.charts import COLOURS, figure, log_axis


def size_figure(sizes: Mapping[str, float], scores: Mapping[str, float], shrunk: Sequence[Mapping[str, float]]):
    """Return a chart of one dot (MB, dB) for each field, over the curve of one field with fewer and fewer components, trained on.

    Args:
        shrunk: what `tensorf_charts.rank_rows` returned.
    """
    mb, trained_on = ([row[key] for row in shrunk] for key in ("MB", "trained on"))
    look = dict(mode="lines+markers", line=dict(color="#888888", width=2))
    data = [dict(type="scatter", x=mb, y=trained_on, name="yours, fewer components, trained on", **look)]
    for name, colour in zip(scores, COLOURS, strict=False):
        marker = dict(size=14, color=colour)
        data.append(dict(type="scatter", x=[sizes[name]], y=[scores[name]], name=name, mode="markers", marker=marker))
    every = [*mb, *sizes.values()]
    ends = [math.log10(min(every)) - 0.15, math.log10(max(every)) + 0.15]
    axes = dict(xaxis=dict(title="MB", **log_axis(every), range=ends), yaxis=dict(title="PSNR (dB)"))
    return figure(data, title="Quality against size, equal seconds", showlegend=True, margin=dict(l=70, r=20, t=100, b=60), **axes)

"""Where several views pull one splat, as arrows from one point."""

from __future__ import annotations

from typing import Any

from nsw.widgets.charts import COLOURS, figure


def pull_figure(pulls: Any):
    """Return a plotly figure of pulls [V, 2] in the plane: a thin line for each view, a thick one for their mean."""

    def line(end: Any, **how: Any) -> dict[str, Any]:
        return dict(type="scatter", x=[0, float(end[0])], y=[0, float(end[1])], mode="lines", **how)

    thin, thick = dict(color=COLOURS[5], width=2), dict(color=COLOURS[1], width=5)
    traces = [line(end, name="one view", line=thin, showlegend=i == 0) for i, end in enumerate(pulls)]
    traces.append(line(pulls.mean(0), name="their mean", line=thick, showlegend=True))
    return figure(traces, xaxis_title="pull along x", yaxis_title="pull along y")

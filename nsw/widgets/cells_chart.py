"""An occupancy grid while it learns: from two sides, over the truth, and how many of its cells are on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def cells_figure(film: Any, index: int, truth: Any, marched: tuple[Sequence[float], Sequence[float]]):
    """Return a chart of one snapshot: the grid from the side and from above, and the share of cells on over all steps.

    Args:
        film: `instant_ngp_cells.Snapshots`.
        index: which of the snapshots, in their order.
        truth: cells [n, n, n] that truly hold a surface, from `true_cells`; None where that is not known.
        marched: steps, and samples a ray of their batches.
    """
    from nsw.methods.instant_ngp_cells import KINDS, overlay
    from nsw.methods.occupied_cells import recall
    from nsw.widgets.charts import COLOURS, figure
    from nsw.widgets.pictures import data_url, png_bytes, to_array

    steps = list(film.grids)
    found, shares = film.grids[steps[index]], [float(grid.float().mean()) for grid in film.grids.values()]
    images = [
        dict(type="image", source=data_url(png_bytes(to_array(overlay(found, truth, above)))), xaxis=f"x{k}", yaxis=f"y{k}")
        for above, k in ((False, 2), (True, 3))
    ]
    line = lambda y, name, **look: dict(type="scatter", x=steps, y=y, name=name, mode="lines", line=look)  # noqa: E731
    curves = [line(shares, "cells on", color=COLOURS[3], width=2.5)]
    if truth is not None:
        curves.append(line([float(truth.float().mean())] * len(steps), "truth", color=COLOURS[6], dash="dash", width=2))
    here = dict(color=COLOURS[3], size=12)
    curves.append(dict(type="scatter", x=[steps[index]], y=[shares[index]], mode="markers", marker=here, showlegend=False))
    for name, colour in KINDS.items() if truth is not None else ():
        curves.append(dict(type="scatter", x=[None], y=[None], mode="markers", name=name, marker=dict(color=colour, size=9)))
    at = min(range(len(marched[0])), key=lambda k: abs(marched[0][k] - steps[index]))
    title = f"Step {steps[index]}: {shares[index]:.1%} of the cells are on, {marched[1][at]:.1f} samples a ray"
    title += "" if truth is None else f", recall {recall(found, truth):.3f}"
    hidden = dict(showticklabels=False, showgrid=False, zeroline=False, ticks="", showline=False)
    layout = {
        "xaxis": dict(title="step", domain=[0.0, 0.36]),
        "yaxis": dict(title="share of cells on", type="log"),
        "xaxis2": dict(title="from the side", domain=[0.4, 0.68], anchor="y2", **hidden),
        "yaxis2": dict(anchor="x2", scaleanchor="x2", **hidden),
        "xaxis3": dict(title="from above", domain=[0.72, 1.0], anchor="y3", **hidden),
        "yaxis3": dict(anchor="x3", scaleanchor="x3", **hidden),
    }
    return figure([*curves, *images], title=title, width=820, height=360, margin=dict(l=80, r=10, t=90, b=60), **layout)

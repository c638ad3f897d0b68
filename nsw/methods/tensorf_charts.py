"""What TensoRF's notebook draws and tabulates: curves of its parts, and rows of fields beside each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from nsw.methods.tensorf_inspect import blocks, component, fit_volume, upright
from nsw.models.factors import resampled
from nsw.models.vm_grid import VMGrid

Curves = dict[str, tuple[Sequence[float], Sequence[float]]]  # {name: (x values, y values)}


def shift_curves(shifts: Sequence[float] = (0, -6, -10)) -> Curves:
    """Return softplus of a sum of products after each shift: density in TensoRF's own unit."""
    x = torch.linspace(-5, 15, 200)
    return {f"shift {b}": (x.tolist(), torch.nn.functional.softplus(x + b).tolist()) for b in shifts}


def growth_curves(values: Sequence[float] = (0.0, 1.0, 0.2, 0.6), grown: int = 7) -> Curves:
    """Return a line of vertices, and the same line resampled at `grown` of them.

    >>> growth_curves((0.0, 1.0), 3)["3 vertices"][1]
    [0.0, 0.5, 1.0]
    """
    old = torch.tensor(values)[:, None]
    return {f"{n} vertices": (torch.linspace(0, 1, n).tolist(), resampled(old, 0, n)[:, 0].tolist()) for n in (len(old), grown)}


def height_lines(model: VMGrid, n: int = 3) -> Curves:
    """Return the lines along the height of the n strongest density components seen from above, over their vertices."""
    return {f"component {k + 1}": (range(model.shape[2]), component(model, 0, k)[1].tolist()) for k in range(n)}


def cut_through(rank: int):
    """Return a cut through three blocks beside what so many planes times lines of one mode learn of it, uint8 [H, W, 3]."""
    solid = blocks(32)
    found = fit_volume(solid, rank, n_steps=150)
    return _beside(solid[:, 16], found.approximation[:, 16], f"{rank} product{'s' * (rank > 1)}, error {found.error:.2f}")


def turned_blocks(degrees: float, rank: int):
    """Return blocks turned by so many degrees, from the front, beside what so many components of three modes learn of them."""
    solid = blocks(32, degrees)
    found = fit_volume(solid, rank, modes=3, n_steps=120)
    words = f"{rank} component{'s' * (rank > 1)} a mode, error {found.error:.2f}"
    return _beside(solid.amax(1), found.approximation.amax(1), words)


def _beside(true: Float[Tensor, "a b"], found: Float[Tensor, "a b"], words: str):
    from nsw.widgets import titled

    return titled({"the blocks": upright(true.clamp(0, 1)), words: upright(found.clamp(0, 1))})


def rank_rows(
    fields: Mapping[int, VMGrid], score: Callable[[VMGrid], float], further: Callable[[VMGrid], VMGrid]
) -> list[dict[str, float]]:
    """Return a row for each rank: its megabytes, its score in dB, and the score of what `further` makes of it."""
    rows = [{"components a mode": rank, "MB": field.n_bytes / 1e6, "PSNR (dB)": score(field)} for rank, field in fields.items()]
    return [row | {"trained on": score(further(field))} for row, field in zip(rows, fields.values(), strict=True)]


def race_rows(
    traces: Mapping[str, Sequence[tuple[float, float]]], fields: Mapping[str, VMGrid], n_rays: int
) -> list[dict[str, float | str]]:
    """Return a row for each field of a race of equal rays: seconds, score and megabytes.

    Args:
        traces: {field: (seconds of training, score in dB), ...}; the last one counts.
    """
    return [
        {"field": name, "rays": f"{n_rays:,}", "seconds": trace[-1][0], "PSNR (dB)": trace[-1][1], "MB": fields[name].n_bytes / 1e6}
        for name, trace in traces.items()
    ]


def quality_over_size(sizes: Mapping[str, float], scores: Mapping[str, float], shrunk: Sequence[Mapping[str, float]]):
    """Return a chart of one dot (MB, dB) for each field, over the curve of one field with fewer and fewer components, trained on.

    Args:
        shrunk: what `rank_rows` returned.
    """
    from nsw.widgets.charts import COLOURS, figure, log_axis

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


def run_rows(fields: Mapping[str, VMGrid], score: Callable[[VMGrid], float]) -> list[dict[str, float | str]]:
    """Return a row for each quick run: its score in dB, megabytes, and the share of the mask's cells that are on."""
    on = {name: f"{float(field.occupancy.binaries.float().mean()):.0%}" for name, field in fields.items()}
    return [
        {"quick run": name, "PSNR (dB)": score(field), "MB": field.n_bytes / 1e6, "cells on": on[name]}
        for name, field in fields.items()
    ]

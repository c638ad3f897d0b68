"""What TensoRF's notebook draws and tabulates: curves of its parts, pictures of blocks, and rows of fields beside each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from nsw.methods.tensorf_inspect import blocks, component, fit_volume, upright
from nsw.models.factors import resampled
from nsw.models.vm_grid import VMGrid


def shift_curves(shifts: Sequence[float] = (0, -6, -10)) -> dict[str, tuple[Sequence[float], Sequence[float]]]:
    """Return softplus of a sum of products after each shift: density in TensoRF's own unit."""
    x = torch.linspace(-5, 15, 200)
    return {f"shift {b}": (x.tolist(), torch.nn.functional.softplus(x + b).tolist()) for b in shifts}


def growth_curves(
    values: Sequence[float] = (0.0, 1.0, 0.2, 0.6), grown: int = 7
) -> dict[str, tuple[Sequence[float], Sequence[float]]]:
    """Return a line of vertices, and the same line resampled at `grown` of them.

    >>> growth_curves((0.0, 1.0), 3)["3 vertices"][1]
    [0.0, 0.5, 1.0]
    """
    old = torch.tensor(values)[:, None]
    return {f"{n} vertices": (torch.linspace(0, 1, n).tolist(), resampled(old, 0, n)[:, 0].tolist()) for n in (len(old), grown)}


def height_lines(model: VMGrid, n: int = 3) -> dict[str, tuple[Sequence[float], Sequence[float]]]:
    """Return the lines along the height of the n strongest density components seen from above, over their vertices."""
    return {f"component {k + 1}": (range(model.shape[2]), component(model, 0, k)[1].tolist()) for k in range(n)}


def cut_through(rank: int) -> dict[str, Tensor]:
    """Return titled pictures: a cut through three blocks, and what so many planes times lines of one mode learn of it."""
    solid = blocks(32)
    found = fit_volume(solid, rank, n_steps=150)
    words = f"{rank} product{'s' * (rank > 1)}, error {found.error:.2f}"
    return {"the blocks": upright(solid[:, 16].clamp(0, 1)), words: upright(found.approximation[:, 16].clamp(0, 1))}


def turned_blocks(degrees: float, rank: int) -> dict[str, Tensor]:
    """Return titled pictures: blocks turned by so many degrees, from the front, and what so many components learn."""
    solid = blocks(32, degrees)
    found = fit_volume(solid, rank, modes=3, n_steps=120)
    words = f"{rank} component{'s' * (rank > 1)} a mode, error {found.error:.2f}"
    return {"the blocks": upright(solid.amax(1).clamp(0, 1)), words: upright(found.approximation.amax(1).clamp(0, 1))}


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

"""Looking at Instant-NGP's occupancy grid: kept while it learns, seen from two sides, over the truth."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nsw.methods.occupied_cells import recall
from nsw.models.hash_grid import HashGrid

# Of a cell that is on where no camera sees a surface, one that is off where there is one, one that is on where there is one.
KINDS = {"on, no surface seen": "#E69F00", "off, a surface": "#000000", "on, a surface": "#0072B2"}
OPACITY = 0.4  # of a cell in the pictures


class Snapshots:
    """Occupancy grids kept while training goes on; part of a loop's checkpoint, so that a resumed run shows all of them.

    Attributes:
        grids: step -> cells that are on [n, n, n] before it, in the CPU's memory.
    """

    def __init__(self) -> None:
        self.grids: dict[int, Bool[Tensor, "n n n"]] = {}

    def __len__(self) -> int:
        return len(self.grids)

    def take(self, step: int, model: HashGrid) -> None:
        """Keep the grid as it is now."""
        self.grids[step] = model.occupancy.binaries[0].to("cpu", copy=True)

    def state_dict(self) -> dict[str, Tensor]:
        return {str(step): grid for step, grid in self.grids.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.grids = {int(step): grid for step, grid in state.items()}


def overlay(found: Bool[Tensor, "X Y Z"], truth: Bool[Tensor, "X Y Z"] | None, above: bool) -> Float[Tensor, "up right 3"]:
    """Return a picture of half-transparent cells, each kind in its colour of `KINDS`, on white; from the side z is upwards.

    Args:
        truth: cells that truly hold a surface; None paints all cells that are on alike.
        above: look down; otherwise along the y axis.
    """
    truth, axis = found if truth is None else truth, 2 if above else 1
    kinds = found.long() + 2 * truth.long()
    colours = torch.tensor([[1.0, 1.0, 1.0], *([int(c[k : k + 2], 16) / 255 for k in (1, 3, 5)] for c in KINDS.values())])
    kinds = kinds.flip(2) if above else kinds  # the cells that are met first come first
    left = (1 - OPACITY * (kinds > 0)).cumprod(axis)
    weights = torch.cat([torch.ones_like(left.narrow(axis, 0, 1)), left], axis).diff(dim=axis).neg()
    rgb = (weights[..., None] * colours[kinds]).sum(axis) + left.select(axis, -1)[..., None]
    return rgb.transpose(0, 1).flip(0)


def chart(film: Snapshots, index: int, truth: Bool[Tensor, "n n n"] | None, marched: tuple[Sequence[float], Sequence[float]]):
    """Return a chart of one snapshot: the grid from the side and from above, and the share of cells on over all steps.

    Args:
        index: which of the snapshots, in their order.
        truth: cells that truly hold a surface, from `true_cells`; None where that is not known.
        marched: steps, and samples a ray of their batches.
    """
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

"""Charts of a city in blocks: the map, the needles, depth estimated and drawn, what trains where, and how files look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nsw.cameras import Cameras
from nsw.methods import citygaussian_v2_blocks as blocks
from nsw.methods.citygaussian_v2_inspect import PALETTE
from nsw.models.depth_prior import align_inverse_depth
from nsw.models.surfels import Surfels
from nsw.runs.blocks import Cost
from nsw.widgets.charts import COLOURS, css, figure, lines, some_of
from nsw.widgets.pictures import images
from nsw.widgets.tables import table

WHY = {
    0: ("not needed", "x-thin", "#bbbbbb"),
    blocks.LOCATION: ("it stands here", "circle", "#0072B2"),
    blocks.SSIM: ("it sees this", "triangle-up", "#E69F00"),
    blocks.BOTH: ("both", "star", "#000000"),
}


def block_map(surfels: Surfels, cameras: Cameras, boxes: Float[Tensor, "B 2 2"], block: int, why: Int[Tensor, "C"]):
    """Return a map of the ground as a plotly figure.

    Discs are pale dots in the colours of their blocks. A camera's marker says why `block` needs its picture or does not, and the
    dot within has the colour of the block that the camera stands in.

    Args:
        why: for every camera, one row of `citygaussian_v2_blocks.reasons`.
    """
    ground, eyes = surfels.means.detach()[:, :2].cpu(), cameras.origins[:, :2].cpu()
    reach = torch.cat([torch.quantile(ground[:100_000], torch.tensor([0.01, 0.99]), dim=0), eyes])
    low, high = float(reach.min()) - 0.2, float(reach.max()) + 0.2
    spots = ground[((ground > low) & (ground < high)).all(-1)][:: max(len(ground) // 3000, 1)]
    traces = [_dots(spots, dict(size=3, color=_block_colours(spots, boxes, 0.4)), "discs (pale)")]
    edges = [_outline(box) for box in boxes.clamp(low, high)]
    xs, ys = ([place for edge in edges for place in [*edge[axis], None]] for axis in (0, 1))
    traces.append(dict(type="scatter", mode="lines", x=xs, y=ys, name="borders", line=dict(color="#444444", width=2)))
    x, y = edges[block]
    traces.append(dict(type="scatter", mode="lines", x=x, y=y, name=f"block {block}", line=dict(color="#D55E00", width=4)))
    for reason, (words, symbol, colour) in WHY.items():
        traces.append(_dots(eyes[why == reason], dict(symbol=symbol, size=13, color=colour), words))
    traces.append(_dots(eyes, dict(size=6, color=_block_colours(eyes, boxes)), "") | dict(showlegend=False))
    axes = dict(xaxis_title="x (world units)", yaxis_title="y (world units)")
    return figure(traces, title=f"Whose pictures block {block} needs", width=560, height=670, showlegend=True, **axes)


def atlas(surfels: Surfels, cameras: Cameras, boxes: Float[Tensor, "B 2 2"], block: int, threshold: float):
    """Return the `block_map` of one block, counted through the boxes again and again, with the reasons why it needs its pictures.

    Args:
        threshold: of `citygaussian_v2_blocks.reasons`.
    """
    block = block % len(boxes)
    return block_map(surfels, cameras, boxes, block, blocks.reasons(surfels, cameras, boxes[block : block + 1], threshold)[0])


def _dots(places: Float[Tensor, "n 2"], marker: dict, name: str) -> dict:
    x, y = places.T.tolist()
    return dict(type="scatter", mode="markers", x=x, y=y, name=name, marker=marker)


def _outline(box: Float[Tensor, "2 2"]) -> tuple[list[float], list[float]]:
    (x0, y0), (x1, y1) = box.tolist()
    return [x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0]


def _block_colours(ground: Float[Tensor, "n 2"], boxes: Float[Tensor, "B 2 2"], strength: float = 1.0) -> list[str]:
    """Return the colour of the block that each place stands in, mixed with white."""
    block = blocks.inside(ground, boxes).int().argmax(0)
    return css(1 - strength * (1 - PALETTE[block % len(PALETTE)]))


def needle_figure(ratios: Mapping[str, Float[Tensor, "n"]], threshold: float, low: float = -3.0, n: int = 30):
    """Return histograms of axis ratios as a plotly figure, and the threshold with how many discs of each set it spares.

    Args:
        ratios: log10 of axis ratios; what is below `low` counts there.
        threshold: log10 of the ratio up to which a disc is neither cloned nor split.
    """
    edges, traces, top = torch.linspace(low, 0, n + 1), [], 0.0
    for colour, (name, values) in zip(COLOURS, ratios.items(), strict=False):
        counts, spared = torch.histc(values.clamp(low, 0), n, low, 0), int((values <= threshold).sum())
        bars = dict(type="bar", x=(edges[1:] / 2 + edges[:-1] / 2).tolist(), y=counts.tolist(), width=-low / n, opacity=0.6)
        traces.append(bars | dict(name=f"{name}: {spared} spared", marker=dict(color=colour)))
        top = max(top, float(counts.max()))
    limit = dict(type="scatter", mode="lines", x=[threshold] * 2, y=[0, top], name="threshold", line=dict(color="#000000"))
    axes = dict(xaxis_title="log10 of the axis ratio", yaxis_title="discs")
    return figure([*traces, limit], title="How round discs are", barmode="overlay", showlegend=True, **axes)


def alignment_figure(guess: Float[Tensor, "H W"], pixels: Float[Tensor, "P 2"], known: Float[Tensor, "P"]):
    """Return estimated against known inverse depth at sparse points as a plotly figure, with the robust line through them."""
    fitted = align_inverse_depth(guess, pixels, known).flatten()
    ends = [int(guess.argmin()), int(guess.argmax())]
    column, row = pixels.long().unbind(-1)
    at = guess[row.clamp(0, guess.shape[0] - 1), column.clamp(0, guess.shape[1] - 1)]
    line = dict(type="scatter", mode="lines", x=guess.flatten()[ends].tolist(), y=fitted[ends].tolist(), name="median and MAD")
    points = _dots(some_of(torch.stack([at, known], -1)), dict(size=6), "sparse points")
    axes = dict(xaxis_title="estimated, no units", yaxis_title="inverse depth of the point (1 / world unit)")
    return figure([points, line], title="The line that gives an estimate its units", showlegend=True, **axes)


def show_prior(name: str, picture: Float[Tensor, "H W 3"], guess: Float[Tensor, "H W"], another: Float[Tensor, "H W 3"]) -> None:
    """Show a picture, its estimated inverse depth from dark (the smallest) to bright, and a picture of the test views."""
    bright = (guess - guess.min()) / (guess.max() - guess.min())
    shown = {"from above": picture, "estimated, no units": bright, "a test view": another}
    alt = "a block city from above, its estimated inverse depth, and a test view"
    images(shown, alt=alt, caption=f"Depth prior: {name}")


def show_importance(ranked: Float[Tensor, "N"]) -> None:
    """Show importance of discs in ascending order, on a logarithmic axis."""
    curve = {"importance": (torch.linspace(0, 1, len(ranked)), ranked)}
    alt = "importance of discs in ascending order: a tenth matters hardly at all"
    lines(curve, x="share of the discs", y="importance", title="Importance of the discs", alt=alt, log_y=True)


def show_growth(counts: Mapping[str, Sequence[int]]) -> None:
    """Show how many discs several trainings have, step by step."""
    curves = {name: (range(len(n)), n) for name, n in counts.items()}
    lines(
        curves,
        x="step",
        y="discs",
        title="Growth with and without the filter",
        alt="without the filter the number of discs grows much faster",
    )


def cost_table(took: Sequence[Mapping], costs: Sequence[Cost]) -> None:
    """Show what the blocks and, as the last, the single run took: seconds, memory, discs of their own and frozen, pictures, steps.

    Args:
        took: the second returns of `citygaussian_v2_blocks.load_block`.
        costs: of the same files, `nsw.runs.blocks.costs`.
    """
    names = [*(f"block {i}" for i in range(len(took) - 1)), "single run"]
    rows = [{"part": name, "process peak (MB)": c.peak_mb} | about for name, c, about in zip(names, costs, took, strict=True)]
    merged = f"Merged: {sum(about['own'] for about in took[:-1])} discs, those of all blocks."
    held = "Held: discs, gradients and moments of its own, the coarse model, and pictures."
    table(rows, f"{merged} {held}", dict(held_mb="held (MB)", own="own discs", context="frozen discs"))


def pressed_pair(file: Path, pressed: Float[Tensor, "H W 3"], tinted: Float[Tensor, "H W 3"]):
    """Return the city as its file draws it beside the one tinted by block as a plotly figure; the title is the file's size."""
    both = (255 * torch.cat([pressed, tinted], dim=1).clamp(0, 1)).byte()
    return figure([dict(type="image", z=both.tolist())], title=f"{file.stat().st_size / 1000:.0f} kB")

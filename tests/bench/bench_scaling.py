"""What the rasterizer's time grows with, on one page: `python tests/bench/bench_scaling.py` writes `results/scaling.svg`.

Three panels: splats, pixels, threads. Beside the measured times stand the two times that this machine cannot go below: the
arithmetic of the loads at the speed of a large matrix product, and their bytes at the speed of a large copy. Both speeds are
measured in the same run. The arithmetic counts every pixel of every block of pixels that a splat's box touches before its tile has
stopped; the bytes count every array read or written once.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from bench_rasterization import ball_scene, machine, ours, passes
from report import FOLDER, write

from nsw.kernels import rasterize_autograd
from nsw.kernels.simd import BLOCK_H, BLOCK_W
from nsw.kernels.splat_lists import record_size
from nsw.kernels.tiles import TILE

COUNTS = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000)
SIDES = (64, 128, 256, 512, 1024)
MIDDLE = (30_000, 256)  # splats and side of the picture where the other one varies
THREADS_AT = (100_000, 512)
# Operations, a multiplication and addition in one counted as two, of one pixel under one splat and of one splat's projection
PIXEL_OPERATIONS, SPLAT_OPERATIONS = (32, 32 + 78), (330, 330 + 700)
COLOURS = {"forward": "#0072B2", "forward and backward": "#D55E00"}


def seconds(run, budget: float = 1.0) -> float:
    """Return the median time of a call."""
    run()
    times, began = [], time.perf_counter()
    while len(times) < 3 or (time.perf_counter() - began < budget and len(times) < 50):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def ceilings() -> tuple[float, float]:
    """Return this machine's operations and bytes a second: a matrix product of 2048^3 and a copy of 256 MB."""
    a, b = torch.rand(2048, 2048), torch.rand(1 << 26)
    into, out = torch.empty_like(b), torch.empty_like(a)
    return 2 * 2048**3 / seconds(lambda: torch.mm(a, a, out=out)), 8 * len(b) / seconds(lambda: into.copy_(b))


def visited(drawing, width: int) -> int:
    """Return how many pixels the forward pass works on: those of all blocks that boxes touch, up to each tile's last splat."""
    size, tiles_x = record_size(3), -(-width // TILE)
    tile = np.repeat(np.arange(len(drawing.tile_stop)), np.diff(drawing.tile_start))
    kept = np.arange(len(tile)) < drawing.tile_stop[tile]
    tile, member = tile[kept], drawing.members[kept]
    boxes = drawing.records.view(np.int32)[: (len(drawing.records) // size) * size].reshape(-1, size)[member, 6:10]
    left, top = (tile % tiles_x) * TILE, (tile // tiles_x) * TILE
    x0, x1 = np.maximum(boxes[:, 0] - left, 0), np.minimum(boxes[:, 1] - left, TILE)
    y0, y1 = np.maximum(boxes[:, 2] - top, 0), np.minimum(boxes[:, 3] - top, TILE)
    columns, rows = (x1 - 1) // BLOCK_W + 1 - x0 // BLOCK_W, (y1 - 1) // BLOCK_H + 1 - y0 // BLOCK_H
    return int((columns * rows).sum()) * BLOCK_W * BLOCK_H


def work(scene, n: int, side: int) -> list[tuple[float, float]]:
    """Return operations and bytes of a forward pass, and of one with backward."""
    kept, draw = [], rasterize_autograd.draw

    def watched(*arguments):
        kept.append(draw(*arguments))
        return kept[-1]

    rasterize_autograd.draw = watched
    try:
        ours(*scene, side, side)
    finally:
        rasterize_autograd.draw = draw
    pixels, pairs = visited(kept[0], side), len(kept[0].members)
    splat, line = 4 * (14 + 2 * 9), 64  # parameters in; rows of the projection out and in; a record is one cache line
    forward = n * (splat + 2 * line) + pairs * (line + 16) + side * side * 16
    backward = forward + pairs * (line + 8 + 2 * 48) + n * 4 * (9 * 2 + 14 * 2) + side * side * (16 + 20)
    bytes_moved = (forward, backward)
    return [(PIXEL_OPERATIONS[i] * pixels + SPLAT_OPERATIONS[i] * n, bytes_moved[i]) for i in (0, 1)]


def measure(n: int, side: int, peaks: tuple[float, float]) -> dict:
    """Return measured and least possible milliseconds of both passes."""
    scene = ball_scene(n, side, side)
    scene[5:] = [tensor[0] for tensor in scene[5:]]
    runs = passes(ours, scene, side, side)
    found = {}
    for name, run, (operations, moved) in zip(COLOURS, runs, work(scene, n, side), strict=True):
        found[name] = (1e3 * seconds(run), 1e3 * operations / peaks[0], 1e3 * moved / peaks[1])
    return found


def panel(figure, column: int, xs, rows: list[dict], title: str) -> None:
    import plotly.graph_objects as go

    for name, colour in COLOURS.items():
        styles = (("", "solid"), (", arithmetic alone", "dot"), (", memory alone", "dash"))
        for part, (label, dash) in enumerate(styles):
            line = dict(color=colour, dash=dash, width=1 if part else 2)
            figure.add_trace(
                go.Scatter(x=list(xs), y=[row[name][part] for row in rows], name=name + label, line=line, showlegend=column == 1,
                           mode="lines" if part else "lines+markers"), row=1, col=column,
            )  # fmt: skip
    figure.update_xaxes(type="log", title_text=title, row=1, col=column)
    figure.update_yaxes(type="log", title_text="milliseconds" if column == 1 else None, row=1, col=column)


def main() -> None:
    from plotly.subplots import make_subplots

    from nsw.widgets.svg_still import svg

    peaks, all_threads, about = ceilings(), torch.get_num_threads(), machine()
    by_count = [measure(n, MIDDLE[1], peaks) for n in COUNTS]
    by_side = [measure(MIDDLE[0], side, peaks) for side in SIDES]
    threads, by_threads = range(1, all_threads + 1), []
    for n_threads in threads:
        torch.set_num_threads(n_threads)
        by_threads.append(measure(*THREADS_AT, ceilings()))
    torch.set_num_threads(all_threads)
    figure = make_subplots(rows=1, cols=3)
    panel(figure, 1, COUNTS, by_count, f"splats, at {MIDDLE[1]}x{MIDDLE[1]}")
    panel(figure, 2, [side * side for side in SIDES], by_side, f"pixels, {MIDDLE[0]} splats")
    panel(figure, 3, threads, by_threads, f"threads, {THREADS_AT[0]} splats at {THREADS_AT[1]}x{THREADS_AT[1]}")
    figure.update_layout(width=1200, height=460, legend=dict(orientation="h", y=-0.25), margin=dict(t=70))
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "scaling.svg").write_text(svg(figure, "Time of the rasterizer against splats, pixels and threads"), encoding="utf-8")
    lines = [f"Peaks: {peaks[0] / 1e9:.0f} GFLOP/s in a matrix product, {peaks[1] / 1e9:.0f} GB/s in a copy.", ""]
    lines += ["![Time against splats, pixels and threads](scaling.svg)", ""]
    lines += ["| splats | picture | threads | pass | measured, ms | arithmetic alone | memory alone |", "|---" * 7 + "|"]
    loads = [(n, MIDDLE[1], all_threads) for n in COUNTS] + [(MIDDLE[0], side, all_threads) for side in SIDES]
    loads += [(*THREADS_AT, n_threads) for n_threads in threads]
    for (n, side, used), row in zip(loads, by_count + by_side + by_threads, strict=True):
        for name, (ms, arithmetic, memory) in row.items():
            lines.append(f"| {n} | {side}x{side} | {used} | {name} | {ms:.2f} | {arithmetic:.2f} | {memory:.2f} |")
    print("\n".join(lines))
    write("scaling", "What the rasterizer's time grows with", about, lines)


if __name__ == "__main__":
    main()

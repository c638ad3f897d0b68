"""Time a million splats in the viewer, moving and at rest: `python tests/bench/bench_detail.py`.

A street of boxes on uneven ground, its splats as large as their neighbours are far, with harmonics of degree 0 and 3. A camera goes
around it; the picture of the cut is held against the picture of all splats, and so is a random subset of as many splats, each
enlarged until the areas add up again.
"""

from __future__ import annotations

import math
import statistics
import time

import torch
from bench_rasterization import machine
from report import write

from nsw.cameras import Cameras, orbit
from nsw.metrics import psnr
from nsw.models.gaussians import Gaussians
from nsw.renderers import render_view
from nsw.renderers.detail import DetailTree

TURNS = 24
BOXES = 40


def street(n: int, sh_degree: int) -> Gaussians:
    """Return n splats on ground and boxes, 8 units wide, with a pattern that has both edges and slopes."""
    g = torch.Generator().manual_seed(0)
    half = n // 2
    xy = torch.rand(half, 2, generator=g) * 8 - 4
    ground = torch.cat([xy, 0.05 * torch.sin(3 * xy[:, :1]) * torch.cos(2 * xy[:, 1:])], dim=1)
    side = torch.nn.functional.normalize(torch.randn(n - half, 3, generator=g), dim=1)
    corners = torch.cat([torch.rand(BOXES, 2, generator=g) * 7 - 3.5, torch.full((BOXES, 1), 0.3)], dim=1)
    boxes = 0.3 * side / side.abs().amax(dim=1, keepdim=True) + corners[torch.randint(0, BOXES, (n - half,), generator=g)]
    means = torch.cat([ground, boxes])
    tiles = torch.sign(torch.sin(9 * means[:, :1]) * torch.sin(9 * means[:, 1:2]))
    rgb = 0.5 + 0.2 * tiles + 0.25 * torch.sin(means * torch.tensor([4.0, 5.0, 6.0]))
    scales = 0.7 * math.sqrt(64 / half) * torch.exp(0.3 * torch.randn(n, 3, generator=g)) * torch.tensor([1.0, 1.0, 0.3])
    turns = torch.nn.functional.normalize(torch.randn(n, 4, generator=g), dim=1)
    opacities = 0.6 + 0.35 * torch.rand(n, generator=g)
    model = Gaussians.from_values(means, scales, turns, opacities, rgb.clamp(0, 1), sh_degree=sh_degree)
    with torch.no_grad():
        model.shN.normal_(0, 0.03, generator=g)
    return model.requires_grad_(False)


def subset(model: Gaussians, n: int) -> Gaussians:
    """Return n random splats, enlarged so that their areas add up to those of all."""
    chosen = torch.randperm(len(model), generator=torch.Generator().manual_seed(1))[:n]
    part = Gaussians(model.settings).fill(**{name: value[chosen] for name, value in model.params.items()}).requires_grad_(False)
    part.scales.add_(0.5 * math.log(len(model) / n))
    return part


def turned(draw, cameras: Cameras) -> tuple[float, float, list]:
    """Return median and 95 % of milliseconds, and the pictures."""
    draw(cameras[0])
    times, pictures = [], []
    for i in range(TURNS):
        began = time.perf_counter()
        pictures.append(draw(cameras[i]).rgb[0])
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times), sorted(times)[int(0.95 * TURNS)], pictures


def main() -> None:
    heads = ["splats", "harmonics", "picture", "drawn", "how", "median, ms", "95 % below, ms", "pictures/s", "PSNR against all, dB"]
    lines, told = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"], []
    for n, degree in ((200_000, 3), (1_000_000, 0), (1_000_000, 3)):
        model = street(n, degree)
        began = time.perf_counter()
        tree = DetailTree(model)
        built = time.perf_counter() - began
        for width in (256, 384):
            cameras = orbit(TURNS, 6.0, 25.0, (0, 0, 0), 50.0, width, width * 3 // 4)
            part = subset(model, tree.budget)
            ways = {"all": model, "cut, moving": tree, "random subset": part}
            first = None
            for way, drawn in ways.items():
                middle, late, pictures = turned(lambda camera, drawn=drawn: render_view(drawn, camera), cameras)
                first = first or pictures
                kept = "-" if way == "all" else f"{psnr(torch.stack(pictures), torch.stack(first).clamp(0, 1)):.1f}"
                count = len(tree.cut(cameras[0])) if drawn is tree else len(drawn)
                shown = [f"{n:,}", degree, f"{width}x{width * 3 // 4}", f"{count:,}", way, f"{middle:.1f}", f"{late:.1f}"]
                lines.append("| " + " | ".join(map(str, [*shown, f"{1e3 / middle:.0f}", kept])) + " |")
                print(lines[-1], flush=True)
        merged = sum(len(level.spread) for level in tree.levels)
        told.append(
            f"The tree over {n:,} splats of degree {degree}: {len(tree.levels)} levels, {merged:,} merged splats, {built:.1f} s."
        )
    write("detail", "Levels of detail", machine(), [*lines, "", *told])


if __name__ == "__main__":
    main()

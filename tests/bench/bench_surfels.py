"""Time the surfel rasterizer against the Gaussian one, interleaved in one run: `python tests/bench/bench_surfels.py`.

Scenes as in `bench_rasterization.py`. A surfel costs more at a pixel (a division, normals as three more channels, depth,
distortion); the table says how much. Medians in milliseconds; quote the ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from bench_rasterization import ball_scene

from nsw.kernels import rasterization, rasterization_2dgs

SIZES = ((10_000, 128, 128), (50_000, 256, 256))
CASES = {
    "colours": ({}, {}),
    "depth": ({"render_mode": "RGB+ED"}, {"render_mode": "RGB+ED"}),
    "distortion": ({"render_mode": "RGB+ED"}, {"render_mode": "RGB+ED", "distloss": True}),
    "ray depth": ({"render_mode": "RGB+ED"}, {"render_mode": "RGB+ED", "distloss": True, "ray_depth": True}),
}


def step(rasterize, tensors, width: int, height: int, backward: bool, options: dict) -> float:
    """Seconds of one drawing, with its gradient or without."""
    start = time.perf_counter()
    with torch.set_grad_enabled(backward):
        out = rasterize(*tensors, width, height, packed=False, **options)
        if backward:
            (out[0].square().mean() + out[1].mean()).backward()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    print(f"{torch.get_num_threads()} threads. splats, picture, what: Gaussians -> surfels in ms (ratio), forward | with backward")
    for n, width, height in SIZES:
        tensors = ball_scene(n, width, height)
        for tensor in tensors[:5]:
            tensor.requires_grad_()
        for name, options in CASES.items():
            line = f"{n} {width}x{height} {name:10}"
            for backward in (False, True):
                times = ([], [])
                for _ in range(repeats + 1):
                    for kept, rasterize, chosen in zip(times, (rasterization, rasterization_2dgs), options, strict=True):
                        kept.append(1e3 * step(rasterize, tensors, width, height, backward, chosen))
                a, b = (statistics.median(kept[1:]) for kept in times)  # the first may compile
                line += f" | {a:6.1f} -> {b:6.1f} ({b / a:.2f})"
            print(line, flush=True)


if __name__ == "__main__":
    main()

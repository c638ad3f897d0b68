"""Time the compiled rasterizer against the plain torch one in the same run: `python tests/bench/bench_rasterization.py`.

Scenes: N anisotropic splats uniform in a ball of radius 1, sizes near their spacing, seen from distance 3 with 45 degrees.
Numbers are medians in milliseconds, forward alone and forward with backward. Absolute times belong to one machine; quote ratios.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import statistics
import time
from pathlib import Path

import numba
import torch

from nsw.kernels import rasterization, rasterization_reference

SIZES = ((128, 128), (256, 256), (512, 384))
COUNTS = (1_000, 10_000, 50_000, 140_000)


def ball_scene(n: int, width: int, height: int, seed: int = 0) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    direction = torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=-1)
    means = direction * torch.rand(n, 1, generator=g) ** (1 / 3)
    scales = 0.55 * (4 / 3 * math.pi / n) ** (1 / 3) * torch.exp(0.5 * torch.randn(n, 3, generator=g))
    quats, opacities, colors = (
        torch.randn(n, 4, generator=g),
        0.1 + 0.85 * torch.rand(n, generator=g),
        torch.rand(n, 3, generator=g),
    )
    focal = 0.5 * width / math.tan(math.radians(22.5)) * min(1.0, height / width)
    Ks, viewmats = torch.tensor([[[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]]), torch.eye(4)[None].clone()
    viewmats[0, 2, 3] = 3.0
    return [means, quats, scales, opacities, colors, viewmats, Ks]


def median_ms(function, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def measure(rasterize, n: int, width: int, height: int, repeats: int) -> tuple[float, float]:
    """Forward and forward+backward of one size."""
    tensors = ball_scene(n, width, height)
    leaves = [tensor.requires_grad_() for tensor in tensors[:5]]

    def forward():
        with torch.no_grad():
            rasterize(*tensors, width, height, packed=False)

    def both():
        for leaf in leaves:
            leaf.grad = None
        renders, _, _ = rasterize(*tensors, width, height, packed=False)
        renders.backward(torch.ones_like(renders))

    if rasterize is rasterization:
        forward(), both()
    return median_ms(forward, repeats), median_ms(both, repeats)


def machine() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    load = f", load average at start {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{load}, "
        f"{platform.system()}, Python {platform.python_version()}, torch {torch.__version__}, numba {numba.__version__}"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--reference-up-to", type=int, default=10_000, help="largest N that plain torch is timed at")
    options = parser.parse_args()
    header, date = machine(), datetime.date.today().isoformat()
    print(f"{date}: {header}", flush=True)
    lines = [
        "| splats, picture | compiled: forward / with backward, ms | plain torch, ms | ratio with backward |",
        "|---|---|---|---|",
    ]
    rows = []
    for n in COUNTS:
        for width, height in SIZES:
            fast = measure(rasterization, n, width, height, options.repeats)
            slow = measure(rasterization_reference, n, width, height, 1) if n <= options.reference_up_to else None
            rows.append({"n": n, "width": width, "height": height, "fast_ms": fast, "reference_ms": slow})
            other = f"{slow[0]:.0f} / {slow[1]:.0f} | {slow[1] / fast[1]:.0f}x" if slow else "- | -"
            lines.append(f"| {n}, {width}x{height} | {fast[0]:.1f} / {fast[1]:.1f} | {other} |")
            print(lines[-1], flush=True)
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    record = {"date": date, "machine": header, "repeats": options.repeats, "rows": rows}
    (folder / "rasterization.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    text = (
        f"# Rasterization, measured {date}\n\n{header}. Medians of {options.repeats}; plain torch once.\n\n"
        + "\n".join(lines)
        + "\n"
    )
    (folder / "rasterization.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

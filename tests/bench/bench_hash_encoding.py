"""Ratio of the fused hash encoding to plain torch, values and gradients, both measured in this one run.

python tests/bench/bench_hash_encoding.py
"""

from __future__ import annotations

import datetime
import json
import time
from pathlib import Path
from statistics import median

import torch

from nsw.kernels.hash_encoding import hash_encode, hash_encode_reference, hash_levels
from nsw.runs.provenance import hardware

SIZES = ((8, 2, 14), (8, 4, 15), (10, 2, 15), (16, 2, 17), (16, 2, 19))  # levels, features, bits


def ray_points(n_rays: int = 650, n_samples: int = 50) -> torch.Tensor:
    """Return points in the order in which rays visit them."""
    generator = torch.Generator().manual_seed(0)
    origins = torch.rand(n_rays, 1, 3, generator=generator)
    directions = torch.nn.functional.normalize(torch.randn(n_rays, 1, 3, generator=generator), dim=-1)
    return (origins + directions * torch.linspace(0, 0.4, n_samples)[None, :, None]).reshape(-1, 3).clamp(0, 1)


def milliseconds(encode, table: torch.Tensor, points: torch.Tensor, levels, backward: bool) -> float:
    start = time.perf_counter()
    out = encode(table, points, levels)
    if backward:
        torch.autograd.grad(out.sum(), table)
    return 1e3 * (time.perf_counter() - start)


def main(repeats: int = 7) -> None:
    points = ray_points()
    about = f"{hardware()}; {len(points)} points in ray order, torch {torch.__version__}, {torch.get_num_threads()} threads"
    lines = ["| levels x features, entries | fused: forward / with backward, ms | plain torch, ms | ratio |", "|---|---|---|---|"]
    print("\n".join(lines))
    rows = []
    for n_levels, n_features, bits in SIZES:
        levels = hash_levels(n_levels, 16, 256 if n_levels < 16 else 1024, bits)
        table = torch.randn(levels.n_rows, n_features, requires_grad=True)
        times: dict[tuple, list[float]] = {}
        for k in range(repeats + 1):  # the two take turns, so that both see the same machine; the first round compiles
            for encode in (hash_encode, hash_encode_reference):
                for backward in (False, True):
                    spent = milliseconds(encode, table, points, levels, backward)
                    times.setdefault((encode, backward), []).extend([spent] if k else [])
        (f, fb), (r, rb) = ([median(times[e, b]) for b in (False, True)] for e in (hash_encode, hash_encode_reference))
        rows.append({"levels": n_levels, "features": n_features, "bits": bits, "fused_ms": [f, fb], "reference_ms": [r, rb]})
        lines.append(
            f"| {n_levels} x {n_features}, 2^{bits} | {f:.1f} / {fb:.1f} | {r:.0f} / {rb:.0f} | {r / f:.1f} / {rb / fb:.1f} |"
        )
        print(lines[-1], flush=True)
    folder, date = Path(__file__).parent / "results", datetime.date.today().isoformat()
    folder.mkdir(exist_ok=True)
    text = "\n".join([f"# Hash encoding, measured {date}", "", f"{about}. Medians of {repeats}.", "", *lines]) + "\n"
    (folder / "hash_encoding.md").write_text(text, encoding="utf-8")
    record = json.dumps({"date": date, "about": about, "rows": rows}, indent=1)
    (folder / "hash_encoding.json").write_text(record + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

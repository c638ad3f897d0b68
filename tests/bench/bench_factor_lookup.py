"""Ratio of the fused lookups of factored grids to torch's grid_sample, values and gradients, both measured in this one run.

python tests/bench/bench_factor_lookup.py
"""

from __future__ import annotations

import datetime
import json
import time
from pathlib import Path
from statistics import median

import torch
from bench_grid_lookup import BOX, ray_points

from nsw.kernels.cp_lookup import cp_lookup, cp_lookup_reference
from nsw.kernels.vm_lookup import vm_lookup, vm_lookup_reference
from nsw.runs.provenance import hardware


def vm(size: int, rank: int):
    factors = [torch.randn(*shape, rank, requires_grad=True) for shape in [(size, size)] * 3 + [(size,)] * 3]
    fused, reference = ((lambda *a, f=f, **k: f(factors[:3], factors[3:], *a, **k)) for f in (vm_lookup, vm_lookup_reference))
    return factors, fused, reference


def cp(size: int, rank: int):
    factors = [torch.randn(size, rank, requires_grad=True) for _ in range(3)]
    fused, reference = ((lambda *a, f=f, **k: f(factors, *a, **k)) for f in (cp_lookup, cp_lookup_reference))
    return factors, fused, reference


CASES = (
    ("VM density", vm, 96, 16, True),
    ("VM colour", vm, 96, 48, False),
    ("VM colour", vm, 200, 24, False),
    ("CP density", cp, 96, 96, True),
    ("CP colour", cp, 96, 288, False),
)


def milliseconds(lookup, factors, points: torch.Tensor, summed: bool, backward: bool) -> float:
    start = time.perf_counter()
    out = lookup(points, BOX, summed=summed)
    if backward:
        torch.autograd.grad(out.sum(), factors)
    return 1e3 * (time.perf_counter() - start)


def main(repeats: int = 5) -> None:
    points = ray_points(650)
    about = f"{hardware()}; {len(points)} points in ray order, torch {torch.__version__}, {torch.get_num_threads()} threads"
    lines = ["| lookup | fused: forward / with backward, ms | grid_sample, ms | ratio |", "|---|---|---|---|"]
    print("\n".join(lines))
    rows = []
    for name, make, size, rank, summed in CASES:
        factors, *lookups = make(size, rank)
        times: dict[tuple, list[float]] = {}
        for k in range(repeats + 1):  # the two take turns, so that both see the same machine; the first round compiles
            for which, lookup in enumerate(lookups):
                for backward in (False, True):
                    spent = milliseconds(lookup, factors, points, summed, backward)
                    times.setdefault((which, backward), []).extend([spent] if k else [])
        (f, fb), (r, rb) = ([median(times[which, b]) for b in (False, True)] for which in (0, 1))
        rows.append({"lookup": name, "size": size, "rank": rank, "fused_ms": [f, fb], "reference_ms": [r, rb]})
        lines.append(f"| {name}, {size}, rank {rank} | {f:.1f} / {fb:.1f} | {r:.0f} / {rb:.0f} | {r / f:.1f} / {rb / fb:.1f} |")
        print(lines[-1], flush=True)
    folder, date = Path(__file__).parent / "results", datetime.date.today().isoformat()
    folder.mkdir(exist_ok=True)
    text = "\n".join([f"# Lookups of factored grids, measured {date}", "", f"{about}. Medians of {repeats}.", "", *lines]) + "\n"
    (folder / "factor_lookup.md").write_text(text, encoding="utf-8")
    record = json.dumps({"date": date, "about": about, "rows": rows}, indent=1)
    (folder / "factor_lookup.json").write_text(record + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

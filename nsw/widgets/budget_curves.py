"""What a smaller budget costs: quality over size for several methods, and a slider through what each size draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def budget_slider(found: Mapping[str, Sequence[tuple[int, float, Any]]], x: str, alt: str, y: str = "PSNR (dB)") -> None:
    """Show the curve of each method over its budget, and below its pictures at the budget that a slider chooses.

    Args:
        found: method -> one (size, quality, picture) a budget, the largest first; as many for every method.
        x: unit of the sizes, for example "splats".
        alt: what the pictures show.
        y: name of the quality.
    """
    from nsw.widgets.charts import lines
    from nsw.widgets.pictures import titled
    from nsw.widgets.slider_panel import sliders

    curves = {name: ([size for size, *_ in runs], [quality for _, quality, _ in runs]) for name, runs in found.items()}
    lines(curves, x, y, alt=f"{y} of each method over {x}", title=f"{y} at each budget", log_x=True, markers=True)

    def at(halvings: int):
        runs = {name: runs[halvings] for name, runs in found.items()}
        return titled({f"{name}: {size:,} {x}, {y} {quality:.1f}": picture for name, (size, quality, picture) in runs.items()})

    sliders(at, alt=alt, halvings=(0, min(map(len, found.values())) - 1, 0))

"""What was measured before, by `nsw run NOTEBOOK --record`: `data/measured.json`.

{slug: {preset: {"seconds", "peak_mb", "hardware", "date", "runs": {seed: {"seconds", "peak_mb"}},
"seeds": {seed: {title: {"ours", "baseline", "gain"}}}}}}
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from nsw.models.state import read_json, write_json
from nsw.runs.folders import repo_dir


def measured_path() -> Path | None:
    """Return the file in the checkout, or None for an installed package."""
    root = repo_dir()
    return None if root is None else root / "data" / "measured.json"


def load(path: Path | None = None) -> dict[str, Any]:
    """Return everything recorded; empty when nothing is."""
    path = path or measured_path()
    return read_json(path, "record") if path is not None and path.is_file() else {}


def budget(slug: str, preset: str, path: Path | None = None) -> dict[str, Any] | None:
    """Return {"seconds", "peak_mb", "hardware", "date", ...} of a preset, or None when it was never recorded."""
    return load(path).get(slug, {}).get(preset)


def spread(slug: str, preset: str, title: str, path: Path | None = None) -> dict[str, float] | None:
    """Return {"n", "mean", "min", "max"} of a claim's gain over the recorded seeds, or None."""
    seeds = (budget(slug, preset, path) or {}).get("seeds", {})
    gains = [rows[title]["gain"] for rows in seeds.values() if rows.get(title, {}).get("gain") is not None]
    return {"n": len(gains), "mean": statistics.fmean(gains), "min": min(gains), "max": max(gains)} if gains else None


def record(
    slug: str,
    preset: str,
    seed: int,
    *,
    seconds: float,
    peak_mb: float,
    claims: list[dict[str, Any]],
    hardware: str,
    date: str,
    path: Path | None = None,
) -> None:
    """Add one run in place of an earlier one of its seed; time and memory are the largest over seeds, on one machine and date."""
    path = path or measured_path()
    if path is None:
        return
    everything = load(path)
    entry = everything.setdefault(slug, {}).setdefault(preset, {})
    same = entry.get("hardware") == hardware and entry.get("date") == date
    runs = entry.get("runs", {}) if same else {}
    entry["runs"] = runs = runs | {str(seed): {"seconds": round(seconds, 1), "peak_mb": round(peak_mb)}}
    for name in ("seconds", "peak_mb"):
        entry[name] = max(run[name] for run in runs.values())
    entry["hardware"], entry["date"] = hardware, date
    seeds = entry.setdefault("seeds", {})
    seeds[str(seed)] = {row["title"]: {"ours": row["ours"], "baseline": row["baseline"], "gain": row["gain"]} for row in claims}
    entry["seeds"] = dict(sorted(seeds.items(), key=lambda item: int(item[0])))
    write_json(path, dict(sorted(everything.items())))

"""One table of all trained models, whatever their architecture, from the cards that runs have kept."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nsw.runs.kept import Kept
from nsw.runs.progress import duration
from nsw.runs.settings import PRESETS

HEAD = ["run", "model", "scene", "PSNR", "parameters", "bytes", "training", "pictures/s"]
NOTE = "Seconds of a distilled model (pvd, pvd_al, nerdf, nsw convert) leave out its teacher's training."
_PREFERRED = ("laptop", "gpu", "smoke")


def size(n_bytes: float | None) -> str:
    """Return a size as a person would say it.

    >>> size(950), size(1_234_567), size(None)
    ('950 B', '1.2 MB', '-')
    """
    if n_bytes is None:
        return "-"
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= one:
            return f"{n_bytes / one:.3g} {unit}" if n_bytes >= 100 * one else f"{n_bytes / one:.1f} {unit}"
    return f"{n_bytes:.0f} B"


def row(kept: Kept) -> list[str]:
    """Return the cells of one model, in the order of `HEAD`; a dash for what its card does not say."""
    card = kept.card
    picture = f"{card['scene']} {card['width']}x{card['height']}" if "scene" in card else "-"
    psnr = f"{card['psnr']:.2f} dB" if "psnr" in card else "-"
    seconds, rate = card.get("seconds_to_train"), card.get("pictures_per_second")
    trained = "-" if seconds is None else f"{seconds:.1f} s" if seconds < 60 else duration(seconds)
    parameters = f"{card['parameters']:,}" if "parameters" in card else "-"
    rate_text = "-" if rate is None else f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
    return [kept.label, card.get("model", "-"), picture, psnr, parameters, size(card.get("bytes")), trained, rate_text]


def ordered(models: Sequence[Kept]) -> list[Kept]:
    """Return models of one preset, scene and size together, the best picture first."""

    def place(kept: Kept) -> tuple:
        card = kept.card
        preset = PRESETS.index(card["preset"]) if card.get("preset") in PRESETS else len(PRESETS)
        return preset, card.get("scene", "~"), card.get("width", 0), -card.get("psnr", 0.0), kept.label

    return sorted(models, key=place)


def rows(models: Sequence[Kept]) -> list[list[str]]:
    """Return the table's rows, ordered."""
    return [row(kept) for kept in ordered(models)]


def best(models: Sequence[Kept]) -> list[Kept]:
    """Return each notebook's models of one run: with its own parameters; laptop before gpu and smoke, low seeds first."""
    chosen: dict[str, tuple[int, int]] = {}
    for kept in models:
        if (rank := _rank(kept)) is not None:
            chosen[kept.slug] = min(rank, chosen.get(kept.slug, rank))
    return [kept for kept in models if _rank(kept) is not None and _rank(kept) == chosen[kept.slug]]


def _rank(kept: Kept) -> tuple[int, int] | None:
    """Return how willingly a run is shown, less is more; None for one with other parameters or without a card."""
    match = re.fullmatch(r"([a-z]+)-seed(\d+)", kept.run.name)
    if match is None or match[1] not in _PREFERRED or "psnr" not in kept.card:
        return None
    return _PREFERRED.index(match[1]), int(match[2])


def markdown(models: Sequence[Kept]) -> str:
    """Return the README's table of models, one row a model of `best`, and the sentence on its seconds below."""
    lines = ["| " + " | ".join(["notebook, model", *HEAD[1:]]) + " |", "|" + "---|" * len(HEAD)]
    chosen = best(ordered(models))
    for kept, cells in zip(chosen, map(row, chosen), strict=True):
        cells[0] = f"{kept.slug}: {kept.folder.name} ({kept.run.name.partition('-')[0]})"
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join([*lines, "", NOTE])

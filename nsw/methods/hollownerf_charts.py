"""What HollowNeRF's notebook draws from numbers it has: its price at work, bins of saliency, the true shell found, sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from jaxtyping import Bool, Float
from torch import Tensor

from nsw.methods import hollownerf_pack as packing
from nsw.methods.hollownerf_inspect import agreement, agreement_curve, histogram, saliencies
from nsw.metrics import psnr
from nsw.models.hollow_grid import HollowGrid
from nsw.renderers.render import Render


def thermostat_at_work(
    history: Callable[[str], tuple[Sequence[float], Sequence[float]]], limit: float
) -> dict[str, tuple[Sequence[float], Sequence[float]]]:
    """Return mean saliency with its limit, multiplier and PSNR over the steps, the last two as shares of largest and last.

    Args:
        history: of a run; steps and values of what was recorded as "m", "multiplier" and "psnr".
    """
    (steps, means), (_, prices), (looked, decibels) = history("m"), history("multiplier"), history("psnr")
    return {
        "mean saliency m": (steps, means),
        "limit C": (steps, [limit] * len(steps)),
        "multiplier / largest": (steps, [price / max(max(prices), 1e-12) for price in prices]),
        "PSNR / last": (looked, [value / decibels[-1] for value in decibels]),
    }


def bins(grids: Mapping[str, Float[Tensor, "T T T"]], n: int) -> dict[str, dict[str, float]]:
    """Return the share of vertices in each of n bins of saliency, {lower end: {name of the grid: share}}.

    >>> import torch
    >>> bins({"one": torch.tensor([0.1, 0.9, 0.9, 0.9])}, 2)
    {'0': {'one': 0.25}, '0.5': {'one': 0.75}}
    """
    shares = {name: histogram(grid, n) for name, grid in grids.items()}
    return {low: {name: shares[name][low] for name in shares} for low in next(iter(shares.values()))}


def found_curves(
    grids: Mapping[str, Float[Tensor, "T T T"]], shell: Bool[Tensor, "T T T"]
) -> dict[str, tuple[Sequence[float], Sequence[float]]]:
    """Return precision over recall of each grid's saliency against the true shell, and what chance would have."""
    return {name: agreement_curve(grid, shell) for name, grid in grids.items()} | {
        "chance": ([0.0, 1.0], [float(shell.float().mean())] * 2)
    }


def emptied(fields: Mapping[int, HollowGrid], score: Callable[[HollowGrid], float]) -> dict[int, tuple[int, float]]:
    """Return what each field stores and its score in dB, {table size: (numbers, dB)}; they are emptied first."""
    for field in fields.values():
        packing.hollow_out(field)
    return {size: (packing.n_stored(field), score(field)) for size, field in sorted(fields.items())}


def size_curves(kinds: Mapping[str, Mapping[int, tuple[int, float]]]) -> dict[str, tuple[Sequence[float], Sequence[float]]]:
    """Return the curve of each kind of field that there is, from {table size: (parameters, score in dB)}."""
    return {name: tuple(zip(*points.values(), strict=True)) for name, points in kinds.items() if points}


def shell_numbers(
    saliency: Tensor, unpruned: Tensor, beside: Bool[Tensor, "T T T"], far: Bool[Tensor, "T T T"], inside: Bool[Tensor, "T T T"]
) -> dict[str, dict[str, float]]:
    """Return what claims on the shell compare, {name: {"ours": ..., "baseline": ...}}.

    "far" and "inside" are the mean saliency there, against the shell's; "precision" and "recall" are against the unpruned grid's.

    Args:
        beside, far, inside: vertices beside visible surfaces, far from them, and hidden inside of things.
    """
    shell = float(saliency[beside].mean())
    means = {name: dict(ours=float(saliency[there].mean()), baseline=shell) for name, there in (("far", far), ("inside", inside))}
    both = zip(("precision", "recall"), agreement(saliency, beside), agreement(unpruned, beside), strict=True)
    return means | {name: dict(ours=ours, baseline=theirs) for name, ours, theirs in both}


def pressed(
    press: Callable[..., HollowGrid],
    draw: Callable[[HollowGrid], Render],
    photograph: Float[Tensor, "H W 3"],
    inside: Bool[Tensor, "T T T"] | None,
    beside: Bool[Tensor, "T T T"] | None,
    limit: float,
    log_price: float,
) -> list[tuple[Float[Tensor, "H W 3"], dict[str, float], str]]:
    """Return, for a field pressed by a limit and one by a fixed price, its picture, how full it is, and its name with its PSNR.

    Args:
        press: from fields of `hollow.Pruning` to the pressed field.
        draw: from a field to its picture of the photograph's view.
        inside, beside: vertices hidden inside of things, and those beside visible surfaces; None where nobody knows.
    """
    fields = {f"C = {limit:.3f}": press(limit=limit, rho=0.05), f"price 10^{log_price:.1f}": press(weight=10**log_price)}
    rows = []
    for name, field in fields.items():
        p, picture = saliencies(field), draw(field).rgb[0].cpu()
        shares = {"p below 0.2:": float((p < 0.2).float().mean()), "p above 0.8:": float((p > 0.8).float().mean())}
        if inside is not None and beside is not None:
            shares |= {"shell, mean p:": float(p[beside].mean()), "inside, mean p:": float(p[inside].mean())}
        rows.append((picture, shares, f"{name}: {psnr(picture[None], photograph[None]):.1f} dB"))
    return rows

"""Which cells of a grid truly hold a surface, and how many of them an occupancy grid has found."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from nsw.errors import InputError
from nsw.renderers.parts import rays_of_some
from nsw.scenes.scene import Scene


@torch.no_grad()
def true_cells(
    scene: Scene, aabb: Float[Tensor, "2 3"], n_cells: int, margin: float = 0.0, split: str = "train"
) -> Bool[Tensor, "n n n"]:
    """Return the cells of a grid over a box that hold a surface some camera sees, from a scene's true depth.

    Args:
        margin: how far from a cell's walls a surface point has to lie to count, as a share of the cell, below 1/2: a surface
            that cuts off a corner may as well be the neighbour's.

    Raises:
        InputError: for a scene without depth.
    """
    if scene.depth is None:
        raise InputError(f"Scene {scene.name} has no true depth, so its occupied cells are unknown: take a bundled scene.")
    depths, truth = scene.depth[scene.frames(split)].reshape(-1), torch.zeros((n_cells,) * 3, dtype=torch.bool)
    for rays in rays_of_some(scene.views(split)):
        depth, depths = depths[: len(rays)].float(), depths[len(rays) :]
        points = rays.at_depth(depth)
        place = (points - aabb[0]) / (aabb[1] - aabb[0]) * n_cells
        cells = place.floor().long()
        well_inside = ((place - cells - 0.5).abs() <= 0.5 - margin).all(-1)
        i, j, k = cells[(depth > 0) & well_inside & ((cells >= 0) & (cells < n_cells)).all(-1)].unbind(-1)
        truth[i, j, k] = True
    return truth


def known_cells(scene: Scene, aabb: Float[Tensor, "2 3"], n_cells: int) -> Bool[Tensor, "n n n"] | None:
    """Return `true_cells`, or None for a scene without true depth."""
    return true_cells(scene, aabb, n_cells) if scene.knows("depth") else None


def recall(found: Bool[Tensor, "*n"], truth: Bool[Tensor, "*n"]) -> float:
    """Return the share of truly occupied cells that are on: what is off is never sampled and stays a hole.

    >>> recall(torch.tensor([True, True, False]), torch.tensor([True, False, True]))
    0.5
    """
    return float((found & truth).sum() / truth.sum().clamp_min(1))


def run_rows(
    fields: Mapping[str, nn.Module], score: Callable[[nn.Module], float], truth: Bool[Tensor, "n n n"] | None = None
) -> list[dict[str, float | str]]:
    """Return a row for each quick run: its score in dB, megabytes, the share of cells that are on, and of the true ones.

    Args:
        fields: each with an `occupancy`.
        truth: of `true_cells`; None where that is not known.
    """
    rows = []
    for name, field in fields.items():
        on, n_bytes = field.occupancy.binaries[0].cpu(), sum(p.numel() * p.element_size() for p in field.parameters())
        row = {"quick run": name, "PSNR (dB)": score(field), "MB": n_bytes / 1e6, "cells on": f"{float(on.float().mean()):.0%}"}
        rows.append(row | ({} if truth is None else {"recall": recall(on, truth)}))
    return rows

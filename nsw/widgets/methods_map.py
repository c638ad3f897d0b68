"""The map of methods: what follows from what, each box a link to its notebook, future ones greyed."""

from __future__ import annotations

import html
import json
from dataclasses import dataclass
from pathlib import Path

from nsw.widgets.frontend import emit


@dataclass(frozen=True)
class Method:
    """One box of the map: `slug` is the notebook's name after its number, `family` its row, `after` the boxes it builds on."""

    slug: str
    title: str
    year: int
    family: str
    after: tuple[str, ...] = ()


FAMILIES = ("Fields in a network", "Fields on a grid", "Splats", "Surfaces", "Priors and generation")

METHODS = (
    Method("nerf", "NeRF", 2020, FAMILIES[0]),
    Method("mip_nerf", "Mip-NeRF", 2021, FAMILIES[0], ("nerf",)),
    Method("dietnerf", "DietNeRF", 2021, FAMILIES[0], ("nerf",)),
    Method("dvgo", "DVGO", 2022, FAMILIES[1], ("nerf",)),
    Method("tensorf", "TensoRF", 2022, FAMILIES[1], ("dvgo",)),
    Method("instant_ngp", "Instant-NGP", 2022, FAMILIES[1], ("dvgo",)),
    Method("gaussian_splatting", "3D Gaussian splatting", 2023, FAMILIES[2], ("nerf",)),
    Method("compact_3dgs", "Compact 3DGS", 2024, FAMILIES[2], ("gaussian_splatting",)),
    Method("deblurring_3dgs", "Deblurring 3DGS", 2024, FAMILIES[2], ("gaussian_splatting",)),
    Method("neus", "NeuS", 2021, FAMILIES[3], ("nerf",)),
    Method("2dgs", "2D Gaussian splatting", 2024, FAMILIES[3], ("gaussian_splatting",)),
    Method("dreamfusion", "Score distillation", 2022, FAMILIES[4], ("nerf",)),
)

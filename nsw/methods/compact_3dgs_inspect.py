"""Look at compact splats: bytes by attribute, masked splats in red, the colour field on a sphere, and harmonics baked from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from nsw.models.compact_gaussians import KEEP_ABOVE, CompactGaussians
from nsw.models.gaussians import NAMES, Gaussians, GaussiansSettings
from nsw.models.parts import part_of
from nsw.models.sh import sh_basis
from nsw.renderers.splat_probe import recoloured

GROUPS = {
    "places": ("places",),
    "opacity": ("opacities",),
    "shape": ("scales", "rotations"),
    "colour": ("harmonics",),
    "shared": ("codewords", "table", "network"),
    "rest": ("header", "unused"),
}


def ply_sizes(path: Path | str, gaussians: Gaussians) -> dict[str, int]:
    """Return how many bytes of a `.ply` each attribute takes, by the names of `compact_3dgs_reader.sizes`; normals are unused."""
    n = len(gaussians)
    floats = {"places": 3, "unused": 3, "harmonics": 3 * gaussians.n_sh, "opacities": 1, "scales": 3, "rotations": 4}
    parts = {name: 4 * count * n for name, count in floats.items()}
    return {"header": Path(path).stat().st_size - sum(parts.values())} | parts


def bits_per_splat(sizes: Mapping[str, int], n: int) -> dict[str, float]:
    """Return bits a splat by what they say, in the order of `GROUPS`; what all splats share is divided among them."""
    return {group: 8 * sum(sizes.get(name, 0) for name in names) / n for group, names in GROUPS.items()}


def grown(sizes: Mapping[str, int], n: int, n_wanted: int) -> float:
    """Return how large the file would be with n_wanted splats, if codebooks and field stayed: an extrapolation, in bytes."""
    fixed = sum(sizes.get(name, 0) for name in ("header", "codewords", "table", "network"))
    return fixed + (sum(sizes.values()) - fixed) * n_wanted / n


@torch.no_grad()
def subset(gaussians: CompactGaussians, keep_above: float = KEEP_ABOVE, stages: int | None = None) -> CompactGaussians:
    """Return a copy that draws only the splats whose sigmoid(m) is above a threshold, by the first `stages` of their codes."""
    plain = gaussians.coded(stages)
    gone = plain.mask.sigmoid() <= keep_above
    plain.mask[gone] = -20.0
    return plain


@torch.no_grad()
def parted(gaussians: Gaussians, share: float) -> tuple[Gaussians, Gaussians]:
    """Return the given share of splats that is most opaque, and the others: a pruning that knows nothing of the pictures."""
    order = gaussians.opacities.argsort(descending=True)
    n = round(share * len(order))
    return part_of(gaussians, order[:n]), part_of(gaussians, order[n:])


@torch.no_grad()
def truncated(gaussians: Gaussians, degree: int) -> Gaussians:
    """Return a copy with the harmonics up to a degree only: the simplest way to a smaller `.ply`."""
    raw = {name: gaussians.params[name] for name in NAMES}
    raw["shN"] = raw["shN"][:, : (degree + 1) ** 2 - 1]
    return Gaussians(GaussiansSettings(degree, gaussians.settings.isotropic)).to(gaussians.means.device).fill(**raw)


@torch.no_grad()
def marked(gaussians: CompactGaussians, below: float = KEEP_ABOVE) -> Gaussians:
    """Return the splats in grey, and in red those whose sigmoid(m) is at most `below`, with their own scale and opacity."""
    splats = gaussians.coded()
    red = (splats.mask.sigmoid() <= below)[:, None]
    splats.mask.fill_(10.0)
    colours = splats.means.new_tensor([[0.84, 0.1, 0.1], [0.75, 0.75, 0.75]])
    return recoloured(splats, torch.where(red, colours[0], colours[1]))


def directions_on_sphere(n: int, seed: int = 0) -> Float[Tensor, "n 3"]:
    """Return n unit vectors, spread evenly by a Fibonacci spiral."""
    i = torch.arange(n, dtype=torch.float64) + 0.5
    z, turn = 1 - 2 * i / n, torch.pi * (1 + 5**0.5) * i
    return torch.stack([(1 - z * z).sqrt() * turn.cos(), (1 - z * z).sqrt() * turn.sin(), z], dim=1).float()


@torch.no_grad()
def baked(gaussians: CompactGaussians, degree: int = 3, n_directions: int = 64) -> Gaussians:
    r"""Return plain Gaussians for any viewer: the field's colour of every splat as harmonics, by least squares over directions.

    $$H = (B^\top B)^{-1} B^\top (c - \tfrac12), \qquad c = \max(0, \tfrac12 + 0.282\,y)$$

    Only kept splats are returned, with the scales and rotations of their codes.
    """
    splats, keep = gaussians.coded(), gaussians.kept
    raw = {name: splats.params[name][keep] for name in NAMES}
    if splats.has_field:
        d = directions_on_sphere(n_directions).to(splats.means.device)
        features = splats.field.features(splats.means[keep])
        seen = [splats.field.sh0(features, v.expand(len(features), 3))[:, 0] for v in d]
        c = (0.5 + sh_basis(0, d[:1]) * torch.stack(seen)).clamp_min(0)  # [directions, N, 3]
        solve = torch.linalg.pinv(sh_basis(degree, d).double()).to(c)
        sh = torch.einsum("kd,dnc->nkc", solve, c - 0.5)
        raw |= {"sh0": sh[:, :1], "shN": sh[:, 1:]}
    else:
        degree = splats.settings.sh_degree
    return Gaussians(GaussiansSettings(degree, splats.settings.isotropic)).to(splats.means.device).fill(**raw)


@torch.no_grad()
def colour_map(gaussians: Gaussians, index: int, rows: int = 32) -> Float[Tensor, "rows 2rows 3"]:
    """Return the colour of one splat towards all directions: longitude across, from straight up to straight down."""
    z = 1 - 2 * (torch.arange(rows) + 0.5) / rows
    turn = torch.pi * (torch.arange(2 * rows) + 0.5) / rows
    ring = (1 - z * z).sqrt()[:, None]
    d = torch.stack([ring * turn.cos(), ring * turn.sin(), z[:, None].expand(-1, 2 * rows)], dim=-1).reshape(-1, 3)
    d = d.to(gaussians.means.device)
    if getattr(gaussians, "has_field", False):
        features = gaussians.field.features(gaussians.means[index : index + 1]).expand(len(d), -1)
        values = sh_basis(0, d) * gaussians.field.sh0(features, d)[:, 0]
    else:
        values = sh_basis(gaussians.settings.sh_degree, d) @ gaussians.sh[index]
    return (0.5 + values).clamp_min(0).reshape(rows, 2 * rows, 3).cpu()


@torch.no_grad()
def nearest(gaussians: Gaussians, point: Float[Tensor, "3"], least: float = 0.3) -> int:
    """Return the splat nearest to a point among those at least as opaque as `least`."""
    away = (gaussians.means - point.to(gaussians.means)).norm(dim=1)
    return int(torch.where(gaussians.activated_opacities >= least, away, torch.inf).argmin())

"""Look at compact splats: bytes by attribute, masked splats in red, the colour field on a sphere, and harmonics baked from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from nsw.methods import compact_3dgs_reader as reader
from nsw.models.compact_gaussians import KEEP_ABOVE, CompactGaussians
from nsw.models.gaussians import NAMES, Gaussians, GaussiansSettings
from nsw.models.morton import interleave
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


def file_sizes(path: Path | str, gaussians: Gaussians) -> dict[str, int]:
    """Return how many bytes of a file of splats each part takes, whether it is a `.ply` or a compact scene."""
    return ply_sizes(path, gaussians) if Path(path).suffix == ".ply" else reader.sizes(path)


def bits_per_splat(sizes: Mapping[str, int], n: int) -> dict[str, float]:
    """Return bits a splat by what they say, in the order of `GROUPS`; what all splats share is divided among them."""
    return {group: 8 * sum(sizes.get(name, 0) for name in names) / n for group, names in GROUPS.items()}


def file_row(name: str, path: Path | str, gaussians: Gaussians, psnr: float) -> dict[str, str | float]:
    """Return a row of a table of files: bytes on the disk, splats, PSNR, and the size if there were a million splats."""
    n, million = len(gaussians), 1_000_000
    row = {"file": name, "kB": Path(path).stat().st_size / 1000, "splats": n, "PSNR (dB)": psnr}
    return row | {"MB with a million splats": grown(file_sizes(path, gaussians), n, million) / 1e6}


def grown(sizes: Mapping[str, int], n: int, n_wanted: int) -> float:
    """Return how large the file would be with n_wanted splats, if codebooks and field stayed: an extrapolation, in bytes."""
    fixed = sum(sizes.get(name, 0) for name in ("header", "codewords", "table", "network"))
    return fixed + (sum(sizes.values()) - fixed) * n_wanted / n


def morton_way(n: int) -> tuple[list[int], list[int]]:
    """Return x and y of the n x n cells of a plane in Morton's order.

    >>> morton_way(2)
    ([0, 0, 1, 1], [0, 1, 0, 1])
    """
    cells = torch.cartesian_prod(torch.arange(n), torch.arange(n), torch.zeros(1, dtype=torch.long))
    x, y = cells[interleave(cells, (n - 1).bit_length()).argsort()][:, :2].T.tolist()
    return x, y


class MaskHistory:
    """Histograms of sigmoid(m) collected during a run; give it to `run.steps(save=...)` and they outlive a restart."""

    def __init__(self, n_bins: int = 32) -> None:
        self.edges, self.steps, self.counts = torch.linspace(0, 1, n_bins + 1), [], []

    @torch.no_grad()
    def add(self, step: int, gaussians: CompactGaussians) -> None:
        """Count the splats of every bin at a step."""
        self.steps.append(step)
        self.counts.append(torch.histogram(gaussians.mask.sigmoid().cpu(), self.edges).hist)

    def curves(self, first: int, last: int, n: int = 4) -> dict[str, tuple[Float[Tensor, "K"], Float[Tensor, "K"]]]:
        """Return curves (middles of bins, splats in a bin) of at most n looks, spread over those between two steps."""
        looks = [i for i, step in enumerate(self.steps) if first <= step <= last]
        picks = sorted({looks[round(k * (len(looks) - 1) / max(n - 1, 1))] for k in range(n)}) if looks else []
        return {f"step {self.steps[i]}": ((self.edges[1:] + self.edges[:-1]) / 2, self.counts[i]) for i in picks}

    def state_dict(self) -> dict:
        return {"steps": list(self.steps), "counts": list(self.counts)}

    def load_state_dict(self, state: dict) -> None:
        self.steps, self.counts = list(state["steps"]), list(state["counts"])


@torch.no_grad()
def subset(gaussians: CompactGaussians, keep_above: float = KEEP_ABOVE, stages: int | None = None) -> CompactGaussians:
    """Return a copy that draws only the splats whose sigmoid(m) is above a threshold, by the first `stages` of their codes."""
    plain = gaussians.coded(stages)
    gone = plain.mask.sigmoid() <= keep_above
    plain.mask[gone] = -20.0
    return plain


@torch.no_grad()
def thinned(gaussians: CompactGaussians, keep: float, stages: int | None = None) -> CompactGaussians:
    """Return a copy that draws the share `keep` of splats of which the mask is surest, by the first `stages` of their codes."""
    return subset(gaussians, float(gaussians.mask.sigmoid().quantile(1.0 - keep)) - 1e-6, stages)


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


def bands(gaussians: Gaussians) -> list[Gaussians]:
    """Return copies with one band of harmonics after the other, up to all."""
    return [truncated(gaussians, degree) for degree in range(gaussians.settings.sh_degree + 1)]


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

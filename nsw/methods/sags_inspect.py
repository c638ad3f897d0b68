"""Look at anchored splats: floaters by depth, flicker at the border of a picture, messages, Lite with fewer midpoints, bytes."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nsw.cameras import Cameras, project
from nsw.metrics import ViewScores
from nsw.models import io
from nsw.models.anchored_splats import AnchoredSplats
from nsw.models.gaussians import Gaussians, Seen
from nsw.models.midpoints import with_midpoints
from nsw.models.neighbour_graph import graph_of, link_weights, message, strongest_difference
from nsw.models.parts import joined
from nsw.models.sh import SH0, rgb_from_sh0
from nsw.renderers.splat_marks import threads
from nsw.renderers.splats import render_view
from nsw.scenes.scene import Scene


def seen_by(model: Gaussians | AnchoredSplats, camera: Cameras) -> Seen:
    """Return the splats of either kind of model as one camera sees them."""
    if isinstance(model, AnchoredSplats):
        return model.seen_from(camera)[0]
    shapes = model.quats, model.activated_scales, model.activated_opacities
    return Seen(model.means, *shapes, model.sh0, model.sh, model.settings)


@torch.no_grad()
def mass_in_front(
    model: Gaussians | AnchoredSplats, camera: Cameras, depth: Float[Tensor, "H W"], margin: float = 0.03, n_levels: int = 32
) -> Float[Tensor, "H W"]:
    r"""Return how much of each pixel is painted before its true depth, $\sum_{i: z_i < (1 - m) z} \alpha_i T_i$.

    Splats are blended front to back, so this is the opacity of the nearer splats alone. The limit is rounded down to one of
    n_levels: what stands less than a step behind its level counts as well placed.
    """
    seen = seen_by(model, camera)
    camera, limit = camera.to(seen.means.device), (1 - margin) * depth.float()
    known = limit[limit > 0]
    levels = known.quantile(torch.linspace(0, 1, n_levels)).unique()
    z = (seen.means @ camera.cam_from_world[0, 2, :3]) + camera.cam_from_world[0, 2, 3]
    mass = torch.zeros_like(limit)
    for low, high in zip(levels, [*levels[1:], torch.tensor(torch.inf)], strict=True):
        nearer = replace(seen, activated_opacities=torch.where(z < float(low), seen.activated_opacities, 0.0))
        alpha = render_view(nearer, camera, depth=False).alpha[0].cpu()
        mass = torch.where((limit >= low) & (limit < high), alpha, mass)
    return mass


def floaters(model: Gaussians | AnchoredSplats, scene: Scene, split: str = "test") -> float:
    """Return the mean of `mass_in_front` over the pixels with a true depth of a split."""
    frames = scene.frames(split)
    depth = scene.depth[frames].float()
    mass = torch.stack([mass_in_front(model, scene.cameras[int(i)], z) for i, z in zip(frames, depth, strict=True)])
    return float(mass[depth > 0].mean())


def marked(picture: Float[Tensor, "H W 3"], mass: Float[Tensor, "H W"]) -> Float[Tensor, "H W 3"]:
    """Return the picture in grey, with the mass before the surface laid over it in orange."""
    grey, orange = picture.mean(dim=-1, keepdim=True).expand_as(picture), picture.new_tensor([0.84, 0.37, 0.0])
    weight = mass.clamp(0, 1)[..., None]
    return (1 - weight) * (0.25 + 0.6 * grey) + weight * orange


@torch.no_grad()
def depth_map(model: Gaussians | AnchoredSplats, camera: Cameras, truth: Float[Tensor, "H W"]) -> Float[Tensor, "H W"]:
    """Return the depth that a model paints, from 0 at the nearest true depth to 1 at the farthest, rare ones left out."""
    near, far = truth[truth > 0].quantile(0.02), truth.quantile(0.98)
    return (render_view(seen_by(model, camera), camera).depth[0].cpu() - near) / (far - near)


def turned(camera: Cameras, degrees: float) -> Cameras:
    """Return the camera turned to the side about its own centre, which stays."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = torch.eye(4)
    turn[:3, :3] = torch.tensor([[c, 0, -s], [0, 1, 0], [s, 0, c]])
    return replace(camera, cam_from_world=turn.to(camera.cam_from_world) @ camera.cam_from_world)


@torch.no_grad()
def flicker(model: AnchoredSplats, camera: Cameras, degrees: float, whole: bool) -> float:
    """Return how much the colours of splats change, in 1/255, when a camera turns: nothing that they depend on has changed."""
    found = []
    for view in (camera, turned(camera, degrees)):
        seen, anchors = model.seen_from(view, whole)
        rgb = seen.sh0.new_full((len(model.places), 3), torch.nan)
        found.append(rgb.index_copy(0, anchors, seen.sh0[:, 0] * SH0))
    change = (found[0] - found[1]).abs().mean(dim=1)
    return 255 * float(change[~change.isnan()].mean())


def flickers(model: AnchoredSplats, camera: Cameras, degrees: Iterable[float]) -> dict[str, tuple[list, list]]:
    """Return curves of `flicker` over angles, for features that hear what is in view alone and for such that hear all."""
    angles, ways = list(degrees), {"in view alone": False, "whole scene": True}
    return {name: (angles, [flicker(model, camera, angle, whole) for angle in angles]) for name, whole in ways.items()}


def drift_shares(drifts: Mapping[str, Float[Tensor, "N"]], extent: float) -> dict[str, tuple[Tensor, Tensor]]:
    """Return histograms of displacements: in extents of the scene, four decades of eight bins, and the share of splats in each."""
    bins = torch.logspace(-4, 0, 33)
    return {name: (bins[:-1], torch.histogram((d / extent).cpu(), bins).hist / len(d)) for name, d in drifts.items()}


@torch.no_grad()
def heard_from(model: AnchoredSplats, anchor: int, k: int) -> tuple[Int[Tensor, "k"], Float[Tensor, "k"], Float[Tensor, "F"]]:
    """Return an anchor's k neighbours, the weight of each, and what it hears from them."""
    graph = graph_of(model.positions, k)
    mine = graph.source == anchor
    heard = message(strongest_difference(model.features, graph), graph)[anchor]
    return graph.target[mine], link_weights(graph)[mine], heard


@torch.no_grad()
def with_share(model: AnchoredSplats, share: float, seed: int = 0) -> AnchoredSplats:
    """Return a copy of a Lite model that makes only a share of its midpoints, drawn at random."""
    part = copy.deepcopy(model)
    order = torch.randperm(len(model.pairs), generator=torch.Generator().manual_seed(seed)).to(model.pairs.device)
    part.pairs = model.pairs[order[: round(share * len(order))]]
    part.places = with_midpoints(model.positions, part.pairs)
    return part


def kB_with_midpoints(
    model: AnchoredSplats, n_bytes: int, shares: Sequence[float]
) -> dict[str, tuple[Sequence[float], list[float]]]:
    """Return how large a Lite file is, and would be if it stored a share of its midpoints as it stores key points."""
    each = 4 * (9 + model.settings.decoder.n_features)
    stored = [(n_bytes + share * len(model.pairs) * each) / 1000 for share in shares]
    return {"midpoints stored": (shares, stored), "midpoints made": (shares, [n_bytes / 1000] * len(shares))}


def file_row(name: str, model: Gaussians | AnchoredSplats, n_bytes: int) -> dict[str, str | int]:
    """Return a row of a table of files: how many splats are stored and drawn, and the bytes on the disk."""
    drawn = len(model.places) if isinstance(model, AnchoredSplats) else len(model)
    return {"file": name, "stored": len(model), "drawn": drawn, "bytes": n_bytes}


def trial_row(name: str, scores: ViewScores, paint: float) -> dict[str, str | float]:
    """Return a row of a table of trials: how good pictures and depth are, and what `floaters` says."""
    return {"variant": name, "PSNR (dB)": scores.psnr, "depth error": scores.depth_error, "floaters": paint}


def written(model: torch.nn.Module, folder: Path) -> tuple[torch.nn.Module, int]:
    """Write a model and open the file again; return what its reader made of it, and the bytes of the file on the disk."""
    io.save(model, folder)
    device = next(model.parameters()).device
    return io.load(folder, device), (folder / "model.safetensors").stat().st_size


@torch.no_grad()
def speckled(
    camera: Cameras, points: Float[Tensor, "N 3"], rgb: Float[Tensor, "N 3"], size: float, lines: Gaussians | None = None
) -> Float[Tensor, "H W 3"]:
    """Return a picture of points as small balls, with `lines` of `nsw.renderers.splat_marks.threads` beside them if given."""
    balls = Gaussians.from_values(
        points, torch.full_like(points, size), [[1.0, 0, 0, 0]] * len(points), torch.full((len(points),), 0.98), rgb.cpu()
    )
    parts = [balls] if lines is None else [balls, lines.cpu()]
    return render_view(joined(*parts), camera.to("cpu"), background=0.96).rgb[0]


def filled(
    camera: Cameras, keys: Float[Tensor, "N 3"], flat: Bool[Tensor, "N"], pairs: Int[Tensor, "P 2"], size: float
) -> Float[Tensor, "H W 3"]:
    """Return a picture of key points, flat ones in blue and others in grey, and of the midpoints of pairs, in orange."""
    blue, orange = torch.tensor([0, 0.45, 0.7]), torch.tensor([[0.9, 0.6, 0.0]])
    tint = torch.cat([torch.where(flat[:, None], blue, torch.tensor(0.55)), orange.expand(len(pairs), 3)])
    return speckled(camera, with_midpoints(keys, pairs), tint, size)


def threaded(camera: Cameras, begin: Float[Tensor, "N 3"], end: Float[Tensor, "N 3"], extent: float) -> Float[Tensor, "H W 3"]:
    """Return a picture of points where they began, and of orange threads to where they ended."""
    wires = threads(begin, end, (0.84, 0.37, 0.0), 0.0006 * extent)
    return speckled(camera, begin, torch.full((len(begin), 3), 0.7), 0.001 * extent, wires)


class Listening:
    """A drawing of the anchor under a pixel: its k nearest neighbours, the darker the louder, wired to it.

    Args:
        anchors: places [N, 3]; camera: from where; extent: of the scene, world units.
    """

    def __init__(self, anchors: Float[Tensor, "N 3"], camera: Cameras, extent: float):
        self.anchors, self.camera, self.extent = anchors.cpu(), camera.to("cpu"), extent
        pixels, z = project(self.camera, self.anchors)
        self.pixels, self.z = pixels[0], z[0]
        self.alone = self.drawn(torch.full_like(self.anchors, 0.55))

    def drawn(self, rgb: Float[Tensor, "N 3"], lines: Gaussians | None = None) -> Float[Tensor, "H W 3"]:
        """Return the anchors in these colours."""
        return speckled(self.camera, self.anchors, rgb, 0.0015 * self.extent, lines)

    def under(self, row: int, column: int, reach: float = 6.0) -> int:
        """Return the nearest anchor to the camera within `reach` pixels of one, or else the one with the fewest pixels to it."""
        aside = (self.pixels - torch.tensor([column + 0.5, row + 0.5])).norm(dim=1).where(self.z > 0, torch.inf)
        met = aside < reach
        return int(self.z.where(met, torch.inf).argmin() if bool(met.any()) else aside.argmin())

    def __call__(self, row: int, column: int, k: int) -> Float[Tensor, "H W 3"]:
        graph = graph_of(self.anchors, k)
        mine = graph.source == self.under(row, column)
        target, loud = graph.target[mine], link_weights(graph)[mine, None]
        shade = (0.6 - 0.2 * loud * k).clamp_min(0).expand(-1, 3)  # at k = 10 twice the weight, as a grey below 0.6
        wires = threads(self.anchors[graph.source[mine]], self.anchors[target], (0.84, 0.37, 0.0), 0.0008 * self.extent)
        return self.drawn(torch.full_like(self.anchors, 0.8).index_copy(0, target, shade), wires)


@torch.no_grad()
def frozen(model: AnchoredSplats, camera: Cameras) -> Gaussians:
    """Return plain Gaussians of all anchors, with the opacities, colours and shapes that one camera sees; for other viewers."""
    scales = with_midpoints(model.scales, model.pairs)
    seen = model.decoder.decode(model.encode(), scales, model.places, camera.to(model.places.device).origins[0])
    there = seen.activated_opacities > 1 / 255
    values = (
        seen.means,
        seen.activated_scales,
        seen.quats,
        seen.activated_opacities.clamp(max=0.999),
        rgb_from_sh0(seen.sh0[:, 0]),
    )
    return Gaussians.from_values(*(value[there].cpu() for value in values))

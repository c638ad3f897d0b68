"""Look at anchored splats: floaters by depth, flicker at the border of a picture, messages, Lite with fewer midpoints, bytes."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nsw.cameras import Cameras, project
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

"""Look at a city in blocks: needles, who pulls at a picture, and how well surface and seams came out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nsw import metrics
from nsw.cameras import Cameras, camera_rays
from nsw.losses import loss_l1, loss_ssim
from nsw.methods import citygaussian_v2 as city
from nsw.methods import citygaussian_v2_blocks as blocks
from nsw.methods.gaussian_splatting_2d import mesh_of
from nsw.models.parts import part_of
from nsw.models.sh import sh0_from_rgb
from nsw.models.surfels import Surfels
from nsw.renderers.surfels import render_view
from nsw.scenes.scene import Scene
from nsw.scenes.sfm_points import seen_in
from nsw.scenes.surface import surface_points

PALETTE = torch.tensor(
    [[0.0, 0.45, 0.7], [0.84, 0.37, 0.0], [0.0, 0.62, 0.45], [0.8, 0.47, 0.65], [0.9, 0.62, 0.0], [0.34, 0.71, 0.91]]
)


@torch.no_grad()
def with_needles(surfels: Surfels, share: float = 0.2, ratio: float = 0.005, seed: int = 0) -> Surfels:
    """Return a copy in which a share of the discs, drawn at random, is drawn out: one axis `ratio` of the other, same area."""
    copy = part_of(surfels)
    chosen = torch.randperm(len(copy), generator=torch.Generator().manual_seed(seed))[: round(share * len(copy))]
    middle = copy.scales[chosen, :2].mean(dim=1)
    half = 0.5 * math.log(ratio)
    copy.scales[chosen, 0], copy.scales[chosen, 1] = middle - half, middle + half
    return copy


def grown(surfels: Surfels, scene: Scene, inverse: Tensor, plan: dict, least_ratio: float, steps) -> tuple[Surfels, list[int]]:
    """Fine-tune a copy on all pictures with another elongation filter and no trimming; return it and its number of discs by step.

    Args:
        plan: of `citygaussian_v2_blocks.fine_plan`.
        steps: step numbers, for example `run.steps(n, name=...)`.
    """
    n_steps, seed = plan["n_steps"], plan["seed"]
    recipe, rest = replace(plan["recipe"], least_ratio=least_ratio, trim=0.0), dict(control=plan["control"], seed=seed)
    going, counts = city.Training(part_of(surfels), scene, n_steps, recipe, rates=city.fine_rates(n_steps), **rest), []
    for step in steps:
        city.fit(going, scene, [step], inverse, seed)
        counts.append(len(going.gaussians))
    return going.gaussians, counts


@torch.no_grad()
def tinted(surfels: Surfels, rgb: Float[Tensor, "N 3"], share: float = 0.6) -> Surfels:
    """Return a copy in which each disc has its own colour mixed with another one, the same from all sides."""
    copy = part_of(surfels)
    mixed = (1 - share) * copy.base_rgb + share * rgb.to(copy.sh0)
    copy.sh0.copy_(sh0_from_rgb(mixed)[:, None])
    copy.shN.zero_()
    return copy


def marked(surfels: Surfels, chosen: Bool[Tensor, "N"]) -> Surfels:
    """Return a copy with the chosen discs in orange and the others in grey."""
    orange, grey = torch.tensor([0.9, 0.35, 0.0]), torch.tensor([0.5, 0.5, 0.5])
    return tinted(surfels, torch.where(chosen.cpu()[:, None], orange, grey), 0.85)


def contest(surfels: Surfels, first: Bool[Tensor, "N"], second: Bool[Tensor, "N"]) -> Surfels:
    """Return a copy with discs of the first set in blue, of the second in orange, of both in black; the others are light."""
    rgb = torch.full((len(surfels), 3), 0.85)
    sets = ((first & ~second, (0.0, 0.45, 0.7)), (second & ~first, (0.9, 0.5, 0.0)), (first & second, (0.0, 0.0, 0.0)))
    for chosen, colour in sets:
        rgb[chosen.cpu()] = torch.tensor(colour)
    return tinted(surfels, rgb, 1.0)


def by_block(surfels: Surfels, boxes: Float[Tensor, "B 2 2"]) -> Surfels:
    """Return a copy with the discs of each block in one of six colours."""
    block = blocks.inside(surfels.means.detach(), boxes).int().argmax(0).cpu()
    return tinted(surfels, PALETTE[block % len(PALETTE)])


@dataclass(frozen=True)
class Pulls:
    """What a term of the loss wants of one picture: its gradient in every pixel, and its mean pull on every disc's place."""

    picture: Float[Tensor, "H W"]
    discs: Float[Tensor, "N"]


def pulls(surfels: Surfels, camera: Cameras, target: Float[Tensor, "1 H W 3"]) -> dict[str, Pulls]:
    """Return the pulls of "l1" and "ssim" with their weights in the loss, in half picture widths for discs."""
    render = render_view(part_of(surfels), camera, depth=False)
    meta, found = render.extras["meta"], {}
    size = torch.tensor([camera.width / 2, camera.height / 2], device=target.device)
    for name, term in (("l1", 0.8 * loss_l1(render.rgb, target)), ("ssim", 0.2 * loss_ssim(render.rgb, target))):
        of_pixels, of_discs = torch.autograd.grad(term, [render.rgb, meta["gradient_2dgs"]], retain_graph=True)
        found[name] = Pulls(of_pixels[0].norm(dim=-1).cpu(), (of_discs[0] * size).norm(dim=-1).cpu())
    return found


def strongest(pull: Float[Tensor, "N"], share: float) -> Bool[Tensor, "N"]:
    """Return the `share` of the discs that are pulled most: those that density control would add to."""
    return torch.zeros_like(pull, dtype=torch.bool).index_fill_(0, pull.argsort(descending=True)[: round(share * len(pull))], True)


def to_border(ground: Float[Tensor, "N 2"], boxes: Float[Tensor, "B 2 2"]) -> Float[Tensor, "N"]:
    """Return how far points on the ground are from the nearest border between boxes; infinity where there is none.

    >>> two = blocks.quantile_boxes(torch.tensor([[0.0, 0], [2.0, 0]]), 2, 1)
    >>> to_border(torch.tensor([[0.25, 7.0], [3.0, 0.0]]), two)
    tensor([0.7500, 2.0000])
    """
    own = boxes[blocks.inside(ground, boxes).int().argmax(0).cpu()].to(ground)
    return (ground[:, None] - own).abs().flatten(1).amin(1)


def near_seam(scene: Scene, boxes: Float[Tensor, "B 2 2"], width: float, which="test") -> Bool[Tensor, "V H W"]:
    """Return the pixels that show ground within `width` of a border between blocks, by the scene's true depth."""
    frames = scene.frames(which)
    depth = scene.depth[frames].float()
    ground = camera_rays(scene.cameras[frames]).at_depth(depth.flatten())[:, :2]
    return (to_border(ground, boxes) < width).view(depth.shape) & (depth > 0)


HEADS = dict(psnr="PSNR (dB)", depth="depth error", f1="F1", n="discs")  # of a table of Judged


@dataclass(frozen=True)
class Judged:
    """How well a city came out, on the test views and against the true surface.

    Attributes:
        psnr: over whole pictures; seam, elsewhere: near borders between blocks, and away from them, dB.
        depth: mean error of drawn depth, world units.
        precision, recall, f1: shares of the mesh's points near the truth, of true points near the mesh, and their harmonic mean.
        n: discs.
    """

    psnr: float
    seam: float
    elsewhere: float
    depth: float
    precision: float
    recall: float
    f1: float
    n: int


def versus(ours: Judged, baseline: Judged, field: str) -> dict:
    """Return what `Run.claim` needs to compare two models in one field of `Judged`: errors and counts by their ratio."""
    less = dict(measure="ratio", better="lower")
    how = {"depth": dict(unit="units") | less, "n": dict(unit="discs") | less, "f1": dict(unit="F1")}.get(field, {})
    return dict(ours=getattr(ours, field), baseline=getattr(baseline, field)) | how


def visible_truth(scene: Scene, spacing: float, least: int = 2) -> Float[Tensor, "P 3"]:
    """Return points of the true surface that at least so many training views see: what nobody saw is not asked for."""
    points, _ = surface_points(scene, spacing)
    return points[seen_in(scene, points).sum(0) >= least]


def surface_f1(mesh, truth: Float[Tensor, "P 3"], near: float, n: int = 30_000) -> tuple[float, float, float]:
    r"""Return precision, recall and $F_1 = 2PR/(P+R)$ of a mesh: shares of points within `near` of the other surface.

    Points of the mesh outside the ground that the truth covers do not count.
    """
    import trimesh

    drawn = torch.from_numpy(trimesh.sample.sample_surface(mesh, n, seed=0)[0]).float()
    low, high = truth[:, :2].aminmax(dim=0)
    drawn = drawn[((drawn[:, :2] >= low) & (drawn[:, :2] <= high)).all(-1)]
    precision = float((metrics.distances_to(drawn, truth) < near).float().mean())
    recall = float((metrics.distances_to(truth, drawn) < near).float().mean())
    return precision, recall, 2 * precision * recall / max(precision + recall, 1e-9)


def mesh_of_city(render: Callable, scene: Scene, truth: Float[Tensor, "P 3"], voxel: float):
    """Return the mesh fused from the median depth of the training views, over the ground that the truth covers."""
    low, high = truth.aminmax(dim=0)
    ground = replace(scene, aabb=torch.stack([low - voxel, high + 2 * voxel]))
    return mesh_of(render, ground, voxel, depth="median", truncation=2 * voxel)


@torch.no_grad()
def judge(
    model: Surfels, scene: Scene, seam: Bool[Tensor, "V H W"], truth: Float[Tensor, "P 3"] | None = None, voxel: float = 0.05
) -> Judged:
    """Score the test views of a model, and its mesh where the truth is given.

    Args:
        seam: pixels of the test views near a border between blocks, `near_seam`.
        truth: points of the true surface, `visible_truth`; None leaves the mesh out, its scores are not numbers then.
        voxel: of the mesh; also how near a point must be to count.
    """
    frames, draw = scene.frames("test"), lambda cameras: render_view(model, cameras)
    drawn = [(out.rgb.cpu(), out.depth.cpu()) for out in (draw(scene.cameras[i]) for i in frames.tolist())]
    (rgb, z), target = (torch.cat(maps) for maps in zip(*drawn, strict=True)), scene.pixels(frames)
    depth = metrics.depth_error(z, scene.depth[frames].float())
    parts = [metrics.psnr(rgb, target, mask) if bool(mask.any()) else math.nan for mask in (seam, ~seam)]
    shape = (math.nan,) * 3
    if truth is not None:
        shape = surface_f1(mesh_of_city(draw, scene, truth, voxel), truth, voxel)
    return Judged(metrics.psnr(rgb, target), *parts, depth, *shape, len(model))


def gradients(pulls: Mapping[str, Pulls]) -> dict[str, Float[Tensor, "H W"]]:
    """Return each term's gradient in the picture, in [0, 1]: nine tenths of its pixels are at a half or below."""
    return {f"gradient of {name.upper()}": (p.picture / (2 * p.picture.quantile(0.9))).clamp(0, 1) for name, p in pulls.items()}

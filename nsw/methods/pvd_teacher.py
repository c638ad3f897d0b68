"""What a teacher brings to a distillation: the occupancy grid that is shared, random cameras, and for splats their pictures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nsw.cameras import Cameras
from nsw.errors import InputError
from nsw.methods.instant_ngp import cube_around
from nsw.methods.occupied_cells import true_cells
from nsw.methods.pvd_poses import box_of, cameras_seeing
from nsw.models.field import Field
from nsw.models.gaussians import Gaussians
from nsw.renderers import render_view
from nsw.renderers.volume import occupancy_grid
from nsw.scenes.scene import Scene

NOTHING = 1e-4  # optical depth of a sample below which a cell is empty, whatever the others are


@dataclass(frozen=True)
class Plan:
    """How a student is distilled.

    Attributes:
        n_steps: optimiser steps of all stages.
        stage1, stage2: shares of them that compare features alone, and after that density and colour alone.
        n_samples: samples of a batch; the number of rays follows.
        clip: interval of the logarithm of a sample's optical depth in which densities are compared. The paper's [-2, 7] for the
            density itself is this at its 1024 steps across; so written it means the same at any step.
        feature: weight of the first stage's term. Adam does not see it there, but remembers it: with a weight of 1 the steps of
            the second stage are as good as none.
        density, colour: weights of the two point terms beside the picture's, which has 1. `PAPER` has the paper's, as means.
        factors: weight of the mean size of a VM student's density factors in the last stage; no other student has such.
        threshold: samples that the teacher sees less light behind are dropped.
        steps_across: samples along the longest side of the box; 0 takes the teacher's own step, or 128 where it has none.
        n_cells: cells of the shared occupancy grid along an axis.
        n_poses, size: random cameras, and the width of their pictures in pixels.
        inherit: copy what fits from the teacher before anything else.
        last_rate, warmup: factor of the learning rates at the end, and the share of the steps over which they rise.
    """

    n_steps: int = 600
    stage1: float = 0.02
    stage2: float = 0.05
    n_samples: int = 8192
    clip: tuple[float, float] = (-7.7, 1.3)
    feature: float = 0.05
    density: float = 0.06
    colour: float = 0.1
    factors: float = 1e-4
    threshold: float = 1e-3
    steps_across: int = 0
    n_cells: int = 48
    n_poses: int = 128
    size: int = 128
    inherit: bool = True
    last_rate: float = 0.05
    warmup: float = 0.02

    @property
    def ends(self) -> dict[str, float]:
        """After how many steps each stage ends, by what it compares."""
        points = (self.stage1 + self.stage2) * self.n_steps
        return {"1: features": self.stage1 * self.n_steps, "2: density and colour": points, "3: pictures too": self.n_steps}


PAPER = Plan(
    n_steps=30_000,
    stage1=2 / 30,
    stage2=3 / 30,
    n_samples=1 << 17,
    feature=0.02,
    density=0.006,
    colour=0.01,
    factors=9e-7,
    steps_across=1024,
    n_cells=128,
    n_poses=312,
    size=800,
    last_rate=0.007,
    warmup=0.0,
)


@dataclass(frozen=True)
class Teacher:
    """A trained model, and what its students share with it.

    Attributes:
        model: a field or Gaussians; never trained here.
        aabb: box [2, 3] of the students.
        cells: occupancy grid over it, in which all samples lie. It is never updated.
        step: length of a sample in world units.
        near: where rays begin.
        cameras: random ones that look at the box.
        scene: the scene it was trained on, or None.
        pictures: of Gaussians, which cannot be asked at points, what the cameras see.
    """

    model: nn.Module
    aabb: Float[Tensor, "2 3"]
    cells: nn.Module
    step: float
    near: float
    cameras: Cameras
    scene: Scene | None = None
    pictures: Scene | None = None

    @property
    def half(self) -> float:
        """Half of the box's longest side, the unit in which log-densities are compared."""
        return float((self.aabb[1] - self.aabb[0]).amax()) / 2


@torch.no_grad()
def shared_cells(
    field: Field, n_cells: int, step: float, generator: torch.Generator, threshold: float = 0.01, tries: int = 4
) -> nn.Module:
    """Return the occupancy grid of a field: cells where one of a few random points has an optical depth above the threshold.

    The threshold falls to the mean of all cells where that is lower, for fields that have only begun to show something. Cells
    that the field's own grid calls free stay free: no training has cared about what a network says there.
    """
    aabb = field.aabb
    grid = occupancy_grid(aabb, n_cells)
    own = getattr(field, "render_defaults", {}).get("occupancy")
    corners = torch.cartesian_prod(*(torch.arange(n_cells, device=aabb.device),) * 3)
    found = torch.zeros(len(corners), device=aabb.device)
    for _ in range(tries):
        jitter = torch.rand(corners.shape, generator=generator, device=aabb.device)
        points = aabb[0] + (corners + jitter) / n_cells * (aabb[1] - aabb[0])
        asked = torch.arange(len(points), device=aabb.device) if own is None else is_on(own, points).nonzero()[:, 0]
        for some in asked.split(1 << 16):
            found[some] = torch.maximum(found[some], field.density(points[some]) * step)
    grid.occs.copy_(found)
    grid.binaries = (found > found.mean().clamp(NOTHING, threshold)).view(grid.binaries.shape)
    return grid


def is_on(grid: nn.Module, points: Float[Tensor, "N 3"]) -> Tensor:
    """Return which points lie in an occupied cell of the finest level of an occupancy grid."""
    box, size = grid.aabbs[0].view(2, 3), torch.tensor(grid.binaries.shape[1:], device=points.device)
    place = ((points - box[0]) / (box[1] - box[0]) * size).floor().long()
    i, j, k = place.clamp_min(0).minimum(size - 1).unbind(-1)
    return grid.binaries[0, i, j, k] & ((place >= 0) & (place < size)).all(-1)


@torch.no_grad()
def pictures_of(model: nn.Module, cameras: Cameras, aabb: Float[Tensor, "2 3"], near: float, chunk: int = 8) -> Scene:
    """Return pictures with alpha and depth that a model renders, as a scene: what learns from photographs learns from it."""
    device = aabb.device
    parts = []
    for i in range(0, len(cameras), chunk):
        some = cameras[slice(i, i + chunk)].to(device)
        out = render_view(model, some, background=0.0, **({} if isinstance(model, Gaussians) else {"near": near}))
        parts.append([x.cpu() for x in (out.rgb, out.alpha, out.depth)])
    rgb, alpha, depth = (torch.cat(part) for part in zip(*parts, strict=True))
    straight = (rgb / alpha[..., None].clamp_min(1e-3)).clamp(0, 1)
    images = (torch.cat([straight, alpha[..., None].clamp(0, 1)], dim=-1) * 255).round().byte()
    every = torch.arange(len(images))
    known = torch.where(alpha > 0.5, depth, 0.0)
    where = dict(cameras=cameras.to("cpu"), splits={"train": every, "test": every[:1]}, aabb=aabb.cpu(), depth=known)
    return Scene("rendered", images, near=near, far=float(depth.max()) + 1.0, **where)


@torch.no_grad()
def cells_of_pictures(pictures: Scene, aabb: Float[Tensor, "2 3"], n_cells: int) -> nn.Module:
    """Return an occupancy grid of the cells in which the pictures' depth finds a surface, and of their neighbours."""
    found = true_cells(pictures, aabb.cpu(), n_cells)
    near = torch.nn.functional.max_pool3d(found[None].float(), 3, stride=1, padding=1) > 0
    grid = occupancy_grid(aabb, n_cells)
    grid.binaries = near.to(aabb.device)
    grid.occs.copy_(grid.binaries.reshape(-1))
    return grid


def teach(model: nn.Module, scene: Scene | None, plan: Plan, generator: torch.Generator) -> Teacher:
    """Return a trained model as a teacher.

    Raises:
        InputError: for a model that has no box or shows nothing.
    """
    aabb = box_of(model, scene)
    poses = torch.Generator().manual_seed(int(torch.randint(1 << 30, (1,), generator=generator, device=generator.device)))
    cameras = cameras_seeing(plan.n_poses, plan.size, poses, aabb, scene)
    near = scene.near if scene is not None else 0.0
    pictures = None
    if isinstance(model, Gaussians):
        aabb = cube_around(aabb)
        pictures = pictures_of(model, cameras, aabb, near)
        cells = cells_of_pictures(pictures, aabb, plan.n_cells)
    own_step = getattr(model, "render_defaults", {}).get("step") if plan.steps_across == 0 else None
    step = own_step or float((aabb[1] - aabb[0]).amax()) / (plan.steps_across or 128)
    if pictures is None:
        cells = shared_cells(model, plan.n_cells, step, generator)
    if not bool(cells.binaries.any()):
        raise InputError(f"The {type(model).__name__} shows nothing inside of its box: train it before it is converted.")
    return Teacher(model, aabb, cells, step, near, cameras.to(aabb.device), scene, pictures)

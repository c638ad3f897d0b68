"""Looking into distillations: two fields along one ray, fog, edits, short trainings, races against the clock."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nsw.cameras import Cameras, Rays, camera_rays, pixel_ray
from nsw.kernels.packed import counts_of
from nsw.kernels.packed_rays import packed_weights
from nsw.methods import instant_ngp as ngp
from nsw.methods import pvd
from nsw.methods.instant_ngp_fit import Step
from nsw.methods.pvd import Learner, Samples
from nsw.methods.pvd_students import mlp, network_optimizer, new_mlp, photographed
from nsw.methods.pvd_teacher import Plan, Teacher, is_on, teach
from nsw.renderers.volume import march_cells, parts_of
from nsw.scenes.scene import Scene

Make = Callable[[Teacher, Plan, torch.Generator], Learner]


@torch.no_grad()
def along_ray(
    fields: Mapping[str, nn.Module], teacher: Teacher, cameras: Cameras, row: int, column: int
) -> dict[str, tuple[Float[Tensor, "S"], Float[Tensor, "S"]]]:
    """Return for each field (distances, logarithm of the optical depth of a sample) along one pixel's ray in the shared cells."""
    rays = pixel_ray(cameras, row, column)
    ray_indices, t, points = march_cells(teacher, rays, teacher.cells, teacher.step, teacher.near)
    read = {name: pvd.read(field, points, rays, ray_indices).log_density for name, field in fields.items()}
    return {name: (t.cpu(), (s + math.log(teacher.step)).clamp_min(-14).cpu()) for name, s in read.items()}


@torch.no_grad()
def fog(teacher: Teacher, rays: Rays, floor: float, everywhere: bool = True) -> tuple[Float[Tensor, "R"], Float[Tensor, "R"]]:
    """Return for each ray how long it runs through the box, and what share of its light a floor alone absorbs.

    Args:
        rays: on the teacher's device.
        floor: logarithm of a sample's optical depth, all there is.
        everywhere: in the whole box, or in the shared cells only.
    """
    cells, lengths, lost = whole_box(teacher) if everywhere else teacher.cells, [], []
    for part in parts_of(teacher, rays, cells, teacher.step, teacher.near):
        some = rays[part]
        ray_indices, t, _ = march_cells(teacher, some, cells, teacher.step, teacher.near)
        left = packed_weights(torch.full_like(t, math.exp(floor)), ray_indices, len(some))[1]
        lengths.append(counts_of(ray_indices, len(some)) * teacher.step)
        lost.append(1 - left)
    return torch.cat(lengths), torch.cat(lost)


def whole_box(teacher: Teacher) -> nn.Module:
    """Return an occupancy grid like the teacher's, with every cell switched on."""
    cells, device = teacher.cells, teacher.aabb.device
    full = type(cells)(teacher.aabb.reshape(6).tolist(), cells.binaries.shape[-1]).to(device)
    full.binaries = torch.ones_like(cells.binaries)
    return full


def without_corner(grid: nn.Module, x: float, z: float) -> nn.Module:
    """Return a copy of a dense grid that is empty where both x and z lie above these shares of the box."""

    def carve(copied: nn.Module) -> nn.Module:
        place = (copied.vertices() - copied.aabb[0]) / (copied.aabb[1] - copied.aabb[0])
        copied.raw_density.data[(place[..., 0] > x) & (place[..., 2] > z)] = -100.0
        return copied

    return edited(grid, carve)


def cut_and_taught(
    grid: nn.Module,
    make: Make,
    draw: Callable[[nn.Module], Tensor],
    x: float,
    z: float,
    plan: Plan,
    seed: int,
    scene: Scene | None = None,
    coarse: bool = False,
) -> dict[str, Tensor]:
    """Return titled pictures of a dense grid without a corner, and of the student that learned from it: white where coarse."""
    cut = without_corner(grid, x, z)
    left = draw(cut)
    if coarse:
        return {"the dense grid, cut": left, "its student, at rest": torch.ones_like(left)}
    torch.manual_seed(seed)
    learned = pvd.convert(cut, make, scene, plan, torch.Generator(grid.aabb.device).manual_seed(seed))
    return {"the dense grid, cut": left, "its student": draw(learned)}


def edited(model: nn.Module, edit: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Return an edited copy of a model; the model itself stays as it is."""
    copied = copy.deepcopy(model)
    copied.gradients_in_place = False
    with torch.no_grad():
        return edit(copied)


@torch.no_grad()
def right_half_is_empty(field: nn.Module, n: int = 24) -> bool:
    """Return whether a field has density at x below its box's middle, and next to none above it.

    A cell's width on either side of the cut does not count.
    """
    low, high = field.aabb
    points = low + (torch.cartesian_prod(*(torch.arange(n, device=low.device),) * 3) + 0.5) / n * (high - low)
    density = torch.where(is_on(field.occupancy, points), field.density(points), 0.0).view(n, n, n)
    left, right = density[: n // 2 - 1].mean(), density[n // 2 + 1 :].mean()
    return bool(left > 0) and float(right) < 0.02 * float(left)


@torch.no_grad()
def with_floor(
    field: nn.Module, teacher: Teacher, cameras: Cameras, floor: float, everywhere: bool, largest: int = 200
) -> Float[Tensor, "H W 3"]:
    """Return a picture of a field whose density is nowhere thinner than a floor: what clipping does without shared cells.

    Args:
        floor: logarithm of a sample's optical depth.
        everywhere: whether the floor fills the whole box, or the shared cells only.
        largest: width of the picture at most; fog is as well seen in a small one, and no sample of it can be skipped.
    """
    width, device = min(cameras.width, largest), teacher.aabb.device
    cameras = cameras[:1].resized(width, round(cameras.height * width / cameras.width))
    rays, pictures, cells = camera_rays(cameras), [], whole_box(teacher) if everywhere else teacher.cells
    for part in parts_of(teacher, rays, cells, teacher.step, teacher.near):
        some = rays[part]
        ray_indices, t, points = march_cells(teacher, some, cells, teacher.step, teacher.near)
        reading = pvd.read(field, points, some, ray_indices)
        thin = torch.where(is_on(teacher.cells, points), reading.log_density, -torch.inf)
        foggy = reading._replace(log_density=thin.clamp_min(floor - math.log(teacher.step)))
        white = torch.ones(len(some), 3, device=device)
        pictures.append(pvd.composite(foggy, Samples(some, ray_indices, t, points), teacher.step, white))
    return torch.cat(pictures).view(cameras.height, cameras.width, 3).cpu()


def floored(field: nn.Module, teacher: Teacher, cameras: Cameras, floor: float) -> dict[str, Float[Tensor, "H W 3"]]:
    """Return titled pictures `with_floor`: in the shared cells only, and in the whole box."""
    places = {"floor in the shared cells": False, "floor in the whole box": True}
    return {title: with_floor(field, teacher, cameras, floor, everywhere) for title, everywhere in places.items()}


def short_training(
    make: Make, teacher: Teacher, plan: Plan, seed: int = 0, every: int = 4, n_rays: int = 128
) -> dict[str, tuple[list[int], list[float]]]:
    """Train a student for a moment, and return how far all four levels are from the teacher, {level: (steps, values)}.

    The levels are compared on the same rays throughout, whichever of them a stage trains on; none is weighted.

    Args:
        every: steps between two comparisons.
        n_rays: rays of a comparison.
    """
    device = teacher.aabb.device
    torch.manual_seed(seed)
    generator, probe = (torch.Generator(device).manual_seed(seed + k) for k in range(2))
    samples, truth, _ = pvd.draw(teacher, n_rays, plan, probe)
    learner, plain = make(teacher, plan, generator), replace(plan, feature=1.0, density=1.0, colour=1.0)
    stages = (1, 3) if pvd.comparable(learner.model, teacher.model) else (3,)
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for k in range(plan.n_steps + 1):
        if k % every == 0 or k == plan.n_steps:
            with torch.no_grad():
                for stage in stages:
                    for name, term in pvd.losses(
                        learner.model, teacher, samples, truth, stage, plain, probe.manual_seed(0)
                    ).items():
                        steps, values = curves.setdefault(name, ([], []))
                        steps.append(k)
                        values.append(float(term))
        if k < plan.n_steps:
            learner.step(k)
    return curves


def racer(learner: Learner) -> Step:
    """Return a learner's step as a race takes it: told which share of the time is spent, it acts as if that were of its steps."""
    return lambda progress: learner.step(min(int(progress * learner.n_steps), learner.n_steps - 1))


def contestants(
    model: nn.Module, scene: Scene, pixels: ngp.Pixels, plan: Plan, seed: int, lr: float, **sizes: int
) -> dict[str, tuple[nn.Module, Step]]:
    """Return the same network four times with its training: distilled, without inherited heads, by pictures alone, by photographs.

    The teacher's own pictures are one ablation, real photographs the other; all have the same optimiser and learning rate.
    """
    device = pixels.alpha.device
    alone = replace(plan, stage1=0.0, stage2=0.0, density=0.0, colour=0.0)
    plans = {"distilled": plan, "no heads": replace(plan, inherit=False), "pictures only": alone}
    found = {}
    for name, how in plans.items():
        learner = seeded(lambda teacher, how, generator: mlp(teacher, how, generator, lr, **sizes), model, scene, how, seed, device)
        found[name] = (learner.model, racer(learner))

    def photos(teacher: Teacher, how: Plan, generator: torch.Generator) -> Learner:
        student = new_mlp(teacher, how, **sizes)
        return photographed(student, network_optimizer(student, lr), pixels, how, generator, teacher.near)

    learner = seeded(photos, model, scene, plan, seed, device)
    return {**found, "photographs": (learner.model, racer(learner))}


def seeded(make: Make, model: nn.Module, scene: Scene, plan: Plan, seed: int, device: torch.device) -> Learner:
    """Return a learner whose start and whose rays depend on the seed alone; its kernels are compiled."""
    for warm in (True, False):
        torch.manual_seed(seed)
        generator = torch.Generator(device).manual_seed(seed)
        learner = make(teach(model, scene, plan, generator), plan, generator)
        if warm:
            for k in {0, plan.n_steps // 2, plan.n_steps - 1}:
                learner.step(k)
    return learner


def with_cameras(scene: Scene, cameras: Cameras, name: str, most: int = 60) -> Scene:
    """Return a scene whose splits are the training cameras and some others, to draw both."""
    seen, some = scene.views("train"), cameras.to("cpu")[slice(0, most)]
    both = (torch.cat([getattr(c, part) for c in (seen, some)]) for part in ("cam_from_world", "Ks"))
    frames = torch.arange(len(seen) + len(some))
    return replace(
        scene, cameras=Cameras(*both, seen.width, seen.height), splits={"train": frames[: len(seen)], name: frames[len(seen) :]}
    )

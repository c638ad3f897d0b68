"""Teachers and students of NeRDF as functions: training several students on the same rays, and timing renderers in turns."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nsw.cameras import Cameras
from nsw.methods import instant_ngp as ngp
from nsw.methods import nerdf
from nsw.methods.instant_ngp_fit import Plan, fit
from nsw.methods.nerf import set_learning_rate
from nsw.metrics import clock
from nsw.models.hash_grid import HashGrid, HashGridSettings
from nsw.models.ray_distribution import LightField, RayDistribution
from nsw.renderers import whole_rays
from nsw.renderers.volume import RayRender
from nsw.scenes.scene import Scene

Student = RayDistribution | LightField
Loss = Callable[[RayRender, nerdf.Lesson, float | Tensor, float], Float[Tensor, ""]]


@dataclass(frozen=True)
class Course:
    """How students are trained.

    Attributes:
        n_steps: optimiser steps.
        n_rays: rays of a step.
        n_cameras: random cameras that share them; 1 in the paper.
        lr: largest learning rate; see `nerdf.learning_rate`.
    """

    n_steps: int = 600
    n_rays: int = 1024
    n_cameras: int = 64
    lr: float = 2e-2


def teacher_of(
    scene: Scene, plan: Plan, seed: int = 0, steps_across: int = 96, device: torch.device | str = "cpu", **sizes: int
) -> HashGrid:
    """Return a hash grid over a scene's box, trained on all of its photographs.

    Args:
        steps_across: samples along the box's longest edge.
        sizes: fields of `HashGridSettings`.
    """
    step = float((scene.aabb[1] - scene.aabb[0]).amax()) / steps_across
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        teacher = HashGrid(HashGridSettings(scene.box, step=step, **sizes)).to(device)
        pixels = ngp.training_pixels(scene, teacher.aabb, device=device)
        fit(teacher, pixels, plan, torch.Generator(device).manual_seed(seed), scene.near)
    return teacher


def cone(
    scene: Scene, azimuth_degrees: float, elevation_degrees: float, within_degrees: float, held_degrees: float
) -> tuple[Int[Tensor, "n"], Int[Tensor, "m"], Int[Tensor, "1"]]:
    """Return frames of cameras that look from one side, for a method that knows no other: to train, held out, and far aside.

    Those to train look along within `within_degrees` of one direction, those held out (of "test" and "val") within
    `held_degrees`; the last is the test frame that looks most differently. Where fewer than 8 cameras to train or 2 held out look
    from the direction asked for, the axis of a held-out camera takes its place: of the first that has as many, or the most. The
    three nearest cameras are trained with in any case.

    Args:
        azimuth_degrees, elevation_degrees: of the direction, from what is looked at to the camera.
    """
    azimuth, elevation = math.radians(azimuth_degrees), math.radians(elevation_degrees)
    asked = [math.cos(elevation) * math.cos(azimuth), math.cos(elevation) * math.sin(azimuth), math.sin(elevation)]
    back = -scene.cameras.world_from_cam[:, :3, 2]
    train, test = scene.frames("train"), scene.frames("test")
    held = torch.cat([test, scene.splits.get("val", test[:0])])

    def around(axis: Tensor) -> tuple[Tensor, Tensor]:
        to_train, others = back[train] @ axis, back[held] @ axis
        third = to_train.topk(min(3, len(train))).values[-1]
        inside, at_least = (math.cos(math.radians(degrees)) for degrees in (within_degrees, held_degrees))
        return train[to_train >= third.clamp(max=inside)], held[others >= at_least]

    def enough(axis: Tensor) -> tuple[int, int]:
        to_train, others = around(axis)
        return min(len(others), 2), min(len(to_train), 8)

    axis = max([back.new_tensor(asked), *back[held]], key=enough)
    return *around(axis), test[(back[test] @ axis).argmin()][None]


@torch.no_grad()
def reference_depth(scene: Scene, frames: Int[Tensor, "n"], teacher: HashGrid) -> tuple[str, Float[Tensor, "n H W"]]:
    """Return what errors of depth are measured against, its name and its maps on the CPU, 0 where nothing was hit.

    That is "true depth" where the scene has it. Elsewhere it is what the "teacher" sees, and a sentence says so.
    """
    if scene.depth is not None:
        return "true depth", scene.depth[frames]
    print(f"{scene.name} comes without true depth: errors of depth are measured against what the teacher sees.")
    shot = ngp.render_view(teacher, scene.views(frames).to(teacher.aabb.device), scene.near)
    return "teacher", torch.where(shot.alpha > 0.5, shot.depth, 0.0).cpu()


def loss_free(out: RayRender, lesson: nerdf.Lesson, background: float | Tensor, weight: float = 0.0) -> Float[Tensor, ""]:
    """Return the errors of colour and opacity alone, whatever the constraint's weight."""
    return sum(nerdf.loss_terms(out, lesson, background, 0.0).values())


def loss_whole(out: RayRender, lesson: nerdf.Lesson, background: float | Tensor, weight: float = 0.5) -> Float[Tensor, ""]:
    """Return the errors of colour and opacity and the weighted volume constraint."""
    return sum(nerdf.loss_terms(out, lesson, background, weight).values())


def distil(
    students: Mapping[str, Student],
    teacher: HashGrid,
    poses: Callable[[int, torch.Generator], Cameras],
    course: Course,
    generator: torch.Generator,
    near: float,
    losses: Mapping[str, Loss] | None = None,
) -> dict[str, float]:
    """Train students on the same rays, step by step together, and return the seconds that each of them took.

    All must have one box and one number of samples, and are taken to the teacher's device. A light field has no background and
    learns what stands before the rays' own; others learn before the mean of random ones, see `nerdf.loss_opacity`.

    Args:
        poses: from a number and a generator to so many cameras.
        losses: of rays, lesson, background and the constraint's weight, for those that do not learn by `loss_whole`.
    """
    losses = dict.fromkeys(students, loss_whole) | dict(losses or {})
    first = [student.to(teacher.aabb.device) for student in students.values()][0]
    optimizers = {name: torch.optim.Adam(student.parameters(), lr=course.lr) for name, student in students.items()}
    spent, tau = dict.fromkeys([*students, "teacher"], 0.0), whole_rays.positions(first.settings.n_samples, generator.device)
    with torch.enable_grad():  # also from inside a slider's callback
        for step in range(course.n_steps):
            began, weight = clock(), nerdf.constraint_weight(step, course.n_steps)
            rays = nerdf.random_rays(poses(course.n_cameras, generator), course.n_rays, generator, first.aabb)
            t = whole_rays.distances(first, rays, tau, near)
            lesson = nerdf.ask(teacher, lambda rays: ngp.render(teacher, rays, near, 0.0), rays, t)
            spent["teacher"] += clock() - began
            for name, student in students.items():
                began = clock()
                set_learning_rate(optimizers[name], nerdf.learning_rate(step, course.n_steps, course.lr))
                background = rays.background if isinstance(student, LightField) else nerdf.GREY
                out = whole_rays.render_rays(student, rays, near=near, background=background, tau=tau)
                optimizers[name].zero_grad()
                losses[name](out, lesson, background, weight).backward()
                optimizers[name].step()
                spent[name] += clock() - began
    return spent


def depth_error(depth: Float[Tensor, "n H W"], truth: Float[Tensor, "n H W"]) -> float:
    """Return the mean error of depth in world units where the true depth is known, not 0."""
    known = truth > 0
    return float((depth.cpu() - truth)[known].abs().mean())


def constant_depth_error(truth: Float[Tensor, "n H W"]) -> float:
    """Return the depth error of the best single guess for all pixels, the median."""
    return depth_error(truth[truth > 0].median().expand_as(truth), truth)


def n_parameters(*models: nn.Module) -> int:
    """Return how many numbers models learn."""
    return sum(p.numel() for model in models for p in model.parameters())

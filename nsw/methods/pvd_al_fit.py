"""Whole trainings of active learning (PVD-AL): one teacher, many students that begin alike and ask by different levels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nsw.cameras import Rays, pixel_rays
from nsw.kernels.threads import Going, n_threads, side_by_side
from nsw.methods import pvd, tensorf
from nsw.methods.pvd_al import ActiveLearner, Levels
from nsw.methods.pvd_al_pool import hardest
from nsw.methods.pvd_students import network_optimizer, new_mlp, share_cells
from nsw.methods.pvd_teacher import Plan, Teacher, teach
from nsw.models.vm_grid import VMGrid
from nsw.scenes.scene import Scene

Key = TypeVar("Key")

VARIANTS: Mapping[str, Levels] = {
    "PVD": Levels(),
    "pose": Levels(pose=True),
    "ray": Levels(ray=True),
    "point": Levels(point=True),
    "all three": Levels(pose=True, ray=True, point=True),
    "control": Levels(ray=True, shuffled=True),
}


@dataclass(frozen=True)
class Lesson:
    """What all students of a seed have in common.

    Attributes:
        teacher: with the poses that it is asked from.
        seed: of the students' starts and of their rays.
        state: of the random numbers behind the teacher's own.
        watch: measures a student after each epoch.
    """

    teacher: Teacher
    seed: int
    state: Tensor
    watch: Callable[[nn.Module], Tensor]


def lesson(model: nn.Module, scene: Scene, plan: Plan, seed: int, pixels: tuple[Rays, Tensor] | None = None) -> Lesson:
    """Return what a trained model has to say to the students of a seed.

    Args:
        pixels: what `some_pixels` returned; diaries then hold a student's PSNR there after each epoch, mean and worst tenth.
    """
    generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    teacher = teach(model, scene, plan, generator)
    watch = (lambda student: torch.zeros(0)) if pixels is None else watch_of(teacher, plan, *pixels)
    return Lesson(teacher, seed, generator.get_state(), watch)


def start(
    given: Lesson,
    plan: Plan,
    active: Levels,
    n_rays: int,
    lr: float,
    new: Callable[..., nn.Module] = new_mlp,
    **sizes: int,
) -> ActiveLearner:
    """Return a student that is about to learn; its start is the same for all levels of a lesson.

    Args:
        new: `new_mlp` or `new_vm` of `nsw.methods.pvd_students`; `sizes` go there.
        lr: learning rate of networks; the factors of a grid have ten times as much.
    """
    torch.manual_seed(given.seed)
    generator = torch.Generator(given.teacher.aabb.device)
    generator.set_state(given.state)
    student = new(given.teacher, plan, **sizes)
    share_cells(student, given.teacher)
    pvd.inherit(student, given.teacher, plan, generator)
    optimizer = tensorf.make_optimizer(student, 10 * lr, lr) if isinstance(student, VMGrid) else network_optimizer(student, lr)
    return ActiveLearner(student, optimizer, given.teacher, plan, active, n_rays, given.seed, given.watch)


def some_pixels(scene: Scene, frames: Int[Tensor, "n"], n: int, device: torch.device | str) -> tuple[Rays, Float[Tensor, "n 3"]]:
    """Return rays through n random pixels of these frames, and the colours there over white; the same at every call."""
    cameras, generator = scene.views(frames).to(device), torch.Generator().manual_seed(0)
    at = [torch.randint(size, (n,), generator=generator) for size in (len(cameras), cameras.height, cameras.width)]
    return pixel_rays(cameras, *(index.to(device) for index in at)), scene.pixels(frames)[tuple(at)].to(device)


@torch.no_grad()
def watch_of(teacher: Teacher, plan: Plan, rays: Rays, truth: Float[Tensor, "n 3"]) -> Callable[[nn.Module], Float[Tensor, "2"]]:
    """Return a function that measures a student on rays whose samples are chosen once, and without a word to its training."""
    samples, _, _ = pvd.ask(teacher, rays, plan, torch.Generator(truth.device).manual_seed(0))

    @torch.no_grad()
    def psnr(student: nn.Module) -> Float[Tensor, "2"]:
        reading = pvd.read(student, samples.points, samples.rays, samples.ray_indices)
        found = pvd.composite(reading, samples, teacher.step, torch.ones_like(truth))
        squared = (found.clamp(0, 1) - truth).square().mean(-1)
        return -10 * torch.stack([squared.mean(), squared[hardest(squared, 0.1)].mean()]).clamp_min(1e-10).log10()

    return psnr


def trained(learner: ActiveLearner, going: Going = iter) -> ActiveLearner:
    """Train for all steps of the plan; `going` goes through their numbers."""
    for k in going(range(learner.plan.n_steps)):
        with torch.enable_grad():
            learner.step(k)
    learner.note(learner.plan.n_steps)
    return learner


def all_trained(learners: Mapping[Key, ActiveLearner]) -> Iterator[tuple[Key, ActiveLearner]]:
    """Train every student, on a CPU several at once, each as if it were alone there, with one core; yield them in order."""
    on_cpu = all(learner.errors.device.type == "cpu" for learner in learners.values())
    return side_by_side({name: partial(trained, learner) for name, learner in learners.items()}, n_threads() if on_cpu else 1)

"""Progressive Volume Distillation (Fang et al., AAAI 2023): turn a trained field into one of another architecture.

Here: what teacher and student are compared in, at shared samples of one occupancy grid, and the whole conversion as one
function. What a teacher brings along is in `nsw.methods.pvd_teacher`, who can be a student in `nsw.methods.pvd_students`, what
concerns 3D Gaussians in `nsw.methods.pvd_splats`. Written from the paper; losses are means instead of sums, so that weights do
not depend on the size of a batch, and the clip lets gradients through.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nsw.cameras import Rays, random_rays
from nsw.kernels.packed import counts_of
from nsw.kernels.packed_rays import packed_weights
from nsw.methods.pvd_teacher import PAPER, Plan, Teacher, teach
from nsw.models.field import Field, FieldOutput
from nsw.renderers.volume import march_cells, packed_backend, sum_on_rays
from nsw.scenes.scene import Scene

__all__ = ["PAPER", "Plan", "Teacher", "convert", "losses", "random_rays", "teach"]


@dataclass(frozen=True)
class Learner:
    """A student in training: `step(k)` takes optimiser step k of `n_steps` and returns the terms of its loss."""

    model: nn.Module
    n_steps: int
    step: Callable[[int], dict[str, Tensor]]


class Reading(NamedTuple):
    """What a field says at N points: log of its density [N] in 1 / world unit, feature [N, G] or None, rgb [N, 3] or None."""

    log_density: Float[Tensor, "N"]
    feature: Float[Tensor, "N G"] | None
    rgb: Float[Tensor, "N 3"] | None


class Samples(NamedTuple):
    """Where both fields are asked: R rays, K points on them in occupied cells, and how many each ray had before dark ones went."""

    rays: Rays
    ray_indices: Int[Tensor, "K"]
    t: Float[Tensor, "K"]
    points: Float[Tensor, "K 3"]
    marched: Int[Tensor, "R"] | None = None


@torch.no_grad()
def n_features(field: Field) -> int:
    """Return how many numbers the colour of a field is read from, as its answer at the middle of its box says; 0 without any."""
    middle = field.aabb.mean(0, keepdim=True)
    feature = field.query(middle, torch.eye(3).to(middle)[2:]).feature
    return 0 if feature is None else feature.shape[1]


def comparable(student: Field, teacher: Field) -> bool:
    """Return whether both have features, and as many of them: then there is a first stage."""
    return 0 < n_features(student) == n_features(teacher)


def first_block(field: Field, points: Float[Tensor, "K 3"]) -> tuple[Float[Tensor, "K"], Float[Tensor, "K G"] | None]:
    """Return density in 1 / world unit and, of a field that has its answer in two parts, the feature."""
    return field.geometry(points) if hasattr(field, "geometry") else (field.density(points), None)


def read(
    field: Field,
    points: Float[Tensor, "K 3"],
    rays: Rays,
    ray_indices: Int[Tensor, "K"],
    colour: bool = True,
    known: tuple[Tensor, Tensor | None] | None = None,
) -> Reading:
    """Return log-density, feature and, where asked for, colour at points; `known` is what the first block said there."""
    if not hasattr(field, "geometry"):  # it answers at once, or not at all
        out = field.query(points, rays.directions.index_select(0, ray_indices))
        return Reading(out.log_density, out.feature, out.rgb)
    density, feature = first_block(field, points) if known is None else known
    rgb = None
    if colour:
        x, shade = (points, field.colour_at) if feature is None else (feature, field.colour)
        rgb = shade(x, rays.directions, ray_indices)
    return Reading(FieldOutput(density, rgb).log_density, feature, rgb)


def clip_through(s: Float[Tensor, "N"], low: float, high: float) -> Float[Tensor, "N"]:
    """Return s clipped, with the gradient of s itself: a student outside of the interval still feels where to go.

    >>> s = torch.tensor([-9.0, 0.0], requires_grad=True)
    >>> clip_through(s, -2.0, 7.0).sum().backward()
    >>> s.grad.tolist()
    [1.0, 1.0]
    """
    return s + (s.clamp(low, high) - s).detach()


def loss_rms(a: Float[Tensor, "*n"], b: Float[Tensor, "*n"]) -> Float[Tensor, ""]:
    r"""Return the root mean square difference.

    $$\sqrt{\tfrac1N \textstyle\sum (a - b)^2}$$  The paper's Frobenius norm over the root of its size: as scale-free, and the
    same for any batch.
    """
    return ((a - b).square().mean() + 1e-12).sqrt()


def stage_of(step: int, plan: Plan, feature: bool = True) -> int:
    """Return the stage of a step: 1 features, 2 density and colour, 3 pictures too; without features there is no stage 1.

    >>> [stage_of(k, Plan(n_steps=100)) for k in (0, 1, 2, 6, 7)]
    [1, 1, 2, 2, 3]
    """
    first, second = round(plan.stage1 * plan.n_steps), round((plan.stage1 + plan.stage2) * plan.n_steps)
    return 1 + (step >= first or not feature) + (step >= second)


def draw(teacher: Teacher, n_rays: int, plan: Plan, generator: torch.Generator) -> tuple[Samples, Reading, int]:
    """Return samples on random rays of random poses, what the teacher says there, and how many samples were marched."""
    return ask(teacher, random_rays(teacher.cameras, n_rays, generator)[0], plan, generator)


@torch.no_grad()
def ask(teacher: Teacher, rays: Rays, plan: Plan, generator: torch.Generator) -> tuple[Samples, Reading, int]:
    """Return samples on rays, what the teacher says there, and how many samples were marched.

    The student is asked at the same points. Those that the teacher sees next to no light behind are dropped.
    """
    n_rays = len(rays)
    ray_indices, t, points = march_cells(teacher, rays, teacher.cells, teacher.step, teacher.near, generator)
    n_marched, known = len(t), first_block(teacher.model, points)
    marched = counts_of(ray_indices, n_rays)
    if plan.threshold > 0 and n_marched:
        edges = (t - teacher.step / 2, t + teacher.step / 2)
        backend = packed_backend(t.device)
        light = backend.render_weight_from_density(*edges, known[0], ray_indices=ray_indices, n_rays=n_rays)[1]
        kept = (light > plan.threshold).nonzero()[:, 0]
        ray_indices, t, points = (x.index_select(0, kept) for x in (ray_indices, t, points))
        known = tuple(None if x is None else x.index_select(0, kept) for x in known)
    truth = read(teacher.model, points, rays, ray_indices, known=known)
    return Samples(rays, ray_indices, t, points, marched), truth, n_marched


def composite(reading: Reading, samples: Samples, step: float, background: Float[Tensor, "R 3"]) -> Float[Tensor, "R 3"]:
    """Return the rays' colours over the background."""
    weights, left = packed_weights(reading.log_density.exp() * step, samples.ray_indices, len(samples.rays))
    return sum_on_rays(weights, left, reading.rgb, samples.t, samples.ray_indices, background)[0]


def losses(
    student: Field, teacher: Teacher, samples: Samples, truth: Reading, stage: int, plan: Plan, generator: torch.Generator
) -> dict[str, Float[Tensor, ""]]:
    r"""Return the weighted terms of a stage.

    $$\text{1: } \lambda_h\lVert h_s - h_t\rVert \qquad
    \text{2: } \lambda_\sigma\lVert s_s - s_t\rVert + \lambda_c\lVert c_s - c_t\rVert \qquad
    \text{3: } \lVert\hat C_s - \hat C_t\rVert + \lambda_\sigma\lVert s_s - s_t\rVert + \lambda_c\lVert c_s - c_t\rVert$$

    h is log-density and feature, s the log-density, c the colour at a point, C that of a ray. The paper lets its weight of the
    feature fall by 0.995 a step: after stage 1 it is off in practice, so here it is off. A VM student's training adds the mean
    size of its density's factors in stage 3 (`pvd_students.learner`).
    """
    ours = read(student, samples.points, samples.rays, samples.ray_indices, colour=stage > 1)
    clipped = [clip_through(r.log_density + math.log(teacher.step), *plan.clip) for r in (ours, truth)]
    if stage == 1:
        h_s, h_t = (torch.cat([s[:, None], r.feature], dim=1) for s, r in zip(clipped, (ours, truth), strict=True))
        return {"feature": plan.feature * loss_rms(h_s, h_t)}
    terms = {"density": plan.density * loss_rms(*clipped), "colour": plan.colour * loss_rms(ours.rgb, truth.rgb)}
    if stage == 3:
        behind = torch.rand(len(samples.rays), 3, generator=generator, device=samples.t.device)
        pictures = [composite(r, samples, teacher.step, behind) for r in (ours, truth)]
        terms["picture"] = loss_rms(*pictures)
    return terms


@torch.no_grad()
def inherit(student: nn.Module, teacher: Teacher, plan: Plan, generator: torch.Generator) -> list[str]:
    """Copy every parameter that has the same name and shape in both, and return their names: the heads, if both have them.

    An inherited head has learned to read numbers of a certain size. The last layer of a new trunk is scaled to give such: with
    the official code's start the heads shout, and undoing that costs more than inheriting saves.
    """
    theirs = dict(teacher.model.named_parameters())
    shared = [(name, p) for name, p in student.named_parameters() if name in theirs and theirs[name].shape == p.shape]
    for name, parameter in shared:
        parameter.copy_(theirs[name])
    if hasattr(student, "trunk") and any(name.startswith("density_net") for name, _ in shared):
        points = draw(teacher, 1024, plan, generator)[0].points
        (wanted, shift), (found, now) = (torch.std_mean(field.encode(points), dim=0) for field in (teacher.model, student))
        scale, last = wanted / found.clamp_min(1e-6), student.trunk[-1]
        last.weight.mul_(scale[:, None])
        last.bias.copy_(shift - now * scale)
    return [name for name, _ in shared]


def convert(
    model: nn.Module,
    to: Callable[[Teacher, Plan, torch.Generator], Learner],
    scene: Scene | None = None,
    plan: Plan | None = None,
    generator: torch.Generator | None = None,
    watch: Callable[[int], Iterable[int]] = range,
) -> nn.Module:
    """Return what a trained model says as a model of another architecture.

    No photograph is used: the model labels as many random rays as the student wants.

    Args:
        model: a field (hash grid, MLP, dense grid, VM, Plenoxels, anything that answers `query`) or Gaussians.
        to: makes the student: `hash_grid`, `mlp`, `dense`, `vm` of `nsw.methods.pvd_students`, `gaussians` of
            `nsw.methods.pvd_splats`, or a `functools.partial` of them with other sizes.
        scene: tells which cameras to imitate; without it they stand all around the model's box.
        generator: on the model's device.
        watch: from a number of steps to the steps, for example `run.steps` or a progress bar.

    Raises:
        InputError: for a model that has no box or shows nothing.
    """
    plan, device = plan or Plan(), next(model.parameters()).device
    generator = generator or torch.Generator(device).manual_seed(0)
    learner = to(teach(model, scene, plan, generator), plan, generator)
    with torch.enable_grad():
        for k in watch(learner.n_steps):
            learner.step(k)
    return learner.model.eval()

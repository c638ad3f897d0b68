"""Looking into distillations: the matrix of all conversions, two fields along one ray, races against the clock, fog."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nsw.cameras import Cameras, camera_rays, pixel_rays
from nsw.methods import instant_ngp as ngp
from nsw.methods import pvd
from nsw.methods.instant_ngp_fit import Step
from nsw.methods.pvd import Learner, Samples
from nsw.methods.pvd_students import mlp, network_optimizer, new_mlp, photographed
from nsw.methods.pvd_teacher import Plan, Teacher, is_on, teach
from nsw.metrics import clock
from nsw.renderers.volume import march_cells, parts_of
from nsw.scenes.scene import Scene

Make = Callable[[Teacher, Plan, torch.Generator], Learner]


@dataclass(frozen=True)
class Conversion:
    """One cell of the matrix: the new model, its PSNR in dB against photographs, and the seconds it took."""

    model: nn.Module
    psnr: float
    seconds: float


def conversion(
    model: nn.Module, make: Make, scene: Scene, plan: Plan, score: Callable[[nn.Module], float], seed: int = 0
) -> Conversion:
    """Convert a model, and measure what came out and how long it took, all that the student needs included.

    The kernels are compiled by a first, shortest conversion that no clock sees.
    """
    device = next(model.parameters()).device
    for how in (replace(plan, n_steps=2, n_samples=256, n_poses=4), plan):
        torch.manual_seed(seed)
        began = clock()
        learned = pvd.convert(model, make, scene, how, torch.Generator(device).manual_seed(seed))
        seconds = clock() - began
    return Conversion(learned, score(learned), seconds)


def matrix(
    first: nn.Module, students: Mapping[str, Make], scene: Scene, plan: Plan, score: Callable[[nn.Module], float], seed: int = 0
) -> dict[str, dict[str, Conversion]]:
    """Return every conversion, as {teacher: {student: ...}}.

    The teacher of the row that has the first student's name is `first`; those of the other rows are what it has become, so
    that a whole row costs no training on photographs. A conversion to the same architecture starts anew as well.
    """
    name, *others = students
    anew = replace(plan, inherit=False)
    rows = {name: {s: conversion(first, make, scene, anew if s == name else plan, score, seed) for s, make in students.items()}}
    for teacher in others:
        model = rows[name][teacher].model
        rows[teacher] = {
            s: conversion(model, make, scene, anew if s == teacher else plan, score, seed) for s, make in students.items()
        }
    return rows


def matrix_chart(rows: Mapping[str, Mapping[str, Conversion]], value: Callable[[Conversion], float], title: str):
    """Return the matrix as a heat map with its numbers written into it: teachers downwards, students to the right."""
    from nsw.widgets.charts import figure

    z = [[value(cell) for cell in row.values()] for row in rows.values()]
    low, high = min(map(min, z)), max(map(max, z))
    n, notes = len(z), []
    for i, (teacher, row) in enumerate(zip(rows, z, strict=True)):
        y = 1 - (i + 0.5) / n - 0.035
        notes.append(dict(x=-0.12, y=y, text=f"from {teacher}"))
        for j, number in enumerate(row):
            dark = number < low + 0.5 * (high - low)
            notes.append(dict(x=(j + 0.5) / len(row), y=y, text=f"{number:.3g}", font=dict(color="#ffffff" if dark else "#000000")))
    notes += [dict(x=(j + 0.5) / n, y=1.01, text=f"to {student}") for j, student in enumerate(next(iter(rows.values())))]
    where = dict(xref="paper", yref="paper", showarrow=False, xanchor="center", yanchor="bottom")
    heat = dict(type="heatmap", z=z, colorscale="Cividis", zmin=low, zmax=high, showscale=False, hoverinfo="z")
    hidden = dict(showticklabels=False, showgrid=False, zeroline=False)
    margin = dict(l=150, r=20, t=80, b=20)
    return figure(
        [heat],
        title=title,
        height=80 + 62 * n,
        margin=margin,
        annotations=[note | where for note in notes],
        xaxis=hidden,
        yaxis=hidden | dict(autorange="reversed"),
    )


def cell_pictures(
    rows: Mapping[str, Mapping[str, Conversion]], teacher: nn.Module, draw: Callable[[nn.Module], Tensor], student: str
):
    """Return teacher, one of its students and their difference, enlarged five times, side by side."""
    theirs, ours = draw(teacher), draw(next(iter(rows.values()))[student].model)
    return torch.cat([theirs, ours, (5 * (ours - theirs).abs()).clamp(max=1)], dim=1)


@torch.no_grad()
def along_ray(
    fields: Mapping[str, nn.Module], teacher: Teacher, cameras: Cameras, row: int, column: int
) -> dict[str, tuple[Float[Tensor, "S"], Float[Tensor, "S"]]]:
    """Return for each field (distances, logarithm of the optical depth of a sample) along one pixel's ray in the shared cells."""
    at = torch.tensor([row], device=teacher.aabb.device), torch.tensor([column], device=teacher.aabb.device)
    rays = pixel_rays(cameras, torch.zeros_like(at[0]), *at)
    ray_indices, t, points = march_cells(teacher, rays, teacher.cells, teacher.step, teacher.near)
    read = {name: pvd.read(field, points, rays, ray_indices).log_density for name, field in fields.items()}
    return {name: (t.cpu(), (s + math.log(teacher.step)).clamp_min(-14).cpu()) for name, s in read.items()}


def ray_chart(curves: Mapping[str, tuple[Tensor, Tensor]], clip: tuple[float, float]):
    """Return the curves of `along_ray` as a chart with the clip's interval."""
    from nsw.widgets.charts import COLOURS, DASHES, figure

    reached = torch.cat([t for t, _ in curves.values()])
    ends = [float(reached.min()), float(reached.max())] if len(reached) else [0.0, 1.0]
    data = [
        dict(
            type="scatter", x=t.tolist(), y=s.tolist(), name=name, mode="lines+markers", line=dict(color=COLOURS[i], dash=DASHES[i])
        )
        for i, (name, (t, s)) in enumerate(curves.items())
    ]
    data += [
        dict(type="scatter", x=ends, y=[edge] * 2, name=name, mode="lines", line=dict(color="#777777", dash="dot"))
        for name, edge in zip(("clip, floor", "clip, ceiling"), clip, strict=True)
    ]
    axes = dict(xaxis=dict(title="distance along the ray"), yaxis=dict(title="log of a sample's optical depth"))
    return figure(data, showlegend=True, **axes)


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
    width, device, cells = min(cameras.width, largest), teacher.aabb.device, teacher.cells
    cameras = cameras[:1].resized(width, round(cameras.height * width / cameras.width))
    rays, pictures = camera_rays(cameras), []
    if everywhere:
        cells = type(cells)(teacher.aabb.reshape(6).tolist(), cells.binaries.shape[-1]).to(device)
        cells.binaries = torch.ones_like(teacher.cells.binaries)
    for part in parts_of(teacher, rays, cells, teacher.step, teacher.near):
        some = rays[part]
        ray_indices, t, points = march_cells(teacher, some, cells, teacher.step, teacher.near)
        reading = pvd.read(field, points, some, ray_indices)
        thin = torch.where(is_on(teacher.cells, points), reading.log_density, -torch.inf)
        foggy = reading._replace(log_density=thin.clamp_min(floor - math.log(teacher.step)))
        white = torch.ones(len(some), 3, device=device)
        pictures.append(pvd.composite(foggy, Samples(some, ray_indices, t, points), teacher.step, white))
    return torch.cat(pictures).view(cameras.height, cameras.width, 3).cpu()


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

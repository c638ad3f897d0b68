"""Looking into active learning: variants side by side, what is hardest, how hard the pool's rays are when asked again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nsw import metrics
from nsw.cameras import Cameras, Rays, camera_rays, pixel_ray, project
from nsw.kernels.packed_rays import packed_weights
from nsw.methods import pvd
from nsw.methods.pvd_al import ActiveLearner, Levels, hardest, important, losses
from nsw.renderers import render_view
from nsw.renderers.volume import parts_of, sum_on_rays
from nsw.scenes.scene import Scene


def detail(
    scene: Scene, frames: Int[Tensor, "n"], instance: str = "chequered block", share: float = 0.1
) -> tuple[str, Bool[Tensor, "n H W"]]:
    """Return where there is much to learn in these frames, and its name.

    That is the "small object" where the scene's ids have the named instance; elsewhere the "strongest edges", the share of all
    pixels where the photographs' grey has the largest gradient.
    """
    if scene.ids is not None and instance in scene.id_names:
        return "small object", scene.ids[frames] == scene.id_names.index(instance)
    along_rows, along_columns = torch.gradient(scene.pixels(frames).mean(-1), dim=(1, 2))
    steepness = along_rows.square() + along_columns.square()
    edges = torch.zeros(steepness.numel(), dtype=torch.bool)
    edges[hardest(steepness.flatten(), share)] = True
    return "strongest edges", edges.view_as(steepness)


def scores(
    found: Float[Tensor, "n H W 3"], truth: Float[Tensor, "n H W 3"], masks: Mapping[str, Bool[Tensor, "n H W"]]
) -> dict[str, float]:
    """Return PSNR in dB: the mean over views, of the worst tenth of all pixels, of that of all poses, and in masks by name.

    Of fewer than 15 poses the worst tenth is one.
    """
    squared = (found.clamp(0, 1) - truth).double().square().mean(-1)
    poses, squared = squared.flatten(1).mean(1), squared.flatten()
    worst, worst_poses = (errors[hardest(errors, 0.1)].mean() for errors in (squared, poses))
    as_db = lambda mse: float(-10 * torch.log10(mse.clamp_min(1e-10)))  # noqa: E731
    inside = {name: as_db(squared[mask.flatten()].mean()) for name, mask in masks.items()}
    return {"mean": metrics.psnr(found, truth), "worst pixels": as_db(worst), "worst poses": as_db(worst_poses), **inside}


def gains(scores: Mapping[str, Sequence[Mapping[str, float]]], plain: str = "PVD") -> dict[str, dict[str, float]]:
    """Return by how many dB each variant's mean over seeds is above that of the plain one, a number for each score.

    Args:
        scores: {variant: what `scores` returned for each seed}.

    >>> gains({"PVD": [{"mean": 20.0}, {"mean": 22.0}], "ray": [{"mean": 22.0}, {"mean": 21.0}]})
    {'ray': {'mean': 0.5}}
    """
    means = {name: {score: sum(row[score] for row in rows) / len(rows) for score in rows[0]} for name, rows in scores.items()}
    return {
        name: {score: round(row[score] - means[plain][score], 2) for score in row} for name, row in means.items() if name != plain
    }


def spread_table(scores: Mapping[str, Sequence[Mapping[str, float]]]) -> list[dict[str, str]]:
    """Return a row for each variant: every score's mean over seeds, and its range where there are several.

    Args:
        scores: {variant: what `scores` returned for each seed}.

    >>> spread_table({"PVD": [{"mean": 20.0}, {"mean": 22.0}]})
    [{'variant': 'PVD', 'mean': '21.00 (20.00 to 22.00)'}]
    """
    table = []
    for variant, rows in scores.items():
        found = {score: [row[score] for row in rows] for score in rows[0]}
        ends = {score: f" ({min(v):.2f} to {max(v):.2f})" if len(v) > 1 else "" for score, v in found.items()}
        table.append({"variant": variant, **{score: f"{sum(v) / len(v):.2f}{ends[score]}" for score, v in found.items()}})
    return table


@torch.no_grad()
def remeasured(learner: ActiveLearner, n: int, seed: int = 0) -> tuple[float, float]:
    """Return the mean errors that the student makes now on rays of its pool and on new random rays."""
    generator = torch.Generator(learner.errors.device).manual_seed(seed)
    n = min(n, len(learner.pool.born))
    found = []
    for rays in (learner.pool.draw(n, generator)[1], pvd.random_rays(learner.teacher.cameras, n, generator)[0]):
        found.append(float(torch.cat([errors for errors, _ in _asked(learner, rays, generator)]).mean()))
    return found[0], found[1]


def _asked(
    learner: ActiveLearner, rays: Rays, generator: torch.Generator, chunk: int = 1 << 14
) -> Iterator[tuple[Float[Tensor, "r"], pvd.Samples]]:
    """Yield errors of rays and the samples at which they were measured, few rays enough at a time for any network."""
    teacher = learner.teacher
    for i in range(0, len(rays), chunk):
        some = rays[i : i + chunk]
        for part in parts_of(teacher, some, teacher.cells, teacher.step, teacher.near):
            samples, truth, _ = pvd.ask(teacher, some[part], learner.plan, generator)
            yield losses(learner.student, teacher, samples, truth, learner.plan, Levels(), generator)[1], samples


@torch.no_grad()
def error_picture(
    learner: ActiveLearner, cameras: Cameras, share: float = 0.1
) -> tuple[Float[Tensor, "H W"], Float[Tensor, "H W 3"]]:
    """Return each ray's error in one view, and the student's picture in which the hardest rays are painted blue."""
    generator = torch.Generator(learner.errors.device).manual_seed(0)
    found, pictures = [], []
    for errors, samples in _asked(learner, camera_rays(cameras), generator):
        ours = pvd.read(learner.student, samples.points, samples.rays, samples.ray_indices)
        white = torch.ones(len(samples.rays), 3, device=errors.device)
        found.append(errors)
        pictures.append(pvd.composite(ours, samples, learner.teacher.step, white))
    errors, picture = torch.cat(found), torch.cat(pictures)
    picture[hardest(errors, share)] = picture.new_tensor([0.0, 0.45, 0.7])
    shape = (cameras.height, cameras.width)
    return errors.view(shape).cpu(), picture.view(*shape, 3).clamp(0, 1).cpu()


@torch.no_grad()
def weights_of_ray(
    learner: ActiveLearner, cameras: Cameras, row: int, column: int, kept: float
) -> tuple[Float[Tensor, "S"], float, dict[str, tuple[Float[Tensor, "S"], Bool[Tensor, "S"]]]]:
    """Return distances of the samples along a pixel's ray, their spacing, and each field's weights and which the point level keeps.

    Args:
        kept: see `pvd_al.important`.
    """
    rays = pixel_ray(cameras, row, column)
    samples, truth, _ = pvd.ask(learner.teacher, rays, replace(learner.plan, threshold=0.0), torch.Generator(learner.errors.device))
    found = {}
    for name, reading in (("teacher", truth), ("student", pvd.read(learner.student, samples.points, rays, samples.ray_indices))):
        weights, _ = packed_weights(reading.log_density.exp() * learner.teacher.step, samples.ray_indices, 1)
        found[name] = weights, important(weights, samples.ray_indices, samples.marched, kept, learner.levels.opacity)
    return samples.t, learner.teacher.step, found


def poses_at(students: Mapping[str, ActiveLearner], student: str, epoch: int) -> dict[str, Any]:
    """Return what `active_learning.pose_sky` draws of one student's epoch: poses, their errors, a scale for all of the students."""
    errors = {name: learner.diary.errors[epoch].cpu() for name, learner in students.items()}
    every = torch.cat(list(errors.values()))
    learner, every = students[student], every[every.isfinite()]
    upward = learner.cameras.origins.cpu() - learner.teacher.aabb.mean(0).cpu()
    return dict(upward=upward, errors=errors[student], scale=(float(every.min()), float(every.max())))


@torch.no_grad()
def pool_through_time(learner: ActiveLearner, cameras: Cameras) -> Callable[[int], tuple]:
    """Return a function from an epoch to what `active_learning.marked` draws of it: a view, and where that epoch's pool is there.

    A ray of the pool, whatever pose it is from, is where it meets the teacher's surface, if the view sees that; besides are
    returned the step, how many rays meet a surface, and how many there are.
    """
    seen, diary, shape = render_view(learner.teacher.model, cameras), learner.diary, (cameras.height, cameras.width)
    steps, places, solid = diary.steps.cpu().tolist(), [], []
    for rays in diary.rays:
        rays = rays[rays.isfinite().all(1)]
        points, opaque = _hits(learner, Rays(*rays[:, :6].split(3, dim=1), rays[:, 6]))
        (pixels,), (depth,) = project(cameras, points[opaque])
        column, row = pixels.floor().long().unbind(-1)
        inside = (depth > 0) & (row >= 0) & (row < shape[0]) & (column >= 0) & (column < shape[1])
        row, column, depth = row[inside], column[inside], depth[inside]
        front = (depth - seen.depth[0, row, column]).abs() < 3 * learner.teacher.step
        places.append(torch.stack([row[front], column[front]]).cpu())
        solid.append((int(opaque.sum()), len(rays)))
    picture = seen.rgb[0].clamp(0, 1).cpu()
    return lambda epoch: (picture, places[epoch], steps[epoch], *solid[epoch])


def _hits(learner: ActiveLearner, rays: Rays) -> tuple[Float[Tensor, "R 3"], Bool[Tensor, "R"]]:
    """Return where rays meet the teacher's surface, and which do."""
    teacher, generator = learner.teacher, torch.Generator(learner.errors.device).manual_seed(0)
    points, opaque = [rays.origins[:0]], [torch.zeros(0, dtype=torch.bool, device=rays.origins.device)]
    for part in parts_of(teacher, rays, teacher.cells, teacher.step, teacher.near) if len(rays) else ():
        some = rays[part]
        samples, truth, _ = pvd.ask(teacher, some, learner.plan, generator)
        weights, left = packed_weights(truth.log_density.exp() * teacher.step, samples.ray_indices, len(some))
        _, t = sum_on_rays(weights, left, truth.rgb, samples.t, samples.ray_indices, 1.0)
        points.append(some.origins + t[:, None] * some.directions)
        opaque.append(left < 0.5)
    return torch.cat(points), torch.cat(opaque)


def ages(learner: ActiveLearner, bins: int = 6) -> dict[str, float]:
    """Return how many of the pool's rays have stayed for how many steps."""
    age = learner.plan.n_steps - learner.pool.born[learner.pool.born >= 0]
    edges = torch.linspace(0, max(int(age.max()), bins), bins + 1).round().long().tolist() if len(age) else [0] * (bins + 1)
    return {f"{a} to {b}": float(((age > a) & (age <= b)).sum()) for a, b in zip(edges, edges[1:], strict=False)}

"""Looking into active learning: variants side by side, what is hardest, how hard the pool's rays are when asked again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from nsw import metrics
from nsw.cameras import Cameras, Rays, camera_rays, pixel_rays
from nsw.kernels.packed_rays import packed_weights
from nsw.methods import pvd
from nsw.methods.pvd_al import ActiveLearner, Levels, hardest, important, losses
from nsw.methods.pvd_students import network_optimizer, new_mlp, share_cells
from nsw.methods.pvd_teacher import Plan, teach
from nsw.renderers.volume import parts_of
from nsw.scenes.scene import Scene

VARIANTS: Mapping[str, Levels] = {
    "PVD": Levels(),
    "pose": Levels(pose=True),
    "ray": Levels(ray=True),
    "point": Levels(point=True),
    "all three": Levels(pose=True, ray=True, point=True),
    "control": Levels(ray=True, shuffled=True),
}


def start(
    model: nn.Module, scene: Scene, plan: Plan, active: Levels, n_rays: int, lr: float, seed: int = 0, **sizes: int
) -> ActiveLearner:
    """Return a network that is about to learn from a model; start and teacher are the same for all levels of a seed."""
    torch.manual_seed(seed)
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    teacher = teach(model, scene, plan, generator)
    student = new_mlp(teacher, plan, **sizes)
    share_cells(student, teacher)
    pvd.inherit(student, teacher, plan, generator)
    return ActiveLearner(student, network_optimizer(student, lr), teacher, plan, active, n_rays, seed)


def trained(learner: ActiveLearner) -> ActiveLearner:
    """Train for all steps of the plan."""
    with torch.enable_grad():
        for k in range(learner.plan.n_steps):
            learner.step(k)
    return learner


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
    """Return PSNR in dB: the mean over views, of the tenth of all pixels that are worst, and inside of each mask, by its name."""
    squared = (found.clamp(0, 1) - truth).double().square().mean(-1).flatten()
    worst = squared[hardest(squared, 0.1)].mean()
    as_db = lambda mse: float(-10 * torch.log10(mse.clamp_min(1e-10)))  # noqa: E731
    inside = {name: as_db(squared[mask.flatten()].mean()) for name, mask in masks.items()}
    return {"mean": metrics.psnr(found, truth), "worst pixels": as_db(worst), **inside}


@torch.no_grad()
def remeasured(learner: ActiveLearner, n: int, seed: int = 0) -> tuple[float, float]:
    """Return the mean errors that the student makes now on rays of its pool and on new random rays."""
    generator = torch.Generator(learner.errors.device).manual_seed(seed)
    n = min(n, len(learner.pool.born))
    found = []
    for rays in (learner.pool.draw(n, generator)[1], pvd.random_rays(learner.teacher, n, generator)[0]):
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
def weights_of_ray(learner: ActiveLearner, cameras: Cameras, row: int, column: int, kept: float):
    """Return a bar chart of both fields' weights along one ray, those that the point level keeps in full colour."""
    from nsw.widgets.charts import COLOURS, figure

    at = (torch.tensor([v], device=learner.errors.device) for v in (0, row, column))
    rays = pixel_rays(cameras, *at)
    samples, truth, _ = pvd.ask(learner.teacher, rays, replace(learner.plan, threshold=0.0), torch.Generator(learner.errors.device))
    ours = pvd.read(learner.student, samples.points, rays, samples.ray_indices)
    data, union = [], torch.zeros_like(samples.ray_indices, dtype=torch.bool)
    for (name, reading), colour in zip({"teacher": truth, "student": ours}.items(), COLOURS, strict=False):
        weights, _ = packed_weights(reading.log_density.exp() * learner.teacher.step, samples.ray_indices, 1)
        chosen = important(weights, samples.ray_indices, samples.marched, kept, learner.levels.opacity)
        union |= chosen
        for part, shown, look in ((", kept", chosen, colour), (", left out", ~chosen, "#bbbbbb")):
            height = torch.where(shown, weights, 0.0).tolist()
            data.append(dict(type="bar", x=samples.t.tolist(), y=height, name=name + part, marker=dict(color=look)))
    title = f"{int(union.sum())} of {len(union)} samples enter the point terms"
    axes = dict(xaxis=dict(title="distance along the ray"), yaxis=dict(title="weight"))
    return figure(data, title=title, showlegend=True, barmode="group", margin=dict(l=70, r=20, t=90, b=60), **axes)


def pose_chart(learner: ActiveLearner):
    """Return the poses in 3D, coloured by the mean error of their rays, the hardest tenth large."""
    from nsw.widgets.charts import figure

    mean = (learner.errors / learner.counts.clamp_min(1)).cpu()
    x, y, z = learner.teacher.cameras.origins.cpu().T.tolist()
    size = torch.full_like(mean, 5.0)
    size[hardest(mean, learner.levels.hard)] = 12.0
    marker = dict(size=size.tolist(), color=mean.tolist(), colorscale="Cividis", showscale=True, colorbar=dict(title="error"))
    points = dict(type="scatter3d", x=x, y=y, z=z, mode="markers", name="poses", marker=marker)
    return figure([points], title="Poses; large ones are the hardest tenth", height=440)


def ages(learner: ActiveLearner, bins: int = 6) -> dict[str, float]:
    """Return how many of the pool's rays have stayed for how many steps."""
    age = learner.plan.n_steps - learner.pool.born[learner.pool.born >= 0]
    edges = torch.linspace(0, max(int(age.max()), bins), bins + 1).round().long().tolist() if len(age) else [0] * (bins + 1)
    return {f"{a} to {b}": float(((age > a) & (age <= b)).sum()) for a, b in zip(edges, edges[1:], strict=False)}

"""Look at what several views say at once: the pull of each on a splat, signal against noise, windows and crossing rays."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from nsw.cameras import Cameras
from nsw.losses import loss_photometric
from nsw.methods import gaussian_splatting as gs
from nsw.methods.mvgs import Guard, corner_rays, crossing_boxes, inside
from nsw.models.gaussians import Gaussians
from nsw.models.parts import joined
from nsw.renderers import splat_marks as marks
from nsw.renderers.splats import render_view
from nsw.scenes.scene import Scene

ORANGE, BLUE = (0.84, 0.37, 0.0), (0.34, 0.71, 0.91)  # told apart with every common form of colour blindness


def pulls(gaussians: Gaussians, scene: Scene, which: str = "train", most: int = 50_000) -> Float[Tensor, "V N 3"]:
    """Return where each view of a split alone wants every splat's centre to go: minus the gradient of its loss.

    Args:
        most: of more splats, so many that are evenly picked stand for all; a gradient a view and splat is too many numbers.
    """
    frames, device, n = scene.frames(which), gaussians.means.device, len(gaussians)
    picked = torch.linspace(0, n - 1, min(n, most), device=device).round().long()
    found = []
    for frame in frames.tolist():
        render = render_view(gaussians, scene.views([frame]), depth=False)
        target = scene.targets([frame], device=device)
        (gradient,) = torch.autograd.grad(loss_photometric(render.rgb, target), [gaussians.means])
        found.append(-gradient[picked])
    return torch.stack(found)


def agreement(steps: Float[Tensor, "B P"], wanted: Float[Tensor, "P"]) -> float:
    r"""Return how well steps point where something else wants to go: the mean cosine, 1 for the same way and 0 for none.

    $$\frac1B \sum_b \frac{u_b \cdot w}{\|u_b\|\,\|w\|}$$
    """
    return float(torch.nn.functional.cosine_similarity(steps, wanted[None], dim=1).mean())


def adam_steps(draws: Float[Tensor, "B P"], beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-15) -> Float[Tensor, "B P"]:
    r"""Return the steps, at a learning rate of 1, that Adam makes of one gradient after another.

    $$m \leftarrow \beta_1 m + (1 - \beta_1)\,g, \qquad v \leftarrow \beta_2 v + (1 - \beta_2)\,g^2, \qquad
    u_t = \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}$$  (Kingma and Ba 2015, algorithm 1)
    """
    m, v, steps = torch.zeros_like(draws[0]), torch.zeros_like(draws[0]), []
    for t, g in enumerate(draws, start=1):
        m, v = torch.lerp(g, m, beta1), torch.lerp(g.square(), v, beta2)
        steps.append(m / (1 - beta1**t) / ((v / (1 - beta2**t)).sqrt() + eps))
    return torch.stack(steps)


def batch_sums(per_view: Float[Tensor, "V P"], n_views: int, n_batches: int, seed: int = 0) -> Float[Tensor, "B P"]:
    """Return the summed gradients of the first n_batches steps that training would take, n_views at a time."""
    batches = [gs.frames_at(step, len(per_view), seed, n_views) for step in range(n_batches)]
    return torch.stack([per_view[rows].sum(dim=0) for rows in batches])


def near_misses(n: int = 40) -> list[tuple[Tensor, Tensor, Tensor, Tensor, float]]:
    """Return made-up arguments of a `Guard`, n pairs each, of which it keeps some and refuses some for each of its reasons."""
    generator = torch.Generator().manual_seed(1)
    p0, between = torch.randn(2, n, 4, 3, generator=generator).mul(torch.tensor([0.15, 0.04]).view(2, 1, 1, 1)).unbind(0)
    t0, t1 = torch.randn(2, n, 4, generator=generator).add(2.5).unbind(0)
    return [(t0, t1, p0, p0 + between, extent) for extent in (0.7, 1.0, 2.0)]


def framed(picture: Float[Tensor, "H W 3"], corners: Float[Tensor, "4 2"], scale: int = 6) -> Float[Tensor, "h w 3"]:
    """Return the picture enlarged by a whole number, with a frame around a window, as wide as one of its old pixels."""
    marked = picture.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    (left, top), (right, bottom) = (scale * corners[[0, 2]].int()).tolist()
    window = marked[top:bottom, left:right].clone()
    marked[max(top - scale, 0) : bottom + scale, max(left - scale, 0) : right + scale] = marked.new_tensor(ORANGE)
    marked[top:bottom, left:right] = window
    return marked


@torch.no_grad()
def crossings(gaussians: Gaussians, cameras: Cameras, corners: Float[Tensor, "M 4 2"], extent: float, guard: Guard) -> Gaussians:
    """Return splats that draw the corner rays, the boxes where they cross, and all centres, those inside in orange."""
    boxes = crossing_boxes(cameras, corners, extent, guard)
    chosen = inside(gaussians.means, boxes)[:, None].cpu()
    start = cameras.origins[:, None].expand(-1, 4, -1)
    end = start + 2.5 * extent * corner_rays(cameras, corners)
    parts = [marks.dots(gaussians, 0.004 * extent, torch.where(chosen, torch.tensor(ORANGE), torch.tensor([0.75, 0.75, 0.75])))]
    parts.append(marks.threads(start.reshape(-1, 3), end.reshape(-1, 3), BLUE, 0.003 * extent))
    if len(boxes):
        parts.append(marks.threads(*marks.edges(boxes), (0.0, 0.0, 0.0), 0.003 * extent))
    return joined(*parts)


@torch.no_grad()
def sphere(cameras: Cameras, centre: Float[Tensor, "3"], tau: float) -> Gaussians:
    """Return splats that draw a step's cameras on the unit sphere around the centre, joined where farther apart than tau."""
    places = torch.nn.functional.normalize(cameras.origins - centre.to(cameras.origins), dim=-1)
    n = len(places)
    balls = Gaussians.from_values(places, [[0.06] * 3] * n, [[1.0, 0, 0, 0]] * n, [0.98] * n, [[0.1, 0.1, 0.1]] * n).to(
        places.device
    )
    first, second = torch.combinations(torch.arange(n, device=places.device)).unbind(-1)
    far = (places[first] - places[second]).norm(dim=-1) > tau
    if not bool(far.any()):
        return balls
    return joined(balls, marks.threads(places[first][far], places[second][far], ORANGE, 0.012))

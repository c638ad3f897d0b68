"""NeRDF (Wu et al., ICCV 2023): what the paper adds to volume rendering, besides its basis and its network.

A network that is asked once a ray learns from a trained field, on cameras that never took a picture. The basis is in
`nsw.models.ray_basis`, the network in `nsw.models.ray_distribution`, the pixel is added up in `nsw.renderers.whole_rays`.
Written from the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from nsw.cameras import Cameras, Rays
from nsw.cameras import random_rays as any_rays
from nsw.kernels.occupancy import ray_aabb_intersect
from nsw.kernels.volume import render_weight_from_density
from nsw.losses import loss_mse
from nsw.methods import nerf
from nsw.models.field import Field
from nsw.renderers.volume import RayRender

GREY, VARIANCE = 0.5, 1 / 12  # of each channel of random backgrounds, even in [0, 1]


class Answer(Protocol):
    """What a teacher's renderer returns: colours [R, 3] over black, and the transmittance [R] behind the last sample."""

    rgb: Float[Tensor, "R 3"]
    left: Float[Tensor, "R"]


@dataclass(frozen=True)
class Lesson:
    """What a teacher says about R rays.

    Attributes:
        rgb: [R, 3] colour times opacity.
        alpha: [R] opacity in [0, 1].
        densities: [R, S] its density at the positions that were asked for, 1 / world unit.
    """

    rgb: Float[Tensor, "R 3"]
    alpha: Float[Tensor, "R"]
    densities: Float[Tensor, "R S"]

    def over(self, background: float | Float[Tensor, "R 3"]) -> Float[Tensor, "R 3"]:
        """Return the colours in front of a background."""
        return self.rgb + (1 - self.alpha)[:, None] * background


def boxed_cameras(cameras: Cameras, n: int, generator: torch.Generator) -> Cameras:
    """Return n cameras that nobody took a picture from: each somewhere between the given ones.

    Centres are uniform in the bounding box of the given centres, viewing axes uniform in the bounding box of theirs, then of
    unit length (NeRDF's online view sampling). Pictures stand as upright as the given ones do on average.

    Args:
        generator: on the cameras' device.
    """
    poses, device = cameras.world_from_cam, cameras.Ks.device

    def between(values: Tensor) -> Tensor:
        low, high = values.amin(0), values.amax(0)
        return low + (high - low) * torch.rand(n, 3, generator=generator, device=device)

    down = poses[:, :3, 1].mean(0).expand(n, 3)
    return _upright(cameras, between(poses[:, :3, 3]), between(poses[:, :3, 2]), down)


def blended_cameras(cameras: Cameras, n: int, generator: torch.Generator) -> Cameras:
    """Return n cameras, each a random mixture of three of the given ones: centre and axis are mixed with the same shares.

    Where the axes turn as the centres move, as on a dome, a camera of `boxed_cameras` may look past the scene.
    """
    poses, device = cameras.world_from_cam, cameras.Ks.device
    three = torch.randint(len(cameras), (n, 3), generator=generator, device=device)
    shares = -torch.rand(n, 3, generator=generator, device=device).clamp_min(1e-12).log()
    shares = (shares / shares.sum(-1, keepdim=True))[..., None]
    return _upright(cameras, *((shares * poses[three][..., :3, column]).sum(1) for column in (3, 2, 1)))


def _upright(cameras: Cameras, centres: Tensor, forward: Tensor, down: Tensor) -> Cameras:
    """Return cameras at `centres` that look `forward`, with `down` downwards, and the first given one's intrinsics."""
    forward = normalize(forward, dim=-1)
    right = normalize(torch.linalg.cross(down, forward), dim=-1)
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward], dim=-2)
    cam_from_world = torch.eye(4, device=centres.device).repeat(len(centres), 1, 1)
    cam_from_world[:, :3, :3] = rotation
    cam_from_world[:, :3, 3] = -(rotation @ centres[..., None])[..., 0]
    return replace(cameras, cam_from_world=cam_from_world, Ks=cameras.Ks[:1].expand(len(centres), -1, -1))


def random_rays(cameras: Cameras, n_rays: int, generator: torch.Generator, aabb: Float[Tensor, "2 3"] | None = None) -> Rays:
    """Return rays through random pixels of random ones of these cameras.

    Args:
        aabb: rays that miss this box are left out; there are then fewer than `n_rays`.
    """
    rays, _ = any_rays(cameras, n_rays, generator)
    return rays if aabb is None else rays[ray_aabb_intersect(rays.origins, rays.directions, aabb.reshape(1, 6))[2][:, 0]]


@torch.no_grad()
def ask(teacher: Field, render: Callable[[Rays], Answer], rays: Rays, t: Float[Tensor, "R S"]) -> Lesson:
    """Return what a teacher says about rays; no gradient flows into it.

    Args:
        render: the teacher's renderer.
        t: distances at which its density is asked: those at which the student adds up its own.
    """
    points = rays.origins[:, None] + t[..., None] * rays.directions[:, None]
    shown = render(rays)
    return Lesson(shown.rgb, 1 - shown.left, teacher.density(points.view(-1, 3)).view(t.shape))


def learning_rate(step: int, n_steps: int, start: float, warm_up: int = 30) -> float:
    """Return the learning rate of a step: a linear rise over the first steps, then a fall to a tenth.

    A student begins as fog of the wrong colours. At full rate the first steps clear it away altogether, and nothing comes back.

    >>> round(learning_rate(0, 300, 3e-3), 6), round(learning_rate(300, 300, 3e-3), 6)
    (0.0001, 0.0003)
    """
    return nerf.learning_rate(step, n_steps, start) * min(1.0, (step + 1) / warm_up)


def constraint_weight(step: int, n_steps: int, first: float = 0.5, last: float = 0.1) -> float:
    """Return the weight of the volume constraint at a step; it falls by equal factors. First depth is settled, then colour.

    The paper has 0.1 throughout, over a thousand times as many steps.

    >>> [round(constraint_weight(step, 100), 3) for step in (0, 50, 100)]
    [0.5, 0.224, 0.1]
    """
    return first * (last / first) ** (step / n_steps)


def profile(values: Float[Tensor, "R S"]) -> Float[Tensor, "R S"]:
    r"""Return each ray's values scaled to length one, $v / \lVert v\rVert_2$, and zero where there is nothing."""
    return values / values.norm(dim=-1, keepdim=True).clamp_min(1e-3)


def loss_profile(ours: Float[Tensor, "R S"], theirs: Float[Tensor, "R S"], alpha: Float[Tensor, "R"]) -> Float[Tensor, ""]:
    r"""Return how far the shapes of two functions along each ray are apart, whatever their sizes.

    $$L = \overline{\alpha_t \Big(\frac{v_s}{\lVert v_s\rVert_2} - \frac{v_t}{\lVert v_t\rVert_2}\Big)^2}$$
    (NeRDF's volume density constraint, without the opacity.)

    Args:
        alpha: opacity of the teacher's rays: an empty ray has no shape, and its noise should teach nothing.
    """
    return (alpha[:, None] * (profile(ours) - profile(theirs)).square()).mean()


def loss_visible(out: RayRender, lesson: Lesson) -> Float[Tensor, ""]:
    r"""Return how far the shapes of student's and teacher's compositing weights are apart.

    The paper compares densities. A teacher's density inside of things changes no pixel and may be anything, also larger than
    all of what is seen; its weights $w_i = T_i (1 - e^{-\sigma_i \delta_i})$ are zero there.
    """
    theirs = render_weight_from_density(out.t_starts, out.t_ends, lesson.densities)[0]
    return loss_profile(out.weights, theirs, lesson.alpha)


def loss_opacity(out: RayRender, lesson: Lesson, variance: float = VARIANCE) -> Float[Tensor, ""]:
    r"""Return what random backgrounds add to the colour error before their mean, in closed form.

    Before a background b, student and teacher differ by $d + e\,b$: by d over black, and by $e = \alpha_t - \alpha_s$ in how
    much shines through. Of backgrounds with the mean $\mu$ and the variance v the squared difference is on average
    $$\mathrm{E}_b\big[(d + e\,b)^2\big] = (d + e\,\mu)^2 + v\,e^2.$$
    The first term is the colour error before $\mu$, the second one is returned. Drawn backgrounds ask for the same on average, but
    each step then differs by chance.

    Args:
        variance: of each channel of the backgrounds.
    """
    return variance * loss_mse(out.alpha, lesson.alpha)


def loss_terms(
    out: RayRender, lesson: Lesson, background: float | Float[Tensor, "R 3"], weight: float = 0.5
) -> dict[str, Float[Tensor, ""]]:
    """Return the colour error against the teacher, and where the student has densities, opacity's and the volume constraint.

    Args:
        out: the student's rays, at the positions of the lesson and over `background`.
        weight: of the constraint; 0 leaves it out.
    """
    terms = {"colour": loss_mse(out.rgb, lesson.over(background))}
    if out.densities.numel():
        terms["opacity"] = loss_opacity(out, lesson)
        terms |= {"density": weight * loss_visible(out, lesson)} if weight else {}
    return terms

"""Deblurring 3D Gaussian Splatting (Lee, Lee, Sun, Ali, Park, ECCV 2024): explain the blur while training, leave it out after.

What the paper adds to Gaussian splatting: a small network enlarges the splats (defocus) or moves M copies of them whose
pictures are averaged (a shaking camera), the result is compared with the blurred photograph, and the splats themselves have
to be sharp. Because blur ruins points from structure from motion, points are added once, and pruning spares what is far.
The training is in `deblurring_3dgs_fit.py`.

Two things are added. Growing splats that are opaque and overlap does not blur a surface, so they may be thinned; and copies,
which the paper keeps for shakes, explain a lens as well, since each point of it sees the scene from a place of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nsw.cameras import Cameras
from nsw.models.blur_mlp import BlurMLP
from nsw.models.gaussians import Gaussians, Seen
from nsw.models.learned_exposures import LearnedExposures
from nsw.models.neighbours import nearest
from nsw.renderers.splats import render_view


@dataclass(frozen=True)
class Blur:
    """How the network's numbers change the splats; the defaults are the paper's for real defocus.

    Attributes:
        scale_weight: lambda_s, how far a number moves a factor from 1.
        place_weight: lambda_p, world units of a number of 1.
        least, most: smallest and largest factor; below 1 the blur would be able to sharpen.
        turn: also multiply the quaternions, as the paper does. That turns splats, which can undo what they have learned.
        thin: let a splat that grows become more transparent, as light that is spread over more pixels does. The paper does not.
        light: average light, not display values. A sensor does; the paper does not.
        start: step from which the blur is in use.
        lr: Adam's rate for the network, which falls to a tenth at the last step.
    """

    scale_weight: float = 0.01
    place_weight: float = 0.01
    least: float = 1.0
    most: float = 1.1
    turn: bool = True
    thin: bool = False
    light: bool = False
    start: int = 0
    lr: float = 1e-3


def factors(raw: Float[Tensor, "*n"], weight: float, most: float = 1.1, least: float = 1.0) -> Float[Tensor, "*n"]:
    r"""Return by how much sizes are multiplied: never below 1, so that a blur cannot sharpen.

    $$f = \mathrm{clip}\big(\lambda\,\delta + (1 - \lambda),\ 1,\ f_{\max}\big)$$  (Lee et al. 2024, section 3.2)

    >>> factors(torch.tensor([-5.0, 1.0, 3.0, 50.0]), 0.1, most=1.5)
    tensor([1.0000, 1.0000, 1.2000, 1.5000])
    """
    return _Clip.apply(weight * raw + (1 - weight), least, most)


class _Clip(torch.autograd.Function):
    """A clip whose gradient stops only where it points outwards; with the usual one a factor that touches 1 stays there."""

    @staticmethod
    def forward(ctx, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.limits = low, high
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,), (low, high) = ctx.saved_tensors, ctx.limits
        outwards = ((x <= low) & (grad > 0)) | ((x >= high) & (grad < 0))
        return grad.masked_fill(outwards, 0.0), None, None


def thinned(opacities: Float[Tensor, "N"], old: Float[Tensor, "N 3"], new: Float[Tensor, "N 3"]) -> Float[Tensor, "N"]:
    r"""Return opacities of splats that have grown: their optical depth is spread over the larger area.

    $$1 - \hat o = (1 - o)^{A / \hat A}, \qquad A = s_1 s_2 \text{ of the two longest axes}$$

    >>> thinned(torch.tensor([0.75]), torch.ones(1, 3), torch.tensor([[2.0, 1.0, 1.0]]))
    tensor([0.5000])
    """
    area = lambda s: s.prod(dim=1) / s.amin(dim=1)  # noqa: E731
    return 1 - (1 - opacities).clamp_min(1e-4) ** (area(old) / area(new)).clamp_max(1)


def to_light(display: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Return linear light of sRGB values, with a finite gradient at 0."""
    return torch.where(display <= 0.04045, display / 12.92, ((display.clamp_min(0.04) + 0.055) / 1.055) ** 2.4)


def to_display(light: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Return sRGB values of linear light, with a finite gradient at 0.

    >>> to_display(torch.tensor([0.0, 0.5, 1.0]))
    tensor([0.0000, 0.7354, 1.0000])
    """
    return torch.where(light <= 0.0031308, light * 12.92, 1.055 * light.clamp_min(0.003) ** (1 / 2.4) - 0.055)


def copies(network: BlurMLP, gaussians: Gaussians, camera: Cameras, blur: Blur) -> list[Seen]:
    r"""Return the M + 1 sets of splats whose pictures, averaged, are the blurred picture; M = 0 is defocus.

    $$\hat s = s \odot f_s, \quad \hat q = q \odot f_q, \quad \hat\mu^{(m)} = \mu + \lambda_p\,\delta\mu^{(m)}$$

    The last set stays in place: it takes its factors, and no shift.
    """
    limits = blur.scale_weight, blur.most, blur.least
    sizes, turns, places = network(gaussians, camera.origins[0].to(gaussians.means))
    scales = gaussians.activated_scales * factors(sizes, *limits)
    quats = gaussians.quats * (factors(turns, *limits) if blur.turn else torch.ones_like(turns))
    means = [*(gaussians.means + blur.place_weight * places), gaussians.means]
    return [changed(gaussians, blur, *values) for values in zip(means, scales, quats, strict=True)]


def camera_copies(learned: LearnedExposures, gaussians: Gaussians, camera: Cameras, blur: Blur) -> list[Seen]:
    r"""Return sets of splats as `copies` does, by the physics of a camera: a lens adds variance, a path moves all splats alike.

    $$\hat s^2 = s^2 + \tfrac14 A^2 (1 - z / z_f)^2, \qquad \hat\mu^{(m)} = \text{the place before the camera at moment } m$$
    """
    pose, centre = camera.cam_from_world[0].to(gaussians.means), camera.origins[0].to(gaussians.means)
    means_cam = gaussians.means @ pose[:3, :3].T + pose[:3, 3]
    scales, quats = gaussians.activated_scales, gaussians.quats
    if learned.lens and learned.moments == 0:
        wide = (scales.square() + learned.spread(centre, means_cam[:, 2].detach())[:, None]).sqrt()
        return [changed(gaussians, blur, gaussians.means, wide, quats)]
    places = (learned.displaced(centre, means_cam) - pose[:3, 3]) @ pose[:3, :3]
    return [changed(gaussians, blur, means, scales, quats) for means in places]


def changed(gaussians: Gaussians, blur: Blur, means: Tensor, scales: Tensor, quats: Tensor) -> Seen:
    """Return splats with other places, sizes and turns, and with what these do to opacity."""
    opacities = gaussians.activated_opacities
    opacities = thinned(opacities, gaussians.activated_scales, scales) if blur.thin else opacities
    return Seen(means, quats, scales, opacities, gaussians.sh0, gaussians.sh, gaussians.settings)


def blurred_view(sets: list, camera: Cameras, blur: Blur, background: Tensor | float | None = None, sh_degree: int = 3) -> tuple:
    r"""Return the mean picture [1, H, W, 3] of some sets of splats and the rasterizer's dictionaries.

    $$b = \gamma\Big(\tfrac1{M+1} \textstyle\sum_m \gamma^{-1}(c_m)\Big), \quad \gamma \text{ sRGB's curve, or nothing}$$
    """
    options = dict(background=background, sh_degree=sh_degree, depth=False)
    renders = [render_view(splats, camera, **options) for splats in sets]
    pictures, metas = torch.stack([render.rgb for render in renders]), [render.extras["meta"] for render in renders]
    if blur.light and len(sets) > 1:
        return to_display(to_light(pictures).mean(0)), metas
    return pictures.mean(0), metas


@torch.no_grad()
def extra_points(gaussians: Gaussians, n: int, reach: float, k: int = 4, generator: torch.Generator | None = None) -> tuple:
    """Return places and colours of new points: random in the splats' box, kept where one of k neighbours is within `reach`.

    Colours are the neighbours' mean, weighted by inverse distance. The box leaves out the ten outermost splats on each side.
    """
    means = gaussians.means.cpu()
    ordered = means.sort(dim=0).values
    margin = min(10, (len(means) - 1) // 2)
    low, high = ordered[margin], ordered[-1 - margin]
    points = low + torch.rand(n, 3, generator=generator) * (high - low)
    distance, index = nearest(points.double(), means, k)
    weight = (distance < reach) / distance.clamp_min(1e-6)
    kept = weight.sum(1) > 0
    weight = (weight / weight.sum(1, keepdim=True).clamp_min(1e-12))[kept].float()
    rgb = (weight[..., None] * gaussians.base_rgb.cpu()[index[kept]]).sum(1)
    return points[kept], rgb


def spared(z: Float[Tensor, "N"], lowest: float, most: float = 3.0) -> Float[Tensor, "N"]:
    r"""Return the opacity below which each splat is removed: the farther it is, the lower.

    $$\tau_k = \tau / w(z_k), \quad w \text{ linear from 1 at the nearest to } w_{\max} \text{ at the farthest}$$

    >>> spared(torch.tensor([1.0, 2.0, 3.0]), 0.06)
    tensor([0.0600, 0.0300, 0.0200])
    """
    share = (z - z.min()) / (z.max() - z.min()).clamp_min(1e-12)
    return lowest / (1 + (most - 1) * share)

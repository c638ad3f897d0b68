"""Look at Deblurring 3DGS: how sharp a picture is, what a lens or a shake does to splats, and what the network took it for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nsw.cameras import Cameras, project
from nsw.methods.deblurring_3dgs import Blur, blurred_view, changed, copies, to_display, to_light
from nsw.models.blur_mlp import BlurMLP
from nsw.models.gaussians import Gaussians
from nsw.models.learned_exposures import LearnedExposures
from nsw.renderers.splat_probe import recoloured
from nsw.renderers.splats import render_view
from nsw.scenes.exposures import Exposure, exposures, on_disc, poses
from nsw.scenes.scene import Scene

LUMA = (0.299, 0.587, 0.114)


def sharpness(pictures: Float[Tensor, "n H W 3"]) -> float:
    r"""Return the variance of the Laplacian of the grey pictures, the mean over them: blur takes edges, and this falls.

    >>> sharpness(torch.ones(1, 8, 8, 3))
    0.0
    """
    grey = pictures.double() @ pictures.new_tensor(LUMA).double()
    inner = grey[:, 1:-1, 1:-1]
    laplacian = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:] - 4 * inner
    return float(laplacian.flatten(1).var(dim=1).mean())


def unsharp(pictures: Float[Tensor, "n H W 3"], amount: float = 1.0, sigma: float = 1.0) -> Float[Tensor, "n H W 3"]:
    r"""Return pictures sharpened afterwards, $p + a\,(p - G_\sigma * p)$, in [0, 1]: what needs no model of the blur."""
    from scipy.ndimage import gaussian_filter

    soft = torch.from_numpy(gaussian_filter(pictures.numpy(), (0, sigma, sigma, 0), mode="nearest"))
    return (pictures + amount * (pictures - soft)).clamp(0, 1)


def exposed(aperture: float, focus: float, shake: float) -> Exposure:
    """Return a lens, or, as soon as the camera shakes, a pinhole on a bent way of about 2 x shake world units."""
    shift = ((shake, 0.3 * shake, 0.0), (0.0, 0.4 * shake, 0.0))
    return Exposure(shift=shift) if shake else Exposure(aperture, focus)


def lens_cameras(camera: Cameras, exposure: Exposure, n: int = 24) -> Cameras:
    """Return pinholes spread evenly over a thin lens, each shifted such that the plane in focus stays where it is."""
    offset = exposure.aperture * on_disc(n).to(camera.Ks)
    cam_from_world, Ks = camera.cam_from_world.repeat(n, 1, 1), camera.Ks.repeat(n, 1, 1)
    cam_from_world[:, :2, 3] -= offset
    Ks[:, :2, 2] += Ks[:, [0, 1], [0, 1]] * offset / exposure.focus
    return replace(camera, cam_from_world=cam_from_world, Ks=Ks)


@torch.no_grad()
def photographed(splats: Gaussians, camera: Cameras, exposure: Exposure, n: int = 24) -> Float[Tensor, "H W 3"]:
    """Return the picture that a camera with a lens, or one that shakes, takes of sharp splats; light is averaged."""
    shaken = torch.linalg.inv(poses(exposure, camera.world_from_cam[0].cpu(), n)).to(camera.Ks)
    cameras = replace(camera, cam_from_world=shaken, Ks=camera.Ks.repeat(len(shaken), 1, 1))
    if exposure.aperture:
        cameras = lens_cameras(camera, exposure, n)
    return to_display(to_light(render_view(splats, cameras, depth=False).rgb).mean(0)).cpu()


@torch.no_grad()
def explained(network: BlurMLP, splats: Gaussians, camera: Cameras, blur: Blur, strength: float = 1.0) -> Float[Tensor, "H W 3"]:
    """Return a picture with the learned blur turned up or down: 0 is the sharp one, 1 the training view."""
    sets = copies(network, splats, camera, blur)
    scales = splats.activated_scales
    part = lambda a, b: torch.lerp(a, b, strength)  # noqa: E731
    sets = [
        changed(
            splats,
            blur,
            part(splats.means, x.means),
            scales * (x.activated_scales / scales) ** strength,
            part(splats.quats, x.quats),
        )
        for x in sets
    ]
    return blurred_view(sets, camera, blur)[0][0].cpu()


@torch.no_grad()
def growth_map(network: BlurMLP, splats: Gaussians, camera: Cameras, blur: Blur) -> Float[Tensor, "H W"]:
    """Return a picture of the splats in which brightness is the factor on their sizes for this camera; 1 where nothing is."""
    factor = (copies(network, splats, camera, blur)[-1].activated_scales / splats.activated_scales).mean(1)
    grey = ((factor - 1) / (blur.most - 1)).clamp(0, 1)[:, None].expand(-1, 3)
    return 1 + (blur.most - 1) * render_view(recoloured(splats, grey), camera, background=0.0).rgb[0, ..., 0].cpu()


def true_lenses(scene: Scene, moments: int = 0) -> LearnedExposures:
    """Return the lenses that took the training views of a bundled scene, in the place of learned ones."""
    told, frames = exposures(scene), scene.splits["train"].tolist()
    lenses = LearnedExposures(scene.views("train").origins, moments)
    with torch.no_grad():
        lenses.log_aperture.copy_(torch.tensor([told[i].aperture for i in frames]).log())
        lenses.inverse_focus.copy_(1 / torch.tensor([told[i].focus for i in frames]))
    return lenses


@torch.no_grad()
def learned_discs(
    network: nn.Module, splats: Gaussians, camera: Cameras, blur: Blur, groups: int = 8, explain: Callable = copies
) -> tuple[Float[Tensor, "G"], Float[Tensor, "G"]]:
    r"""Return camera z and the learned diameter of blur in pixels, for groups of visible splats from near to far.

    A disc of diameter c has the variance $c^2 / 16$ along an axis, so $c = 4 \sqrt v$ with v the mean over two axes of the
    variance of the copies' places in the picture, plus what their growth adds.
    """
    sets, seen = explain(network, splats, camera, blur), splats.activated_opacities > 0.1
    z, s = project(camera, splats.means[seen])[1][0], splats.activated_scales[seen]
    places = torch.stack([project(camera, x.means[seen])[0][0] for x in sets])
    grown = torch.stack([x.activated_scales[seen].square() - s.square() for x in sets]).mean((0, 2))
    variance = places.var(dim=0, correction=0).mean(1) + grown * (camera.Ks[0, 0, 0] / z).square()
    order = z.argsort().chunk(groups)
    return (torch.stack([value[i].median() for i in order]).cpu() for value in (z, 4 * variance.sqrt()))


@torch.no_grad()
def learned_path(network: BlurMLP, splats: Gaussians, camera: Cameras, blur: Blur) -> Float[Tensor, "K 2"]:
    """Return where the copies stand in the picture, in pixels from their middle and in the order of their way."""
    seen = splats.activated_opacities > 0.1
    places = torch.stack([project(camera, x.means[seen])[0][0].mean(0) for x in copies(network, splats, camera, blur)])
    return in_order(places.cpu())


def true_path(exposure: Exposure, camera: Cameras, points: Float[Tensor, "P 3"], n: int = 16) -> Float[Tensor, "n 2"]:
    """Return how the picture of the points moved while it was taken, in pixels from the middle of the way."""
    moments = torch.linalg.inv(poses(exposure, camera.world_from_cam[0].cpu(), n))
    places = [project(replace(camera, cam_from_world=m[None], Ks=camera.Ks.cpu()), points)[0][0].mean(0) for m in moments]
    return torch.stack(places) - torch.stack(places).mean(0)


def in_order(places: Float[Tensor, "K 2"]) -> Float[Tensor, "K 2"]:
    """Return places about their mean, sorted along their longest direction, which starts on the left."""
    centred = places - places.mean(0)
    direction = torch.linalg.svd(centred, full_matrices=False).Vh[0]
    direction = direction * torch.where(direction[0] < 0, -1.0, 1.0)
    return centred[(centred @ direction).argsort()]


def unexplained(photographs: Float[Tensor, "n H W 3"]) -> float:
    r"""Return what one picture leaves of n photographs taken from one place, as root mean square: no blur is modelled.

    $$\min_p \sqrt{\tfrac1n \textstyle\sum_i \lVert p - b_i \rVert^2 / N}$$ is reached by their mean.

    What is 0 teaches a network nothing.

    >>> unexplained(torch.stack([torch.zeros(4, 4, 3), torch.ones(4, 4, 3)])), unexplained(torch.ones(3, 4, 4, 3))
    (0.5, 0.0)
    """
    photographs = photographs.double()  # what is equal leaves exactly nothing
    return float((photographs - photographs.mean(0)).square().mean().sqrt())


def alternating(even: Scene, odd: Scene) -> Scene:
    """Return a scene whose odd frames show the pictures of another one, taken by the same cameras."""
    is_odd = (torch.arange(len(even)) % 2 == 1)[:, None, None, None]
    return replace(even, name=f"{even.name}_and_{odd.name}", images=torch.where(is_odd, odd.images, even.images))

"""Curves for the charts of Deblurring 3DGS: learned blur beside the lens and the path that took the pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from nsw.methods.deblurring_3dgs_fit import Deblurring
from nsw.methods.deblurring_3dgs_inspect import learned_discs, learned_path, true_path
from nsw.scenes.exposures import Exposure, circle_of_confusion, exposures
from nsw.scenes.scene import Scene


def discs_of(training: Deblurring, scene: Scene, frame: int) -> tuple[Float[Tensor, "G"], Float[Tensor, "G"], Float[Tensor, "G"]]:
    """Return camera z of groups of splats from near to far, and the diameter of their blur in pixels: as learned, and true."""
    camera = scene.cameras[frame].to(training.gaussians.means.device)
    z, learned = learned_discs(training.network, training.gaussians, camera, training.blur, explain=training.explain)
    return z, learned, circle_of_confusion(exposures(scene)[frame], z, float(camera.Ks[0, 0, 0]))


def disc_curves(training: Deblurring, scene: Scene, frames: Sequence[int]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return curves (camera z, diameter of blur in pixels) of some training views, as learned and as the lens made it."""
    curves = {}
    for frame in frames:
        z, learned, true = discs_of(training, scene, frame)
        curves |= {f"view {frame}: learned": (z, learned), f"view {frame}: true": (z, true)}
    return curves


def path_curves(training: Deblurring, scene: Scene, frames: Sequence[int]) -> dict[str, Float[Tensor, "2 K"]]:
    """Return where copies stand in some training views, and how the camera really moved the picture, in pixels from the middle."""
    curves = {}
    for frame in frames:
        camera = scene.cameras[frame].to(training.gaussians.means.device)
        curves[f"view {frame}: learned"] = learned_path(training.network, training.gaussians, camera, training.blur).T
        curves[f"view {frame}: true"] = true_path(exposures(scene)[frame], camera, scene.points.xyz).T
    return curves


def profiles(pictures: Mapping[str, Float[Tensor, "H W 3"]], at: float) -> dict[str, tuple[range, Float[Tensor, "W"]]]:
    """Return curves (column, mean of the colours) along one row of some pictures, `at` of the way down."""
    return {name: (range(picture.shape[1]), picture[int(at * len(picture))].mean(-1)) for name, picture in pictures.items()}


def recovered_aperture(lens: Exposure, z: Float[Tensor, "G"], disc: Float[Tensor, "G"], focal: float) -> float:
    r"""Return the aperture that explains discs of blur best, where the focus is known: least squares, world units.

    $$A = \frac{\sum_g c_g\,u_g}{\sum_g u_g^2}, \qquad u_g = 2 f \left|\frac1{z_g} - \frac1{z_f}\right|$$

    >>> import torch
    >>> z = torch.tensor([2.0, 3.0, 5.0])
    >>> round(recovered_aperture(Exposure(focus=4.0), z, circle_of_confusion(Exposure(0.2, 4.0), z, 90.0), 90.0), 4)
    0.2
    """
    unit = circle_of_confusion(replace(lens, aperture=1.0), z, focal)
    return float((disc * unit).sum() / unit.square().sum())

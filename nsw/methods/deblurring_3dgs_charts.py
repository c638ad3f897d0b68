"""Curves and traces for the charts of Deblurring 3DGS: learned blur beside the lens and the path that took the pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nsw.methods.deblurring_3dgs_fit import ADDED, Deblurring
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

    >>> z = torch.tensor([2.0, 3.0, 5.0])
    >>> round(recovered_aperture(Exposure(focus=4.0), z, circle_of_confusion(Exposure(0.2, 4.0), z, 90.0), 90.0), 4)
    0.2
    """
    unit = circle_of_confusion(replace(lens, aperture=1.0), z, focal)
    return float((disc * unit).sum() / unit.square().sum())


def lens_figure(trained: Mapping[str, Deblurring], scene: Scene) -> dict[str, Any]:
    """Return what plotly draws of the diameter of blur in pixels, true across and learned upwards: traces and layout.

    One dot is a group of splats at one depth seen from one training view. Legends say the aperture, the mean of what each
    view would have to have; the true lenses are the line on which the dots should lie.
    """
    told, frames = exposures(scene), scene.splits["train"].tolist()
    focal, traces = float(scene.cameras.Ks[0, 0, 0]), []
    for name, training in trained.items():
        found = [discs_of(training, scene, frame) for frame in frames]
        apertures = [recovered_aperture(told[frame], z, disc, focal) for frame, (z, disc, _) in zip(frames, found, strict=True)]
        _, learned, true = (torch.cat(values).tolist() for values in zip(*found, strict=True))
        dots = dict(size=4, opacity=0.6, symbol=("circle", "diamond")[len(traces) % 2])
        about = f"{name}: aperture {sum(apertures) / len(apertures):.2f}"
        traces.append(dict(type="scatter", mode="markers", name=about, x=true, y=learned, marker=dots))
    widest = max(max(trace["x"]) for trace in traces)
    line = dict(x=[0.0, widest], y=[0.0, widest], mode="lines", line=dict(color="#444444", dash="dash"))
    opened = sum(told[frame].aperture for frame in frames) / len(frames)
    data = [*traces, dict(type="scatter", name=f"true: aperture {opened:.2f}", **line)]
    axes = dict(xaxis_title="true disc (pixels)", yaxis_title="learned disc (pixels)")
    return dict(data=data, title="Blur of all training views", **axes)


def cloud_figure(training: Deblurring) -> dict[str, Any]:
    """Return what plotly draws of the added points from above: splats before, points added, and those among them still there.

    Legends say how many there are; of many, some are drawn.
    """
    left = training.gaussians.means.detach().cpu()[(training.rows["origin"] == ADDED).cpu()]
    places = {"splats before": training.old_places, "points added": training.new_places, "of these, at the end": left}
    looks = (("#999999", 3, "circle"), ("#E69F00", 6, "diamond"), ("#0072B2", 4, "circle"))
    data = []
    for (name, xyz), (colour, size, symbol) in zip(places.items(), looks, strict=True):
        dots = dict(mode="markers", marker=dict(color=colour, size=size, symbol=symbol))
        x, y, _ = xyz[:: max(len(xyz) // 5000, 1)].T.tolist()  # no browser draws each of a million dots
        data.append(dict(type="scatter", name=f"{len(xyz)} {name}", x=x, y=y, **dots))
    axes = dict(xaxis_title="x (world units)", yaxis_title="y (world units)")
    return dict(data=data, title=f"Points added after step {training.cloud.add_at}", height=480, **axes)

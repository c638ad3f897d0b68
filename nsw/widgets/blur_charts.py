"""Charts of Deblurring 3DGS: learned blur against the true lens, and where points were added."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from nsw.methods.deblurring_3dgs_charts import discs_of, recovered_aperture
from nsw.methods.deblurring_3dgs_fit import ADDED, Deblurring
from nsw.scenes.exposures import exposures
from nsw.scenes.scene import Scene
from nsw.widgets.charts import COLOURS, figure, some_of


def lens_figure(trained: Mapping[str, Deblurring], scene: Scene):
    """Return a chart of the diameter of blur in pixels, true across and learned upwards.

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
    return figure(data, title="Blur of all training views", **axes)


def cloud_figure(training: Deblurring):
    """Return a chart of the added points from above: splats before, points added, and those among them still there.

    Legends say how many there are; of many, some are drawn.
    """
    left = training.gaussians.means.detach().cpu()[(training.rows["origin"] == ADDED).cpu()]
    places = {"splats before": training.old_places, "points added": training.new_places, "of these, at the end": left}
    looks = (("#999999", 3, "circle"), ("#E69F00", 6, "diamond"), (COLOURS[0], 4, "circle"))
    data = []
    for (name, xyz), (colour, size, symbol) in zip(places.items(), looks, strict=True):
        dots = dict(mode="markers", marker=dict(color=colour, size=size, symbol=symbol))
        x, y, _ = some_of(xyz).T.tolist()
        data.append(dict(type="scatter", name=f"{len(xyz)} {name}", x=x, y=y, **dots))
    axes = dict(xaxis_title="x (world units)", yaxis_title="y (world units)", legend_itemsizing="constant")
    return figure(data, title=f"Points added after step {training.cloud.add_at}", height=480, **axes)

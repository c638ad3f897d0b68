"""Time the pictures that a viewer asks for while someone turns it: `python tests/bench/bench_viewer.py`.

A ball of splats through `nsw.renderers.splats.render_view` without gradients, as `nsw.widgets.viewer` calls it, from a new camera
every time. Once with one colour a splat, once with harmonics of degree 3; and while another thread trains 10,000 splats.

Then the viewer of notebook 03 at its laptop size: it turns around the very splats that are being trained meanwhile.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import threading
import time

import torch
from bench_rasterization import ball_scene, machine
from peers import VIEWER
from report import write

import nsw.scenes
from nsw.cameras import Cameras
from nsw.methods import gaussian_splatting
from nsw.methods.density_control import DensityControl
from nsw.models.gaussians import Gaussians, GaussiansSettings
from nsw.renderers.splats import render_view
from nsw.widgets.inline_viewer import Viewer

TURNS = 60
ASKED = (10, 30, 1000)  # pictures a second that someone who turns the viewer asks for, at most
N_START, N_MOST, N_STEPS, WIDTH, VIEWER_WIDTH = 1500, 8000, 700, 128, 256  # notebook 03 at laptop size


def gaussians(n: int, width: int, height: int, sh_degree: int) -> tuple[Gaussians, Cameras]:
    """Return the ball as a model, and cameras that turn around it."""
    means, quats, scales, opacities, colors, viewmats, Ks = ball_scene(n, width, height)
    coefficients = torch.zeros(n, (sh_degree + 1) ** 2, 3)
    coefficients[:, 0] = (colors - 0.5) / 0.2820948
    coefficients[:, 1:] = 0.05 * torch.randn(n, (sh_degree + 1) ** 2 - 1, 3, generator=torch.Generator().manual_seed(1))
    model = Gaussians(GaussiansSettings(sh_degree=sh_degree))
    raw = dict(means=means, scales=scales.log(), quats=quats, opacities=torch.logit(opacities))
    model.load_state_dict(raw | dict(sh0=coefficients[:, :1], shN=coefficients[:, 1:]))
    angle = torch.linspace(0, 2 * torch.pi, TURNS + 1)[:-1]
    turned = viewmats.repeat(TURNS, 1, 1)
    turned[:, 0, 0], turned[:, 0, 2], turned[:, 2, 0], turned[:, 2, 2] = angle.cos(), angle.sin(), -angle.sin(), angle.cos()
    return model, Cameras(turned, Ks.repeat(TURNS, 1, 1), width, height)


def turn_around(n: int, width: int, height: int, sh_degree: int) -> tuple[float, float]:
    """Return the median of the pictures' milliseconds, and what 95 % of them stay below."""
    model, cameras = gaussians(n, width, height, sh_degree)
    times = []
    with torch.no_grad():
        render_view(model, cameras[0])
        for turn in range(TURNS):
            began = time.perf_counter()
            render_view(model, cameras[turn])
            times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times), sorted(times)[int(0.95 * TURNS)]


@contextlib.contextmanager
def training(n: int = 10_000, width: int = 200):
    """Train splats in another thread meanwhile."""
    scene, stop = nsw.scenes.load("shelf", size=width), threading.Event()
    splats = Gaussians.from_points(gaussian_splatting.starting_points(scene, n), sh_degree=2)
    trained = gaussian_splatting.Training(splats, scene.scale, 10_000)
    steps = itertools.takewhile(lambda _: not stop.is_set(), range(10_000))
    thread = threading.Thread(target=gaussian_splatting.fit, args=(trained, scene, steps))
    thread.start()
    try:
        time.sleep(1.0)
        yield
    finally:
        stop.set()
        thread.join()


def notebook_run(asked: int) -> tuple[float, list[float]]:
    """Train as notebook 03 does at laptop size, and turn its viewer; return the training's seconds and each picture's ms."""
    scene, drawn = nsw.scenes.load("toybox", size=WIDTH), []
    control = DensityControl().for_budget(N_STEPS, max_splats=N_MOST, every=50, grow_gradient=2e-4)
    splats = Gaussians.from_points(gaussian_splatting.starting_points(scene, N_START), sh_degree=2)
    trained = gaussian_splatting.Training(splats, scene.scale, N_STEPS, control=control)
    view = Viewer(lambda cameras: render_view(splats, cameras), scene.views("test")[0], scene.aabb.mean(0), VIEWER_WIDTH)
    view.picture()
    thread = threading.Thread(target=gaussian_splatting.fit, args=(trained, scene, range(N_STEPS)))
    began = time.perf_counter()
    thread.start()
    while asked and thread.is_alive():
        start = time.perf_counter()
        view.control.orbit(0.05, 0.0)
        view.picture(coarse=True)
        spent = time.perf_counter() - start
        drawn.append(1e3 * spent)
        time.sleep(max(0.0, 1.0 / asked - spent))
    thread.join()
    return time.perf_counter() - began, drawn


def while_it_trains() -> list[str]:
    """Return the table of the notebook's training beside its viewer."""
    heads = ["pictures asked for, a second", "drawn, a second", "median, ms", "95 % below, ms", "training, s", "slower by"]
    about = f"Notebook 03 at laptop size: up to {N_MOST} splats, {WIDTH} px, {N_STEPS} steps; viewer of {VIEWER_WIDTH} px."
    lines = ["", about, "", "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    notebook_run(1)
    alone, _ = notebook_run(0)
    lines.append(f"| 0 | 0 | - | - | {alone:.1f} | - |")
    for asked in ASKED:
        seconds, drawn = notebook_run(asked)
        shown = f"{len(drawn) / seconds:.0f} | {statistics.median(drawn):.1f} | {sorted(drawn)[int(0.95 * len(drawn))]:.1f}"
        lines.append(f"| {asked} | {shown} | {seconds:.1f} | {100 * (seconds / alone - 1):.0f} % |")
    print("\n".join(lines))
    return lines


def main() -> None:
    heads = ["splats, picture", "harmonics", "beside it", "median, ms", "95 % below, ms", "at most"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    print("\n".join(lines))
    for load, limit in VIEWER.items():
        for sh_degree, beside in ((0, None), (3, None), (3, training)):
            with beside() if beside else contextlib.nullcontext():
                middle, late = turn_around(*load, sh_degree)
            shown = [f"{load[0]}, {load[1]}x{load[2]}", sh_degree, "training" if beside else "-"]
            shown += [f"{middle:.1f}", f"{late:.1f}", "-" if beside else f"{limit:.0f}"]
            lines.append("| " + " | ".join(map(str, shown)) + " |")
            print(lines[-1], flush=True)
    lines += while_it_trains()
    write("viewer", "Pictures of the viewer", machine(), lines)


if __name__ == "__main__":
    main()

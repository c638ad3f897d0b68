"""Where the time of a training step goes, part by part: `python tests/bench/bench_step.py`.

Gaussians are trained with density control on the bundled shelf at three sizes; every kernel and every other part of the step is
timed, and what remains is torch's and Python's own. Parts are medians over steps; density control acts once in many steps and is
averaged over all.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections import defaultdict

from bench_rasterization import machine
from report import write

import nsw.scenes
from nsw.kernels import engine_fast, rasterize_autograd, ssim
from nsw.methods import gaussian_splatting
from nsw.methods.density_control import DensityControl
from nsw.models.gaussians import Gaussians

STEPS = 200
SIZES = ((5_000, 100), (10_000, 100), (20_000, 200))  # splats, width
PARTS = {
    "projection": ("project_forward", "project_backward"),
    "harmonics": ("shade_forward", "shade_backward"),
    "sort": ("sort_by_depth",),
    "lists": ("list_hits", "add_up", "fill_lists"),
    "rasterize": ("rasterize_forward", "rasterize_backward"),
    "gather": ("gather_gradients",),
    "loss": ("loss",),
    "optimiser": ("adam",),
    "strategy": ("accumulate", "refine"),
    "picture and rays": ("training_view",),
}


class Watch:
    """Milliseconds of each part, step by step."""

    def __init__(self) -> None:
        self.now: dict[str, float] = defaultdict(float)
        self.steps: list[dict[str, float]] = []

    def timed(self, function, name: str | None = None):
        """Return the function with its time added to `name`, or to the name of the kernel that is its first argument."""

        @functools.wraps(function)
        def call(*arguments, **options):
            began = time.perf_counter()
            out = function(*arguments, **options)
            self.now[name or arguments[0].__name__] += 1e3 * (time.perf_counter() - began)
            return out

        return call

    def watch(self, module, *names: str, label: str | None = None) -> None:
        for name in names:
            by_kernel = name in ("run_shared", "run_shares")
            setattr(module, name, self.timed(getattr(module, name), None if by_kernel else label or name))

    def end_step(self) -> None:
        self.steps.append(dict(self.now))
        self.now.clear()


def install(watch: Watch) -> None:
    for module in (engine_fast, rasterize_autograd):
        watch.watch(module, "run_shared")
    watch.watch(engine_fast, "run_shares")
    watch.watch(rasterize_autograd, "sort_by_depth", "add_up")
    watch.watch(gaussian_splatting, "accumulate", "refine", "training_view")
    watch.watch(gaussian_splatting, "loss_photometric", label="loss")
    watch.watch(ssim._SsimL1, "backward", label="loss")


def profile(scene, n: int, watch: Watch) -> tuple[float, dict[str, float]]:
    """Return the median step in ms and the parts of it."""
    steps = 2 * STEPS
    # the scene's own points are 4,000: more are taken from the surfaces that its depth maps show
    start = gaussian_splatting.starting_points(dataclasses.replace(scene, points=None), n)
    control = DensityControl().for_budget(4_000, max_splats=int(1.2 * n))
    training = gaussian_splatting.Training(Gaussians.from_points(start, sh_degree=2), scene.scale, steps, control=control)
    for optimizer in training.optimizers.values():
        optimizer.step = watch.timed(optimizer.step, "adam")
    gaussian_splatting.fit(training, scene, range(STEPS))
    watch.now.clear()
    watch.steps.clear()
    whole = []

    def counted():
        for step in range(STEPS, steps):
            began = time.perf_counter()
            yield step
            whole.append(1e3 * (time.perf_counter() - began))
            watch.end_step()

    gaussian_splatting.fit(training, scene, counted())
    parts = {}
    for part, names in PARTS.items():
        times = [sum(step.get(name, 0.0) for name in names) for step in watch.steps]
        parts[part] = statistics.mean(times) if part == "strategy" else statistics.median(times)
    step = statistics.median(whole)
    parts["torch and Python"] = step - sum(parts.values())
    return step, parts


def main() -> None:
    watch = Watch()
    install(watch)
    heads = ["splats at the start, picture", "step, ms", *PARTS, "torch and Python"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    print("\n".join(lines))
    for n, width in SIZES:
        scene = nsw.scenes.load("shelf", size=width)
        step, parts = profile(scene, n, watch)
        shares = " | ".join(f"{ms:.2f} ({100 * ms / step:.0f} %)" for ms in parts.values())
        lines.append(f"| {n}, {scene.cameras.width}x{scene.cameras.height} | {step:.1f} | {shares} |")
        print(lines[-1], flush=True)
    write("step", "Parts of a training step of splats, ms", machine(), lines)


if __name__ == "__main__":
    main()

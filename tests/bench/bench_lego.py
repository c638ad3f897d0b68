"""PSNR against seconds of training on NeRF-Synthetic lego at 100 px: `python tests/bench/bench_lego.py [--only dvgo --seconds 60]`.

Each method trains twice over: at sizes that suit this scene and the seconds there are, which stand here, and at those of its
notebook's `laptop` preset, which are read from there (`lego_presets.py`, `--only "dvgo, laptop" --lengths 1`).

Methods train one after the other with the same clock, which stops while views are scored, on the 87 training views over white; the
13 test views score. A schedule as long as the time there is reaches a level several times sooner than a longer one, so each method
trains from the beginning for several lengths (`BUDGETS`, `LENGTHS`), and the seconds to a level are the least of them. Kernels are
compiled before the clock starts; the last steps are profiled after it has stopped. The pictures are not part of the project
(CC-BY-NC): their folder is `shared/data/lego` beside the checkout or `$NSW_LEGO`. What is not asked for stays what it was in
`results/lego.json`, so that each training can be a command of its own; `--only` without a name writes the page anew.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import nsw.scenes  # before torch: it says how torch's threads wait

# isort: split
import lego_presets
import torch
from peers import LEGO as LEGO_PEERS
from report import FOLDER, write

from nsw import metrics
from nsw.kernels.occupancy import ray_aabb_intersect
from nsw.methods import dvgo, dvgo_stages, gaussian_splatting, instant_ngp_fit, plenoxels, plenoxels_fit, tensorf, tensorf_fit
from nsw.methods import instant_ngp as ngp
from nsw.methods.density_control import DensityControl
from nsw.models.dense_grid import DenseGrid, DenseGridSettings
from nsw.models.factors import VMSizes
from nsw.models.gaussians import Gaussians
from nsw.models.mlp import NerfMLP, NerfSettings
from nsw.renderers import render_view, splats
from nsw.runs.provenance import hardware

ROOT = Path(__file__).resolve().parents[2]
LEGO = Path(os.environ.get("NSW_LEGO", ROOT.parent / "shared" / "data" / "lego"))
SCORE_AT = (0.6, 0.8, 1, 1.2, 1.4, 1.7, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 20, 25, 30, 37, 45, 60, 75, 90)
LEVELS = (24, 26, 28, 30, 32, 34)
BUDGETS = {
    "nerf": (60,),
    "dvgo": (6, 20, 60),
    "splats": (1.5, 5, 60, 120),
    "plenoxels": (3, 6),
    "vm": (6, 12),
    "hash": (4, 10, 120),
}  # seconds of each training
LENGTHS = (1.0, 2.0)  # of each training at a preset's sizes, in multiples of the preset's own steps
LAPTOP = {f"{name}, laptop": train for name, train in lego_presets.METHODS.items()}


class Clock:
    """Training seconds, scores not counted; `tick` after every step says whether to go on.

    `ran` are those in which this thread had a core: in the others it waited for its kernels' threads, or for other programs.
    """

    def __init__(self, seconds: float, score) -> None:
        self.seconds, self.score, self.spent, self.ran, self.steps, self.trace = seconds, score, 0.0, 0.0, 0, []
        self.due = [t for t in SCORE_AT if t < seconds]
        self.began, self.ran_before = time.perf_counter(), time.thread_time()

    def tick(self) -> bool:
        self.spent, self.steps = self.spent + time.perf_counter() - self.began, self.steps + 1
        self.ran += time.thread_time() - self.ran_before
        if self.due and self.spent >= self.due[0]:
            self.due = [t for t in self.due if t > self.spent]
            self.trace.append((round(self.spent, 2), round(self.score(), 2)))
        self.began, self.ran_before = time.perf_counter(), time.thread_time()
        return self.spent < self.seconds

    def finish(self) -> list[tuple[float, float]]:
        self.trace.append((round(self.spent, 2), round(self.score(), 2)))
        return self.trace


def psnr_of(render, scene) -> float:
    return metrics.evaluate(render, scene).psnr


def by_clock(step, clock: Clock) -> None:
    """Train by a function of the share of the time that is spent."""
    going = True
    while going:
        step(min(1.0, clock.spent / clock.seconds))
        going = clock.tick()


def train_splats(scene, seconds: float):
    """3D Gaussians from random points with the notebook's schedule: growth follows a plan of steps, learning rates the clock."""
    most, sh_degree = (12_000, 2) if seconds < 30 else (24_000, 3)

    def start(n_steps: int, n_points: int = 5_000):
        points = gaussian_splatting.starting_points(scene, n_points)
        control = DensityControl().for_budget(n_steps, max_splats=most, reset_every=0)  # resets cost 0.5 dB after 20 s
        gaussians = Gaussians.from_points(points, sh_degree=sh_degree)
        return gaussian_splatting.Training(gaussians, scene.scale, n_steps, control=control)

    def seconds_a_step(n_points: int) -> float:
        rehearsal = start(100_000, n_points)
        gaussian_splatting.fit(rehearsal, scene, range(10), background=1.0)
        began = time.perf_counter()
        gaussian_splatting.fit(rehearsal, scene, range(10, 60), background=1.0)
        return (time.perf_counter() - began) / 50

    def until(training, clock: Clock) -> Iterator[int]:
        for step in itertools.count():
            yield step
            if not clock.tick():
                return
            training.n_steps = (step + 1) * seconds / clock.spent  # the steps that the whole training takes at this rate

    planned = int(seconds / (0.25 * seconds_a_step(5_000) + 0.75 * seconds_a_step(most)))  # it has all its splats early on
    training = start(planned)
    clock = Clock(seconds, lambda: psnr_of(lambda c: splats.render_view(training.gaussians, c), scene))
    gaussian_splatting.fit(training, scene, until(training, clock), background=1.0)
    training.control = None
    further = range(planned, planned + 20)
    return clock, {"splats": len(training.gaussians)}, lambda: gaussian_splatting.fit(training, scene, further, background=1.0)


def train_dvgo(scene, seconds: float):
    """DVGO in two stages; both fill batches by samples, so that fog costs no more than surfaces."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    bank, views = dvgo_stages.ray_bank(scene), scene.views("train")
    edge = 64 if seconds < 10 else 80 if seconds < 30 else 100
    short = seconds < 30  # no time to grow, and to come back from what each growth costs
    coarse_settings = dvgo_stages.Stage(n_voxels=48**3, n_steps=100_000, n_rays=1024 if short else 2048, lr=0.7)
    fine_settings = dvgo_stages.Stage(
        n_voxels=edge**3, n_steps=100_000, n_rays=1024, n_samples=1 << 15, alpha_init=2e-3, opaque=0.02, inherit=True,
        lr=0.2, lr_network=5e-3, per_point=0.01, entropy=0.001, threshold=1e-3,
        grow=() if short else (100, 150, 200), refresh=50, n_features=8, mlp_width=32,
    )  # fmt: skip
    box = scene.box
    lego_presets.compile_dvgo(scene, bank, (coarse_settings, fine_settings), generator)
    state = {"n_rays": 0}

    def watch(step, spent, out) -> None:
        state["n_rays"] = len(out.rgb)
        clock.tick()

    clock = Clock(seconds, lambda: psnr_of(lambda c: dvgo.render_view(state["model"], c, scene.near), scene))
    coarse = state["model"] = DenseGrid(DenseGridSettings(box, n_voxels=coarse_settings.n_voxels))
    counts = dvgo.count_views(coarse, views, scene.near, scene.far)
    dvgo.hide_voxels(coarse, views, scene.near, counts)
    first = min(max(seconds / 10, 1.6), 3.0)
    dvgo_stages.fit(coarse, bank, coarse_settings, generator, scene.near, counts, seconds=first, watch=watch)
    fine = state["model"] = dvgo_stages.new_fine(coarse, fine_settings)
    hitting = bank.only(ray_aabb_intersect(bank.rays.origins, bank.rays.directions, fine.aabb.reshape(1, 6))[2][:, 0])
    clock.tick()
    dvgo_stages.fit(fine, hitting, fine_settings, generator, scene.near, seconds=seconds - clock.spent, watch=watch)
    few = replace(fine_settings, n_steps=20, n_rays=state["n_rays"], grow=(), refresh=0)
    return clock, {"vertices": list(fine.shape)}, lambda: dvgo_stages.fit(fine, hitting, few, generator, scene.near)


def train_plenoxels(scene, seconds: float):
    """A sparse grid of harmonics, 32^3 to 64^3 to 100^3, the schedule following the clock."""
    generator = torch.Generator().manual_seed(0)
    bank = plenoxels_fit.view_bank(scene)
    growth = (min(0.08, 0.8 / seconds), min(0.25, 2.5 / seconds))
    recipe = plenoxels_fit.Recipe(
        sizes=(32, 64, 100), grow_at=growth, n_rays=3072, sh_degree=1, tv_density=0.0, tv_colour=0.0
    )  # fmt: skip
    rehearsal = plenoxels_fit.new_grid(scene.aabb, recipe)  # compiles
    few = replace(recipe, n_steps=40, n_rays=64, prune=0.01)
    plenoxels_fit.fit(rehearsal, bank.only(slice(0, 20_000)), few, generator, scene.near)
    model = plenoxels_fit.new_grid(scene.aabb, recipe)
    clock = Clock(seconds, lambda: psnr_of(lambda c: plenoxels.render_view(model, c, scene.near), scene))
    plenoxels_fit.fit(model, bank, recipe, generator, scene.near, seconds=seconds, watch=lambda step, spent: clock.tick())
    about, few = {"vertices": list(model.shape), "kept": int(model.kept.sum())}, replace(recipe, n_steps=20, grow_at=(2.0, 2.0))
    return clock, about, lambda: plenoxels_fit.fit(model, bank, few, generator, scene.near)


def train_vm(scene, seconds: float):
    """Planes and lines, 32^3 to 100^3, masked and grown as the clock goes."""
    torch.manual_seed(0)
    model = tensorf_fit.new_model(
        scene, n_voxels=32**3, factors=VMSizes(8, 16), n_features=24, mlp_width=64, n_frequencies=(0, 2), n_cells=64
    )
    plan = tensorf.Plan(
        n_samples=1 << 15, n_voxels=100**3, grow_at=(0.1, 0.2, 0.3), mask_at=(0.05, 0.1, 0.2, 0.3, 0.5), threshold=1e-3
    )
    pixels = ngp.training_pixels(scene, model.aabb)
    step = tensorf_fit.tensorf_steps(model, pixels, plan, torch.Generator().manual_seed(0), scene.near)
    clock = Clock(seconds, lambda: psnr_of(lambda c: ngp.render_view(model, c, scene.near), scene))
    by_clock(step, clock)
    about = {"vertices": list(model.shape), "megabytes": round(model.n_bytes / 1e6, 2)}
    return clock, about, lambda: [step(1.0) for _ in range(20)]


def train_hash(scene, seconds: float):
    """Five levels and small networks where there are only seconds; eight, twice as wide, on twice the samples where there are more.

    An occupancy grid that forgets faster than this has holes, which cost 0.8 dB after 10 s.
    """
    torch.manual_seed(0)
    sizes, plan = dict(n_features=4, n_cells=48), instant_ngp_fit.Plan(n_samples=1 << 14, threshold=1e-3, decay=0.8)
    if seconds < 30:
        sizes |= dict(steps_across=96, n_levels=5, n_max=128, width=32)
    else:
        sizes |= dict(steps_across=128, n_levels=8, n_max=256, width=64, log2_entries=18)
        plan = replace(plan, n_samples=1 << 15, threshold=1e-4, decay=0.95)
    model = instant_ngp_fit.new_model(scene, **sizes)
    pixels = ngp.training_pixels(scene, model.aabb)
    step = instant_ngp_fit.hash_steps(model, pixels, plan, torch.Generator().manual_seed(0), scene.near)
    clock = Clock(seconds, lambda: psnr_of(lambda c: ngp.render_view(model, c, scene.near), scene))
    by_clock(step, clock)
    return clock, {"entries": model.levels.n_rows}, lambda: [step(1.0) for _ in range(20)]


def train_nerf(scene, seconds: float):
    """One network of 4 layers of 64, 48 stratified samples a ray; a network twice as wide takes too few steps in a minute."""
    torch.manual_seed(0)
    model = NerfMLP(NerfSettings(depth=4, width=64, box=scene.box))
    step = instant_ngp_fit.field_steps(model, scene, torch.Generator().manual_seed(0), n_rays=256, n_samples=48)
    clock = Clock(seconds, lambda: psnr_of(lambda c: render_view(model, c, n_samples=48), scene))
    clock.due = []  # a score costs this network ten seconds
    by_clock(step, clock)
    return clock, {"layers": 4, "width": 64}, lambda: [step(1.0) for _ in range(5)]


def seconds_to(trace, level: float) -> float | None:
    """Return when a level was passed, between scores by straight lines."""
    before = None
    for t, value in trace:
        if value >= level:
            return t if before is None else round(before[0] + (t - before[0]) * (level - before[1]) / (value - before[1]), 1)
        before = (t, value)
    return None


def best(runs: list[dict], level: float) -> float | None:
    """Return the least seconds in which one of the trainings reached a level."""
    return min((t for run in runs if (t := seconds_to(run["trace"], level)) is not None), default=None)


def where_time_goes(more, top: int = 5) -> str:
    """Return the largest shares of the wall clock of some further steps, by torch's own profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        began = time.perf_counter()
        more()
        wall = 1e6 * (time.perf_counter() - began)
    calls: dict[str, float] = {}
    for event in seen.key_averages():
        name = event.key.removeprefix("aten::").removeprefix("autograd::engine::evaluate_function: ")
        calls[name] = calls.get(name, 0.0) + event.self_cpu_time_total / wall
    shares = [*sorted(calls.items(), key=lambda call: -call[1])[:top], ("outside of torch calls", 1 - sum(calls.values()))]
    return ", ".join(f"{name} {share:.0%}" for name, share in shares)


def peers_of(name: str) -> dict:
    """Return sketch and target of a method, whatever its sizes."""
    return LEGO_PEERS.get(name.split(",")[0], {"sketch": {}, "target": {}})


def named(run: dict) -> str:
    """Return how long a training was: seconds, how many of them its thread had a core, a multiple of a preset's steps.

    >>> named({"trace": [[8.0, 30.0]]}), named({"trace": [[8.0, 30.0]], "ran": 7.04, "length": 0.5, "steps": 300})
    ('8 s', '8 s, 7.04 on a core, x0.5 = 300 steps')
    """
    ran = f", {run['ran']:.3g} on a core" if "ran" in run else ""
    return f"{run['trace'][-1][0]:.3g} s{ran}" + (f", x{run['length']:g} = {run['steps']} steps" if "length" in run else "")


def after_a_minute(rows: dict[str, list[dict]]) -> list[str]:
    """Return the methods that trained for 60 s beside each other."""
    lines = ["| method | PSNR after 60 s | steps | size | measured |", "|---|---|---|---|---|"]
    for name, runs in rows.items():
        for run in (run for run in runs if run["seconds"] == 60):
            size = ", ".join(f"{key} {value}" for key, value in run["about"].items())
            lines.append(f"| {name} | {run['trace'][-1][1]:.1f} dB | {run['steps']} | {size} | {run['measured']} |")
    return lines


def missed(name: str, runs: list[dict]) -> list[str]:
    """Return a line for each target that was missed, with where the time of its training goes."""
    lines = []
    for level, target in peers_of(name)["target"].items():
        needed = best(runs, level)
        if needed is not None and needed <= target:
            continue
        run = min((run for run in runs if run["seconds"] >= target), key=lambda run: run["seconds"], default=runs[-1])
        reached = max(value for t, value in run["trace"])
        longest = "" if run["seconds"] >= target else ", and no training as long as the target is kept"
        got = f"{needed:.1f} s" if needed is not None else f"not reached: {reached:.1f} dB in {named(run)}{longest}"
        lines.append(f"- {name}, {level} dB in {target:g} s: {got}. {run['steps']} steps; profile: {run['profile']}.")
    return lines


def page(rows: dict[str, list[dict]], scene) -> list[str]:
    """Return the methods after a minute, the seconds to each level beside targets and sketches, and what was missed, and why."""
    heads = [*(f"{level} dB" for level in LEVELS), "PSNR after", "sketch: 24 / 26 / 28 / 30 dB", "target", "measured"]
    lines = [f"{metrics.describe(scene)}. One seed.", "", "## After 60 s of training", *after_a_minute(rows), ""]
    lines += ["## Seconds of training to reach a level"]
    lines += ["The least of several trainings, each with its own schedule. Rows named laptop have the sizes of the notebook's"]
    lines += ['preset, and its steps times a factor; the others have sizes that suit this scene and these seconds. "On a core":']
    lines += ["seconds in which the training's own thread ran, far fewer than all where the machine was not alone.", ""]
    lines += [f"| method | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name, runs in rows.items():
        peer = peers_of(name)
        cells = ["-" if (t := best(runs, level)) is None else f"{t:.1f}" for level in LEVELS]
        cells.append(", ".join(f"{named(run)}: {run['trace'][-1][1]:.1f}" for run in runs))
        cells.append(" / ".join(f"{t:g}" for t in peer["sketch"].values()) or "-")
        cells.append(", ".join(f"{level} dB in {t:g}" for level, t in peer["target"].items()) or "-")
        lines.append(f"| {name} | {' | '.join(cells)} | {', '.join(sorted({run['measured'] for run in runs}))} |")
    misses = [line for name, runs in rows.items() for line in missed(name, runs)]
    lines += ["", "## Targets that are missed", *(misses or ["None."])]
    return lines


def keep(new: dict[str, list[dict]], scene) -> None:
    """Put trainings in the place of those of the same length in `lego.json`, and write the page of all of them."""
    kept = FOLDER / "lego.json"
    rows = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    for name, runs in new.items():
        by_length = {run.get("length", run["seconds"]): run for run in (*rows.get(name, []), *runs)}
        rows[name] = [by_length[length] for length in sorted(by_length)]
    rows = {name: rows[name] for name in (*BUDGETS, *LAPTOP) if name in rows}
    kept.write_text(json.dumps(rows) + "\n", encoding="utf-8")
    write("lego", "Lego at 100 px", hardware(), page(rows, scene))


def measure(name: str, train: Callable[[], tuple], scene, **how: float) -> None:
    """Train once, and keep the training twice: before its profile, which may be cut off, and with it."""
    clock, about, more = train()
    run = {"seconds": round(clock.spent, 2), "measured": f"{datetime.date.today().isoformat()}, {hardware()}", "steps": clock.steps}
    run |= how | {"ran": round(clock.ran, 2), "about": about, "trace": clock.finish(), "profile": "none, it was stopped before"}
    keep({name: [run]}, scene)
    run["profile"] = where_time_goes(more)
    keep({name: [run]}, scene)
    print(name, run, flush=True)


def main() -> int:
    methods = {"nerf": train_nerf, "dvgo": train_dvgo, "splats": train_splats, "plenoxels": train_plenoxels}
    methods |= {"vm": train_vm, "hash": train_hash}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, nargs="*", help="lengths of the trainings, instead of each method's own")
    parser.add_argument("--lengths", type=float, nargs="*", default=LENGTHS, help="of those at a preset's sizes, times its steps")
    parser.add_argument("--only", nargs="*", default=[*methods, *LAPTOP], choices=[*methods, *LAPTOP])
    arguments = parser.parse_args()
    if not LEGO.is_dir():
        print(f"Skipped: {LEGO} is not there; set NSW_LEGO to a folder with NeRF-Synthetic lego.")
        return 0
    scene = nsw.scenes.load(LEGO, size=100)
    keep({}, scene)
    clock_for = lambda render: Clock(math.inf, lambda: psnr_of(render, scene))  # noqa: E731
    for name in arguments.only:
        if name in LAPTOP:
            for length in arguments.lengths:
                measure(name, partial(LAPTOP[name], scene, length, clock_for), scene, length=length)
            continue
        for seconds in arguments.seconds or BUDGETS[name]:
            measure(name, partial(methods[name], scene, seconds), scene, seconds=seconds)
    print((FOLDER / "lego.md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""PSNR against seconds of training on NeRF-Synthetic lego at 100 px: `python tests/bench/bench_lego.py [--only dvgo vm]`.

Methods train one after the other with the same clock, which stops while views are scored, on the 87 training views over white; the
13 test views score. A schedule as long as the time there is reaches a level several times sooner than a longer one, so each method
trains from the beginning for several lengths (`BUDGETS`), and the seconds to a level are the least of them. Kernels are compiled
before the clock starts. The pictures are not part of the project (CC-BY-NC): their folder is `shared/data/lego` beside the
checkout or `$NSW_LEGO`. What is not asked for stays what it was in `results/lego.json`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from peers import LEGO as LEGO_PEERS
from report import FOLDER, write

import nsw.scenes
from nsw import metrics
from nsw.methods import dvgo, dvgo_stages, gaussian_splatting, nerf, plenoxels, plenoxels_fit, tensorf, tensorf_fit
from nsw.methods import instant_ngp as ngp
from nsw.methods.density_control import DensityControl
from nsw.models.dense_grid import DenseGrid, DenseGridSettings
from nsw.models.factors import VMSizes
from nsw.models.gaussians import Gaussians
from nsw.models.mlp import NerfMLP, NerfSettings
from nsw.renderers import render_view, splats
from nsw.renderers.volume import render_rays
from nsw.runs.provenance import hardware

ROOT = Path(__file__).resolve().parents[2]
LEGO = Path(os.environ.get("NSW_LEGO", ROOT.parent / "shared" / "data" / "lego"))
SCORE_AT = (0.6, 0.8, 1, 1.2, 1.4, 1.7, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 20, 25, 30, 37, 45, 60, 75, 90)
LEVELS = (24, 26, 28, 30, 32, 34)
BUDGETS = {
    "splats": (1.5, 5, 20, 120),
    "plenoxels": (3, 6, 20),
    "dvgo": (6, 20, 60),
    "vm": (6, 20, 60),
    "nerf": (60,),
}  # seconds of each training


class Clock:
    """Training seconds, scores not counted; `tick` after every step says whether to go on."""

    def __init__(self, seconds: float, score) -> None:
        self.seconds, self.score, self.spent, self.trace = seconds, score, 0.0, []
        self.due = [t for t in SCORE_AT if t < seconds]
        self.began = time.perf_counter()

    def tick(self) -> bool:
        self.spent += time.perf_counter() - self.began
        if self.due and self.spent >= self.due[0]:
            self.due = [t for t in self.due if t > self.spent]
            self.trace.append((round(self.spent, 2), round(self.score(), 2)))
        self.began = time.perf_counter()
        return self.spent < self.seconds

    def finish(self) -> list[tuple[float, float]]:
        self.trace.append((round(self.spent, 2), round(self.score(), 2)))
        return self.trace


def psnr_of(render, scene) -> float:
    return metrics.evaluate(render, scene).psnr


def train_splats(scene, seconds: float):
    """3D Gaussians from random points, with the notebook's schedule; the number of steps is set from a measured rate."""

    def start(n_steps: int):
        points = gaussian_splatting.starting_points(scene, 5_000)
        control = DensityControl().for_budget(n_steps, max_splats=12_000 if seconds < 30 else 24_000)
        return gaussian_splatting.Training(Gaussians.from_points(points, sh_degree=2), scene.scale, n_steps, control=control)

    def timed(training, n_steps: int, clock: Clock | None) -> Iterator[int]:
        for step in range(n_steps):
            yield step
            if clock is not None:
                clock.tick()

    rehearsal = start(1_500)
    gaussian_splatting.fit(rehearsal, scene, range(10), background=1.0)
    began = time.perf_counter()
    gaussian_splatting.fit(rehearsal, scene, range(10, 210), background=1.0)
    n_steps = int(seconds / ((time.perf_counter() - began) / 200) * 0.8)  # there will be more splats than at the start
    training = start(n_steps)
    clock = Clock(seconds, lambda: psnr_of(lambda c: splats.render_view(training.gaussians, c), scene))
    gaussian_splatting.fit(training, scene, timed(training, n_steps, clock), background=1.0)
    return clock.finish(), {"steps": n_steps, "splats": len(training.gaussians)}


def train_dvgo(scene, seconds: float):
    """DVGO in two stages, the first a tenth of the time, but long enough to find something."""
    generator = torch.Generator().manual_seed(0)
    bank = dvgo_stages.ray_bank(scene)
    coarse_settings = dvgo_stages.Stage(n_voxels=32**3 if seconds < 15 else 40**3, n_steps=100_000, n_rays=2048, lr=0.7)
    fine_settings = dvgo_stages.Stage(
        n_voxels=120**3, n_steps=100_000, n_rays=4096, alpha_init=1e-2,
        lr=0.15, lr_network=3e-3, per_point=0.01, entropy=0.001, threshold=1e-4,
        grow=(100, 200, 300), refresh=200, n_features=8, mlp_width=64,
    )  # fmt: skip
    # Rehearsals of both stages compile what they call, for as many features as they have.
    dvgo_stages.coarse_stage(scene, bank, dvgo_stages.Stage(n_voxels=20**3, n_steps=3, n_rays=64), generator)
    box = tuple(scene.aabb.reshape(6).tolist())
    small = DenseGrid(DenseGridSettings(box, n_voxels=10**3, alpha_init=0.1, n_features=fine_settings.n_features))
    few = replace(fine_settings, n_voxels=10**3, n_steps=2, n_rays=64, grow=(), refresh=1)
    dvgo_stages.fit(small, bank, few, generator, scene.near)
    state = {}
    clock = Clock(seconds, lambda: psnr_of(lambda c: dvgo.render_view(state["model"], c, scene.near), scene))
    coarse = state["model"] = dvgo_stages.new_coarse(scene, coarse_settings)
    counts = dvgo.count_views(coarse, scene.views("train"), scene.near, scene.far)
    dvgo.hide_voxels(coarse, scene.views("train"), scene.near, counts)
    watch = lambda step, spent, out: clock.tick()  # noqa: E731
    dvgo_stages.fit(coarse, bank, coarse_settings, generator, scene.near, counts, seconds=max(seconds / 10, 1.2), watch=watch)
    fine = state["model"] = dvgo_stages.new_fine(coarse, fine_settings)
    hitting = bank.only(dvgo.hits_mask(fine, bank.rays, scene.near))
    dvgo_stages.fit(fine, hitting, fine_settings, generator, scene.near, seconds=seconds - clock.spent, watch=watch)
    return clock.finish(), {"voxels": list(fine.shape) if hasattr(fine, "shape") else fine_settings.n_voxels}


def train_plenoxels(scene, seconds: float):
    """A sparse grid of harmonics, 32^3 to 64^3 to 100^3, the schedule following the clock."""
    generator = torch.Generator().manual_seed(0)
    bank = plenoxels_fit.view_bank(scene)
    growth = (min(0.08, 0.8 / seconds), min(0.25, 2.5 / seconds))
    recipe = plenoxels_fit.Recipe(
        sizes=(32, 64, 100), grow_at=growth, n_rays=3072, sh_degree=1, tv_density=0.0, tv_colour=0.0
    )  # fmt: skip
    rehearsal = plenoxels_fit.new_grid(scene.aabb, recipe)  # compiles
    plenoxels_fit.fit(
        rehearsal, bank.only(slice(0, 20_000)), replace(recipe, n_steps=40, n_rays=64, prune=0.01), generator, scene.near
    )
    model = plenoxels_fit.new_grid(scene.aabb, recipe)
    clock = Clock(seconds, lambda: psnr_of(lambda c: plenoxels.render_view(model, c, scene.near), scene))
    plenoxels_fit.fit(model, bank, recipe, generator, scene.near, seconds=seconds, watch=lambda step, spent: clock.tick())
    return clock.finish(), {"voxels": list(model.shape), "kept": int(model.kept.sum())}


def train_vm(scene, seconds: float):
    """Planes and lines, 32^3 to 128^3, masked and grown as the clock goes."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = tensorf_fit.new_model(
        scene, n_voxels=32**3, factors=VMSizes(16, 32), n_features=24, mlp_width=64, n_frequencies=(0, 2), n_cells=64
    )
    plan = tensorf.Plan(n_samples=1 << 15, n_voxels=128**3, grow_at=(0.1, 0.2, 0.3), mask_at=(0.05, 0.1, 0.2, 0.3, 0.5))
    step = tensorf_fit.tensorf_steps(model, ngp.training_pixels(scene, model.aabb), plan, generator, scene.near)
    clock = Clock(seconds, lambda: psnr_of(lambda c: ngp.render_view(model, c, scene.near), scene))
    steps, going = 0, True
    while going:
        step(min(1.0, clock.spent / seconds))
        steps, going = steps + 1, clock.tick()
    return clock.finish(), {"steps": steps, "vertices": list(model.shape), "megabytes": round(model.n_bytes / 1e6, 2)}


def train_nerf(scene, seconds: float):
    """One network of 4 layers of 128, 64 stratified samples a ray."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = NerfMLP(NerfSettings(depth=4, width=128, box=tuple(scene.aabb.reshape(6).tolist())))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    pixels, cameras = scene.pixels("train"), scene.views("train")
    among = nerf.useful_pixels(cameras, scene.aabb)
    clock = Clock(seconds, lambda: psnr_of(lambda c: render_view(model, c, n_samples=64), scene))
    clock.due = [t for t in clock.due if t in (10, 30)]  # a score costs this network seconds
    steps, going = 0, True
    while going:
        nerf.set_learning_rate(optimizer, 5e-3 * 0.1 ** min(1.0, clock.spent / seconds))
        rays, colours = nerf.ray_batch(pixels, cameras, 1024, generator, among)
        loss = sum(nerf.loss_terms(render_rays(model, rays, n_samples=64, jitter=generator), colours).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps, going = steps + 1, clock.tick()
    return clock.finish(), {"steps": steps}


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


def page(rows: dict[str, dict], scene) -> list[str]:
    """Return a row for each method, with the sketches' seconds and the targets of `peers.py`."""
    heads = [*(f"{level} dB" for level in LEVELS), "PSNR after", "sketch: 24 / 26 / 28 / 30 dB", "target", "measured"]
    lines = [f"{metrics.describe(scene)}. Seconds of training to reach a level, the least of several trainings.", ""]
    lines += [f"| method | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name, row in rows.items():
        peer = LEGO_PEERS.get(name, {"sketch": {}, "target": {}})
        cells = ["-" if (t := best(row["runs"], level)) is None else f"{t:.1f}" for level in LEVELS]
        cells.append(", ".join(f"{run['seconds']:g} s: {run['trace'][-1][1]:.1f}" for run in row["runs"]))
        cells.append(" / ".join(f"{t:g}" for t in peer["sketch"].values()) or "-")
        cells.append(", ".join(f"{level} dB in {t:g}" for level, t in peer["target"].items()) or "-")
        lines.append(f"| {name} | {' | '.join(cells)} | {row['date']}, {row['machine']} |")
    return lines


def main() -> int:
    methods = {"splats": train_splats, "plenoxels": train_plenoxels, "dvgo": train_dvgo, "vm": train_vm, "nerf": train_nerf}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, nargs="*", help="lengths of the trainings, instead of each method's own")
    parser.add_argument("--only", nargs="*", default=list(methods), choices=list(methods))
    arguments = parser.parse_args()
    if not LEGO.is_dir():
        print(f"Skipped: {LEGO} is not there; set NSW_LEGO to a folder with NeRF-Synthetic lego.")
        return 0
    scene, kept = nsw.scenes.load(LEGO, size=100), FOLDER / "lego.json"
    rows = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    for name in arguments.only:
        known = rows[name]["runs"] if name in rows and arguments.seconds else []
        runs = {run["seconds"]: run for run in known}  # of lengths that are not asked for
        for seconds in arguments.seconds or BUDGETS[name]:
            trace, about = methods[name](scene, seconds)
            runs[seconds] = {"seconds": seconds, "trace": trace, **about}
            print(name, runs[seconds], flush=True)
        in_order = [runs[seconds] for seconds in sorted(runs)]
        rows[name] = {"date": datetime.date.today().isoformat(), "machine": hardware(), "runs": in_order}
    rows = {name: rows[name] for name in (*methods, *rows) if name in rows}
    lines = page(rows, scene)
    print("\n".join(lines))
    kept.write_text(json.dumps(rows) + "\n", encoding="utf-8")
    write("lego", "Lego at 100 px", hardware(), lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())

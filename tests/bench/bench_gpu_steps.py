"""What a training step of the `gpu` presets' sizes costs on one CUDA GPU, and what it spends its time on.

For each method: steps a second, kernels started a step, seconds of kernels in a second of training (1 is a GPU that never waits),
the operations that take longest; matrices in full precision and, beside it, in TF32. Scene and settings are those of
`bench_gpu_lego`.

`python -m tests.bench gpu_steps [--only nerf hash] [--seconds 3] [--detail]`
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
from dataclasses import replace
from pathlib import Path

import nsw.scenes  # before torch: it says how torch's threads wait

# isort: split
import torch
from bench_gpu_lego import GPU, by_clock, fresh, settings
from bench_lego import LEGO
from torch.profiler import ProfilerActivity, profile

from nsw import metrics
from nsw.methods import (
    dvgo,
    dvgo_stages,
    gaussian_splatting,
    gaussian_splatting_2d,
    instant_ngp_fit,
    nerdf,
    nerdf_fit,
    nerf,
    plenoxels_fit,
    pvd,
    pvd_inspect,
    tensorf,
    tensorf_fit,
)
from nsw.methods import instant_ngp as ngp
from nsw.models.factors import VMSizes
from nsw.models.gaussians import Gaussians
from nsw.models.mlp import CoarseFine, CoarseFineSettings
from nsw.models.ray_distribution import RayDistribution, RaySettings
from nsw.renderers.volume import render_rays

TAUGHT: dict[str, object] = {}  # the hash grid that distillation asks, trained once


def work_nerf(scene):
    s, generator = settings("01"), fresh()
    names = ("depth", "width", "skip", "levels_position", "levels_direction", "n_samples", "n_fine")
    box = 1.6 * scene.aabb
    model = CoarseFine(CoarseFineSettings(box=tuple(box.flatten().tolist()), **{n: getattr(s, n) for n in names})).to(GPU)
    optimizer = torch.optim.Adam(model.parameters(), lr=s.lr, fused=True)
    pixels, cameras = scene.pixels("train").to(GPU), scene.views("train").to(GPU)
    useful = nerf.useful_pixels(cameras, box)

    def step(progress: float) -> None:
        rays, colours = nerf.ray_batch(pixels, cameras, s.n_rays, generator, useful)
        out = render_rays(model, rays, jitter=generator, **model.render_defaults)
        optimizer.zero_grad()
        sum(nerf.loss_terms(out, colours).values()).backward()
        optimizer.step()

    return lambda seconds: by_clock(step, seconds)[1]


def work_dvgo(scene):
    s, generator = settings("02"), fresh()
    bank = dvgo_stages.ray_bank(scene, device=GPU)
    coarse_stage = dvgo_stages.Stage(s.coarse**3, s.coarse_steps, s.coarse_rays, lr=s.coarse_lr)
    fine_stage = dvgo_stages.Stage(
        s.fine**3, s.fine_steps, s.fine_rays, alpha_init=1e-2, lr=s.fine_lr, lr_network=s.network_lr, per_point=0.01, entropy=0.001,
        threshold=1e-4, grow=(250, 500, 750), refresh=500, n_features=s.features, mlp_width=s.width,
    )  # fmt: skip
    coarse = dvgo_stages.new_coarse(scene, coarse_stage).to(GPU)
    dvgo_stages.fit(coarse, bank, coarse_stage, generator, scene.near, seconds=3)
    fine = dvgo_stages.new_fine(coarse, fine_stage).to(GPU)
    hits = bank.only(dvgo.hits_mask(fine, bank.rays, scene.near))

    def run(seconds: float) -> int:
        seen = [0]
        watch = lambda step, spent, out: seen.__setitem__(0, step + 1)  # noqa: E731
        dvgo_stages.fit(fine, hits, fine_stage, generator, scene.near, seconds=seconds, watch=watch)
        return seen[0]

    return run


def work_plenoxels(scene):
    s = settings("04")
    names = ("sizes", "n_rays", "sh_degree", "lr_density", "lr_colour", "tv_density", "tv_colour", "tv_share", "dilate")
    recipe = plenoxels_fit.Recipe(**{name: getattr(s, name) for name in names})
    bank = plenoxels_fit.view_bank(scene, None, GPU)

    def run(seconds: float) -> int:
        seen, model = [0], plenoxels_fit.new_grid(scene.aabb.to(GPU), recipe)
        watch = lambda step, spent: seen.__setitem__(0, step + 1)  # noqa: E731
        plenoxels_fit.fit(model, bank, recipe, fresh(), scene.near, seconds=seconds, watch=watch)
        return seen[0]

    return run


def hash_model(scene):
    s = settings("05")
    sizes = dict(n_levels=s.levels, n_features=2, log2_entries=s.entries_log2, n_max=s.finest, width=s.width, n_cells=s.cells)
    plan = instant_ngp_fit.Plan(
        s.steps, s.samples, s.table_lr, s.network_lr, s.last_rate, update_every=s.update_every, decay=s.decay
    )  # fmt: skip
    model = instant_ngp_fit.new_model(scene, s.steps_across, **sizes).to(GPU)
    pixels = ngp.training_pixels(scene, model.aabb, device=GPU)
    return model, pixels, plan, instant_ngp_fit.hash_steps(model, pixels, plan, fresh(), scene.near)


def work_hash(scene):
    model, pixels, plan, step = hash_model(scene)
    by_clock(step, 3)
    TAUGHT["hash"] = model
    return lambda seconds: by_clock(step, seconds)[1]


def work_vm(scene):
    s, generator = settings("06"), fresh()
    sizes = dict(n_voxels=s.start**3, n_features=s.features, mlp_width=s.width, n_frequencies=s.octaves, n_cells=s.cells)
    sizes |= dict(shift=s.shift, basis_start=s.basis_start, factors=VMSizes(s.rank_density, s.rank_colour))
    plan = replace(
        tensorf.Plan(), n_samples=s.samples, n_voxels=s.finest**3, lr=s.lr, lr_network=s.network_lr, momentum=s.momentum,
        last_rate=s.last_rate, grow_at=s.grow_at, l1=s.l1[0], l1_later=s.l1[1], threshold=s.threshold, opaque=s.opaque,
    )  # fmt: skip
    model = tensorf_fit.new_model(scene, **sizes).to(GPU)
    pixels = ngp.training_pixels(scene, model.aabb, device=GPU)
    step = tensorf_fit.tensorf_steps(model, pixels, plan, generator, scene.near)
    by_clock(step, 3)
    return lambda seconds: by_clock(lambda progress: step(1.0), seconds)[1]


def work_nerdf(scene):
    s = settings("09")
    plan = instant_ngp_fit.Plan(200, 1 << 13, 0.05, 0.02, update_every=8, decay=0.6)
    sizes = dict(n_levels=s.teacher_levels, n_max=s.teacher_finest, log2_entries=s.teacher_entries_log2, n_features=2, n_cells=32)
    teacher = nerdf_fit.teacher_of(scene, plan, 0, 400, GPU, **sizes)
    cameras = scene.views("train").to(GPU)
    box = tuple(scene.aabb.flatten().tolist())
    student = RayDistribution(RaySettings(s.depth, s.width, 2, s.n_points, s.levels, 2, s.n_terms, s.n_samples, box=box)).to(GPU)
    poses = lambda n, generator: nerdf.blended_cameras(cameras, n, generator)  # noqa: E731
    course = nerdf_fit.Course(10, s.rays, s.cameras, s.lr)
    ten = lambda progress: nerdf_fit.distil(  # noqa: E731
        {"student": (student, nerdf_fit.loss_whole)}, teacher, poses, course, fresh(), scene.near
    )
    return lambda seconds: 10 * by_clock(ten, seconds)[1]


def work_pvd(scene):
    s = settings("10")
    model, pixels, _, step = hash_model(scene)
    if "hash" in TAUGHT:
        model = TAUGHT["hash"]
    else:
        by_clock(step, 3)
    trunk = dict(depth=s.depth, width=s.network_width, skip=s.depth // 2, levels=s.octaves)
    plan = pvd.Plan(s.steps, n_samples=s.samples, n_cells=s.cells, size=200, n_poses=64)
    racers = pvd_inspect.contestants(model, scene, pixels, plan, 0, s.network_lr, **trunk)
    step = racers["distilled"][1]
    return lambda seconds: by_clock(lambda progress: step(0.9), seconds)[1]


def work_splats(scene):
    s = settings("03")
    start = Gaussians.from_points(gaussian_splatting.starting_points(scene, s.n_start, 0), sh_degree=3).to(GPU)
    training = gaussian_splatting.Training(start, scene.scale, s.n_steps)
    return lambda seconds: by_fit(lambda steps: gaussian_splatting.fit(training, scene, steps, background=1.0), seconds)


def work_surfels(scene):
    s = settings("21")
    from nsw.models.surfels import Surfels

    start = Surfels.from_points(gaussian_splatting.starting_points(scene, s.n_start, 0), sh_degree=1).to(GPU)
    training = gaussian_splatting.Training(start, scene.scale, s.n_steps)
    rules = gaussian_splatting_2d.Regularisers(0.03, 3.0, 0, 0)
    return lambda seconds: by_fit(lambda steps: gaussian_splatting_2d.fit(training, scene, steps, rules), seconds)


def by_fit(fit, seconds: float) -> int:
    began, seen = metrics.clock(), [0]

    def steps():
        while metrics.clock() - began < seconds:
            yield 2000 + seen[0]
            seen[0] += 1

    fit(steps())
    return seen[0]


METHODS = {name.removeprefix("work_"): found for name, found in list(globals().items()) if name.startswith("work_")}


def kernels(run, seconds: float, detail: bool) -> tuple[float, float, str]:
    """Return kernels a step, seconds of kernels in one of training, and the three operations that take longest."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as prof:
        began = metrics.clock()
        n = max(run(seconds), 1)
        spent = metrics.clock() - began
    events = prof.key_averages()
    if detail:
        print(events.table(sort_by="self_device_time_total", row_limit=22, max_name_column_width=70), flush=True)
        print(events.table(sort_by="self_cpu_time_total", row_limit=14, max_name_column_width=50), flush=True)
    device = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
    busy = sum(e.self_device_time_total for e in device)
    names = sorted(device, key=lambda e: -e.self_device_time_total)[:3]
    told = ", ".join(f"{e.key[:60]} {100 * e.self_device_time_total / max(busy, 1):.0f} %" for e in names)
    return sum(e.count for e in device) / n, busy / 1e6 / spent, told.replace("|", "/")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seconds", type=float, default=3.0, help="of steps for each number")
    parser.add_argument("--detail", action="store_true", help="print the profiler's tables")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("Skipped: torch finds no CUDA GPU here.")
        return 0
    if not LEGO.is_dir():
        print(f"Skipped: {LEGO} is not there; set NSW_LEGO to a folder with NeRF-Synthetic lego.")
        return 0
    scene = nsw.scenes.load(LEGO)
    today = datetime.date.today().isoformat()
    lines = [f"# A training step on a GPU, {today}", ""]
    lines += [f"{torch.cuda.get_device_name()}, {os.cpu_count()} CPU cores; torch {torch.__version__}; lego at 200 pixels.", ""]
    lines += ["| method | steps a second | with TF32 | kernels a step | busy | longest kernels |", "|---|---|---|---|---|---|"]
    for name in arguments.only:
        began, rates = metrics.clock(), {}
        run = METHODS[name](scene)
        run(0.5)
        for precision in ("highest", "high"):
            torch.set_float32_matmul_precision(precision)
            start = metrics.clock()
            rates[precision] = run(arguments.seconds) / (metrics.clock() - start)
        torch.set_float32_matmul_precision("highest")
        started, busy, told = kernels(run, min(arguments.seconds, 0.8), arguments.detail)
        lines.append(f"| {name} | {rates['highest']:.1f} | {rates['high']:.1f} | {started:.0f} | {busy:.2f} | {told} |")
        print(lines[-1], f"   ({metrics.clock() - began:.0f} s)", flush=True)
        torch.cuda.empty_cache()
    (arguments.out / f"gpu-steps-{today}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What a training step of the `gpu` presets' sizes costs on one CUDA GPU, and what it spends its time on.

For each method: steps a second, with matrices in full precision and, beside it, in TF32; kernels started a step, seconds of kernels
in a second of training (1 is a GPU that never waits), and the operations that take longest. Scene and settings are those of
`bench_gpu_lego`; kernels are counted over a training from its beginning, so that what comes before the first step is among them.

`python -m tests.bench gpu_steps [--only nerf hash] [--seconds 3] [--detail]`
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import traceback
from pathlib import Path

import bench_gpu_lego as lego  # before torch: it says how torch's threads wait

# isort: split
import torch
from bench_gpu_lego import GPU, by_clock, fresh, settings
from torch.profiler import ProfilerActivity, profile

from nsw import metrics
from nsw.methods import gaussian_splatting, gaussian_splatting_2d, instant_ngp_fit, nerdf, nerdf_fit, nerf, pvd, pvd_inspect
from nsw.methods import instant_ngp as ngp
from nsw.models.mlp import CoarseFine, CoarseFineSettings
from nsw.models.ray_distribution import RayDistribution, RaySettings
from nsw.models.surfels import Surfels
from nsw.renderers.volume import render_rays


def train_nerf(scene, seconds: float) -> tuple[float, int]:
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

    return by_clock(step, seconds)


def train_nerdf(scene, seconds: float) -> tuple[float, int]:
    s = settings("09")
    plan = instant_ngp_fit.Plan(200, 1 << 13, 0.05, 0.02, update_every=8, decay=0.6)
    sizes = dict(n_levels=s.teacher_levels, n_max=s.teacher_finest, log2_entries=s.teacher_entries_log2, n_features=2, n_cells=32)
    teacher = nerdf_fit.teacher_of(scene, plan, 0, 400, GPU, **sizes)
    cameras, box = scene.views("train").to(GPU), scene.box
    student = RayDistribution(RaySettings(s.depth, s.width, 2, s.n_points, s.levels, 2, 24, s.n_samples, box=box)).to(GPU)
    students, course = {"student": student}, nerdf_fit.Course(10, s.rays, 64, s.lr)
    poses = lambda n, generator: nerdf.blended_cameras(cameras, n, generator)  # noqa: E731
    spent, tens = by_clock(lambda progress: nerdf_fit.distil(students, teacher, poses, course, fresh(), scene.near), seconds)
    return spent, 10 * tens


def train_pvd(scene, seconds: float) -> tuple[float, int]:
    s = settings("10")
    sizes = dict(n_levels=s.levels, n_features=2, log2_entries=s.entries_log2, n_max=s.finest, width=s.width, n_cells=s.cells)
    trunk = dict(depth=s.depth, width=s.network_width, skip=s.depth // 2, levels=s.octaves)
    model = instant_ngp_fit.new_model(scene, s.steps_across, **sizes).to(GPU)
    pixels = ngp.training_pixels(scene, model.aabb, device=GPU)
    instant_ngp_fit.fit(model, pixels, instant_ngp_fit.Plan(200, s.samples, decay=0.6, update_every=8), fresh(), scene.near)
    plan = pvd.Plan(s.steps, n_samples=s.samples, n_cells=s.cells, size=200, n_poses=64)
    step = pvd_inspect.contestants(model, scene, pixels, plan, 0, s.network_lr, **trunk)["distilled"][1]
    return by_clock(lambda progress: step(0.9), seconds)


def train_surfels(scene, seconds: float) -> tuple[float, int]:
    s = settings("21")
    start = Surfels.from_points(gaussian_splatting.starting_points(scene, s.n_start, 0), sh_degree=1).to(GPU)
    training = gaussian_splatting_2d.Training(start, scene.scale, s.n_steps)
    rules = gaussian_splatting_2d.Regularisers(0.03, 3.0, 0, 0)
    return by_fit(lambda steps: gaussian_splatting_2d.fit(training, scene, steps, rules), seconds)


def train_splats(scene, seconds: float) -> tuple[float, int]:
    """100,000 splats, none added."""
    s = settings("03")
    start = lego.Gaussians.from_points(gaussian_splatting.starting_points(scene, s.n_start, 0), sh_degree=3).to(GPU)
    training = gaussian_splatting.Training(start, scene.scale, s.n_steps)
    return by_fit(lambda steps: gaussian_splatting.fit(training, scene, steps, background=1.0), seconds)


def by_fit(fit, seconds: float) -> tuple[float, int]:
    """Train with step numbers for some seconds; return seconds and steps."""
    began, seen = metrics.clock(), [0]

    def steps():
        while metrics.clock() - began < seconds:
            yield 2000 + seen[0]
            seen[0] += 1

    fit(steps())
    return metrics.clock() - began, seen[0]


def of_lego(name: str):
    """Return the training of `bench_gpu_lego` for some seconds, as one that returns seconds and steps."""
    return lambda scene, seconds: lego.METHODS[name][0](scene, seconds)[0]


METHODS = {"nerf": train_nerf, **{name: of_lego(name) for name in ("plenoxels", "hash", "vm")}}
METHODS |= {"dvgo": lambda scene, seconds: of_lego("dvgo")(scene, 2 * seconds + 8)}  # its coarse stage must find something first
METHODS |= {"nerdf": train_nerdf, "pvd": train_pvd, "splats": train_splats, "surfels": train_surfels}


def kernels(train, scene, seconds: float, detail: bool) -> tuple[float, float, str]:
    """Return kernels a step, seconds of kernels in one of training, and the three operations that take longest."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as prof:
        spent, n = train(scene, seconds)
    events = prof.key_averages()
    if detail:
        print(events.table(sort_by="self_device_time_total", row_limit=22, max_name_column_width=70), flush=True)
        print(events.table(sort_by="self_cpu_time_total", row_limit=14, max_name_column_width=50), flush=True)
    device = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA and "#" not in e.key]  # no "Optimizer.step#..."
    busy = sum(e.self_device_time_total for e in device)
    names = sorted(device, key=lambda e: -e.self_device_time_total)[:3]
    told = ", ".join(f"{e.key[:60]} {100 * e.self_device_time_total / max(busy, 1):.0f} %" for e in names)
    return sum(e.count for e in device) / max(n, 1), busy / 1e6 / spent, told.replace("|", "/")


def measured(name: str, scene, seconds: float, detail: bool) -> str:
    """Return a method's row."""
    rates, train = {}, METHODS[name]
    train(scene, 0.5)
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        spent, n = train(scene, seconds)
        rates[precision] = n / spent
    torch.set_float32_matmul_precision("highest")
    started, busy, told = kernels(train, scene, seconds, detail)
    return f"| {name} | {rates['highest']:.1f} | {rates['high']:.1f} | {started:.0f} | {busy:.2f} | {told} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seconds", type=float, default=3.0, help="of steps for each number")
    parser.add_argument("--detail", action="store_true", help="print the profiler's tables")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    if (scene := lego.lego_on_a_gpu()) is None:
        return 0
    today = datetime.date.today().isoformat()
    lines = [f"# A training step on a GPU, {today}", ""]
    lines += [f"{torch.cuda.get_device_name()}, {os.cpu_count()} CPU cores; torch {torch.__version__}; lego at 200 pixels.", ""]
    lines += ["| method | steps a second | with TF32 | kernels a step | busy | longest kernels |", "|---|---|---|---|---|---|"]
    failed = False
    for name in arguments.only:
        began = metrics.clock()
        try:
            lines.append(measured(name, scene, arguments.seconds, arguments.detail))
            print(lines[-1], f"   ({metrics.clock() - began:.0f} s)", flush=True)
        except Exception:  # and the other methods are measured all the same
            traceback.print_exc()
            failed = True
        torch.cuda.empty_cache()
    (arguments.out / f"gpu-steps-{today}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

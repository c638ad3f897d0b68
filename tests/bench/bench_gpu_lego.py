"""Train at the `gpu` presets' sizes on NeRF-Synthetic lego: PSNR on the test views after some seconds of one CUDA GPU.

The settings are read from the notebooks, so that this is their method at their size; fields follow a clock (`--seconds`), splats
take all the preset's steps, or `--steps`, to which their schedules shrink. The pictures are not part of the project (CC-BY-NC):
their folder is `shared/data/lego` beside the checkout or `$NSW_LEGO`. They are used at the size they have there.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nsw.scenes  # before torch: it says how torch's threads wait

# isort: split
import nbformat
import torch
from bench_gpu_presets import settings_table
from bench_lego import LEGO

from nsw import metrics
from nsw.methods import (
    dvgo,
    dvgo_stages,
    gaussian_splatting,
    instant_ngp_fit,
    mcmc_chain,
    plenoxels,
    plenoxels_fit,
    tensorf,
    tensorf_fit,
)
from nsw.methods import instant_ngp as ngp
from nsw.methods.density_control import DensityControl
from nsw.models.factors import VMSizes
from nsw.models.gaussians import Gaussians
from nsw.renderers import splats
from nsw.runs.notebooks import find_notebook
from nsw.scenes import Scene

GPU = torch.device("cuda")
grown: dict[str, int] = {}  # splats that density control made
few: dict[str, int] = {}  # steps of splats, if not the preset's


def settings(number: str) -> SimpleNamespace:
    """Return the gpu column of a notebook's table of settings."""
    for cell in nbformat.read(find_notebook(number), 4).cells:
        if cell.cell_type == "code" and "run.settings(" in cell.source:
            rows = {row.arg: ast.unparse(row.value) for row in settings_table(ast.parse(cell.source))}
            return SimpleNamespace(**{name: eval(text, {"tensorf": tensorf})[2] for name, text in rows.items()})
    raise SystemExit(f"Notebook {number} has no table of settings.")


def lego_on_a_gpu() -> Scene | None:
    """Return the scene, or say why nothing can be measured here."""
    if not torch.cuda.is_available():
        print("Skipped: torch finds no CUDA GPU here.")
        return None
    if not LEGO.is_dir():
        print(f"Skipped: {LEGO} is not there; set NSW_LEGO to a folder with NeRF-Synthetic lego.")
        return None
    return nsw.scenes.load(LEGO)


def fresh() -> torch.Generator:
    torch.manual_seed(0)
    return torch.Generator(GPU).manual_seed(0)


def by_clock(step, seconds: float) -> tuple[float, int]:
    """Train by the share of the time that is spent; return seconds and steps."""
    began, n_steps = metrics.clock(), 0
    while (spent := metrics.clock() - began) < seconds:
        step(spent / seconds)
        n_steps += 1
    return spent, n_steps


def train_splats(scene, seconds: float):
    s = settings("03")
    s.n_steps = few.get("steps", s.n_steps)
    points = gaussian_splatting.starting_points(scene, s.n_start, 0)
    control = DensityControl().for_budget(
        s.n_steps, max_splats=s.max_splats, every=s.refine_every, grow_gradient=s.grow_gradient
    )  # fmt: skip
    start = Gaussians.from_points(points, sh_degree=3).to(GPU)
    training = gaussian_splatting.Training(start, scene.scale, s.n_steps, control=control)
    began = metrics.clock()
    gaussian_splatting.fit(training, scene, range(s.n_steps), background=1.0)
    spent, grown["splats"] = metrics.clock() - began, len(training.gaussians)
    return (spent, s.n_steps), f"{len(training.gaussians)} splats", lambda c: splats.render_view(training.gaussians, c)


def train_mcmc(scene, seconds: float):
    """As many splats as density control made, where that was trained before."""
    s = settings("20")
    s.n_steps = few.get("steps", s.n_steps)
    start = Gaussians.random(scene.aabb, s.n_start, gaussian_splatting.generator_at(0, 0), opacity=0.5, scale=s.size, sh_degree=3)
    schedule = dict(start=s.start, every=s.every, noise_lr=s.noise_lr, gate_at=s.dead_at, min_opacity=s.dead_at)
    sampling = mcmc_chain.Sampling(grown.get("splats", s.max_splats)).for_budget(s.n_steps, scale_weight=s.scale_weight, **schedule)
    chain = mcmc_chain.Chain(start.to(GPU), scene.scale, s.n_steps, sampling)
    began = metrics.clock()
    gaussian_splatting.fit(chain, scene, range(s.n_steps), background=1.0, penalty=chain.penalty)
    spent = metrics.clock() - began
    return (spent, s.n_steps), f"{len(chain.gaussians)} splats", lambda c: splats.render_view(chain.gaussians, c)


def train_dvgo(scene, seconds: float):
    s, generator = settings("02"), fresh()
    bank = dvgo_stages.ray_bank(scene, device=GPU)
    coarse_stage = dvgo_stages.Stage(s.coarse**3, s.coarse_steps, s.coarse_rays, lr=s.coarse_lr)
    fine_stage = dvgo_stages.Stage(
        s.fine**3, s.fine_steps, s.fine_rays, alpha_init=1e-2, lr=s.fine_lr, lr_network=s.network_lr, per_point=0.01, entropy=0.001,
        threshold=1e-4, grow=(250, 500, 750), refresh=500, n_features=s.features, mlp_width=s.width,
    )  # fmt: skip
    coarse = dvgo_stages.new_coarse(scene, coarse_stage).to(GPU)
    counts = dvgo.count_views(coarse, scene.views("train").to(GPU), scene.near, scene.far)
    dvgo.hide_voxels(coarse, scene.views("train").to(GPU), scene.near, counts)
    spent = dvgo_stages.fit(coarse, bank, coarse_stage, generator, scene.near, counts, seconds=seconds / 4)
    fine, n_steps = dvgo_stages.new_fine(coarse, fine_stage).to(GPU), [0]
    hits = bank.only(dvgo.hits_mask(fine, bank.rays, scene.near))
    watch = lambda step, spent, out: n_steps.__setitem__(0, step + 1)  # noqa: E731
    spent += dvgo_stages.fit(fine, hits, fine_stage, generator, scene.near, seconds=0.75 * seconds, watch=watch)
    about = f"{' x '.join(map(str, fine.shape))} vertices"
    return (spent, n_steps[0]), about, lambda c: dvgo.render_view(fine, c.to(GPU), scene.near)


def train_plenoxels(scene, seconds: float):
    s, n_steps = settings("04"), [0]
    names = ("sizes", "n_rays", "sh_degree", "lr_density", "lr_colour", "tv_density", "tv_colour", "tv_share", "dilate")
    recipe = plenoxels_fit.Recipe(**{name: getattr(s, name) for name in names})
    plenoxels_fit.warm_up(scene, recipe, GPU)
    bank, model = plenoxels_fit.view_bank(scene, None, GPU), plenoxels_fit.new_grid(scene.aabb.to(GPU), recipe)
    watch = lambda step, spent: n_steps.__setitem__(0, step + 1)  # noqa: E731
    spent = plenoxels_fit.fit(model, bank, recipe, fresh(), scene.near, seconds=seconds, watch=watch)
    about = f"{' x '.join(map(str, model.shape))} vertices"
    return (spent, n_steps[0]), about, lambda c: plenoxels.render_view(model, c.to(GPU), scene.near)


def train_vm(scene, seconds: float):
    s, generator = settings("06"), fresh()
    sizes = dict(n_voxels=s.start**3, n_features=s.features, mlp_width=s.width, n_frequencies=s.octaves, n_cells=s.cells)
    sizes |= dict(shift=s.shift, basis_start=s.basis_start, factors=VMSizes(s.rank_density, s.rank_colour))
    plan = replace(
        tensorf.Plan(), n_samples=s.samples, n_voxels=s.finest**3, lr=s.lr, lr_network=s.network_lr, momentum=s.momentum,
        last_rate=s.last_rate, grow_at=s.grow_at, l1=s.l1[0], l1_later=s.l1[1], threshold=s.threshold, opaque=s.opaque,
    )  # fmt: skip
    model = tensorf_fit.new_model(scene, **sizes).to(GPU)
    pixels = ngp.training_pixels(scene, model.aabb, device=GPU)
    spent = by_clock(tensorf_fit.tensorf_steps(model, pixels, plan, generator, scene.near), seconds)
    return spent, f"{model.n_bytes / 1e6:.1f} MB", lambda c: ngp.render_view(model, c.to(GPU), scene.near)


def train_hash(scene, seconds: float):
    s, generator = settings("05"), fresh()
    sizes = dict(n_levels=s.levels, n_features=2, log2_entries=s.entries_log2, n_max=s.finest, width=s.width, n_cells=s.cells)
    plan = instant_ngp_fit.Plan(
        s.steps, s.samples, s.table_lr, s.network_lr, s.last_rate, update_every=s.update_every, decay=s.decay
    )  # fmt: skip
    model = instant_ngp_fit.new_model(scene, s.steps_across, **sizes).to(GPU)
    pixels = ngp.training_pixels(scene, model.aabb, device=GPU)
    spent = by_clock(instant_ngp_fit.hash_steps(model, pixels, plan, generator, scene.near), seconds)
    return spent, f"{model.levels.n_rows} entries", lambda c: ngp.render_view(model, c.to(GPU), scene.near)


METHODS = {
    "splats": (train_splats, "03"),
    "mcmc": (train_mcmc, "20"),
    "hash": (train_hash, "05"),
    "vm": (train_vm, "06"),
    "dvgo": (train_dvgo, "02"),
    "plenoxels": (train_plenoxels, "04"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seconds", type=float, default=60.0, help="of each field's training")
    parser.add_argument("--steps", type=int, help="of splats, in place of the preset's")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    if (scene := lego_on_a_gpu()) is None:
        return 0
    if arguments.steps:
        few["steps"] = arguments.steps
    arguments.out.mkdir(parents=True, exist_ok=True)
    today, card = datetime.date.today().isoformat(), torch.cuda.get_device_name()
    lines = [f"# Lego on a GPU, {today}", "", f"{card}, {os.cpu_count()} CPU cores; torch {torch.__version__}. One seed."]
    lines += [f"{metrics.describe(scene)}. Training alone is counted, scores and pictures are not.", ""]
    lines += ["| method | notebook's preset | PSNR, dB | SSIM | seconds | steps | size | pictures a second | most GPU memory, MB |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    for name in arguments.only:
        train, number = METHODS[name]
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        (spent, n_steps), about, render = train(scene, arguments.seconds)
        most = torch.cuda.max_memory_allocated() / 2**20
        with torch.no_grad():
            score = metrics.evaluate(render, scene)
            began = metrics.clock()
            for i in range(len(scene.splits["test"])):
                render(scene.views("test")[i])
            rate = len(scene.splits["test"]) / (metrics.clock() - began)
        row = f"| {name} | {number} | {score.psnr:.2f} | {score.ssim:.3f} | {spent:.0f} | {n_steps} | {about} "
        row += f"| {rate:.1f} | {most:.0f} |"
        lines.append(row)
        print(row, flush=True)
        (arguments.out / f"gpu-lego-{today}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

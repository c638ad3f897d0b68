"""Train at the `gpu` presets' sizes on NeRF-Synthetic lego: PSNR on the test views after some seconds of one CUDA GPU.

The settings are read from the notebooks, so that this is their method at their size; fields follow a clock (`--seconds`), splats
take all the preset's steps, or `--steps`, to which their schedules shrink. The pictures are not part of the project (CC-BY-NC):
their folder is `shared/data/lego` beside the checkout or `$NSW_LEGO`. They are used at the size they have there.
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
import preset_sizes
import torch
from bench_lego import LEGO

from nsw import metrics
from nsw.methods import dvgo, dvgo_stages, gaussian_splatting, instant_ngp_fit, mcmc_chain, plenoxels, plenoxels_fit, tensorf_fit
from nsw.methods import instant_ngp as ngp
from nsw.models.gaussians import Gaussians
from nsw.renderers import splats
from nsw.scenes import Scene

GPU = torch.device("cuda")
grown: dict[str, int] = {}  # splats that density control made
few: dict[str, int] = {}  # steps of splats, if not the preset's


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
    s = preset_sizes.settings("03", "gpu")
    s.n_steps = few.get("steps", s.n_steps)
    training = preset_sizes.splats_training(scene, s, 3, GPU)
    began = metrics.clock()
    gaussian_splatting.fit(training, scene, range(s.n_steps), background=1.0)
    spent, grown["splats"] = metrics.clock() - began, len(training.gaussians)
    return (spent, s.n_steps), f"{len(training.gaussians)} splats", lambda c: splats.render_view(training.gaussians, c)


def train_mcmc(scene, seconds: float):
    """As many splats as density control made, where that was trained before."""
    s = preset_sizes.settings("20", "gpu")
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
    generator, bank = fresh(), dvgo_stages.ray_bank(scene, device=GPU)
    coarse_stage, fine_stage = preset_sizes.dvgo_both(preset_sizes.settings("02", "gpu"))
    fine_stage = replace(fine_stage, grow=(250, 500, 750), refresh=500)  # not shares of steps: the clock ends the training
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
    recipe, n_steps = preset_sizes.plenoxels_recipe(preset_sizes.settings("04", "gpu")), [0]
    plenoxels_fit.warm_up(scene, recipe, GPU)
    bank, model = plenoxels_fit.view_bank(scene, None, GPU), plenoxels_fit.new_grid(scene.aabb.to(GPU), recipe)
    watch = lambda step, spent: n_steps.__setitem__(0, step + 1)  # noqa: E731
    spent = plenoxels_fit.fit(model, bank, recipe, fresh(), scene.near, seconds=seconds, watch=watch)
    about = f"{' x '.join(map(str, model.shape))} vertices"
    return (spent, n_steps[0]), about, lambda c: plenoxels.render_view(model, c.to(GPU), scene.near)


def train_vm(scene, seconds: float):
    generator = fresh()
    model, plan = preset_sizes.vm(scene, preset_sizes.settings("06", "gpu"), GPU)
    pixels = ngp.training_pixels(scene, model.aabb, device=GPU)
    spent = by_clock(tensorf_fit.tensorf_steps(model, pixels, plan, generator, scene.near), seconds)
    return spent, f"{model.n_bytes / 1e6:.1f} MB", lambda c: ngp.render_view(model, c.to(GPU), scene.near)


def train_hash(scene, seconds: float):
    generator = fresh()
    model, plan = preset_sizes.hash_grid(scene, preset_sizes.settings("05", "gpu"), GPU)
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

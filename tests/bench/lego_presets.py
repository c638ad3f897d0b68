"""Trainings of `bench_lego.py` at the sizes of the notebooks' own `laptop` presets, a multiple of the presets' steps long.

Models, batches, learning rates and schedules are those of the notebooks' tables; the pictures have the bench's 100 px. Every
schedule is a share of the steps, so that what is learned does not depend on the machine's speed; the clock watches.
"""

from __future__ import annotations

from dataclasses import replace

import preset_sizes
import torch

from nsw.methods import dvgo, dvgo_stages, gaussian_splatting, instant_ngp_fit, plenoxels, plenoxels_fit, tensorf_fit
from nsw.methods import instant_ngp as ngp
from nsw.models.dense_grid import DenseGrid, DenseGridSettings
from nsw.renderers import splats

PRESET = "laptop"


def train_splats(scene, length: float, clock_for):
    """Notebook 03: harmonics of degree 2, as its parameters say."""
    s = preset_sizes.settings("03", PRESET, length)
    rehearsal = preset_sizes.splats_training(scene, s, sh_degree=2)
    gaussian_splatting.fit(rehearsal, scene, range(5), background=1.0)
    training = preset_sizes.splats_training(scene, s, sh_degree=2)
    clock = clock_for(lambda c: splats.render_view(training.gaussians, c))
    gaussian_splatting.fit(training, scene, watched(range(s.n_steps), clock), background=1.0)
    training.control = None
    further = range(s.n_steps, s.n_steps + 20)
    return clock, {"splats": len(training.gaussians)}, lambda: gaussian_splatting.fit(training, scene, further, background=1.0)


def train_dvgo(scene, length: float, clock_for):
    """Notebook 02: a coarse stage over all that cameras see, a fine one in the box of what it found."""
    generator, views = fresh(), scene.views("train")
    bank, (first, second) = dvgo_stages.ray_bank(scene), preset_sizes.dvgo_both(preset_sizes.settings("02", PRESET, length))
    compile_dvgo(scene, bank, (first, second), generator)
    state = {"model": dvgo_stages.new_coarse(scene, first)}
    clock = clock_for(lambda c: dvgo.render_view(state["model"], c, scene.near))
    watch = lambda step, spent, out: clock.tick()  # noqa: E731
    coarse = state["model"]
    counts = dvgo.count_views(coarse, views, scene.near, scene.far)
    dvgo.hide_voxels(coarse, views, scene.near, counts)
    dvgo_stages.fit(coarse, bank, first, generator, scene.near, counts, watch=watch)
    fine = state["model"] = dvgo_stages.new_fine(coarse, second)
    hits = bank.only(dvgo.hits_mask(fine, bank.rays, scene.near))
    dvgo_stages.fit(fine, hits, second, generator, scene.near, watch=watch)
    few = replace(second, n_steps=20, grow=(), refresh=0)
    return clock, {"vertices": list(fine.shape)}, lambda: dvgo_stages.fit(fine, hits, few, generator, scene.near)


def compile_dvgo(scene, bank: dvgo_stages.RayBank, stages: tuple[dvgo_stages.Stage, ...], generator: torch.Generator) -> None:
    """Take two steps with tiny grids, so that no clock counts the compiler: kernels are compiled for each number of features."""
    box = scene.box
    for stage in stages:
        small = DenseGrid(DenseGridSettings(box, n_voxels=10**3, n_features=stage.n_features, alpha_init=0.1))
        few = replace(stage, n_steps=2, n_rays=64, n_samples=0, grow=(), refresh=1)
        dvgo_stages.fit(small, bank, few, generator, scene.near)


def train_plenoxels(scene, length: float, clock_for):
    """Notebook 04: two sizes of grid, pruned and grown between them."""
    recipe = preset_sizes.plenoxels_recipe(preset_sizes.settings("04", PRESET, length))
    plenoxels_fit.warm_up(scene, recipe)
    generator, bank, model = fresh(), plenoxels_fit.view_bank(scene), plenoxels_fit.new_grid(scene.aabb, recipe)
    clock = clock_for(lambda c: plenoxels.render_view(model, c, scene.near))
    plenoxels_fit.fit(model, bank, recipe, generator, scene.near, watch=lambda step, spent: clock.tick())
    about, few = {"vertices": list(model.shape), "kept": int(model.kept.sum())}, replace(recipe, n_steps=20, grow_at=(2.0,))
    return clock, about, lambda: plenoxels_fit.fit(model, bank, few, generator, scene.near)


def train_vm(scene, length: float, clock_for):
    """Notebook 06: planes and lines, grown three times."""
    generator = fresh()
    model, plan = preset_sizes.vm(scene, preset_sizes.settings("06", PRESET, length))
    steps = tensorf_fit.tensorf_steps(model, ngp.training_pixels(scene, model.aabb), plan, generator, scene.near)
    clock = by_steps(steps, plan.n_steps, clock_for(lambda c: ngp.render_view(model, c, scene.near)))
    about = {"vertices": list(model.shape), "megabytes": round(model.n_bytes / 1e6, 2)}
    return clock, about, lambda: [steps(1.0) for _ in range(20)]


def train_hash(scene, length: float, clock_for):
    """Notebook 05: eight levels of two features."""
    generator = fresh()
    model, plan = preset_sizes.hash_grid(scene, preset_sizes.settings("05", PRESET, length))
    steps = instant_ngp_fit.hash_steps(model, ngp.training_pixels(scene, model.aabb), plan, generator, scene.near)
    clock = by_steps(steps, plan.n_steps, clock_for(lambda c: ngp.render_view(model, c, scene.near)))
    return clock, {"entries": model.levels.n_rows}, lambda: [steps(1.0) for _ in range(20)]


def fresh() -> torch.Generator:
    torch.manual_seed(0)
    return torch.Generator().manual_seed(0)


def watched(steps, clock):
    """Yield the steps of a training, and tell the clock after each."""
    for step in steps:
        yield step
        clock.tick()


def by_steps(step, n_steps: int, clock):
    """Train by a function of the share of the steps that are done; return the clock."""
    for k in watched(range(n_steps), clock):
        step(k / n_steps)
    return clock


METHODS = {"dvgo": train_dvgo, "splats": train_splats, "plenoxels": train_plenoxels, "vm": train_vm, "hash": train_hash}

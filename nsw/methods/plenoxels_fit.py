"""Whole Plenoxels trainings as functions, for ablations, baselines and scripts; the notebook shows the same loop opened up."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from nsw.cameras import Rays
from nsw.kernels.row_rmsprop import RowRMSProp
from nsw.losses import loss_mse
from nsw.methods import nerf, plenoxels
from nsw.methods.dvgo_stages import RayBank, ray_bank
from nsw.metrics import clock
from nsw.models.dense_grid import grid_shape
from nsw.models.field import host_box
from nsw.models.mlp import CoarseFine, CoarseFineSettings
from nsw.models.plenoxel_grid import PlenoxelGrid, PlenoxelGridSettings
from nsw.models.rebuilding import rebuild
from nsw.renderers.volume import render_rays
from nsw.scenes.scene import Scene


@dataclass(frozen=True)
class Recipe:
    """How a grid is trained.

    Short runs want other rates than the paper's 128,000 steps: harmonics start at five times the rate, and both end higher.

    Attributes:
        sizes: voxels along an edge of a cube of the box's volume, coarse to fine.
        grow_at: share of the training at which each next size begins; before the last one, unseen voxels are pruned.
        n_steps, n_rays: optimiser steps and rays of a batch.
        sh_degree: of the harmonics.
        lr_density, lr_colour: rates at the start and at the end.
        warm_up: share of the training over which the rate of density rises.
        tv_density, tv_colour: weights of the total variation, and tv_share, the share of voxels that a step asks.
        beta, sparsity: weights of the terms that the paper adds for real scenes; 0 leaves them out.
        tv_always: keep it after the last growth, as the official code does for forward-facing scenes only.
        prune: 1 prunes at the official threshold, 0 never; others scale it.
        n_votes: rays asked before pruning, about; from all views, and more than the coarse grid has voxels to see.
        dilate: voxels around a seen one that stay; 2 of 256 are little, 2 of 28 are much.
        nearest: no interpolation.
        density_init: density of all voxels at the start.
        stop: transmittance below which a ray ends while training.
    """

    sizes: tuple[int, ...] = (40, 64)
    grow_at: tuple[float, ...] = (0.3,)
    n_steps: int = 400
    n_rays: int = 2048
    sh_degree: int = 2
    lr_density: tuple[float, float] = (30.0, 1.0)
    lr_colour: tuple[float, float] = (0.05, 3e-3)
    warm_up: float = 0.02
    tv_density: float = 1e-3
    tv_colour: float = 1e-2
    tv_share: float = 0.1
    beta: float = 0.0
    sparsity: float = 0.0
    tv_always: bool = True
    prune: float = 1.0
    n_votes: int = 80_000
    dilate: int = 2
    nearest: bool = False
    density_init: float = 0.1
    stop: float = 1e-3


def new_grid(box: Float[Tensor, "2 3"], recipe: Recipe) -> PlenoxelGrid:
    """Return a grey, nearly transparent grid of the first size over a box."""
    corner = tuple(box.reshape(6).tolist())
    return PlenoxelGrid(
        PlenoxelGridSettings(corner, recipe.sizes[0] ** 3, recipe.sh_degree, recipe.density_init, recipe.nearest)
    ).to(box.device)


def make_optimizer(model: PlenoxelGrid, recipe: Recipe) -> RowRMSProp:
    """Return the optimiser of a grid."""
    return RowRMSProp(model.values, recipe.lr_density[0], recipe.lr_colour[0])


def set_rates(optimizer: RowRMSProp, progress: float, recipe: Recipe) -> None:
    """Set both learning rates for the share of the training that is done."""
    group = optimizer.param_groups[0]
    group["lr"] = plenoxels.lr_density(progress, *recipe.lr_density, recipe.warm_up)
    group["lr_colour"] = plenoxels.lr_colour(progress, *recipe.lr_colour)


def level_of(model: PlenoxelGrid, recipe: Recipe) -> int:
    """Return which of the recipe's sizes a grid has."""
    return [grid_shape(host_box(model), n**3) for n in recipe.sizes].index(model.shape)


def voters(rays: Rays, about: int) -> Rays:
    """Return every k-th ray, so that there are about so many: all of them where there are fewer than twice as many."""
    return rays[torch.arange(0, len(rays), max(1, len(rays) // about), device=rays.origins.device)]


def maintain(
    model: PlenoxelGrid,
    optimizer: RowRMSProp | None,
    progress: float,
    recipe: Recipe,
    rays: Rays,
    near: float,
    before: PlenoxelGrid | None = None,
) -> bool:
    """Prune and grow when it is time for it; return whether the grid has changed. It depends on the grid and progress alone.

    Args:
        rays: all training rays; they decide what is pruned.
        before: becomes what the grid was before it changed.
    """
    level = level_of(model, recipe)
    if level + 1 >= len(recipe.sizes) or progress < recipe.grow_at[level]:
        return False
    if before is not None:
        before.load_state_dict(model.state_dict())
    size = recipe.sizes[level + 1]
    if level + 2 == len(recipe.sizes) and recipe.prune > 0:
        weight = plenoxels.visible_weight(model, voters(rays, recipe.n_votes), near)
        plenoxels.prune(model, optimizer, weight, recipe.prune * plenoxels.prune_threshold(size), recipe.dilate)
    rebuild(model, optimizer, lambda: model.resize(size**3))
    return True


def losses(
    model: PlenoxelGrid, out: plenoxels.VoxelRender, colours: Float[Tensor, "R 3"], recipe: Recipe, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return the terms of the loss: colour, and those that the recipe asks for, total variation as long as it does."""
    terms = {"colour": loss_mse(out.rgb, colours)}
    if recipe.beta > 0:
        terms["beta"] = recipe.beta * plenoxels.loss_beta(out.left)
    if recipe.sparsity > 0:
        terms["sparsity"] = recipe.sparsity * plenoxels.loss_sparsity(model, generator, recipe.tv_share)
    early = len(recipe.sizes) == 1 or level_of(model, recipe) + 1 < len(recipe.sizes)
    if (early or recipe.tv_always) and (recipe.tv_density > 0 or recipe.tv_colour > 0):
        terms["tv"] = plenoxels.loss_tv(model, generator, recipe.tv_density, recipe.tv_colour, recipe.tv_share)
    return terms


def fit(
    model: PlenoxelGrid,
    bank: RayBank,
    recipe: Recipe,
    generator: torch.Generator,
    near: float,
    background: float | None = None,
    seconds: float | None = None,
    watch: Callable[[int, float], object] | None = None,
) -> float:
    """Train a grid and return how many seconds its steps took.

    Args:
        background: grey behind the pictures; the rays' own by default.
        seconds: train for so long; the schedule then follows the clock instead of the step.
        watch: called after every step with the step and the seconds so far.
    """
    optimizer, spent, step = make_optimizer(model, recipe), 0.0, 0
    while step < recipe.n_steps if seconds is None else spent < seconds:
        start = clock()
        progress = step / recipe.n_steps if seconds is None else spent / seconds
        maintain(model, optimizer, progress, recipe, bank.rays, near)
        set_rates(optimizer, progress, recipe)
        rays, colours = bank.draw(recipe.n_rays, generator)
        out = plenoxels.render(model, rays, near, background, generator, recipe.stop)
        sum(losses(model, out, colours, recipe, generator).values()).backward()
        optimizer.step(model.touched)
        step, spent = step + 1, spent + clock() - start
        if watch is not None:
            watch(step - 1, spent)
    return spent


@torch.enable_grad()  # also from inside a slider's callback
def finetune(
    model: PlenoxelGrid, bank: RayBank, recipe: Recipe, near: float, n_steps: int = 50, progress: float = 0.5, seed: int = 0
) -> PlenoxelGrid:
    """Return a copy that was trained for a few more steps, at the rates of a moment of the recipe, total variation always on."""
    twin, generator = copy.deepcopy(model), torch.Generator(model.aabb.device).manual_seed(seed)
    optimizer = make_optimizer(twin, recipe)
    set_rates(optimizer, progress, recipe)
    for _ in range(n_steps):
        rays, colours = bank.draw(recipe.n_rays, generator)
        loss = loss_mse(plenoxels.render(twin, rays, near, jitter=generator, stop=recipe.stop).rgb, colours)
        if recipe.tv_density > 0 or recipe.tv_colour > 0:
            loss = loss + plenoxels.loss_tv(twin, generator, recipe.tv_density, recipe.tv_colour, recipe.tv_share)
        loss.backward()
        optimizer.step(twin.touched)
    return twin


def view_bank(scene: Scene, n: int | None = None, device: torch.device | str = "cpu") -> RayBank:
    """Return the rays of n of the training views, evenly spread over their numbers, that meet the scene's box; all by default."""
    frames = scene.frames("train")
    frames = frames if n is None else frames[torch.linspace(0, len(frames) - 1, n).round().long()]
    return ray_bank(scene, frames, device=device, aabb=scene.aabb)


def fit_nerf(
    settings: CoarseFineSettings,
    scene: Scene,
    n_steps: int,
    generator: torch.Generator,
    n_rays: int = 256,
    lr: float = 1e-2,
    steps: Iterable[int] | None = None,
) -> CoarseFine:
    """Train the pair of networks of notebook 01 as that notebook does: the baseline of the paper's claim.

    Args:
        steps: `range(n_steps)`, perhaps through what shows how far it is.
    """
    device = generator.device
    torch.manual_seed(generator.initial_seed())
    model = CoarseFine(settings).to(device)
    pixels, cameras = scene.pixels("train").to(device), scene.views("train").to(device)
    useful = nerf.useful_pixels(cameras, scene.aabb.to(device), scene.usable("train"))
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for step in range(n_steps) if steps is None else steps:
        nerf.set_learning_rate(optimizer, nerf.learning_rate(step, n_steps, lr))
        rays, colours = nerf.ray_batch(pixels, cameras, n_rays, generator, useful)
        out = render_rays(model, rays, jitter=generator, **model.render_defaults)
        optimizer.zero_grad()
        sum(nerf.loss_terms(out, colours).values()).backward()
        optimizer.step()
    return model


def warm_up(scene: Scene, recipe: Recipe, device: torch.device | str = "cpu") -> None:
    """Take three steps with a tiny grid, so that the kernels are compiled before a clock runs; say so when it takes a while."""
    began, bank = clock(), view_bank(scene, 1, device)
    few = replace(recipe, sizes=(8, 10), grow_at=(0.5,), n_steps=3, n_rays=64, prune=1e-6)
    model = new_grid(scene.aabb.to(device), few)
    fit(model, bank, few, torch.Generator(device).manual_seed(0), scene.near)
    plenoxels.render_view(model, scene.views("train")[0].to(device), scene.near)
    if (spent := clock() - began) > 1.5:
        print(f"The voxel kernels are compiled, once on this machine: {spent:.0f} s.")

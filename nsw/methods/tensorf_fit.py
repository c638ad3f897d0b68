"""Training a factored grid as one function, and against the clock, for baselines, ablations and scripts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch

from nsw.losses import ExtraLoss, loss_mse
from nsw.methods import instant_ngp as ngp
from nsw.methods import tensorf
from nsw.methods.instant_ngp_fit import Step
from nsw.methods.tensorf import Plan
from nsw.models.vm_grid import VMGrid, VMGridSettings
from nsw.scenes.scene import Scene


def new_model(scene: Scene, **sizes) -> VMGrid:
    """Return an untrained factored grid over a scene's box; `sizes` are fields of `VMGridSettings`."""
    return VMGrid(VMGridSettings(scene.box, **sizes))


def tensorf_steps(
    model: VMGrid, pixels: ngp.Pixels, plan: Plan, generator: torch.Generator, near: float, extra_loss: ExtraLoss | None = None
) -> Step:
    """Return the function that trains a factored grid by one batch; it takes the share of the budget that is spent.

    Args:
        extra_loss: one more term, of the batch's colours, their truth and the generator.
    """
    compile_kernels(model, pixels, near)
    optimizer = tensorf.make_optimizer(model, plan.lr, plan.lr_network, plan.momentum)
    n_rays = ngp.first_batch(max(plan.n_samples // 64, 64), model.aabb, model.sample_length)
    state = {"before": 0.0, "pixels": pixels, "n_rays": n_rays}

    def step(progress: float) -> ngp.HashRender:
        if tensorf.maintain(model, optimizer, plan, state["before"], progress):
            state["pixels"] = tensorf.in_box(pixels, model)
        batch = state["pixels"].draw(state["n_rays"], generator)
        behind = ngp.random_backgrounds(batch, generator) if plan.random_background else batch.rays.background
        out = ngp.render(model, batch.rays, near, behind, generator, plan.threshold)
        truth = batch.over(behind)
        loss = loss_mse(out.rgb, truth) + sum(tensorf.losses(model, plan, progress).values())
        (loss if extra_loss is None else loss + extra_loss(out.rgb, truth, generator)).backward()
        optimizer.step()
        state["before"], state["n_rays"] = progress, ngp.next_batch(state["n_rays"], out.n_marched, plan.n_samples)
        return out

    return step


def compile_kernels(model: VMGrid, pixels: ngp.Pixels, near: float) -> None:
    """Run a copy once, so that no clock counts the compiler: kernels are compiled for each width of their vectors."""
    copied = copy.deepcopy(model)
    with torch.enable_grad():
        ngp.render(copied, pixels.rays[:64], near, threshold=0.0).rgb.sum().backward()


def fit(
    model: VMGrid,
    pixels: ngp.Pixels,
    plan: Plan,
    generator: torch.Generator,
    near: float,
    watch: Callable[[int, ngp.HashRender], object] | None = None,
    extra_loss: ExtraLoss | None = None,
) -> ngp.HashRender:
    """Train a factored grid for all steps of the plan, and return the last batch.

    Args:
        pixels: of `nsw.methods.instant_ngp.training_pixels(scene, model.aabb)`.
        near: where rays begin.
        watch: called after every step with the step and the batch.
        extra_loss: as for `tensorf_steps`.
    """
    step = tensorf_steps(model, pixels, plan, generator, near, extra_loss)
    with torch.enable_grad():  # also from inside a slider's callback
        for k in range(plan.n_steps):
            out = step(k / plan.n_steps)
            if watch is not None:
                watch(k, out)
    return out


def trained(scene: Scene, pixels: ngp.Pixels, plan: Plan, seed: int, **sizes) -> VMGrid:
    """Return a factored grid trained from the start, the same every time for a seed."""
    torch.manual_seed(seed)
    device = pixels.alpha.device
    model = new_model(scene, **sizes).to(device)
    fit(model, pixels, plan, torch.Generator(device).manual_seed(seed), scene.near)
    return model


def trained_on(model: VMGrid, pixels: ngp.Pixels, plan: Plan, n_steps: int, near: float, seed: int = 0) -> VMGrid:
    """Return a copy trained for some more steps, without growth or new masks: what a field that lost components wants."""
    copied, device = copy.deepcopy(model), pixels.alpha.device
    shorter = replace(plan, n_steps=n_steps, grow_at=(), mask_at=())
    fit(copied, pixels, shorter, torch.Generator(device).manual_seed(seed), near)
    return copied


def voxels_of_size(model: VMGrid, n_bytes: int) -> int:
    """Return how many voxels, each with a density and all colour features, take so many bytes besides basis and network."""
    return int(n_bytes / (4 * (1 + model.settings.n_features)))

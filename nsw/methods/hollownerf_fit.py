"""Training HollowNeRF as one function, for baselines, ablations and scripts."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from nsw.methods import hollownerf as hollow
from nsw.methods import instant_ngp as ngp
from nsw.methods.hollownerf_inspect import oracle
from nsw.methods.instant_ngp_fit import Plan, hash_steps
from nsw.models.hollow_grid import HollowGrid, HollowGridSettings
from nsw.scenes.scene import Scene


def new_model(scene: Scene, steps_across: int = 128, **sizes: float) -> HollowGrid:
    """Return an untrained hollow grid over the smallest cube around a scene.

    Args:
        steps_across: samples along an edge of the cube.
        sizes: fields of `HollowGridSettings`.
    """
    cube = ngp.cube_around(scene.aabb)
    step = float(cube[1, 0] - cube[0, 0]) / steps_across
    return HollowGrid(HollowGridSettings(tuple(cube.flatten().tolist()), step=step, **sizes))


def fit(
    model: HollowGrid, pixels: ngp.Pixels, plan: Plan, pruning: hollow.Pruning, generator: torch.Generator, near: float
) -> HollowGrid:
    """Train a hollow grid for all steps of the plan, as `instant_ngp_fit.fit` trains a hash grid, and return it."""
    optimizer = hollow.make_optimizer(model, plan.lr, plan.lr_network, pruning.lr, plan.eps)
    progress = 0.0
    term = lambda rgb, truth, _: hollow.constraint(model, pruning, progress)  # noqa: E731
    step = hash_steps(model, pixels, plan, generator, near, term, optimizer)
    with torch.enable_grad():  # also from inside a slider's callback
        for k in range(plan.n_steps):
            progress = k / plan.n_steps
            hollow.settle(model)
            if not plan.skip:  # an occupancy grid that is asked for skips by itself
                hollow.skip_empty(model, pruning, k, progress)
            step(progress)
    return model


def retrained(
    scene: Scene,
    pixels: ngp.Pixels,
    plan: Plan,
    pruning: hollow.Pruning,
    seed: int = 0,
    steps_across: int = 128,
    told: Bool[Tensor, "T T T"] | None = None,
    **sizes: float,
) -> HollowGrid:
    """Return a hollow grid of these sizes, trained from the start.

    Args:
        told: vertices beside the true surface, and the saliency is these throughout, see `hollownerf_inspect.oracle`.
    """
    device = pixels.alpha.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = new_model(scene, steps_across, **sizes)
        model = (model if told is None else oracle(model, told)).to(device)
        return fit(model, pixels, plan, pruning, torch.Generator(device).manual_seed(seed), scene.near)


def squeezed(
    field: HollowGrid, pixels: ngp.Pixels, plan: Plan, pruning: hollow.Pruning, n_steps: int, near: float, seed: int = 0
) -> HollowGrid:
    """Return a copy of a trained hollow grid after more steps under another constraint; the price starts at 0, at once.

    The optimiser starts anew, so that its first steps are as large as its rate: that is a fifth of what the plan ended with.
    """
    model = copy.deepcopy(field)
    model.multiplier.zero_()
    rate = 0.2 * plan.last_rate
    after = replace(plan, n_steps=n_steps, lr=plan.lr * rate, lr_network=plan.lr_network * rate, warmup=0.0, last_rate=1.0)
    generator = torch.Generator(pixels.alpha.device).manual_seed(seed)
    return fit(model, pixels, after, replace(pruning, start=0.0), generator, near)

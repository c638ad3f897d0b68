"""Training Instant-NGP as one function, or step by step as a race wants it, for baselines, ablations and scripts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch

from nsw import metrics
from nsw.cameras import Cameras
from nsw.kernels.masked_adam import MaskedAdam
from nsw.losses import ExtraLoss, loss_mse
from nsw.methods import instant_ngp as ngp
from nsw.methods.nerf import loss_terms, ray_batch, useful_pixels
from nsw.models.field import Field
from nsw.models.hash_grid import HashGrid, HashGridSettings
from nsw.models.mlp import NerfMLP, NerfSettings
from nsw.renderers.volume import render_rays, render_view
from nsw.scenes.scene import Scene

Step = Callable[[float], object]  # takes the share of the budget that is spent, in [0, 1]
Entry = tuple[Step, Callable[[], float]]  # in a race of `nsw.runs.race`: a step, and a score in dB


@dataclass(frozen=True)
class Plan:
    """How a hash grid is trained; the defaults suit some hundred steps, `PAPER` has the paper's.

    Attributes:
        n_steps: optimiser steps.
        n_samples: samples in occupied cells a batch; the number of rays follows.
        lr, lr_network: learning rates of table and networks.
        last_rate, warmup: factor of both at the end, and the share of the steps over which they rise.
        update_every, decay: steps between updates of the occupancy grid, and how fast an unconfirmed cell fades.
        threshold: weight below which a sample is not asked for its colour.
        eps: of Adam.
        random_background: whether transparent pixels get another background every time.
        skip: whether the occupancy grid is used at all.
    """

    n_steps: int = 400
    n_samples: int = 8192
    lr: float = 0.05
    lr_network: float = 0.02
    last_rate: float = 0.1
    warmup: float = 0.02
    update_every: int = 16
    decay: float = 0.4
    threshold: float = 1e-4
    eps: float = ngp.EPSILON
    random_background: bool = True
    skip: bool = True


PAPER = Plan(n_steps=20_000, n_samples=1 << 18, lr=1e-2, lr_network=1e-2, last_rate=0.03, warmup=0.005, update_every=16, decay=0.95)


def new_model(scene: Scene, steps_across: int = 128, **sizes: int) -> HashGrid:
    """Return an untrained hash grid over the smallest cube around a scene.

    Args:
        steps_across: samples along an edge of the cube.
        sizes: fields of `HashGridSettings`.
    """
    cube = ngp.cube_around(scene.aabb)
    return HashGrid(HashGridSettings(tuple(cube.flatten().tolist()), step=float(cube[1, 0] - cube[0, 0]) / steps_across, **sizes))


def single_level(model: HashGrid) -> HashGrid:
    """Return an untrained field with the same networks and as many parameters in one dense grid, for comparison."""
    s = model.settings
    n_features = s.n_levels * s.n_features
    n_cells = round((model.table.numel() / n_features) ** (1 / 3)) - 1  # a grid has a vertex more than cells
    one = replace(s, n_levels=1, n_features=n_features, n_min=n_cells, n_max=n_cells, log2_entries=24)
    return HashGrid(one).to(model.aabb.device)


def hash_steps(
    model: HashGrid,
    pixels: ngp.Pixels,
    plan: Plan,
    generator: torch.Generator,
    near: float,
    extra_loss: ExtraLoss | None = None,
    optimizer: MaskedAdam | None = None,
) -> Step:
    """Return the function that trains a hash grid by one batch.

    Args:
        extra_loss: one more term, of the batch's colours, their truth and the generator.
        optimizer: in place of the plan's, for a model with further parameters.
    """
    _compile(model, pixels, near)
    optimizer = optimizer or ngp.make_optimizer(model, plan.lr, plan.lr_network, plan.eps)
    state = {"step": 0, "n_rays": ngp.first_batch(max(plan.n_samples // 32, 64), model.aabb, model.sample_length)}

    def step(progress: float) -> ngp.HashRender:
        if plan.skip:
            ngp.update_occupancy(model, state["step"], plan.update_every, plan.decay)
        ngp.set_rate(optimizer, progress, plan.warmup, plan.last_rate)
        batch = pixels.draw(state["n_rays"], generator)
        behind = ngp.random_backgrounds(batch, generator) if plan.random_background else batch.rays.background
        out = ngp.render(model, batch.rays, near, behind, generator, plan.threshold)
        truth = batch.over(behind)
        loss = loss_mse(out.rgb, truth)
        (loss if extra_loss is None else loss + extra_loss(out.rgb, truth, generator)).backward()
        optimizer.step()
        state["step"], state["n_rays"] = state["step"] + 1, ngp.next_batch(state["n_rays"], out.n_marched, plan.n_samples)
        return out

    return step


def _compile(model: HashGrid, pixels: ngp.Pixels, near: float) -> None:
    """Run a copy once, so that no clock counts the compiler: kernels are compiled for each number of features."""
    copied = copy.deepcopy(model)
    with torch.enable_grad():
        ngp.render(copied, pixels.rays[:64], near).rgb.sum().backward()


def field_steps(
    field: torch.nn.Module, scene: Scene, generator: torch.Generator, n_rays: int, n_samples: int, lr: float = 5e-3
) -> Step:
    """Return the function that trains any field by one batch of stratified samples, the learning rate falling tenfold."""
    device = generator.device
    cameras, pictures = scene.views("train").to(device), scene.pixels("train").to(device)
    among = useful_pixels(cameras, scene.aabb.to(device), scene.usable("train"))
    optimizer = torch.optim.Adam(field.parameters(), lr=lr)

    def step(progress: float) -> None:
        optimizer.param_groups[0]["lr"] = lr * 0.1**progress
        rays, colours = ray_batch(pictures, cameras, n_rays, generator, among)
        out = render_rays(field, rays, n_samples=n_samples, jitter=generator)
        optimizer.zero_grad()
        sum(loss_terms(out, colours).values()).backward()
        optimizer.step()

    return step


def network_entry(scene: Scene, generator: torch.Generator, split: object = "test") -> tuple[NerfMLP, Entry]:
    """Return a small NeRF network, 32 samples a ray, and its entry in a race against grids.

    Args:
        split: or frames, that it is scored on.
    """
    sizes = dict(depth=4, width=64, skip=2, levels_position=8, levels_direction=3)
    network = NerfMLP(NerfSettings(box=scene.box, **sizes)).to(generator.device)
    shoot = lambda cameras: render_view(network, cameras, n_samples=32)  # noqa: E731
    return network, (field_steps(network, scene, generator, 256, 32), score_of(network, shoot, scene, split))


def hash_entry(
    scene: Scene, pixels: ngp.Pixels, plan: Plan, generator: torch.Generator, split: object = "test", **sizes: int
) -> tuple[HashGrid, Entry]:
    """Return an untrained hash grid and its entry in a race; `sizes` as for `new_model`, `split` as for `network_entry`."""
    model = new_model(scene, **sizes).to(generator.device)
    return model, (hash_steps(model, pixels, plan, generator, scene.near), score_hash(model, scene, split))


def fit(
    model: HashGrid,
    pixels: ngp.Pixels,
    plan: Plan,
    generator: torch.Generator,
    near: float,
    extra_loss: ExtraLoss | None = None,
    steps: Iterable[int] | None = None,
) -> ngp.HashRender:
    """Train a hash grid for all steps of the plan, with one more term if one is given, and return the last batch.

    Args:
        steps: `range(plan.n_steps)`, perhaps through what shows how far it is.
    """
    step = hash_steps(model, pixels, plan, generator, near, extra_loss)
    with torch.enable_grad():  # also from inside a slider's callback
        for k in range(plan.n_steps) if steps is None else steps:
            out = step(k / plan.n_steps)
    return out


def score_of(model: Field, render_view: Callable[[Cameras], object], scene: Scene, split: str = "test") -> Callable[[], float]:
    """Return the function that renders a split and gives its PSNR in dB."""
    cameras, truth = scene.views(split).to(model.aabb.device), scene.pixels(split)
    return lambda: metrics.psnr(render_view(cameras).rgb.cpu(), truth)


def score_hash(model: HashGrid, scene: Scene, split: str = "test") -> Callable[[], float]:
    """Return the function that gives a hash grid's PSNR in dB."""
    return score_of(model, lambda cameras: ngp.render_view(model, cameras, scene.near), scene, split)

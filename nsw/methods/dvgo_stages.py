"""The two stages of DVGO as functions, for baselines, ablations and scripts; the notebook shows the same loops opened up."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nsw.cameras import Rays, camera_rays, row_numbers, rows_at
from nsw.losses import ExtraLoss, loss_entropy, loss_mse
from nsw.methods import dvgo
from nsw.methods.instant_ngp import next_batch, worth_asking
from nsw.metrics import clock, until_spent
from nsw.models.dense_grid import DenseGrid, DenseGridSettings, post_activation
from nsw.models.rebuilding import rebuild
from nsw.renderers.volume import render_rays
from nsw.scenes.scene import Scene


@dataclass(frozen=True)
class Stage:
    """How one stage is trained; the defaults are the coarse stage's of the official configuration, but for its length.

    Attributes:
        n_voxels: of the full grid.
        n_steps: optimiser steps.
        n_rays: rays of a batch, of the first one where `n_samples` is given.
        n_samples: samples a batch that are asked for their colour, the number of rays following; 0 keeps `n_rays`. A grid that
            begins as fog keeps every sample of a ray, ten times as many as when it has surfaces.
        alpha_init: opacity of a voxel at the start.
        lr, lr_network: learning rates of grids and network.
        last_rate: factor of the learning rates at the end.
        per_point, entropy: weights of the per-point colour loss and of the background entropy.
        threshold: opacity and weight below which samples are dropped.
        opaque: opacity from which on a coarse voxel, or a cell when the mask is refreshed, counts as solid.
        inherit: whether a fine grid begins with the coarse densities instead of even fog.
        grow: steps at which the number of voxels doubles, up to `n_voxels`.
        refresh: steps between refreshes of the free-space mask, 0 for none.
        n_features, mlp_width: of the grid; 0 features store colour.
    """

    n_voxels: int = 40**3
    n_steps: int = 300
    n_rays: int = 2048
    n_samples: int = 0
    alpha_init: float = 1e-6
    lr: float = 0.1
    lr_network: float = 1e-3
    last_rate: float = 0.1
    per_point: float = 0.1
    entropy: float = 0.01
    threshold: float = 1e-7
    opaque: float = 1e-3
    inherit: bool = False
    grow: tuple[int, ...] = ()
    refresh: int = 0
    n_features: int = 0
    mlp_width: int = 64


@dataclass(frozen=True)
class RayBank:
    """All rays one may train on, with the colours of their pixels [R, 3]."""

    rays: Rays
    colours: Float[Tensor, "R 3"]

    def __len__(self) -> int:
        return len(self.rays)

    def draw(self, n_rays: int, generator: torch.Generator) -> tuple[Rays, Float[Tensor, "n_rays 3"]]:
        """Return random rays and colours; they depend on the generator's state alone."""
        index = torch.randint(len(self), (n_rays,), generator=generator, device=self.colours.device)
        return self.rays[index], rows_at(self.colours, index)

    def only(self, chosen: Tensor) -> RayBank:
        """Return the rays at a mask or an index."""
        chosen = row_numbers(chosen)
        return RayBank(self.rays[chosen], rows_at(self.colours, chosen))


def ray_bank(
    scene: Scene,
    which: str | Int[Tensor, "n"] = "train",
    background: float = 1.0,
    device: torch.device | str = "cpu",
    aabb: Float[Tensor, "2 3"] | None = None,
) -> RayBank:
    """Return every ray of a split, or of the given frames, whose pixel may be used, with its colour.

    Picture by picture: what is worked out on the way to the rays of all of them would need several times their memory.

    Args:
        aabb: leave out the rays that miss this box: they show the background whatever a field in it says.
    """
    banks = []
    for frame in scene.frames(which).split(1):
        bank = RayBank(camera_rays(scene.views(frame).to(device)), scene.pixels(frame, background, device).reshape(-1, 3))
        everything = aabb is None and scene.masks is None
        banks.append(bank if everything else bank.only(worth_asking(scene, frame, bank.rays, aabb)))
    rays = (torch.cat([getattr(bank.rays, name) for bank in banks]) for name in ("origins", "directions", "z_per_t"))
    return RayBank(Rays(*rays, scene.cameras.to(device).background), torch.cat([bank.colours for bank in banks]))


def new_coarse(scene: Scene, stage: Stage, activation: Callable = post_activation) -> DenseGrid:
    """Return a transparent grid over everything that the training cameras can see between near and far."""
    box = dvgo.frusta_box(scene.views("train"), scene.near, scene.far)
    settings = DenseGridSettings(tuple(box.reshape(6).tolist()), n_voxels=stage.n_voxels, alpha_init=stage.alpha_init)
    grid = DenseGrid(settings, activation)
    if isinstance(scene.behind, Tensor):
        # A grey voxel before a grey card changes no pixel, so no gradient says that it is there: begin half the range away.
        start = torch.where(scene.behind > 0.5, scene.behind - 0.5, scene.behind + 0.5).clamp(0.1, 0.9)
        grid.features.data += start.logit()
    return grid


def new_fine(coarse: DenseGrid, stage: Stage, activation: Callable = post_activation) -> DenseGrid:
    """Return the grid of the fine stage: tight box, free-space mask, the voxels it starts with."""
    box = dvgo.tight_box(coarse, stage.opaque)
    settings = DenseGridSettings(
        tuple(box.reshape(6).tolist()),
        n_voxels=stage.n_voxels,
        n_start=stage.n_voxels // 2 ** len(stage.grow),
        alpha_init=stage.alpha_init,
        n_features=stage.n_features,
        mlp_width=stage.mlp_width,
    )
    fine = DenseGrid(settings, activation).to(coarse.aabb.device)
    shape = tuple(max(1, round(float(n))) for n in (fine.aabb[1] - fine.aabb[0]) / fine.voxel)
    fine.occupied = dvgo.free_space_mask(coarse, fine.aabb, shape, stage.opaque)
    if stage.inherit:
        dvgo.inherit_density(fine, coarse)
    return fine


def losses(out: dvgo.GridRender, colours: Float[Tensor, "R 3"], stage: Stage) -> dict[str, Tensor]:
    """Return the three weighted terms of the loss: colour, per-point colour, background entropy (DVGO, eq. 11 to 13)."""
    return {
        "colour": loss_mse(out.rgb, colours),
        "per_point": stage.per_point * dvgo.loss_per_point(out, colours),
        "entropy": stage.entropy * loss_entropy(out.left),
    }


def maintain(model: DenseGrid, optimizer: dvgo.MaskedAdam, step: int, stage: Stage) -> bool:
    """Do what a step calls for before it: refresh the mask, double the voxels; return whether the grid has grown."""
    if stage.refresh and step % stage.refresh == stage.refresh // 2:
        dvgo.refresh_mask(model, stage.opaque)
    if step not in stage.grow:
        return False
    missing = len(stage.grow) - 1 - stage.grow.index(step)
    n_voxels = stage.n_voxels // 2**missing
    rebuild(model, optimizer, lambda: model.resize(n_voxels, shift_change=-1.0))  # both of the official code
    return True


def fit(
    model: DenseGrid,
    bank: RayBank,
    stage: Stage,
    generator: torch.Generator,
    near: float,
    counts: Tensor | None = None,
    background: float | None = None,
    seconds: float | None = None,
    watch: Callable[[int, float, dvgo.GridRender], object] | None = None,
    extra_loss: ExtraLoss | None = None,
    steps: Iterable[int] | None = None,
) -> float:
    """Train one stage and return how many seconds its steps took.

    Args:
        near: where rays begin.
        counts: views of each voxel, for the learning rate of the coarse stage.
        background: grey behind the pictures; the rays' own by default.
        seconds: stop there; the schedule then follows the clock instead of the step.
        watch: called after every step with the step, the seconds so far and the batch.
        extra_loss: one more term, of the batch's colours, their truth and the generator.
        steps: `range(stage.n_steps)`, perhaps through what shows how far it is.
    """
    optimizer = dvgo.make_optimizer(model, stage.lr, stage.lr_network, counts)
    spent, n_rays = 0.0, stage.n_rays
    for step in range(stage.n_steps) if steps is None else steps:
        start = clock()
        maintain(model, optimizer, step, stage)
        dvgo.decay(optimizer, step / stage.n_steps if seconds is None else min(1.0, spent / seconds), stage.last_rate)
        rays, colours = bank.draw(n_rays, generator)
        out = dvgo.render(model, rays, near, background, generator, stage.threshold)
        loss = sum(losses(out, colours, stage).values())
        (loss if extra_loss is None else loss + extra_loss(out.rgb, colours, generator)).backward()
        optimizer.step()
        if stage.n_samples:
            n_rays = next_batch(n_rays, len(out.t), stage.n_samples, largest=1 << 13)
        spent += clock() - start
        if watch is not None:
            watch(step, spent, out)
        if seconds is not None and spent >= seconds:
            break
    return spent


def coarse_stage(
    scene: Scene, bank: RayBank, stage: Stage, generator: torch.Generator, count: bool = True, near: float | None = None
) -> DenseGrid:
    """Train a whole coarse stage; with `count` False all voxels learn at one rate and none is hidden for its views.

    Args:
        near: where rays begin; the scene's near by default.
    """
    near, views = scene.near if near is None else near, scene.views("train").to(bank.colours.device)
    coarse = new_coarse(scene, stage).to(bank.colours.device)
    counts = dvgo.count_views(coarse, views, near, scene.far) if count else None
    dvgo.hide_voxels(coarse, views, near, counts)
    fit(coarse, bank, stage, generator, near, counts)
    return coarse


def fit_field(
    field: torch.nn.Module, scene: Scene, seconds: float, generator: torch.Generator, n_rays: int, n_samples: int, lr: float = 5e-3,
    percents: Iterable[object] = (),
) -> int:  # fmt: skip
    """Train any field by stratified sampling for a time, the learning rate falling tenfold, and return the steps that it took.

    The baseline of the paper's comparison: the same pictures and the same seconds, another representation.

    Args:
        percents: see `metrics.until_spent`.
    """
    bank = ray_bank(scene, device=generator.device, aabb=scene.aabb)
    optimizer = torch.optim.Adam(field.parameters(), lr=lr)
    step = 0
    for spent in until_spent(seconds, percents):
        optimizer.param_groups[0]["lr"] = lr * 0.1 ** (spent / seconds)
        rays, colours = bank.draw(n_rays, generator)
        loss = loss_mse(render_rays(field, rays, n_samples=n_samples, jitter=generator).rgb, colours)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
    return step

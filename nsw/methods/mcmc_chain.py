"""The chain of 3DGS-MCMC: when splats jump, are born and are shaken, and the training that does it.

Kheradmand et al., NeurIPS 2024, sections 3.2 to 3.4; the moves themselves are in `mcmc.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nsw.methods import gaussian_splatting as gs
from nsw.methods.mcmc import add, add_noise, loss_opacity, loss_scale, relocate, shared
from nsw.models.gaussians import Gaussians

START, JUMPED, ADDED = 0, 1, 2  # values of rows["origin"]: how a splat came to stand where it does


@dataclass(frozen=True)
class Sampling:
    """When and how the chain moves; the defaults are the paper's for 30,000 steps.

    Attributes:
        max_splats: never grow beyond this; required, because nothing else ends the growth.
        noise_lr: factor on the rate of the means in the noise. Noise goes with length squared, so splats that are larger,
            in scene units, than the paper's want a smaller factor.
        gate_at: opacity at which half the noise passes.
        min_opacity: splats at most this opaque are dead.
        grow: share of new splats at every refinement.
        start, stop, every: refine at steps start < step < stop that `every` divides.
        opacity_weight, scale_weight: of the two regularisers.
    """

    max_splats: int
    noise_lr: float = 5e5
    gate_at: float = 0.005
    min_opacity: float = 0.005
    grow: float = 0.05
    start: int = 500
    stop: int = 25_000
    every: int = 100
    opacity_weight: float = 0.01
    scale_weight: float = 0.01

    def for_budget(self, n_steps: int, **changes) -> Sampling:
        """Return the schedule shortened in proportion to n_steps of 30,000, never refining more often than every 10 steps.

        >>> sampling = Sampling(max_splats=4000).for_budget(3000)
        >>> sampling.start, sampling.stop, sampling.every
        (50, 2500, 10)
        """
        share = n_steps / 30_000
        start, stop = round(self.start * share), round(self.stop * share)
        every = max(min(10, self.every), round(self.every * share))
        return replace(replace(self, start=start, stop=stop, every=every), **changes)

    def due(self, step: int) -> bool:
        """Say whether `refine` belongs after this step."""
        return self.start < step < self.stop and step % self.every == 0


@dataclass(frozen=True)
class Moved:
    """What one refinement did.

    Attributes:
        dead, target: [D] rows that jumped, and the rows they jumped onto.
        places: [D, 3] where they stood before.
        added: number of new splats, the last rows.
        n: number of splats now.
    """

    dead: Int[Tensor, "D"]
    target: Int[Tensor, "D"]
    places: Float[Tensor, "D 3"]
    added: int
    n: int


class Chain(gs.Training):
    """Gaussians being trained by the chain: Adam, then jumps and growth when they are due, then noise.

    Args:
        sampling: the chain's settings.
        rule: see `mcmc.share`.
        Others as in `gaussian_splatting.Training`.
    """

    def __init__(
        self,
        gaussians: Gaussians,
        scene_scale: float,
        n_steps: int,
        sampling: Sampling,
        rates: gs.LearningRates | None = None,
        seed: int = 0,
        rule: Callable = shared,
    ):
        super().__init__(gaussians, scene_scale, n_steps, rates, seed=seed)
        self.sampling, self.rule = sampling, rule
        self.deaths: list[tuple[int, float]] = []  # step of every round, and the share of splats that were dead then

    def penalty(self, step: int) -> Float[Tensor, ""]:
        """Return the weighted regularisers, to be added to the loss; they are the same at every step."""
        sampling, splats = self.sampling, self.gaussians
        return sampling.opacity_weight * loss_opacity(splats) + sampling.scale_weight * loss_scale(splats)

    def step(self, step: int, meta: dict | None = None) -> Moved | None:
        """Take one step after `backward`; return what moved, or None when no refinement was due."""
        super().step(step, meta or {})
        sampling, params = self.sampling, self.gaussians.params
        seeds = gs.generator_at(self.seed, step, 4).initial_seed()
        generator = torch.Generator(self.gaussians.means.device).manual_seed(seeds)
        moved = self.refine(step, generator) if sampling.due(step) else None
        lr_means = self.optimizers["means"].param_groups[0]["lr"]
        if sampling.noise_lr:
            add_noise(params, lr_means * sampling.noise_lr, sampling.gate_at, generator)
        return moved

    def state_dict(self) -> dict:
        return {**super().state_dict(), "deaths": list(self.deaths)}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.deaths = [(int(step), float(share)) for step, share in state["deaths"]]

    @torch.no_grad()
    def refine(self, step: int, generator: torch.Generator | None = None) -> Moved:
        """Let the dead jump, then grow by a share, up to the limit."""
        sampling, params, old = self.sampling, self.gaussians.params, len(self.gaussians)
        before = self.gaussians.means.detach().clone()
        how = dict(min_opacity=sampling.min_opacity, rule=self.rule, generator=generator)
        dead, target = relocate(params, self.optimizers, **how)
        self.deaths.append((step, len(dead) / old))
        self.rows["origin"][dead], self.rows["born"][dead] = JUMPED, step
        n = max(min(sampling.max_splats, int((1 + sampling.grow) * old)) - old, 0)
        add(params, self.optimizers, self.rows, n, **how)
        self.rows["origin"][old:], self.rows["born"][old:] = ADDED, step
        return Moved(dead, target, before[dead], n, old + n)

r"""Sampling where small proposal networks expect density: nerfacc's `PropNetEstimator`, by the same names and arguments.

Proposal networks are trained to bound the histogram that the final network sees: with w the final weights and W_prop the proposal's
weight over all of its intervals that touch one of the final ones,

$$\mathcal L = \frac1n \sum_i \frac{\max(0,\ w_i - W_{prop}(i))^2}{w_i + \epsilon}$$  (Mip-NeRF 360, Barron et al. 2022, eq. 13)

so a proposal pays only where it would have missed something.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nsw.kernels.ray_segments import RayIntervals
from nsw.kernels.sampling import importance_sampling, searchsorted
from nsw.kernels.volume import render_transmittance_from_density


class PropNetEstimator(nn.Module):
    """Places samples by a chain of proposal networks, and trains these.

    Args:
        optimizer, scheduler: of the proposal networks' parameters; needed to train them.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("_dummy", torch.empty(0), persistent=False)
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.prop_cache: list = []

    @property
    def device(self) -> torch.device:
        return self._dummy.device

    @torch.no_grad()
    def sampling(
        self,
        prop_sigma_fns: list[Callable],
        prop_samples: list[int],
        num_samples: int,
        n_rays: int,
        near_plane: float,
        far_plane: float,
        sampling_type: Literal["uniform", "lindisp"] = "lindisp",
        stratified: bool = False,
        requires_grad: bool = False,
    ) -> tuple[Float[Tensor, "n_rays num_samples"], Float[Tensor, "n_rays num_samples"]]:
        """Return start and end distance of each ray's samples.

        Args:
            prop_sigma_fns: (t_starts, t_ends) -> densities, all [n_rays, n]; each network refines the one before.
            prop_samples: how many samples each of them gets.
            sampling_type: the first samples are uniform in distance, or in its inverse.
            stratified: shift each ray's samples by a random part of a step.
            requires_grad: keep what the networks said for `update_every_n_steps`.
        """
        assert len(prop_sigma_fns) == len(prop_samples), "there must be as many numbers of samples as proposal networks."
        cdfs = torch.tensor([0.0, 1.0], device=self.device).repeat(n_rays, 1)
        intervals = RayIntervals(cdfs)
        for sigma_fn, n in zip(prop_sigma_fns, prop_samples, strict=True):
            intervals, _ = importance_sampling(intervals, cdfs, n, stratified)
            t_starts, t_ends = _distances(sampling_type, intervals.vals, near_plane, far_plane)
            with torch.set_grad_enabled(requires_grad):
                sigmas = sigma_fn(t_starts, t_ends)
                assert sigmas.shape == t_starts.shape, "a proposal network must give one density for each sample."
                cdfs = _cdfs(render_transmittance_from_density(t_starts, t_ends, sigmas)[0])
                if requires_grad:
                    self.prop_cache.append((intervals, cdfs))
        intervals, _ = importance_sampling(intervals, cdfs, num_samples, stratified)
        if requires_grad:
            self.prop_cache.append((intervals, None))
        return _distances(sampling_type, intervals.vals, near_plane, far_plane)

    @torch.enable_grad()
    def compute_loss(self, trans: Float[Tensor, "n_rays num_samples"], loss_scaler: float = 1.0) -> Float[Tensor, ""]:
        """Return how much the proposals kept by `sampling` missed of what the final network saw, and forget them.

        Args:
            trans: transmittance in front of each final sample; no gradient flows into it.
        """
        if not self.prop_cache:
            return torch.zeros((), device=self.device)
        intervals, _ = self.prop_cache.pop()
        cdfs = _cdfs(trans).detach()
        loss = torch.zeros((), device=self.device)
        while self.prop_cache:
            proposed, proposed_cdfs = self.prop_cache.pop()
            loss = loss + outer_loss(intervals, cdfs, proposed, proposed_cdfs).mean()
        return loss * loss_scaler

    @torch.enable_grad()
    def update_every_n_steps(self, trans: Tensor, requires_grad: bool = False, loss_scaler: float = 1.0) -> float:
        """Train the proposal networks by one step where `requires_grad`, and return their loss; else only step the scheduler."""
        if requires_grad:
            return self._update(trans, loss_scaler)
        if self.scheduler is not None:
            self.scheduler.step()
        return 0.0

    @torch.enable_grad()
    def _update(self, trans: Tensor, loss_scaler: float = 1.0) -> float:
        assert len(self.prop_cache) > 0, "nothing was sampled with requires_grad=True since the last update."
        assert self.optimizer is not None, "No optimizer is provided."
        loss = self.compute_loss(trans, loss_scaler)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        return loss.item()


def get_proposal_requires_grad_fn(target: float = 5.0, num_steps: int = 1000) -> Callable[[int], bool]:
    """Return a function that says at which steps to train the proposals: always at first, every `target` steps from `num_steps` on.

    >>> due = get_proposal_requires_grad_fn(target=2.0, num_steps=1)
    >>> [due(step) for step in range(7)]
    [False, False, False, True, False, False, True]
    """
    since = 0

    def proposal_requires_grad_fn(step: int) -> bool:
        nonlocal since
        due = since > min(step / num_steps, 1.0) * target
        since = 1 if due else since + 1
        return due

    return proposal_requires_grad_fn


def outer_loss(
    intervals: RayIntervals,
    cdfs: Float[Tensor, "n_rays n+1"],
    proposed: RayIntervals,
    proposed_cdfs: Float[Tensor, "n_rays m+1"],
    eps: float = 1e-7,
) -> Float[Tensor, "n_rays n"]:
    """Return the loss of the formula above for each interval, differentiable in the proposal's cumulative sums."""
    left, right = searchsorted(proposed, intervals)
    weights = cdfs.diff(dim=-1)
    bound = proposed_cdfs.gather(-1, right[..., 1:]) - proposed_cdfs.gather(-1, left[..., :-1])
    return (weights - bound).clamp_min(0).square() / (weights + eps)


def _cdfs(trans: Float[Tensor, "n_rays n"]) -> Float[Tensor, "n_rays n+1"]:
    """Return the share of light that ended before each edge; all of it before the last, as if a wall stood there."""
    return 1.0 - torch.cat([trans, torch.zeros_like(trans[:, :1])], dim=-1)


def _distances(sampling_type: str, s: Tensor, near: float, far: float) -> tuple[Tensor, Tensor]:
    """Return interval starts and ends in world units of edges in [0, 1]."""
    if sampling_type == "uniform":
        t = s * far + (1 - s) * near
    elif sampling_type == "lindisp":
        t = 1 / (s * (1 / far) + (1 - s) * (1 / near))
    else:
        raise ValueError(f"Unknown sampling type {sampling_type!r}: it is 'uniform' or 'lindisp'.")
    return t[..., :-1], t[..., 1:]

"""Look at the chain of 3DGS-MCMC: stacks in profile, how far noise carries, and what strays from the scene."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from nsw.methods.mcmc import add_noise, copied, noise_gate, relocate, shared
from nsw.models.gaussians import Gaussians
from nsw.models.parts import part_of


def stack_profiles(opacity: float, n: int, reach: float = 4.0) -> tuple[Float[Tensor, "X"], dict[str, Float[Tensor, "X"]]]:
    r"""Return opacity along a line through n stacked splats: copies, only their opacity corrected, and both corrected.

    $$\alpha(x) = 1 - (1 - o' e^{-x^2 / 2 s'^2})^n$$

    Args:
        reach: the line's half length, in standard deviations of the one splat.
    """
    x = torch.linspace(-reach, reach, 241)
    given = torch.tensor([opacity]), torch.ones(1, 3), torch.tensor([n])
    (o_copied, _), (o_shared, s_shared) = copied(*given), shared(*given)
    stacks = {"copies": (o_copied, 1.0), "opacity shared": (o_shared, 1.0), "opacity and scale shared": (o_shared, s_shared[0, 0])}
    curves = {"one splat": opacity * torch.exp(-0.5 * x**2)}
    return x, curves | {name: 1 - (1 - o * torch.exp(-0.5 * (x / s) ** 2)) ** n for name, (o, s) in stacks.items()}


@torch.no_grad()
def expected_jump(gaussians: Gaussians, size: float, gate_at: float = 0.005) -> Float[Tensor, "N"]:
    r"""Return how far one step's noise carries each splat, root mean square, in world units.

    $$\sqrt{\mathrm E\,\|\lambda g \Sigma \eta\|^2} = \lambda\,g(o)\,\sqrt{\textstyle\sum_k s_k^4}$$
    """
    return size * noise_gate(gaussians.activated_opacities, gate_at) * gaussians.activated_scales.pow(4).sum(dim=1).sqrt()


@torch.no_grad()
def melted(gaussians: Gaussians, size: float, gate_at: float, n_steps: int = 20, seed: int = 0) -> Gaussians:
    """Return a copy after n_steps of noise and nothing else."""
    copy = part_of(gaussians)
    generator = torch.Generator(gaussians.means.device).manual_seed(seed)
    for _ in range(n_steps):
        add_noise(copy.params, size, gate_at, generator)
    return copy


@torch.no_grad()
def cloud(gaussians: Gaussians, n: int, size: float, gate_at: float = 0.005) -> Gaussians:
    """Return n copies of every splat, each after one step of noise of its own."""
    each = torch.arange(len(gaussians), device=gaussians.means.device)
    return melted(part_of(gaussians, each.repeat_interleave(n)), size, gate_at, n_steps=1)


@torch.no_grad()
def strays(gaussians: Gaussians, aabb: Float[Tensor, "2 3"], least: float = 0.1) -> float:
    """Return the share of splats that stand outside the scene's box and can be seen there: floaters."""
    low, high = aabb.to(gaussians.means)
    outside = ((gaussians.means < low) | (gaussians.means > high)).any(dim=1)
    return float((outside & (gaussians.activated_opacities > least)).float().mean())


@torch.no_grad()
def opacity_histograms(
    gaussians: Gaussians, min_opacity: float, n_bins: int = 20, seed: int = 0
) -> dict[str, tuple[Float[Tensor, "K"], Float[Tensor, "K"]]]:
    """Return how many splats have which opacity "before" and "after" one round of jumps: middles of bins, and counts.

    The splats themselves stay as they are.
    """
    copy, edges = part_of(gaussians), torch.linspace(0, 1, n_bins + 1)
    count = lambda: torch.histogram(copy.activated_opacities.detach().cpu().float(), edges).hist  # noqa: E731
    middle, before = (edges[1:] + edges[:-1]) / 2, count()
    relocate(copy.params, {}, min_opacity, generator=torch.Generator(gaussians.means.device).manual_seed(seed))
    return {"before a round": (middle, before), "after it": (middle, count())}

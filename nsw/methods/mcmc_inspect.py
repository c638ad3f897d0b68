"""Look at the chain of 3DGS-MCMC: stacks in profile, how far noise carries, and what strays from the scene."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nsw.cameras import Cameras
from nsw.methods.gaussian_splatting import Training
from nsw.methods.mcmc import add_noise, copied, noise_gate, relocate, shared
from nsw.methods.mcmc_chain import Moved
from nsw.models.gaussians import Gaussians
from nsw.models.parts import joined, part_of
from nsw.renderers.splat_marks import dots, threads
from nsw.renderers.splat_probe import origin_colours
from nsw.renderers.splats import render_view

ORANGE = (0.84, 0.37, 0.0)


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
def jump_curve(gaussians: Gaussians, size: float, gate_at: float = 0.005, n: int = 24) -> tuple[list[float], list[float]]:
    """Return mean opacity and mean jump of one step, in own sizes, of n groups by opacity; at least 0.001, for a log scale."""
    opacity, width = gaussians.activated_opacities, gaussians.activated_scales.amax(dim=1)
    groups = opacity.argsort().chunk(n)
    mean = lambda values: [max(float(values[group].mean()), 1e-3) for group in groups]  # noqa: E731
    return mean(opacity), mean(expected_jump(gaussians, size, gate_at) / width)


@torch.no_grad()
def arrows(gaussians: Gaussians, size: float, gate_at: float, thickness: float, seed: int = 0) -> Gaussians:
    """Return a thread along the jump of every splat in one step of noise: orange where the gate is open, grey where it is shut."""
    after, gate = melted(gaussians, size, gate_at, 1, seed).means, noise_gate(gaussians.activated_opacities, gate_at)[:, None]
    shut, wide = gate.new_tensor([0.7, 0.7, 0.7]), gate.new_tensor(ORANGE)
    return threads(gaussians.means, after, shut + gate * (wide - shut), thickness)


@torch.no_grad()
def film_frame(training: Training, camera: Cameras, reach: float, moved: Moved | None = None) -> Float[Tensor, "H W*2 3"]:
    """Return a scene in training beside its splats as dots, coloured by `splat_probe.origin_colours`.

    Args:
        reach: of the scene, world units; dots and threads are a share of it.
        moved: of the round that this step made; an orange thread shows the way of every splat that jumped in it.
    """
    splats = training.gaussians
    marks = dots(splats, 0.004 * reach, rgb=origin_colours(training.rows["origin"]))
    if moved is not None:
        marks = joined(marks, threads(moved.places, splats.means[moved.target], ORANGE, 0.002 * reach))
    return torch.cat([render_view(model, camera).rgb[0].cpu() for model in (splats, marks)], dim=1)


def shaken(gaussians: Gaussians, size: float, gate_at: float, thickness: float) -> dict[str, Gaussians]:
    """Return the splats after twenty steps of noise, and the `arrows` of one step, by title."""
    return {"after twenty steps": melted(gaussians, size, gate_at), "one step": arrows(gaussians, size, gate_at, thickness)}


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
def floating(gaussians: Gaussians, aabb: Float[Tensor, "2 3"], least: float = 0.1) -> Bool[Tensor, "N"]:
    """Say which splats stand outside the scene's box and can be seen there: floaters."""
    low, high = aabb.to(gaussians.means)
    outside = ((gaussians.means < low) | (gaussians.means > high)).any(dim=1)
    return outside & (gaussians.activated_opacities > least)


def floaters(gaussians: Gaussians, aabb: Float[Tensor, "2 3"], size: float) -> Gaussians:
    """Return all splats as dots of one size: orange where they are `floating`, grey elsewhere."""
    return dots(gaussians, size, rgb=origin_colours(floating(gaussians, aabb)))


def strays(gaussians: Gaussians, aabb: Float[Tensor, "2 3"], least: float = 0.1) -> float:
    """Return the share of splats that are `floating`."""
    return float(floating(gaussians, aabb, least).float().mean())


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
